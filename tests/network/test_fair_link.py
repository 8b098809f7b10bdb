"""A fair link against queueing theory, and under what users do to it."""

from math import inf

import numpy as np
import pytest
import simpy

from network.errors import NetworkError
from network.fair_link import FairLink, Transfer


@pytest.mark.parametrize("service", ["exponential", "constant"])
def test_mean_sojourn_of_processor_sharing(service):
    """M/G/1-PS: mean time in system = E[S] / (1 - rho), whatever the distribution of sizes
    (Kleinrock 1976).
    """
    rng = np.random.default_rng(11)
    rho, mean_bytes, capacity_bps, n = 0.6, 1e5, 8e5, 60_000
    gaps = rng.exponential(mean_bytes * 8 / capacity_bps / rho, n)
    nbytes = rng.exponential(mean_bytes, n) if service == "exponential" else np.full(n, mean_bytes)
    env = simpy.Environment()
    link = FairLink(env, capacity_bps)
    sojourn = []

    def source():
        for gap, size in zip(gaps.tolist(), nbytes.tolist(), strict=True):
            yield env.timeout(gap)
            link.transfer(size).callbacks.append(
                lambda end, start=env.now: sojourn.append(end.value - start)
            )

    env.process(source())
    env.run()
    batches = np.array(sojourn).reshape(30, -1).mean(axis=1)
    error = batches.std(ddof=1) / np.sqrt(len(batches))
    expected = mean_bytes * 8 / capacity_bps / (1 - rho)
    assert error < 0.03 * expected
    assert abs(batches.mean() - expected) < 3 * error
    assert link.busy_s / env.now == pytest.approx(rho, rel=0.03)


def test_ends_at_one_instant_come_in_the_order_of_the_starts():
    env = simpy.Environment()
    link = FairLink(env, 1e6)
    order = []
    for name in range(50):
        # half of them at their cap of 10 kbit/s, half at the level of 30 kbit/s with three times
        # the bytes
        transfer = link.transfer(10_000 if name % 2 else 30_000, 1e4 if name % 2 else inf)
        transfer.callbacks.append(lambda _, name=name: order.append(name))
    env.run()
    assert order == list(range(50))
    assert env.now == pytest.approx(8.0)


def test_stopped_and_restored():
    env = simpy.Environment()
    link = FairLink(env, 8e3)
    slow, fast = link.transfer(1000, 2e3), link.transfer(3000)
    env.run(until=1)
    link.set_capacity(0)
    env.run(until=101)
    assert not slow.triggered and not fast.triggered
    assert link.rate_bps == 0 and link.bytes_carried == pytest.approx(1000)
    link.set_capacity(8e3)
    env.run()
    assert slow.value == pytest.approx(104) and fast.value == pytest.approx(104)


def test_abort_gives_the_bytes_moved_and_frees_the_share():
    env = simpy.Environment()
    link = FairLink(env, 8e3)
    first, second = link.transfer(1000), link.transfer(1000)
    env.run(until=1)
    assert link.abort(first) == 500
    assert link.abort(first) == 500
    env.run()
    assert not first.triggered and second.value == pytest.approx(1.5)
    assert link.abort(second) == 1000
    assert link.bytes_carried == pytest.approx(1500) and link.busy_s == pytest.approx(1.5)


def test_zero_bytes_end_at_once_even_on_a_stopped_link():
    env = simpy.Environment()
    link = FairLink(env, 0)
    transfer = link.transfer(0, 1e3)
    env.run()
    assert transfer.value == 0 and link.n_flows == 0


def test_heaps_stay_small_while_transfers_cross_the_level():
    env = simpy.Environment()
    link = FairLink(env, 1e6)
    for i in range(20):
        link.transfer(10**9, 1e4 * (i + 1))
    for _ in range(2000):
        link.set_capacity(2e5)
        link.set_capacity(2e6)
    heaps = (link._ends_at_volume, link._ends_at_time, link._level_by_cap, link._capped_by_cap)
    assert max(map(len, heaps)) <= 2 * 20 + 65


def test_timers_that_were_replaced_do_not_multiply():
    """Each transfer ends before all the earlier ones, so each arms a timer; the replaced ones fire
    once, for nothing.
    """
    env = simpy.Environment()
    link = FairLink(env, 1e9)
    n = 300
    for i in range(n):
        link.transfer(10**6 - 1000 * i, 1e3 * (i + 1))
    events = 0
    while env.peek() < inf:
        env.step()
        events += 1
    assert link.n_flows == 0
    assert events <= 3 * n  # an end, its timer, and one replaced timer each


def test_looking_changes_nothing():
    def finish(looks):
        env = simpy.Environment()
        link = FairLink(env, 1e6 / 3)
        sent = [link.transfer(1000 * i + 7, 1e4 * i / 7 + 100) for i in range(40)]
        for i in range(looks):
            env.run(until=(i + 1) / 70)
            assert link.bytes_carried > 0 and link.busy_s > 0
        env.run()
        return [t.value for t in sent]

    assert finish(0) == finish(70)


def test_same_story_same_bits():
    def finish():
        rng = np.random.default_rng(3)
        env = simpy.Environment()
        link = FairLink(env, 1e6)
        sent = []

        def source():
            for gap, nbytes, cap_bps in zip(
                rng.exponential(0.05, 300),
                rng.integers(1, 10**5, 300),
                rng.uniform(1e3, 1e6, 300),
                strict=True,
            ):
                yield env.timeout(float(gap))
                sent.append(link.transfer(int(nbytes), float(cap_bps)))

        env.process(source())
        env.run()
        return [t.value for t in sent], link.bytes_carried, link.busy_s

    assert finish() == finish()


def test_a_long_busy_period_does_not_drift():
    """One transfer stays while 20,000 short ones come and go: it still ends when the bits say
    so.
    """
    env = simpy.Environment()
    link = FairLink(env, 1e6)
    long = link.transfer(10**9)
    sizes = [1000 + n % 7 for n in range(20_000)]

    def source():
        for nbytes in sizes:
            yield link.transfer(nbytes, 3e5)

    env.process(source())
    env.run()
    total = 10**9 + sum(sizes)
    assert long.value == pytest.approx(total * 8 / 1e6, rel=1e-12)
    assert link.bytes_carried == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda env, link: link.transfer(-1),
        lambda env, link: link.transfer(float("nan")),
        lambda env, link: link.transfer(10, -1),
        lambda env, link: link.set_capacity(-1),
        lambda env, link: link.set_capacity(inf),
        lambda env, link: link.abort(env.event()),
        lambda env, link: link.abort(FairLink(env, 1).transfer(1)),
        lambda env, link: link.admit(link.transfer(1)),
        lambda env, link: FairLink(env, float("nan")),
        lambda env, link: FairLink(env, inf).admit(Transfer(env, 1)),
    ],
)
def test_mistakes_are_named(mistake):
    env = simpy.Environment()
    with pytest.raises(NetworkError):
        mistake(env, FairLink(env, 1e6))
