"""The named sets for language modelling: what is said, and what is said to it."""

import csv
import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from learning.data.text_dataset import ONE_TOPIC, TextDataset

_MISREAD = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
"""Control characters that are Windows' quotation marks and dashes, read as Latin-1 by somebody."""
_FEWEST_WORDS = 10  # a first paragraph of fewer is a score, a place or a remark


def _film(name: str, folder: Path) -> TextDataset:
    """A line of a film and the next one; the file names neither film nor speaker."""
    with (folder / "moviedialog.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["statement"], row["reply"]) for row in csv.DictReader(file)]
    return _dataset(name, [(prompt, response, ONE_TOPIC[0], "") for prompt, response in rows])


def _series(name: str, folder: Path) -> TextDataset:
    """What a speaker of an episode says, to the line of somebody else before it; the topic is the
    season, the client who says it. Lines that are directions alone are blank, and answer nothing.
    """
    said = (folder / "friends-transcripts.tab").read_text(encoding="utf-8").translate(_MISREAD)
    columns, _, _, *rows = (line.split("\t") for line in said.split("\n") if line.strip())
    lines = [dict(zip(columns, row, strict=True)) for row in rows]
    return _dataset(
        name,
        [
            (before["Quote"], line["Quote"], line["Season"], line["Author"])
            for before, line in pairwise(lines)
            if before["Season & Episode"] == line["Season & Episode"]
            and before["Author"] != line["Author"]
        ],
    )


def _headlines(name: str, folder: Path) -> TextDataset:
    """A headline, said to the first paragraph of its article, and to further ones while these have
    hardly a word.
    """
    rows = []
    for line in (folder / "articles.jsonl").read_text(encoding="utf-8").splitlines():
        article = json.loads(line)
        headline, *paragraphs = filter(str.strip, article["text"].split("\n"))
        prompt = ""
        for paragraph in paragraphs:
            if len(prompt.split()) >= _FEWEST_WORDS:
                break
            prompt += f" {paragraph}"
        rows.append((prompt, headline, article["name"].split("/")[0], ""))
    return _dataset(name, rows)


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


READERS: dict[str, Callable[[str, Path], TextDataset]] = {
    "film-dialogues": _film,
    "series-dialogues": _series,
    "bbc-headlines": _headlines,
}
"""Name -> what reads the set out of its asset's folder."""
