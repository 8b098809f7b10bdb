"""Throughput from files: its steps and holes, whole seconds, and what is refused."""

import numpy as np
import pytest

from inputs.files import FileProblem
from network import measured
from network.measured import per_second, read_throughput


def test_seconds_are_means_of_their_tenths():
    assert per_second(np.arange(25.0), 0.1).tolist() == [4.5, 14.5]
    assert per_second(np.arange(3.0), 1.0).tolist() == [0, 1, 2]


def test_seconds_of_other_steps_hold_what_passed_in_them():
    """0.3 s: the first second has three steps and a third of the fourth, worked by hand."""
    series = np.array([10.0, 20, 30, 40, 50, 60, 70])
    assert per_second(series, 0.3) == pytest.approx([3 + 6 + 9 + 4, 8 + 15 + 18 + 14])
    series[4] = np.nan
    assert np.isnan(per_second(series, 0.3)).tolist() == [False, True]
    rng = np.random.default_rng(0)
    for step_s in (0.07, 0.4, 0.7):
        values = rng.random(500)
        whole = int(500 * step_s)
        fine = np.repeat(values, 1000)[: round(1000 * whole / step_s)]
        assert per_second(values, step_s).sum() == pytest.approx(
            fine.sum() * step_s / 1000, rel=1e-3
        )


def test_throughput_files_of_every_accepted_shape(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("# walked\nup\n1\n2\n\n4\n")
    assert read_throughput(path).series_bps.tolist() == [1e6, 2e6, 4e6]
    path.write_text("0,10\n0.5,20\n2.0,30\n2.5,40\n")  # two rows are missing
    found = read_throughput(path, "kB/s", "down")
    assert found.step_s == 0.5 and found.direction == "down"
    assert np.array_equal(
        found.series_bps, np.array([8e4, 16e4, np.nan, np.nan, 24e4, 32e4]), equal_nan=True
    )
    path.write_text("t_s,up,power\n0,1,9\n1,,9\n2,3,9\n")
    assert np.array_equal(
        read_throughput(path, "bit/s", column="up").series_bps, [1, np.nan, 3], equal_nan=True
    )
    path.write_text("timestamp_ms;mbps\n" + "".join(f"{100 * i};{i},5\n" for i in range(3)))
    assert (read_throughput(path).step_s, read_throughput(path).series_bps[2]) == (0.1, 2.5e6)


def test_a_clock_that_drifts_a_little_leaves_no_holes(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(
        "time_s,mbps\n" + "".join(f"{1.0004 * i + 0.02 * (i % 3):.4f},{i}\n" for i in range(4000))
    )
    found = read_throughput(path)
    assert len(found.series_bps) == 4000 and not np.isnan(found.series_bps).any()
    assert "hole" not in found.conditions


def test_a_hole_is_no_longer_than_it_need_be(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("t_s,a\n0,1\n1,2\n2,2\n9000000,3\n9000001,1\n")
    found = read_throughput(path)
    assert len(found.series_bps) == 5 + measured.LONGEST_HOLE
    assert found.series_bps[-2] == 3e6 and np.isnan(found.series_bps[3:-2]).all()
    assert found.conditions.endswith(
        "steps of 1 s, with holes (the longest lasts 9e+06 s), 1 holes shortened to 3600 steps"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("1\nfast\n", "line 2, column 1: expected a number"),
        ("t_s,a\n0,1\n0,2\n", "increase"),
        ("t_s,a\n0,1\n1,2\n1.2,2\n2,3\n", "multiples"),
        ("t_s,a\n" + "".join(f"{t},1\n" for t in (0, 1.4, 2.0, 3.5, 3.9, 5.3, 6.0)), "multiples"),
    ],
)
def test_what_is_wrong_with_a_throughput_file_is_told(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(FileProblem, match=message):
        read_throughput(path)


def test_the_longest_series_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MOST_STEPS", 10)
    path = tmp_path / "trace.csv"
    path.write_text("t_s,a\n0,1\n1,1\n2,1\n10,1\n")
    with pytest.raises(FileProblem, match="10 steps of 1 s, and 4 have a row: cut it at its holes"):
        read_throughput(path)
