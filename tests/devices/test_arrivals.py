"""Arrivals: Poisson processes against their theory, order and stability of joining."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from devices.arrivals import (
    DAY_S,
    by_hour,
    data_burst,
    data_diurnal,
    data_poisson,
    data_present,
    data_traced,
    join_burst,
    join_diurnal,
    join_listed,
    join_poisson,
    join_together,
    pick,
    read_times,
)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_worked_number_of_the_docs():
    """30 devices with a mean gap of 2 s: the last joins at 60 s on average, standard deviation 2 x
    sqrt(30) = 10.95.
    """
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
    assert (
        data_poisson(n + more, 3.0, rng(seed))[:n].tolist()
        == data_poisson(n, 3.0, rng(seed)).tolist()
    )


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


# --- by the hour, in bursts, as recorded

NIGHT = [3.0] * 6 + [0.0] * 6 + [1.0] * 12  # three times as many by night, none in the morning


def test_times_by_the_hour_follow_the_profile_and_keep_the_mean():
    times_s = join_diurnal(40_000, 30.0, NIGHT, rng(0), starts_at_s=20 * 3600)
    assert times_s[-1] / 40_000 == pytest.approx(30.0, rel=0.03)
    hour = ((times_s + 20 * 3600) % DAY_S // 3600).astype(int)
    whole_days = times_s < times_s[-1] // DAY_S * DAY_S
    seen = np.bincount(hour[whole_days], minlength=24)
    assert seen[6:12].sum() == 0
    weight = np.array(NIGHT)[np.array(NIGHT) > 0]
    expected = weight / weight.sum() * seen.sum()
    assert stats.chisquare(seen[np.array(NIGHT) > 0], expected).pvalue > 0.001


def test_within_an_hour_times_by_the_hour_are_poisson():
    times_s = data_diurnal(20_000, 1.0, NIGHT, rng(1))
    night = times_s[times_s < 6 * 3600]
    rate = 3.0 * 24 / sum(NIGHT)
    assert stats.kstest(np.diff(night), "expon", args=(0, 1 / rate)).pvalue > 0.001


@given(
    st.lists(st.floats(0, 5), min_size=24, max_size=24).filter(lambda w: sum(w) > 0.1),
    st.floats(0, DAY_S),
)
def test_moving_to_the_hours_keeps_the_order_and_spends_what_the_profile_allows(
    weights, starts_at_s
):
    steady_s = np.linspace(0, 3 * DAY_S, 200)
    moved_s = by_hour(steady_s, weights, starts_at_s)
    assert (np.diff(moved_s) >= -1e-6).all()
    assert moved_s[-1] - moved_s[0] == pytest.approx(3 * DAY_S, abs=DAY_S)
    even = by_hour(steady_s, [1.0] * 24, starts_at_s)
    assert even == pytest.approx(steady_s, abs=1e-3)


@pytest.mark.parametrize("bad", [[1.0] * 23, [0.0] * 24, [-1.0] + [1.0] * 23, [float("nan")] * 24])
def test_a_profile_has_24_weights(bad):
    with pytest.raises(ValueError, match="24 weights"):
        by_hour([1.0], bad)


def test_bursts_come_together_with_exponential_gaps():
    times_s = np.sort(join_burst(10_000, 5, 60.0, rng(0), rng(1)))
    batches = times_s.reshape(-1, 5)
    assert (batches == batches[:, :1]).all()
    assert stats.kstest(np.diff(batches[:, 0], prepend=0), "expon", args=(0, 60.0)).pvalue > 0.001
    assert data_burst(7, 3, 60.0, rng(2), start_s=9).tolist() == sorted(
        data_burst(7, 3, 60.0, rng(2), start_s=9)
    )
    assert len(set(data_burst(7, 3, 60.0, rng(2)))) == 3
    with pytest.raises(ValueError, match="size is 0"):
        data_burst(1, 0, 1.0, rng(0))


def test_recorded_data_come_as_recorded_over_and_over():
    assert data_traced(3, [5, 1, 2], start_s=10).tolist() == [11.0, 12.0, 15.0]
    assert data_traced(5, [1, 2], period_s=10).tolist() == [1.0, 2.0, 11.0, 12.0, 21.0]
    with pytest.raises(ValueError, match="1 arrivals recorded for 2 samples"):
        data_traced(2, [1])
    for times_s in ([], [11]):
        with pytest.raises(ValueError, match="must hold all"):
            data_traced(2, times_s, period_s=10)


def test_records_are_read_and_drawn(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("time_s\n3\n1.5\n")
    assert read_times(path)[""].tolist() == [3.0, 1.5]
    path.write_text("time_ms;note\n1500,5;x\n")
    assert read_times(path)[""].tolist() == [1.5005]
    path.write_text("device,time_s\nb,3\na,1\nb,2\n")
    records = read_times(path)
    assert {name: times.tolist() for name, times in records.items()} == {
        "a": [1.0],
        "b": [3.0, 2.0],
    }
    assert {pick(records, rng(seed))[0] for seed in range(20)} == {1.0, 3.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t\n1\n", "no column 'time_s' in t"),
        ("1\n2\n", "no column 'time_s' in a first line without names"),
        ("time_s\n", "no rows in it"),
        ("time_s\nx\n", "line 2, column 'time_s': expected"),
        ("time_s\n1\n-1\n", "line 3, column 'time_s': must be a number of seconds, at least 0"),
        ("time_s\n1\nnan\n", "line 3.*found 'nan'"),
        ("time_s\n1\n\n2,3\n", "line 4: 2 cells"),
        ("time_s,device\n1,a\n,b\n", "line 3, column 'time_s': a number is missing"),
        ("time\n1\n", "in which unit"),
        ("time\n2026-03-02T00:00:00\n", "counts from 1970"),
        ("time\n10:00:00\n", "of which day"),
    ],
)
def test_what_is_no_record_is_refused(text, says, tmp_path):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_times(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match="cannot be opened"):
        read_times(tmp_path / "none.csv")
