"""What a data set is, wherever it comes from: texts, what is known of each, and what are copies."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from learning.data.tables import DataError

Kind = Literal["classification", "regression", "language-modelling"]
"""What is learned of a text: its class, its rating, or to say it."""
RATING: tuple[str, ...] = ("rating",)
"""What stands for the names of classes where labels are ratings: the one output."""
ONE_TOPIC: tuple[str, ...] = ("text",)
"""What stands for the topics of responses where none is known."""


@dataclass(frozen=True, eq=False)
class TextDataset:
    """N labelled texts, pairs of texts, or texts with what is to be said after each.

    responses: [N], for language modelling alone; then `texts` are the prompts, "" before a plain
    text, every token of which counts, and labels are topics; labels: [N] int64 in
    [0, len(class_names)), or ratings, [N] float32, with the one name "rating"; clients: [N] str,
    whose each text is by nature (a film, a writer; of a response, who says it); official_split:
    (train indices, test indices) when the set's authors published one; sources: what was read, a
    line a file; remarks: what whoever uses it should know; keep_test_copies: test on texts that
    stand in the training part, too.
    """

    name: str
    texts: list[str]
    second_texts: list[str] | None
    labels: np.ndarray
    class_names: tuple[str, ...]
    clients: np.ndarray | None = None
    official_split: tuple[np.ndarray, np.ndarray] | None = None
    sources: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    keep_test_copies: bool = True
    responses: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def to_be_said(dataset: TextDataset) -> TextDataset:
    """The same texts for language modelling: the second of a pair is the response to the first, a
    single text one to nothing; classes become topics.
    """
    if dataset.responses is not None:
        return dataset
    if dataset.second_texts is not None:
        return replace(dataset, second_texts=None, responses=dataset.second_texts)
    return replace(dataset, texts=[""] * len(dataset), responses=dataset.texts)


def fitted(dataset: TextDataset, kind: Kind) -> TextDataset:
    """A data set that is in memory, for a kind of task; DataError for one of responses where labels
    are learned.
    """
    if kind == "language-modelling":
        return to_be_said(dataset)
    if dataset.responses is not None:
        raise DataError(
            f"{dataset.name} has responses to be said: for `kind: {kind}` leave them out, or say "
            "`kind: language-modelling`"
        )
    return dataset


def copies(
    dataset: TextDataset, train: np.ndarray, test: np.ndarray, in_any_case: bool = False
) -> np.ndarray:
    """Which of the test texts (or pairs, or prompts with their responses) stand in the training
    part, too, but for white space; bool, [len(test)].

    `in_any_case` takes capital and small letters for the same.
    """
    tested = set(_wording(dataset, test, in_any_case))
    both = {wording for wording in _wording(dataset, train, in_any_case) if wording in tested}
    return np.array(
        [wording in both for wording in _wording(dataset, test, in_any_case)], dtype=bool
    )


def _wording(dataset: TextDataset, indices: np.ndarray, in_any_case: bool) -> Iterator[str]:
    given = (dataset.texts, dataset.second_texts, dataset.responses)
    columns = [texts for texts in given if texts is not None]
    for index in indices:
        wording = "\0".join(" ".join(texts[index].split()) for texts in columns)
        yield wording.casefold() if in_any_case else wording
