"""`mobifleet calibrate link`: from a trace, from iperf3 and from a measured path to a profile that
a scenario can name.
"""

import json
import os
import re
import socket
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from network import profile
from network.bandwidth import read_csv
from network.calibration import moments, read_variations
from network.shaping import Access, ShapedRelay
from sim.calibrate import link as calibrate_link


@pytest.fixture
def walk(tmp_path):
    """A CSV of ten minutes that wander slowly and fast, with a second missing: its path and its
    series in bit/s.
    """
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.standard_normal(600)) / 12
    series = np.round(20 * np.exp(0.3 * slow + 0.2 * rng.standard_normal(600)), 3)
    path = tmp_path / "walk.csv"
    cells = ["" if i == 7 else f"{value}" for i, value in enumerate(series)]
    path.write_text(
        "t_s,up,power_mw\n" + "".join(f"{i},{cell},9\n" for i, cell in enumerate(cells))
    )
    series[7] = np.nan
    return path, 1e6 * series


def test_a_trace_becomes_a_profile_with_series_figure_and_generator(walk, mobifleet, tmp_path):
    path, series = walk
    found_in = ("--from", path, "--column", "up", "--like", "lte")
    outcome = mobifleet("calibrate", "link", *found_in, "--name", "walk", "--out", tmp_path / "w")
    assert (outcome.code, outcome.err) == (0, "")
    link, lte, found = (
        profile.load(tmp_path / "w" / "profile.yaml"),
        profile.load("lte"),
        moments(series),
    )
    assert link.name == "walk"
    assert (link.up_bps, link.cv, link.lag1) == pytest.approx(
        (found.mean_bps, found.cv, found.lag1), rel=1e-3
    )
    assert link.down_bps / link.up_bps == pytest.approx(lte.down_bps / lte.up_bps, rel=1e-3)
    assert link.latency_s == lte.latency_s
    assert (
        link.provenance["down_bps"]["basis"] == "estimated"
        and link.provenance["cv"]["basis"] == "measured"
    )
    assert read_csv(tmp_path / "w" / "up.csv").at(100) == pytest.approx(series[100])
    drawn = moments(np.array(read_csv(tmp_path / "w" / "synthetic_up.csv").capacity_bps))
    assert (drawn.mean_bps, drawn.cv) == pytest.approx((found.mean_bps, found.cv), rel=0.25)
    variation = read_variations(tmp_path / "w" / "variation.yaml")["up"]
    assert variation.slow_share > 0.5
    assert len(variation.trace(30, np.random.default_rng(0)).capacity_bps) == 30
    assert (tmp_path / "w" / "up.png").stat().st_size > 20_000
    assert (
        mobifleet(
            "calibrate", "link", *found_in, "--name", "walk", "--out", tmp_path / "again"
        ).code
        == 0
    )
    for file in (tmp_path / "w").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert re.search(r"held out, up\s+every other minute: mean", outcome.out)


def iperf3(reverse: int, rates: list[float]) -> str:
    sums = [{"sum": {"seconds": 1.0, "bits_per_second": bps, "omitted": False}} for bps in rates]
    start = {"test_start": {"reverse": reverse, "num_streams": 1}, "timestamp": {"time": "today"}}
    return json.dumps(
        {"start": start, "intervals": sums, "end": {"streams": [{"sender": {"min_rtt": 40_000}}]}}
    )


def test_iperf3_of_both_directions_needs_nothing_lent(mobifleet, tmp_path):
    up, down = tmp_path / "up.json", tmp_path / "down.json"
    up.write_text(iperf3(0, [10e6, 12e6] * 5))
    down.write_text(iperf3(1, [90e6, 110e6] * 5))
    outcome = mobifleet(
        "calibrate", "link", "--from", up, "--from", down, "--out", tmp_path / "both"
    )
    assert (outcome.code, outcome.err) == (0, "")
    link = profile.load(tmp_path / "both" / "profile.yaml")
    assert (link.up_bps, link.down_bps, link.latency_s) == (11e6, 100e6, 0.02)
    assert link.lag1 == 0  # it alternates: less than nothing, and a profile's is at least 0
    twice = mobifleet("calibrate", "link", "--from", up, "--from", up)
    assert twice.code == 2 and "second series for up" in twice.err


def measured_link(tmp_path):
    """What the verb itself finds of 4 Mbit/s up, 12 down, 15 ms each way."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    said = (tmp_path / "serving.txt").open("w", encoding="utf-8")
    lines = Console(file=said, soft_wrap=True)
    threading.Thread(
        target=calibrate_link.serve, args=("127.0.0.1", port, lines), daemon=True
    ).start()
    deadline_s = time.perf_counter() + 10
    while time.perf_counter() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    with ShapedRelay(("127.0.0.1", port), 4e6, 12e6, [Access(latency_s=0.015)]) as relay:
        shown = (tmp_path / "out.txt").open("w", encoding="utf-8")
        console = Console(file=shown, width=200)
        found = calibrate_link.measure_link(f"127.0.0.1:{relay.port}", 0, 1.0, console)
        link = calibrate_link.report(found, "shaped", tmp_path / "shaped", None, console)
    console.file.flush()
    return link


@pytest.mark.timed
def test_a_shaped_path_is_found_within_a_few_per_cent(tmp_path):
    link = measured_link(tmp_path)
    assert (link.up_bps, link.down_bps) == pytest.approx((4e6, 12e6), rel=0.1)
    assert 0.015 <= link.latency_s < 0.02
    assert link.overhead_s < 0.01


@pytest.mark.thorough
def test_a_shaped_path_is_measured_into_a_profile(tmp_path):
    link = measured_link(tmp_path)
    assert link.latency_s >= 0.015 and link.up_bps > 0 and link.down_bps > 0
    assert link.cv == 0  # ten tenths of a second say nothing of seconds
    assert "uplink: " in (tmp_path / "out.txt").read_text()
    assert link == profile.load(tmp_path / "shaped" / "profile.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "one of --serve, --to"),
        (("--serve", "--to", "here"), "one of --serve, --to"),
        (("--to", "here:port"), "HOST or HOST:PORT"),
        (("--to", "127.0.0.1:1"), "refused the connection"),
        (("--from", "walk.csv", "--direction", "sideways"), "up or down"),
        (("--from", "nowhere.csv"), "nowhere.csv: cannot be opened .No such file"),
        (("--from", "walk.csv", "--column", "up"), "says nothing of downlink and latency.*--like"),
        (("--from", "walk.csv", "--column", "up", "--like", "let"), "did you mean"),
        (("--from", "walk.csv"), "up, power_mw.*--column"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_mistake_is_one_message(argv, message, walk, mobifleet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = mobifleet("calibrate", "link", *argv)
    assert outcome.code == 2
    assert re.search(message, outcome.err.replace("\n", " ")), outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "calibrations").exists()


# ---- what others have measured, through the verb itself


@pytest.fixture
def calibrated(mobifleet, tmp_path):
    """Run `calibrate link --from` on a text; gives the outcome and the folder."""

    def run(text: str, *more: str, name: str = "t.csv"):
        (tmp_path / name).write_text(text)
        out = tmp_path / "out"
        lent = () if "--bidir" in more else ("--like", "lte")
        more = tuple(word for word in more if word != "--bidir")
        return mobifleet(
            "calibrate", "link", "--from", tmp_path / name, *lent, *more, "--out", out
        ), out

    return run


def rates(n: int, mean: float = 16.0) -> list[float]:
    return np.round(mean * np.exp(0.1 * np.random.default_rng(2).standard_normal(n)), 4).tolist()


def test_steps_of_a_tenth_of_a_second_are_read_from_a_column_in_ms(calibrated):
    values = rates(600)
    outcome, out = calibrated(
        "timestamp_ms,mbps\n" + "".join(f"{100 * i},{v}\n" for i, v in enumerate(values))
    )
    assert (outcome.code, outcome.err) == (0, "")
    seconds = 1e6 * np.array(values).reshape(60, 10).mean(axis=1)
    link = profile.load(out / "profile.yaml")
    assert (link.up_bps, link.cv) == pytest.approx(
        (seconds.mean(), seconds.std() / seconds.mean()), rel=1e-3
    )
    assert len(read_csv(out / "up.csv").times_s) == 60
    said = " ".join(outcome.out.split())
    assert "column 'timestamp_ms' in ms, column 'mbps' in Mbit/s, steps of 0.1 s" in said


def test_a_hole_of_an_hour_leaves_a_profile_and_says_what_is_not_held_out(calibrated):
    rows = [f"{i},{v}\n" for i, v in enumerate(rates(130))] + [
        f"{4000 + i},{v}\n" for i, v in enumerate(rates(4))
    ]
    outcome, out = calibrated("time_s,mbps\n" + "".join(rows))
    assert (outcome.code, outcome.err) == (0, "")
    assert profile.load(out / "profile.yaml").up_bps == pytest.approx(
        1e6 * np.mean(rates(130) + rates(4)), rel=1e-3
    )
    assert "second half: not held out: a series of 4 steps" in " ".join(outcome.out.split())


def test_seconds_that_never_follow_each_other_have_no_lag(calibrated):
    text = "time_s,mbps\n" + "".join(
        f"{i},{v if i % 2 == 0 else ''}\n" for i, v in enumerate(rates(40))
    )
    outcome, out = calibrated(text)
    assert (outcome.code, outcome.err) == (0, "")
    link = profile.load(out / "profile.yaml")
    assert link.cv > 0 and "lag1" not in link.provenance
    assert "no two seconds in a row" in " ".join(outcome.out.split())


def test_packets_delivered_become_a_profile(calibrated):
    sent_ms = [*sorted(np.random.default_rng(1).integers(1, 20_000, 4000).tolist()), 20_000]
    outcome, out = calibrated(
        "".join(f"{ms}\n" for ms in sent_ms), "--direction", "down", name="down.trace"
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert profile.load(out / "profile.yaml").down_bps == pytest.approx(
        4001 * 12_000 / 20, rel=1e-3
    )
    assert "a packet-delivery trace: 4,001 packets of 1,500 bytes in 20 s" in " ".join(
        outcome.out.split()
    )


def test_both_directions_of_one_file_need_no_other(calibrated):
    document = json.loads(iperf3(0, [22e6, 20e6] * 5))
    for interval in document["intervals"]:
        interval["sum_bidir_reverse"] = {"seconds": 1.0, "bits_per_second": 88e6, "sender": False}
    outcome, out = calibrated(json.dumps(document), "--bidir", name="bidir.txt")
    assert (outcome.code, outcome.err) == (0, "")
    link = profile.load(out / "profile.yaml")
    assert (link.up_bps, link.down_bps, link.latency_s) == (21e6, 88e6, 0.02)


def test_a_doubtful_level_is_noted(calibrated):
    outcome, _ = calibrated("time_s,bps\n" + "".join(f"{i},{v}\n" for i, v in enumerate(rates(20))))
    assert outcome.code == 0 and "note: uplink: its median is 15.7 bit/s" in outcome.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mbps\n0\n0\n0\n", "nothing passed in it"),
        ("mbps\n0\n" + "0\n" * 20, "nothing passed in it"),
        ("time_s,mbps\n0,\n1,\n", "nothing passed in it"),
        ("x,mbps\n0,1\n100,2\n200,3\n", "column 'x': in which unit"),
        ("time_s;mbps\n0;1,5\n1;2.5\n", "which is the decimal sign"),
        ("0;1000\n1,2e7\n2,2e7\n", "line 1: 1 cell where 2"),
    ],
)
def test_what_cannot_be_a_link_is_told_before_anything_is_written(calibrated, text, message):
    outcome, out = calibrated(text)
    assert outcome.code == 2 and message in outcome.err
    assert not out.exists()


def test_what_is_no_file_of_text_is_refused(mobifleet, tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    refused = [(tmp_path, "is a folder"), (tmp_path / "binary", "binary")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused += [(tmp_path / "pipe", "not a regular file"), ("/dev/zero", "not a regular file")]
    for path, message in refused:
        outcome = mobifleet(
            "calibrate", "link", "--from", path, "--like", "lte", "--out", tmp_path / "out"
        )
        assert outcome.code == 2 and message in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1
