"""Against theory and conservation: the server's queue is M/M/1, and every total is the sum of its
parts.
"""

import itertools
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pytest
import simpy

import devices.profile
import network.profile
from devices.compute import ComputeModel
from learning.cost.costs import Cost
from sim.kernel.host import Host
from sim.kernel.recorder import Recorder
from sim.kernel.server import Server
from sim.kernel.work import Work
from sim.results.run import open_run
from sim.results.summary import device_table, summary

STREAM = {"fresh_data": {"kind": "poisson", "rate": "20 Hz"}}


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_servers_queue_is_m_m_1(load):
    """Poisson arrivals of exponential work: the mean wait is rho / (mu - lambda)
    (Pollaczek-Khinchine for M/M/1).
    """
    a100 = devices.profile.load("a100").with_overhead("simple", 0.0)
    profile, rng, mu, batches, per_batch = a100, np.random.default_rng(7), 10.0, 40, 500
    flop_per_s = profile.engine("simple").flop_per_s
    waits = []
    for _ in range(batches):
        env = simpy.Environment()
        sim = SimpleNamespace(env=env, recorder=Recorder(), host=Host(1), devices=())
        server, asked_s = Server(sim, profile, ComputeModel(profile, "simple")), []

        def customer(env, server, asked_s, arrives_s, seconds):
            yield env.timeout(arrives_s)
            asked_s.append(env.now)
            yield from server.compute(Work(Cost(flop=seconds * flop_per_s)))

        arrivals_s = np.cumsum(rng.exponential(1 / (load * mu), per_batch))
        for arrives_s, seconds in zip(arrivals_s, rng.exponential(1 / mu, per_batch), strict=True):
            env.process(customer(env, server, asked_s, arrives_s, seconds))
        env.run()
        served = sim.recorder.spans()
        start_s, end_s = served["start_s"].to_numpy(), served["end_s"].to_numpy()
        assert (start_s[1:] >= end_s[:-1] - 1e-12).all()  # one at a time, first come, first served
        waits.append(float((start_s - np.array(asked_s))[per_batch // 5 :].mean()))
    expected_s, error_s = load / (mu - load * mu), np.std(waits, ddof=1) / np.sqrt(batches)
    assert abs(np.mean(waits) - expected_s) < 4 * error_s + 0.02 * expected_s
    assert error_s < 0.2 * expected_s


def rows(sim, **wanted) -> list[dict]:
    """Spans of devices and the server; those of links are sums of theirs."""
    acted = [s for s in sim.recorder.spans().to_pylist() if not s["actor"].startswith("link:")]
    return [s for s in acted if all(s[k] == v for k, v in wanted.items())]


def test_a_links_spans_hold_every_byte_of_its_transfers_without_overlap(simulate):
    """A transfer is on the link from the end of its overhead and latency on."""
    sim = simulate(dry=True)
    every = sim.recorder.spans().to_pylist()
    delay_s = {
        d.id: (lte := network.profile.load(d.member.link)).overhead_s + lte.latency_s
        for d in sim.devices
    }
    for link, kind in (("link:ingress", "upload"), ("link:egress", "download")):
        carried = [s for s in every if s["actor"] == link]
        moved = [s for s in every if s["kind"] == kind]
        assert sum(s["nbytes"] for s in carried) == sum(s["nbytes"] for s in moved) > 0
        assert all(a["end_s"] < b["start_s"] for a, b in itertools.pairwise(carried))
        for s in moved:
            on_s = s["start_s"] + delay_s[s["actor"]]
            assert (
                sum(
                    c["start_s"] <= on_s + 1e-9 and s["end_s"] <= c["end_s"] + 1e-9 for c in carried
                )
                == 1
            )
        busy_s = sum(c["end_s"] - c["start_s"] for c in carried)
        assert busy_s <= sum(s["end_s"] - s["start_s"] - delay_s[s["actor"]] for s in moved) + 1e-9
        assert busy_s == pytest.approx(
            sim.network.shared[link.removeprefix("link:")].busy_s, rel=1e-12
        )


ENDINGS = {
    "all done": {},
    "horizon": {"stop": {"horizon": "1.07 s"}},
    "target": {"stop": {"target": 0.4}, "arrivals": {"kind": "at-once"}},
    "horizon in the downloads": {"stop": {"horizon": "1.32 s"}},
    "streaming data": {**STREAM, "stop": {"horizon": "2 s"}},
    "slow ingress": {"server": {"ingress": "100 kbit/s"}, "stop": {"horizon": "1.2 s"}},
}


@pytest.fixture(params=ENDINGS, ids=str)
def ended(request, simulate):
    return simulate(**ENDINGS[request.param])


def test_bytes_sent_are_bytes_received_and_bytes_wasted(ended):
    received = sum(s["nbytes"] for s in rows(ended, kind="upload", outcome="ok"))
    wasted = sum(s["nbytes"] for s in rows(ended, kind="upload") if s["outcome"] != "ok")
    through_ingress = ended.network.shared["ingress"].bytes_carried
    assert received + wasted == pytest.approx(
        through_ingress, abs=len(ended.devices)
    )  # a cut is rounded down to a byte
    landed = [payload for s in rows(ended, kind="upload", outcome="ok") for payload in s["flows"]]
    assert len(landed) == len(set(landed))
    used = {payload for s in rows(ended, actor="server", kind="train") for payload in s["flows"]}
    assert used <= set(landed)


def test_joules_are_the_integral_of_power_over_the_spans(ended):
    for device in ended.devices:
        power = device.power
        watts = {
            "compute": power.compute_w,
            "upload": power.uplink_w,
            "download": power.downlink_w,
            "wait": power.idle_w,
        }
        for span in rows(ended, actor=device.id):
            assert span["joules"] == pytest.approx(
                watts[span["kind"]] * (span["end_s"] - span["start_s"]), abs=1e-12
            )
        mine = sorted((s["start_s"], s["end_s"]) for s in rows(ended, actor=device.id))
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(mine))  # no moment is charged twice


def test_totals_are_sums_of_spans_and_of_the_device_table(ended):
    table = device_table(ended)
    found = json.loads(json.dumps(summary(ended, "digest", table, 1.0)))
    totals, spans = found["totals"], rows(ended)
    of_devices = [s for s in spans if s["actor"] != "server"]
    assert totals["uplink_bytes"] == sum(s["nbytes"] for s in of_devices if s["kind"] == "upload")
    assert totals["downlink_bytes"] == sum(
        s["nbytes"] for s in of_devices if s["kind"] == "download"
    )
    assert totals["device_flop"] == pytest.approx(sum(s["flop"] for s in of_devices), rel=1e-12)
    assert totals["device_energy_j"] == pytest.approx(
        sum(s["joules"] for s in of_devices), rel=1e-12
    )
    assert totals["server_flop"] == pytest.approx(
        sum(s["flop"] for s in spans if s["actor"] == "server"), rel=1e-12
    )
    assert totals["server_busy_s"] == pytest.approx(
        sum(s["end_s"] - s["start_s"] for s in spans if s["actor"] == "server")
    )
    assert totals["wasted_bytes"] == sum(
        s["nbytes"] for s in spans if s["outcome"] != "ok" and s["kind"] in ("upload", "download")
    )
    assert totals["updates"] == len([s for s in rows(ended, kind="train") if s["outcome"] == "ok"])
    for column, total in (
        ("uplink_bytes", "uplink_bytes"), ("downlink_bytes", "downlink_bytes"),
        ("flop", "device_flop"), ("energy_j", "device_energy_j"),
    ):  # fmt: skip
        assert pc.sum(table[column]).as_py() == pytest.approx(totals[total], rel=1e-12)
        values = table[column].to_numpy().astype(float)
        spread = found["per_device"][column]
        assert spread["mean"] == pytest.approx(values.mean())
        assert spread["max"] == values.max()
        assert spread["p50"] == pytest.approx(np.median(values))
    assert sum(found["outcomes"].values()) == len(ended.devices)
    for device in table.to_pylist():
        for column, kind in (("busy_s", "compute"), ("waiting_s", "wait")):
            mine = [
                s["end_s"] - s["start_s"] for s in rows(ended, actor=device["device"], kind=kind)
            ]
            assert device[column] == pytest.approx(sum(mine), abs=1e-12)


def test_the_work_of_a_cut_span_is_charged_in_proportion(simulate):
    whole, cut = (
        simulate("jitter=false", dry=True),
        simulate("jitter=false", "stop.horizon=1.0025 s", dry=True),
    )
    full = rows(whole, actor="device-0001", kind="compute")[0]
    part = rows(cut, actor="device-0001", kind="compute")[0]
    share = (1.0025 - full["start_s"]) / (full["end_s"] - full["start_s"])
    assert part["outcome"] == "horizon"
    assert part["flop"] == pytest.approx(share * full["flop"], rel=1e-9)


@pytest.mark.parametrize("horizon_s", [1e-9, 0.003, 0.0999, 1.0, 1.07, 1.2])
def test_a_horizon_cuts_everything_exactly_there(horizon_s, simulate):
    sim = simulate(f"stop.horizon={horizon_s} s", dry=True)
    whole = simulate(dry=True)
    assert sim.ended.reason == "horizon"
    assert sim.ended.at_s == horizon_s
    finished = [s for s in rows(sim) if s["outcome"] == "ok"]
    assert finished == [s for s in rows(whole) if s["end_s"] < horizon_s]
    under_way = [s for s in rows(whole) if s["start_s"] < horizon_s <= s["end_s"]]
    cut = [s for s in rows(sim) if s["outcome"] == "horizon" and s["start_s"] < horizon_s]
    assert {s["end_s"] for s in cut} <= {horizon_s}
    key = lambda s: (s["actor"], s["kind"], s["start_s"])  # noqa: E731
    assert sorted(map(key, cut)) == sorted(map(key, under_way))


def test_a_horizon_after_the_end_changes_nothing_but_the_scenario(simulate):
    sim, whole = simulate("stop.horizon=1 h", dry=True), simulate(dry=True)
    assert rows(sim) == rows(whole)
    assert (sim.ended.reason, sim.ended.at_s) == ("exhausted", whole.ended.at_s)


def test_a_target_ends_the_training_with_the_update_that_reached_it(simulate):
    sim = simulate("evaluate_every=1", "stop.target=0.5", arrivals={"kind": "at-once"})
    reached_s = sim.ended.target["reached_at_s"]
    updates = rows(sim, actor="server", kind="train")
    assert sim.ended.reason == "target"
    assert updates[-1]["end_s"] == reached_s
    assert len(updates) == sim.updates < 37
    later = [s for s in rows(sim) if s["start_s"] >= reached_s]
    assert {s["kind"] for s in later} <= {"download", "upload", "compute"}
    assert all(s["end_s"] == reached_s for s in later if s["kind"] != "download")
    stopped = [s for s in rows(sim) if s["outcome"] == "target"]
    assert all(s["end_s"] == reached_s for s in stopped)
    assert stopped, "somebody was still at work"
    curve = [(m["time_s"], m["value"]) for m in sim.recorder.metrics().to_pylist()
             if (m["name"], m["group"]) == ("accuracy", "")]  # fmt: skip
    assert next(t for t, value in curve if value >= 0.5) == reached_s
    found = summary(sim, "digest", device_table(sim), 1.0)["target"]
    spent = [s for s in rows(sim) if s["end_s"] <= reached_s and s["actor"] != "server"]
    assert found["value"] == 0.5
    assert found["reached_at_s"] == reached_s
    assert found["uplink_bytes"] == sum(s["nbytes"] for s in spent if s["kind"] == "upload")
    assert found["downlink_bytes"] == 0
    assert found["device_energy_j"] == pytest.approx(sum(s["joules"] for s in spent))


def test_the_files_say_what_the_simulation_says(mobifleet, scenario_file, tmp_path):
    assert (
        mobifleet(
            "run", scenario_file(), "-q", "--no-figures", "--workers", "1", "--out", "run"
        ).code
        == 0
    )
    run = open_run(tmp_path / "run")
    spans, table, totals = run.spans(), run.devices(), run.summary["totals"]
    uploads = spans.filter(pc.equal(spans["kind"], "upload"))
    assert (
        totals["uplink_bytes"]
        == pc.sum(uploads["nbytes"]).as_py()
        == pc.sum(table["uplink_bytes"]).as_py()
    )
    assert run.summary["virtual_time_s"] == pc.max(spans["end_s"]).as_py()
    assert run.summary["final"] == run.curve("accuracy")[1][-1]
    assert run.summary["best"] == max(run.curve("accuracy")[1])
    assert run.summary["digest"] == run.manifest["digest"]
    assert run.manifest["status"] == "finished"
