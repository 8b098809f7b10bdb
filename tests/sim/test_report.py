"""summary.json and devices.parquet: the fields that tools read, their types, and what is null
when.
"""

import json
import sys

import numpy as np
import pytest

from sim.results.host_memory import forget_peak_rss, peak_rss_bytes
from sim.results.run import COLUMNS
from sim.results.summary import device_table, summary

TOP = {
    *(
        "scenario",
        "method",
        "seed",
        "digest",
        "costed_as",
        "virtual_time_s",
        "metric",
        "final",
        "best",
        "by_backbone",
    ),
    *("target", "totals", "per_device", "host"),
}
TOTALS = {
    *(
        "uplink_bytes",
        "downlink_bytes",
        "device_flop",
        "device_energy_j",
        "server_flop",
        "server_busy_s",
    ),
    *("wasted_bytes", "updates"),
}
PER_DEVICE = {
    *(
        "uplink_bytes",
        "downlink_bytes",
        "delivery_bytes",
        "flop",
        "energy_j",
        "peak_memory_bytes",
        "busy_s",
        "waiting_s",
    ),
    "finished_at_s",
    "on_share",
}


@pytest.fixture
def report():
    def make(sim) -> dict:
        return json.loads(json.dumps(summary(sim, "d1", device_table(sim), 2.5), allow_nan=False))

    return make


def test_a_summary_has_every_promised_field(simulate, report):
    found = report(simulate())
    assert set(found) >= TOP
    assert set(found["totals"]) >= TOTALS
    assert set(found["per_device"]) == PER_DEVICE
    assert all(
        set(spread) == {"mean", "p50", "p95", "max"} for spread in found["per_device"].values()
    )
    assert set(found["target"]) >= {
        "value",
        "reached_at_s",
        *("uplink_bytes", "downlink_bytes"),
        "device_energy_j",
    }
    assert set(found["host"]) == {
        *("wall_s", "workers", "pieces_of_learning", "pieces_recalled", "events", "peak_rss_bytes"),
    }
    assert (found["scenario"], found["method"], found["seed"], found["digest"]) == (
        "tiny",
        "fed-mobillm",
        0,
        "d1",
    )
    assert found["host"]["wall_s"] == 2.5
    assert found["host"]["events"] > 100
    assert found["final"] <= found["best"] <= 1
    assert set(found["by_backbone"]) == {"random-bert", "random-bert-l1"}
    for name in ("uplink_bytes", "downlink_bytes", "updates", "wasted_bytes"):
        assert isinstance(found["totals"][name], int)


def test_the_best_and_the_final_accuracy_are_those_of_the_curve(simulate, report, curve):
    sim = simulate("method.learning_rate=0.3", "method.replay=1", evaluate_every=1)
    found, seen = report(sim), curve(sim)
    assert (found["best"], found["final"]) == (max(seen), seen[-1])
    assert max(seen) > seen[-1]  # it had been better


def test_a_dry_run_has_no_accuracy_and_says_so(simulate, report):
    found = report(simulate("stop.target=0.5", dry=True))
    assert found["dry"] is True
    assert (found["final"], found["best"], found["by_backbone"]) == (None, None, {})
    assert found["target"]["value"] == 0.5
    assert found["target"]["reached_at_s"] is None
    assert found["target"]["uplink_bytes"] is None


def test_costing_as_another_architecture_is_said(simulate, report):
    assert report(simulate(dry=True))["costed_as"] is None
    assert report(simulate("cost_as={backbone: bert-base}", dry=True))["costed_as"] == "bert-base"


def test_an_end_before_anything_is_a_report_too(simulate, report):
    found = report(simulate("stop.horizon=1 ns", dry=True))
    assert found["ended"] == "horizon"
    assert found["totals"]["uplink_bytes"] == found["totals"]["updates"] == 0
    assert found["per_device"]["finished_at_s"] == {
        "mean": None,
        "p50": None,
        "p95": None,
        "max": None,
    }
    assert found["outcomes"] == {"horizon": 3}


def test_the_device_table_is_one_row_a_device_in_the_promised_columns(simulate):
    sim = simulate(dry=True)
    table = device_table(sim)
    assert set(table.column_names) >= set(COLUMNS["devices"])
    rows = table.to_pylist()
    assert [row["device"] for row in rows] == [device.id for device in sim.devices]
    assert [row["device_class"] for row in rows] == ["jetson-tx2", "jetson-tx2", "raspberry-pi-5"]
    assert [row["joined_at_s"] for row in rows] == [0.0, 1.0, 0.5]
    assert [row["samples"] for row in rows] == [20, 20, 20]
    for row in rows:
        assert row["outcome"] == "ok"
        assert row["finished_at_s"] > row["joined_at_s"]
        assert row["busy_s"] + row["waiting_s"] <= row["finished_at_s"] - row["joined_at_s"] + 1e-9
    assert tuple(sim.recorder.spans().column_names) == COLUMNS["spans"]
    assert tuple(sim.recorder.metrics().column_names) == COLUMNS["metrics"]


# --- each figure by its own definition, in runs in which a neighbouring definition gives another
# number

RADIO_AND_COMPUTING = ("upload", "download", "compute")
ROUNDS = {"kind": "fedavg-lora", "rounds": 3, "participation": 1.0, "device_batch": 4}


def test_percentiles_are_those_that_they_are_called(simulate, report):
    """Three devices of two classes: p90 lies elsewhere."""
    sim = simulate(dry=True, method=ROUNDS)
    found, table = report(sim)["per_device"], device_table(sim)
    unlike = 0
    for name, spread in found.items():
        values = table[name].drop_null().to_numpy().astype(float)
        assert spread["p50"] == pytest.approx(np.median(values))
        assert spread["p95"] == pytest.approx(np.percentile(values, 95))
        assert spread["mean"] == pytest.approx(values.mean())
        unlike += not np.isclose(np.percentile(values, 90), spread["p95"])
    assert unlike >= 3


def test_the_peak_of_a_devices_memory_is_that_of_its_largest_piece(simulate):
    """20 texts in batches of 8, 8 and 4: the last piece of work needs less."""
    task = {"dataset": {"classes": 3, "tokens": 16}, "train": 60, "test": 6, "max_tokens": 16}
    sim = simulate("method.device_batch=8", dry=True, task=task)
    for device, told in zip(
        sim.devices, device_table(sim)["peak_memory_bytes"].to_pylist(), strict=True
    ):
        largest, last = (sim.costing.forward(device.member, np.full(n, 16)) for n in (8, 4))
        assert told == sim.costing.weight_bytes(device.member) + largest.peak_bytes
        assert largest.peak_bytes > last.peak_bytes


def test_a_server_that_waits_for_its_devices_is_not_busy(simulate, report, spans):
    sim = simulate(dry=True, method=ROUNDS)
    at_work, waits = spans(sim, "aggregate", actor="server"), spans(sim, "wait", actor="server")
    length_s = lambda found: sum(s["end_s"] - s["start_s"] for s in found)  # noqa: E731
    assert report(sim)["totals"]["server_busy_s"] == pytest.approx(length_s(at_work))
    assert length_s(waits) > length_s(at_work) > 0


def test_every_total_is_the_sum_of_its_own_spans(simulate, report, spans):
    """Rounds that the horizon ends while a device computes: no two sums are alike."""
    whole = simulate(dry=True, method=ROUNDS)
    [*_, last] = spans(whole, "compute", actor="device-0000")
    sim = simulate(
        f"stop.horizon={(last['start_s'] + last['end_s']) / 2} s", dry=True, method=ROUNDS
    )

    def total(key: str, *kinds: str, **which) -> float:
        return sum(s[key] for s in spans(sim, *kinds, **which))

    lost = {"actor": "device", "outcome": "horizon"}
    expected = {
        "uplink_bytes": total("nbytes", "upload"),
        "downlink_bytes": total("nbytes", "download"),
        "device_flop": total("flop", "compute", actor="device"),
        "device_energy_j": total("joules", actor="device"),
        "server_flop": total("flop", actor="server"),
        "server_energy_j": total("joules", actor="server"),
        "wasted_bytes": total("nbytes", *RADIO_AND_COMPUTING, **lost),
        "wasted_flop": total("flop", *RADIO_AND_COMPUTING, **lost),
        "wasted_energy_j": total("joules", *RADIO_AND_COMPUTING, **lost),
    }
    told = report(sim)["totals"]
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert expected["wasted_flop"] > 0
    assert len(set(expected.values())) >= len(expected) - 1  # as much goes up as down
    for row in device_table(sim).to_pylist():
        mine = {"actor": row["device"]}
        length_s = {
            kind: sum(s["end_s"] - s["start_s"] for s in spans(sim, kind, **mine))
            for kind in ("compute", "wait", "upload")
        }
        expected = {
            "busy_s": length_s["compute"],
            "waiting_s": length_s["wait"],
            "uplink_bytes": total("nbytes", "upload", **mine),
            "downlink_bytes": total("nbytes", "download", **mine),
            "flop": total("flop", "compute", **mine),
            "energy_j": total("joules", **mine),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
        assert len(set(length_s.values())) == 3


def test_what_is_cut_on_its_way_down_is_wasted_too(simulate, report, spans):
    """A model download that the horizon cuts in its middle: some of its bytes have passed, for
    nothing.
    """
    slow = {"method": ROUNDS, "server": {"ingress": "1 Gbit/s", "egress": "1 Mbit/s"}}
    (whole, *_) = spans(simulate(dry=True, **slow), "download", actor="device-0000")
    cut_s = 0.3 * whole["start_s"] + 0.7 * whole["end_s"]
    sim = simulate(f"stop.horizon={cut_s} s", dry=True, **slow)
    cut = spans(sim, "download", outcome="horizon")
    assert cut
    nbytes = sum(s["nbytes"] for s in cut)
    assert 0 < nbytes < len(cut) * whole["nbytes"]
    totals = report(sim)["totals"]
    assert totals["wasted_bytes"] == totals["downlink_bytes"] == nbytes
    assert totals["wasted_energy_j"] == pytest.approx(sum(s["joules"] for s in cut))
    assert totals["wasted_flop"] == 0


def test_the_running_uplink_counts_what_was_sent_in_vain(simulate, report, spans, tmp_path):
    """A device goes offline in an upload's middle and sends it again: the last note is the total,
    the wasted part included.
    """
    one = {
        "fleet": [{"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    }
    one |= {
        "arrivals": {"kind": "at-once"},
        "traces": {"ingress": {"times": ["0 s"], "capacity": ["80 kbit/s"]}},
    }
    (first, *_) = spans(simulate(dry=True, **one), "upload")
    cut_s = (first["start_s"] + first["end_s"]) / 2
    (tmp_path / "one.csv").write_text(f"device,ready_start_s,ready_end_s\na,0,{cut_s}\na,10,1000\n")
    sim = simulate(
        dry=True, availability={"kind": "trace", "path": "one.csv", "period": "1 d"}, **one
    )
    (lost,) = spans(sim, "upload", outcome="offline")
    notes = [m["value"] for m in sim.recorder.metrics().to_pylist() if m["name"] == "uplink_bytes"]
    total = sum(s["nbytes"] for s in spans(sim, "upload"))
    assert 0 < lost["nbytes"] < total
    assert notes[-1] == report(sim)["totals"]["uplink_bytes"] == total
    assert report(sim)["totals"]["wasted_bytes"] == lost["nbytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone forgets a peak")
def test_the_peak_of_memory_is_that_of_the_run_and_not_of_what_the_process_did_before():
    before = bytearray(200_000_000)
    before[::4096] = b"x" * len(before[::4096])
    held = peak_rss_bytes()
    del before
    forget_peak_rss()
    assert peak_rss_bytes() < held - 150_000_000
