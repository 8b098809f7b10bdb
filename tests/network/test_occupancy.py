"""When a link was busy and what passed meanwhile, against the transfers themselves: each one's own
begin, end and bytes.
"""

from itertools import pairwise

import numpy as np
import pytest
import simpy

from network.fair_link import FairLink
from network.fair_trunk import FairTrunk
from network.mobility import Journey
from network.occupancy import Occupancy, union
from network.profile import load
from network.topology import Cell, Network
from network.varying import VaryingRate
from network.wifi import AirLink


def by_sweep(transfers: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Times in which any transfer (from, until, bytes) was under way, moment by moment, and the
    bytes of those in them.
    """
    edges = sorted({edge for one in transfers for edge in one[:2]})
    busy = [(a, b) for a, b in pairwise(edges) if any(s <= a and b <= e for s, e, _ in transfers)]
    times: list[list[float]] = []
    for a, b in busy:
        if times and times[-1][1] == a:
            times[-1][1] = b
        else:
            times.append([a, b])
    return [(a, b, sum(n for s, e, n in transfers if a <= s and e <= b)) for a, b in times]


MEDIA = {
    "pipe": lambda env: FairLink(env, 4e6),
    "wifi": lambda env: AirLink(env, 8e6),
    "cell": lambda env: AirLink(env, 8e6, fair=True, airtime=1.2),
    "trunk": lambda env: FairTrunk(env, 4e6),
}


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("seed", range(3))
def test_busy_times_are_those_of_the_transfers(medium, seed):
    """Random transfers, a third of them given up, on a link whose capacity changes and is 0 at
    times.
    """
    rng, env = np.random.default_rng(seed), simpy.Environment()
    link = MEDIA[medium](env)
    below = [link.link(3e6), link.link(2e6)] if medium == "trunk" else [link]
    seen = []

    def send(begins_s: float, nbytes: int, gives_up_s: float):
        yield env.timeout(begins_s)
        on, began_s = below[nbytes % len(below)], env.now
        rates = (5e5, 1e6) if isinstance(on, AirLink) else (1e6,)
        transfer = on.transfer(nbytes, *rates)
        result = yield transfer | env.timeout(gives_up_s)
        moved = nbytes if transfer in result else on.abort(transfer)
        seen.append((began_s, env.now, moved))

    def weather():
        while env.now < 40:
            yield env.timeout(rng.exponential(2.0))
            link.set_capacity(float(rng.choice([0.0, 1e6, 4e6])))
        link.set_capacity(4e6)

    env.process(weather())
    begins_s = np.cumsum(rng.exponential(0.8, 60))
    for begin_s, nbytes in zip(begins_s, rng.integers(1, 120_000, 60).tolist(), strict=True):
        env.process(send(begin_s, nbytes, 0.5 if rng.random() < 0.3 else 1e6))
    env.run()
    expected = by_sweep(seen)
    found = link.busy_times()
    assert len(expected) > 5
    assert found[:, :2] == pytest.approx(np.array(expected)[:, :2], rel=1e-12)
    assert found[:, 2] == pytest.approx(
        np.array(expected)[:, 2], abs=1.0 * len(seen)
    )  # a cut is rounded to a byte
    assert found[:, 2].sum() == pytest.approx(link.bytes_carried, rel=1e-12)
    assert link.busy_s == pytest.approx(sum(b - a for a, b, _ in expected), rel=1e-12)


def test_a_transfer_that_moves_is_in_each_cell_that_it_passed_through():
    """Alone on its way through two cells: what one cell carried and the other carried is the whole,
    and so is the trunk's.
    """
    env = simpy.Environment()
    net = Network(env, 1e9, cells={"west": Cell(2e6, 2e6), "east": Cell(2e6, 2e6, "wifi")})
    journey = Journey(["west", "east"], 0.5, np.random.default_rng(1))
    net.attach("d", load("lte"), journey=journey, handover_s=0.05)
    sent = [net.upload("d", 1_000_000), net.upload("d", 500_000)]
    env.run(until=1.2)
    early = {name: link.busy_times() for name, link in net.shared.items()}
    env.run()
    assert all(one.processed for one in sent)
    west, east, ingress = (
        net.shared[name].busy_times() for name in ("west/up", "east/up", "ingress")
    )
    assert min(len(west), len(east)) >= 2
    assert west[:, 2].sum() + east[:, 2].sum() == pytest.approx(1_500_000, abs=1e-3)
    assert ingress[:, 2].sum() == pytest.approx(1_500_000, abs=1e-3)
    assert not len(net.shared["egress"].busy_times()) and not len(
        net.shared["west/down"].busy_times()
    )
    for cell, times in (("west", west), ("east", east)):
        for from_s, until_s, _ in times:
            assert journey.at(from_s) == cell and until_s <= journey.next_change(from_s) + 1e-9
    # what was seen on the way is the beginning of what is seen in the end
    for name, then in early.items():
        now = net.shared[name].busy_times()
        assert then[:-1] == pytest.approx(now[: max(len(then) - 1, 0)])
        assert (
            then[:, 0] == pytest.approx(now[: len(then), 0]) and then[:, 2].sum() <= now[:, 2].sum()
        )


def test_latency_is_not_occupancy():
    env = simpy.Environment()
    net = Network(env, 1e6)
    net.attach("d", load("lte"))
    net.upload("d", 125_000)
    env.run()
    assert net.shared["ingress"].busy_times() == pytest.approx(
        np.array([[env.now - 1.0, env.now, 125_000]])
    )


def test_times_that_touch_are_one_time():
    occupancy = Occupancy()
    for row in ((1.0, 2.0, 8.0), (2.0, 3.0, 16.0), (4.0, 5.0, 8.0)):
        occupancy.note(*row)
    assert occupancy.times().tolist() == [[1.0, 3.0, 3.0], [4.0, 5.0, 1.0]]
    other = np.array([[0.0, 1.0, 1.0], [3.5, 4.5, 2.0], [7.0, 8.0, 3.0]])
    assert union([occupancy.times(), other]).tolist() == [
        [0.0, 3.0, 4.0],
        [3.5, 5.0, 3.0],
        [7.0, 8.0, 3.0],
    ]
    assert union([]).shape == (0, 3)


@pytest.mark.parametrize("seed", range(4))
def test_progress_is_what_a_cut_at_that_moment_would_leave_and_no_faster_than_it_says(seed):
    """Devices on pipe, WiFi, cell and trunk, with TCP's losses, rates that vary and hand-overs:
    looked at, then cut.
    """
    rng, env = np.random.default_rng(seed), simpy.Environment()
    cells = {
        "pipe": Cell(3e6, 3e6),
        "wifi": Cell(kind="wifi"),
        "cell": Cell(4e6, 4e6, "cellular", 1.2),
    }
    net = Network(env, 6e6, cells=cells)
    profiles = [load(name) for name in ("lte", "wifi-home", "lte-driving", "lte-field-average")]
    sent = []
    for number in range(12):
        cell = [None, *cells][number % 4]
        journey = (
            Journey(["wifi", "cell"], 0.3, np.random.default_rng(number))
            if number % 5 == 4
            else None
        )
        varying = (
            VaryingRate(2e6, 0.6, 0.8, np.random.default_rng(100 + number), 0.1)
            if number % 3 == 0
            else None
        )
        net.attach(
            str(number),
            profiles[number % 4],
            None if journey else cell,
            varying,
            tcp=True,
            journey=journey,
            handover_s=0.02,
        )
        sent += [net.upload(str(number), int(rng.integers(10_000, 400_000))) for _ in range(2)]
    cut = 0
    while any(one.moved_bytes is None for one in sent):
        looks = [(one, *net.progress(one)) for one in sent]
        began_s = env.now
        env.run(until=env.now + rng.exponential(0.1))
        for one, before, most, until_s in looks:
            now = net.progress(one)[0]
            slack = (
                1.0 if one.moved_bytes is not None else 1e-6
            )  # what is over is rounded to whole bytes
            assert (
                before - slack <= now <= before + most * (min(env.now, until_s) - began_s) + slack
                or until_s < env.now
            )
        unfinished = [one for one in sent if one.moved_bytes is None]
        if unfinished and rng.random() < 0.1:
            one = unfinished[rng.integers(len(unfinished))]
            passed = net.progress(one)[0]
            cut += passed > 0
            assert net.abort(one) == pytest.approx(passed, abs=1.0)
            assert net.progress(one) == (net.abort(one), 0.0, np.inf)
    assert cut >= 1
    assert all(net.progress(one)[0] == net.abort(one) for one in sent)
