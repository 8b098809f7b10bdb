"""A run directory made of plain numpy: the recorder's schemas, without a simulation behind them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = {  # seconds of compute a batch, seconds of upload a batch, watts while computing
    "jetson-tx2": (6.0, 4.0, 9.0),
    "jetson-xavier-nx": (3.0, 1.5, 12.0),
    "jetson-agx-xavier": (1.5, 1.0, 20.0),
}
BACKBONES = ("minilm-l2", "minilm-l4", "minilm-l6")


def write_run(
    path: Path,
    n_devices: int = 30,
    batches: int = 12,
    seed: int = 0,
    dry: bool = False,
    costed_as: str | None = None,
    method: str = "fed-mobillm",
    oom_share: float = 0.04,
    loss_share: float = 0.02,
    server_s: float = 0.35,
    nbytes: int = 400_000,
) -> Path:
    """Write a run of `n_devices` that compute, wait and upload `batches` times each; a few fail."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    names = np.array([f"device-{i:04d}" for i in range(n_devices)], dtype=object)
    kind_of = np.sort(rng.choice(len(CLASSES), n_devices, p=[0.4, 0.35, 0.25]))
    classes = np.array(list(CLASSES), dtype=object)[kind_of]
    rates = np.array(list(CLASSES.values()))[kind_of]
    speed = rng.lognormal(0.0, 0.15, n_devices)
    joined_s = rng.exponential(2.0, n_devices).cumsum() % 120.0
    oom = rng.random(n_devices) < (oom_share if n_devices > 1 else 0.0)

    base = np.stack([rates[:, 0] * speed, np.full(n_devices, 0.5), rates[:, 1] * speed], axis=1)
    took = base[:, None, :] * rng.lognormal(0.0, 0.2, (n_devices, batches, 3))
    edges = joined_s[:, None] + np.concatenate(
        [np.zeros((n_devices, 1)), took.reshape(n_devices, -1).cumsum(1)], axis=1
    )
    start, end = (
        edges[:, :-1].reshape(n_devices, batches, 3),
        edges[:, 1:].reshape(n_devices, batches, 3),
    )
    alive = np.broadcast_to(
        (~oom[:, None, None]) | (np.arange(batches)[None, :, None] < 1), start.shape
    )
    lost = rng.random((n_devices, batches)) < loss_share
    payload = np.arange(n_devices * batches).reshape(n_devices, batches)

    spans = {
        key: []
        for key in (
            "actor",
            "kind",
            "start_s",
            "end_s",
            "nbytes",
            "flop",
            "joules",
            "outcome",
            "flows",
        )
    }

    def add(actor, kind, start_s, end_s, size=0, flop=0.0, joules=0.0, outcome="ok", flows=None):
        count = len(start_s)
        row = (actor, kind, start_s, end_s, size, flop, joules, outcome)
        for key, value in zip(list(spans)[:-1], row, strict=True):
            spans[key].extend(np.broadcast_to(np.asarray(value), count).tolist())
        spans["flows"].extend([[int(k)] for k in flows] if flows is not None else [[]] * count)

    device, batch = np.nonzero(alive[:, :, 0])
    for step, (kind, watts) in enumerate(
        (("compute", rates[:, 2]), ("wait", 1.5), ("upload", 2.5))
    ):
        s, e = start[device, batch, step], end[device, batch, step]
        joules = (e - s) * (watts[device] if isinstance(watts, np.ndarray) else watts)
        size = nbytes if kind == "upload" else 0
        outcome = np.where(
            oom[device] & (step == 2),
            "oom",
            np.where(lost[device, batch] & (step == 2), "lost", "ok"),
        )
        flows = payload[device, batch] if kind == "upload" else None
        add(
            names[device],
            kind,
            s,
            e,
            size,
            2e9 if kind == "compute" else 0.0,
            joules,
            outcome,
            flows,
        )
    arrived = ~lost[device, batch] & ~oom[device]
    arrival = end[device, batch, 2][arrived]
    order = np.argsort(arrival, kind="stable")
    arrival, used = arrival[order], payload[device, batch][arrived][order]
    ticks = np.arange(len(arrival))
    done = server_s * (ticks + 1) + np.maximum.accumulate(
        arrival - server_s * ticks
    )  # first come, first served
    add("server", "train", done - server_s, done, 0, 5e9, 0.0, "ok", used)
    for cell in ("cell-a", "cell-b"):
        hours = np.arange(0.0, end[alive].max(), 10.0)
        add(f"link:{cell}", "carry", hours, hours + 7.0, 5_000_000)
    table = pa.table(spans | {"flows": pa.array(spans["flows"], pa.list_(pa.int64()))})
    pq.write_table(table.cast(_spans_schema()), path / "spans.parquet")

    uplink = nbytes * alive[:, :, 0].sum(1)
    up_j = (took[:, :, 2] * alive[:, :, 2]).sum(1) * 2.5
    finished = np.where(oom, np.nan, edges[:, -1])
    devices = pa.table(
        {
            "device": names.tolist(),
            "device_class": classes.tolist(),
            "engine": ["torch"] * n_devices,
            "backbone": np.array(BACKBONES, dtype=object)[kind_of].tolist(),
            "link": np.where(kind_of == 0, "lte", "wifi-home").tolist(),
            "cell": np.where(np.arange(n_devices) % 2, "cell-a", "cell-b").tolist(),
            "samples": np.full(n_devices, 16 * batches),
            "joined_at_s": joined_s,
            "finished_at_s": pa.array(finished, from_pandas=True),
            "uplink_bytes": uplink,
            "downlink_bytes": np.full(n_devices, 90_000_000 // batches // 40),
            "delivery_bytes": np.full(n_devices, 90_000_000 // batches // 40),
            "flop": np.full(n_devices, 2e9 * batches),
            "energy_j": (took[:, :, 0] * alive[:, :, 0]).sum(1) * rates[:, 2]
            + (took[:, :, 1] * alive[:, :, 1]).sum(1) * 1.5
            + up_j,
            "peak_memory_bytes": np.full(n_devices, 300_000_000),
            "busy_s": took[:, :, 0].sum(1),
            "waiting_s": took[:, :, 1].sum(1),
            "outcome": np.where(oom, "oom", "ok").tolist(),
        }
    )
    pq.write_table(devices, path / "devices.parquet")

    ends_s = float(max(done.max(initial=0.0), end[alive].max()))
    time_s = np.linspace(0.0, ends_s, 40)
    sent = np.searchsorted(np.sort(end[device, batch, 2]), time_s, side="right") * float(nbytes)
    rows = [(t, "uplink_bytes", v, "") for t, v in zip(time_s, sent, strict=True)]
    reached = None
    if not dry:
        fleet = np.zeros(len(time_s))
        for index, backbone in enumerate(BACKBONES):
            noise = rng.normal(0.0, 0.008, len(time_s))
            value = 0.17 + (0.62 + 0.04 * index) * (1 - np.exp(-time_s / (0.2 * ends_s))) + noise
            fleet += value / len(BACKBONES)
            rows += [(t, "accuracy", v, backbone) for t, v in zip(time_s, value, strict=True)]
        rows += [(t, "accuracy", v, "") for t, v in zip(time_s, fleet, strict=True)]
        hit = np.flatnonzero(fleet >= 0.75)
        reached = int(hit[0]) if len(hit) else None
    columns = list(zip(*rows, strict=True))
    metrics = dict(zip(("time_s", "name", "value", "group"), columns, strict=True))
    pq.write_table(
        pa.table({key: list(value) for key, value in metrics.items()}), path / "metrics.parquet"
    )

    target = {"value": None if dry else 0.75, "reached_at_s": None, "uplink_bytes": None}
    if reached is not None:
        target |= {"reached_at_s": float(time_s[reached]), "uplink_bytes": float(sent[reached])}
    summary = {
        "scenario": "synthetic",
        "method": method,
        "seed": seed,
        "digest": "0123abcd",
        "costed_as": costed_as,
    }
    summary |= {
        "virtual_time_s": ends_s,
        "trained_at_s": ends_s,
        "metric": "accuracy",
        "target": target,
    }
    scenario = {"name": "synthetic", "method": {"kind": method}, "stop": {"target": 0.75}}
    manifest = {
        "scenario": scenario,
        "scenario_digest": "fedcba98",
        "seed": seed,
        "digest": "0123abcd",
    }
    manifest |= {"git_revision": "b81feb6", "status": "finished", "dry": dry}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def _spans_schema() -> pa.Schema:
    text, real, whole = pa.string(), pa.float64(), pa.int64()
    types = (text, text, real, real, whole, real, real, text, pa.list_(whole))
    keys = ("actor", "kind", "start_s", "end_s", "nbytes", "flop", "joules", "outcome", "flows")
    return pa.schema(list(zip(keys, types, strict=True)))
