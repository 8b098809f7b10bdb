"""Background load: a pure function of time with the shares that were asked for, and exact integrals
over it.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.load import ALWAYS_QUIET, background_load, work_done_s, work_seconds
from devices.thermal import Throttle

NEVER = Throttle(1.0, 1.0, 1.0)
PHONE = Throttle(0.51, 40.0, 160.0)
SEEDS = st.integers(0, 999)


def load(seed: int, **settings):
    return background_load(np.random.default_rng(seed), **settings)


@settings(deadline=None)
@given(seed=SEEDS, times_s=st.lists(st.floats(0, 5000), min_size=1, max_size=20))
def test_the_factor_at_a_time_does_not_depend_on_what_was_asked_before(seed, times_s):
    asked = load(seed)
    found = [asked.at(t) for t in times_s]
    assert found == [load(seed).at(t) for t in times_s]
    assert found == [asked.at(t) for t in times_s]


def test_shares_and_lengths_are_those_asked_for():
    """15 % of 2,000 devices are busy at any moment, also at the first, with 0.5 to 0.9 of their
    speed left.
    """
    devices = [load(seed) for seed in range(2000)]
    for at_s in (0.0, 1000.0, 4000.0):
        factors = np.array([device.at(at_s) for device in devices])
        busy = (
            factors < 0.85
        )  # of busy ones, uniform on 0.5 to 0.9, an eighth lies above; of quiet ones 0.06 % below
        assert busy.mean() == pytest.approx(0.15 * 0.875, abs=0.025)
        assert factors.min() >= 0.5
        assert np.exp(np.log(factors[factors > 0.9]).mean()) == pytest.approx(1.0, abs=0.01)
    spells = load(1, sigma=0.0)
    ends, values = zip(
        *(spell for spell, _ in zip(_ends(spells), range(4000), strict=False)), strict=True
    )
    lengths, quiet = np.diff((0.0, *ends)), np.array(values) == 1.0
    assert (quiet[1:] != quiet[:-1]).all()
    assert lengths[quiet].mean() == pytest.approx(340, rel=0.07)
    assert lengths[~quiet].mean() == pytest.approx(60, rel=0.07)


def _ends(spells):
    for value, end_s in spells.from_(0.0):
        yield end_s, value


def test_what_is_left_of_a_busy_device_does_not_shift_the_spells():
    one, other = load(3), load(3, left=(0.1, 0.2), sigma=0.0)
    times_s = np.linspace(0, 10_000, 500)
    was, now = np.array([[spells.at(t) for t in times_s] for spells in (one, other)])
    assert set(now[now > 0.5]) == {1.0}
    assert (was[now == 1.0] > 0.9 * np.exp(-0.2)).all() and (was[now < 0.5] <= 0.9).all()


@settings(deadline=None)
@given(
    seed=SEEDS, start_s=st.floats(0, 1000), nominal_s=st.floats(0.01, 2000), heat=st.floats(0, 1)
)
def test_work_takes_the_time_whose_integral_it_is(seed, start_s, nominal_s, heat):
    spells = load(seed)
    seconds = work_seconds(PHONE, spells, heat, start_s, nominal_s)
    assert work_done_s(PHONE, spells, heat, start_s, seconds) == pytest.approx(nominal_s, rel=1e-9)
    part_s = seconds / 3
    first = work_done_s(PHONE, spells, heat, start_s, part_s)
    rest_s = work_seconds(
        PHONE, spells, PHONE.after_work(heat, part_s), start_s + part_s, nominal_s - first
    )
    assert part_s + rest_s == pytest.approx(seconds, rel=1e-9)


def test_the_integral_is_that_of_brute_force():
    spells, step_s = load(7), 0.01
    middles_s = 50.0 + np.arange(0, 900, step_s) + step_s / 2
    heat = 1 - (1 - 0.2) * np.exp(-(middles_s - 50.0) / PHONE.tau_s)
    factors = np.array([spells.at(t) for t in middles_s[::10]]).repeat(10)
    brute_s = float(np.sum(PHONE.speed(heat) * factors) * step_s)
    assert work_done_s(PHONE, spells, 0.2, 50.0, 900.0) == pytest.approx(brute_s, rel=1e-3)


def test_without_load_and_throttle_work_takes_its_nominal_time():
    assert work_seconds(NEVER, ALWAYS_QUIET, 0.0, 12.0, 3.25) == 3.25
    assert work_seconds(PHONE, ALWAYS_QUIET, 0.3, 12.0, 30.0) == PHONE.seconds(0.3, 30.0)


def test_worked_number_of_the_docs():
    """Ten minutes' work on a device whose load has its default settings takes 10.5 minutes on
    average.
    """
    minutes = [work_seconds(NEVER, load(seed), 0.0, 0.0, 600.0) / 60 for seed in range(1000)]
    assert np.mean(minutes) == pytest.approx(10.5, abs=0.1)
