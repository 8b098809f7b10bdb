"""A comparison as one file of numbers, `comparison.json`: its tables with what every seed gave, and
from which commit and settings each cell is. `benchmarks/comparison.py` makes a page of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.compare.planned_run import PlannedRun
from sim.compare.reductions import REDUCED
from sim.compare.write import ACCURACIES
from sim.results.run import open_run
from sim.results.run_directory import read_manifest
from sim.scenario.file import digest


def write_evidence(
    tables: Mapping[str, list[dict[str, Any]]],
    runs: Mapping[str, Sequence[PlannedRun]],
    out: Path,
    **more: Any,
) -> Path:
    """Write `comparison.json`: `more`, and of every table its rows and the runs behind them."""
    made = {
        title: {
            "at": runs[title][0].at,
            "rows": [dict(_kept(row)) for row in table],
            "runs": [origin(entry.folder, entry.label) for entry in runs[title]],
        }
        for title, table in tables.items()
    }
    first = open_run(next(iter(runs.values()))[0].folder)
    about = {"costed_as": first.summary["costed_as"], "judged_on": first.summary["judged_on"]}
    path = out / "comparison.json"
    path.write_text(json.dumps({**more, **about, "tables": made}, indent=1) + "\n", "utf-8")
    return path


def origin(folder: Path, label: str) -> dict[str, Any]:
    """From what a run is: its commit, its seed, and digests of its settings (all but the seed), of
    the world that all methods share (all but seed and method), and of what it gave.
    """
    manifest = read_manifest(folder)
    settings = {key: value for key, value in manifest["scenario"].items() if key != "seed"}
    world = {key: value for key, value in settings.items() if key != "method"}
    return {
        "method": label,
        "seed": manifest["seed"],
        "commit": manifest["git_revision"],
        "settings": digest(settings)[:16],
        "world": digest(world)[:16],
        "digest": manifest["digest"][:16],
    }


def _kept(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Of a row what a page or a reduction needs: each seed's accuracies, and costs about looks."""
    for name, value in row.items():
        each, looks = name.removesuffix("_each"), name.removesuffix("_looks")
        if each != name and each not in ACCURACIES:
            continue
        if looks == name or looks in REDUCED:
            yield name, value
