"""Spans of a large run go into a file block by block; nothing that is told of the run shows it."""

import hashlib
import json
import math
from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mobifleet as api
from sim.kernel.recorder import Recorder
from sim.results.span_table import ExactSum, summed

BLOCK = "sim.kernel.recorder.BLOCK_ROWS"


def whole_and_in_blocks(monkeypatch, tmp_path, path, rows=7, **how):
    """A dry run of a file with its spans in memory, and one of blocks of so many rows."""
    whole = api.run(path, out=tmp_path / "whole", dry=True, figures=False, **how)
    monkeypatch.setattr(BLOCK, rows)
    return whole, api.run(path, out=tmp_path / "blocks", dry=True, figures=False, **how)


SCENARIOS = {
    "as it is": {},
    "a target of rounds": {"method": {"kind": "fedavg-lora", "rounds": 3, "device_batch": 4}},
    "devices that leave": {"dropout": {"share": 0.5, "within": "2 s"}, "stop": {"horizon": "20 s"}},
}


@pytest.mark.parametrize("rows", [1, 7, 10_000])
@pytest.mark.parametrize("what", SCENARIOS)
def test_a_run_in_blocks_leaves_what_a_run_in_memory_leaves(
    what, rows, scenario_file, tmp_path, monkeypatch
):
    path = scenario_file(**SCENARIOS[what])
    whole, blocks = whole_and_in_blocks(monkeypatch, tmp_path, path, rows)
    assert whole.spans().num_rows > 20
    assert blocks.spans().equals(whole.spans())
    assert blocks.devices().equals(whole.devices())
    groups = pq.ParquetFile(blocks.path / "spans.parquet").num_row_groups
    assert groups == -(-whole.spans().num_rows // rows)
    told, before = dict(blocks.summary), dict(whole.summary)
    for one in (told, before):
        del one["host"]
    assert told == before
    assert (blocks.path / "timeline.pftrace").read_bytes() == (
        whole.path / "timeline.pftrace"
    ).read_bytes()
    assert not list(blocks.path.glob("*.tmp"))


def test_what_is_in_a_file_is_read_as_it_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, 3)
    kept, held = Recorder(), Recorder()
    kept.keep_in(tmp_path)
    for recorder in (kept, held):
        for number in range(10):
            row = ("é" * (number % 3), "upload", 0.1 * number, 1.0 + number, number, 0.5, 0.1)
            recorder.span(*row, flows=range(number % 4))
    assert (tmp_path / "spans.parquet.0.tmp").exists()
    assert kept.digest("x") == held.digest("x")
    assert [len(block) for block in kept.span_blocks()] == [3, 3, 3, 1]
    assert kept.spans().equals(held.spans())
    names = ["", "é", "éé", "nobody"]
    for kind, sums in kept.sums_by_kind(names).items():
        assert np.array_equal(sums, held.sums_by_kind(names)[kind])
    kept.write(tmp_path)
    assert pq.read_table(tmp_path / "spans.parquet").equals(held.spans())
    assert kept.spans().equals(held.spans())
    with pytest.raises(RuntimeError, match="is written: no more can come"):
        for _ in range(3):
            kept.span("late", "wait", 0.0, 1.0)
            kept.spans()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.parquet", "spans.parquet"}


@pytest.mark.parametrize("looks", [{4}, {2, 9}, {5, 6, 7}, set(range(20))])
def test_who_looks_at_spans_while_they_come_loses_none(looks, tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, 3)
    kept, held = Recorder(), Recorder()
    kept.keep_in(tmp_path)
    for number in range(20):
        for recorder in (kept, held):
            recorder.span(f"device-{number % 4}", "wait", number, number + 1.0, flows=[number])
        if number in looks:
            assert kept.spans().equals(held.spans())
            assert kept.digest() == held.digest()
    kept.write(tmp_path)
    assert pq.read_table(tmp_path / "spans.parquet").equals(held.spans())
    assert not list(tmp_path.glob("*.tmp"))


def test_spans_may_come_while_somebody_walks_through_them(tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, 3)
    recorder = Recorder()
    recorder.keep_in(tmp_path)
    for number in range(10):
        recorder.span("a", "wait", number, number + 1.0)
    seen = 0
    for block in recorder.span_blocks():
        seen += len(block)
        for number in range(4):
            recorder.span("b", "wait", number, number + 1.0)
    assert seen == 10 and len(recorder.spans()) == 10 + 4 * 4
    recorder.write(tmp_path)
    assert len(pq.read_table(tmp_path / "spans.parquet")) == 26


@pytest.mark.parametrize("rows", [3, 100])
def test_what_nobody_has_read_is_written(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, rows)
    recorder = Recorder()
    recorder.keep_in(tmp_path)
    for number in range(7):
        recorder.span("a", "wait", number, number + 1.0)
    recorder.write(tmp_path)
    assert len(pq.read_table(tmp_path / "spans.parquet")) == 7


@pytest.mark.parametrize("is_read", [False, True])
def test_what_comes_to_nothing_leaves_no_file(is_read, tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, 3)
    recorder = Recorder()
    recorder.keep_in(tmp_path)
    for number in range(10):
        recorder.span("a", "wait", number, number + 1.0)
    if is_read:
        recorder.digest()
    recorder.discard()
    for number in range(10):  # of processes that are dropped
        recorder.span("a", "wait", number, number + 1.0)
    assert not list(tmp_path.iterdir())


def test_a_device_that_comes_after_the_last_span_of_a_kind_has_none_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, 2)
    recorder = Recorder()
    recorder.keep_in(tmp_path)
    recorder.span("early", "upload", 0.0, 1.0, 5)
    recorder.span("early", "wait", 1.0, 2.0)
    recorder.span("late", "wait", 1.0, 2.0)
    recorder.span("late", "wait", 2.0, 3.0)
    found = recorder.sums_by_kind(["early", "late"])
    assert found["upload"][0].tolist() == [5, 0] and found["wait"][3].tolist() == [1, 2]


def test_sums_of_an_actor_are_those_of_its_spans_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(BLOCK, 4)
    recorder, rng = Recorder(), np.random.default_rng(1)
    recorder.keep_in(tmp_path)
    expected: dict = {}
    for _ in range(50):
        actor, kind = f"device-{rng.integers(5)}", ["compute", "wait"][rng.integers(2)]
        start, joules = rng.random(), rng.random()
        recorder.span(actor, kind, start, start + 0.1, 3, 2.0, joules)
        sums = expected.setdefault((actor, kind), [0.0, 0.0, 0.0, 0.0])
        for place, part in enumerate((3, 2.0, joules, (start + 0.1) - start)):
            sums[place] += part
    actors = [f"device-{number}" for number in range(5)]
    found = recorder.sums_by_kind(actors)
    for (actor, kind), sums in expected.items():
        assert found[kind][:, actors.index(actor)].tolist() == sums


def test_a_disk_that_fills_up_as_spans_come_is_one_line_and_leaves_no_half_table(
    mobifleet, scenario_file, tmp_path, monkeypatch
):
    def a_full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BLOCK, 5)
    monkeypatch.setattr("sim.kernel.rows.pq.ParquetWriter.write_table", a_full_disk)
    outcome = mobifleet("run", scenario_file(), "--dry", "--out", "run", "--quiet")
    assert outcome.code == 2
    assert "spans.parquet.0.tmp: cannot be written (No space left on device)" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run").glob("spans.*"))


@pytest.mark.parametrize("where", ["sim.simulation.Simulation._record_links", "sim.runner.summary"])
def test_a_run_that_fails_leaves_no_half_table(where, scenario_file, tmp_path, monkeypatch):
    def broken(*given):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(BLOCK, 5)
    monkeypatch.setattr(where, broken)
    with pytest.raises(ZeroDivisionError):
        api.run(scenario_file(), out=tmp_path / "run", dry=True)
    assert not list((tmp_path / "run").glob("*.tmp"))


# --- sums in parts

FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(st.lists(st.lists(FLOATS, max_size=8), max_size=6))
def test_an_exact_sum_is_rounded_once_however_it_is_parted(parts):
    total = ExactSum()
    for part in parts:
        total.add(np.array(part))
    exact = sum((Fraction(value) for part in parts for value in part), Fraction())
    try:
        rounded = float(exact)
    except OverflowError:
        return
    assert total.value == rounded == math.fsum(value for part in parts for value in part)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_an_exact_sum_of_what_is_not_finite_is_not_finite(odd):
    total = ExactSum()
    for part in ([1.0], [odd, 2.0], [3.0]):
        total.add(np.array(part))
    assert str(total.value) == str(odd)


def test_no_spans_come_to_nothing():
    amounts, state_j = summed(Recorder().span_blocks())
    assert not any(amounts.values()) and not any(state_j.values())
    assert amounts["uplink_bytes"] == 0
    empty = Recorder().digest()
    names = "actor kind start_s end_s nbytes flop joules outcome flows time_s name value group"
    assert empty == hashlib.sha256(names.replace(" ", "").encode()).hexdigest()
