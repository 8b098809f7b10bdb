"""Shared air against its formulas, and against water-filling recomputed from nothing at every
event.
"""

from math import inf
from pathlib import Path

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from network.errors import NetworkError
from network.fair_link import Transfer
from network.fair_trunk import FairTrunk
from network.profile import LinkProfile
from network.topology import Cell, Network
from network.wifi import AirLink

MEGABYTE = 1_000_000
DOCS = Path(__file__).parents[2] / "docs" / "wifi.md"


def finish_times(kind: str, up_bps=(40e6, 20e6, 5e6), **cell) -> list[float]:
    """When 1 MB from each of three stations has landed, s."""
    env = simpy.Environment()
    network = Network(env, cells={"air": Cell(kind=kind, **cell)})
    sent = []
    for number, bps in enumerate(up_bps):
        network.attach(str(number), LinkProfile("test", bps, bps, 0.0), cell="air")
        sent.append(network.upload(str(number), MEGABYTE))
    env.run()
    return [transfer.value for transfer in sent]


def test_worked_number_of_the_docs():
    """docs/wifi.md: 40, 20 and 5 Mbit/s, 1 MB each. In turn all move at 1/(1/40 + 1/20 + 1/5) =
    3.636 Mbit/s.
    """
    in_turn, fair, gain = (
        finish_times("wifi"),
        finish_times("wifi", fair_uplink=True),
        finish_times("cellular", gain=1.2),
    )
    assert in_turn == pytest.approx([2.2, 2.2, 2.2])
    # A third of the time each: the first has its 8 Mbit after 0.6 s; then halves; then the last
    # alone.
    assert fair == pytest.approx([0.6, 0.6 + (8 - 4) / 10, 1.0 + (8 - 1 - 1) / 5])
    # 0.4 of the time each, then 0.6, then alone: no more than all of it.
    assert gain == pytest.approx([0.5, 0.5 + 4 / 12, 0.5 + 4 / 12 + (8 - 1 - 1) / 5])
    text = DOCS.read_text(encoding="utf-8")
    for times in (in_turn, fair, gain):
        assert " | ".join(f"{t:.4f} s" for t in times) in text


@pytest.mark.parametrize("fair", [False, True])
def test_one_station_has_its_own_rate_whatever_the_manner(fair):
    env = simpy.Environment()
    link = AirLink(env, fair=fair, airtime=1.5 if fair else 1.0)
    assert link.transfer(MEGABYTE, rate_bps=8e6).link is link
    assert (link.rate_bps, link.airtime_used) == pytest.approx((8e6, 1.0))
    env.run()
    assert env.now == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(rates_bps=st.lists(st.floats(1e4, 1e9), min_size=1, max_size=12), gain=st.floats(1, 3))
def test_everyone_at_once_is_the_formula(rates_bps, gain):
    env = simpy.Environment()
    in_turn, fair = AirLink(env), AirLink(env, fair=True, airtime=gain)
    for bps in rates_bps:
        in_turn.transfer(10**9, rate_bps=bps)
        fair.transfer(10**9, rate_bps=bps)
    n = len(rates_bps)
    assert in_turn.rate_bps == pytest.approx(n / sum(1 / r for r in rates_bps))
    assert fair.rate_bps == pytest.approx(sum(rates_bps) * min(1, gain / n))
    assert in_turn.airtime_used == pytest.approx(1) and fair.airtime_used == pytest.approx(
        min(n, gain)
    )


# ---- the slow truth


def water_level(flows, limit, cost, weight, cap):
    """The highest level with sum of cost * min(cap, weight * level) <= limit; inf if all fit at
    their caps.
    """
    spent, order = 0.0, sorted(flows, key=lambda f: cap(f) / weight(f))
    for i, f in enumerate(order):
        open_ = sum(cost(g) * weight(g) for g in order[i:])
        if open_ > 0 and (limit - spent) / open_ < cap(f) / weight(f):
            return max(0.0, (limit - spent) / open_)
        spent += cost(f) * cap(f)
    return inf


def cell_rates(flows, wire_bps, fair, airtime, trunk_bps):
    """Rates of flows (rate, cap) of one channel, each held to `trunk_bps` or, if it is fair, all to
    so many of that.
    """
    if not flows:
        return []
    if fair:
        wire_bps = min(wire_bps, trunk_bps * len(flows))
        limit = inf
    else:
        limit = trunk_bps

    def weight(f):
        return f[0] if fair and f[0] else 1.0

    def cap(f):
        return min(f)

    level = min(
        limit,
        water_level(flows, wire_bps, lambda f: 1.0, weight, cap),
        water_level(flows, airtime, lambda f: 1 / f[0] if f[0] else 0.0, weight, cap),
    )
    return [min(cap(f), weight(f) * level) for f in flows]


def all_rates(cells, flows, ingress_bps):
    """Rates by flow, the trunk's level by bisection; cells {name: (wire, fair, airtime)}, flows
    [(cell, rate, cap)].
    """

    def at(level):
        rates = [0.0] * len(flows)
        for name, (wire_bps, fair, airtime) in cells.items():
            mine = [i for i, f in enumerate(flows) if f[0] == name]
            found = cell_rates([flows[i][1:] for i in mine], wire_bps, fair, airtime, level)
            for i, rate in zip(mine, found, strict=True):
                rates[i] = rate
        return rates

    if sum(at(inf)) <= ingress_bps:
        return at(inf)
    low, high = 0.0, ingress_bps
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(at(middle)) <= ingress_bps else (low, middle)
    return at(low)


def play(cells, arrivals, actions, ingress_bps):
    """(finish times, bits moved), everything recomputed at every event; as `play_air`."""
    cells, flows = dict(cells), {}
    left = [8.0 * nbytes for _, nbytes, *_ in arrivals]
    finish = [None] * len(arrivals)
    agenda = sorted(
        [(a[0], 1, i) for i, a in enumerate(arrivals)]
        + [(a[0], 2, i) for i, a in enumerate(actions)],
        reverse=True,
    )
    now = 0.0
    while agenda or flows:
        present = sorted(flows)
        rates = all_rates(cells, [flows[i] for i in present], ingress_bps)
        ends = [now + left[i] / r if r > 0 else inf for i, r in zip(present, rates, strict=True)]
        step_to = min([*ends, agenda[-1][0] if agenda else inf])
        if step_to == inf:
            break
        for i, r, end in zip(present, rates, ends, strict=True):
            left[i] -= r * (step_to - now)
            if end <= step_to * (1 + 1e-12):
                finish[i], left[i] = step_to, 0.0
                del flows[i]
        now = step_to
        while agenda and agenda[-1][0] <= now:
            _, phase, index = agenda.pop()
            if phase == 1:
                flows[index] = arrivals[index][2:]
                continue
            _, kind, target, value = actions[index]
            if kind == "wire":
                cells[target] = (value, *cells[target][1:])
            elif kind == "ingress":
                ingress_bps = value
            elif target in flows and kind == "abort":
                del flows[target]
            elif target in flows:
                flows[target] = (flows[target][0], value, flows[target][2])
    return finish, [8.0 * a[1] - bits for a, bits in zip(arrivals, left, strict=True)]


def play_air(cells, arrivals, actions, ingress_bps):
    """The same schedule on the real thing, looked at between events: never more than the air, the
    wire and the ingress.
    """
    env = simpy.Environment()
    trunk = FairTrunk(env, ingress_bps)
    links = {
        n: AirLink(env, wire, fair, airtime, trunk) for n, (wire, fair, airtime) in cells.items()
    }
    sent = [None] * len(arrivals)

    def start(i):
        _, nbytes, cell, rate_bps, cap_bps = arrivals[i]
        sent[i] = links[cell].admit(Transfer(env, nbytes, cap_bps, rate_bps))

    def act(_, kind, target, value):
        if kind == "wire":
            links[target].set_capacity(value)
        elif kind == "ingress":
            trunk.set_capacity(value)
        elif sent[target] is not None and kind == "abort":
            sent[target].link.abort(sent[target])
        elif sent[target] is not None:
            sent[target].rate_bps = value
            sent[target].link.set_cap(sent[target], min(value, arrivals[target][4]))

    for i, (t, *_) in enumerate(arrivals):
        env.timeout(t).callbacks.append(lambda _, i=i: start(i))
    for action in actions:
        env.timeout(action[0]).callbacks.append(lambda _, action=action: act(*action))
    while (next_s := env.peek()) < inf:
        while env.peek() == next_s:
            env.step()
        assert trunk.rate_bps <= trunk.capacity_bps * (1 + 1e-9) + 1e-9
        for link in links.values():
            assert link.rate_bps <= link.capacity_bps * (1 + 1e-9) + 1e-9
            assert link.airtime_used <= link.airtime * (1 + 1e-9)
    return sent, trunk


times = st.one_of(st.integers(0, 8).map(float), st.floats(0, 8))
rates = st.one_of(st.sampled_from([0.0, 1e5, 3e5]), st.floats(1e3, 2e6))
wires = st.one_of(st.just(1e12), rates)


@st.composite
def schedules(draw):
    cells = {
        "turns": (draw(wires), False, 1.0),
        "fair": (draw(wires), True, 1.0),
        "gain": (1e12, True, draw(st.floats(1, 2))),
    }
    cell, caps = st.sampled_from(sorted(cells)), st.one_of(st.just(inf), st.floats(1e3, 1e6))
    arrival = st.tuples(times, st.integers(1, 100_000), cell, rates, caps)
    arrivals = draw(st.lists(arrival, min_size=1, max_size=9))
    index = st.integers(0, len(arrivals) - 1)
    action = st.one_of(
        st.tuples(times, st.just("wire"), cell, rates),
        st.tuples(times, st.just("ingress"), st.none(), rates),
        st.tuples(times, st.just("abort"), index, st.none()),
        st.tuples(times, st.just("rate"), index, rates),
    )
    return (
        cells,
        arrivals,
        draw(st.lists(action, max_size=6)),
        draw(st.one_of(st.just(1e12), st.floats(1e4, 2e6))),
    )


@settings(max_examples=120, deadline=None)
@given(schedules())
def test_any_schedule_of_three_channels_under_an_ingress(schedule):
    finish, moved_bits = play(*schedule)
    sent, trunk = play_air(*schedule)
    for transfer, end, bits in zip(sent, finish, moved_bits, strict=True):
        if transfer.triggered and end is not None:
            assert transfer.value == pytest.approx(end, rel=1e-7, abs=1e-7)
        elif transfer.moved_bytes is not None:
            assert transfer.moved_bytes == pytest.approx(bits / 8, abs=1)
        else:
            assert end is None
    assert trunk.bytes_carried == pytest.approx(sum(moved_bits) / 8, rel=1e-7, abs=1e-2)


def test_an_ingress_of_nothing_moves_nothing_whatever_rounding_left():
    """Beside a station at no rate, sums of the others' caps leave 1e-11 bit/s when these go."""
    cells = {"gain": (1e12, True, 1.0)}
    arrivals = [
        (0.0, 1, "gain", 0.0, inf),
        (2.0, 1, "gain", 162144.0129294306, inf),
        (2.0, 2, "gain", 1e5, inf),
    ]
    sent, trunk = play_air(cells, arrivals, [(2.0, "ingress", None, 0.0)], 1e12)
    assert not any(transfer.triggered for transfer in sent) and trunk.bytes_carried == 0


def test_a_long_busy_period_does_not_drift():
    """One station stays while 5,000 transfers of others come and go: what the air carried is what
    they sent.
    """
    env = simpy.Environment()
    link = AirLink(env)
    long = link.transfer(10**8, rate_bps=1e6)
    sizes = [1000 + n % 7 for n in range(5000)]

    def source():
        for n, nbytes in enumerate(sizes):
            yield link.transfer(nbytes, rate_bps=3e5 + 1e3 * (n % 100))

    env.process(source())
    env.run()
    assert long.value == pytest.approx(
        8 * (10**8 / 1e6 + sum(s / (3e5 + 1e3 * (n % 100)) for n, s in enumerate(sizes)))
    )
    assert link.bytes_carried == pytest.approx(10**8 + sum(sizes), rel=1e-10)
    assert link.busy_s == pytest.approx(env.now)


def test_looking_changes_nothing():
    def finish(looks):
        env = simpy.Environment()
        link = AirLink(env, 9e6, fair=True)
        sent = [link.transfer(1000 * i + 7, 3e5, 1e4 * i + 100) for i in range(40)]
        for i in range(looks):
            env.run(until=(i + 1) / 70)
            assert link.bytes_carried > 0 and link.airtime_used <= 1 + 1e-12
        env.run()
        return [t.value for t in sent]

    assert finish(0) == finish(70)


def test_cells_of_every_kind_meet_in_the_ingress():
    """9 Mbit/s: 2 for the wire of the first; in turn all alike; the fair channel's two are due 2 x
    7/4 together.
    """
    env = simpy.Environment()
    cells = {
        "pipe": Cell(2e6, 1e9),
        "wifi": Cell(kind="wifi"),
        "macro": Cell(kind="cellular", gain=1.2),
    }
    network = Network(env, ingress_bps=9e6, cells=cells)
    for name, cell, bps in [
        ("p", "pipe", 9e6),
        ("w1", "wifi", 40e6),
        ("w2", "wifi", 10e6),
        ("m1", "macro", 30e6),
        ("m2", "macro", 10e6),
    ]:
        network.attach(name, LinkProfile("test", bps, bps, 0.0), cell=cell)
        network.upload(name, 100 * MEGABYTE)
    env.run(until=1)
    carried = [
        network.shared[name].bytes_carried * 8
        for name in ("pipe/up", "wifi/up", "macro/up", "ingress")
    ]
    assert carried == pytest.approx([9e6 / 5, 18e6 / 5, 18e6 / 5, 9e6])


@pytest.mark.parametrize(
    "mistake",
    [
        lambda env: AirLink(env, airtime=0),
        lambda env: AirLink(env).transfer(1, 1e6),
        lambda env: AirLink(env).transfer(1, rate_bps=-1.0),
        lambda env: Cell(kind="wired"),
        lambda env: Cell(kind="wifi", gain=1.2),
        lambda env: Cell(kind="cellular", gain=0.5),
        lambda env: Cell(kind="cellular", fair_uplink=True),
    ],
)
def test_mistakes_are_named(mistake):
    with pytest.raises(NetworkError):
        mistake(simpy.Environment())
