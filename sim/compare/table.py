"""One table of what methods cost: means over seeds with intervals.

A method that never reaches the moment up to which costs are counted says so and stays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learning.metrics import CORRELATIONS, LESS_IS_BETTER
from sim.compare.costs import costs_at, is_untrained, reached
from sim.compare.planned_run import PlannedRun
from sim.privacy.measures import SAID, measures_in
from sim.results.looks import Moment, chosen_score, converged, validated_score
from sim.results.run import Run, open_run
from sim.results.statistics import Costs, Interval, between_looks, of_accuracy, over_seeds

OF_BACKBONE = "final, "
BY_DEVICE = {"device_p10": "p10", "device_worst": "worst"}


def rows(
    entries: list[PlannedRun], protocol: str, target: float | None = None
) -> list[dict[str, Any]]:
    """One row a method: means over its seeds, the ends of their 95 % intervals (`..._low`,
    `..._high`) and each seed's value (`..._each`). References come last.

    `protocol` is "own" (up to the end of its own convergence) or "target" (up to the common
    target). A method of which some seed does not reach the moment has None in its costs, and the
    least that they are in the mean in `..._at_least`: that seed's until its run's end. `diverged`
    counts the seeds that diverged, `diverged_without` those that did before the moment.
    """
    table = []
    for label in dict.fromkeys(entry.label for entry in entries):
        mine = [entry for entry in entries if entry.label == label]
        runs = [open_run(entry.folder) for entry in mine]
        is_reference = getattr(getattr(mine[0].scenario, "method", None), "is_reference", False)
        row = {"method": label, "kind": runs[0].method, "seeds": len(runs)}
        row["ends_at"] = _ends_at(runs[0])
        table.append({**row, "reference": is_reference, **_row(runs, protocol, target)})
    return sorted(table, key=lambda row: row["reference"])


def _row(runs: list[Run], protocol: str, target: float | None) -> dict[str, Any]:
    moments = [_moment(run, protocol, target) for run in runs]
    starts = [
        moment is not None and is_untrained(run, moment.at_s)
        for run, moment in zip(runs, moments, strict=True)
    ]
    if protocol != "own" or runs[0].summary["dry"]:
        starts = [False] * len(runs)
    known = [None if start else moment for start, moment in zip(starts, moments, strict=True)]
    row: dict[str, Any] = {
        **_accuracies(runs),
        **_privacy(runs),
        "diverged": sum(run.has_diverged for run in runs),
        "diverged_without": sum(
            run.has_diverged and moment is None for run, moment in zip(runs, known, strict=True)
        ),
        "never_above_start": sum(starts),
        "reached": sum(moment is not None for moment in known),
        "target": None if protocol == "own" else target,
    }
    costs = [
        costs_at(run, np.array(moment or (run.summary["virtual_time_s"],) * 3, dtype=float))
        for run, moment in zip(runs, known, strict=True)
    ]
    for name in costs[0]:
        looks = Costs(*np.array([cost[name] for cost in costs]).T.tolist())
        if None not in known:
            row |= _columns(name, between_looks(*looks))
            row |= {f"{name}_each": looks.at, f"{name}_looks": looks}
        else:
            row |= {**dict.fromkeys(_columns(name, Interval(0, 0, 0)))}
            row[f"{name}_each"] = [
                value if moment else None for value, moment in zip(looks.at, known, strict=True)
            ]
            if not any(starts):
                row[f"{name}_at_least"] = math.fsum(looks.at) / len(runs)
                row[f"{name}_looks"] = looks
    return row


def _ends_at(run: Run) -> float | None:
    """The accuracy that ended a run, or would have, so that it is no more than that; None where
    nothing did.
    """
    stop = run.manifest["scenario"].get("stop") or {}
    return None if run.summary["dry"] else stop.get("target")


def _moment(run: Run, protocol: str, target: float | None) -> Moment | None:
    if run.summary["dry"]:
        return Moment(*(run.summary["virtual_time_s"],) * 3)
    return converged(run) if protocol == "own" else reached(run, target)


def _accuracies(runs: list[Run]) -> dict[str, Any]:
    """Accuracy at the end, at the look that validation chose, of each backbone, if several, and of
    the devices that are served worst.
    """
    backbones = runs[0].summary["by_backbone"]
    scores: dict[str, list[float | None]] = {
        "final": [run.summary["final"] for run in runs],
        "chosen": [chosen_score(run) for run in runs],
    }
    for name in backbones if len(backbones) > 1 else ():
        scores[f"{OF_BACKBONE}{name}"] = [run.summary["by_backbone"].get(name) for run in runs]
    for name, key in BY_DEVICE.items():
        scores[name] = [(run.summary.get("accuracy_by_device") or {}).get(key) for run in runs]
    least = -1.0 if runs[0].metric in CORRELATIONS else 0.0
    most = math.inf if runs[0].metric in LESS_IS_BETTER else 1.0
    texts, overlap = _test_texts(runs[0])
    row: dict[str, Any] = {"test_texts": texts, "test_overlap": overlap}
    for name, values in scores.items():
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            found = Interval(0, 0, 0)
        elif texts and name not in BY_DEVICE:  # of these the texts' part has no formula
            found = of_accuracy(known, texts, overlap)
        else:
            found = _between(least, over_seeds(known), most)
        row |= _columns(name, found if len(known) == len(values) else None)
        row[f"{name}_each"] = values
    validated = [score for run in runs if (score := validated_score(run)) is not None]
    row["validated"] = math.fsum(validated) / len(runs) if len(validated) == len(runs) else None
    row["metric"] = runs[0].metric
    row["accuracies"] = [name for name in scores if name.startswith(OF_BACKBONE)]
    return row


def _privacy(runs: list[Run]) -> dict[str, Any]:
    """The most that attacks on its runs got, where all were tried; and what a guess gets."""
    each = [measures_in(run) for run in runs]
    row: dict[str, Any] = {}
    for name in SAID:
        if all(name in found for found in each):
            got = _between(-1.0, over_seeds([found[name] for found in each]))
            chances = [found[f"{name}_chance"] for found in each]
            row |= {**_columns(name, got), f"{name}_chance": math.fsum(chances) / len(chances)}
    return row


def _between(least: float, found: Interval, most: float = 1.0) -> Interval:
    """An interval of a metric, which is at least that and at most `most`."""
    if found.low is None or found.high is None:
        return found
    return Interval(found.value, max(least, found.low), min(most, found.high))


def _test_texts(run: Run) -> tuple[int, float]:
    """On how many texts it was judged, and which share of them another seed has, too; none where it
    is not a share of texts, so that their own sampling error has no formula.
    """
    if run.metric != "accuracy":
        return 0, 1.0
    judged = run.summary.get("judged_on") or {}
    texts, drawn_of = judged.get("test", 0), judged.get("test_drawn_of", 0)
    return texts, min(1.0, texts / drawn_of) if drawn_of else 1.0


def _columns(name: str, found: Interval | None) -> dict[str, float | None]:
    value, low, high = found or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
