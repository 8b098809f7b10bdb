"""What one method of a comparison saves against the best other, seed by seed, and whether the seeds
can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from learning.metrics import merit
from sim.compare.costs import COLUMNS
from sim.compare.planned_run import CompareError
from sim.compare.write import from_to
from sim.results.statistics import (
    MOST_SEEDS,
    Costs,
    Interval,
    log_ratios,
    paired_difference,
    paired_ratio,
    seeds_needed,
    variances_of_texts,
)

REDUCED = (
    "time_s",
    "flop",
    "communication_bytes",
    "training_bytes",
    "peak_memory_bytes",
    "energy_j",
)

TOO_FAR_APART = "the looks are too far apart"


def has_learned(row: Mapping[str, Any], learned: float) -> bool:
    """Whether a method's accuracy on validation texts has come up to that, or in one seed at least
    to the table's own target: else it has no part in reductions.
    """
    if row.get("target") is not None:
        return bool(row["reached"])
    if not learned:
        return True
    value, metric = row.get("validated", row.get("chosen")), row.get("metric", "accuracy")
    return value is not None and bool(merit(metric, value) >= merit(metric, learned))


def reductions(
    table: list[dict[str, Any]],
    ours: str,
    baselines: Iterable[str] | None = None,
    learned: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """How much less our method needs than the best baseline (default: any other method but the
    references), column by column; and under "accuracy", how much more accurate it is.

    A method whose accuracy on validation texts stays below `learned` has no part in it: what never
    learns is cheap.
    `factor` is the geometric mean over seeds of theirs / ours (the seeds' worlds are common to
    both), `reduction` is 1 - 1 / factor, between `reduction_low` and `reduction_high` (95 %);
    `said` is a sentence where the seeds cannot tell the two apart. Of a baseline that not all seeds
    brought to the moment, `at_least` says that the reduction is that against its least cost.
    """
    mine = next((row for row in table if row["method"] == ours), None)
    if mine is None:
        raise CompareError(f"the table has no method labelled {ours!r}")
    others = [
        row
        for row in table
        if row["method"] != ours and not row.get("reference") and has_learned(row, learned)
        if baselines is None or row["method"] in baselines
    ]
    found = {}
    if mine.get("ends_at") is None and (accuracy := _more_accurate(mine, others)):
        found["accuracy"] = accuracy
    for name in REDUCED:
        costs = [(cost, row) for row in others if (cost := _least(row, name)) is not None]
        if mine[name] is None or not costs:
            continue
        _, best = min(costs, key=lambda pair: pair[0])
        found[name] = _saved(name, mine, best)
    return found


def _least(row: Mapping[str, Any], name: str) -> float | None:
    """What a method costs, or at least costs; None where no seed came to the moment."""
    if row[name] is not None or not row.get("reached"):
        return row[name]
    return row.get(f"{name}_at_least")


def _saved(name: str, mine: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    a, b = mine[f"{name}_looks"], best[f"{name}_looks"]
    saved: dict[str, Any] = {
        "ours": mine[name],
        "best_other": _least(best, name),
        "of": best["method"],
        "seeds": len(a.at),
        "at_least": best[name] is None,
    }
    if min(b.at) <= 0:  # it needs none
        return (
            saved
            | {"factor": 0.0, "reduction": -math.inf}
            | dict.fromkeys(("reduction_low", "reduction_high", "said"))
        )
    ratio = paired_ratio(a, b)
    return saved | {
        "factor": 1 / ratio.value if ratio.value else math.inf,
        "reduction": 1 - ratio.value,
        "reduction_low": None if ratio.high is None else 1 - ratio.high,
        "reduction_high": None if ratio.low is None else 1 - ratio.low,
        "said": _said_of_ratio(COLUMNS[name], mine["method"], best["method"], a, b, ratio),
    }


def _said_of_ratio(
    what: str, ours: str, other: str, a: Costs, b: Costs, ratio: Interval
) -> str | None:
    seeds = len(a.at)
    if ratio.low is None or ratio.high is None:
        return None
    if ratio.low == ratio.high:
        return f"{what}: the same in every seed, on which it does not depend" if seeds > 1 else None
    if not ratio.low <= 1 <= ratio.high:
        return None
    known = from_to(ratio.low, ratio.high, lambda times: f"{times:.2f}")
    why = TOO_FAR_APART
    if seeds > 1:
        why = _would(seeds_needed(log_ratios(a.at, b.at)) if min(a.at) > 0 else None, seeds)
    return f"{what}: {_cannot_tell(seeds, ours, other)} ({known} times); {why}"


def _more_accurate(
    mine: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> dict[str, Any] | None:
    known = [row for row in others if row["chosen"] is not None]
    if mine["chosen"] is None or not known or not mine.get("test_texts"):
        return None
    best = max(known, key=lambda row: row["chosen"])
    a, b = mine["chosen_each"], best["chosen_each"]
    texts, overlap, seeds = mine["test_texts"], mine["test_overlap"], len(a)
    more = paired_difference(a, b, texts, overlap)
    said = None
    if more.low is not None and more.high is not None and more.low <= 0 <= more.high:
        said = f"accuracy: {_cannot_tell(seeds, mine['method'], best['method'])} on {texts:,} texts"
        said += f" ({100 * more.low:+.1f} to {100 * more.high:+.1f} points)"
        if seeds > 1:
            each = [x - y for x, y in zip(a, b, strict=True)]
            below, above = variances_of_texts(a, b, texts)
            stays = overlap * (below if more.value > 0 else above)
            needed = seeds_needed(each, stays)
            said += f"; {_would(needed, seeds)}{'' if needed else '; more test texts might'}"
    return {
        "ours": mine["chosen"],
        "best_other": best["chosen"],
        "of": best["method"],
        "seeds": seeds,
        "difference": more.value,
        "difference_low": more.low,
        "difference_high": more.high,
        "said": said,
    }


def _cannot_tell(seeds: int, ours: str, other: str) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)} cannot tell {ours} from {other}"


def _would(needed: int | None, seeds: int) -> str:
    if needed is None:
        return f"nor would {MOST_SEEDS:,}, if the difference is what these show"
    if needed <= seeds:
        return f"{TOO_FAR_APART}, or the test texts too few"
    return f"about {needed:,} would, if the difference is what these show"
