"""Throttling: the closed forms against brute force and Lambert's W, and the fit against measured
runs.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import wrightomega

from devices import profile
from devices.thermal import RECOVERY, Throttle, ThrottleFit, fit, throttle_of

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
PHONE = throttle_of(profile.load("phone-2024-flagship"))
THROTTLES = st.builds(Throttle, st.floats(0.1, 1), st.floats(1, 300), st.floats(1, 1500))
HEATS, NOMINALS = st.floats(0, 1), st.floats(1e-3, 1e5)


def test_worked_numbers_of_the_docs():
    """Two minutes' worth of a cold flagship's work, ten minutes' rest, and the same again."""
    first_s = PHONE.seconds(0.0, 120.0)
    heat = PHONE.after_rest(PHONE.after_work(0.0, first_s), 600.0)
    assert first_s == pytest.approx(197.1, abs=0.05)
    assert PHONE.speed(PHONE.after_work(0.0, first_s)) == pytest.approx(0.514, abs=5e-4)
    assert heat == pytest.approx(0.0233, abs=5e-5)
    assert PHONE.seconds(heat, 120.0) == pytest.approx(198.0, abs=0.05)
    assert PHONE.seconds(PHONE.after_work(0.0, first_s), 120.0) == pytest.approx(235.0, abs=0.05)


@settings(deadline=None)
@given(throttle=THROTTLES, heat=HEATS, nominal_s=NOMINALS)
def test_the_inverse_is_one_and_lies_between_its_bounds(throttle, heat, nominal_s):
    seconds = throttle.seconds(heat, nominal_s)
    assert throttle.done_s(heat, seconds) == pytest.approx(nominal_s, rel=1e-12)
    assert nominal_s * (1 - 1e-12) <= seconds <= nominal_s / throttle.floor * (1 + 1e-12)


@settings(deadline=None)
@given(throttle=THROTTLES, heat=HEATS, nominal_s=st.floats(1, 1e4))
def test_the_inverse_is_that_of_lamberts_w(throttle, heat, nominal_s):
    """f t + A (1 - e^(-t/tau)) = w solved for t with the Wright omega function, which is W(e^x)."""
    slope, room = (
        throttle.floor * throttle.tau_s,
        (1 - throttle.floor) * (1 - heat) * throttle.tau_s,
    )
    if room < 1e-6:
        return  # then the speed is constant, and the logarithm below has nothing to say
    c = (nominal_s - room) / slope
    closed_s = throttle.tau_s * (c + wrightomega(np.log(room / slope) - c).real)
    assert throttle.seconds(heat, nominal_s) == pytest.approx(
        closed_s, rel=1e-8, abs=1e-8 * throttle.tau_s
    )


@settings(deadline=None)
@given(throttle=THROTTLES, heat=HEATS, pieces=st.lists(st.floats(0, 500), min_size=1, max_size=6))
def test_cutting_work_and_rest_into_pieces_changes_nothing(throttle, heat, pieces):
    hot, cold, done_s = heat, heat, 0.0
    for seconds in pieces:
        done_s += throttle.done_s(hot, seconds)
        hot, cold = throttle.after_work(hot, seconds), throttle.after_rest(cold, seconds)
    assert hot == pytest.approx(throttle.after_work(heat, sum(pieces)), abs=1e-9)
    assert cold == pytest.approx(throttle.after_rest(heat, sum(pieces)), abs=1e-9)
    assert done_s == pytest.approx(throttle.done_s(heat, sum(pieces)), rel=1e-9, abs=1e-9)


def test_a_history_of_work_and_rest_is_the_solution_of_the_differential_equation():
    history = [(True, 35.0), (False, 60.0), (True, 120.0), (False, 5.0), (True, 10.0)]
    step_s, heat, done_s = 1e-3, 0.0, 0.0
    exact_heat, exact_s = 0.0, 0.0
    for is_busy, seconds in history:
        for _ in range(round(seconds / step_s)):
            slope = (1 - heat) / PHONE.tau_s if is_busy else -heat / PHONE.recover_s
            middle = heat + slope * step_s / 2
            done_s += is_busy * PHONE.speed(middle) * step_s
            heat += step_s * ((1 - middle) / PHONE.tau_s if is_busy else -middle / PHONE.recover_s)
        if is_busy:
            exact_s += PHONE.done_s(exact_heat, seconds)
            exact_heat = PHONE.after_work(exact_heat, seconds)
        else:
            exact_heat = PHONE.after_rest(exact_heat, seconds)
    assert exact_heat == pytest.approx(heat, abs=1e-8)
    assert exact_s == pytest.approx(done_s, rel=1e-8)


def test_only_devices_that_throttle_have_a_throttle():
    assert throttle_of(profile.load("jetson-tx2")) is None
    assert pytest.approx(RECOVERY * PHONE.tau_s) == PHONE.recover_s
    with pytest.raises(ValueError, match="floor must be in"):
        Throttle(0.0, 40.0, 160.0)


@settings(deadline=None, max_examples=25)
@given(floor=st.floats(0.3, 0.9), tau_s=st.floats(10, 100), seed=st.integers(0, 99))
def test_the_fit_finds_the_curve_it_was_given(floor, tau_s, seed):
    time_s = np.arange(400.0)
    rate = ThrottleFit(50.0, floor, tau_s).rate(time_s) * np.random.default_rng(seed).lognormal(
        0, 0.01, 400
    )
    found = fit(time_s, rate)
    assert found.floor == pytest.approx(floor, abs=0.03)
    assert found.burst == pytest.approx(50.0, rel=0.03)
    np.testing.assert_allclose(
        found.rate(time_s), ThrottleFit(50.0, floor, tau_s).rate(time_s), rtol=0.02
    )


def test_the_fit_names_mistakes():
    with pytest.raises(ValueError, match="at least 10"):
        fit([0, 1], [1, 1])
    with pytest.raises(ValueError, match="above 0"):
        fit(range(10), [0.0] * 10)


@pytest.fixture(scope="module")
def cold_runs() -> list[tuple[np.ndarray, np.ndarray]]:
    """(time, rate) of the ten measured runs that began in thermal state nominal or fair."""
    if not TRACES.is_dir():
        pytest.skip("the measured series are not here")
    with (TRACES / "thermal_iphone17pro_index.csv").open() as file:
        cold = {
            row["run"]
            for row in csv.DictReader(file)
            if row["thermal_start"] in ("nominal", "fair")
        }
    samples: dict[str, list[tuple[float, float]]] = {run: [] for run in sorted(cold)}
    with (TRACES / "thermal_iphone17pro.csv").open() as file:
        for row in csv.DictReader(file):
            if row["run"] in samples:
                samples[row["run"]].append((float(row["sample"]), float(row["decode_tok_s"])))
    return [tuple(np.array(rows).T) for rows in samples.values()]


def test_five_minutes_of_a_measured_run_predict_the_rest(cold_runs):
    """Median error of the tail's mean rate 1 %, largest 12 %; assuming no throttling, the median
    would be 77 %.
    """
    errors, naive = [], []
    for time_s, rate in cold_runs:
        head, tail = time_s < 300, rate[time_s >= 300].mean()
        errors.append(abs(fit(time_s[head], rate[head]).rate(time_s[~head]).mean() / tail - 1))
        naive.append(abs(rate[:5].mean() / tail - 1))
    assert len(errors) == 10
    assert np.median(errors) <= 0.02
    assert max(errors) <= 0.15
    assert np.median(naive) >= 0.5


def test_profiles_carry_the_medians_of_the_measured_runs(cold_runs):
    fits = [fit(time_s, rate) for time_s, rate in cold_runs]
    phone = profile.load("phone-iphone-17-pro")
    assert np.median([f.floor for f in fits]) == pytest.approx(phone.sustained_factor, abs=0.01)
    assert np.median([f.tau_s for f in fits]) == pytest.approx(phone.sustained_tau_s, abs=1.0)
