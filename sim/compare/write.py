"""A comparison's tables as CSV, Markdown and LaTeX, and their cells for people."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sim.compare.costs import COLUMNS
from sim.compare.table import OF_BACKBONE
from sim.views import escaping


def headings(table: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The columns and their headings: accuracies (of each backbone too, where there are several),
    then costs.
    """
    of_backbones = {name: name for row in table for name in row["accuracies"]}
    accuracies = {name: COLUMNS[name] for name in ("final", "best")}
    return (
        accuracies
        | of_backbones
        | {name: text for name, text in COLUMNS.items() if name not in accuracies}
    )


def write_csv(table: list[dict[str, Any]], path: Path, reference: str | None) -> None:
    """Every number of the table, in SI units, and each as a ratio to the reference method."""
    base = next((row for row in table if row["method"] == reference), None)
    columns = headings(table)
    names = [n for c in columns for n in (c, f"{c}_pm", *([f"{c}_ratio"] if base else []))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, ["method", "kind", "seeds", "reached", *names], extrasaction="ignore"
        )
        writer.writeheader()
        for row in table:
            ratios = (
                {f"{c}_ratio": _ratio(row.get(c), base.get(c)) for c in columns} if base else {}
            )
            writer.writerow({**row, **ratios})


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def shown(table: list[dict[str, Any]], columns: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Rows for people: the method and its cells in the order of `columns`."""
    for row in table:
        lost = row.get("diverged") and (
            "diverged" if row["diverged"] == row["seeds"] else f"{row['diverged']} diverged"
        )
        yield (
            row["method"],
            [_cell(name, row.get(name), row.get(f"{name}_pm"), lost or "–") for name in columns],
        )


def _cell(name: str, value: float | None, pm: float | None, lost: str = "–") -> str:
    from inputs.units import format_bytes, format_seconds, format_si

    is_accuracy = name in ("final", "best") or name.startswith(OF_BACKBONE)
    if value is None:
        return lost if is_accuracy else "not reached"
    if is_accuracy:
        return f"{value:.3f}" + (f" ± {pm:.3f}" if pm is not None else "")
    write = {
        "time_s": format_seconds,
        "waiting_s": format_seconds,
        "flop": lambda v: format_si(v, "FLOP"),
        "energy_j": lambda v: format_si(v, "J"),
        "updates": lambda v: f"{v:,.0f}",
    }.get(name, format_bytes)
    return write(value) + (f" ± {write(pm)}" if pm is not None else "")


def markdown(tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables as Markdown, one below the other."""
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
    return "\n\n".join(parts) + "\n"


def latex(tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables as LaTeX tabulars (booktabs)."""
    parts = []
    for title, table in tables.items():
        columns = headings(table)
        head = " & ".join(escaping.latex(heading) for heading in ["method", *columns.values()])
        body = [
            " & ".join(escaping.latex(cell) for cell in [name, *cells]) + r" \\"
            for name, cells in shown(table, columns)
        ]
        spec = "l" + "r" * len(columns)
        lines = [
            f"% {escaping.latex(title)}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
        ]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"
