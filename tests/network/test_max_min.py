"""Fair links and trunks against the slow truth: progressive filling, recomputed from nothing at
every event.
"""

from math import fsum, inf

import numpy as np
import pytest
import simpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from network.fair_link import FairLink
from network.fair_trunk import FairTrunk


def max_min_rates(
    flows: list[tuple[float, tuple[str, ...]]], capacity_bps: dict[str, float]
) -> list[float]:
    """Rates of flows (cap, links crossed): all rise together; a flow stops at its cap or where a
    link is full.
    """
    rates = [0.0] * len(flows)
    rising = set(range(len(flows)))
    level = 0.0
    while rising:
        limits = [(flows[i][0], "flow", i) for i in sorted(rising)]
        for link, capacity in capacity_bps.items():
            users = [i for i in sorted(rising) if link in flows[i][1]]
            if users:
                stopped = sum(
                    rates[i] for i in range(len(flows)) if i not in rising and link in flows[i][1]
                )
                limits.append((max(level, (capacity - stopped) / len(users)), "link", link))
        level, kind, which = min(limits, key=lambda limit: limit[0])
        full = {which} if kind == "flow" else {i for i in rising if which in flows[i][1]}
        for i in full:
            rates[i] = min(level, flows[i][0])
        rising -= full
    return rates


def play(arrivals, actions, capacity_bps, until_s=inf):
    """(finish times, bits moved) of arrivals (time, bytes, cap, links) under actions (time, kind,
    target, value).

    Kinds: "capacity" (of a link), "abort" and "cap" (of an arrival by index, if it is under way).
    """
    capacity_bps = dict(capacity_bps)
    left = [8.0 * nbytes for _, nbytes, _, _ in arrivals]
    caps = [cap for _, _, cap, _ in arrivals]
    finish = [None] * len(arrivals)
    present: list[int] = []
    agenda = [(t, 1, i, None) for i, (t, *_) in enumerate(arrivals)] + [
        (a[0], 2, j, a) for j, a in enumerate(actions)
    ]
    agenda.sort(key=lambda entry: entry[:3])
    now = 0.0
    while agenda or present:
        rates = max_min_rates([(caps[i], arrivals[i][3]) for i in present], capacity_bps)
        ends = [
            now + left[i] / rate if rate > 0 else inf
            for i, rate in zip(present, rates, strict=True)
        ]
        step_to = min([*ends, agenda[0][0] if agenda else inf, until_s])
        if step_to == inf:
            break
        for i, rate in zip(present, rates, strict=True):
            left[i] -= rate * (step_to - now)
        now = step_to
        for i, end in zip(list(present), ends, strict=True):
            if end <= now * (1 + 1e-12):
                finish[i], left[i] = now, 0.0
                present.remove(i)
        if now >= until_s:
            break
        while agenda and agenda[0][0] <= now:
            _, phase, index, action = agenda.pop(0)
            if phase == 1:
                if left[index] == 0:
                    finish[index] = now
                else:
                    present.append(index)
            elif action[1] == "capacity":
                capacity_bps[action[2]] = action[3]
            elif action[2] in present:
                if action[1] == "abort":
                    present.remove(action[2])
                else:
                    caps[action[2]] = action[3]
    return finish, [8.0 * arrivals[i][1] - left[i] for i in range(len(arrivals))]


class WalkingTrunk(FairTrunk):
    """Looks at every link at every change, also at those that carry nothing."""

    n_flows = property(lambda self: sum(link.n_flows for link in self.links))

    def rebalance(self, changed=None):
        binds = fsum(link.demand_bps for link in self.links) > self.capacity_bps
        touched = self.links if binds or self._binds or changed is None else [changed]
        for link in self.links if touched is self.links else ():
            link._advance()
            if not binds:
                link._set_ceiling(inf)
        if binds:
            self._find_level(self.links)
        self._binds = binds
        for link in touched:
            link._arm()


def play_fair(arrivals, actions, capacity_bps, trunk=FairTrunk):
    """The same schedule on a fair link or, with a "trunk", on fair links under one: (transfers,
    what carried them).
    """
    env = simpy.Environment()
    if "trunk" in capacity_bps:
        top = trunk(env, capacity_bps["trunk"])
        links = {name: top.link(bps) for name, bps in capacity_bps.items() if name != "trunk"}
        links["trunk"] = top
        links["direct"] = top.link(inf)
    else:
        links = {name: FairLink(env, bps) for name, bps in capacity_bps.items()}
        top = links["link"]
    sent = [None] * len(arrivals)

    def send(i):
        _, nbytes, cap_bps, crossed = arrivals[i]
        sent[i] = links["direct" if crossed == ("trunk",) else crossed[0]].transfer(nbytes, cap_bps)

    def act(kind, target, value):
        if kind == "capacity":
            links[target].set_capacity(value)
        elif sent[target] is not None:
            link = sent[target].link
            link.abort(sent[target]) if kind == "abort" else link.set_cap(sent[target], value)

    for i, (t, *_) in enumerate(arrivals):
        env.timeout(t).callbacks.append(lambda _, i=i: send(i))
    for t, *action in actions:
        env.timeout(t).callbacks.append(lambda _, action=action: act(*action))
    env.run()
    return sent, top


times = st.one_of(st.integers(0, 12).map(float), st.floats(0, 12))
sizes = st.one_of(st.sampled_from([0, 1, 1000, 50_000]), st.integers(0, 200_000))
caps = st.one_of(st.sampled_from([0.0, 1e4, 1e5]), st.floats(1e2, 1e6))
rates = st.one_of(st.sampled_from([0.0, 1e5, 3e5]), st.floats(1e3, 2e6))


@st.composite
def schedules(draw, paths, caps, capacity_bps):
    """(arrivals, actions, capacities) on the given links."""
    arrivals = draw(
        st.lists(st.tuples(times, sizes, caps, st.sampled_from(paths)), min_size=1, max_size=14)
    )
    index = st.integers(0, len(arrivals) - 1)
    re_rate = st.tuples(times, st.just("capacity"), st.sampled_from(sorted(capacity_bps)), rates)
    abort = st.tuples(times, st.just("abort"), index, st.just(None))
    re_cap = st.tuples(times, st.just("cap"), index, st.floats(1e2, 1e6))
    actions = draw(st.lists(st.one_of(re_rate, abort, re_cap), max_size=8))
    return arrivals, actions, {name: draw(rates) for name in capacity_bps}


def assert_equal(schedule):
    sent, top = play_fair(*schedule)
    finish, moved_bits = play(*schedule)
    for transfer, end, bits in zip(sent, finish, moved_bits, strict=True):
        if transfer.triggered and end is not None:
            assert transfer.value == pytest.approx(end, rel=1e-9, abs=1e-9)
        elif transfer.triggered or end is not None:
            assert transfer.moved_bytes == pytest.approx(
                bits / 8, abs=1
            )  # aborted as it ended: rounding decides
        elif transfer.moved_bytes is not None:
            assert transfer.moved_bytes == pytest.approx(bits / 8, abs=0.51)
    assert top.bytes_carried == pytest.approx(sum(moved_bits) / 8, rel=1e-9, abs=1e-3)


LINK = ("link",)
STOPPED = [
    (0.0, "capacity", "link", 0.0)
]  # two caps that do not cancel exactly, beside one that is 0, when a link stops


@settings(max_examples=120, deadline=None)
@given(schedules([LINK], st.one_of(st.just(inf), caps), ["link"]))
@example(
    (
        [(0.0, 1, 0.0, LINK), (0.0, 1, 100.30128565862833, LINK), (0.0, 1000, 130972.0, LINK)],
        STOPPED,
        {"link": 1e3},
    )
)
def test_one_link(schedule):
    assert_equal(schedule)


TREE = [("a", "trunk"), ("b", "trunk"), ("c", "trunk"), ("trunk",)]


@settings(max_examples=150, deadline=None)
@given(schedules(TREE, caps, ["a", "b", "c", "trunk"]))
def test_links_under_a_trunk(schedule):
    assert_equal(schedule)


@pytest.mark.thorough
@settings(max_examples=100, deadline=None)
@given(schedules(TREE[:3], st.one_of(st.just(inf), caps), ["a", "b", "c", "trunk"]))
def test_links_under_a_trunk_without_caps(schedule):
    assert_equal(schedule)


@pytest.mark.parametrize("seed", range(4))
def test_long_schedules(seed):
    """Hundreds of transfers, with a trunk that binds now and then."""
    rng = np.random.default_rng(seed)
    n = 250
    starts = np.cumsum(rng.exponential(0.02, n))
    paths = TREE if seed else [("link",)]
    arrivals = [
        (float(t), int(s), float(c), paths[k])
        for t, s, c, k in zip(
            starts,
            rng.lognormal(8, 1, n),
            rng.lognormal(12, 1, n),
            rng.integers(0, len(paths), n),
            strict=True,
        )
    ]
    names = ["a", "b", "c", "trunk"] if seed else ["link"]
    actions = [
        (float(t), "capacity", str(rng.choice(names)), float(rng.uniform(0, 2e6)))
        for t in rng.uniform(0, 6, 12)
    ]
    actions += [(6.5, "capacity", name, 1e6) for name in names]
    schedule = arrivals, actions, {name: 2e6 if name == "trunk" else 1e6 for name in names}
    assert_equal(schedule)
    sent, top = play_fair(*schedule)
    assert top.n_flows == 0 and all(transfer.triggered for transfer in sent)
    assert top.bytes_carried == pytest.approx(sum(a[1] for a in arrivals), rel=1e-9)


@settings(max_examples=120, deadline=None)
@given(schedules(TREE, caps, ["a", "b", "c", "trunk"]))
def test_links_that_carry_nothing_are_left_alone_to_the_last_bit(schedule):
    ends = [
        [(t.moved_bytes, t.value if t.triggered else None) for t in play_fair(*schedule, trunk)[0]]
        for trunk in (FairTrunk, WalkingTrunk)
    ]
    assert ends[0] == ends[1]


def test_a_change_in_one_link_looks_at_no_other(monkeypatch):
    """A thousand cells under an ingress that could carry all of them: who has been asked."""
    env, asked = simpy.Environment(), []
    trunk = FairTrunk(env, 1e9)
    cells = [trunk.link(1e5) for _ in range(1_000)]
    for cell in cells[:500]:
        cell.transfer(1e6)
    demand = FairLink.demand_bps.fget
    looked_at = property(lambda link: asked.append(link) or demand(link))
    monkeypatch.setattr(FairLink, "demand_bps", looked_at)
    for cell in cells[-3:]:
        cell.transfer(10)
    env.run(until=60)
    assert set(asked) == {*cells[-3:]}


def test_the_trunk_shares_by_transfer_not_by_link():
    """Three under one cell and one under another, trunk of 8 kbit/s: 2 kbit/s each; the second cell
    at 1 leaves 7/3.
    """
    env = simpy.Environment()
    trunk = FairTrunk(env, 8e3)
    a, b = trunk.link(1e6), trunk.link(1e6)
    for _ in range(3):
        a.transfer(10**6)
    b.transfer(10**6)
    assert (a.rate_bps, b.rate_bps) == pytest.approx((6e3, 2e3))
    b.set_capacity(1e3)
    assert (a.rate_bps, b.rate_bps) == pytest.approx((7e3, 1e3))


def test_links_are_on_their_own_while_they_cannot_fill_the_trunk():
    env = simpy.Environment()
    trunk = FairTrunk(env, 3e3)
    a, b = trunk.link(1e3), trunk.link(1e3)
    first, second = a.transfer(1000), b.transfer(2000)
    env.run()
    assert first.value == pytest.approx(8) and second.value == pytest.approx(16)
    assert a.level_bps == inf
