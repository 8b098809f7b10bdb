"""A comparison's tables as CSV and Markdown, and their cells for people."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sim.compare.costs import COLUMNS
from sim.compare.table import BY_DEVICE, OF_BACKBONE
from sim.privacy.measures import SAID
from sim.views import escaping

OF_METHOD = ("method", "kind", "reference", "seeds", "reached", "never_above_start", "diverged")
OF_METRIC = ("final", "chosen")
ACCURACIES = (*OF_METRIC, *BY_DEVICE)
DIVERGED, NOT_REACHED = "diverged", "not reached"


def headings(table: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The columns and their headings: what the metric says (of each backbone too, where there are
    several), accuracy by device where it is known, then costs. Costs alone where runs were cut off.
    """
    rows = list(table)
    metric = next((row["metric"] for row in rows if "metric" in row), "accuracy")
    of_backbones = {
        name: f"{metric}, final, {name.removeprefix(OF_BACKBONE)}"
        for row in rows
        for name in row["accuracies"]
    }
    often_unknown = (*BY_DEVICE, *SAID)
    unknown = {name for name in often_unknown if all(row.get(name) is None for row in rows)}
    if is_cut_off(rows):
        left_out = {*ACCURACIES, *unknown}
        return {name: text for name, text in COLUMNS.items() if name not in left_out}
    return (
        {name: COLUMNS[name].replace("accuracy", metric) for name in OF_METRIC}
        | of_backbones
        | {name: text for name, text in COLUMNS.items() if name not in {*OF_METRIC, *unknown}}
    )


def is_cut_off(table: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the table is of costs to a target and runs ended at one, so that no accuracy is what
    a method comes to.
    """
    return any(row.get("ends_at") is not None and row["target"] is not None for row in table)


def write_csv(title: str, table: list[dict[str, Any]], path: Path, reference: str | None) -> None:
    """Every number of the table, in SI units, and each as a ratio to the reference method;
    `no_cost` has in words why a method's costs are not known.
    """
    base = next((row for row in table if row["method"] == reference), None)
    columns = headings(table)
    names = [
        name
        for c in columns
        for name in (
            *(c, f"{c}_low", f"{c}_high"),
            *([f"{c}_chance"] if c in SAID else []),
            *([] if c in (*ACCURACIES, *SAID) else [f"{c}_at_least"]),
            *([f"{c}_ratio"] if base else []),
        )
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        fields = [*OF_METHOD, "no_cost", "table", *names]
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        for row in table:
            ratios = (
                {f"{c}_ratio": _ratio(row.get(c), base.get(c)) for c in columns} if base else {}
            )
            why = "" if row["time_s"] is not None else why_costless(row)
            writer.writerow({**row, **ratios, "no_cost": why, "table": title})


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def shown(table: list[dict[str, Any]], columns: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Rows for people: the method and its cells in the order of `columns`."""
    for row in table:
        name = row["method"] + (" (reference)" if row["reference"] else "")
        yield name, [_cell(column, row) for column in columns]


def _cell(name: str, row: Mapping[str, Any]) -> str:
    """A value with its interval: the half-width, or both ends where it is not in their middle."""
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    is_accuracy = name in ACCURACIES or name.startswith(OF_BACKBONE)
    write = _writer(name)
    if value is None and name in SAID:
        return "–"
    if value is None:
        return divergence(row) or "–" if is_accuracy else why_none(name, row)
    if low is None or high is None or low == high:
        return write(value)
    if (half := half_width(value, low, high)) is not None:
        return f"{write(value)} ± {write(half)}"
    return f"{write(value)} ({from_to(low, high, write)})"


def from_to(low: float, high: float, write: Callable[[float], str]) -> str:
    """An interval for people; an end that nothing bounds is open."""
    if math.isinf(low):
        return "not known" if math.isinf(high) else f"at most {write(high)}"
    return f"at least {write(low)}" if math.isinf(high) else f"{write(low)} to {write(high)}"


def half_width(value: float, low: float, high: float) -> float | None:
    """Half the width of an interval that has its value in its middle; None for another."""
    is_in_middle = abs((high - value) - (value - low)) <= 0.02 * (high - low)
    return (high - low) / 2 if is_in_middle else None


def _writer(name: str) -> Callable[[float], str]:
    from inputs.units import format_bytes, format_seconds, format_si

    if name in (*ACCURACIES, *SAID) or name.startswith(OF_BACKBONE):
        return lambda v: f"{v:.3f}"
    return {
        "time_s": format_seconds,
        "waiting_s": format_seconds,
        "flop": lambda v: format_si(v, "FLOP"),
        "energy_j": lambda v: format_si(v, "J"),
        "updates": lambda v: f"{v:,.0f}",
    }.get(name, format_bytes)


def why_none(name: str, row: Mapping[str, Any]) -> str:
    """What stands in place of a cost that there is none of."""
    why, least, reached = why_costless(row), row.get(f"{name}_at_least"), row.get("reached")
    if not why.startswith(NOT_REACHED) or least is None or not reached:
        return why
    known = _writer(name)(least)
    if name in ("delivery_bytes", "peak_memory_bytes"):  # whenever a target is reached
        return known
    return f"≥ {known}{_of_seeds(reached, row)}"


def why_costless(row: Mapping[str, Any]) -> str:
    """Why a method has no costs of all its seeds, and in how many, if not in all."""
    seeds = row["seeds"]
    for count, why in (
        (row.get("diverged_without"), DIVERGED),
        (row.get("never_above_start"), "never above its start"),
    ):
        if count:
            return why + _of_seeds(count, row)
    return NOT_REACHED + _of_seeds(seeds - (row.get("reached") or 0), row)


def divergence(row: Mapping[str, Any]) -> str:
    """That a method had diverged by its end, and in how many seeds, if not in all; empty for one
    that had not.
    """
    count = row.get("diverged")
    return DIVERGED + _of_seeds(count, row) if count else ""


def _of_seeds(count: int, row: Mapping[str, Any]) -> str:
    return f" ({count} of {row['seeds']})" if count < row["seeds"] else ""


SAVED = ("", "reduction", "factor", "best baseline")


def saved_cells(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """What was saved of each cost, as `SAVED` heads it; and how much more accurate ours is."""
    for name, value in found.items():
        if name == "accuracy":
            more = [f"{100 * value[f'difference{end}']:+.1f}" for end in ("", "_low", "_high")]
            yield name, f"{more[0]} points ({more[1]} to {more[2]})", "", value["of"]
            continue
        low, high = value["reduction_low"], value["reduction_high"]
        least = "at least " if value["at_least"] else ""
        is_free = math.isinf(value["reduction"])  # in some seed the other needs nothing
        saved = "it needs none" if is_free else f"{least}{value['reduction']:.1%}"
        if low is not None and high is not None and high > low:
            saved += f" ({from_to(low, high, '{:.1%}'.format)})"
        factor = value["factor"]
        times = (
            "–" if math.isinf(factor) else f"{factor:,.0f}x" if factor >= 100 else f"{factor:.3g}x"
        )
        yield COLUMNS[name], saved, times, value["of"]


def said_of(found: Mapping[str, Mapping[str, Any]], left_out: Iterable[str]) -> list[str]:
    """What stands below: what seeds cannot tell, and who is in no reduction."""
    named = "; ".join(left_out)
    said = [value["said"] for value in found.values() if value["said"]]
    return [*said, f"left out: {named}"] if named else said


def markdown(
    tables: Mapping[str, list[dict[str, Any]]],
    notes: Iterable[str] = (),
    ours: str = "",
    savings: Mapping[str, tuple[Mapping[str, Any], list[str]]] | None = None,
) -> str:
    """The tables as Markdown, one below the other, and how they were made; `savings` has
    of a title what `ours` saves against the best baseline, and who is left out.
    """
    parts = []
    for title, table in tables.items():
        columns = headings(table)
        head = ["method", *(escaping.markdown(heading) for heading in columns.values())]
        lines = [
            f"## {escaping.markdown(title)}",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
        ]
        lines += [
            "| " + " | ".join([escaping.markdown(name), *cells]) + " |"
            for name, cells in shown(table, columns)
        ]
        parts.append("\n".join(lines))
        if savings and title in savings:
            found, left_out = savings[title]
            parts.append(f"### {escaping.markdown(ours)} against the best baseline")
            rows = [SAVED, ("---",) * len(SAVED), *saved_cells(found)]
            parts.append(
                "\n".join(f"| {' | '.join(map(escaping.markdown, row))} |" for row in rows)
            )
            parts += map(escaping.markdown, said_of(found, left_out))
    return "\n\n".join([*parts, *map(escaping.markdown, notes)]) + "\n"
