"""The data sets that have a name, and their sizes, for listings and checks that read no texts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """One line of a listing; the sizes are those of the pinned files, so that a listing reads none
    of them. None is what a package does not say; its data sets are no assets.
    """

    name: str
    description: str
    asset: str | None
    texts: int | None
    classes: int | None
    clients: int | None = None
    official_split: bool = False
    has_responses: bool = False
    """Whether it is prompts and responses, for language modelling alone; then `classes` counts
    topics. All other sets serve that kind of task as plain text, too.
    """


NAMED = {
    info.name: info
    for info in (
        DatasetInfo(
            "trec-questions", "what a question asks for, coarse type", "trec-questions", 5381, 6
        ),
        DatasetInfo("trec-fine", "what a question asks for, fine type", "trec-questions", 5381, 50),
        DatasetInfo(
            "rotten-tomatoes",
            "review fresh or rotten; client = film",
            "rotten-tomatoes",
            12752,
            2,
            507,
        ),
        DatasetInfo("sms-spam", "text message ham or spam", "sms-spam", 4522, 2),
        DatasetInfo(
            "hutto-amazon",
            "review sentence sentiment; client = review",
            "hutto-sentiment",
            3600,
            2,
            299,
        ),
        DatasetInfo("hutto-tweets", "tweet sentiment", "hutto-sentiment", 4196, 2),
        DatasetInfo("hutto-films", "film review sentence sentiment", "hutto-sentiment", 10566, 2),
        DatasetInfo(
            "hutto-editorials",
            "editorial sentence sentiment; client = article",
            "hutto-sentiment",
            4884,
            2,
            498,
        ),
        DatasetInfo(
            "20newsgroups", "newsgroup of a post", "20newsgroups", 18821, 20, official_split=True
        ),
        DatasetInfo(
            "reuters-r8", "topic of a news wire", "reuters-r8", 7674, 8, official_split=True
        ),
        DatasetInfo(
            "trec-pairs",
            "do two questions ask for the same type?",
            "trec-questions",
            5381,
            2,
            official_split=True,
        ),
        DatasetInfo(
            "newsgroups-pairs",
            "are two posts from the same newsgroup?",
            "20newsgroups",
            18821,
            2,
            official_split=True,
        ),
        DatasetInfo(
            "film-dialogues",
            "what is said next in a film",
            "film-dialogues",
            63745,
            1,
            has_responses=True,
        ),
        DatasetInfo(
            "series-dialogues",
            "what is said next in a series; client = speaker",
            "series-dialogues",
            58920,
            10,
            836,
            has_responses=True,
        ),
        DatasetInfo(
            "bbc-headlines",
            "headline of an article, by topic",
            "bbc-headlines",
            2105,
            5,
            has_responses=True,
        ),
    )
}
