"""Tables of a time series: which row holds the names, where cells end, and which moment a row
stands for.

Nothing is guessed: a header is a row of names alone, so that a first row with a typo is an error
and no header; a column of time is told by its name or by what its cells are; its unit is the
header's, or follows from the cells (dates, clocks, epochs); what could be read in two ways is
refused with the column's name and what to write instead.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import pairwise
from math import inf, isfinite, nan
from pathlib import Path
from statistics import median

from inputs.files import FileProblem, read_text, table_rows

MOST_BYTES, MOST_ROWS = 64 * 2**20, 1_000_000
DELIMITERS = (";", "\t", "|", ",")  # the comma last: beside another one it is a decimal comma
DAY_S = 86_400.0
CLOCK = "hh:mm:ss"

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?", re.ASCII)
_MISSING = {"", "nan", "na", "n/a", "null", "none"}
_CLOCK = re.compile(r"(\d{1,2}):(\d{2}):(\d{2}(?:[.,]\d+)?)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ].+)?", re.ASCII)
_LIKE_A_TIME = re.compile(
    r"\d{1,2}:\d{2}(?::\d{2}.*)?(?: ?[aApP][mM])?|\d{1,4}([-/.])\d{1,2}\1\d{1,4}(?:[T ].*)?",
    re.ASCII,
)
_NAME = re.compile(
    r"[^\W\d].*|[(\[%].*", re.DOTALL
)  # begins with a letter: `1k` is a number gone wrong

_PER_S = {
    **dict.fromkeys(("ns", "nsec", "nanos", "nanosecond", "nanoseconds"), 1e9),
    **dict.fromkeys(("us", "µs", "μs", "usec", "micros", "microsecond", "microseconds"), 1e6),
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"), 1e3),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("minute", "minutes"), 1 / 60),
    **dict.fromkeys(("h", "hour", "hours"), 1 / 3600),
    **dict.fromkeys(("d", "day", "days"), 1 / DAY_S),
}
_ALSO_PER_S = {"min": 1 / 60, "mins": 1 / 60}  # only beside a word for time: alone it is a minimum
_SINCE_START = {
    "t",
    "time",
    "times",
    "elapsed",
    "start",
    "begin",
    "end",
}  # seconds, where the header names no unit
_CLOCKS = {
    "timestamp",
    "timestamps",
    "ts",
    "date",
    "datetime",
    "epoch",
    "unixtime",
    "clock",
    "utc",
    "walltime",
}
_EPOCH_PER_S = (
    1.0,
    1e3,
    1e6,
    1e9,
)  # numbers of 1e9 to 4.1e9 s, in one of these units: dates from 2001 to 2099
_UNIT_WORDS = {
    1e9: "ns",
    1e6: "us",
    1e3: "ms",
    1.0: "s",
    1 / 60: "min",
    1 / 3600: "h",
    1 / DAY_S: "d",
}


@dataclass(frozen=True)
class Times:
    """A column of time in seconds, one value a row: `unit` as it was read, `is_said` whether by the
    file's own words.

    `is_absolute`: counted from 1970 (dates, epochs) and not from a beginning of the file's own.
    """

    seconds: list[float]
    unit: str
    is_said: bool = True
    is_absolute: bool = False


@dataclass(frozen=True)
class SeriesTable:
    """A table of text: names of its columns (none without a header), and rows of as many cells,
    with their lines.
    """

    path: Path
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int] = field(repr=False)
    has_decimal_commas: bool = False

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self.names) or (len(self.rows[0]) if self.rows else 0)

    def title(self, place: int) -> str:
        """A column as an error names it."""
        return repr(self.names[place]) if self.names else str(place + 1)

    def place_of(self, fits: Callable[[list[str]], bool], wanted: str) -> int:
        """The place of the one column whose name's words fit; FileProblem, which names the one that
        is wanted.
        """
        places = [place for place, name in enumerate(self.names) if fits(tokens(name))]
        if len(places) == 1:
            return places[0]
        near = get_close_matches(wanted, self.names, 1) if not places else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        have = ", ".join(self.names) or "a first line without names"
        raise FileProblem(
            f"{self.path}: {'several columns' if places else 'no column'} {wanted!r} in "
            f"{have}{hint}"
        )

    def cells(self, place: int) -> Iterator[str]:
        """The cells of a column, from above."""
        return (row[place].strip() for row in self.rows)

    def problem(self, row: int, place: int, what: str) -> FileProblem:
        """An error about one cell, which names file, line and column."""
        return FileProblem(
            f"{self.path}, line {self.lines[row]}, column {self.title(place)}: {what}"
        )

    def number(self, cell: str) -> float:
        """A cell's finite number; NaN for a missing one (blank, `nan`, `NA`); ValueError for
        anything else.
        """
        if cell.lower() in _MISSING:
            return nan
        if self.has_decimal_commas and "." in cell:
            raise ValueError(
                f"{cell[:40]!r} has a point where others have a comma: which is the decimal sign?"
            )
        if self.has_decimal_commas and _COMMA_NUMBER.fullmatch(cell):
            cell = cell.replace(",", ".")
        if not _NUMBER.fullmatch(cell) or len(cell) > 100:
            raise ValueError(f"expected a number, found {cell[:40]!r}")
        value = float(cell)
        if not isfinite(value):
            raise ValueError(f"{cell[:40]} is beyond all numbers")
        return value

    def numbers(self, place: int, least: float = -inf, may_miss: bool = False) -> list[float]:
        """A column's numbers, none below `least`; missing ones are NaN, or an error unless they may
        miss.
        """
        found = []
        for row, cell in enumerate(self.cells(place)):
            try:
                value = self.number(cell)
            except ValueError as error:
                hint = (
                    " (the names of columns begin with a letter)"
                    if not row and not self.names
                    else ""
                )
                raise self.problem(row, place, f"{error}{hint}") from None
            if value != value and not may_miss:
                raise self.problem(
                    row,
                    place,
                    f"expected a number, found {cell!r}" if cell else "a number is missing",
                )
            if value < least:
                raise self.problem(row, place, f"must be at least {least:g}, not {cell}")
            found.append(value)
        return found


def read_table(path: str | Path) -> SeriesTable:
    """The table of a file; FileProblem as `parse_table` and `read_text` give it."""
    return parse_table(read_text(path, most_bytes=MOST_BYTES), Path(path))


def parse_table(text: str, path: Path) -> SeriesTable:
    """The table of a text: comments (#) left out, a row of names told from values, every row
    equally long.

    Cells end at `;`, tab, `|`, comma or, where none of these is used, at white space. Beside
    another delimiter a comma in a number is a decimal comma. `path` names the text in a
    FileProblem, which says the line.
    """
    if max(text.count("\n"), text.count("\r")) > MOST_ROWS:
        raise FileProblem(
            f"{path}: more than {MOST_ROWS:,} rows, the most that are read of such a file"
        )
    lines = list(io.StringIO(text, newline=""))
    remarks = [line.lstrip()[1:] for line in lines if line.lstrip().startswith("#")]
    plain = ["\n" if line.lstrip().startswith("#") else line for line in lines]
    delimiter = _delimiter(plain)
    if delimiter == " ":
        rows = [(i, line.split()) for i, line in enumerate(plain, 1) if line.strip()]
    else:
        rows = [
            row
            for row in table_rows(path, delimiter, lines=plain)
            if any(cell.strip() for cell in row[1])
        ]
    if not rows:
        raise FileProblem(f"{path}: no rows in it")
    names = _names(rows[0][1])
    body = rows[1:] if names else rows
    if not names and remarks:  # as numpy.savetxt writes them
        said = _names(remarks[-1].split(None if delimiter == " " else delimiter))
        is_header = any(map(is_named_time, said)) or (len(said) == 1 and len(said[0].split()) < 3)
        names = said if len(said) == len(rows[0][1]) and is_header else ()
    if not body:
        raise FileProblem(f"{path}: no rows in it, but one of names ({', '.join(names)})")
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise FileProblem(f"{path}, line {rows[0][0]}: two columns are called {twice[0]!r}")
    width = len(names) or _usual([len(row) for _, row in rows])
    for line, row in body:
        while len(row) > width and not row[-1].strip():
            row.pop()
        if len(row) != width:
            count = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            raise FileProblem(
                f"{path}, line {line}: {count} where {width} are expected "
                f"({delimiter.join(row)[:60]!r})"
            )
    has_commas = delimiter != "," and any(
        _COMMA_NUMBER.fullmatch(c.strip()) for _, row in body for c in row if "," in c
    )
    return SeriesTable(
        path, names, [row for _, row in body], [line for line, _ in body], has_commas
    )


def _usual(widths: Sequence[int]) -> int:
    """The most frequent number of cells of the first rows; of equally frequent ones the larger."""
    return max(widths[:200], key=lambda width: (widths[:200].count(width), width))


def _delimiter(lines: Sequence[str]) -> str:
    """The delimiter that all of the first lines use, else the one that most use; white space if
    none uses any.
    """
    head = [line for line in lines[:200] if line.strip()]
    for delimiter in DELIMITERS:
        if head and all(delimiter in line for line in head):
            return delimiter
    used = max(DELIMITERS, key=lambda delimiter: sum(delimiter in line for line in head))
    if any(used in line for line in head):
        return used
    return (
        " " if head and all(len(line.split()) > 1 for line in head[1:] or head) else ","
    )  # a name may hold spaces


def _names(row: Sequence[str]) -> tuple[str, ...]:
    """The names of a header, () if the row is none: some cell is a value, or no name at all."""
    names = tuple(cell.strip() for cell in row)
    while names and not names[-1]:
        names = names[:-1]
    return (
        names
        if names and all(_NAME.fullmatch(n) and n.lower() not in _MISSING for n in names if n)
        else ()
    )


# ---- columns of time


def tokens(name: str) -> list[str]:
    """The words of a column's name in small letters: `elapsedTime (ms)` is elapsed, time, ms."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)]


def is_named_time(name: str) -> bool:
    """Whether a column's name says that it holds times: `t`, `time_s`, `Timestamp (ms)`, `seconds`;
    not `rtt_ms`.
    """
    words = tokens(name)
    return any(word in _SINCE_START or word in _CLOCKS for word in words) or (
        len(words) == 1 and words[0] in _PER_S
    )


def looks_like_time(table: SeriesTable, place: int) -> bool:
    """Whether a column holds times by its name, or by its cells: dates, clocks, epochs, or numbers
    that rise evenly.

    A column that counts the rows, 0, 1, 2 or 1, 2, 3, is none; nor is one of another unit that its
    name knows.
    """
    if table.names and is_named_time(table.names[place]):
        return True
    cells = [cell for cell in table.cells(place) if cell]
    if cells and all(map(_LIKE_A_TIME.fullmatch, cells)):
        return True
    try:
        values = [table.number(cell) for cell in cells]
    except ValueError:
        return False
    gaps = [b - a for a, b in pairwise(values)]
    if len(gaps) < 2 or not min(gaps) > 0:
        return False
    step = median(gaps)
    is_even = sum(abs(gap - step) <= 0.01 * step for gap in gaps) >= 0.9 * len(gaps)
    return _epoch(values) is not None or (is_even and not (step == 1 and values[0] in (0, 1)))


def times(table: SeriesTable, place: int) -> Times:
    """The moments of a column, in seconds.

    By its cells: dates (ISO 8601; without a zone taken as UTC), clocks (hh:mm:ss, over midnight),
    or numbers in the unit of the header (`time_ms`, `Time [us]`). Without a unit `time`, `t`,
    `elapsed` and a file without names are in seconds, and numbers of the size of an epoch in
    whatever makes them lie after 2001. Raises FileProblem for anything else.
    """
    cells = list(table.cells(place))
    if _DATE.fullmatch(cells[0]):
        return Times(
            [_date(table, row, place, cell) for row, cell in enumerate(cells)],
            "dates",
            is_absolute=True,
        )
    if _CLOCK.fullmatch(cells[0]):
        return Times(list(_clocks(table, place, cells)), CLOCK)
    if not _NUMBER.match(cells[0].replace(",", ".")) or _LIKE_A_TIME.fullmatch(cells[0]):
        wanted = "seconds, a date such as 2026-03-02T10:00:00, or a time of day such as 10:00:00"
        raise table.problem(0, place, f"expected {wanted}, found {cells[0][:40]!r}")
    values = table.numbers(place)
    name = table.names[place] if table.names else ""
    said = _said_per_s(name)
    epoch = _epoch(values)
    if said is None and epoch is None and not set(tokens(name)) & _SINCE_START and table.names:
        raise table.problem(
            0,
            place,
            f"in which unit? Call it {name}_s, {name}_ms or the like (it begins with {cells[0]})",
        )
    if said is not None and epoch is not None and epoch > said:
        raise table.problem(
            0,
            place,
            f"{cells[0]} is no time in {_UNIT_WORDS[said]}, but one in {_UNIT_WORDS[epoch]}",
        )
    per_s = said or epoch or 1.0
    seconds = [value / per_s for value in values]
    return Times(
        seconds, _UNIT_WORDS[per_s], said is not None or epoch is not None, epoch is not None
    )


def instants(table: SeriesTable, place: int) -> Times:
    """As `times`, for rows in any order: a unit must be said, and times of day, which do not say
    the day, are refused.
    """
    read = times(table, place)
    if read.unit == CLOCK:
        raise table.problem(
            0, place, f"{table.rows[0][place]!r} does not say of which day: give seconds, or dates"
        )
    if not read.is_said:
        raise table.problem(
            0, place, f"in which unit? Call it {table.names[place]}_s, or whatever it is"
        )
    return read


def in_order(table: SeriesTable, place: int, seconds: Sequence[float]) -> None:
    """Raise FileProblem with the line at which times do not rise."""
    for row, (before, after) in enumerate(pairwise(seconds), 1):
        if not after > before:
            cells = list(table.cells(place))
            raise table.problem(
                row, place, f"times must increase, and {cells[row]} follows {cells[row - 1]}"
            )


def _said_per_s(name: str) -> float | None:
    """How many of a column's own unit make a second, as its name says."""
    words = tokens(name)
    last = words[-1] if words else ""
    return _PER_S.get(last) or (_ALSO_PER_S.get(last) if len(words) > 1 else None)


def _epoch(values: Sequence[float]) -> float | None:
    low, high = min(values), max(values)
    return next(
        (per_s for per_s in _EPOCH_PER_S if 1e9 * per_s <= low <= high < 4.1e9 * per_s), None
    )


def _date(table: SeriesTable, row: int, place: int, cell: str) -> float:
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        raise table.problem(
            row, place, f"expected a date such as 2026-03-02T10:00:00, found {cell[:40]!r}"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _clocks(table: SeriesTable, place: int, cells: Sequence[str]) -> Iterator[float]:
    day_s, before_s = 0.0, -inf
    for row, cell in enumerate(cells):
        found = _CLOCK.fullmatch(cell)
        if not found or int(found[2]) > 59 or float(found[3].replace(",", ".")) >= 61:
            raise table.problem(
                row, place, f"expected a time of day such as 10:00:00, found {cell[:40]!r}"
            )
        clock_s = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3].replace(",", "."))
        if (
            day_s + clock_s < before_s - DAY_S / 2
        ):  # a clock that falls by half a day has passed midnight
            day_s += DAY_S
        before_s = day_s + clock_s
        yield before_s
