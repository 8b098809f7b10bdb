"""A way that never opens: known without waiting, and no schedule keeps a run alive in which nothing
can move.
"""

from math import inf

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from network.bandwidth import CapacityTrace
from network.fair_link import FairLink
from network.mobility import Journey
from network.profile import LinkProfile
from network.route import LONGEST_S, Route
from network.topology import Cell, Network
from network.varying import ShiftedTrace, VaryingRate

PHONE = LinkProfile("phone", 8e6, 8e6, 0.01)
ZERO, TURNS = CapacityTrace([0, 1], [0, 0], 2), CapacityTrace([0, 1], [0, 8e6], 2)
OTHER_TURNS = CapacityTrace([0, 1], [8e6, 0], 2)


def rng(seed=0):
    return np.random.default_rng(seed)


def network(traces=None, cells=None, **how) -> Network:
    made = Network(simpy.Environment(), cells=cells, traces=traces)
    made.attach("a", PHONE, **how)
    return made


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(st.floats(1e-3, 10), min_size=1, max_size=6),
    start=st.floats(0, 1e5),
    offset=st.floats(0, 1e3),
    repeats=st.booleans(),
    data=st.data(),
)
def test_a_trace_opens_where_walking_from_change_to_change_finds_it_open(
    gaps, start, offset, repeats, data
):
    times = [0.0, *np.cumsum(gaps)[:-1].tolist()]
    rates = data.draw(
        st.lists(st.sampled_from([0.0, 0.0, 5.0, 7.0]), min_size=len(times), max_size=len(times))
    )
    trace = CapacityTrace(times, rates, float(sum(gaps)) * (1 + 1e-9) if repeats else None)
    for rate in (trace, ShiftedTrace(trace, offset)):
        t, opens = start, rate.opens(start)
        for _ in range(2 * len(times) + 1):
            if rate.at(t) > 0 or t == inf:
                break
            t = rate.next_change(t)
            if t == inf:
                break
        walked = t if t < inf and rate.at(t) > 0 else inf
        assert opens == pytest.approx(walked, rel=1e-12)


def test_all_that_lies_on_a_way_must_be_open_at_once():
    def opens_s(t_s, rate, trace=None):
        link = FairLink(simpy.Environment(), 1e9)
        link.trace = trace
        return Route(rate, {None: link}).opens(t_s)

    assert opens_s(0, 5e6) == 0 and opens_s(3.5, TURNS) == 3.5 and opens_s(2.5, TURNS) == 3
    assert opens_s(2.5, ZERO) == inf and opens_s(0, 0.0) == inf
    assert opens_s(0, TURNS, CapacityTrace([0, 5.5], [0, 1e6])) == 5.5
    assert opens_s(0, TURNS, OTHER_TURNS) == inf  # each is open half of the time, and never both
    assert opens_s(0, TURNS, CapacityTrace([0, 1], [0, 1e6], 3)) == 1
    assert (
        opens_s(0, 5e6, CapacityTrace([0, 2 * LONGEST_S], [0, 1e6])) == inf
    )  # nobody waits for that
    cells = {"a": FairLink(simpy.Environment(), 0), "b": FairLink(simpy.Environment(), 1e6)}
    journey = Journey(["a", "b"], 10, rng())
    found_s = Route(5e6, cells, journey).opens(0)
    assert journey.at(found_s) == "b" and (found_s == 0 or journey.at(found_s - 1e-9) == "a")
    assert Route(0.0, cells, journey).opens(0) == inf


def test_a_rate_at_which_it_would_take_years_is_none():
    link = FairLink(simpy.Environment(), 1e9)
    assert Route(1e-3, {None: link}).carries(3.1e4) and not Route(1e-3, {None: link}).carries(3.3e4)
    assert Route(VaryingRate(1, 0.5, 0.5, rng()), {None: link}).carries(1e15)


# whatever repeats here goes on for ever, and none of it can move a bit
STUCK = {
    "a trace of zeros": lambda: network(trace=ZERO),
    "a shifted one": lambda: network(trace=ShiftedTrace(ZERO, 0.3)),
    "zeros, and a shared link that changes": lambda: network(
        {"egress": TURNS, "ingress": OTHER_TURNS}, trace=ZERO
    ),
    "a shared link of zeros": lambda: network({"ingress": ZERO}),
    "one that ends in zero, and a rate that varies": lambda: network(
        {"ingress": CapacityTrace([0, 0.02], [8e6, 0])}, trace=VaryingRate(8e6, 0.5, 0.5, rng())
    ),
    "a rate and a link by turns": lambda: network({"ingress": OTHER_TURNS}, trace=TURNS),
    "cells of zero, and a journey": lambda: network(
        cells={name: Cell(0, 1e6) for name in "xy"},
        journey=Journey(["x", "y"], 1, rng()),
        handover_s=0.1,
    ),
    "a cell of zeros under a link that changes": lambda: network(
        {"x/up": ZERO, "ingress": TURNS}, {"x": Cell(8e6, 8e6)}, cell="x"
    ),
    "air of zeros": lambda: network(
        {"x/up": ZERO}, {"x": Cell(kind="wifi")}, cell="x", trace=TURNS
    ),
    "a millionth of a bit a second": lambda: network(trace=CapacityTrace([0, 1], [1e-6, 2e-6], 2)),
    "zeros with TCP": lambda: network(trace=ZERO, tcp=True),
}


@pytest.mark.parametrize("make", STUCK.values(), ids=STUCK)
def test_what_can_never_move_leaves_nothing_to_do(make):
    net = make()
    upload = net.upload("a", 1_000_000)
    net.env.run()  # until nothing is left to do: with a schedule that goes on, never
    assert not upload.triggered and net.env.now < 100
    moved = net.abort(upload)
    assert 0 <= moved < 1_000_000
    assert net.shared["ingress"].bytes_carried == pytest.approx(moved, abs=1)


def test_others_go_on_beside_what_is_stuck():
    net = network({"ingress": TURNS}, trace=ZERO)
    net.attach("b", PHONE, trace=CapacityTrace([0, 1], [2e6, 4e6], 2))
    stuck, moving = net.upload("a", 1000), net.upload("b", 1_000_000)
    net.env.run()
    assert (
        moving.value == pytest.approx(4.0) and not stuck.triggered
    )  # 4 Mbit in each second that is open
    later = net.upload("b", 250_000)
    net.env.run()
    assert later.triggered


@pytest.mark.thorough
def test_an_outage_of_any_length_is_waited_for():
    day = CapacityTrace([0, *range(1, 86_401)], [0] * 86_400 + [8e6], 86_401)
    net = network({"ingress": CapacityTrace([0, 200_000], [0, 8e6])}, trace=day)
    upload = net.upload("a", 1000)
    net.env.run()
    assert upload.value == pytest.approx(3 * 86_401 - 1 + 0.001)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_links_that_sleep_give_the_times_of_links_that_never_do(data):
    """Uploads at random times through a shared link that changes: as integrated over the trace by
    hand.
    """
    rates = data.draw(
        st.lists(st.sampled_from([0.0, 1e6, 3e6]), min_size=2, max_size=5).filter(any)
    )
    trace = CapacityTrace(range(len(rates)), rates, len(rates))
    net = network({"ingress": trace})
    for _ in range(3):
        at_s = net.env.now + data.draw(st.floats(0.01, 30))
        net.env.run(until=at_s)
        upload = net.upload("a", 100_000)
        net.env.run(upload)
        assert trace.integral(at_s + 0.01, upload.value) == pytest.approx(800_000, rel=1e-6)
