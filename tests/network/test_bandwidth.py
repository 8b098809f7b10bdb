"""Capacity traces: what holds when, what they offer, where they come from."""

from math import inf

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs.files import FileProblem
from network.bandwidth import CapacityTrace, lognormal_ar1, read_csv
from network.errors import NetworkError
from network.profile import LinkProfile
from network.topology import Network


def test_steps_and_the_last_value_holds():
    trace = CapacityTrace([0, 2, 5], [10, 0, 30])
    assert [trace.at(t) for t in (0, 1.9, 2, 4, 5, 1e9)] == [10, 10, 0, 0, 30, 30]
    assert [trace.next_change(t) for t in (0, 2, 5)] == [2, 5, inf]
    assert trace.integral(1, 6) == pytest.approx(10 + 0 + 30)


def test_a_period_repeats():
    trace = CapacityTrace([0, 2], [10, 40], period_s=3)
    assert [trace.at(t) for t in (0, 2.5, 3, 5, 302.5)] == [10, 40, 10, 40, 40]
    assert [trace.next_change(t) for t in (0, 2, 3.5)] == [2, 3, 5]
    assert trace.integral(2.5, 6.5) == pytest.approx(20 + 60 + 5)


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(st.floats(1e-3, 10), min_size=1, max_size=6),
    start=st.floats(0, 1e5),
    periodic=st.booleans(),
    data=st.data(),
)
def test_walking_from_change_to_change_sums_to_the_integral(gaps, start, periodic, data):
    """Whatever the rounding, each change lies ahead, its step holds until the next, and the areas
    add up.
    """
    times = [0.0, *np.cumsum(gaps)[:-1].tolist()]
    rates = data.draw(st.lists(st.floats(0, 1e6), min_size=len(times), max_size=len(times)))
    trace = CapacityTrace(times, rates, float(sum(gaps)) * (1 + 1e-9) if periodic else None)
    t, area = start, 0.0
    for _ in range(20):
        change = trace.next_change(t)
        assert change > t
        if change == inf:
            break
        assert trace.at(np.nextafter(change, 0)) == trace.at(t)
        area += (change - t) * trace.at(t)
        t = change
    assert trace.integral(start, t) == pytest.approx(area, rel=1e-6, abs=1e-3)


def test_a_shared_link_is_re_rated_at_each_change_while_something_is_under_way():
    env = simpy.Environment()
    network = Network(env, traces={"ingress": CapacityTrace([0, 1], [8000, 800], period_s=2)})
    network.attach("phone", LinkProfile("fast", 1e9, 1e9, 0.0))
    transfer = network.upload("phone", 2000)  # 16 kbit: 8000 + 800, then 7200 of the next 8000
    env.run()  # and then there is nothing left to do, though the trace goes on for ever
    assert transfer.value == pytest.approx(2.9)
    assert network.shared["ingress"].bytes_carried == pytest.approx(2000)
    env.run(until=25.5)
    again = network.upload("phone", 150)  # 400 bit until 26, then 800 of the next 8000
    env.run()
    assert again.value == pytest.approx(26.1)


def test_csv_with_and_without_names(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("# walked\ntime_s,capacity_bps\n")
    with pytest.raises(FileProblem, match=r"trace\.csv: no rows"):
        read_csv(path)
    path.write_text("time_s,capacity_bps\n10,1e6\n11.5,0\n13,2000000\n")
    trace = read_csv(path, period_s=5)
    assert (
        trace.times_s == [0, 1.5, 3] and trace.capacity_bps == [1e6, 0, 2e6] and trace.period_s == 5
    )
    with pytest.raises(NetworkError, match=r"trace\.csv: .*period"):
        read_csv(path, period_s=2)
    path.write_text("0,5\n1,7\n")
    assert read_csv(path).capacity_bps == [5, 7]
    path.write_text("0,5\n1,fast\n")
    with pytest.raises(FileProblem, match="line 2"):
        read_csv(path)
    path.write_text("0,5\n0,7\n")
    with pytest.raises(FileProblem, match="increase"):
        read_csv(path)


def test_lognormal_ar1_has_the_moments_asked_for():
    trace = lognormal_ar1(30e6, cv=0.4, lag1=0.85, n_steps=100_000, rng=np.random.default_rng(5))
    x = np.array(trace.capacity_bps)
    assert x.mean() == pytest.approx(30e6, rel=0.02)
    assert x.std() / x.mean() == pytest.approx(0.4, rel=0.03)
    assert np.corrcoef(x[:-1], x[1:])[0, 1] == pytest.approx(0.85, abs=0.01)
    assert trace.period_s == 100_000
    assert lognormal_ar1(1e6, 0.0, 0.5, 3, np.random.default_rng(0)).capacity_bps == [1e6] * 3
    again = lognormal_ar1(30e6, cv=0.4, lag1=0.85, n_steps=100, rng=np.random.default_rng(5))
    assert (
        again.capacity_bps
        == lognormal_ar1(30e6, 0.4, 0.85, 100, np.random.default_rng(5)).capacity_bps
    )


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: CapacityTrace([], []),
        lambda: CapacityTrace([0, 1], [1]),
        lambda: CapacityTrace([1], [1]),
        lambda: CapacityTrace([0, 2, 2], [1, 1, 1]),
        lambda: CapacityTrace([0, 1], [1, -1]),
        lambda: CapacityTrace([0, 1], [1, inf]),
        lambda: CapacityTrace([0, 2], [1, 1], period_s=2),
        lambda: CapacityTrace([0], [1]).at(-1),
        lambda: lognormal_ar1(1e6, 0.5, 1.0, 3, np.random.default_rng(0)),
    ],
)
def test_mistakes_are_named(mistake):
    with pytest.raises(NetworkError):
        mistake()
