"""Compute time: the worked number, the bounds of the formula, the law of the jitter."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from devices import compute, profile
from devices.compute import ComputeModel

TX2 = profile.load("jetson-tx2")
AMOUNTS = st.floats(0, 1e15)


def test_worked_number_of_the_docs():
    """RoBERTa-base, one batch of 8 x 128 tokens on a TX2: 5 ms + 502.5 ms + 10.4 ms."""
    by_hand_s = 0.005 + 178.4e9 / 355e9 + 340e6 / 32.84e9
    assert by_hand_s == pytest.approx(0.5179, abs=5e-5)
    assert compute.seconds(TX2, "simple", flop=178.4e9, bytes_moved=340e6) == pytest.approx(
        0.5179, abs=5e-5
    )


def test_no_work_costs_the_overhead():
    assert compute.seconds(TX2, "simple", 0, 0) == TX2.engine("simple").overhead_s


@given(flop=AMOUNTS, bytes_moved=AMOUNTS)
def test_between_the_roofline_and_twice_the_roofline(flop, bytes_moved):
    engine = TX2.engine("simple")
    roofline_s = max(flop / engine.flop_per_s, bytes_moved / TX2.memory_bandwidth_bytes_per_s)
    busy_s = compute.seconds(TX2, "simple", flop, bytes_moved) - engine.overhead_s
    slack_s = 1e-9 * (roofline_s + 1)
    assert roofline_s - slack_s <= busy_s <= 2 * roofline_s + slack_s


@given(flop=AMOUNTS, more=AMOUNTS)
def test_cutting_work_in_two_costs_one_more_overhead(flop, more):
    overhead_s = TX2.engine("simple").overhead_s
    whole = compute.seconds(TX2, "simple", flop + more)
    pieces = compute.seconds(TX2, "simple", flop) + compute.seconds(TX2, "simple", more)
    assert pieces == pytest.approx(whole + overhead_s, rel=1e-9)


@pytest.mark.parametrize("flop, bytes_moved", [(-1, 0), (0, -1), (math.nan, 0), (0, math.inf)])
def test_impossible_work_is_refused(flop, bytes_moved):
    with pytest.raises(ValueError, match="finite and not negative"):
        compute.seconds(TX2, "simple", flop, bytes_moved)


@pytest.mark.parametrize("cv", [0.02, 0.1, 0.8])
def test_jitter_is_log_normal_with_mean_one_and_the_given_cv(cv):
    rng = np.random.default_rng(7)
    n = 20_000
    draws = np.array([compute.jitter_factor(cv, rng) for _ in range(n)])
    assert draws.mean() == pytest.approx(1, abs=5 * cv / math.sqrt(n))
    assert draws.std() == pytest.approx(cv, rel=0.05)
    sigma = math.sqrt(math.log(1 + cv**2))
    assert stats.kstest(np.log(draws), "norm", args=(-(sigma**2) / 2, sigma)).pvalue > 0.001


def test_no_variation_means_a_factor_of_exactly_one():
    assert compute.jitter_factor(0.0, np.random.default_rng(0)) == 1.0


def test_the_model_jitters_around_the_formula_by_the_profiles_cv():
    model = ComputeModel(TX2, "simple", np.random.default_rng(3))
    times_s = np.array([model.seconds(178.4e9, 340e6) for _ in range(5_000)])
    assert times_s.mean() == pytest.approx(0.5179, rel=0.002)
    assert times_s.std() / times_s.mean() == pytest.approx(TX2.jitter_cv, rel=0.05)


def test_the_model_without_generator_or_with_jitter_off_is_the_formula():
    nominal_s = compute.seconds(TX2, "simple", 1e12, 1e9)
    rng = np.random.default_rng(0)
    assert ComputeModel(TX2, "simple").seconds(1e12, 1e9) == nominal_s
    assert ComputeModel(TX2, "simple", rng, jitter=False).seconds(1e12, 1e9) == nominal_s
    assert rng.random() == np.random.default_rng(0).random(), (
        "a model without jitter must not touch the stream"
    )


def test_same_stream_same_times():
    first, second = (ComputeModel(TX2, "simple", np.random.default_rng(5)) for _ in range(2))
    assert [first.seconds(1e12) for _ in range(20)] == [second.seconds(1e12) for _ in range(20)]


def test_an_unknown_engine_is_refused_at_once():
    with pytest.raises(ValueError, match="known: simple"):
        ComputeModel(TX2, "warp")
