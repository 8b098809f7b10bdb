"""The named sets for language modelling: what is said, and what is said to it."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from learning.data.text_dataset import ONE_TOPIC, TextDataset


def _film(name: str, folder: Path) -> TextDataset:
    """A line of a film and the next one; the file names neither film nor speaker."""
    with (folder / "moviedialog.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["statement"], row["reply"]) for row in csv.DictReader(file)]
    return _dataset(name, [(prompt, response, ONE_TOPIC[0], "") for prompt, response in rows])


def _dataset(name: str, rows: Iterable[tuple[str, str, str, str]]) -> TextDataset:
    """What each of (prompt, response, topic, client) says, the first time that prompt and response
    are said together; clients where all have one. White space is one blank.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for prompt, response, topic, client in rows:
        said = " ".join(prompt.split()), " ".join(response.split())
        if all(said):
            first.setdefault(said, (topic, client))
    topics, clients = zip(*first.values(), strict=True)
    class_names = tuple(sorted(set(topics)))
    return TextDataset(
        name=name,
        texts=[prompt for prompt, _ in first],
        second_texts=None,
        labels=np.array([class_names.index(topic) for topic in topics], dtype=np.int64),
        class_names=class_names,
        clients=np.array(clients, dtype=object) if all(clients) else None,
        responses=[response for _, response in first],
    )


READERS: dict[str, Callable[[str, Path], TextDataset]] = {"film-dialogues": _film}
"""Name -> what reads the set out of its asset's folder."""
