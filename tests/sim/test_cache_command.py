"""`mobifleet cache`: what is kept, by name, and room made for other things."""

import os
import time

import numpy as np
import pytest

from inputs.units import format_bytes
from learning.backbones.tokens import Tokens
from learning.side.activation_store import ActivationStore
from learning.side.store_size import shards


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Three shards of two backbones, last used now, two days and 40 days ago, and an asset."""
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    store = ActivationStore(tmp_path / "cache" / "activations")
    for number, days in enumerate((0, 2, 40)):
        tokens = Tokens([np.array([number], np.int32)])
        name = "one" if number < 2 else "other"
        store.save(name, "mean", tokens, np.zeros((1, 3, 1000), np.float32), name)
        newest = max(store.root.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        used_s = time.time() - days * 86_400
        os.utime(newest, (used_s, used_s))
    (tmp_path / "cache" / "assets").mkdir()
    (tmp_path / "cache" / "assets" / "weights").write_bytes(bytes(5000))
    return store.root


def test_a_table_says_what_how_large_and_when_last_used(kept, mobifleet):
    said = mobifleet("cache")
    assert said.code == 0, said.err
    rows = [line.split("  ") for line in said.out.splitlines()]
    words = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert [row[0] for row in words[1:5]] == [
        "activations of one, mean",
        "activations of other, mean",
        "weights and texts (mobifleet fetch)",
        "all",
    ]
    sizes = [shard.nbytes for shard in shards(kept)]
    assert words[1][1] == format_bytes(sizes[0] + sizes[1]) and words[3][1] == "5 kB"
    assert words[4][1] == format_bytes(sum(sizes) + 5000)
    assert words[2][2] == "40 d ago" and words[1][2].endswith(("now", "s ago"))
    assert "at most 20 GB (MOBIFLEET_ACTIVATIONS_LIMIT)" in said.out
    assert len(shards(kept)) == 3


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--keep", "25 kB"], 2),
        (["--keep=0"], 0),
        (["--older-than", "30d"], 2),
        (["--older-than=1 d", "--keep=1GB"], 1),
        (["--keep", "2GB"], 3),
        (["--older-than", "90d"], 3),
    ],
)
def test_room_is_made_by_removing_what_was_used_longest_ago(kept, mobifleet, options, left):
    before = shards(kept)
    said = mobifleet("cache", *options, "--yes")
    assert said.code == 0, said.err
    assert shards(kept) == before[:left]
    assert (f"{left:,} files" if left < 3 else "nothing to remove") in said.out


def test_nothing_is_removed_unless_somebody_says_yes(kept, mobifleet, monkeypatch):
    said = mobifleet("cache", "--keep", "0")
    assert said.code == 2 and "--yes" in said.err and len(shards(kept)) == 3
    monkeypatch.setattr("sim.cli.cache._is_asked", lambda: True)
    for answer, left in (("n", 3), ("y", 0)):
        monkeypatch.setattr("typer.confirm", lambda question, answer=answer: answer == "y")
        assert mobifleet("cache", "--keep", "0").code == (1 if left else 0)
        assert len(shards(kept)) == left


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--keep", "2Gb"], "write 'GB'"),
        (["--keep", "-1"], "must not be negative"),
        (["--older-than", "5 m"], "write 'min'"),
        (["--keep", "20"], "Say e.g. 20GB"),
        (["--older-than", " 1.5 "], "Say e.g. 1.5d"),
        (["--keep", "1.2.3"], "--keep: "),
        (["--keep", "²"], "--keep: "),
    ],
)
def test_what_is_no_size_or_time_is_one_line(kept, mobifleet, options, hint):
    said = mobifleet("cache", *options, "--yes")
    assert said.code == 2 and hint in said.err and options[0] in said.err
    assert len(shards(kept)) == 3


def test_a_limit_that_is_none_is_said_before_anything_else(kept, mobifleet, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_ACTIVATIONS_LIMIT", "foo")
    said = mobifleet("cache")
    assert (said.code, said.out) == (2, "") and "MOBIFLEET_ACTIVATIONS_LIMIT" in said.err


def test_who_is_stopped_is_told_so(kept, mobifleet, monkeypatch):
    def asked(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.cli.cached.table", asked)
    said = mobifleet("cache")
    assert said.code == 130 and "stopped" in said.err
