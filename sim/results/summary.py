"""What a run comes to: one row a device and `summary.json`, every total a sum over the recorded
spans.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learning.metrics import merit
from sim.results.by_device import accuracy_by_device, spread
from sim.results.host_memory import peak_rss_bytes
from sim.results.span_table import SUMMED, summed
from sim.simulation import Simulation


def device_table(sim: Simulation) -> pa.Table:
    """One row a device (devices.parquet): who it is, what it did, summed over its spans."""
    devices, members = sim.devices, [device.member for device in sim.devices]
    sums = sim.recorder.sums_by_kind([device.id for device in devices])
    up_bytes, down_bytes = sums["upload"][0], sums["download"][0]
    _, flop, _, busy_s = sums["compute"]
    waiting_s, at_s = sums["wait"][3], sim.ended.at_s
    columns = {
        "device": [device.id for device in devices],
        "device_class": [member.device for member in members],
        "engine": [member.engine for member in members],
        "backbone": [member.backbone for member in members],
        "link": [member.link for member in members],
        "cell": [member.cell or "" for member in members],
        "client": [device.client or "" for device in devices],
        "samples": [len(device.samples) for device in devices],
        "joined_at_s": [device.joined_at_s for device in devices],
        "finished_at_s": [device.finished_at_s for device in devices],
        "uplink_bytes": up_bytes.astype(np.int64),
        "downlink_bytes": down_bytes.astype(np.int64),
        "delivery_bytes": [sim.method.delivery_bytes(device) for device in devices],
        "flop": flop,
        "energy_j": [
            math.fsum(own) for own in zip(*(of_kind[2] for of_kind in sums.values()), strict=True)
        ],
        "peak_memory_bytes": [device.peak_memory_bytes for device in devices],
        "busy_s": busy_s,
        "waiting_s": waiting_s,
        "on_share": [
            1.0 if device.availability is None else device.availability.share(0.0, at_s)
            for device in devices
        ],
        "outcome": [device.outcome for device in devices],
        "accuracy": accuracy_by_device(sim),
    }
    return pa.table({name: pa.array(columns[name], type_) for name, type_ in _DEVICE_TYPES.items()})


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


def summary(sim: Simulation, digest: str, devices: pa.Table, wall_s: float) -> dict[str, Any]:
    """`summary.json`: SI units, per device as mean, p50, p95 and max."""
    scenario = sim.scenario
    curve = _curve(sim.recorder.metrics(), sim.task.metric)
    totals = summed(sim.recorder.span_blocks(SUMMED))
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
        "target": _target(sim),
        "rounds": sim.tally.rounds,
        "rounds_without_answer": sim.tally.without_answer,
        "totals": {
            **totals.amounts,
            "updates": sim.updates,
        },
        "energy_by_state": {
            state: joules for state, joules in totals.state_j.items() if state != "off"
        },
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
            "workers": sim.host.workers,
            "pieces_of_learning": sim.host.pieces,
            "pieces_recalled": sim.host.recalled,
            "events": next(sim.env._eid),
            "peak_rss_bytes": peak_rss_bytes(),
        },
    }


def _target(sim: Simulation) -> dict[str, Any]:
    """The target and what had been spent when it was reached: spans that had ended by then."""
    reached_at_s = sim.ended.target.get("reached_at_s")
    spent: dict[str, float | None] = dict.fromkeys(
        ("uplink_bytes", "downlink_bytes", "device_flop", "device_energy_j")
    )
    if reached_at_s is not None:
        by_then = (
            block.filter(pc.less_equal(block["end_s"], reached_at_s))
            for block in sim.recorder.span_blocks(SUMMED)
        )
        amounts = summed(by_then).amounts
        spent = {name: amounts[name] for name in spent}
    return {"value": sim.scenario.stop.target, "reached_at_s": reached_at_s, **spent}


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
