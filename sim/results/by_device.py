"""How well each device is served: the accuracy of the model that it has, on its own mix of classes.

Devices hold texts to train on and none to test on. So a device's accuracy is that on the test
texts, each class weighted by its share of the device's own texts: what it would see if its future
were like its past. The model is the server's with the device's backbone, or the device's own where
a method leaves it one.
"""

from __future__ import annotations

import math

import numpy as np

from learning.metrics import Score
from sim.simulation import Simulation


def accuracy_by_device(sim: Simulation) -> list[float | None]:
    """The last look's, of every device in order; None where there is none: nothing was learned, its
    model is not finite, nobody looked at it, its classes are not tested, or there are ratings.
    """
    found: list[float | None] = []
    for device in sim.devices:
        if sim.personal:
            score = sim.personal.get(device.id)
        else:
            score = sim.scores.get(device.backbone)
        found.append(None if score is None else _on_mix(score, sim.task.labels[device.samples]))
    return found


def _on_mix(score: Score, labels_N: np.ndarray) -> float | None:
    if not score["by_class"]:
        return None
    texts_C = np.bincount(labels_N, minlength=len(score["by_class"])).tolist()
    known = [
        (texts, right)
        for texts, right in zip(texts_C, score["by_class"], strict=True)
        if right is not None
    ]
    total = sum(texts for texts, _ in known)
    return math.fsum(texts * right for texts, right in known) / total if total else None


def spread(values: list[float | None]) -> dict[str, float | None]:
    """Mean, 10th percentile, worst and best of what is known, as LEAF reports clients (Caldas et
    al., arXiv 1812.01097), and of how many devices that is.
    """
    known = [value for value in values if value is not None]
    if not known:
        return {"devices": 0, "mean": None, "p10": None, "worst": None, "best": None}
    return {
        "devices": len(known),
        "mean": math.fsum(known) / len(known),
        "p10": float(np.percentile(known, 10)),
        "worst": min(known),
        "best": max(known),
    }
