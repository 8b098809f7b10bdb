"""What a run comes to: one row a device and `summary.json`, every total a sum over the recorded
spans.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learning.metrics import merit
from sim.kernel.vocabulary import STATES
from sim.results.by_device import accuracy_by_device, spread
from sim.results.host_memory import peak_rss_bytes
from sim.results.span_table import is_waste, joules_by_state, of_devices
from sim.simulation import Simulation


def device_table(sim: Simulation) -> pa.Table:
    """One row a device (devices.parquet): who it is, what it did, summed over its spans."""
    spans = sim.recorder.spans()
    rows: dict[str, list] = {name: [] for name in _DEVICE_TYPES}
    sums = _sums_by_actor(spans)
    rows["accuracy"] = accuracy_by_device(sim)
    for device in sim.devices:
        mine = sums.get(device.id, {})
        member = device.member
        rows["device"].append(device.id)
        rows["device_class"].append(member.device)
        rows["engine"].append(member.engine)
        rows["backbone"].append(member.backbone)
        rows["link"].append(member.link)
        rows["cell"].append(member.cell or "")
        rows["client"].append(device.client or "")
        rows["samples"].append(len(device.samples))
        rows["joined_at_s"].append(device.joined_at_s)
        rows["finished_at_s"].append(device.finished_at_s)
        rows["uplink_bytes"].append(mine.get("upload", NOTHING).nbytes)
        rows["downlink_bytes"].append(mine.get("download", NOTHING).nbytes)
        rows["delivery_bytes"].append(sim.method.delivery_bytes(device))
        rows["flop"].append(mine.get("compute", NOTHING).flop)
        rows["energy_j"].append(math.fsum(of_kind.joules for of_kind in mine.values()))
        rows["peak_memory_bytes"].append(device.peak_memory_bytes)
        rows["busy_s"].append(mine.get("compute", NOTHING).seconds)
        rows["waiting_s"].append(mine.get("wait", NOTHING).seconds)
        own = device.availability
        rows["on_share"].append(1.0 if own is None else own.share(0.0, sim.ended.at_s))
        rows["outcome"].append(device.outcome)
    return pa.table({name: pa.array(rows[name], type_) for name, type_ in _DEVICE_TYPES.items()})


_DEVICE_TYPES = {
    **dict.fromkeys(
        ("device", "device_class", "engine", "backbone", "link", "cell", "client"), pa.string()
    ),
    "samples": pa.int64(),
    **dict.fromkeys(("joined_at_s", "finished_at_s"), pa.float64()),
    **dict.fromkeys(("uplink_bytes", "downlink_bytes", "delivery_bytes"), pa.int64()),
    **dict.fromkeys(("flop", "energy_j"), pa.float64()),
    "peak_memory_bytes": pa.int64(),
    **dict.fromkeys(("busy_s", "waiting_s", "on_share"), pa.float64()),
    "outcome": pa.string(),
    "accuracy": pa.float64(),
}


class _Sums(NamedTuple):
    """Of an actor's spans of one kind."""

    nbytes: int = 0
    flop: float = 0.0
    joules: float = 0.0
    seconds: float = 0.0


NOTHING = _Sums()


def _sums_by_actor(spans: pa.Table) -> dict[str, dict[str, _Sums]]:
    """Sums of bytes, FLOP, joules and seconds by actor and kind."""
    timed = spans.append_column("seconds", pc.subtract(spans["end_s"], spans["start_s"]))
    grouped = timed.group_by(["actor", "kind"], use_threads=False).aggregate(
        [(name, "sum") for name in _Sums._fields]
    )
    names = ("actor", "kind", *(f"{name}_sum" for name in _Sums._fields))
    sums: dict[str, dict[str, _Sums]] = {}
    for actor, kind, *amounts in zip(*(grouped[n].to_pylist() for n in names), strict=True):
        sums.setdefault(actor, {})[sys.intern(kind)] = _Sums(*amounts)
    return sums


def summary(sim: Simulation, digest: str, devices: pa.Table, wall_s: float) -> dict[str, Any]:
    """`summary.json`: SI units, per device as mean, p50, p95 and max."""
    spans, scenario = sim.recorder.spans(), sim.scenario
    curve = _curve(sim.recorder.metrics(), sim.task.metric)
    server = spans.filter(pc.equal(spans["actor"], "server"))
    target = _target(sim, spans)
    return {
        "scenario": scenario.name,
        "method": scenario.method.kind,
        "is_reference": scenario.method.is_reference,
        "seed": scenario.seed,
        "digest": digest,
        "dry": sim.dry,
        "costed_as": sim.costing.charged_as,
        "ended": sim.ended.reason,
        "virtual_time_s": sim.ended.at_s,
        "trained_at_s": sim.trained_at_s,
        "metric": sim.task.metric,
        "judged_on": {
            "test": len(sim.task.test),
            "test_drawn_of": sim.task.test_pool,
            "validation": len(sim.task.validation),
        },
        "final": sim.score,
        "best": max(curve, key=lambda value: merit(sim.task.metric, value)) if curve else None,
        "by_backbone": {
            name: score and score["value"] for name, score in sorted(sim.scores.items())
        },
        "accuracy_by_device": spread(devices["accuracy"].to_pylist()),
        "diverged": sim.tally.diverged
        and {**sim.tally.diverged, "answers_left_out": sim.tally.left_out},
        "target": target,
        "rounds": sim.tally.rounds,
        "rounds_without_answer": sim.tally.without_answer,
        "totals": {
            **_totals(spans),
            "server_flop": _sum(server, "flop"),
            "server_busy_s": math.fsum(
                _durations(server.filter(pc.not_equal(server["kind"], "wait")))
            ),
            "server_energy_j": _sum(server, "joules"),
            **_wasted(spans),
            "updates": sim.updates,
        },
        "energy_by_state": _energy_by_state(spans),
        "per_device": {
            name: _spread(devices[name])
            for name in (
                *("uplink_bytes", "downlink_bytes", "delivery_bytes"),
                *("flop", "energy_j", "peak_memory_bytes"),
                *("busy_s", "waiting_s", "finished_at_s", "on_share"),
            )
        },
        **getattr(sim.method, "findings", dict)(),
        "remarks": list(sim.remarks),
        "outcomes": {
            row["values"]: row["counts"] for row in pc.value_counts(devices["outcome"]).to_pylist()
        },
        "host": {
            "wall_s": wall_s,
            "pieces_of_learning": sim.host.pieces,
            "pieces_recalled": sim.host.recalled,
            "events": next(sim.env._eid),
            "peak_rss_bytes": peak_rss_bytes(),
        },
    }


def _target(sim: Simulation, spans: pa.Table) -> dict[str, Any]:
    """The target and what had been spent when it was reached: spans that had ended by then."""
    reached_at_s = sim.ended.target.get("reached_at_s")
    spent: Mapping[str, float | None] = dict.fromkeys(
        ("uplink_bytes", "downlink_bytes", "device_flop", "device_energy_j")
    )
    if reached_at_s is not None:
        spent = _totals(spans.filter(pc.less_equal(spans["end_s"], reached_at_s)))
    return {"value": sim.scenario.stop.target, "reached_at_s": reached_at_s, **spent}


def _totals(spans: pa.Table) -> dict[str, float]:
    ours = of_devices(spans)
    return {
        "uplink_bytes": int(_sum(_kind(ours, "upload"), "nbytes")),
        "downlink_bytes": int(_sum(_kind(ours, "download"), "nbytes")),
        "device_flop": _sum(_kind(ours, "compute"), "flop"),
        "device_energy_j": _sum(ours, "joules"),
    }


def _energy_by_state(spans: pa.Table) -> dict[str, float]:
    """Joules of all devices by what they were doing; waiting and charging are idle, a device that
    is off draws nothing.
    """
    ours = of_devices(spans)
    joules = joules_by_state(ours, np.zeros(len(ours), dtype=int), 1)[:, 0]
    return {
        state: joules
        for state, joules in zip(STATES, joules.tolist(), strict=True)
        if state != "off"
    }


def _wasted(spans: pa.Table) -> dict[str, float]:
    """What devices sent, received, computed and spent for nothing: in spans that did not end
    well.
    """
    ours = of_devices(spans)
    lost = ours.filter(pa.array(is_waste(ours)))
    return {
        "wasted_bytes": int(_sum(lost, "nbytes")),
        "wasted_flop": _sum(lost, "flop"),
        "wasted_energy_j": _sum(lost, "joules"),
    }


def _kind(spans: pa.Table, kind: str) -> pa.Table:
    return spans.filter(pc.equal(spans["kind"], kind))


def _sum(spans: pa.Table, name: str) -> float:
    return math.fsum(spans[name].to_numpy())


def _durations(spans: pa.Table) -> np.ndarray:
    return spans["end_s"].to_numpy() - spans["start_s"].to_numpy()


def _curve(metrics: pa.Table, name: str) -> list[float]:
    wanted = pc.and_(pc.equal(metrics["name"], name), pc.equal(metrics["group"], ""))
    return metrics.filter(wanted)["value"].to_pylist()


def _spread(column: pa.ChunkedArray) -> dict[str, float | None]:
    values = column.drop_null().to_numpy().astype(float)
    if not len(values):
        return {"mean": None, "p50": None, "p95": None, "max": None}
    return {
        "mean": math.fsum(values) / len(values),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }
