"""The store of activations: the same bits cold and warm, whatever happens to its files or to their
writers.
"""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from learning.backbones import batches
from learning.backbones.tokens import Tokens
from learning.side.activation_store import ActivationStore


def tokens_of(seed, count=20, pairs=False):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 1000, rng.integers(4, 9)).astype(np.int32) for _ in range(count)]
    return Tokens(ids, [np.zeros(len(i), np.int32) for i in ids] if pairs else None)


def values_of(seed, count=20):
    return np.random.default_rng(seed).normal(size=(count, 3, 8)).astype(np.float32)


def fully(store, tokens, mark="mark", readout="mean"):
    values, missing = store.load(mark, readout, tokens)
    assert not len(missing)
    return np.stack(values)


def shards(store, pattern="*.safetensors"):
    return sorted(store.root.rglob(pattern))


def test_an_empty_store_misses_everything(plain_store):
    values, missing = plain_store.load("mark", "mean", tokens_of(0))
    assert values == [None] * 20 and missing.tolist() == list(range(20))


def test_what_was_saved_comes_back_bit_for_bit_in_any_order(plain_store):
    tokens, values = tokens_of(0), values_of(0)
    plain_store.save("mark", "mean", tokens, values)
    assert np.array_equal(fully(plain_store, tokens), values)
    order = np.random.default_rng(1).permutation(20)
    again = ActivationStore(plain_store.root)  # another process would see it alike
    assert np.array_equal(fully(again, Tokens([tokens.ids[i] for i in order])), values[order])


def test_only_what_is_missing_is_asked_for(plain_store):
    tokens, values = tokens_of(0), values_of(0)
    some = [3, 8, 13]
    plain_store.save("mark", "mean", Tokens([tokens.ids[i] for i in some]), values[some])
    found, missing = plain_store.load("mark", "mean", tokens)
    assert missing.tolist() == [i for i in range(20) if i not in some]
    assert all(np.array_equal(found[i], values[i]) for i in some)


def test_backbones_readouts_and_depths_never_mix(plain_store):
    tokens = tokens_of(0)
    for seed, (mark, readout) in enumerate([("a", "mean"), ("a", "last"), ("b", "mean")]):
        plain_store.save(mark, readout, tokens, values_of(seed))
    for seed, (mark, readout) in enumerate([("a", "mean"), ("a", "last"), ("b", "mean")]):
        assert np.array_equal(fully(plain_store, tokens, mark, readout), values_of(seed))
    assert len(plain_store.load("b", "last", tokens)[1]) == 20


def test_what_was_computed_in_other_shapes_is_not_seen(plain_store, monkeypatch):
    plain_store.save("mark", "mean", tokens_of(0), values_of(0))
    monkeypatch.setattr(batches, "VERSION", batches.VERSION + 1)
    assert len(plain_store.load("mark", "mean", tokens_of(0))[1]) == 20


def test_segments_are_part_of_a_text(plain_store):
    single, pair = tokens_of(0), tokens_of(0, pairs=True)
    other = Tokens(pair.ids, [np.ones_like(s) for s in pair.segments])
    plain_store.save("mark", "mean", single, values_of(1))
    assert len(plain_store.load("mark", "mean", pair)[1]) == 20
    plain_store.save("mark", "mean", pair, values_of(2))
    assert len(plain_store.load("mark", "mean", other)[1]) == 20
    assert np.array_equal(fully(plain_store, single), values_of(1))
    assert np.array_equal(fully(plain_store, pair), values_of(2))


def test_token_ids_are_told_apart_by_their_boundaries(plain_store):
    texts = Tokens([np.array(ids, np.int32) for ids in ([1], [1, 0], [0, 1], [256], [65536])])
    plain_store.save("mark", "mean", texts, values_of(0, 5))
    assert np.array_equal(fully(plain_store, texts), values_of(0, 5))


def test_many_shards_and_memory_that_is_not_contiguous(plain_store):
    rng = np.random.default_rng(0)
    tokens = Tokens([np.array([i, i + 1], np.int32) for i in range(1200)])
    values = rng.normal(size=(8, 3, 1200)).astype(np.float32).transpose(2, 1, 0)
    plain_store.save("mark", "mean", tokens, values)
    assert len(shards(plain_store)) == 3
    assert np.array_equal(fully(plain_store, tokens), values)


def truncated(data):
    return data[: len(data) // 2]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: b"\x80\x04." + data,  # a pickle's first bytes: never read as one
        lambda data: flipped(data, 2),
        lambda data: flipped(data, len(data) - 5),
        lambda data: flipped(data, len(data) // 2),
        lambda data: data.replace(b"blake2b", b"blake2c"),
    ],
)
def test_a_damaged_shard_is_dropped_and_the_others_stay(plain_store, damage):
    good, bad = tokens_of(0), tokens_of(1)
    plain_store.save("mark", "mean", good, values_of(0))
    kept = shards(plain_store)
    plain_store.save("mark", "mean", bad, values_of(1))
    [file] = set(shards(plain_store)) - set(kept)
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(fully(plain_store, good), values_of(0))
    assert len(plain_store.load("mark", "mean", bad)[1]) == 20 and shards(plain_store) == kept
    plain_store.save("mark", "mean", bad, values_of(1))
    assert np.array_equal(fully(plain_store, bad), values_of(1))


def test_no_flipped_byte_ever_changes_a_number(plain_store):
    tokens, values = tokens_of(0), values_of(0)
    plain_store.save("mark", "mean", tokens, values)
    [file] = shards(plain_store)
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 60):
        file.write_bytes(flipped(whole, int(at)))
        found, _ = plain_store.load("mark", "mean", tokens)
        assert all(
            value is None or np.array_equal(value, values[i]) for i, value in enumerate(found)
        )


def _write(root, seed, repeats):
    store = ActivationStore(root)
    for repeat in range(repeats):
        store.save("mark", "mean", tokens_of(seed + repeat), values_of(seed + repeat))


def test_two_writers_at_once(plain_store):
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write, args=(plain_store.root, seed, 20)) for seed in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0]
    for seed in range(30):
        assert np.array_equal(fully(plain_store, tokens_of(seed)), values_of(seed))
    assert not shards(plain_store, "*.tmp")


def test_a_killed_writer_leaves_nothing_that_is_read(plain_store):
    for delay_s in (0.01, 0.02, 0.03, 0.04):
        writer = multiprocessing.get_context("fork").Process(
            target=_write, args=(plain_store.root, 0, 10_000)
        )
        writer.start()
        while not shards(plain_store):
            time.sleep(0.001)
        time.sleep(delay_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    before = shards(plain_store)
    for seed in range(40):
        found, _ = plain_store.load("mark", "mean", tokens_of(seed))
        assert all(
            v is None or np.array_equal(v, e) for v, e in zip(found, values_of(seed), strict=True)
        )
    assert before and shards(plain_store) == before  # all that is visible was whole


def test_a_write_that_stops_before_its_rename_is_invisible(plain_store, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        plain_store.save("mark", "mean", tokens_of(0), values_of(0))
    assert len(plain_store.load("mark", "mean", tokens_of(0))[1]) == 20
