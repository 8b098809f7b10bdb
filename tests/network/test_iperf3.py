"""iperf3's JSON in its variants. The files of iperf3/ are real: 3 s at 20 Mbit/s over the loopback
device, by 3.12 and 3.21.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from inputs.files import FileProblem
from network.iperf3 import is_iperf3, read_iperf3

REAL = Path(__file__).parent / "iperf3"


@pytest.mark.parametrize(
    ("name", "ways", "at", "steps", "flows"),
    [
        ("3.12-forward", {"up": 20e6}, ("sender",), 3, "1 TCP flow "),
        ("3.12-bidir", {"up": 20e6, "down": 20e6}, ("sender", "receiver"), 3, "1 TCP flow "),
        ("3.12-P3-O1", {"up": 60e6}, ("sender",), 3, "3 TCP flows "),
        ("3.12-interrupted", {"up": 20e6}, ("sender",), 2, "; interrupted"),
        ("3.12-server-of-forward", {"up": 20e6}, ("receiver",), 3, "1 TCP flow "),
        ("3.12-server-of-reverse", {"down": 20e6}, ("sender",), 3, "1 TCP flow "),
        (
            "3.21-bidir-get-server-output",
            {"up": 20e6, "down": 20e6},
            ("receiver", "receiver"),
            3,
            "at once",
        ),
        (
            "3.21-reverse-get-server-output",
            {"down": 20e6},
            ("receiver",),
            3,
            "1 TCP flow held to 20 Mbit/s by -b",
        ),
        ("3.21-stream-bidir", {"up": 20e6, "down": 20e6}, ("sender", "receiver"), 3, "at once"),
        ("3.21-stream-interrupted", {"up": 20e6}, ("sender",), 2, "; interrupted"),
    ],
)
def test_real_results(name, ways, at, steps, flows):
    path = REAL / f"{name}.json"
    found = read_iperf3(path)
    assert is_iperf3(path)
    assert {one.direction: float(np.mean(one.series_bps)) for one in found} == pytest.approx(
        ways, rel=0.03
    )
    for one, where in zip(found, at, strict=True):
        assert f" at the {where}" in one.conditions and flows in one.conditions
        assert len(one.series_bps) == steps and one.step_s == pytest.approx(1, abs=0.005)
        assert one.date.endswith("GMT") and (one.rtt_s is None or 1e-5 < one.rtt_s < 1e-3)


def test_real_results_that_are_refused():
    with pytest.raises(
        FileProblem,
        match=r"a UDP test.*here 20 Mbit/s, of which 20 arrived: measure with TCP, without -u",
    ):
        read_iperf3(REAL / "3.12-udp.json")
    with pytest.raises(FileProblem, match="iperf3 failed: unable to connect to server"):
        read_iperf3(REAL / "3.21-no-server.json")


# ---- of our own making


def result(
    rates: list[float], way: str = "up", seconds: float = 1.0, omitted: int = 0, **more
) -> dict:
    """What `iperf3 -J` writes, as far as it is read."""
    sums = [
        {"seconds": seconds, "bits_per_second": bps, "omitted": i < omitted, "sender": way == "up"}
        for i, bps in enumerate(rates)
    ]
    start = {
        "test_start": {"protocol": "TCP", "reverse": int(way == "down"), "num_streams": 1},
        "connecting_to": {},
    }
    end = {"streams": [{"sender": {"min_rtt": 24_000, "mean_rtt": 90_000}}]}
    return {
        "start": start,
        "intervals": [{"streams": [], "sum": entry} for entry in sums],
        "end": end,
        **more,
    }


@pytest.fixture
def read(tmp_path):
    """What is read of a result, or of a text."""

    def read(document):
        path = tmp_path / "iperf3.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return read_iperf3(path)

    return read


def test_both_ways_and_the_receivers_view(read):
    (down,) = read(result([9e9, 20e6, 30e6], "down", omitted=1))
    assert (down.direction, down.series_bps.tolist(), down.rtt_s) == ("down", [20e6, 30e6], 0.024)
    assert "receiver" in down.conditions
    (up,) = read(result([20e6]))
    assert "--get-server-output" in up.conditions
    at_server = result([9e9, 15e6], "down", omitted=1)
    (up,) = read(result([9e9, 20e6], omitted=1, server_output_json=at_server))
    assert up.series_bps.tolist() == [15e6]


@pytest.mark.parametrize("newer", [False, True])
def test_both_directions_at_once_whatever_the_key_is_called(read, newer):
    text = json.dumps(result([22e6, 20e6]))
    for way, bps in ((88e6, "0"), (90e6, "1")):
        mark = (
            f'"bits_per_second": {22e6 if bps == "0" else 20e6}, "omitted": false, "sender": true}}'
        )
        other = "sum_bidir_reverse" if newer else "sum"
        more = f'{mark}, "{other}": {{"seconds": 1.0, "bits_per_second": {way}, '
        more += '"omitted": false, "sender": false}'
        assert text.count(mark) == 1
        text = text.replace(mark, more)
    up, down = read(text)
    assert (up.direction, up.series_bps.tolist()) == ("up", [22e6, 20e6])
    assert (down.direction, down.series_bps.tolist()) == ("down", [88e6, 90e6])


@pytest.mark.parametrize("step_s", [0.1, 1.0, 10.0])
def test_intervals_of_any_length_without_the_rest_at_the_end(read, step_s):
    document = result([10e6, 20e6, 30e6, 1.0], seconds=step_s)
    document["intervals"][-1]["sum"]["seconds"] = 0.3 * step_s
    (found,) = read(document)
    assert (found.series_bps.tolist(), found.step_s) == ([10e6, 20e6, 30e6], step_s)


def test_intervals_of_unlike_length_are_refused(read):
    document = result([10e6, 20e6, 30e6, 40e6])
    document["intervals"][1]["sum"]["seconds"] = 5.0
    with pytest.raises(FileProblem, match="interval 2: lasts 5 s, where 1 s are usual"):
        read(document)


def test_a_stream_of_events_is_read_as_far_as_it_goes(read):
    whole = result([10e6, 20e6])
    events = [
        {"event": "start", "data": whole["start"]},
        *({"event": "interval", "data": interval} for interval in whole["intervals"]),
        {"event": "end", "data": whole["end"]},
    ]
    lines = [json.dumps(event) for event in events]
    (found,) = read("\n".join(lines) + "\n")
    assert found.series_bps.tolist() == [10e6, 20e6] and found.rtt_s == 0.024
    (cut,) = read("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert cut.series_bps.tolist() == [10e6, 20e6] and cut.conditions.endswith(
        "; cut off within its last line"
    )
    assert cut.rtt_s is None
    (full,) = read("\n".join([*lines, json.dumps(whole)]))  # --json-stream-full-output
    assert full.series_bps.tolist() == [10e6, 20e6]
    with pytest.raises(FileProblem, match="start, is missing"):
        read("\n".join(lines[1:]))


@pytest.mark.parametrize(
    "rate", ["fast", None, -1, float("nan"), float("inf"), 1e300, True, [1], "20e6"]
)
def test_a_rate_that_cannot_be_is_refused(read, rate):
    with pytest.raises(FileProblem, match=r"interval 2: bits_per_second is .* which cannot be"):
        read(result([1e6, rate]))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("", "not a result"),
        ("[]", "not a result"),
        ("[" * 100_000, "not JSON"),
        ("{" * 3 + "9" * 5000, "not JSON"),
        ('{"error": "unable to connect"}', "not a result"),
        ({"start": {}, "error": "unable to connect"}, "iperf3 failed: unable to connect"),
        (
            result([1e6], error="error - control socket has closed unexpectedly"),
            "failed: error - control socket",
        ),
        ({"start": {}}, "not a result"),
        ({"start": [], "intervals": {}}, "not a result"),
        ({"start": {"test_start": {}}, "intervals": [{"sum": None}]}, "not a result"),
        (result([]), "no intervals"),
        (result([1e6], omitted=1), "no intervals"),
        (result([1e6], seconds=0), "last no time"),
        (result([1e6], seconds=-1), "interval 1: seconds is -1"),
        (json.dumps(result([1e6])) * 2, "2 results in one file"),
        (
            "Connecting to host 10.0.0.1, port 5201\n[ ID] Interval  Transfer\n",
            "run it again with -J",
        ),
    ],
    ids=range(17),
)
def test_what_is_no_result_is_one_message(read, document, message):
    with pytest.raises(FileProblem, match=message) as told:
        read(document)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_a_udp_test_says_what_arrived(read):
    document = result([500e6])
    document["start"]["test_start"]["protocol"] = "UDP"
    document["end"]["sum"] = {"bits_per_second": 500e6, "lost_percent": 92.0}
    with pytest.raises(FileProblem, match="here 500 Mbit/s, of which 40 arrived"):
        read(document)
    for impossible in ({"lost_percent": 300}, {"bits_per_second": 10**400}):
        document["end"]["sum"].update(impossible)
        with pytest.raises(FileProblem, match=r"the rate that -b says: measure"):
            read(document)


def test_whole_numbers_beyond_all_floats_are_not_read(read):
    document = result([20e6])
    document["start"]["test_start"]["target_bitrate"] = 10**400
    document["end"]["streams"][0]["sender"]["min_rtt"] = 10**400
    (up,) = read(document)
    assert up.rtt_s is None and "-b" not in up.conditions
