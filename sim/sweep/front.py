"""What a sweep's combinations get for what they cost: each with its means over seeds, and which no
other is better than.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learning.metrics import merit
from sim.sweep.effects import METHOD, SCORES, Rows, metrics_of, number_of

UP, DOWN = "per_device.uplink_bytes.mean", "per_device.downlink_bytes.mean"
BYTES = "bytes a device"


@dataclass(frozen=True)
class FrontPoint:
    """A method at a combination of settings: its cost and score, means over seeds with the least
    and the most of them, whether it is a reference, and whether no other that is none costs as
    little and scores as much.
    """

    method: str
    values: Mapping[str, Any]
    cost: float
    cost_least: float
    cost_most: float
    score: float
    score_least: float
    score_most: float
    seeds: int
    is_reference: bool = False
    on_front: bool = False


def points_of(rows: Rows, keys: Sequence[str], cost: str = BYTES) -> list[FrontPoint]:
    """Every combination whose runs all have a score and a cost: `bytes a device`, up and down, or
    another column's number, of which less is better; by the first score that all runs have. None,
    where scores are of several metrics.
    """
    if len(metrics_of(rows)) > 1:
        return []
    score = next((s for s in SCORES if all(_of(row, s) is not None for row in rows)), "final")
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(json.dumps([row[METHOD], *(row[key] for key in keys)]), []).append(row)
    found = []
    for mine in cells.values():
        costs = [_of(row, cost) for row in mine]
        scores = [_of(row, score) for row in mine]
        x = np.array([c for c in costs if c is not None])
        y = np.array([s for s in scores if s is not None])
        if len(x) < len(mine) or len(y) < len(mine):
            continue
        values = {key: mine[0][key] for key in keys}
        x_ends, y_ends = (float(x.min()), float(x.max())), (float(y.min()), float(y.max()))
        # a mean of equal numbers may be another in its last bit
        means = float(x.mean().clip(*x_ends)), float(y.mean().clip(*y_ends))
        found.append(
            FrontPoint(
                *(mine[0][METHOD], values, means[0], *x_ends, means[1], *y_ends, len(mine)),
                is_reference=bool(mine[0].get("is_reference")),
            )
        )
    return _with_front(found, next(iter(metrics_of(rows)), ""))


def _of(row: Mapping[str, Any], name: str) -> float | None:
    if name != BYTES:
        return number_of(row, name)
    up, down = number_of(row, UP), number_of(row, DOWN)
    return None if up is None or down is None else up + down


def _with_front(points: list[FrontPoint], metric: str) -> list[FrontPoint]:
    """Those that no other beats: at most its cost and at least as good a score, and one of the two
    better.
    """

    def is_beaten(point: FrontPoint) -> bool:
        return point.is_reference or any(
            not other.is_reference
            and other.cost <= point.cost
            and merit(metric, other.score) >= merit(metric, point.score)
            and (other.cost, other.score) != (point.cost, point.score)
            for other in points
        )

    return [FrontPoint(**{**vars(point), "on_front": not is_beaten(point)}) for point in points]
