"""Rates over time as others have written them: a table with columns of time and rate, or a
packet-delivery trace.

The unit of a rate is what its column's name says (`mbps`, `Throughput (Mbit/s)`, `rx_KB/s`), else
what the caller says. A name that counts (`bytes`, `KB`) holds what passed in each step. A
packet-delivery trace, as Mahimahi's `mm-link` takes it, is one column of whole numbers that never
fall: the millisecond of each opportunity to send a packet of 1,500 bytes; after the last it begins
again.
"""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from inputs.files import FileProblem, read_text
from inputs.series import (
    MOST_BYTES,
    MOST_ROWS,
    SeriesTable,
    Times,
    in_order,
    is_named_time,
    looks_like_time,
    parse_table,
    times,
)
from network.errors import NetworkError

UNITS_BPS = {
    "bit/s": 1,
    "kbit/s": 1e3,
    "Mbit/s": 1e6,
    "Gbit/s": 1e9,
    "B/s": 8,
    "kB/s": 8e3,
    "MB/s": 8e6,
}
PACKET_BITS = 8 * 1500
PACKET_STEP_MS = 1000  # into which packets are counted
MOST_PACKETS = 5_000_000
MOST_BPS = 1e15  # beyond what any one link has carried: a mistake, not a rate
PLAUSIBLE_BPS = (1e3, 1e11)  # of a median: outside, the unit is probably another one
UNSAID = " (as nothing else is said)"
COUNTER_ROWS = 8  # of counts that rise and rise: then they are the readings of a counter

_UNIT = re.compile(
    # where a word begins: `rate_mbps`, `(Mbit/s)`, `rateMbps`
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[KMG]))"
    r"(?P<prefix>[kKmMgGtT]i|[kKmMgGtT]|[Kk]ilo|[Mm]ega|[Gg]iga)?"
    r"(?P<what>[bB]its?|BITS?|[bB]ytes?|BYTES?|[oO]ctets?|[bB])"
    r"(?P<per>[pP][sS]|[ _]?(?:/|per|_)[ _]?(?:s|S|sec|secs|second|seconds))?"
    r"(?![A-Za-z])"
)
_OTHER = re.compile(
    r"(?<![A-Za-z])(dBm?|mW|W|V|percent|pct|pps|packets|[MG]?Hz|km/?h|kph|mph|m/s"
    r"|m?[sS]ec(?:ond)?s?|ms)"
    r"(?![A-Za-z])|%"
)


@dataclass(frozen=True)
class Unit:
    """What one is worth in bit/s or, if it is counted in each step, in bits; `words`: how it is
    written here.
    """

    bits: float
    words: str
    is_count: bool = False


@dataclass(frozen=True)
class Rates:
    """A series of rates in bit/s, NaN where one is missing; `times_s` from 0 on, None where the
    file has no times.

    `read` says as what the file was read, `is_time_said` whether the unit of its times is the
    file's own word. `period_s`: when a packet-delivery trace begins again, else None.
    """

    times_s: list[float] | None
    bps: list[float]
    read: str
    period_s: float | None = None
    is_time_said: bool = True


def read_rates(
    path: str | Path,
    column: str | None = None,
    unit: str | None = None,
    default: str = "bit/s",
    is_capacity: bool = False,
) -> Rates:
    """The rates of a file, by `column` if there are several; `unit` (of UNITS_BPS) where the
    column's name has none.

    Where neither says a unit it is `default`. Without times a row is a second, and blank cells are
    missing rates; a capacity must have times, and no cell may miss. Raises FileProblem with line
    and column, NetworkError for a unit that is none.
    """
    for asked in (unit, default):
        if asked is not None and asked not in UNITS_BPS:
            raise NetworkError(f"unit {asked!r}: one of {', '.join(UNITS_BPS)}")
    text = read_text(path, most_bytes=MOST_BYTES)
    if column is None and (sent_ms := _packets(text, path, is_capacity)):
        return _delivered(sent_ms, path)
    table = parse_table(text, Path(path))
    place = _rate_column(table, column, is_capacity)
    clock = _time_column(table, place)
    if clock is None and is_capacity:
        raise FileProblem(
            f"{path}: no column of time; a capacity over time has two, such as time_s and rate_mbps"
        )
    when, read = None, ""
    if clock is not None:
        when = times(table, clock)
        in_order(table, clock, when.seconds)
        read = f"{_titled(table, clock)} in {when.unit}{'' if when.is_said else UNSAID}, "
    worth = _unit(table, place, unit, default)
    bps = [
        value * worth.bits for value in table.numbers(place, least=0.0, may_miss=not is_capacity)
    ]
    if worth.is_count:
        step_s = _even_step_s(table, place, when)
        bps = [bits / step_s for bits in bps]
    for row, value in enumerate(bps):
        if value > MOST_BPS:
            raise table.problem(
                row, place, f"{value:.3g} bit/s is no rate of a link: is the unit right?"
            )
    is_said = when is None or when.is_said
    read += f"{_titled(table, place)} in {worth.words}"
    return Rates(_from_zero(when), bps, read, is_time_said=is_said)


def doubt(bps: Sequence[float]) -> str | None:
    """What makes a series of rates look as if its unit were another one, or as if nothing could
    pass; None for nothing.
    """
    passing = [value for value in bps if value > 0]
    if not passing:
        return "it is zero throughout: nothing will ever pass"
    middle_bps = median(passing)
    if PLAUSIBLE_BPS[0] <= middle_bps <= PLAUSIBLE_BPS[1]:
        return None
    return (
        f"its median is {middle_bps:.3g} bit/s: is the unit right? It can stand in the column's "
        "name, as in rate_mbps"
    )


# ---- which column is what


def _rate_column(table: SeriesTable, asked: str | None, is_capacity: bool) -> int:
    """The place of the column asked for, of the only one with a unit of rate, or of the only one
    left.
    """
    if asked is not None:
        if asked not in table.names:
            raise FileProblem(
                f"{table.path}: no column {asked!r}; it has {', '.join(table.names) or 'no names'}"
            )
        return table.names.index(asked)
    if not table.names and table.width <= 2:
        return table.width - 1
    places = [
        place
        for place in range(table.width)
        if not looks_like_time(table, place) or _has_unit(table, place)
    ]
    with_unit = [place for place in places if _has_unit(table, place)]
    chosen = with_unit if len(with_unit) == 1 else places
    if len(chosen) == 1:
        return chosen[0]
    if table.names and not places:
        raise FileProblem(
            f"{table.path}: {', '.join(table.names)}: there is a column of time, and none of "
            "rates: give the rates' name a unit, as `down_mbps`; a packet-delivery trace (a "
            "millisecond a packet) has no line of names"
        )
    known = (
        ", ".join(table.names[place] for place in places)
        if table.names
        else "a line of names is missing"
    )
    how = "leave the others out" if is_capacity else "name one with --column"
    how = how if len(with_unit) > 1 else f"give its name a unit, or {how}"
    raise FileProblem(f"{table.path}: which column is the rate ({known})? {how.capitalize()}")


def _has_unit(table: SeriesTable, place: int) -> bool:
    return bool(table.names) and _unit_in(table.names[place]) is not None


def _time_column(table: SeriesTable, rates: int) -> int | None:
    """The place of the column of time, None without one; of several that say the same the
    first.
    """
    if not table.names:
        return 0 if table.width == 2 else None
    others = [
        place for place in range(table.width) if place != rates and not _has_unit(table, place)
    ]
    named = [place for place in others if is_named_time(table.names[place])]
    found = named or [place for place in others if looks_like_time(table, place)]
    spans_s = [
        (seconds[-1] - seconds[0]) for seconds in (times(table, place).seconds for place in found)
    ]
    for place, span_s in zip(found[1:], spans_s[1:], strict=True):
        if abs(span_s - spans_s[0]) > 1 + 0.01 * abs(spans_s[0]):
            raise FileProblem(
                f"{table.path}: {_titled(table, found[0])} and {_titled(table, place)} look like "
                "times, and differ: "
                "keep the one that says when each rate was taken"
            )
    return found[0] if found else None


def _titled(table: SeriesTable, place: int) -> str:
    return f"column {table.title(place)}"


def _from_zero(when: Times | None) -> list[float] | None:
    return [second - when.seconds[0] for second in when.seconds] if when else None


# ---- units


def _unit(table: SeriesTable, place: int, asked: str | None, default: str) -> Unit:
    said = _unit_in(table.names[place]) if table.names else None
    if said is None:
        if asked is None and table.names and (other := _OTHER.search(table.names[place])):
            raise FileProblem(
                f"{table.path}: {_titled(table, place)} is in {other[0]}, as it says, which is no "
                "rate: name a column of rates"
            )
        return Unit(UNITS_BPS[asked or default], asked or f"{default}{UNSAID}")
    if isinstance(said, str):
        raise FileProblem(f"{table.path}: {_titled(table, place)}: {said}")
    if asked is not None and (said.is_count or said.bits != UNITS_BPS[asked]):
        raise FileProblem(
            f"{table.path}: {_titled(table, place)} is in {said.words}, as it says, and not in "
            f"{asked}"
        )
    return said


def _unit_in(name: str) -> Unit | str | None:
    """The unit in a column's name, why the one in it cannot be told, or None without one.

    bit and byte are told by their words, else b from B, where upper and lower case mean something.
    """
    found = [m for m in _UNIT.finditer(name) if len(m["what"]) > 1 or m["prefix"] or m["per"]]
    if not found:
        return None
    if len(found) > 1:
        return "it names several units; keep one, such as rate_mbps"
    prefix, what, per = (found[0][key] or "" for key in ("prefix", "what", "per"))
    if _is_ambiguous(prefix, what, per):
        return (
            f"{found[0][0]!r} can be read in two ways: write bit/s, kbit/s, Mbit/s, B/s, kB/s or "
            "MB/s"
        )
    is_byte = what == "B" or what[:2].lower() in ("by", "oc")
    is_count = is_byte and not per  # a bare `mbit` is a rate, as tc writes it
    letter, is_binary = prefix[:1].lower(), prefix[1:] == "i"
    scale = (1024.0 if is_binary else 1000.0) ** " kmgt".index(letter or " ")
    prefix = letter if letter == "k" and not is_binary else letter.upper()
    shown = f"{prefix}{'i' * is_binary}{'B' if is_byte else 'bit'}"
    return Unit(
        scale * (8 if is_byte else 1),
        f"{shown} counted in each step" if is_count else f"{shown}/s",
        is_count,
    )


def _is_ambiguous(prefix: str, what: str, per: str) -> bool:
    if len(what) > 1:
        return what.lower() in ("bit", "bits") and not prefix and not per  # in all, or a second?
    if (what, per) == ("b", "ps"):
        return False
    return (
        (per not in ("ps", "") and per.lower() == "ps")
        or prefix[:1] in ("m", "g", "t")
        or (what == "b" and not per)
    )


def _even_step_s(table: SeriesTable, place: int, when: Times | None) -> float:
    """The step in which a column counts; FileProblem if steps differ, or if it holds the readings
    of a counter.
    """
    counts = [count for count in table.numbers(place, may_miss=True) if count == count]
    if len(counts) >= COUNTER_ROWS and all(b > a for a, b in pairwise(counts)):
        raise FileProblem(
            f"{table.path}: {_titled(table, place)} rises from row to row, as a counter does: give "
            "what passed in each step"
        )
    if when is None or len(when.seconds) < 2:
        return 1.0
    gaps_s = [b - a for a, b in pairwise(when.seconds)]
    step_s = median(gaps_s)
    if any(abs(gap / step_s - max(1, round(gap / step_s))) > 0.01 * gap / step_s for gap in gaps_s):
        raise FileProblem(
            f"{table.path}: {_titled(table, place)} counts, but in steps of unequal length: give a "
            "rate"
        )
    return step_s


# ---- packets


def _packets(text: str, path: str | Path, is_capacity: bool) -> array[int] | None:
    """The milliseconds of a packet-delivery trace; None if the text is something else.

    A throughput a second may look alike: it is one if its numbers fall somewhere, or never change.
    """
    sent_ms, line = array("q"), 0
    for line, row in enumerate(io.StringIO(text), 1):
        cell = row.strip()
        if not cell or cell.startswith("#"):
            continue
        if (
            not (cell.isascii() and cell.isdigit() and len(cell) <= 15)
            or len(sent_ms) == MOST_PACKETS
        ):
            break
        if sent_ms and int(cell) < sent_ms[-1]:
            if is_capacity:
                raise FileProblem(
                    f"{path}, line {line}: {cell} after {sent_ms[-1]}; {_WHAT_IS_ONE}"
                )
            return None
        sent_ms.append(int(cell))
    else:
        is_one = sent_ms and (is_capacity or sent_ms[-1] > sent_ms[0])
        if is_one and not 0 < sent_ms[-1] <= MOST_ROWS * PACKET_STEP_MS:
            raise FileProblem(
                f"{path}, line {line}: ends at {sent_ms[-1]:,} ms, and its times count from 0; "
                f"{_WHAT_IS_ONE}"
            )
        return sent_ms if is_one else None
    if len(sent_ms) == MOST_PACKETS:
        raise FileProblem(
            f"{path}: more than {MOST_PACKETS:,} rows, the most that are read of such a file"
        )
    return None


_WHAT_IS_ONE = (
    "one column of whole numbers is a packet-delivery trace: a millisecond a packet, never falling"
)


def _delivered(sent_ms: array[int], path: str | Path) -> Rates:
    """What packets came to in each second, one that was sent at its very end included."""
    period_ms = sent_ms[-1]
    counts = [0] * -(-period_ms // PACKET_STEP_MS)
    for ms in sent_ms:
        counts[max(0, -(-ms // PACKET_STEP_MS) - 1)] += 1
    widths_ms = [min(PACKET_STEP_MS, period_ms - i * PACKET_STEP_MS) for i in range(len(counts))]
    bps = [
        1e3 * PACKET_BITS * count / width for count, width in zip(counts, widths_ms, strict=True)
    ]
    starts_s = [i * PACKET_STEP_MS / 1e3 for i in range(len(counts))]
    read = (
        f"a packet-delivery trace: {len(sent_ms):,} packets of 1,500 bytes in {period_ms / 1e3:g} s"
    )
    return Rates(starts_s, bps, read, period_ms / 1e3)
