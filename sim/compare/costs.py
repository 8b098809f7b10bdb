"""What one run had cost up to a moment, mean a device; and the moments up to which it is counted.

Costs are counted up to two moments: the end of a method's own convergence (the first time within
half a point of its own best, as the papers count, on texts held out for that) and the time it
reaches the common target. Both lie between two looks at the accuracy.
"""

from __future__ import annotations

import math

import numpy as np

from learning.metrics import merit
from sim.privacy.measures import SAID
from sim.results.looks import Moment, converged
from sim.results.run import Run, encode
from sim.results.span_table import is_waste, of_devices

COLUMNS = {
    "final": "accuracy, final",
    "chosen": "accuracy, chosen by validation",
    "device_p10": "accuracy by device at the end, 10th percentile",
    "device_worst": "accuracy by device at the end, worst",
    "time_s": "time",
    "flop": "compute a device",
    "uplink_bytes": "uplink a device",
    "downlink_bytes": "downlink a device",
    "training_bytes": "up and down a device",
    "delivery_bytes": "delivery a device",
    "communication_bytes": "communication a device, with delivery",
    "peak_memory_bytes": "peak memory a device",
    "energy_j": "energy a device",
    "waiting_s": "waiting a device",
    "wasted_bytes": "wasted bytes",
    "updates": "updates",
    **SAID,
}


def is_untrained(run: Run, at_s: float) -> bool:
    """Whether the model of that moment had had no update yet."""
    return not _last_before(*run.curve("updates"), np.array([at_s]))[0]


def own_convergence(run: Run) -> Moment | None:
    """The look that validation chooses; None where nothing had been learned by then."""
    moment = converged(run)
    return None if moment is None or is_untrained(run, moment.at_s) else moment


def reached(run: Run, target: float | None) -> Moment | None:
    """When accuracy came to the target, in a line between two looks; None if it never got there, or
    without one.
    """
    time_s, accuracy = run.curve(run.metric)
    if target is None or not len(accuracy):
        return None
    worth, wanted = merit(run.metric, accuracy), float(merit(run.metric, target))
    if worth.max() < wanted:
        return None
    look = int(np.argmax(worth >= wanted))
    after_s = float(time_s[look])
    if not look:
        return Moment(0.0, after_s, after_s)
    before_s, below = float(time_s[look - 1]), worth[look - 1]
    share = (wanted - below) / (worth[look] - below)
    at_s = after_s if share == 1 else before_s + float(share) * (after_s - before_s)
    return Moment(before_s, at_s, after_s)


def costs_until(run: Run, until_s: float) -> dict[str, float]:
    """Mean costs a device of everything that had ended by a moment, and the whole fleet's wasted
    bytes.
    """
    return {name: float(values[0]) for name, values in costs_at(run, np.array([until_s])).items()}


def costs_at(run: Run, times_s: np.ndarray) -> dict[str, np.ndarray]:
    """The same at each of some moments [n], each cost as float64 [n].

    A device that cannot predict has not been served, so `communication_bytes` has, beside what
    training sent up and down by then, the one delivery of what is trained that every device
    needs, whenever that is; downloads after the training, which are that delivery, are not counted
    twice.
    Peak memory is of the whole run, the mean over the devices that did any work.
    """
    spans = run.spans(["actor", "kind", "start_s", "end_s", "nbytes", "flop", "joules", "outcome"])
    spans = of_devices(spans)
    end_s, devices = spans["end_s"].to_numpy(), run.devices()
    order = np.argsort(end_s, kind="stable")
    ended = np.searchsorted(end_s[order], times_s, side="right")
    code, kinds = encode(spans["kind"])
    kind = np.array(kinds, dtype=object)[code]

    def until(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(np.where(chosen, values, 0.0)[order])])[ended]

    nbytes = spans["nbytes"].to_numpy().astype(float)
    everything = np.ones(len(end_s), dtype=bool)
    trained_at_s = run.summary["trained_at_s"]
    starts_s = spans["start_s"].to_numpy()
    is_delivery = starts_s >= (math.inf if trained_at_s is None else trained_at_s)
    up = until(nbytes, kind == "upload") / len(devices)
    down = until(nbytes, (kind == "download") & ~is_delivery) / len(devices)
    delivery = np.full(len(times_s), devices["delivery_bytes"].to_numpy().mean())
    peak = devices["peak_memory_bytes"].to_numpy()
    peak = peak[peak > 0]
    return {
        "time_s": np.asarray(times_s, dtype=float),
        "flop": until(spans["flop"].to_numpy(), kind == "compute") / len(devices),
        "uplink_bytes": up,
        "downlink_bytes": down,
        "training_bytes": up + down,
        "delivery_bytes": delivery,
        "communication_bytes": up + down + delivery,
        "peak_memory_bytes": np.full(
            len(times_s), math.fsum(peak) / len(peak) if len(peak) else 0.0
        ),
        "energy_j": until(spans["joules"].to_numpy(), everything) / len(devices),
        "waiting_s": until(end_s - spans["start_s"].to_numpy(), kind == "wait") / len(devices),
        "wasted_bytes": until(nbytes, is_waste(spans)),
        "updates": _last_before(*run.curve("updates"), times_s),
    }


def _last_before(at_s: np.ndarray, value: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """What a metric had last been noted as at each moment; 0 before its first note."""
    return np.concatenate([[0.0], value])[np.searchsorted(at_s, times_s, side="right")]
