"""The user's own data: tables of texts, in files or in memory, in the shape of all others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inputs.files import located
from learning.data.labels import check_labels, doubts, number_classes, read_ratings
from learning.data.tables import DataError, Layout, TextTable, read_file, read_object
from learning.data.text_dataset import ONE_TOPIC, RATING, Kind, TextDataset, copies, to_be_said
from learning.metrics import is_rating

LAYOUT = frozenset(Layout.__dataclass_fields__)
"""What a description may say of the columns of a table and of how it is read."""


def why_unfit_columns(spec: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, str]]:
    """What is wrong with the columns that a description names for a kind of task: (key, what)."""
    given = {key for key in LAYOUT & set(spec) if spec[key] is not None}
    if kind != "language-modelling":
        for key in ("prompt", "response"):
            if key in given:
                yield key, "is for `kind: language-modelling`; a text with a label is `text`"
        return
    if "prompt" in given and "response" not in given:
        yield "prompt", "needs `response`, the column of what is to be said to it"
    if "response" in given:
        if "prompt" not in given:
            plain = "; plain text, which answers nothing, is `text`"
            yield "response", f"needs `prompt`, the column of what it is said to{plain}"
        for key in ("text", "text_b"):
            if key in given:
                yield key, "and `response` are two ways to say it: leave one of them out"


def load_own(spec: Mapping[str, Any], kind: Kind) -> TextDataset:
    """The data set that a file of one's own or an object in memory holds, by its description (as
    `texts.load` has it); raises as that does.
    """
    for key, what in why_unfit_columns(spec, kind):
        raise DataError(f"{key}: {what}")
    layout = _layout(spec, kind)
    test = spec.get("test")
    if "path" in spec:
        name = Path(spec["path"]).stem
        if test is not None and _is_same_file(spec["path"], test):
            raise DataError(
                f"test: {test} is the file that is trained on; leave `test` out, and a fifth is "
                "held out of it"
            )
        tables = [
            read_file(located(file), layout) for file in (spec["path"], test) if file is not None
        ]
    else:
        if test is not None:
            raise DataError("test: goes with path:, not with a dataset object")
        name, tables = "dataset", [read_object(spec["dataset"], layout)]
    cells = {
        role: [cell for table in tables for cell in table.cells[role]] for role in layout.columns
    }
    sizes = [len(table) for table in tables]

    def place(index: int) -> str:
        table, row = (tables[0], index) if index < sizes[0] else (tables[1], index - sizes[0])
        return f"{table.place(row)}, column {layout.label!r}"

    said: list[str] = []
    if kind == "regression":
        class_names, numbers = RATING, read_ratings(cells["label"], place)
    elif layout.label is None:
        class_names, numbers = ONE_TOPIC, np.zeros(sum(sizes), dtype=np.int64)
    else:
        are_topics = kind == "language-modelling"
        class_names, numbers = number_classes(cells["label"], place)
        counts = np.bincount(numbers, minlength=len(class_names))
        if len(class_names) > 1 or not are_topics:
            check_labels(class_names, counts, tables[0].source, layout.label)
        said = doubts(class_names, counts, are_topics)
    if unprompted := sum(not prompt for prompt in cells.get("prompt", ())):
        said.append(f"{unprompted:,} of {sum(sizes):,} responses are said to nothing")
    loaded = TextDataset(
        name=name,
        texts=cells["prompt" if "prompt" in cells else "text"],
        second_texts=cells.get("text_b"),
        responses=cells.get("response"),
        labels=numbers,
        class_names=class_names,
        clients=np.array(cells["client"], dtype=object) if "client" in cells else None,
        official_split=(np.arange(sizes[0]), sizes[0] + np.arange(sizes[1]))
        if len(sizes) == 2
        else None,
        sources=tuple(table.description() for table in tables),
        remarks=(
            *(remark for table in tables for remark in table.remarks),
            *said,
        ),
        keep_test_copies=bool(spec.get("keep_test_copies", False)),
    )
    loaded = to_be_said(loaded) if kind == "language-modelling" else loaded
    if loaded.official_split is not None:
        _check_test_part(loaded, *loaded.official_split, tables, place)
    return loaded


def _layout(spec: Mapping[str, Any], kind: Kind) -> Layout:
    """Where a description does not say it, labels and single texts have the names of their roles;
    but topics of what is to be said are not looked for.
    """
    given = {key: spec[key] for key in LAYOUT & set(spec) if spec[key] is not None}
    if kind == "language-modelling":
        given = {"label": None, **given}
        if "text_b" in given:  # of a pair the second is said to the first
            given |= {"prompt": given.pop("text", "text"), "response": given.pop("text_b")}
        if "response" in given:
            given["text"] = None
    return Layout(**given)


def _is_same_file(path: str | Path, other: str | Path) -> bool:
    try:
        return located(path).samefile(located(other))
    except (OSError, ValueError):
        return False  # reading it will say what is wrong


def _check_test_part(
    loaded: TextDataset,
    train: np.ndarray,
    test: np.ndarray,
    tables: Sequence[TextTable],
    place: Callable[[int], str],
) -> None:
    """Refuse a test file with classes of its own, or with no text that the training file has not
    got.
    """
    unknown = test[:0]
    if not is_rating(loaded.labels) and loaded.responses is None:  # topics are not learned
        trained = np.bincount(loaded.labels[train], minlength=len(loaded.class_names)) > 0
        unknown = test[~trained[loaded.labels[test]]]
    if len(unknown):
        names = sorted({loaded.class_names[c] for c in loaded.labels[unknown]})
        more = f" (and {len(names) - 1} more such classes)" if len(names) > 1 else ""
        raise DataError(
            f"{place(unknown[0])}: class {loaded.class_names[loaded.labels[unknown[0]]]!r} is in "
            f"the test file alone{more}, "
            f"so nothing can learn it; {tables[0].source} has {_few(loaded.class_names, trained)}"
        )
    if not loaded.keep_test_copies and copies(loaded, train, test).all():
        raise DataError(
            f"{tables[1].source}: every one of its {len(test):,} texts is in {tables[0].source} "
            "too, so they test nothing; "
            "take texts that are not trained on, or say `keep_test_copies: true`"
        )


def _few(names: Sequence[str], wanted: np.ndarray) -> str:
    found = [repr(name) for name, is_wanted in zip(names, wanted, strict=True) if is_wanted]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
