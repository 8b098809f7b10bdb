"""The replay cache: every record once an epoch, new ones anywhere in what is to come."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sim.methods.side_tuning.replay_cache import ReplayCache

STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


@given(STEPS, st.integers(0, 2**32))
def test_a_draw_gives_existing_records_and_none_twice(steps, seed):
    cache, total = ReplayCache(np.random.default_rng(seed)), 0
    for inserted, drawn in steps:
        cache.insert("m", inserted)
        total += inserted
        records = cache.draw(drawn)
        assert len(cache) == total
        assert len(records) == min(drawn, total)
        assert len(set(records)) == len(records)
        assert set(records) <= set(range(total))


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 5), st.integers(0, 2**32))
def test_each_record_comes_once_an_epoch(records, batch, epochs, seed):
    cache = ReplayCache(np.random.default_rng(seed))
    cache.insert("m", records * batch)
    for _ in range(epochs):
        epoch = [number for _ in range(records) for number in cache.draw(batch)]
        assert sorted(epoch) == list(range(records * batch))


@given(st.integers(2, 50), st.integers(1, 50), st.integers(0, 2**32))
def test_no_record_is_ever_more_than_one_draw_ahead_though_batches_cross_epochs(
    records, batch, seed
):
    batch = min(batch, records)
    cache, seen = ReplayCache(np.random.default_rng(seed)), Counter()
    cache.insert("m", records)
    for _ in range(20):
        seen.update(cache.draw(batch))
        counts = [seen[number] for number in range(records)]
        assert max(counts) - min(counts) <= 1


def test_records_inserted_mid_epoch_still_come_in_that_epoch():
    cache = ReplayCache(np.random.default_rng(0))
    cache.insert("a", 10)
    first = cache.draw(4)
    cache.insert("b", 6)
    rest = cache.draw(12)
    assert sorted(first + rest) == list(range(16))


def test_a_new_record_enters_at_a_uniform_position():
    rng, positions = np.random.default_rng(1), Counter()
    for _ in range(6000):
        cache = ReplayCache(rng)
        cache.insert("m", 5)
        cache.insert("m", 1)  # the record in question is number 5
        positions[cache.draw(6).index(5)] += 1
    assert chisquare([positions[place] for place in range(6)]).pvalue > 1e-4


def test_the_whole_order_is_uniform_though_records_come_one_by_one():
    rng, orders = np.random.default_rng(2), Counter()
    for _ in range(12000):
        cache = ReplayCache(rng)
        for _ in range(4):
            cache.insert("m", 1)
        orders[tuple(cache.draw(4))] += 1
    assert len(orders) == 24
    assert chisquare(list(orders.values())).pvalue > 1e-4


def test_counting_by_backbone_follows_the_insertions():
    cache = ReplayCache(np.random.default_rng(3))
    cache.insert("a", 3)
    cache.insert("b", 2)
    assert cache.count_by_backbone([0, 2, 3, 4]) == {"a": 2, "b": 2}
    assert cache.draw(0) == []
    assert ReplayCache(np.random.default_rng(0)).draw(5) == []


@given(STEPS, st.integers(0, 2**32))
def test_the_same_stream_gives_the_same_draws(steps, seed):
    caches = [ReplayCache(np.random.default_rng(seed)) for _ in range(2)]
    for inserted, drawn in steps:
        for cache in caches:
            cache.insert("m", inserted)
        assert caches[0].draw(drawn) == caches[1].draw(drawn)
