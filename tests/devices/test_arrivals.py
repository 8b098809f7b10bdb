"""Arrivals: Poisson processes against their theory, order and stability of joining."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from devices.arrivals import data_poisson, data_present, join_listed, join_poisson, join_together


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_worked_number_of_the_docs():
    """30 devices with a mean gap of 2 s: the last joins at 60 s on average, standard deviation 2 x sqrt(30) = 10.95."""
    last_s = np.array([join_poisson(30, 2.0, rng(seed))[-1] for seed in range(2_000)])
    assert last_s.mean() == pytest.approx(60, abs=4 * 10.95 / np.sqrt(2_000))
    assert last_s.std() == pytest.approx(10.95, rel=0.07)


@pytest.mark.parametrize(
    "times_s", [join_poisson(5_000, 2.0, rng(1)), np.sort(join_poisson(5_000, 2.0, rng(2), rng(3)))]
)
def test_gaps_are_exponential(times_s):
    gaps_s = np.diff(times_s, prepend=0)
    assert stats.kstest(gaps_s, "expon", args=(0, 2.0)).pvalue > 0.001
    assert abs(np.corrcoef(gaps_s[1:], gaps_s[:-1])[0, 1]) < 4 / np.sqrt(5_000)


def test_counts_per_window_are_poisson():
    times_s = data_poisson(20_000, rate_per_s=4.0, rng=rng(4))
    counts = np.histogram(times_s, bins=np.arange(0, 4_500, 1.0))[0]
    seen = np.bincount(np.minimum(counts, 10), minlength=11)
    law = stats.poisson(4.0)
    expected = np.append(law.pmf(np.arange(10)), law.sf(9)) * len(counts)
    assert stats.chisquare(seen, expected).pvalue > 0.001


def test_every_device_is_equally_likely_to_come_first():
    first = [int(np.argmin(join_poisson(5, 1.0, rng(0), rng(seed)))) for seed in range(2_000)]
    assert stats.chisquare(np.bincount(first, minlength=5)).pvalue > 0.001


def test_without_an_order_stream_devices_come_in_fleet_order():
    assert (np.diff(join_poisson(100, 1.0, rng(0))) > 0).all()


@given(count=st.integers(1, 40), seed=st.integers(0, 100))
def test_one_more_device_leaves_the_order_of_the_others_and_the_moments_alone(count, seed):
    before = join_poisson(count, 2.0, rng(seed), rng(seed + 1))
    after = join_poisson(count + 1, 2.0, rng(seed), rng(seed + 1))
    assert np.argsort(after[:count]).tolist() == np.argsort(before).tolist()
    assert np.sort(after)[:count].tolist() == np.sort(before).tolist()


@given(n=st.integers(0, 50), more=st.integers(0, 50), seed=st.integers(0, 100))
def test_more_samples_leave_the_first_ones_alone(n, more, seed):
    assert data_poisson(n + more, 3.0, rng(seed))[:n].tolist() == data_poisson(n, 3.0, rng(seed)).tolist()


@given(start_s=st.floats(0, 1e5))
def test_nothing_arrives_before_the_start(start_s):
    assert (data_poisson(20, 3.0, rng(0), start_s) >= start_s).all()
    assert (join_poisson(20, 3.0, rng(0), rng(1), start_s) >= start_s).all()


def test_all_at_once():
    assert join_together(3).tolist() == [0.0] * 3
    assert join_together(2, at_s=5).tolist() == [5.0] * 2
    assert data_present(2, start_s=7).tolist() == [7.0] * 2


def test_a_list_is_taken_as_it_is_or_refused():
    assert join_listed([3, 0, 1.5], 3).tolist() == [3.0, 0.0, 1.5]
    with pytest.raises(ValueError, match="2 joining times listed for 3 devices"):
        join_listed([1, 2], 3)
    for bad in ([-1.0], [float("nan")]):
        with pytest.raises(ValueError, match="finite and at least 0"):
            join_listed(bad, 1)


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_a_gap_or_rate_must_be_positive(bad):
    with pytest.raises(ValueError, match="allowed: above 0"):
        join_poisson(1, bad, rng(0))
    with pytest.raises(ValueError, match="allowed: above 0"):
        data_poisson(1, bad, rng(0))
