"""One table of what methods cost: means over seeds with intervals, and what one of them saves
against the best other.

A method that never reaches the moment up to which costs are counted says so and stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sim.compare.costs import COLUMNS, converged_at_s, costs_until, reached_at_s
from sim.compare.planned_run import CompareError, PlannedRun
from sim.compare.statistics import interval
from sim.results.run import Run, open_run

OF_BACKBONE = "accuracy, final, "
REDUCED = (
    "time_s",
    "flop",
    "communication_bytes",
    "training_bytes",
    "peak_memory_bytes",
    "energy_j",
)


def rows(
    entries: list[PlannedRun], protocol: str, target: float | None = None
) -> list[dict[str, Any]]:
    """One row a method: means over its seeds, and half-widths (`..._pm`) of 95 % intervals where
    there are several.

    `protocol` is "own" (up to the end of its own convergence) or "target" (up to the common
    target). A method of which some seed does not reach the moment has None in its costs.
    """
    table = []
    for label in dict.fromkeys(entry.label for entry in entries):
        runs = [open_run(entry.folder) for entry in entries if entry.label == label]
        each = [_row(run, protocol, target) for run in runs]
        row: dict[str, Any] = {"method": label, "kind": runs[0].method, "seeds": len(runs)}
        for name in each[0]:
            values = [r.get(name) for r in each]
            row[name], row[f"{name}_pm"] = interval(values)
            row[f"{name}_each"] = values
        row["accuracies"] = [name for name in each[0] if name.startswith(OF_BACKBONE)]
        row["diverged"] = sum(
            run.summary["final"] is None and bool(run.summary.get("diverged")) for run in runs
        )
        row["reached"] = sum(r["time_s"] is not None for r in each)
        table.append(row)
    return table


def _row(run: Run, protocol: str, target: float | None) -> dict[str, Any]:
    by_backbone = run.summary["by_backbone"] if len(run.summary["by_backbone"]) > 1 else {}
    accuracies = {"final": run.summary["final"], "best": run.summary["best"]}
    accuracies |= {f"{OF_BACKBONE}{name}": score for name, score in by_backbone.items()}
    until_s = converged_at_s(run) if protocol == "own" else reached_at_s(run, target)
    if run.summary["dry"]:
        until_s = run.summary["virtual_time_s"]
    if until_s is None:
        return {**accuracies, **dict.fromkeys(set(COLUMNS) - {"final", "best"})}
    return {**accuracies, **costs_until(run, until_s)}


def has_learned(row: Mapping[str, Any], learned: float) -> bool:
    """Whether a method's best accuracy has come up to that: else it has no part in reductions."""
    return (row["best"] or 0.0) >= learned


def reductions(
    table: list[dict[str, Any]],
    ours: str,
    baselines: Iterable[str] | None = None,
    learned: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """How much less our method needs than the best baseline (default: any other method), column by
    column.

    A method whose best accuracy stays below `learned` has no part in it: what never learns is
    cheap. With several seeds `reduction` is that of the means and `reduction_pm` the half-width of
    a 95 % interval over the reductions seed by seed (the seeds' worlds are common to both methods).
    """
    mine = next((row for row in table if row["method"] == ours), None)
    if mine is None:
        raise CompareError(f"the table has no method labelled {ours!r}")
    found = {}
    for name in REDUCED:
        others = [
            row
            for row in table
            if row["method"] != ours and row[name] is not None and has_learned(row, learned)
            if baselines is None or row["method"] in baselines
        ]
        if mine[name] is None or not others:
            continue
        best = min(others, key=lambda row: row[name])
        factor = best[name] / mine[name] if mine[name] else math.inf
        found[name] = {
            "ours": mine[name],
            "best_other": best[name],
            "of": best["method"],
            "factor": factor,
        }
        found[name]["reduction"] = 1 - 1 / factor if factor else -math.inf
        pairs = zip(mine.get(f"{name}_each", ()), best.get(f"{name}_each", ()), strict=True)
        found[name]["reduction_pm"] = interval(
            [1 - ours_ / other for ours_, other in pairs if other] or [0.0]
        )[1]
    return found
