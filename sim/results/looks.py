"""The look at a run that its validation texts choose, never the texts that it is judged on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from learning.metrics import merit
from sim.results.run import Run

CONVERGED_WITHIN = 0.005


class Moment(NamedTuple):
    """When something came about, and the looks between which it must have."""

    before_s: float
    at_s: float
    after_s: float


def converged(run: Run) -> Moment | None:
    """The look that validation chooses: the first within half a point of the run's own best
    accuracy on the validation texts, or within 0.005 nats of its least loss where the metric is a
    perplexity; None without any accuracy.

    The end, where the run has no validation texts: never a choice by the texts it is judged on.
    """
    time_s, accuracy = validation_curve(run)
    if not len(accuracy):
        time_s, _ = run.curve(run.metric)
        return Moment(*(time_s[-1],) * 3) if len(time_s) else None
    worth = merit(run.metric, accuracy)
    look = int(np.argmax(worth >= worth.max() - CONVERGED_WITHIN))
    return Moment(time_s[look - 1] if look else 0.0, time_s[look], time_s[look])


def was_still_improving(run: Run) -> bool:
    """Whether validation chooses the last of several looks, so that more training might have gone
    further.
    """
    time_s, accuracy = validation_curve(run)
    moment = converged(run)
    return len(accuracy) > 1 and moment is not None and bool(moment.at_s == time_s[-1])


def validation_curve(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy over time on the texts that a run may choose by, as `Run.curve`; empty without."""
    is_judged_there = run.manifest["scenario"]["task"].get("judge_on") == "validation"
    return run.curve(run.metric if is_judged_there else f"validation_{run.metric}")


def converged_at_s(run: Run) -> float | None:
    """The time of the look that validation chooses; None without any accuracy."""
    moment = converged(run)
    return None if moment is None else float(moment.at_s)


def chosen_score(run: Run) -> float | None:
    """What the metric was at the look that validation chose; None for a run without any."""
    at_s, (time_s, accuracy) = converged_at_s(run), run.curve(run.metric)
    if at_s is None or not len(accuracy):
        return None
    look = int(np.searchsorted(time_s, at_s, side="right")) - 1
    return float(accuracy[max(0, look)])


def validated_score(run: Run) -> float | None:
    """What the metric is on the validation texts at the look that they choose; as `chosen_score`
    where a run has none.
    """
    at_s, (time_s, accuracy) = converged_at_s(run), validation_curve(run)
    if at_s is None or not len(accuracy):
        return chosen_score(run)
    return float(accuracy[int(np.searchsorted(time_s, at_s))])
