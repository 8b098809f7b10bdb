"""Data sets that installed packages bring: files of labelled text with a name.

An entry point of the group `mobifleet.data_sets` names a folder (`inputs/shipped.py`); each
NAME.yaml in it describes a data set as `task.dataset` of a scenario would, with paths that start in
this folder:

    description: tickets of a help desk
    path: tickets.csv
    text: body
    label: queue
    texts: 4200        # for the listing alone, as are `classes` and `clients`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs.files import located, read_yaml
from inputs.profiles import MOST_BYTES, located_problems
from learning.data.own import why_unfit_columns
from learning.data.tables import DataError

COLUMNS = ("text", "text_b", "prompt", "response", "label", "client")
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("description", "path", "test", "delimiter", "encoding"), (str,)),
    **dict.fromkeys(COLUMNS, (str, int)),
    **dict.fromkeys(("header", "skip_blank", "keep_test_copies"), (bool,)),
    **dict.fromkeys(("texts", "classes", "clients"), (int,)),
}
NAMES = {str: "text", int: "a whole number", bool: "true or false"}
LISTED = ("description", "texts", "classes", "clients")
"""What a listing says, and reading the texts does not need."""


@dataclass(frozen=True)
class PackagedData:
    """What the file of a data set says: `listed` for people, `layout` for whoever reads the
    texts, with the paths as they are from here.
    """

    listed: Mapping[str, Any]
    layout: Mapping[str, Any]


def read(path: Path) -> PackagedData:
    """What the file says; DataError with a line for each of its mistakes, FileProblem for one that
    cannot be read.
    """
    data = read_yaml(path, MOST_BYTES)
    if not isinstance(data, Mapping) or "path" not in data:
        raise DataError(f"{path}: a data set is a mapping with a `path`, of a file of texts")
    problems = [(key, what) for key, value in data.items() if (what := _wrong(key, value))]
    if {"prompt", "response"} & set(data):
        problems += why_unfit_columns(data, "language-modelling")
    if problems:
        found = [((str(key),), what) for key, what in problems]
        raise DataError("\n".join(located_problems(found, [path])))
    layout = {key: value for key, value in data.items() if key not in LISTED}
    for key in {"path", "test"} & set(layout):
        layout[key] = str(located(layout[key], path.parent))
    return PackagedData({key: data[key] for key in LISTED if key in data}, layout)


def files(path: Path) -> list[Path]:
    """The files of texts that a data set's file names; none where it cannot be read."""
    try:
        layout = read(path).layout
    except ValueError:  # whoever needs it says so
        return []
    return [Path(layout[key]) for key in ("path", "test") if key in layout]


def _wrong(key: Any, value: Any) -> str:
    if key not in KEYS:
        return f"is not a key of a data set; allowed: {', '.join(KEYS)}"
    kinds = KEYS[key]
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return ""
    names = " or ".join(
        {str: "text", int: "a whole number", bool: "true or false"}[k] for k in kinds
    )
    return f"found {str(value)[:80]!r}, allowed: {names}"
