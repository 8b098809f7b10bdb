"""`mobifleet compare`: run what is missing, then write and show the tables and figures of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from sim.compare import (
    COLUMNS,
    Entry,
    latex,
    markdown,
    plan,
    reductions,
    rows,
    run_all,
    shown,
    write_csv,
)
from sim.results import open_run
from sim.scenario import Scenario

METHODS_A_TABLE = 7
OWN = "cost to the end of each method's own convergence"


def compare_scenario(
    scenario: Scenario,
    folder: Path,
    out: Path,
    seeds: int,
    only: list[str],
    dry: bool,
    processes: int,
    say: Callable[[str], None],
) -> Iterator[Table]:
    """Run the comparison into `out` and yield its tables for a terminal; `sim.compare.CompareError` if there is none."""
    entries = plan(scenario, out, seeds, only)
    out.mkdir(parents=True, exist_ok=True)

    def done(entry: Entry, count: int, of: int) -> None:
        say(f"{count}/{of} {entry.folder.name}")

    run_all(entries, folder, dry, processes, done)
    tables = {"totals" if dry else OWN: rows(entries, "own")}
    target = scenario.compare.target or scenario.stop.target
    if target is not None and not dry:
        tables[f"cost to accuracy {target}"] = rows(entries, "target", target)
    ours = scenario.compare.ours or next(iter(scenario.compare.methods))
    _write(tables, out, scenario.compare.reference or ours)
    _figures(entries, out)
    headline: dict[str, Any] = {}
    for title, table in tables.items():
        for first in range(0, len(table), METHODS_A_TABLE):
            yield _shown(title, table[first : first + METHODS_A_TABLE], entries)
        baselines = scenario.compare.baselines or [row["method"] for row in table]
        if ours in (row["method"] for row in table) and {row["method"] for row in table} & set(baselines) - {ours}:
            headline[title] = reductions(table, ours, baselines)
            (out / "reductions.json").write_text(json.dumps(headline, indent=2) + "\n", encoding="utf-8")
            yield _headline(ours, headline[title])


def _write(tables: dict[str, list[dict[str, Any]]], out: Path, reference: str) -> None:
    for number, table in enumerate(tables.values(), 1):
        write_csv(table, out / ("table.csv" if number == 1 else f"table-{number}.csv"), reference)
    (out / "table.md").write_text(markdown(tables), encoding="utf-8")
    (out / "table.tex").write_text(latex(tables), encoding="utf-8")


def _figures(entries: list[Entry], out: Path) -> None:
    from sim.plots import draw

    first = [e for e in entries if e.scenario.seed == entries[0].scenario.seed]
    draw([open_run(entry.folder) for entry in first], out / "figures")


def _shown(title: str, table: list[dict[str, Any]], entries: list[Entry]) -> Table:
    costed_as = open_run(entries[0].folder).summary["costed_as"]
    note = f"; costed as {costed_as}" if costed_as else ""
    view = Table(title=f"{title}{note}", title_justify="left", box=None, header_style="bold", padding=(0, 1))
    view.add_column("", no_wrap=True)
    for row in table:
        view.add_column(row["method"], justify="right")
    for name, heading in COLUMNS.items():
        cells = [dict(zip(COLUMNS, values, strict=True))[name] for _, values in shown([*table])]
        view.add_row(heading, *cells)
    return view


def _headline(ours: str, found: dict[str, dict[str, Any]]) -> Table:
    view = Table(title=f"{ours} against the best baseline", title_justify="left", box=None, header_style="bold")
    for heading in ("", "reduction", "factor", "best baseline"):
        view.add_column(heading, no_wrap=True)
    for name, value in found.items():
        view.add_row(COLUMNS[name], f"{value['reduction']:.1%}", f"{value['factor']:.2f}x", value["of"])
    return view
