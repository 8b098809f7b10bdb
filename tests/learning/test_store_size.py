"""The store of activations within its limit: what was used longest ago goes, nobody who reads is
disturbed, and what is read is mapped.
"""

import multiprocessing
import os
import sys

import numpy as np
import pytest

from learning.backbones.tokens import Tokens
from learning.side.activation_store import ActivationStore
from learning.side.store_size import LIMIT, StoreError, remove, shards, superfluous

TEXTS, VECTORS, WIDTH = 20, 3, 8


def tokens_of(seed):
    return Tokens([np.array([seed, i], np.int32) for i in range(TEXTS)])


def values_of(seed):
    return np.random.default_rng(seed).normal(size=(TEXTS, VECTORS, WIDTH)).astype(np.float32)


def save(store, seed, used_at_s=None):
    before = {shard.file for shard in shards(store.root)}
    store.save("mark", "mean", tokens_of(seed), values_of(seed), "a-backbone")
    [file] = {shard.file for shard in shards(store.root)} - before
    if used_at_s is not None:
        os.utime(file, (used_at_s, used_at_s))
    return file


def is_there(store, seed):
    values, missing = store.load("mark", "mean", tokens_of(seed))
    assert not len(missing) or len(missing) == TEXTS
    assert len(missing) or np.array_equal(np.stack(values), values_of(seed))
    return not len(missing)


def test_what_was_used_longest_ago_goes_first_and_reading_is_use(plain_store):
    files = [save(plain_store, seed, used_at_s=1000 + seed) for seed in range(4)]
    assert is_there(plain_store, 0)  # and so it was used now
    held = shards(plain_store.root)
    assert [shard.file for shard in held] == [files[i] for i in (0, 3, 2, 1)]
    size = held[0].nbytes
    assert superfluous(held, keep_bytes=4 * size) == []
    assert superfluous(held, keep_bytes=4 * size - 1) == held[3:]
    assert superfluous(held, keep_bytes=0) == held
    assert superfluous(held, used_before_s=1003) == held[2:]
    assert remove(superfluous(held, keep_bytes=2 * size)) == held[2:]
    assert [is_there(plain_store, seed) for seed in range(4)] == [True, False, False, True]


def test_what_is_used_between_a_look_and_a_removal_stays(plain_store):
    save(plain_store, 0, used_at_s=1000)
    held = shards(plain_store.root)
    assert is_there(plain_store, 0)
    assert remove(held) == [] and is_there(plain_store, 0)
    assert remove(shards(plain_store.root)) and remove(held) == []


def test_a_store_never_outgrows_its_limit_by_more_than_a_sixteenth(tmp_path, monkeypatch):
    one = save(ActivationStore(tmp_path / "other"), 0).stat().st_size
    limit = 20 * one
    monkeypatch.setenv(LIMIT, f"{limit} B")
    store = ActivationStore(tmp_path / "store")
    for seed in range(60):
        store.save("mark", "mean", tokens_of(seed), values_of(seed))
        held = sum(shard.nbytes for shard in shards(store.root))
        assert held <= limit * (1 + 1 / 16) + one
    store.hold_to_limit()
    assert limit - one < sum(shard.nbytes for shard in shards(store.root)) <= limit
    assert is_there(store, 59)


def test_a_run_that_needs_more_than_the_limit_is_told(tmp_path, monkeypatch, caplog):
    older = ActivationStore(tmp_path)
    one = save(older, 0, used_at_s=1000).stat().st_size
    monkeypatch.setenv(LIMIT, f"{2.5 * one} B")
    store = ActivationStore(tmp_path)
    store.save("mark", "mean", tokens_of(1), values_of(1))
    store.save("mark", "mean", tokens_of(2), values_of(2))
    assert not is_there(store, 0) and not caplog.records  # another's has made room
    assert is_there(store, 1)
    store.save("mark", "mean", tokens_of(3), values_of(3))
    assert [LIMIT in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("text", ["much", "3 s", "-1 GB"])
def test_a_limit_that_is_no_size_is_one_line(tmp_path, monkeypatch, text):
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(StoreError, match=f"{LIMIT}: .*{text}"):
        ActivationStore(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps are Linux's to show")
def test_what_is_loaded_is_mapped_and_outlives_its_file(plain_store):
    file = save(plain_store, 0)
    values, _ = plain_store.load("mark", "mean", tokens_of(0))
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(file) in maps.read()
    assert remove(shards(plain_store.root))
    assert np.array_equal(np.stack(values), values_of(0)) and not is_there(plain_store, 0)


def test_a_writer_that_dies_at_any_byte_leaves_nothing_that_is_read(plain_store):
    """As a temporary file, which a kill leaves, or under its name, which a failing disk may."""
    file = save(plain_store, 0)
    whole = file.read_bytes()
    file.unlink()
    for end in range(0, len(whole), 3):
        part = file.with_suffix(".tmp" if end % 2 else ".safetensors")
        part.write_bytes(whole[:end])
        assert not is_there(plain_store, 0)
        assert not shards(plain_store.root)
        part.unlink(missing_ok=True)
    file.write_bytes(whole)
    assert is_there(plain_store, 0)


def test_a_shard_that_cannot_be_opened_now_is_left_alone(plain_store, monkeypatch):
    from learning.side import activation_store

    def no_more_files(*_, **__):
        raise OSError(24, "Too many open files")

    file = save(plain_store, 0)
    with monkeypatch.context() as patch:
        patch.setattr(activation_store, "safe_open", no_more_files)
        assert not is_there(plain_store, 0)
    assert file.exists() and is_there(plain_store, 0)


def _work(root, what, rounds):
    store = ActivationStore(root)
    for number in range(rounds):
        seed = number % 10
        if what == "write":
            store.save("mark", "mean", tokens_of(seed), values_of(seed))
        elif what == "read":
            is_there(store, seed)
        else:
            remove(superfluous(shards(root), keep_bytes=8000))


def test_readers_writers_and_pruners_at_once(plain_store):
    spawn = multiprocessing.get_context("fork")
    everybody = [
        spawn.Process(target=_work, args=(plain_store.root, what, rounds))
        for what, rounds in 2 * [("write", 40), ("read", 80), ("prune", 80)]
    ]
    for one in everybody:
        one.start()
    for one in everybody:
        one.join(60)
    assert [one.exitcode for one in everybody] == [0] * len(everybody)
    assert not list(plain_store.root.rglob("*.tmp"))
    save(plain_store, 11)
    assert is_there(plain_store, 11)
