"""Labelled texts of the user's, row by row, from CSV, TSV, JSONL, Parquet or an object in memory: one reading of a cell.

A cell says what a CSV file would spell: texts are taken as they are, numbers, truth values and dates as they are written,
bytes as UTF-8; blank, null and NaN say nothing; lists, objects and all else are refused, by file, place and column.
"""

import csv
import datetime
import decimal
import difflib
import json
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inputs import files

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
MOST_KEPT_BYTES = 384 * 2**20  # of texts in memory: what a run makes of them takes as much again
MOST_TEXT_CHARACTERS = 1_000_000
MOST_NAME_CHARACTERS = 200  # of a label or a client
_ROW_BYTES = 120  # beside the texts themselves: their places in lists, their numbers
_BLANKS = "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001)))) + "\u200b\u200c\u200d\u2060\ufeff"
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
    """Which column holds what, by name or (in a table of text without a header) by number from 1, and how a file is read."""

    text: str | int = "text"
    label: str | int = "label"
    text_b: str | int | None = None
    client: str | int | None = None
    delimiter: str | None = None
    encoding: str | None = None
    header: bool = True
    skip_blank: bool = False

    @property
    def columns(self) -> dict[str, str | int]:
        """The wanted columns by what they hold."""
        roles = {"text": self.text, "label": self.label, "text_b": self.text_b, "client": self.client}
        return {role: column for role, column in roles.items() if column is not None}


@dataclass
class Table:
    """The wanted cells of all rows by what they hold, and how to find a row again."""

    source: str
    how: str
    has_lines: bool
    cells: dict[str, list[str]] = field(default_factory=dict)
    rows: array = field(default_factory=lambda: array("q"))
    lines: array = field(default_factory=lambda: array("q"))
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        """Where a person finds a row of the table, e.g. `d.csv, row 5 (line 6)`."""
        return self.at(self.rows[index], self.lines[index])

    def at(self, row: int, line: int) -> str:
        """The same by number, rows without the header and lines with it, both from 1."""
        return f"{self.source}, row {row}" + (f" (line {line})" if self.has_lines else "")


def read_file(file: Path, layout: Layout) -> Table:
    """The table that a file holds; raises DataError, or inputs.files.FileProblem, for one that cannot be read as asked."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"cannot read {file}: its name should end in {', '.join(SUFFIXES)}{_HINTS.get(suffix, '')}")
    files.regular_file(file)
    is_table_of_text = suffix in (".csv", ".tsv", ".txt")
    if not is_table_of_text and (layout.delimiter is not None or not layout.header):
        raise DataError(f"{file}: `delimiter` and `header` are for .csv, .tsv and .txt")
    if suffix == ".parquet":
        if layout.encoding is not None:
            raise DataError(f"{file}: `encoding` is for files of text, and Parquet has its own")
        return _gathered(Table(str(file), "Parquet", False), _parquet_rows(file, layout), layout)
    code = files.encoding_of(file, layout.encoding)
    if not is_table_of_text:
        return _gathered(Table(str(file), f"JSON lines, {code}", True), _jsonl_rows(file, layout), layout)
    delimiter, is_guess = _delimiter(file, layout)
    how = f"split at {_DELIMITERS.get(delimiter, repr(delimiter))}{' (guessed)' if is_guess else ''}, {code}"
    return _gathered(Table(str(file), how, True), _text_rows(file, layout, delimiter), layout)


def read_object(dataset: object, layout: Layout) -> Table:
    """The table that an object in memory holds, shaped like a `datasets.Dataset`: `column_names`, and `[column]`."""
    found, kind = getattr(dataset, "column_names", None), type(dataset).__name__
    if not isinstance(found, list):
        raise DataError(f"a dataset is a name, a mapping with path:, or one split of datasets.Dataset; got {kind}")
    _find(kind, found, layout)
    cells = {role: dataset[column] for role, column in layout.columns.items()}
    cells = {role: column.to_pylist() if hasattr(column, "to_pylist") else column for role, column in cells.items()}
    named = getattr((getattr(dataset, "features", None) or {}).get(layout.label), "names", None)
    if named is not None:
        cells["label"] = [_class_name(label, named) for label in cells["label"]]
    rows = ((0, row) for row in zip(*cells.values(), strict=True))
    return _gathered(Table(kind, "in memory", False), rows, layout)


def _class_name(label: object, names: Sequence[str]) -> object:
    """Classes by name; a number below 0 is how a published test part keeps its labels to itself."""
    if not isinstance(label, int | np.integer):
        return label
    return names[label] if 0 <= label < len(names) else None


# --- cells ----------------------------------------------------------------------------------------------------------


def _gathered(table: Table, rows: Rows, layout: Layout) -> Table:
    """The table with its rows, every cell of every source judged here."""
    columns, kept_bytes, skipped = layout.columns, 0, 0
    kinds: dict[str, Counter[type]] = {role: Counter() for role in columns}
    table.cells = {role: [] for role in columns}
    once: dict[str, str] = {}  # labels and clients repeat: one string of each is enough
    for number, (line, cells) in enumerate(rows, start=1):
        row = {}
        for (role, column), cell in zip(columns.items(), cells, strict=True):
            try:
                row[role] = _text(cell) if role.startswith("text") else _name(cell, role)
            except ValueError as error:
                raise DataError(f"{table.at(number, line)}, column {column!r}: {error}") from None
            if row[role]:
                kinds[role][type(cell)] += 1
        if (blank := _blank(row)) is not None:
            if not layout.skip_blank:
                found = _shown(cells[list(columns).index(blank)])
                raise DataError(
                    f"{table.at(number, line)}, column {columns[blank]!r}: no {blank} ({found}); fill it in, "
                    "or leave such rows out with `skip_blank: true`"
                )
            skipped += 1
            continue
        kept_bytes += _ROW_BYTES
        for role, value in row.items():
            if role.startswith("text") or value not in once:
                kept_bytes += sys.getsizeof(value)
            table.cells[role].append(value if role.startswith("text") else once.setdefault(value, value))
        table.rows.append(number)
        table.lines.append(line)
        if kept_bytes > MOST_KEPT_BYTES:
            raise DataError(
                f"{table.at(number, line)}: more than {MOST_KEPT_BYTES >> 20} MiB of texts; give it fewer rows"
            )
    if not len(table):
        raise DataError(f"{table.source} has no rows" + (" but blank ones" if skipped else ""))
    if skipped:
        table.remarks.append(f"{table.source}: {skipped:,} rows without a text, a label or a client were left out")
    table.remarks += [
        f"{table.source}, column {columns[role]!r}: {said}" for role in kinds if (said := _unlike(role, kinds[role]))
    ]
    return table


def _unlike(role: str, kinds: Counter[type]) -> str:
    """What to say of a column of several kinds, or of a column of texts that are none."""
    found: Counter[str] = Counter()
    for kind, count in kinds.items():
        found[_kind(kind)] += count
    if len(found) < 2 and (not role.startswith("text") or "text" in found):
        return ""
    return f"holds {', '.join(f'{count:,} {name}' for name, count in found.most_common())}, read as they are spelled"


def _kind(kind: type) -> str:
    if issubclass(kind, str | bytes | bytearray):
        return "text"
    if issubclass(kind, bool | np.bool_):
        return "truth values"
    return "numbers" if issubclass(kind, int | float | decimal.Decimal | np.number) else kind.__name__


def _text(cell: object) -> str:
    text = spelled(cell, "a text") or ""
    if len(text) > MOST_TEXT_CHARACTERS:
        raise ValueError(
            f"{len(text):,} characters, and no more than {MOST_TEXT_CHARACTERS:,} are read of a text: cut it"
        )
    return text


def _name(cell: object, role: str) -> str:
    name = (spelled(cell, "a word or a whole number") or "").strip(_BLANKS)
    if len(name) > MOST_NAME_CHARACTERS:
        raise ValueError(
            f"{name[:20]!r}... has {len(name):,} characters, too many for a {role}; is it the right column?"
        )
    return name


def _blank(row: dict[str, str]) -> str | None:
    """Which needed cell is blank, if any; of a pair of texts one may be."""
    if not row["text"].strip(_BLANKS) and not row.get("text_b", "").strip(_BLANKS):
        return "text"
    return next((role for role in ("label", "client") if row.get(role) == ""), None)


def spelled(cell: object, wanted: str) -> str | None:
    """What a cell says, as a CSV file would have it; None where it says nothing. ValueError for what is not what is wanted."""
    text = cell if isinstance(cell, str) else _written(cell.item() if isinstance(cell, np.generic) else cell, wanted)
    if text is None or (text.isascii() and "\0" not in text):
        return text
    if "\0" in text:
        raise ValueError(f"holds a NUL character, which is not part of {wanted}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character, {text[error.start]!a}, which is not part of {wanted}") from None
    return text


def _written(cell: object, wanted: str) -> str | None:
    kind = type(cell).__name__
    if cell is None or kind in ("NAType", "NaTType"):  # pandas' kinds of nothing
        return None
    if isinstance(cell, float | decimal.Decimal):
        return None if math.isnan(cell) else str(cell)
    if isinstance(cell, bool | int | datetime.date | datetime.time | datetime.timedelta):
        return str(cell)  # a whole number of more than 4,300 digits is a ValueError that says so
    if isinstance(cell, bytes | bytearray):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            raise ValueError(f"holds binary data that is not UTF-8, {_shown(cell[:30])}, not {wanted}") from None
    kind = {"list": "a list", "tuple": "a list", "dict": "an object"}.get(kind, f"a value of type {kind}")
    raise ValueError(f"holds {kind}, {_shown(cell)}, not {wanted}")


def _shown(cell: object) -> str:
    try:
        words = "null" if cell is None else " ".join(repr(cell).split())
    except RecursionError:
        words = "nested too deeply to be shown"
    return _cut(words)


def _cut(words: str) -> str:
    return words if len(words) <= 60 else f"{words[:57]}..."


# --- what each kind of source gives, row by row ---------------------------------------------------------------------


def _delimiter(file: Path, layout: Layout) -> tuple[str, bool]:
    """What splits the cells, and whether that is a guess: what makes the wanted columns of the first line, if anything does."""
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
    quotes = file.suffix.lower() != ".tsv"  # where, as in GLUE, a quotation mark is a character like others
    rows = files.table_rows(file, delimiter, layout.encoding, quotes)
    line, first = next(rows, (0, []))
    if not first:
        raise DataError(f"{file} is empty")
    if layout.header:
        hint = "; if its first line is a row already, set `header: false` and columns by number, as `text: 1`"
        places = _find(str(file), [name.strip() for name in first], layout, hint)
    else:
        places = [_numbered(file, column, len(first)) for column in layout.columns.values()]
        yield line, [first[place] for place in places]
    for line, row in rows:
        if len(row) != len(first):
            hint = (
                "; a cell that holds the delimiter stands in double quotes" if quotes and len(row) > len(first) else ""
            )
            cells = f"{len(row)} cell{'s' * (len(row) > 1)}"
            raise DataError(f"{file}, line {line}: {cells}, where the first line has {len(first)}{hint}")
        yield line, [row[place] for place in places]


def _numbered(file: Path, column: str | int, count: int) -> int:
    number = int(column) if re.fullmatch("[0-9]{1,9}", str(column), re.ASCII) else 0
    if not 1 <= number <= count:
        raise DataError(f"{file}: without a header, columns are named by number from 1 to {count} (got {column!r})")
    return number - 1


def _jsonl_rows(file: Path, layout: Layout) -> Rows:
    wanted, loads = list(layout.columns.values()), json.JSONDecoder(object_pairs_hook=_each_name_once).decode
    for number, line in enumerate(files.text_lines(file, layout.encoding), start=1):
        if not line.strip():
            continue
        try:
            row = files.parse_json(line.rstrip(), str(file), number, loads)
        except files.FileProblem as problem:
            raise DataError(f"{problem}; each line is to hold one object") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: expected an object {{...}} on each line, found {_shown(row)}")
        if number == 1 and not layout.skip_blank:
            _find(f"{file}, line 1,", list(row), layout)
        yield number, [row.get(column) for column in wanted]


def _each_name_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {_shown(name)} stands twice in an object")
    return row


def _parquet_rows(file: Path, layout: Layout) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    wanted = [str(column) for column in layout.columns.values()]
    with files.reading(file, "a Parquet table"), parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        _find(str(file), schema.names, layout)
        for column in wanted:
            type_ = schema.field(column).type
            if pa.types.is_nested(type_):
                raise DataError(
                    f"{file}: column {column!r} is of type {_cut(str(type_))}, not of texts, words or numbers"
                )
        _check_size(file, table.metadata, wanted)
        for batch in table.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(wanted))):
            for cells in zip(*(batch.column(column).to_pylist() for column in wanted), strict=True):
                yield 0, cells


def _check_size(file: Path, metadata, wanted: list[str]) -> None:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(metadata.num_columns))
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in wanted)
    if unpacked > MOST_KEPT_BYTES:
        raise DataError(
            f"{file}: {unpacked >> 20} MiB of texts, more than the {MOST_KEPT_BYTES >> 20} MiB that are read"
        )


def _find(where: str, found: Sequence[str], layout: Layout, hint: str = "") -> list[int]:
    """Where the wanted columns stand among those found; DataError for one that is not there, or twice."""
    for column in layout.columns.values():
        if column not in found:
            names = ", ".join(_shown(name)[1:-1] for name in found[:20]) + (", ..." if len(found) > 20 else "")
            alike = {str(name).strip().casefold(): name for name in found[:100]}
            near = difflib.get_close_matches(str(column).casefold(), alike, 1)
            hint = f"; did you mean {alike[near[0]]!r}?" if near else hint
            raise DataError(f"{where} has no column {column!r}; its columns: {names}{hint}")
        if found.count(column) > 1:
            raise DataError(f"{where} has {found.count(column)} columns that are called {column!r}: rename all but one")
    return [found.index(column) for column in layout.columns.values()]
