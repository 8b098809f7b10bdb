"""Energy: joules are the integral of power."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import profile
from devices.power import STATES, energy_j, joules, power_at_w, watts

TX2 = profile.load("jetson-tx2").engine("simple").power
TIMES = st.integers(0, 40).map(
    lambda k: k / 4
)  # quarters of a second, so that a sum over a fine grid is exact
SPANS = st.lists(
    st.tuples(st.sampled_from(STATES), TIMES, TIMES).map(lambda s: (s[0], min(s[1:]), max(s[1:]))),
    max_size=8,
)


def test_worked_number_of_the_docs():
    """A TX2 that computes for 10 s, sends for 5 s and then waits 5 s: 120 + 20 + 10 J."""
    spans = [("compute", 0.0, 10.0), ("uplink", 10.0, 15.0)]
    assert energy_j(TX2, spans, 0.0, 20.0) == pytest.approx(150.0)
    assert joules(TX2, "compute", 10) + joules(TX2, "uplink", 5) + joules(
        TX2, "idle", 5
    ) == pytest.approx(150.0)


def test_a_state_alone_draws_its_own_power_and_overlap_adds_what_is_above_idle():
    spans = [("compute", 0.0, 2.0), ("uplink", 1.0, 3.0)]
    assert [power_at_w(TX2, spans, t) for t in (0.5, 1.5, 2.5, 3.5)] == [12.0, 14.0, 4.0, 2.0]


@given(spans=SPANS, window=st.tuples(TIMES, TIMES))
def test_joules_are_the_integral_of_power(spans, window):
    start_s, end_s = min(window), max(window)
    step_s = (
        1 / 8
    )  # finer than any change of state, sampled in the middle: the Riemann sum is the integral
    middles_s = np.arange(start_s, end_s, step_s) + step_s / 2
    integral_j = sum(power_at_w(TX2, spans, t) * step_s for t in middles_s)
    assert energy_j(TX2, spans, start_s, end_s) == pytest.approx(integral_j, abs=1e-9)


@given(spans=SPANS, cuts=st.lists(TIMES, min_size=3, max_size=3).map(sorted))
def test_energy_is_conserved_over_a_cut(spans, cuts):
    a, b, c = cuts
    assert energy_j(TX2, spans, a, b) + energy_j(TX2, spans, b, c) == pytest.approx(
        energy_j(TX2, spans, a, c)
    )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="known: compute, uplink, downlink, idle"):
        watts(TX2, "dream")
    with pytest.raises(ValueError, match="cannot be negative"):
        joules(TX2, "idle", -1)
    with pytest.raises(ValueError, match="window ends"):
        energy_j(TX2, [], 2, 1)
    with pytest.raises(ValueError, match="uplink span ends"):
        energy_j(TX2, [("uplink", 2, 1)], 0, 1)


def test_uplink_power_of_a_phone_is_the_published_fit_at_20_mbit_s():
    phone = profile.load("phone-2024-flagship").engine("simple").power
    whole_phone_with_screen_w, base_with_screen_w = (2926 + 76.7 * 20) / 1000, 2.33
    assert phone.uplink_w - phone.idle_w == pytest.approx(
        whole_phone_with_screen_w - base_with_screen_w, abs=1e-3
    )
