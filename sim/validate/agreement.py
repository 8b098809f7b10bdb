"""How far a simulated run and a real one are apart: makespan, finish times, every span, every byte,
accuracy.

An error is (simulated - real) / real, so that a model that is too optimistic has a negative one.
Spans are matched by actor and kind, in their order; percentiles are of the errors' magnitudes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from itertools import combinations
from math import fsum, isfinite
from typing import Any

import numpy as np

from sim.kernel.vocabulary import DEVICE, SERVER_WORK
from sim.results.run import Run, finish_times
from sim.simulation import Simulation

GROUPS = {
    "device compute": (DEVICE, ("compute",)),
    "uploads": (DEVICE, ("upload",)),
    "downloads": (DEVICE, ("download",)),
    "server compute": ("server", SERVER_WORK),
}


def agreement(simulated: Run, real: Run) -> dict[str, Any]:
    """Every measure of one pair of runs; nothing is left out when spans have no partner: they are
    counted.
    """
    a, b = _spans(simulated), _spans(real)
    spans = {}
    for group, (actor, kinds) in GROUPS.items():
        keys = sorted(
            key for key in a.keys() | b.keys() if key[0].startswith(actor) and key[1] in kinds
        )
        if keys:
            spans[group] = _errors(_paired(a, b, keys))
            spans[group]["unmatched"] = sum(
                abs(len(a.get(k, ())) - len(b.get(k, ()))) for k in keys
            )
    finish_a, finish_b = (finish_times(run.devices()) for run in (simulated, real))
    return {
        "makespan": _error(simulated.summary["virtual_time_s"], real.summary["virtual_time_s"]),
        "finish times": _errors(zip(finish_a.tolist(), finish_b.tolist(), strict=True)),
        "spans": spans,
        "bytes": _bytes(a, b),
        "accuracy": {"simulated": simulated.summary["final"], "real": real.summary["final"]},
    }


def transfers_from_real_starts(world: Simulation, real: Run) -> dict[str, Any]:
    """The links' model alone: each transfer of a real run, begun in a fresh `world` at the moment
    at which it really began.

    In a closed loop a small difference moves who meets whom on a link, and two right timelines
    differ span by span.
    """
    pairs: dict[str, list[tuple[float, float]]] = {"upload": [], "download": []}

    def transfer(device: str, kind: str, start_s: float, end_s: float, nbytes: int) -> Generator:
        yield world.env.timeout(start_s)
        yield getattr(world.network, kind)(device, nbytes)
        pairs[kind].append((world.env.now - start_s, end_s - start_s))

    for (actor, kind), spans in _spans(real).items():
        if actor.startswith(DEVICE) and kind in pairs:
            for span in spans:
                world.env.process(
                    transfer(actor, kind, span["start_s"], span["end_s"], span["nbytes"])
                )
    world.env.run()
    return {
        f"{kind}s from their real starts": _errors(found) for kind, found in pairs.items() if found
    }


def _spans(run: Run) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list] = {}
    for span in sorted(run.spans().to_pylist(), key=lambda span: span["start_s"]):
        found.setdefault((span["actor"], span["kind"]), []).append(span)
    return found


def _paired(a: dict, b: dict, keys: Iterable[tuple[str, str]]) -> list[tuple[float, float]]:
    pairs = [pair for key in keys for pair in zip(a.get(key, ()), b.get(key, ()), strict=False)]
    return [
        (one["end_s"] - one["start_s"], other["end_s"] - other["start_s"]) for one, other in pairs
    ]


def _error(simulated_s: float, real_s: float) -> dict[str, float]:
    return {"simulated_s": simulated_s, "real_s": real_s, "error": (simulated_s - real_s) / real_s}


def _errors(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    pairs = [
        pair for pair in pairs if all(map(isfinite, pair))
    ]  # who never finished has no finish time
    if not pairs:
        return {"n": 0}
    simulated_s, real_s = np.array(pairs).T
    error = (simulated_s - real_s) / real_s
    size = np.abs(error)
    return {
        "n": len(pairs),
        "p50": float(np.percentile(size, 50)),
        "p95": float(np.percentile(size, 95)),
        "max": float(size.max()),
        "mean": float(error.mean()),
        "total": float((simulated_s.sum() - real_s.sum()) / real_s.sum()),
    }


def _bytes(a: dict, b: dict) -> dict[str, Any]:
    """Transfer by transfer: what was charged against what the receiving sockets counted."""
    result: dict[str, Any] = {"exact": True, "first_difference": None}
    for kind in ("upload", "download"):
        keys = sorted(key for key in a.keys() | b.keys() if key[1] == kind)
        charged = {key: [span["nbytes"] for span in a.get(key, ())] for key in keys}
        counted = {key: [span["nbytes"] for span in b.get(key, ())] for key in keys}
        result[kind] = {
            "simulated": sum(map(sum, charged.values())),
            "real": sum(map(sum, counted.values())),
        }
        for key in keys:
            if charged[key] != counted[key] and result["exact"]:
                result |= {
                    "exact": False,
                    "first_difference": [key[0], kind, charged[key], counted[key]],
                }
    return result


def spread(runs: list[Run]) -> dict[str, Any]:
    """The real thing's own: makespans from least to most, and the errors of later runs taken
    against the first.
    """
    makespans_s = [run.summary["virtual_time_s"] for run in runs]
    mean_s = fsum(makespans_s) / len(makespans_s)
    return {
        "makespans_s": makespans_s,
        "makespan": (max(makespans_s) - min(makespans_s)) / mean_s,
        "against_first": [agreement(run, runs[0]) for run in runs[1:]],
    }


def ranking(simulated_s: dict[str, float], real_s: dict[str, float]) -> dict[str, Any]:
    """Both orders of the methods, fastest first, and the pairs on which they differ."""
    orders = [sorted(times, key=times.__getitem__) for times in (simulated_s, real_s)]
    swapped = [
        [one, other]
        for one, other in combinations(simulated_s, 2)
        if (simulated_s[one] < simulated_s[other]) != (real_s[one] < real_s[other])
    ]
    return {"simulated": orders[0], "real": orders[1], "agrees": not swapped, "swapped": swapped}
