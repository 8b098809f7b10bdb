"""Journeys against the chain they are drawn from, and hand-overs against integrals taken piece by
piece.
"""

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from network.errors import NetworkError
from network.fair_link import FairLink
from network.mobility import Journey
from network.profile import LinkProfile
from network.topology import Cell, Network

CELLS = ["a", "b", "c"]


def journey(seed=0, mean_stay_s=10.0, order="random", cells=CELLS):
    return Journey(cells, mean_stay_s, np.random.default_rng(seed), order)


@settings(max_examples=60, deadline=None)
@given(asked_s=st.lists(st.floats(0, 500), max_size=20), seed=st.integers(0, 99))
def test_a_function_of_time_however_it_is_asked(asked_s, seed):
    here, there = journey(seed), journey(seed)
    answers = {t: (here.at(t), here.next_change(t)) for t in asked_s}
    for t in sorted(asked_s):
        assert (there.at(t), there.next_change(t)) == answers[t]
        change_s = here.next_change(t)
        assert change_s > t and here.at(np.nextafter(change_s, 0)) == here.at(t) != here.at(
            change_s
        )


@pytest.mark.parametrize("order", ["random", "tour"])
def test_stays_and_places_are_those_of_the_chain(order):
    """Exponential stays: sd = mean; every cell a third of the time, at the start and later; the
    order as asked.
    """
    fleet = [journey(seed, 10.0, order) for seed in range(3000)]
    for t in (0.0, 95.0):
        counts = [sum(j.at(t) == cell for j in fleet) for cell in CELLS]
        assert counts == pytest.approx([1000] * 3, abs=4 * np.sqrt(3000 * 2 / 9))
    stays, steps, t = [], [], 0.0
    j = fleet[0]
    for _ in range(5000):
        change_s = j.next_change(t)
        stays.append(change_s - t)
        steps.append((CELLS.index(j.at(change_s)) - CELLS.index(j.at(t))) % 3)
        t = change_s
    assert np.mean(stays) == pytest.approx(10, rel=0.06) and np.std(stays) == pytest.approx(
        10, rel=0.08
    )
    assert steps.count(1) == (5000 if order == "tour" else pytest.approx(2500, abs=150))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999),
    nbytes=st.integers(1, 3_000_000),
    start_s=st.floats(0, 20),
    handover_s=st.sampled_from([0.0, 0.05, 1.5]),
)
def test_alone_a_transfer_takes_what_the_cells_on_its_way_give(seed, nbytes, start_s, handover_s):
    """Piece by piece: the cell's rate, or nothing for `handover_s` after a change (a stay may be
    shorter than that).
    """
    rates_bps = {"a": 4e6, "b": 1e6, "c": 9e6}
    env = simpy.Environment()
    network = Network(env, cells={name: Cell(bps, 1e9) for name, bps in rates_bps.items()})
    way = journey(seed, 1.0)
    network.attach("d", LinkProfile("l", 6e6, 6e6, 0.0), journey=way, handover_s=handover_s)
    ends = []
    env.timeout(start_s).callbacks.append(lambda _: ends.append(network.upload("d", nbytes)))
    env.run()
    t, left, dead_until = start_s, 8.0 * nbytes, 0.0
    while left > 0:
        until = way.next_change(t) if t >= dead_until else dead_until
        bps = min(6e6, rates_bps[way.at(t)]) if t >= dead_until else 0.0
        if bps and left <= bps * (until - t):
            t, left = t + left / bps, 0.0
        else:
            left -= bps * (until - t)
            dead_until = (
                until + handover_s if bps else dead_until
            )  # only what is under way is interrupted
            t = until
    assert ends[0].value == pytest.approx(t, rel=1e-9)
    carried = sum(network.shared[f"{name}/up"].bytes_carried for name in CELLS)
    assert (
        carried
        == pytest.approx(nbytes, rel=1e-9)
        == pytest.approx(network.shared["ingress"].bytes_carried)
    )


def test_a_transfer_that_left_a_link_is_forgotten_there():
    """Two on 8 Mbit/s; one leaves after 2 Mbit, with its end further down the heap, for a link with
    one before it.
    """
    env = simpy.Environment()
    here, there = FairLink(env, 8e6), FairLink(env, 2e6)
    first, mover, other = (
        here.transfer(500_000),
        here.transfer(1_000_000),
        there.transfer(1_000_000),
    )
    env.run(until=0.5)
    left_bits = here.release(mover)
    assert (left_bits, here.n_flows) == (pytest.approx(6e6), 1)
    last = here.transfer(1_000_000)
    there.admit(mover, left_bits)
    env.run()
    assert (first.value, last.value) == pytest.approx((1.0, 1.75))
    # 1 Mbit/s each from 0.5 s: the other has 7 of its 8 Mbit left, the mover 6
    assert (mover.value, other.value) == pytest.approx((6.5, 7.0))
    assert (here.bytes_carried, there.bytes_carried) == pytest.approx((1_750_000, 1_750_000))
    with pytest.raises(NetworkError, match="under way"):
        there.release(mover)


def max_min(caps_bps: list[float], capacity_bps: float) -> list[float]:
    """Fair rates on one link: the smallest caps first, the others share what is left."""
    rates, left_bps = [0.0] * len(caps_bps), capacity_bps
    for served, i in enumerate(sorted(range(len(caps_bps)), key=caps_bps.__getitem__)):
        rates[i] = min(caps_bps[i], left_bps / (len(caps_bps) - served))
        left_bps -= rates[i]
    return rates


def play(ways, sizes, caps_bps, capacity_bps, handover_s):
    """Finish times of one transfer a mover, all from time 0, with every rate recomputed at every
    event.
    """
    left, finish = [8.0 * nbytes for nbytes in sizes], [None] * len(sizes)
    dead_until, now = [0.0] * len(sizes), 0.0
    while None in finish:
        moving = [i for i, end in enumerate(finish) if end is None]
        rates = [0.0] * len(sizes)
        for cell, bps in capacity_bps.items():
            here = [i for i in moving if ways[i].at(now) == cell and now >= dead_until[i]]
            for i, rate in zip(here, max_min([caps_bps[i] for i in here], bps), strict=True):
                rates[i] = rate
        changes = [
            ways[i].next_change(now) if now >= dead_until[i] else dead_until[i] for i in moving
        ]
        ends = [now + left[i] / rates[i] if rates[i] else np.inf for i in moving]
        step_to = min(changes + ends)
        for i, change_s, end_s in zip(moving, changes, ends, strict=True):
            left[i] -= rates[i] * (step_to - now)
            if end_s == step_to:
                finish[i] = step_to
            elif change_s == step_to and now >= dead_until[i]:
                dead_until[i] = step_to + handover_s
        now = step_to
    return finish


@settings(max_examples=40, deadline=None)
@given(
    movers=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.floats(1e5, 9e6)),
        min_size=2,
        max_size=8,
    ),
    handover_s=st.sampled_from([0.0, 0.3]),
)
def test_many_movers_against_the_slow_truth(movers, handover_s):
    capacity_bps = {"a": 4e6, "b": 1e6, "c": 9e6}
    env = simpy.Environment()
    network = Network(env, cells={name: Cell(bps, 1e9) for name, bps in capacity_bps.items()})
    ways, sent = [journey(seed, 0.5) for seed, *_ in movers], []
    for i, (way, (_, nbytes, cap_bps)) in enumerate(zip(ways, movers, strict=True)):
        network.attach(
            str(i), LinkProfile("l", cap_bps, 1e6, 0.0), journey=way, handover_s=handover_s
        )
        sent.append(network.upload(str(i), nbytes))
    env.run()
    truth = play(ways, [m[1] for m in movers], [m[2] for m in movers], capacity_bps, handover_s)
    assert [t.value for t in sent] == pytest.approx(truth, rel=1e-9)


def fleet_of_movers(n=30, extra=0, seed=0):
    """Movers and stayers in cells of every kind; each uploads two payloads, some are given up."""
    env = simpy.Environment()
    cells = {"a": Cell(20e6, 1e9), "b": Cell(kind="wifi"), "c": Cell(kind="cellular", gain=1.2)}
    network = Network(env, ingress_bps=40e6, cells=cells)
    sent, moved = [], {}
    for i in range(n + extra):
        link = LinkProfile("l", (5 + i % 4 * 10) * 1e6, 1e7, 0.01 * (i % 3))
        if i % 5:
            network.attach(str(i), link, journey=journey((seed, i), 0.7), handover_s=0.05)
        else:
            network.attach(str(i), link, cell=CELLS[i // 5 % 3])
        if i < n:
            sent += [network.upload(str(i), 500_000 + 1000 * i), network.upload(str(i), 100_000)]
    for k in range(0, len(sent), 7):
        give_up = env.timeout(0.05 * (k + 1))
        give_up.callbacks.append(lambda _, k=k: moved.setdefault(k, network.abort(sent[k])))
    env.run()
    return network, sent, moved


def test_bytes_are_exact_over_any_number_of_hand_overs():
    network, sent, moved = fleet_of_movers()
    assert any(0 < moved[k] < sent[k].nbytes for k in moved)
    for k, transfer in enumerate(sent):
        assert transfer.triggered or k in moved
        assert transfer.moved_bytes == moved.get(k, transfer.nbytes)
    carried = sum(network.shared[f"{name}/up"].bytes_carried for name in CELLS)
    assert carried == pytest.approx(sum(t.moved_bytes for t in sent), abs=0.51 * len(moved))
    assert network.shared["ingress"].bytes_carried == pytest.approx(carried)


def test_same_story_same_bits_whoever_else_is_attached():
    one, two, more = (fleet_of_movers(extra=extra)[1] for extra in (0, 0, 10))
    values = [t.value if t.triggered else None for t in one]
    assert values == [t.value if t.triggered else None for t in two]
    assert values == [t.value if t.triggered else None for t in more]


def test_given_up_between_two_cells():
    """The bytes that had passed before the hand-over, and the next payload starts at once."""
    env = simpy.Environment()
    network = Network(env, cells={name: Cell(8e6, 1e9) for name in CELLS})
    way = journey(3, 1.0)
    network.attach("d", LinkProfile("l", 8e6, 8e6, 0.0), journey=way, handover_s=0.5)
    first, second = network.upload("d", 10**9), network.upload("d", 1000)
    change_s = way.next_change(0)
    env.run(until=change_s + 0.25)
    assert network.abort(first) == round(change_s * 1e6)
    env.run()
    assert second.value == pytest.approx(change_s + 0.25 + 0.001) and not first.triggered


@pytest.mark.parametrize(
    "mistake",
    [
        lambda net: journey(cells=["a"]),
        lambda net: journey(cells=["a", "a"]),
        lambda net: journey(mean_stay_s=0.0),
        lambda net: journey(order="shortest"),
        lambda net: journey().at(-1.0),
        lambda net: net.attach("d", LinkProfile("l", 1, 1, 0.0), journey=journey(cells=["a", "z"])),
        lambda net: net.attach("d", LinkProfile("l", 1, 1, 0.0), cell="a", journey=journey()),
        lambda net: net.attach(
            "d", LinkProfile("l", 1, 1, 0.0), journey=journey(), handover_s=-1.0
        ),
    ],
)
def test_mistakes_are_named(mistake):
    with pytest.raises(NetworkError):
        mistake(Network(simpy.Environment(), cells={name: Cell(1e6, 1e6) for name in CELLS}))
