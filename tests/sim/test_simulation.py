"""Golden schedules: every span of a tiny run with its virtual timestamps, as text, and the formulas
behind them by hand.

A change of the schedule shows as a difference of tests/golden/*.txt. Where it is meant, write the
files anew with

    UPDATE_GOLDEN=1 pytest tests/sim/test_simulation.py

and read the difference before committing it.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import devices.profile
import network.profile
from learning.backbones import catalogue
from learning.cost.forward_pass import architecture
from learning.side.activations import encoded_nbytes
from sim.simulation import Simulation

GOLDEN = Path(__file__).parents[1] / "golden"
BY_SIZE = {"dataset": {"classes": 3, "tokens": 16}, "train": 24, "test": 6, "max_tokens": 16}
THREE = [
    {"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
    {"count": 1, "device": "raspberry-pi-5", "backbone": "random-bert", "link": "wifi-home"},
]
CALM = {"task": BY_SIZE, "fleet": THREE, "jitter": False}
SCHEDULES = {
    "plain": {},
    "horizon": {"stop": {"horizon": "1050 ms"}},
    "one-cell": {
        "cells": {"home": {"up": "1 Mbit/s", "down": "2 Mbit/s"}},
        "fleet": [{**THREE[0], "cell": "home", "link": "wifi-home"}, {**THREE[1], "cell": "home"}],
        "arrivals": {"kind": "at-once"},
    },
    "stalled": {
        "traces": {"ingress": {"times": ["0 s", "300 ms"], "capacity": ["1 Mbit/s", "0 bit/s"]}}
    },
    "no-memory": {
        "fleet": [{**THREE[0], "memory": "512 KiB"}, THREE[1]],
        "out_of_memory": "record",
    },
    "half-on-arrival": {
        "method": {
            "kind": "fed-mobillm",
            "replay": 3,
            "update_share_on_arrival": 0.5,
            "server_batch": 8,
            "device_batch": 4,
            "side_network": {"skip": "none"},
        }
    },
    "solved": {"method": {"kind": "fed-mobillm", "replay": 3, "server_batch": 8}},  # by default
    # one of every other family, and one of absences and heat; by hand in test_golden_by_hand.py
    "federated-peft": {
        "method": {"kind": "fedavg-lora", "rounds": 2, "participation": 0.67, "device_batch": 4}
    },
    "forward-only": {
        "method": {"kind": "fwdllm", "rounds": 1, "participation": 1.0, "asks": 2, "most_asks": 2}
    },
    "split": {"method": {"kind": "splitfed-v1", "rounds": 1, "device_batch": 8}},
    "on-device": {"method": {"kind": "local-lst", "epochs": 2, "device_batch": 4}},
    "churn-and-heat": {
        "task": {**BY_SIZE, "train": 96},
        "fleet": [{**THREE[1], "count": 2, "device": "phone-2024-flagship"}],
        "arrivals": {"kind": "at-once"},
        "cost_as": {"backbone": "bert-base", "tokens": 512},
        "method": {
            "kind": "fed-mobillm",
            "replay": 1,
            "update_share_on_arrival": 1,
            "server_batch": 16,
            "side_network": {"skip": "none"},
            "device_batch": 16,
        },
        "availability": {"kind": "trace", "path": "absences.csv"},
        "dropout": {"times": [None, "50 s"]},
        "devices": {"thermal": True},
    },
}
ABSENCES = "device,ready_start_s,ready_end_s\na,0,15\na,45,70.1\na,80,86400\n"


def schedule(sim: Simulation) -> str:
    """All spans as aligned text, in the order in which they ended."""
    lines = [
        f"{s['start_s']:12.6f} {s['end_s']:12.6f}  {s['actor']:<12} {s['kind']:<9} "
        f"{s['nbytes']:>7} B "
        f"{s['flop']:12.6g} FLOP {s['joules']:10.6g} J  {s['outcome']}"
        + (f"  payload {','.join(map(str, s['flows']))}" if s["flows"] else "")
        for s in sim.recorder.spans().to_pylist()
    ]
    lines += [
        f"{d.id}: {d.outcome}, {len(d.samples)} samples, finished at {d.finished_at_s}"
        for d in sim.devices
    ]
    return "\n".join([*lines, f"ended: {sim.ended.reason} at {sim.ended.at_s:.6f} s", ""])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_story_is_as_it_was(name, simulate, tmp_path):
    (tmp_path / "absences.csv").write_text(ABSENCES, encoding="utf-8")
    told = schedule(simulate(dry=True, **{**CALM, **SCHEDULES[name]}))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(told, encoding="utf-8")
    assert told == file.read_text(encoding="utf-8")


def spans(sim: Simulation, actor: str, kind: str) -> list[dict]:
    return [s for s in sim.recorder.spans().to_pylist() if (s["actor"], s["kind"]) == (actor, kind)]


def test_a_device_computes_and_uploads_by_the_formulas(simulate):
    sim = simulate(dry=True, **CALM)
    profile, link = devices.profile.load("jetson-tx2"), network.profile.load("lte")
    engine = profile.engine("simple")
    cost = architecture(catalogue.find("random-bert")).forward(4, 16)
    compute_s = (
        engine.overhead_s
        + cost.flop / engine.flop_per_s
        + cost.bytes_moved / profile.memory_bandwidth_bytes_per_s
    )
    nbytes = encoded_nbytes("float16", 4, 3, 64, 3)  # embedding and two layers, 64 wide, 3 classes
    upload_s = link.overhead_s + link.latency_s + 8 * nbytes / link.up_bps
    now_s = 1.0  # device-0001 joins one second into the day
    pairs = zip(
        spans(sim, "device-0001", "compute"), spans(sim, "device-0001", "upload"), strict=True
    )
    for compute, upload in pairs:
        assert compute["start_s"] == pytest.approx(now_s, rel=1e-12)
        assert compute["end_s"] == pytest.approx(now_s + compute_s, rel=1e-12)
        assert compute["flop"] == cost.flop
        assert compute["joules"] == pytest.approx(engine.power.compute_w * compute_s)
        now_s += compute_s
        assert upload["start_s"] == pytest.approx(now_s, rel=1e-12)
        assert upload["end_s"] == pytest.approx(now_s + upload_s, rel=1e-12)
        assert upload["nbytes"] == nbytes
        assert upload["joules"] == pytest.approx(engine.power.uplink_w * upload_s)
        now_s += upload_s
    assert sim.devices[1].finished_at_s == pytest.approx(now_s, rel=1e-12)
    assert len(spans(sim, "device-0001", "upload")) == 2  # 8 samples in batches of 4


@pytest.mark.parametrize(
    ("engine", "watts"), [("simple-fp32", 34.7), ("int8-batched-maxq", 54.1), ("int8-maxq", 34.7)]
)
def test_a_device_draws_the_power_of_the_engine_that_it_computes_on(simulate, engine, watts):
    fleet = [
        {
            "count": 3,
            "device": "jetson-agx-orin",
            "engine": engine,
            "backbone": "random-bert",
            "link": "lte",
        }
    ]
    sim = simulate(dry=True, **{**CALM, "fleet": fleet})
    computing = spans(sim, "device-0000", "compute")
    assert computing
    for span in computing:
        assert span["joules"] == pytest.approx(watts * (span["end_s"] - span["start_s"]))


def test_the_server_updates_by_the_formula_as_soon_as_a_payload_lands(simulate):
    sim = simulate(dry=True, **CALM)
    server = devices.profile.load("a100")
    engine = server.engine("simple")
    shape = sim.method.shape
    flop = (
        3 * 2 * (2 * 2 * 64 * 8 + 64 * 3)
    )  # a record: forward and twice that backward, 2 adapters of 64 x 8, a head
    moved = 7 * 4 * shape.parameters()
    updates = spans(sim, "server", "train")
    landed_s = min(s["end_s"] for s in sim.recorder.spans().to_pylist() if s["kind"] == "upload")
    assert updates[0]["start_s"] == landed_s
    assert len(updates) == sim.updates == 24 * 5 // 8
    for update, records in zip(
        updates, [4, 4] + 13 * [8], strict=True
    ):  # at first there are no 8 records yet
        assert update["flop"] == records * flop
        step_s = (
            engine.overhead_s
            + records * flop / engine.flop_per_s
            + moved / server.memory_bandwidth_bytes_per_s
        )
        assert update["end_s"] - update["start_s"] == pytest.approx(step_s, rel=1e-9)
        assert update["joules"] == pytest.approx(engine.power.compute_w * step_s, rel=1e-9)
    assert (
        updates[1]["start_s"] == updates[0]["end_s"]
    )  # 4 records x 5 grant two updates of 8, one after the other


def test_a_scenarios_own_step_overhead_replaces_the_profiles(simulate):
    plain, slow = (
        spans(simulate("server.step_overhead=" + overhead, dry=True, **CALM), "server", "train")[0]
        for overhead in ("3 ms", "1 s")
    )
    assert (slow["end_s"] - slow["start_s"]) - (plain["end_s"] - plain["start_s"]) == pytest.approx(
        0.997
    )


def test_every_device_gets_the_side_network_and_its_own_projections_at_the_end(simulate):
    sim = simulate(dry=True, **CALM)
    downloads = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "download"]
    assert sorted(s["actor"] for s in downloads) == [d.id for d in sim.devices]
    assert {s["nbytes"] for s in downloads} == {
        sim.method.shape.shipped_bytes("random-bert", "int8")
    }
    assert {s["start_s"] for s in downloads} == {spans(sim, "server", "train")[-1]["end_s"]}
    assert sim.ended.at_s == max(s["end_s"] for s in downloads)
    assert not [
        s
        for s in simulate("method.ship_side_network=false", dry=True, **CALM)
        .recorder.spans()
        .to_pylist()
        if s["kind"] == "download"
    ]


def test_fresh_data_makes_a_device_wait_idle(simulate):
    sim = simulate("fresh_data={kind: poisson, rate: 10 Hz}", dry=True, **CALM)
    idle_w = devices.profile.load("jetson-tx2").engine("simple").power.idle_w
    waits = spans(sim, "device-0000", "wait")
    assert waits
    for wait in waits:
        assert wait["joules"] == pytest.approx(idle_w * (wait["end_s"] - wait["start_s"]))
    for wait in waits:  # the batch is computed the moment its last sample is there
        assert any(c["start_s"] == wait["end_s"] for c in spans(sim, "device-0000", "compute"))


def test_nothing_happens_before_a_device_joins(simulate):
    sim = simulate(dry=True, **CALM)
    for device, joined_s in zip(sim.devices, (0.0, 1.0, 0.5), strict=True):
        mine = [s for s in sim.recorder.spans().to_pylist() if s["actor"] == device.id]
        assert min(s["start_s"] for s in mine) == joined_s


def test_a_target_is_reached_by_a_value_that_equals_it(simulate, curve):
    world = {"evaluate_every": 1, "jitter": False}
    plain = simulate(**world)
    values, target = curve(plain), max(curve(plain)[:-1])
    times_s = [
        m["time_s"]
        for m in plain.recorder.metrics().to_pylist()
        if (m["name"], m["group"]) == ("accuracy", "")
    ]
    assert len(set(values)) > 2
    sim = simulate(**world, stop={"target": target})
    assert (sim.ended.reason, sim.score) == ("target", target)
    assert sim.ended.target["reached_at_s"] == times_s[values.index(target)]


def test_the_fleets_accuracy_is_weighted_by_its_mix(simulate, curve):
    sim = simulate(evaluate_every=1)  # two devices of one backbone, one of the other
    whole, cut, fleet = (
        np.array(curve(sim, group)) for group in ("random-bert", "random-bert-l1", "")
    )
    np.testing.assert_allclose(fleet, (2 * whole + cut) / 3)
    assert (whole != cut).any()
