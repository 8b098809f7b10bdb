"""Text to fine-tune on, labelled or to be said: the sets that `mobifleet fetch` brings, and the
user's own files, in one shape.

`load` turns a name, a description of a file, or a `datasets.Dataset` into a TextDataset; `split`
draws the indices of a train and a test part; `pairs` derives a sentence-pair task from any labelled
text.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from inputs.shipped import Shipped
from learning.backbones import assets
from learning.data import dialogues, packaged
from learning.data.named import NAMED, DatasetInfo
from learning.data.own import LAYOUT, load_own, why_unfit_columns
from learning.data.tables import DataError
from learning.data.text_dataset import RATING, Kind, TextDataset, copies, fitted, to_be_said

__all__ = [
    "PACKAGED",
    "RATED",
    "DataError",
    "DatasetInfo",
    "Kind",
    "TextDataset",
    "copies",
    "find",
    "fitted",
    "load",
    "names",
    "pairs",
    "split",
    "why_unfit",
    "why_unfit_columns",
]


def names() -> list[DatasetInfo]:
    """Every named dataset with its sizes, without loading any; ours, then those of packages."""
    return [find(name) for name in (*NAMED, *PACKAGED)]


def find(name: str) -> DatasetInfo:
    """The line of a named data set; DataError for a name that is none, and for a package's that is
    not described as it should be.
    """
    if name in NAMED:
        return NAMED[name]
    if name in PACKAGED:
        return _info(name, packaged.read(PACKAGED[name]))
    near = difflib.get_close_matches(name, [*NAMED, *PACKAGED], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"no data set is called {name!r}{hint} (`mobifleet list datasets` shows all; a file of "
        "your own is given by its `path`)"
    )


def load(spec: object, kind: Kind = "classification") -> TextDataset:
    """Load a dataset for a kind of task: with classes; for regression with ratings, [N] float32; or
    for language modelling with responses, plain text being a response to nothing.

    spec is a name (see `names`); or `{"name": name}`; or, for one's own data, `{"path": file,
    "text": column, "label": column, "text_b": column, "client": column, "test": other file}` where
    file ends in .csv, .tsv, .txt, .jsonl or .parquet, and all but path have the defaults
    text="text", label="label" and none; or a `datasets.Dataset`, on its own or as `{"dataset":
    object, ...}` with the same column names. For language modelling, `"prompt": column,
    "response": column` take the place of "text", and "label" is a topic, by default none. The other
    keys are those of `tables.Layout`, and `keep_test_copies`. Raises DataError or
    inputs.files.FileProblem for a file, column or value that does not fit, assets.AssetMissing for
    a set not fetched yet.
    """
    if kind not in get_args(Kind):
        raise DataError(
            f"no kind of task is called {kind!r}; there are: {', '.join(get_args(Kind))}"
        )
    if isinstance(spec, str):
        return _load_named(spec, kind)
    if not isinstance(spec, Mapping):
        spec = {"dataset": spec}
    allowed = {"name", "path", "dataset", "test", "keep_test_copies"} | LAYOUT
    if unknown := set(spec) - allowed:
        raise DataError(
            f"unknown key {sorted(unknown)[0]!r} in a dataset; allowed: "
            f"{', '.join(sorted(allowed))}"
        )
    if len(origin := {"name", "path", "dataset"} & set(spec)) != 1:
        raise DataError(
            "a dataset needs exactly one of name, path, dataset; got "
            f"{', '.join(sorted(origin)) or 'none'}"
        )
    if "name" in spec:
        if len(spec) > 1:
            raise DataError(
                f"{spec['name']!r} is a named dataset and takes no columns; use path: for your own "
                "file"
            )
        return _load_named(str(spec["name"]), kind)
    return load_own(spec, kind)


def split(
    dataset: TextDataset,
    train: int | None,
    test: int | None,
    rng: np.random.Generator,
    held: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw disjoint train and test indices, each in random order.

    Each part is drawn from its own half of an official split where there is one. Otherwise the test
    part is drawn first, so it stays the same when only the train size changes. A size of None means
    all there is (with no official split and no sizes at all, a fifth is held out for the test).
    Raises DataError when more is asked than there is; it says how many of the train part are `held`
    out of training.
    """
    of_train = f" ({held} of them for validation or the server)" if held else ""
    if dataset.official_split is not None:
        parts = []
        for part, size, pool in zip(
            ("train", "test"), (train, test), dataset.official_split, strict=True
        ):
            if size is not None and not 0 <= size <= len(pool):
                raise DataError(
                    f"{dataset.name} has {len(pool)} {part} texts in its official split; {size} "
                    f"were asked for{of_train if part == 'train' else ''}"
                )
            parts.append(rng.permutation(pool)[:size])
        return parts[0], parts[1]
    n = len(dataset)
    if test is None:
        test = n - train if train is not None else n // 5
    if train is None:
        train = n - test
    if min(train, test) < 0 or train + test > n:
        raise DataError(
            f"{dataset.name} has {n} texts; train {train}{of_train} and test {test} do not fit "
            "into them"
        )
    order = rng.permutation(n)
    return order[test : test + train], order[:test]


def pairs(dataset: TextDataset, rng: np.random.Generator, name: str | None = None) -> TextDataset:
    """Derive the task "are these two texts of the same class?" from labelled text.

    Every text is the first of one pair; a random half gets a partner of its own class, the other
    half one of another class. With an official split, partners come from the same part, so no test
    text is seen in training; without one, a random fifth of the texts makes the test pairs.
    Classes: ("different", "same").
    """
    parts = [
        _pair_up(dataset.labels, np.sort(part), rng) for part in split(dataset, None, None, rng)
    ]
    first, second = np.concatenate(parts).T
    n_train = len(parts[0])
    return TextDataset(
        name=name or f"{dataset.name}-pairs",
        texts=[dataset.texts[i] for i in first],
        second_texts=[dataset.texts[i] for i in second],
        labels=(dataset.labels[first] == dataset.labels[second]).astype(np.int64),
        class_names=("different", "same"),
        official_split=(np.arange(n_train), np.arange(n_train, len(first))),
    )


def _pair_up(labels: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[M, 2] indices: each text of the part with a partner, for a random half one of its own
    class.
    """
    of_class = {c: part[labels[part] == c] for c in np.unique(labels[part])}
    of_others = {c: part[labels[part] != c] for c in of_class}
    found = []
    for index, alike in zip(part, rng.permutation(len(part)) < len(part) // 2, strict=True):
        pool = of_class[labels[index]] if alike else of_others[labels[index]]
        pool = pool[pool != index]
        if len(
            pool
        ):  # else it is the only text of its class, or there is one class: no such partner exists
            found.append((index, rng.choice(pool)))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


# --- the named sets
# ------------------------------------------------------------------------------------------


def _info(name: str, found: packaged.PackagedData) -> DatasetInfo:
    listed = found.listed
    sizes = listed.get("texts"), listed.get("classes"), listed.get("clients")
    has = "test" in found.layout, "response" in found.layout
    return DatasetInfo(name, listed.get("description", ""), None, *sizes, *has)


def _load_named(name: str, kind: Kind) -> TextDataset:
    if unfit := why_unfit(name, kind):
        raise DataError(unfit)
    if (asset := find(name).asset) is None:
        return replace(load_own(packaged.read(PACKAGED[name]).layout, kind), name=name)
    if kind == "regression":
        return _hutto_ratings(name, assets.path(asset))
    loaded = _READERS[name](name, assets.path(asset))
    return to_be_said(loaded) if kind == "language-modelling" else loaded


def why_unfit(name: str, kind: Kind) -> str | None:
    """Why a named data set cannot be used for a kind of task, if it cannot; DataError for a name
    that is none.
    """
    info = find(name)
    if info.has_responses and kind != "language-modelling":
        told = f"{name} is prompts and responses, and has no labels to predict"
        return f"{told}: say `kind: language-modelling`"
    if kind == "regression" and info.asset is not None and name not in RATED:
        return f"{name} has classes and no ratings; {', '.join(RATED)} have"
    return None


def _trec(name: str, folder: Path) -> TextDataset:
    # The file holds the nested training sets of 1,000 to 5,500 questions one after the other: each
    # text counts once.
    labels_of: dict[str, str] = {}
    for line in (folder / "question_labels.txt").read_text(encoding="latin-1").splitlines():
        label, text = line.split(" ", 1)
        labels_of.setdefault(text.strip(), label)
    labels = list(labels_of.values())
    if name == "trec-questions":
        labels = [label.split(":")[0] for label in labels]
    return _dataset(name, list(labels_of), labels)


def _rotten_tomatoes(name: str, folder: Path) -> TextDataset:
    columns = _read_csv(
        folder / "rotten_tomatoes_corpus_full.csv.bz2", ["category", "text", "movie_name"]
    )
    keep = _first_of_each(
        columns["text"], [label in ("fresh", "rotten") for label in columns["category"]]
    )
    texts, labels, films = (
        [columns[c][i] for i in keep] for c in ("text", "category", "movie_name")
    )
    return _dataset(name, texts, labels, films)


def _sms_spam(name: str, folder: Path) -> TextDataset:
    columns = _read_csv(folder / "sms-spam.csv", ["spam", "text"])
    keep = _first_of_each(columns["text"])
    return _dataset(
        name,
        [columns["text"][i] for i in keep],
        [("ham", "spam")[int(columns["spam"][i])] for i in keep],
    )


def _hutto(name: str, folder: Path) -> TextDataset:
    """The sign of the mean human rating is the label; a mean of exactly zero has none."""
    texts, ratings, clients = _hutto_columns(name, folder)
    keep = _first_of_each(texts, [rating != 0 for rating in ratings])
    return _dataset(
        name,
        [texts[i] for i in keep],
        ["positive" if ratings[i] > 0 else "negative" for i in keep],
        clients and [clients[i] for i in keep],
    )


def _hutto_ratings(name: str, folder: Path) -> TextDataset:
    """The mean of some twenty people's ratings, from -4 (most negative) to 4."""
    texts, ratings, clients = _hutto_columns(name, folder)
    keep = _first_of_each(texts)
    return TextDataset(
        name=name,
        texts=[texts[i] for i in keep],
        second_texts=None,
        labels=np.array([ratings[i] for i in keep], dtype=np.float32),
        class_names=RATING,
        clients=np.array([clients[i] for i in keep], dtype=object) if clients else None,
    )


def _hutto_columns(name: str, folder: Path) -> tuple[list[str], list[float], list[str] | None]:
    """Texts, mean ratings, and the reviews or articles that the texts are of, where there are
    any.
    """
    file, has_clients = {
        "hutto-amazon": ("amazonReviewSnippets", True),
        "hutto-tweets": ("tweets", False),
        "hutto-films": ("movieReviewSnippets", False),
        "hutto-editorials": ("nytEditorialSnippets", True),
    }[name]
    lines = (
        (folder / f"{file}_GroundTruth.txt")
        .read_text(encoding="utf-8")
        .rstrip("\n")
        .split("\n")[1:]
    )
    rows = [line.split("\t", 2) for line in lines]
    clients = [row[0].split("_")[0] for row in rows] if has_clients else None  # document_sentence
    return [row[2] for row in rows], [float(row[1]) for row in rows], clients


def _tab_files(name: str, folder: Path) -> TextDataset:
    texts, labels, sizes = [], [], []
    for part in ("train", "test"):
        lines = (
            (folder / f"{name}-{part}.tab").read_text(encoding="utf-8").rstrip("\n").split("\n")[3:]
        )
        rows = [
            line.split("\t", 1) for line in lines if line.strip()
        ]  # three lines of header, one of them blank-ended
        labels += [label for label, _ in rows]
        texts += [text for _, text in rows]
        sizes.append(len(rows))
    return _dataset(
        name, texts, labels, official_split=(np.arange(sizes[0]), sizes[0] + np.arange(sizes[1]))
    )


def _read_csv(file: Path, wanted: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a packaged file, which may be compressed, as text."""
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(newlines_in_values=True)
    table = csv.read_csv(
        file, None, parse, csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()))
    )
    return {column: table[column].to_pylist() for column in wanted}


def _dataset(
    name: str,
    texts: list[str],
    labels: Sequence[str],
    clients: Sequence[str] | None = None,
    official_split: tuple[np.ndarray, np.ndarray] | None = None,
) -> TextDataset:
    class_names = tuple(sorted(set(labels)))
    number = {label: i for i, label in enumerate(class_names)}
    return TextDataset(
        name=name,
        texts=texts,
        second_texts=None,
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        class_names=class_names,
        clients=np.array(clients, dtype=object) if clients is not None else None,
        official_split=official_split,
    )


def _derived_pairs(name: str, folder: Path) -> TextDataset:
    base = {"trec-pairs": "trec-questions", "newsgroups-pairs": "20newsgroups"}[name]
    return pairs(
        _READERS[base](base, folder), np.random.default_rng(0), name
    )  # part of the task, not of an experiment


def _first_of_each(texts: Sequence[str], wanted: Sequence[bool] | None = None) -> list[int]:
    """Indices of the first appearance of every distinct text: a duplicate could sit in train and
    test at once.
    """
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        if wanted is None or wanted[i]:
            first.setdefault(text, i)
    return list(first.values())


RATED = ("hutto-amazon", "hutto-tweets", "hutto-films", "hutto-editorials")
"""Named data sets whose labels come from real-valued ratings."""
_READERS: dict[str, Callable[[str, Path], TextDataset]] = {
    "trec-questions": _trec,
    "trec-fine": _trec,
    "rotten-tomatoes": _rotten_tomatoes,
    "sms-spam": _sms_spam,
    "hutto-amazon": _hutto,
    "hutto-tweets": _hutto,
    "hutto-films": _hutto,
    "hutto-editorials": _hutto,
    "20newsgroups": _tab_files,
    "reuters-r8": _tab_files,
    "trec-pairs": _derived_pairs,
    "newsgroups-pairs": _derived_pairs,
    **dialogues.READERS,
}

PACKAGED = Shipped(None, "mobifleet.data_sets", frozenset(NAMED))
"""The files that describe the data sets of installed packages."""
