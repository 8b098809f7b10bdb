"""The effect of each factor: how an outcome differs between its values, all else being equal.

Runs are paired: two that differ in one factor alone share their seed, and so their world. The
difference of a value to the first one is the mean over all other combinations; its interval comes
from the seeds, which alone are drawn at random (the combinations were chosen).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.privacy.measures import SAID
from sim.results.statistics import over_seeds

METHOD = "method"
OUTCOMES = {
    "chosen": "{metric}, chosen by validation",
    "final": "{metric}, final",
    "target.reached_at_s": "time to the target",
    "virtual_time_s": "virtual time",
    "per_device.uplink_bytes.mean": "uplink a device",
    "per_device.downlink_bytes.mean": "downlink a device",
    "per_device.flop.mean": "compute a device",
    "per_device.energy_j.mean": "energy a device",
    "per_device.peak_memory_bytes.mean": "peak memory a device",
    **SAID,
}
"""Column of the long table -> what it is."""

SCORES = ("chosen", "final")
"""What is learned."""
OF_THE_METRIC = (*SCORES, "target.reached_at_s")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Effect:
    """One value of a factor: the outcome's mean over its runs, and the difference to the factor's
    first value over pairs of runs that differ in nothing else.

    `half_width` is that of the difference's 95 % interval over seeds (Student's t), None for fewer
    than two; `least` and `most` are the differences of single combinations (means over seeds): far
    apart, the factor's effect depends on the others.
    """

    outcome: str
    factor: str
    value: Any
    runs: int
    mean: float | None
    pairs: int
    difference: float | None
    half_width: float | None
    least: float | None
    most: float | None


def factors_of(rows: Rows, keys: Sequence[str]) -> dict[str, list[Any]]:
    """What varies: the settings and the method, where they have several values, in order."""
    found = {}
    for name in (*keys, METHOD):
        texts = dict.fromkeys(_key(row[name]) for row in rows)
        if len(texts) > 1:
            found[name] = [json.loads(text) for text in texts]
    return found


def outcomes_of(rows: Rows) -> list[str]:
    """The outcomes that any run has, of those that mean one thing in all."""
    unlike = OF_THE_METRIC if len(metrics_of(rows)) > 1 else ()
    return [
        name
        for name in OUTCOMES
        if name not in unlike and any(number_of(row, name) is not None for row in rows)
    ]


def metrics_of(rows: Rows) -> list[str]:
    """What scores are measured by: several, where a sweep is over `task.metric` or tasks."""
    return list(dict.fromkeys(row["metric"] for row in rows if row.get("metric")))


def effects_of(rows: Rows, keys: Sequence[str]) -> list[Effect]:
    """The effects of all factors on all outcomes, by outcome, factor and value."""
    factors = factors_of(rows, keys)
    return [
        effect
        for outcome in outcomes_of(rows)
        for factor, values in factors.items()
        for effect in _of_factor(rows, outcome, factor, values, [*keys, METHOD])
    ]


def _of_factor(
    rows: Rows, outcome: str, factor: str, values: list[Any], keys: list[str]
) -> list[Effect]:
    others = [key for key in keys if key != factor]
    found: dict[str, dict[tuple[str, Any], float]] = {_key(value): {} for value in values}
    for row in rows:
        number = number_of(row, outcome)
        if number is not None:
            combination = json.dumps([_key(row[key]) for key in others])
            found[_key(row[factor])][combination, row["seed"]] = number
    first = found[_key(values[0])]
    effects = []
    for value in values:
        mine = found[_key(value)]
        paired = {where: mine[where] - first[where] for where in mine if where in first}
        if mine is first:
            paired = {}
        by_seed = _means(paired, 1)
        by_combination = _means(paired, 0)
        effects.append(
            Effect(
                outcome,
                factor,
                value,
                len(mine),
                _mean(list(mine.values())),
                len(paired),
                _mean(list(paired.values())),
                _half_width(by_seed),
                min(by_combination, default=None),
                max(by_combination, default=None),
            )
        )
    return effects


def _means(paired: Mapping[tuple[str, Any], float], part: int) -> list[float]:
    """Mean differences of single seeds (part 1) or combinations (part 0)."""
    grouped: dict[Any, list[float]] = {}
    for where, difference in paired.items():
        grouped.setdefault(where[part], []).append(difference)
    return [math.fsum(each) / len(each) for each in grouped.values()]


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _half_width(by_seed: list[float]) -> float | None:
    if len(by_seed) < 2:
        return None
    value, _, high = over_seeds(by_seed)
    return None if high is None else high - value


def left_out(row: Mapping[str, Any]) -> str | None:
    """Why a finished run is in no effect: its model diverged, or it stalled; None for others."""
    if row.get("ended") == "stalled":
        return "stalled"
    return "diverged" if row.get("final") is None and row.get("diverged.device") else None


def number_of(row: Mapping[str, Any], name: str) -> float | None:
    """An outcome of a run that counts in effects; None where it has none."""
    is_in = row["status"] == "finished" and left_out(row) is None
    return float(row[name]) if is_in and row.get(name) is not None else None


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
