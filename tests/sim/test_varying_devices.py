"""Devices that vary while they work: every span is what the models of heat, load, battery, memory
and radio say it is.
"""

from collections import Counter

import numpy as np
import pytest

from devices.load import ALWAYS_QUIET, background_load, work_done_s
from devices.memory import pressure
from devices.profile import load as profile_of
from devices.thermal import throttle_of
from sim.kernel.streams import Streams
from sim.results.summary import device_table, summary
from sim.scenario import SCENARIOS
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario
from sim.simulation import CannotBuild, Simulation
from sim.world.conditions import NO_THROTTLE
from sim.world.costing import DoesNotFit

PHONES = {
    "fleet": [
        {"count": 2, "device": "phone-2024-flagship", "backbone": "random-bert", "link": "lte"},
        {
            "count": 1,
            "device": "phone-2022-flagship",
            "backbone": "random-bert-l1",
            "link": "wifi-home",
        },
    ],
    "cost_as": {"backbone": "roberta-base", "tokens": 512},
    "jitter": False,
}
EVERYTHING = {
    "thermal": True,
    "radio_power_by_rate": True,
    "background_load": {"quiet": "20 s", "busy": "10 s"},
    "battery": {"initial": [0.19, 0.22], "resume_at": 0.21},
    "memory_pressure": {"share": [0.1, 0.95], "every": "15 s"},
}


@pytest.fixture
def phones(simulate):
    """Runs the three phones dry with a `devices` section; `changes` as for `simulate`."""
    return lambda devices=None, *overrides, **changes: simulate(
        *overrides, dry=True, **{**PHONES, **({"devices": devices} if devices else {}), **changes}
    )


def spans(sim, device_id: str, kind: str | None = None) -> list[dict]:
    rows = sim.recorder.spans().to_pylist()
    return [row for row in rows if row["actor"] == device_id and kind in (None, row["kind"])]


def seconds(span: dict) -> float:
    return span["end_s"] - span["start_s"]


def metric(sim, name: str, device_id: str) -> list[float]:
    rows = sim.recorder.metrics().to_pylist()
    return [row["value"] for row in rows if (row["name"], row["group"]) == (name, device_id)]


def nominal(phones) -> dict[str, list[dict]]:
    """Each device's computing on a cool and idle phone."""
    sim = phones()
    return {device.id: spans(sim, device.id, "compute") for device in sim.devices}


def test_a_section_that_turns_nothing_on_changes_no_span(phones):
    assert phones({"thermal": False}).recorder.spans().equals(phones().recorder.spans())


def test_heat_slows_each_piece_by_what_all_pieces_and_pauses_before_it_left(phones):
    cool, sim = nominal(phones), phones({"thermal": True})
    for device in sim.devices:
        throttle, heat, since_s = throttle_of(device.profile), 0.0, 0.0
        hot = spans(sim, device.id, "compute")
        for one, before in zip(hot, cool[device.id], strict=True):
            heat = throttle.after_rest(heat, one["start_s"] - since_s)
            assert throttle.done_s(heat, seconds(one)) == pytest.approx(seconds(before), rel=1e-9)
            assert one["flop"] == before["flop"]
            assert one["joules"] == pytest.approx(device.power.compute_w * seconds(one))
            heat, since_s = throttle.after_work(heat, seconds(one)), one["end_s"]
        speeds = metric(sim, "speed", device.id)
        assert len(speeds) == len(hot)
        assert throttle.floor < min(speeds) < max(speeds) <= 1
        assert speeds == pytest.approx(
            [seconds(b) / seconds(h) for h, b in zip(hot, cool[device.id], strict=True)]
        )


def test_background_load_is_the_devices_own_stream_at_that_time(phones):
    cool, sim = nominal(phones), phones({"background_load": {"quiet": "20 s", "busy": "10 s"}})
    factors = []
    for device in sim.devices:
        own = background_load(Streams(0).rng("background-load", device.id), 20.0, 10.0)
        for one, before in zip(spans(sim, device.id, "compute"), cool[device.id], strict=True):
            done_s = work_done_s(NO_THROTTLE, own, 0.0, one["start_s"], seconds(one))
            assert done_s == pytest.approx(seconds(before), rel=1e-9)
            factors.append(seconds(before) / seconds(one))
    assert min(factors) < 0.9 < max(factors)


def test_another_device_and_another_condition_leave_a_devices_day_alone(phones):
    few = phones(EVERYTHING)
    more = phones(EVERYTHING, "fleet.1.count=2", arrivals={"kind": "at-once"})
    heat_too = phones({"background_load": EVERYTHING["background_load"]})
    for one, other, third in zip(few.devices, more.devices, heat_too.devices, strict=False):
        times_s = np.linspace(0, 500, 50)
        assert [one.conditions.load.at(t) for t in times_s] == [
            other.conditions.load.at(t) for t in times_s
        ]
        assert [one.conditions.load.at(t) for t in times_s] == [
            third.conditions.load.at(t) for t in times_s
        ]
        assert [one.conditions.taken.at(t) for t in times_s] == [
            other.conditions.taken.at(t) for t in times_s
        ]


# --- battery


def test_a_low_phone_charges_first_and_its_charge_is_the_integral_of_its_power(phones):
    sim = phones({"battery": {"initial": [0.1, 0.19], "resume_at": 0.3}})
    for device in sim.devices:
        power, capacity_j = device.power, device.profile.battery_wh * 3600
        share = 0.1 + 0.09 * Streams(0).rng("battery", device.id).random()
        mine = spans(sim, device.id)
        assert [span["kind"] for span in mine[:2]] == ["charge", "compute"]
        # it is plugged in from the first moment of the day on, at which it is low, and idle until
        # it computes
        goes_on_s = (0.3 - share) * capacity_j / (10 - power.idle_w)
        assert mine[0]["end_s"] == pytest.approx(max(goes_on_s, device.joined_at_s), abs=1e-4)
        last_compute = [s for s in mine if s["kind"] == "compute"][-1]["end_s"]
        drawn_j = sum(
            s["joules"] - power.idle_w * seconds(s) for s in mine if s["end_s"] <= last_compute
        )
        left_j = 0.3 * capacity_j - power.idle_w * (last_compute - mine[0]["end_s"]) - drawn_j
        assert metric(sim, "charge", device.id)[-1] == pytest.approx(left_j / capacity_j, abs=1e-6)


def test_a_long_piece_pauses_at_the_threshold_and_goes_on(phones):
    """All of a phone's texts in one piece: cut where the charge is down to 20 %, no FLOP lost, none
    done twice.
    """
    battery = {"initial": [0.2003, 0.2003], "resume_at": 0.25}
    sim = phones({"battery": battery}, "method.device_batch=64")
    whole = {
        d.id: spans(phones(None, "method.device_batch=64"), d.id, "compute") for d in sim.devices
    }
    for device in sim.devices:
        pieces = [s for s in spans(sim, device.id) if s["kind"] in ("compute", "charge")]
        assert [p["kind"] for p in pieces[:3]] == ["compute", "charge", "compute"]
        assert pieces[0]["outcome"] == "low-battery"
        capacity_j, power = device.profile.battery_wh * 3600, device.power
        until_low_j = 0.0003 * capacity_j - power.idle_w * device.joined_at_s
        assert seconds(pieces[0]) == pytest.approx(until_low_j / power.compute_w, rel=1e-6)
        assert seconds(pieces[1]) == pytest.approx(
            0.05 * capacity_j / (10 - power.idle_w), rel=1e-6
        )
        computing = [p for p in pieces if p["kind"] == "compute"]
        assert sum(p["flop"] for p in computing) == pytest.approx(
            sum(p["flop"] for p in whole[device.id]), rel=1e-9
        )
        assert sum(map(seconds, computing)) == pytest.approx(
            sum(map(seconds, whole[device.id])), rel=1e-9
        )


def test_charging_hours_are_waited_for(phones):
    """Plugged in from 22:00 to 06:00; at 20:00 a phone at 10 % waits for the night and works on at
    30 %.
    """
    battery = {
        "initial": [0.1, 0.1],
        "resume_at": 0.3,
        "hours": ["22 h", "6 h"],
        "starts_at": "20 h",
    }
    sim = phones({"battery": battery})
    phone = sim.devices[0]
    capacity_j = phone.profile.battery_wh * 3600
    missing_j = 0.2 * capacity_j + 2 * 3600 * phone.power.idle_w
    first = spans(sim, "device-0000")[0]
    assert first["kind"] == "charge"
    assert first["end_s"] == pytest.approx(7200 + missing_j / (10 - phone.power.idle_w), abs=1)
    assert first["joules"] == pytest.approx(phone.power.idle_w * seconds(first))


def test_boards_on_the_mains_have_no_battery(simulate):
    sim = simulate(
        dry=True, cost_as=PHONES["cost_as"], devices={"battery": {"initial": [0.0, 0.1]}}
    )
    assert {
        row["kind"] for row in sim.recorder.spans().to_pylist() if row["actor"].startswith("device")
    } <= {
        "compute",
        "upload",
        "download",
        "wait",
    }


# --- memory


def test_work_dies_when_memory_runs_short_and_begins_again_when_it_fits(phones):
    """Two equal pieces a phone, each alive for as long as what it needs of 2 GiB is free."""
    sim = phones(
        {
            "memory_pressure": {
                "share": [0.3, 0.8],
                "every": "4 s",
                "restart": "2 s",
                "retries": 1000,
            }
        },
        "fleet.0.memory=2 GiB",
        "fleet.1.memory=2 GiB",
        "method.device_batch=10",
    )
    whole = phones(None, "method.device_batch=10")
    deaths = 0
    for device in sim.devices:
        taken = pressure(Streams(0).rng("memory-pressure", device.id), 4.0, (0.3, 0.8))
        free = lambda t, taken=taken: 2 * 2**30 * (1 - taken.at(t))  # noqa: E731
        needed = device.peak_memory_bytes
        mine = spans(sim, device.id, "compute")
        for span in mine:
            if span["outcome"] == "oom":
                assert free(span["end_s"]) < needed
                deaths += 1
            else:
                assert free(span["start_s"]) >= needed
                assert free(span["end_s"] - 1e-6) >= needed
        good = [span["flop"] for span in mine if span["outcome"] == "ok"]
        assert good == pytest.approx([span["flop"] for span in spans(whole, device.id, "compute")])
        power = device.power.compute_w
        assert all(span["joules"] == pytest.approx(power * seconds(span)) for span in mine)
        dead = [span for span in mine if span["outcome"] == "oom"]
        assert all(0 <= span["flop"] < good[0] for span in dead)
        assert device.outcome == "ok"
    assert deaths >= 3
    assert sum(device_table(sim)["flop"].to_pylist()) > sum(device_table(whole)["flop"].to_pylist())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("fed-mobillm", {}),
        ("mobillm", {"epochs": 1}),
        ("fedavg-lora", {"rounds": 2, "participation": 1}),
    ],
)
def test_a_phone_that_gives_up_ends_its_day_and_the_others_go_on(kind, settings, phones):
    """The first phone's memory is too small whatever the others do: it dies at its first piece."""
    sim = phones(
        {"memory_pressure": {"share": [0.6, 0.6001], "then": "fail"}},
        fleet=[
            {
                "count": 1,
                "device": "phone-2024-flagship",
                "backbone": "random-bert",
                "link": "lte",
                "memory": "1 GiB",
            },
            {
                "count": 2,
                "device": "phone-2024-flagship",
                "backbone": "random-bert",
                "link": "lte",
                "memory": "8 GiB",
            },
        ],
        cost_as={"backbone": "roberta-base", "tokens": 32},
        arrivals={"kind": "at-once"},
        method={"kind": kind, "device_batch": 4, **settings},
        out_of_memory="record",
    )
    assert sim.ended.reason == "exhausted"
    assert [device.outcome for device in sim.devices] == ["oom", "ok", "ok"]


def test_what_can_never_fit_is_not_tried_again(phones):
    sim = phones(
        {"memory_pressure": {"share": [0.95, 0.99], "every": "10 s"}},
        "fleet.0.memory=2 GiB",
        "fleet.1.memory=2 GiB",
    )
    assert {device.outcome for device in sim.devices} == {"oom"}
    assert Counter(
        row["outcome"] for row in sim.recorder.spans().to_pylist() if row["kind"] == "compute"
    ) == {"oom": 3}


def test_training_is_checked_by_its_own_peak_and_a_device_that_runs_nothing_by_none(phones):
    """RoBERTa-base at 512 tokens: a forward pass of 4 texts fits in 1 GiB, full fine-tuning does
    not, sending texts needs 0.
    """
    small = {"fleet": [{**group, "memory": "1 GiB"} for group in PHONES["fleet"]]}
    rounds = {"rounds": 1, "participation": 1, "device_batch": 4}
    assert {d.outcome for d in phones(None, **small).devices} == {"ok"}
    with pytest.raises(
        DoesNotFit,
        match=r"with this method random-bert.* needs .* GiB but the device has 1\.00 GiB",
    ):
        phones(None, **small, method={"kind": "fedavg-full", **rounds})
    recorded = phones(
        None, **small, method={"kind": "fedavg-full", **rounds}, out_of_memory="record"
    )
    assert {d.outcome for d in recorded.devices} == {"oom"}
    tiny = {"fleet": [{**group, "memory": "1 MiB"} for group in PHONES["fleet"]]}
    assert {
        d.outcome for d in phones(None, **tiny, method={"kind": "upload-raw-text"}).devices
    } == {"ok"}


@pytest.mark.parametrize("kind", ["fedavg-bitfit", "local-lora", "local-lst"])
def test_the_peak_that_is_checked_is_the_peak_that_is_held(kind, phones):
    rounds = {} if kind == "local-lst" else {"rounds": 1}
    sim = phones(None, method={"kind": kind, **rounds}, arrivals={"kind": "at-once"})
    worked = [device for device in sim.devices if device.peak_memory_bytes]
    assert worked
    assert all(sim.method.peak_bytes(device) == device.peak_memory_bytes for device in worked)


# --- energy


def test_joules_of_a_transfer_follow_its_rate_where_it_is_asked_for(phones):
    plain, by_rate = phones(), phones({"radio_power_by_rate": True})
    power = profile_of("phone-2024-flagship").engine("simple").power
    for was, now in zip(spans(plain, "device-0000"), spans(by_rate, "device-0000"), strict=True):
        if was["kind"] == "upload":
            mbit = now["nbytes"] * 8e-6
            assert now["joules"] == pytest.approx(
                power.uplink_base_w * seconds(now) + power.uplink_w_per_mbps * mbit, rel=1e-12
            )
            assert was["joules"] == pytest.approx(power.uplink_w * seconds(was), rel=1e-12)
        elif was["kind"] == "compute":
            assert was["joules"] == now["joules"]


def test_energy_by_state_sums_to_the_energy_of_all_devices(phones):
    sim = phones(EVERYTHING)
    told = summary(sim, "", device_table(sim), 0.0)
    assert set(told["energy_by_state"]) == {"compute", "uplink", "downlink", "idle"}
    assert min(told["energy_by_state"].values()) > 0
    assert sum(told["energy_by_state"].values()) == pytest.approx(
        told["totals"]["device_energy_j"], rel=1e-12
    )


# --- the run as a whole


def test_a_real_run_has_the_spans_of_the_dry_one_and_its_own_digest_again(simulate, mark):
    changes = {**PHONES, "devices": EVERYTHING}
    dry, real, threads = (
        simulate(dry=True, **changes),
        simulate(**changes),
        simulate(workers=2, **changes),
    )
    assert dry.recorder.spans().equals(real.recorder.spans())
    assert mark(real) == mark(threads)
    assert {
        d.conditions.throttle is NO_THROTTLE or d.conditions.load is ALWAYS_QUIET
        for d in dry.devices
    } == {False}


@pytest.mark.fetched
@pytest.mark.parametrize(
    ("override", "takes_s"),
    [("seed=0", 827.7), ("devices.battery=null", 248.4), ("devices=null", 162.4)],
)
def test_hot_phones_take_as_long_as_the_docs_say(override, takes_s):
    scenario = load("hot_phones", Scenario, [override], [SCENARIOS], problems)
    assert Simulation(scenario, SCENARIOS, dry=True).run().at_s == pytest.approx(takes_s, abs=0.1)


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ({"battery": {"stop_below": 0.5, "resume_at": 0.4}}, "resume_at must be above stop_below"),
        ({"battery": {"hours": ["22 h", "22 h"]}}, "two different times of day"),
        ({"memory_pressure": {"share": [0.6, 0.3]}}, "the first must not be above the second"),
        ({"background_load": {"left": [0.9, 0.5]}}, "the first must not be above the second"),
        ({"background_load": {"left": [0.0, 0.5]}}, "greater than 0"),
        ({"thermo": True}, "thermal"),
    ],
)
def test_mistakes_are_answered_in_the_file(devices, says, phones):
    with pytest.raises(ScenarioError, match=says):
        phones(devices)


def test_a_charger_that_cannot_keep_up_is_refused(phones):
    with pytest.raises((CannotBuild, ValueError), match="stronger charger or more hours"):
        phones({"battery": {"charger": "0.4 W"}})
