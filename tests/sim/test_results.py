import json
import runpy
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.results.run import COLUMNS, FINE, RunError, encode, finish_times, open_run, sampling_order

write_run = runpy.run_path(str(Path(__file__).with_name("synthetic_run.py")))["write_run"]


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run", n_devices=12, batches=3)


def test_a_run_opens_with_its_parts(path):
    run = open_run(str(path))
    assert (run.name, run.method, run.seed, run.metric) == (
        "synthetic",
        "fed-mobillm",
        0,
        "accuracy",
    )
    assert run.devices().num_rows == 12
    assert set(run.spans(["kind"]).column_names) == {"kind"}
    assert run.title == "synthetic · fed-mobillm · seed 0"
    with pytest.raises(FrozenInstanceError):
        run.summary = {}


def test_tables_are_read_when_asked_for_not_when_opened(path):
    run = open_run(path)
    (path / "spans.parquet").write_bytes(b"gone bad since")
    assert run.devices().num_rows == 12
    with pytest.raises(RunError, match=r"spans\.parquet cannot be read"):
        run.spans()


def test_a_curve_is_one_metric_of_one_group_in_time_order(path):
    table = pa.table(
        {
            "time_s": [3.0, 1.0, 2.0, 1.0],
            "name": ["a", "a", "a", "b"],
            "value": [9.0, 7.0, 8.0, 0.0],
            "group": [""] * 4,
        }
    )
    pq.write_table(table, path / "metrics.parquet")
    time_s, value = open_run(path).curve("a")
    assert time_s.tolist() == [1.0, 2.0, 3.0] and value.tolist() == [7.0, 8.0, 9.0]
    assert len(open_run(path).curve("a", "minilm-l2")[0]) == 0


def test_something_else_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a directory"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run \(no manifest\.json\)"):
        open_run(tmp_path)


@pytest.mark.parametrize("part", ["manifest.json", "summary.json"])
def test_a_part_that_is_nested_too_deep_is_named(path, part):
    (path / part).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(
        RunError,
        match=part.replace(".", r"\.") + ".*: delete its folder and run the scenario again",
    ):
        open_run(path)


@pytest.mark.parametrize(
    "part", ["manifest.json", "summary.json", *(f"{name}.parquet" for name in COLUMNS)]
)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_part_is_named(path, part, keep):
    whole = (path / part).read_bytes()
    (path / part).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(RunError, match=part.replace(".", r"\.")):
        open_run(path)


@pytest.mark.parametrize(
    ("status", "told"),
    [("interrupted", "interrupted"), ("failed", "failed"), ("running", "killed")],
)
def test_an_unfinished_run_says_what_is_missing_and_what_to_do(path, status, told):
    manifest = json.loads((path / "manifest.json").read_text()) | {"status": status}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert told in open_run(path).title  # all parts are there: it opens, and says so
    (path / "summary.json").unlink()
    (path / "metrics.parquet").unlink()
    with pytest.raises(
        RunError, match=rf"{told}; no summary\.json, metrics\.parquet\): .*--resume"
    ):
        open_run(path)


def test_a_table_of_another_version_is_refused(path):
    table = pq.read_table(path / "spans.parquet").drop_columns(["flows", "joules"])
    pq.write_table(table, path / "spans.parquet")
    with pytest.raises(RunError, match="no column joules, flows"):
        open_run(path)


def test_no_target_reads_as_empty(tmp_path):
    run = open_run(write_run(tmp_path / "dry", 3, 2, dry=True))
    assert run.target == {} and run.title.endswith("dry run")


def fleet(rows):
    classes, finish_s, outcomes = zip(*rows, strict=True)
    finished = pa.array(finish_s, pa.float64())
    return pa.table(
        {"device_class": list(classes), "finished_at_s": finished, "outcome": list(outcomes)}
    )


rows = st.lists(
    st.tuples(
        st.sampled_from(["phone", "tablet", "robot"]),
        st.one_of(st.none(), st.floats(0, 1e6)),
        st.sampled_from(["ok", "oom", "horizon", "lost"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_the_sampling_order_takes_every_device_once_and_the_extremes_first(rows):
    devices = fleet(rows)
    order = list(sampling_order(devices))
    assert sorted(row for row, _ in order) == list(range(len(rows)))
    finish_s = finish_times(devices)
    for name in {row[0] for row in rows}:
        mine = [(row, reason) for row, reason in order if rows[row][0] == name]
        fine = [row for row, _ in mine if rows[row][2] in FINE]
        if fine:
            assert mine[0][1] == "slowest" and finish_s[mine[0][0]] == max(finish_s[fine])
        assert all(
            reason in ("failed", "random") for row, reason in mine if rows[row][2] not in FINE
        )
        if len(fine) < len(mine):
            assert "failed" in {reason for _, reason in mine[:2]}
    turns = [rows[row][0] for row, _ in order]
    first_round = turns[: len(set(turns))]
    assert max(Counter(first_round).values()) == 1


def test_the_random_part_of_a_sample_follows_the_seed_and_the_class_name_alone():
    phones = [("phone", float(i), "ok") for i in range(200)]
    robots = [("robot", 1.0, "ok")] * 7

    def randoms(rows, seed):
        return [
            rows[row][1]
            for row, reason in sampling_order(fleet(rows), seed)
            if reason == "random" and row < 200
        ][:9]

    assert randoms(phones, 0) == randoms(phones + robots, 0)
    assert randoms(phones, 0) != randoms(phones, 1)


def test_encode_inverts():
    column = pa.chunked_array([["b", "a"], [], ["a", "c"]], pa.string())
    codes, names = encode(column)
    assert [names[code] for code in codes] == ["b", "a", "a", "c"]
    codes, names = encode(pa.chunked_array([], pa.string()))
    assert codes.shape == (0,) and names == []
    assert codes.dtype == np.int64
