"""Batteries: charge is the integral of power, crossings are where brute force finds them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import profile
from devices.battery import DAY_S, JOULES_PER_WH, Battery, Charger, TopUp

HOUR_S = 3600.0
NIGHTLY = Charger(10.0, 22 * HOUR_S, 6 * HOUR_S, start_s=18 * HOUR_S)
HOURS = st.integers(0, 23).map(lambda h: h * HOUR_S)
CHARGERS = st.tuples(HOURS, HOURS, HOURS, st.floats(0, 20)).filter(lambda x: x[0] != x[1])
CHARGERS = CHARGERS.map(lambda x: Charger(x[3], x[0], x[1], x[2]))


def brute(
    battery: Battery, charge_j: float, start_s: float, end_s: float, drain_w: float, step_s: float
) -> np.ndarray:
    """Charge at each step, by Euler's method."""
    charges = [charge_j]
    for middle_s in np.arange(start_s, end_s, step_s) + step_s / 2:
        c = battery.charger
        clock_s = (middle_s + c.start_s) % DAY_S
        is_in = (
            c.from_s <= clock_s < c.until_s
            if c.from_s < c.until_s
            else not c.until_s <= clock_s < c.from_s
        )
        charges.append(
            min(battery.capacity_j, max(0.0, charges[-1] + (is_in * c.watts - drain_w) * step_s))
        )
    return np.array(charges)


def test_worked_number_of_the_docs():
    """A flagship at 80 % that computes has 2 h 12.5 min until 20 %; plugged in, it is at half again
    after 32.8 minutes.
    """
    phone = profile.load("phone-2024-flagship")
    power = phone.engine("simple").power
    capacity_j = phone.battery_wh * JOULES_PER_WH
    battery = Battery(capacity_j)
    down_s = battery.seconds_until(0.2 * capacity_j, 0.8 * capacity_j, 0.0, power.compute_w)
    assert down_s / HOUR_S == pytest.approx(0.6 * 17.3 / 4.7)
    assert down_s / 60 == pytest.approx(132.5, abs=0.05)
    up_s = TopUp(10.0, 0.2 * capacity_j, 0.5 * capacity_j).seconds(0.2 * capacity_j, power.idle_w)
    assert up_s / 60 == pytest.approx(32.8, abs=0.05)


@settings(deadline=None)
@given(
    charger=CHARGERS,
    charge=st.floats(0, 1),
    drain_w=st.floats(0, 8),
    start=st.integers(0, 47),
    hours=st.integers(0, 60),
)
def test_charge_is_the_integral_of_power_between_empty_and_full(
    charger, charge, drain_w, start, hours
):
    battery = Battery(60_000.0, charger)
    start_s, end_s = start * HOUR_S / 2, (start / 2 + hours) * HOUR_S
    stepped = brute(battery, charge * 60_000, start_s, end_s, drain_w, 900.0)[
        -1
    ]  # changes fall on quarters of an hour
    assert battery.after(charge * 60_000, start_s, end_s, drain_w) == pytest.approx(
        stepped, abs=1e-6
    )


@settings(deadline=None)
@given(
    charger=CHARGERS,
    charge=st.floats(0, 1),
    level=st.floats(0.01, 0.99),
    drain_w=st.floats(0, 8),
    start=st.floats(0, 1e5),
)
def test_the_crossing_is_where_the_charge_first_has_the_level(
    charger, charge, level, drain_w, start
):
    battery = Battery(60_000.0, charger)
    level_j, charge_j = level * 60_000, charge * 60_000
    seconds = battery.seconds_until(level_j, charge_j, start, drain_w)
    side = np.sign(charge_j - level_j)
    looks_s = np.linspace(0, min(seconds, 3 * DAY_S), 40, endpoint=False)[1:]
    assert all(
        (battery.after(charge_j, start, start + s, drain_w) - level_j) * side >= -1e-3
        for s in looks_s
    )
    if math.isfinite(seconds):
        assert battery.after(charge_j, start, start + seconds, drain_w) == pytest.approx(
            level_j, abs=1e-2
        )
    assert battery.seconds_until(level_j, charge_j, start, drain_w, within_s=seconds / 2) in (
        seconds,
        math.inf,
    )


def test_a_night_fills_a_phone_and_a_charger_that_is_too_weak_never_does():
    battery = Battery(60_000.0, NIGHTLY)
    assert battery.after(30_000.0, 0.0, 12 * HOUR_S, 0.5) == 60_000.0  # 18:00 to 06:00
    assert (
        battery.after(30_000.0, 0.0, 4 * HOUR_S, 0.5) == 30_000.0 - 0.5 * 4 * HOUR_S
    )  # until it is plugged in
    weak = Battery(60_000.0, Charger(1.0, 0.0, HOUR_S))
    assert weak.seconds_until(50_000.0, 30_000.0, 0.0, 0.5) == math.inf
    slow = Battery(60_000.0, Charger(1.0, 0.0, 11 * HOUR_S))
    assert (
        1 * DAY_S < slow.seconds_until(58_000.0, 30_000.0, 0.0, 0.4) < 2 * DAY_S
    )  # a little more every day
    assert TopUp(0.5, 0.1, 2.0).seconds(1.0, 0.5) == math.inf
    assert TopUp(0.5, 0.1, 1.0).seconds(1.0, 0.5) == 0.0


@settings(deadline=None)
@given(
    charge=st.floats(0, 1),
    seconds=st.integers(0, 3000),
    drain_w=st.floats(0, 12),
    is_plugged=st.booleans(),
)
def test_topping_up_is_what_stepping_through_it_gives(charge, seconds, drain_w, is_plugged):
    """1,000 J, plugged in from 200 J to 500 J by 10 W, in steps of half a second."""
    top_up, charge_j, plugged = TopUp(10.0, 200.0, 500.0), 1000 * charge, is_plugged
    for _ in range(2 * seconds):
        plugged = charge_j < 500 if plugged else charge_j <= 200
        charge_j = max(0.0, charge_j + (10 * plugged - drain_w) * 0.5)
    found_j, now = top_up.after(1000 * charge, is_plugged, seconds, drain_w)
    late_j = 0.5 * 12 * (2 + seconds / 20)  # each turn comes up to half a step late
    assert found_j == pytest.approx(charge_j, abs=late_j)
    assert now or found_j >= 200 - 1e-6


@settings(deadline=None)
@given(
    parts=st.lists(st.floats(0, 500), min_size=1, max_size=8),
    charge=st.floats(0, 1000),
    drain_w=st.floats(0.1, 12),
)
def test_looking_in_between_changes_nothing(parts, charge, drain_w):
    top_up, state = TopUp(10.0, 200.0, 500.0), (charge, False)
    for seconds in parts:
        state = top_up.after(*state, seconds, drain_w)
    whole = top_up.after(charge, False, sum(parts), drain_w)
    assert state[0] == pytest.approx(whole[0], abs=1e-6)


def test_hours_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="two different ones"):
        Charger(10.0, HOUR_S, HOUR_S)
    with pytest.raises(ValueError, match="within 0 and 24 h"):
        Charger(10.0, 0.0, 25 * HOUR_S)
