"""Tables on a terminal: words stay whole, and numbers with their units, however narrow it is."""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

PROSE = 16  # characters that a column of sentences has at least: shorter lines read badly
# no line ends within "2 min 42 s" or after "±"
TOGETHER = re.compile(r"(?<=\d) (?=[^\W\d])|(?<=h|n) (?=\d+ (?:min|s)\b)|(?<=±) ")
JOINT = "\N{WORD JOINER}"  # stands for a space at which no line may end


def show(table: Table, console: Console) -> None:
    """Print a table with its words whole."""
    for part in fitted(table, console.width):
        console.print(part)


def fitted(table: Table, width: int) -> Iterator[Table]:
    """The table for a terminal of so many characters: as many columns side by side as have room,
    the next ones below, behind the first again.

    A word is broken only where it is longer than a line. Cells of columns with `no_wrap` stay on
    one line; a column with a `min_width` has that instead of room for sentences.
    """
    _, right, _, left = table.padding
    lead, *others = (_Column(column, table.show_header, left + right) for column in table.columns)
    widest = min(max((one.least for one in others), default=0), width // 2)
    lead.least = min(lead.least, width - widest)
    for one in others:
        one.least = min(one.least, width - lead.least)
    groups: list[list[_Column]] = [[lead]]
    for one in others:
        if len(groups[-1]) > 1 and sum(each.least for each in (*groups[-1], one)) > width:
            groups.append([lead])
        groups[-1].append(one)
    for group in groups:
        yield _part(table, group, _widths(group, width), is_last=group is groups[-1])


class _Column:
    """A column with the least and the most characters that it takes, padding included."""

    def __init__(self, column: Column, has_header: bool, padding: int) -> None:
        self.column, self.padding = column, padding
        header = str(column.header) if has_header else ""
        lines = [line for cell in column.cells for line in str(cell).splitlines()]
        words = [
            word.replace(JOINT, " ")
            for text in (header, *lines)
            for word in TOGETHER.sub(JOINT, text).split()
        ]
        longest = max(map(cell_len, lines), default=0)
        room = longest if column.no_wrap else column.min_width or min(longest, PROSE)
        self.least = max([room, *map(cell_len, words)]) + padding
        self.most = max(self.least, longest + padding, cell_len(header) + padding)


def _part(table: Table, group: Sequence[_Column], widths: Sequence[int], is_last: bool) -> Table:
    """Some columns of a table, each as wide as is said."""
    part = copy.copy(table)
    part.columns, part.rows = [], []
    part.caption = table.caption if is_last else None
    cells = []
    for one, width in zip(group, widths, strict=True):
        within, justify = width - one.padding, one.column.justify
        header = _wrapped(one.column.header, within)
        part.add_column(header, justify=justify, overflow="fold", width=within)
        cells.append([_wrapped(cell, within) for cell in one.column.cells])
    for row in zip(*cells, strict=True):
        part.add_row(*row)
    return part


def _wrapped(cell: Any, width: int) -> Any:
    """The same text in lines of so many characters; what has a style of its own is rich's to
    wrap.
    """
    if not isinstance(cell, str):
        return cell
    joined = (TOGETHER.sub(JOINT, line) for line in cell.splitlines())
    lines = [part for line in joined for part in textwrap.wrap(line, width, break_on_hyphens=False)]
    return "\n".join(lines).replace(JOINT, " ")


def _widths(group: Sequence[_Column], width: int) -> list[int]:
    """What each column gets: its least, and of what is left the narrowest that has use for it."""
    sizes = [one.least for one in group]
    while sum(sizes) < width:
        wanting = [k for k, one in enumerate(group) if sizes[k] < one.most]
        if not wanting:
            break
        sizes[min(wanting, key=sizes.__getitem__)] += 1
    return sizes
