"""Joules: what spans bear adds up to the integral of the device's power over time, and the battery
gives the same joules.
"""

import math
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

import devices.profile
from devices.hardware import Power
from devices.power import energy_j
from sim.kernel.spans import EnergyMeter
from sim.results.summary import device_table, summary
from sim.scenario.file import ScenarioError

every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, small, CALM, hard = (every_method[name] for name in ("KINDS", "small", "CALM", "hard"))
OFF = ("offline", "empty")
STATES = {"compute": "compute_w", "upload": "uplink_w", "download": "downlink_w"}
WAYS = {"upload": "uplink", "download": "downlink"}


NO_WAIT = (
    "fed-mobillm",
    "pae-mobillm",
    "mobillm",
    "single-side-network",
    "fedasync",
    "fedbuff",
    "spry",
)
# where that is not all of downloading, computing, uploading, and waiting for a round to close
WHAT_DEVICES_DO = {
    **{kind: {"download", "compute", "upload"} for kind in NO_WAIT},
    **{kind: {"compute"} for kind in ("local-lora", "local-lst")},
    "upload-raw-text": {"upload"},
    "centralised": set(),
}


SENDS_MORE_THAN_COMPUTES = (
    "fedavg-full",
    "splitfed-v1",
    "splitfed-v2",
    "fedbert",
    "upload-raw-text",
    "centralised",
)


def power_of(device) -> Power:
    return devices.profile.load(device.member.device).engine(device.member.engine).power


def mine(sim, device) -> list[dict]:
    return [s for s in sim.recorder.spans().to_pylist() if s["actor"] == device.id]


def line(power: Power, kind: str, by_rate: bool) -> tuple[float, float]:
    """Watts of the whole device in a kind of span alone, and joules a byte beside them."""
    way = WAYS.get(kind)
    if by_rate and way and getattr(power, f"{way}_base_w") is not None:
        return getattr(power, f"{way}_base_w"), getattr(power, f"{way}_w_per_mbps") * 8e-6
    return getattr(power, STATES.get(kind, "idle_w")), 0.0


def pieces(spans: list[dict], power: Power, by_rate: bool, until_s: float):
    """(from, until, watts above idle, whether any span that is on is open): constant between all
    edges, from 0 to `until_s`.
    """
    edges = sorted({0.0, until_s, *(s["start_s"] for s in spans), *(s["end_s"] for s in spans)})
    for a, b in pairwise(edges):
        now = [s for s in spans if s["start_s"] <= a and b <= s["end_s"] and s["kind"] not in OFF]
        above_w = sum(line(power, s["kind"], by_rate)[0] - power.idle_w for s in now)
        above_w += sum(
            line(power, s["kind"], by_rate)[1] * s["nbytes"] / (s["end_s"] - s["start_s"])
            for s in now
        )  # its bytes, spread over the span: the integral is the same
        yield a, b, above_w, bool(now)


def integral_j(sim, device) -> float:
    """The integral of P(t) = idle + what is drawn above it, over all times at which a span of the
    device is open.
    """
    power, by_rate = power_of(device), bool(device.conditions) and device.conditions.radio_by_rate
    parts = pieces(mine(sim, device), power, by_rate, sim.ended.at_s)
    lumps = [  # what had no length has its bytes' joules nevertheless
        line(power, s["kind"], by_rate)[1] * s["nbytes"]
        for s in mine(sim, device)
        if s["end_s"] == s["start_s"]
    ]
    return math.fsum(
        [(b - a) * (power.idle_w + above_w) for a, b, above_w, is_on in parts if is_on] + lumps
    )


def overlaps(sim) -> float:
    """Seconds in which some device had two spans open, neither of them off."""
    found = 0.0
    for device in sim.devices:
        ends_s = -1.0
        for s in sorted(
            (s for s in mine(sim, device) if s["kind"] not in OFF), key=lambda s: s["start_s"]
        ):
            found += max(0.0, min(ends_s, s["end_s"]) - s["start_s"])
            ends_s = max(ends_s, s["end_s"])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_over_spans_is_the_integral_of_the_power(kind, simulate, tmp_path):
    """In every method, on a calm day and on one of churn, drop-outs, heat, load, low batteries and
    memory that runs short.
    """
    calm = simulate(dry=True, method=small(kind), **CALM)
    rough = simulate(dry=True, method=small(kind), **hard(tmp_path, calm))
    does = {
        s["kind"] for s in calm.recorder.spans().to_pylist() if s["actor"].startswith("device-")
    }
    assert does >= WHAT_DEVICES_DO.get(kind, {"download", "compute", "upload", "wait"})
    outcomes = {s["outcome"] for s in rough.recorder.spans().to_pylist()}
    assert "low-battery" in outcomes or kind in SENDS_MORE_THAN_COMPUTES
    assert outcomes & {"offline", "oom", "dropped"} or kind == "centralised"
    for sim in (calm, rough):
        assert (overlaps(sim) > 0) == (kind == "mobillm")
        table = device_table(sim)
        for device, told_j in zip(sim.devices, table["energy_j"].to_pylist(), strict=True):
            spans, expected_j = mine(sim, device), integral_j(sim, device)
            assert told_j == pytest.approx(expected_j, rel=1e-9)
            assert all(s["joules"] == 0 for s in spans if s["kind"] in OFF)
            if kind != "mobillm":  # each span alone bears all of what its state draws
                by_rate = bool(device.conditions) and device.conditions.radio_by_rate
                for s in spans:
                    watts, j_per_byte = (
                        (0.0, 0.0)
                        if s["kind"] in OFF
                        else line(power_of(device), s["kind"], by_rate)
                    )
                    alone_j = watts * (s["end_s"] - s["start_s"]) + j_per_byte * s["nbytes"]
                    assert s["joules"] == pytest.approx(alone_j, rel=1e-12)
        told = summary(sim, "", table, 0.0)
        total_j = math.fsum(integral_j(sim, device) for device in sim.devices)
        assert told["totals"]["device_energy_j"] == pytest.approx(total_j, rel=1e-9)
        assert sum(told["energy_by_state"].values()) == pytest.approx(total_j, rel=1e-9)


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_devices_that_compute_and_send_at_once_idle_once(wire, simulate):
    """Closed form of `devices.power` over each device's run: MobiLLM, whose uploads overlap the
    next forward pass.
    """
    sim = simulate(dry=True, method={**small("mobillm"), "wire": wire}, **CALM)
    for device in sim.devices:
        spans, power = mine(sim, device), power_of(device)
        states = {"compute": "compute", "upload": "uplink", "download": "downlink", "wait": "idle"}
        told = [(states[s["kind"]], s["start_s"], s["end_s"]) for s in spans]
        windows = []  # in which the device did anything
        for _, start_s, end_s in sorted(told, key=lambda span: span[1]):
            if windows and start_s <= windows[-1][1]:
                windows[-1][1] = max(windows[-1][1], end_s)
            else:
                windows.append([start_s, end_s])
        expected_j = sum(energy_j(power, told, *window) for window in windows)
        twice_j = sum(
            getattr(power, f"{state}_w") * (end_s - start_s) for state, start_s, end_s in told
        )
        assert sum(s["joules"] for s in spans) == pytest.approx(expected_j, rel=1e-9)
        assert twice_j > 1.001 * expected_j


POWER = Power(idle_w=2.0, compute_w=12.0, uplink_w=4.0, downlink_w=3.0)
TIMES = st.integers(0, 40)
SPANS = st.lists(
    st.tuples(st.sampled_from(["compute", "uplink", "downlink", "idle"]), TIMES, TIMES), max_size=8
)


@given(SPANS)
def test_however_spans_overlap_the_idle_power_is_borne_once(spans):
    """Random spans of one device: each bears between what it adds and all, together they bear the
    integral.
    """
    env, borne = simpy.Environment(), []
    spans = [(state, min(a, b), max(a, b)) for state, a, b in spans]
    meter = EnergyMeter(env, POWER.idle_w)

    def live(state: str, start_s: float, end_s: float):
        yield env.timeout(start_s)
        watts = getattr(POWER, f"{state}_w")
        draw = meter.begin(watts)
        yield env.timeout(end_s - start_s)
        joules = meter.end(draw)
        assert (
            (watts - 2.0) * (end_s - start_s) - 1e-9 <= joules <= watts * (end_s - start_s) + 1e-9
        )
        borne.append(joules)

    for span in spans:
        env.process(live(*span))
    env.run()
    busy_s = sum(any(a <= t and t + 1 <= b for _, a, b in spans) for t in range(40))
    idle_j = energy_j(POWER, spans, 0.0, 40.0) - 2.0 * (40 - busy_s)
    assert sum(borne) == pytest.approx(idle_j, abs=1e-9)
    assert meter.above_idle_w == 0


def test_worked_number_of_the_docs():
    """Ten seconds of computing, of which the last five while sending, then five of waiting: 120 +
    10 + 10 J.
    """
    env, borne = simpy.Environment(), {}
    meter = EnergyMeter(env, POWER.idle_w)

    def live(what: str, start_s: float, seconds: float, watts: float):
        yield env.timeout(start_s)
        draw = meter.begin(watts)
        yield env.timeout(seconds)
        borne[what] = meter.end(draw)

    for what in (("compute", 0.0, 10.0, 12.0), ("upload", 5.0, 5.0, 4.0), ("wait", 10.0, 5.0, 2.0)):
        env.process(live(*what))
    env.run()
    assert borne == {"compute": 120.0, "upload": 10.0, "wait": 10.0}


# --- batteries

PHONE = {"count": 1, "device": "phone-2024-flagship", "backbone": "random-bert", "link": "lte"}
LONG = {  # a phone that has work for hours: a text every few minutes, minutes of computing each
    "task": {"dataset": {"classes": 3, "tokens": 512}, "train": 120, "test": 6, "max_tokens": 512},
    "fleet": [PHONE],
    "arrivals": {"kind": "at-once"},
    "jitter": False,
}


def held_at_the_end_j(sim, device, battery: dict, share: float) -> tuple[float, float, float]:
    """Charge at the end, least charge of all times, and joules that came in, by sweeping over spans
    and charging hours.
    """
    power, capacity_j = power_of(device), device.profile.battery_wh * 3600
    day_s, starts_s = 86_400.0, battery.get("starts_s", 0.0)
    first_s, last_s = battery["hours_s"]
    spans = mine(sim, device)
    off = [(s["start_s"], s["end_s"]) for s in spans if s["kind"] == "empty"]
    by_rate = bool(device.conditions.radio_by_rate)
    edges = [a for a, _, _, _ in pieces(spans, power, by_rate, sim.ended.at_s)] + [sim.ended.at_s]
    for day in range(-1, int(sim.ended.at_s / day_s) + 2):
        edges += [day * day_s + first_s - starts_s, day * day_s + last_s - starts_s]
    edges = sorted({e for e in edges if 0 <= e <= sim.ended.at_s})
    held_j = least_j = share * capacity_j
    came_j = 0.0
    steps = list(pieces(spans, power, by_rate, sim.ended.at_s))
    for a, b in pairwise(edges):
        above_w = next(w for from_s, until_s, w, _ in steps if from_s <= a and b <= until_s)
        clock_s = ((a + b) / 2 + starts_s) % day_s
        is_in = first_s <= clock_s < last_s if first_s < last_s else not last_s <= clock_s < first_s
        is_off = any(from_s <= a and b <= until_s for from_s, until_s in off)
        drain_w = 0.0 if is_off else power.idle_w + above_w
        before_j = held_j
        held_j = min(capacity_j, held_j + (10.0 * is_in - drain_w) * (b - a))
        came_j += held_j - before_j + drain_w * (b - a)
        least_j = min(least_j, held_j)
    return held_j, least_j, came_j


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["fed-mobillm", "mobillm", "fedavg-lora", "splitfed-v1"])
def test_an_empty_battery_switches_a_device_off_until_it_is_charged(kind, simulate):
    """From eight in the morning on three in a thousand, nothing stops the computing; plugged in at
    ten in the evening.
    """
    battery = {
        "initial": [0.003, 0.003],
        "stop_below": 0.0,
        "resume_at": 0.5,
        "hours": ["22 h", "6 h"],
        "starts_at": "8 h",
    }
    method = {**small(kind), "device_batch": 4} | ({"epochs": 4} if kind == "mobillm" else {})
    world = {**LONG, "method": method, "cost_as": {"backbone": "roberta-base", "tokens": 512}}
    sim = simulate(
        "stop.horizon=20 h",
        dry=True,
        devices={"battery": battery, "radio_power_by_rate": True},
        **world,
    )
    (device,) = sim.devices
    spans, capacity_j = mine(sim, device), device.profile.battery_wh * 3600
    cut = [s for s in spans if s["outcome"] == "battery"]
    empty = [s for s in spans if s["kind"] == "empty"]
    assert cut and empty
    assert {s["kind"] for s in cut} <= {"compute", "upload", "download"}
    # off from the end of what it was doing until it holds half of its capacity: 10 W from 22 h on,
    # and it draws nothing
    (first, *_) = empty
    assert first["start_s"] == pytest.approx(
        max(s["end_s"] for s in cut if s["end_s"] <= first["start_s"] + 1)
    )
    assert first["end_s"] == pytest.approx(14 * 3600 + 0.5 * capacity_j / 10, abs=1.0)
    assert not [
        s
        for s in spans
        if s not in empty and s["start_s"] < first["end_s"] and first["start_s"] < s["end_s"]
    ]
    assert [
        s for s in spans if s["kind"] == "compute" and s["start_s"] >= first["end_s"]
    ]  # and goes on
    # nothing is given that was not there: the sum of what it drew is what it held and what came in,
    # less what is left
    plan = {"hours_s": (22 * 3600, 6 * 3600), "starts_s": 8 * 3600}
    held_j, least_j, came_j = held_at_the_end_j(sim, device, plan, 0.003)
    assert least_j > -1e-6 * capacity_j
    assert device.conditions.charge.held_j() == pytest.approx(held_j, abs=1e-6 * capacity_j)
    assert sum(s["joules"] for s in spans) <= 0.003 * capacity_j + came_j
    wasted = summary(sim, "", device_table(sim), 0.0)["totals"]
    assert wasted["wasted_energy_j"] == pytest.approx(sum(s["joules"] for s in cut))


def levels(
    steps,
    off: list[tuple[float, float]],
    idle_w: float,
    held_j: float,
    goal_j: float,
    rounding_j: float,
):
    """(time, joules held) by hand: plugged in at 1 W from when it is down to a hair until the goal;
    off, it draws nothing.
    """
    is_plugged = False
    for a, b, above_w, _ in steps:
        drain_w, now_s = (0.0 if any(x <= a and b <= y for x, y in off) else idle_w + above_w), a
        while now_s < b:
            is_plugged = held_j < goal_j if is_plugged else held_j <= rounding_j
            net_w = is_plugged - drain_w
            to_j = goal_j if net_w > 0 else (rounding_j if held_j > rounding_j else -math.inf)
            step_s = min(b - now_s, (to_j - held_j) / net_w if net_w else math.inf)
            held_j, now_s = (
                (to_j if step_s < b - now_s else held_j + net_w * step_s),
                now_s + step_s,
            )
        yield b, held_j


@pytest.mark.parametrize("kind", KINDS)
def test_no_battery_gives_more_than_it_holds(kind, simulate, tmp_path):
    """A charger too weak for work: phones run empty and charge again and again, also where
    computing and sending overlap.
    """
    calm = simulate(dry=True, method=small(kind), **CALM)
    most_j = max(device_table(calm)["energy_j"].to_pylist())
    share = 0.15 * most_j / 70_000 or 1e-6
    world, battery = (
        hard(tmp_path, calm),
        {"initial": [share, share], "stop_below": 0.0, "resume_at": share},
    )
    conditions = {
        **world["devices"],
        "battery": {**battery, "charger": "1 W"},
        "radio_power_by_rate": False,
    }
    sim = simulate(
        dry=True,
        method=small(kind),
        **{**CALM, "devices": conditions, "stop": {"horizon": f"{50 * calm.ended.at_s} s"}},
    )
    cycles = 0
    for device in sim.devices:
        power, capacity_j = power_of(device), device.profile.battery_wh * 3600
        spans, goal_j, rounding_j = mine(sim, device), share * capacity_j, 1e-9 * capacity_j
        day_ends_s = sim.ended.at_s if device.finished_at_s is None else device.finished_at_s
        off = stretches([s for s in spans if s["kind"] == "empty"])
        steps = pieces(spans, power, False, sim.ended.at_s)
        told = dict(levels(steps, off, power.idle_w, goal_j, goal_j, rounding_j))
        assert all(held_j > -3 * rounding_j for at_s, held_j in told.items() if at_s <= day_ends_s)
        for begins_s, ends_s in off:
            assert told[begins_s] == pytest.approx(0.0, abs=3 * rounding_j)
            assert told[ends_s] == pytest.approx(goal_j, abs=3 * rounding_j) or ends_s == day_ends_s
        cycles += len(off)
    assert cycles >= 2 or kind == "centralised"


def stretches(spans: list[dict]) -> list[tuple[float, float]]:
    """Times that spans cover, those that touch in one."""
    found: list[list[float]] = []
    for s in sorted(spans, key=lambda s: s["start_s"]):
        if found and found[-1][1] == s["start_s"]:
            found[-1][1] = s["end_s"]
        else:
            found.append([s["start_s"], s["end_s"]])
    return [(a, b) for a, b in found]


def test_what_bytes_will_take_is_there_before_they_are_sent(simulate):
    """A radio whose joules come mostly by the byte: a phone that runs empty in the middle of an
    upload never overdraws.
    """
    sim = simulate(
        dry=True,
        **LONG,
        method={"kind": "upload-raw-text", "bytes_per_token": 10_000, "device_batch": 60},
        devices={
            "battery": {"initial": [0.003, 0.003], "stop_below": 0.0, "charger": None},
            "radio_power_by_rate": True,
        },
    )
    (phone,) = sim.devices
    drawn_j, held_j = (
        sum(s["joules"] for s in mine(sim, phone)),
        0.003 * phone.profile.battery_wh * 3600,
    )
    assert phone.outcome == "never-charged"
    assert 0.2 * held_j < drawn_j <= held_j


def test_what_nobody_charges_is_gone_when_it_is_empty(simulate):
    """On three in a thousand without a charger: it computes until it is empty, and it ends
    there.
    """
    sim = simulate(
        dry=True,
        **{**LONG, "fleet": [PHONE, {**PHONE, "device": "jetson-tx2"}]},
        cost_as={"backbone": "roberta-base", "tokens": 512},
        devices={"battery": {"initial": [0.001, 0.001], "stop_below": 0.0, "charger": None}},
    )
    phone, board = sim.devices
    assert (phone.outcome, board.outcome, sim.ended.reason) == ("never-charged", "ok", "exhausted")
    spans, capacity_j = mine(sim, phone), phone.profile.battery_wh * 3600
    last = spans[-1]
    assert last["outcome"] == "battery"
    drawn_j = sum(s["joules"] for s in spans)
    assert drawn_j == pytest.approx(0.001 * capacity_j, rel=1e-6)  # it was never without a span
    assert phone.conditions.charge.held_j() <= 1e-9 * capacity_j


def test_a_low_phone_that_nobody_charges_waits_until_it_is_empty(simulate):
    sim = simulate(
        dry=True,
        **LONG,
        cost_as={"backbone": "roberta-base", "tokens": 512},
        devices={"battery": {"initial": [0.2, 0.2], "stop_below": 0.2, "charger": None}},
    )
    (phone,) = sim.devices
    (only,) = mine(sim, phone)
    assert (only["kind"], only["outcome"], phone.outcome) == ("charge", "battery", "never-charged")
    assert only["end_s"] == pytest.approx(
        0.2 * phone.profile.battery_wh * 3600 / power_of(phone).idle_w, rel=1e-6
    )


def test_hours_without_a_charger_are_refused(simulate):
    with pytest.raises(ScenarioError, match="hours are those of a charger"):
        simulate(dry=True, **LONG, devices={"battery": {"charger": None, "hours": ["22 h", "6 h"]}})


def test_a_device_that_is_off_for_two_reasons_is_back_when_both_are_gone(simulate, tmp_path):
    """Offline from 20 s to 1,000 s, and empty from when idling has taken the rest until it is
    charged at night.
    """
    (tmp_path / "two.csv").write_text("device,ready_start_s,ready_end_s\na,0,20\na,1000,80000\n")
    battery = {
        "initial": [0.003, 0.003],
        "stop_below": 0.0,
        "resume_at": 0.1,
        "hours": ["22 h", "6 h"],
        "starts_at": "8 h",
    }
    sim = simulate(
        dry=True,
        **LONG,
        cost_as={"backbone": "roberta-base", "tokens": 512},
        devices={"battery": battery},
        availability={"kind": "trace", "path": "two.csv", "period": "1 d"},
    )
    (phone,) = sim.devices
    spans, capacity_j, power = mine(sim, phone), phone.profile.battery_wh * 3600, power_of(phone)
    off = [(s["kind"], s["start_s"], s["end_s"]) for s in spans if s["kind"] in OFF]
    left_j = 0.003 * capacity_j - sum(s["joules"] for s in spans if s["end_s"] <= 20)
    empty_s, back_s = 20 + left_j / power.idle_w, 14 * 3600 + 0.1 * capacity_j / 10
    assert [kind for kind, *_ in off] == ["offline", "empty", "empty"]
    assert [edge for _, *edges in off for edge in edges] == pytest.approx(
        [20, empty_s, empty_s, 1000, 1000, back_s], abs=0.01
    )
    assert min(
        s["start_s"] for s in spans if s["start_s"] > 20 and s["kind"] not in OFF
    ) == pytest.approx(back_s, abs=0.01)
    assert phone.outcome == "ok"
