"""The named dialogues: how lines become prompts and responses, on files made up here in the shape
of the fetched ones, and what is known of the fetched ones.
"""

import json

import numpy as np
import pytest

from learning.backbones import assets
from learning.data import dialogues
from learning.data import texts as data

HEADER = "\n".join(
    "\t".join(cells)
    for cells in (
        ["Season", "Episode", "Season & Episode", "Title", "Author", "Quote"],
        ["d", "d", "d", "d", "d", "string"],
        ["", "", "", "", "", "include=True"],
        ["\n"],
    )
)


def read(name: str, folder, file: str, content: str):
    (folder / file).write_text(content, encoding="utf-8")
    return dialogues.READERS[name](name, folder)


def said(loaded) -> list[tuple[str, str]]:
    return list(zip(loaded.texts, loaded.responses, strict=True))


def test_a_line_of_a_film_and_the_next_are_taken_once_and_not_blank(tmp_path):
    rows = ['0,"hi, you",hello.', '1,"hi,  you ",hello.', "2,hi,", "3,,there", '4,"hi, you",what?']
    loaded = read(
        "film-dialogues", tmp_path, "moviedialog.csv", "\n".join([",statement,reply", *rows])
    )
    assert said(loaded) == [("hi, you", "hello."), ("hi, you", "what?")]
    assert loaded.class_names == ("text",) and loaded.labels.tolist() == [0, 0]
    assert loaded.clients is None


def test_a_line_of_a_series_answers_somebody_else_in_the_same_episode(tmp_path):
    lines = [
        ("01", "0101", "Ann", " How are\u00a0you? "),
        ("01", "0101", "Bob", "I\x92m well."),
        ("01", "0101", "Bob", "And you?"),  # to himself
        ("01", "0101", "Ann", "  "),  # a direction alone: blank, and what follows answers nothing
        ("01", "0101", "Bob", "Ann?"),
        ("02", "0201", "Ann", "Another day."),  # another episode
        ("02", "0201", "Cy", "Indeed\x85"),
    ]
    rows = ["\t".join([a, "1", b, "title", speaker, quote]) for a, b, speaker, quote in lines]
    loaded = read(
        "series-dialogues", tmp_path, "friends-transcripts.tab", HEADER + "\n".join(rows) + "\n"
    )
    assert said(loaded) == [("How are you?", "I’m well."), ("Another day.", "Indeed…")]
    assert loaded.clients.tolist() == ["Bob", "Cy"]
    assert [loaded.class_names[c] for c in loaded.labels] == ["01", "02"]


def test_a_headline_is_said_to_the_first_paragraph_with_some_words(tmp_path):
    ten = "one two three four five six seven eight nine ten"
    articles = [
        ("sport/1.txt", f"Home win\n\nA park\n\nSaturday\n\n{ten}\n\nmore\n"),
        ("arts/1.txt", f"New film\n \n{ten}\n\nmore\n"),
        ("arts/2.txt", f"New film\n\n{ten}\n\nof another day\n"),
    ]
    lines = [json.dumps({"name": name, "text": text}) for name, text in articles]
    loaded = read("bbc-headlines", tmp_path, "articles.jsonl", "\n".join(lines) + "\n")
    assert said(loaded) == [(f"A park Saturday {ten}", "Home win"), (ten, "New film")]
    assert [loaded.class_names[c] for c in loaded.labels] == ["sport", "arts"]


def fetched(name: str, kind: str = "language-modelling"):
    try:
        return data.load(name, kind)
    except assets.AssetMissing as error:
        pytest.skip(str(error))


@pytest.mark.fetched
@pytest.mark.parametrize(
    ("name", "index", "prompt", "response"),
    [
        ("film-dialogues", 19, "they do to!", "they do not!"),
        ("series-dialogues", 500, "It's my baby too.", "Oh, 's'funny, really? Um, I don't"),
        ("bbc-headlines", 1, "The dollar has hit its highest", "Dollar gains on Greenspan speech"),
    ],
)
def test_known_lines_are_where_they_were(name, index, prompt, response):
    loaded = fetched(name)
    assert loaded.texts[index].startswith(prompt) and loaded.responses[index].startswith(response)
    together = "".join((*loaded.texts, *loaded.responses))
    assert not [c for c in set(together) if c != " " and not c.isprintable()]


@pytest.mark.fetched
def test_six_friends_say_most_of_a_series():
    loaded = fetched("series-dialogues")
    speakers, counts = np.unique(loaded.clients, return_counts=True)
    friends = {"Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross"}
    assert set(speakers[np.argsort(counts)[-6:]]) == friends
    assert counts[np.isin(speakers, list(friends))].sum() == 48_802
    assert ((counts >= 20).sum(), (counts == 1).sum()) == (119, 253)


@pytest.mark.fetched
@pytest.mark.parametrize("name", ["trec-questions", "hutto-amazon", "trec-pairs"])
def test_sets_with_classes_are_said_as_plain_text_or_from_the_first_to_the_second(name):
    classes, loaded = fetched(name, "classification"), fetched(name)
    if classes.second_texts is None:
        assert set(loaded.texts) == {""} and loaded.responses == classes.texts
    else:
        assert (loaded.texts, loaded.responses) == (classes.texts, classes.second_texts)
    assert loaded.class_names == classes.class_names and loaded.second_texts is None
    assert np.array_equal(loaded.labels, classes.labels)
    assert (loaded.clients is None) == (classes.clients is None)
