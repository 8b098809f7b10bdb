"""Labelled texts of the user's, row by row, from CSV, TSV, JSONL, Parquet or an object in memory.

Each kind of source gives its rows one by one with the line on which they begin; what their cells
say, `cells` decides for all of them. Every error names file, place and column.
"""

import csv
import difflib
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inputs import files
from learning.data import cells

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
MOST_KEPT_BYTES = 384 * 2**20  # of texts in memory: what a run makes of them takes as much again
_TEXTS = ("text", "text_b", "prompt", "response")
_ROW_BYTES = 120  # beside the texts themselves: their places in lists, their numbers
_BATCH = 128  # rows of Parquet at a time: a page of a few bytes may hold one long text many times
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HINTS = {
    ".json": "; write each object of a list on a line of its own and call it .jsonl",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "; unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "; save the sheet as CSV"),
}

Rows = Iterable[tuple[int, Sequence[object]]]
"""The wanted cells of each row, with the line on which it begins where there are lines."""


class DataError(ValueError):
    """A dataset cannot be read as asked; the message says what was found and what is needed."""


@dataclass(frozen=True)
class Layout:
    """Which column holds what, by name or (in a table of text without a header) by number from 1,
    and how a file is read.
    """

    text: str | int | None = "text"
    label: str | int | None = "label"
    text_b: str | int | None = None
    prompt: str | int | None = None
    response: str | int | None = None
    client: str | int | None = None
    delimiter: str | None = None
    encoding: str | None = None
    header: bool = True
    skip_blank: bool = False

    def __post_init__(self) -> None:
        """Raise DataError where one column is to be two of a text, its second part or the response
        to it, and its label.
        """
        roles: dict[str, str] = {}
        for role in (*_TEXTS, "label"):
            column = self.columns.get(role)
            if column in roles:
                raise DataError(
                    f"{roles[column]} and {role} are both column {column!r}: each needs its own"
                )
            if column is not None:
                roles[column] = role

    @property
    def columns(self) -> dict[str, str]:
        """The wanted columns by what they hold."""
        roles = {
            "text": self.text,
            "label": self.label,
            "text_b": self.text_b,
            "prompt": self.prompt,
            "response": self.response,
            "client": self.client,
        }
        return {role: str(column) for role, column in roles.items() if column is not None}


@dataclass
class TextTable:
    """The wanted cells of all rows by what they hold, and how to find a row again."""

    source: str
    how: str
    has_lines: bool
    cells: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    rows: array = field(default_factory=lambda: array("q"))
    lines: array = field(default_factory=lambda: array("q"))
    names: dict[str, str] = field(default_factory=dict)
    kept_bytes: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, line: int, said: dict[str, str]) -> None:
        """One more row; DataError when memory for texts is used up. Labels and clients repeat: one
        string of each is kept.
        """
        self.kept_bytes += _ROW_BYTES
        for role, value in said.items():
            if role in _TEXTS or value not in self.names:
                self.kept_bytes += sys.getsizeof(value)
            kept = value if role in _TEXTS else self.names.setdefault(value, value)
            self.cells.setdefault(role, []).append(kept)
        self.rows.append(row)
        self.lines.append(line)
        if self.kept_bytes > MOST_KEPT_BYTES:
            raise DataError(
                f"{self.at(row, line)}: more than {MOST_KEPT_BYTES >> 20} MiB of texts; give it "
                "fewer rows"
            )

    def description(self) -> str:
        """What was read, and how."""
        return f"{self.source}: {_count(len(self))}, {self.how}"

    def place(self, index: int) -> str:
        """Where a person finds a row of the table, e.g. `d.csv, row 5 (line 6)`."""
        return self.at(self.rows[index], self.lines[index])

    def at(self, row: int, line: int) -> str:
        """The same by number, rows without the header and lines with it, both from 1."""
        return f"{self.source}, row {row}" + (f" (line {line})" if self.has_lines else "")


def read_file(file: Path, layout: Layout) -> TextTable:
    """The table that a file holds; raises DataError, or inputs.files.FileProblem, for one that
    cannot be read as asked.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"cannot read {file}: its name should end in "
            f"{', '.join(SUFFIXES)}{_HINTS.get(suffix, '')}"
        )
    files.regular_file(file)
    is_table_of_text = suffix in (".csv", ".tsv", ".txt")
    if not is_table_of_text and (layout.delimiter is not None or not layout.header):
        raise DataError(f"{file}: `delimiter` and `header` are for .csv, .tsv and .txt")
    if suffix == ".parquet":
        if layout.encoding is not None:
            raise DataError(f"{file}: `encoding` is for files of text, and Parquet has its own")
        return _gathered(
            TextTable(str(file), "Parquet", False), _parquet_rows(file, layout), layout
        )
    code = files.encoding_of(file, layout.encoding)
    if not is_table_of_text:
        return _gathered(
            TextTable(str(file), f"JSON lines, {code}", True), _jsonl_rows(file, layout), layout
        )
    delimiter, is_guess = _delimiter(file, layout)
    guessed = " (guessed)" if is_guess else ""
    how = f"split at {_DELIMITERS.get(delimiter, repr(delimiter))}{guessed}, {code}"
    return _gathered(TextTable(str(file), how, True), _text_rows(file, layout, delimiter), layout)


def read_object(dataset: Any, layout: Layout) -> TextTable:
    """The table that an object in memory holds, shaped like a `datasets.Dataset`: `column_names`,
    and `[column]`.
    """
    found, kind = getattr(dataset, "column_names", None), type(dataset).__name__
    if not isinstance(found, list):
        raise DataError(
            "a dataset is a name, a mapping with path:, or one split of datasets.Dataset; got "
            f"{kind}"
        )
    _find(kind, found, layout)
    read = {role: dataset[column] for role, column in layout.columns.items()}
    read = {
        role: column.to_pylist() if hasattr(column, "to_pylist") else column
        for role, column in read.items()
    }
    named = getattr(
        (getattr(dataset, "features", None) or {}).get(layout.columns.get("label")), "names", None
    )
    if named is not None:
        read["label"] = [_class_name(label, named) for label in read["label"]]
    rows = ((0, row) for row in zip(*read.values(), strict=True))
    return _gathered(TextTable(kind, "in memory", False), rows, layout)


def _class_name(label: object, names: Sequence[str]) -> object:
    """Classes by name; a number below 0 is how a published test part keeps its labels to itself."""
    if not isinstance(label, int | np.integer):
        return label
    return names[int(label)] if 0 <= label < len(names) else None


# --- rows
# ------------------------------------------------------------------------------------------


def _gathered(table: TextTable, rows: Rows, layout: Layout) -> TextTable:
    """The table with its rows, whatever they come from."""
    columns, skipped = layout.columns, 0
    kinds: dict[str, Counter[type]] = {role: Counter() for role in columns}
    for number, (line, row) in enumerate(rows, start=1):
        said = {}
        for role, cell in zip(columns, row, strict=True):
            try:
                said[role] = cells.text_of(cell) if role in _TEXTS else cells.name_of(cell)
            except ValueError as error:
                raise DataError(
                    f"{table.at(number, line)}, column {columns[role]!r}: {error}"
                ) from None
            if said[role]:
                kinds[role][type(cell)] += 1
        if (missing := _missing(said)) is None:
            table.add(number, line, said)
        elif layout.skip_blank:
            skipped += 1
        else:
            found = cells.shown(row[list(columns).index(missing)])
            hint = "fill it in, or leave such rows out with `skip_blank: true`"
            raise DataError(
                f"{table.at(number, line)}, column {columns[missing]!r}: no {missing} ({found}); "
                f"{hint}"
            )
    if not len(table):
        raise DataError(f"{table.source} has no rows" + (" but blank ones" if skipped else ""))
    if skipped:
        what = "response" if "response" in columns else "text"
        table.remarks.append(
            f"{table.source}: left out for want of a {what}, a label or a client: {_count(skipped)}"
        )
    for role, column in columns.items():
        if odd := cells.unlike(kinds[role], role in _TEXTS):
            table.remarks.append(f"{table.source}, column {column!r}: {odd}")
    return table


def _count(rows: int) -> str:
    return f"{rows:,} row{'s' * (rows != 1)}"


def _missing(said: dict[str, str]) -> str | None:
    """What a row lacks, if anything; of a pair of texts one may be blank, and a response need not
    be to anything.
    """
    if not said.get("text") and not said.get("text_b") and "text" in said:
        return "text"
    return next((role for role in ("response", "label", "client") if said.get(role) == ""), None)


# --- what each kind of source gives, row by row
# ---------------------------------------------------------------------


def _delimiter(file: Path, layout: Layout) -> tuple[str, bool]:
    """What splits the cells, and whether that is a guess: what makes the wanted columns of the
    first line, if anything does.
    """
    if layout.delimiter is not None:
        return {"tab": "\t", r"\t": "\t"}.get(layout.delimiter, layout.delimiter), False
    if file.suffix.lower() == ".tsv":
        return "\t", False
    start = files.first_lines(file, layout.encoding)[:100_000]
    if layout.header:
        for delimiter in _DELIMITERS:
            names = next(csv.reader(start.splitlines(), delimiter=delimiter), [])
            if set(layout.columns.values()) <= {name.strip() for name in names}:
                return delimiter, True
    return files.guess_delimiter(start), True


def _text_rows(file: Path, layout: Layout, delimiter: str) -> Rows:
    quotes = (
        file.suffix.lower() != ".tsv"
    )  # where, as in GLUE, a quotation mark is a character like others
    rows = files.table_rows(file, delimiter, layout.encoding, quotes)
    line, first = next(rows, (0, []))
    if not first:
        raise DataError(f"{file} is empty")
    if layout.header:
        hint = (
            "; if its first line is a row already, set `header: false` and columns by number, as "
            "`text: 1`"
        )
        places = _find(str(file), [name.strip() for name in first], layout, hint)
    else:
        places = [_numbered(file, column, len(first)) for column in layout.columns.values()]
        yield line, [first[place] for place in places]
    for line, row in rows:
        if len(row) != len(first):
            hint = (
                "; a cell that holds the delimiter stands in double quotes"
                if quotes and len(row) > len(first)
                else ""
            )
            cells = f"{len(row)} cell{'s' * (len(row) > 1)}"
            raise DataError(
                f"{file}, line {line}: {cells}, where the first line has {len(first)}{hint}"
            )
        yield line, [row[place] for place in places]


def _numbered(file: Path, column: str, count: int) -> int:
    number = int(column) if re.fullmatch("[0-9]{1,9}", column) else 0
    if not 1 <= number <= count:
        raise DataError(
            f"{file}: without a header, columns are named by number from 1 to {count} (got "
            f"{column!r})"
        )
    return number - 1


def _jsonl_rows(file: Path, layout: Layout) -> Rows:
    wanted = list(layout.columns.values())
    loads = json.JSONDecoder(object_pairs_hook=_each_name_once).decode
    for number, line in enumerate(files.text_lines(file, layout.encoding), start=1):
        if not line.strip():
            continue
        try:
            row = files.parse_json(line.rstrip(), str(file), number, loads)
        except files.FileProblem as problem:
            raise DataError(f"{problem}; each line is to hold one object") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{file}, line {number}: expected an object {{...}} on each line, found "
                f"{cells.shown(row)}"
            )
        if number == 1 and not layout.skip_blank:
            _find(f"{file}, line 1,", list(row), layout)
        yield number, [row.get(column) for column in wanted]


def _each_name_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {cells.shown(name)} stands twice in an object")
    return row


def _parquet_rows(file: Path, layout: Layout) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    wanted = list(layout.columns.values())
    with files.reading(file, "a Parquet table"), parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        _find(str(file), schema.names, layout)
        for column in wanted:
            type_ = schema.field(column).type
            if pa.types.is_nested(type_):
                raise DataError(
                    f"{file}: column {column!r} is of type {cells.shortened(str(type_))}, not of "
                    "texts, words or numbers"
                )
        _check_size(file, table.metadata, wanted)
        for batch in table.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(wanted))):
            for row in zip(*(batch.column(column).to_pylist() for column in wanted), strict=True):
                yield 0, row


def _check_size(file: Path, metadata, wanted: list[str]) -> None:
    if metadata.num_rows > files.MOST_LINES:
        raise DataError(
            f"{file}: {metadata.num_rows:,} rows, more than the {files.MOST_LINES:,} that are read"
        )
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(metadata.num_columns))
    unpacked = sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in wanted
    )
    if unpacked > MOST_KEPT_BYTES:
        raise DataError(
            f"{file}: {unpacked >> 20} MiB of texts, more than the {MOST_KEPT_BYTES >> 20} MiB "
            "that are read"
        )


def _find(where: str, found: Sequence[str], layout: Layout, hint: str = "") -> list[int]:
    """Where the wanted columns stand among those found; DataError for one that is not there, or
    twice.
    """
    for column in layout.columns.values():
        if column not in found:
            names = ", ".join(cells.shown(name)[1:-1] for name in found[:20]) + (
                ", ..." if len(found) > 20 else ""
            )
            alike = {name.strip().casefold(): name for name in found[:100]}
            near = difflib.get_close_matches(column.casefold(), alike, 1)
            hint = f"; did you mean {alike[near[0]]!r}?" if near else hint
            raise DataError(f"{where} has no column {column!r}; its columns: {names}{hint}")
        if found.count(column) > 1:
            raise DataError(
                f"{where} has {found.count(column)} columns that are called {column!r}: rename all "
                "but one"
            )
    return [found.index(column) for column in layout.columns.values()]
