"""Rates from files: which column, which unit, packets delivered, and what is refused with what to
do.
"""

from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs.files import FileProblem
from network import series
from network.bandwidth import read_csv
from network.errors import NetworkError
from network.measured import read_throughput
from network.series import doubt, read_rates


@pytest.fixture
def file(tmp_path):
    """The path of a file with a text."""

    def write(text: str):
        path = tmp_path / "t.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("name", "bps"),
    [
        *(
            ("mbps", 1e6),
            ("Mbps", 1e6),
            ("Mbit/s", 1e6),
            ("mbit", 1e6),
            ("Mbits/sec", 1e6),
            ("up_mbps_mean", 1e6),
        ),
        *(
            ("kbps", 1e3),
            ("kbit/s", 1e3),
            ("rate_kbit_per_s", 1e3),
            ("kilobits/s", 1e3),
            ("Kb/s", 1e3),
        ),
        *(
            ("bps", 1),
            ("capacity_bps", 1),
            ("bits_per_second", 1),
            ("bit/s", 1),
            ("Gbit/s", 1e9),
            ("gbps", 1e9),
        ),
        *(
            ("B/s", 8),
            ("Bps", 8),
            ("bytes_per_second", 8),
            ("kB/s", 8e3),
            ("KB/s", 8e3),
            ("rateKBps", 8e3),
        ),
        *(
            ("MB/s", 8e6),
            ("MBps", 8e6),
            ("KiB/s", 8 * 1024),
            ("MiB/s", 8 * 2**20),
            ("Throughput (Mbit/s)", 1e6),
        ),
        *(("throughputMbps", 1e6), ("iface tx [kB/s]", 8e3)),
        *(
            ("bytes", 16),
            ("rx_bytes", 16),
            ("KB", 16e3),
            ("octets", 16),
        ),  # counted in steps of half a second
    ],
)
def test_the_unit_of_a_column_is_what_its_name_says(file, name, bps):
    path = file(f"time_s,{name}\n0,1\n0.5,3\n1,2\n")
    assert read_rates(path).bps == pytest.approx([bps, 3 * bps, 2 * bps])
    assert read_csv(path).capacity_bps == pytest.approx([bps, 3 * bps, 2 * bps])
    assert read_throughput(path).series_bps == pytest.approx([bps, 3 * bps, 2 * bps])


@pytest.mark.parametrize("name", ["Mb", "kb", "mb/s", "MBPS", "bits", "KBPS", "mB/s"])
def test_a_unit_that_can_be_read_in_two_ways_is_refused(file, name):
    with pytest.raises(FileProblem, match=f"t.csv: column {name!r}: .*two ways: write bit/s"):
        read_rates(file(f"time_s,{name}\n0,1\n1,3\n"))


@pytest.mark.parametrize(
    "name", ["signal_dBm", "power (mW)", "loss %", "rx_pps", "RTT ms", "speed_kmh", "m/s"]
)
def test_a_column_of_another_quantity_is_no_rate(file, name):
    for column in (name, None):
        with pytest.raises(FileProblem, match="as it says, which is no rate"):
            read_rates(file(f"time_s,{name}\n0,1\n1,3\n5,2\n"), column=column)


def test_where_no_unit_is_said_it_is_the_callers_and_is_told(file):
    path = file("time_s,up\n0,1\n1,3\n")
    assert (
        read_rates(path).bps == [1, 3]
        and "bit/s (as nothing else is said)" in read_rates(path).read
    )
    assert read_rates(path, unit="kB/s").bps == [8e3, 24e3]
    assert read_throughput(path).series_bps.tolist() == [1e6, 3e6]
    assert (
        "column 'time_s' in s, column 'up' in Mbit/s" in read_throughput(path, "Mbit/s").conditions
    )
    with pytest.raises(NetworkError, match="one of bit/s"):
        read_rates(path, unit="Mbps")
    said = file("time_s,up_kbps\n0,1\n1,3\n")
    assert read_rates(said, unit="kbit/s").bps == [1e3, 3e3]
    with pytest.raises(FileProblem, match="'up_kbps' is in kbit/s, as it says, and not in Mbit/s"):
        read_rates(said, unit="Mbit/s")


def test_columns_are_chosen_by_rule(file):
    assert read_rates(file("t_s,up_mbps,power_mw\n0,1,9\n1,2,9\n")).bps == [
        1e6,
        2e6,
    ]  # the only unit of rate
    assert read_rates(file("t_s,up,power\n0,1,9\n1,2,9\n"), column="power").bps == [9, 9]
    assert read_rates(file("mbps,time_ms\n1,0\n2,500\n")).times_s == [0, 0.5]
    assert (
        read_rates(file("id,mbps\n1,5\n2,6\n3,7\n")).times_s is None
    )  # a count of rows says nothing of time
    both = file("timestamp,t_s,mbps\n2026-03-02T10:00:00,0.0,5\n2026-03-02T10:00:01,1.0,6\n")
    assert read_rates(both).times_s == [0, 1]
    for text, message in (
        (
            "t_s,a,b\n0,1,2\n1,1,2\n",
            r"which column is the rate \(a, b\)\? Give its name a unit, or",
        ),
        ("t_s,up_mbps,down_mbps\n0,1,2\n1,2,3\n", r"up_mbps, down_mbps\)\? Name one with"),
        ("0,1,2\n1,2,3\n", "a line of names is missing"),
        (
            "ms\n0\n6\n12\n18\n",
            "ms: there is a column of time, and none of rates: .*-delivery trace .* no line of",
        ),
        (
            "x,mbps\n0,1\n100,2\n200,3\n",
            "line 2, column 'x': in which unit",
        ),  # unread, and it looks like time
        ("when,mbps\n10:00,1\n10:01,2\n", "line 2, column 'when': expected seconds, a date"),
        (
            "noted,mbps\n02/03/2026 10:00,1\n02/03/2026 10:01,2\n",
            "column 'noted': expected seconds, a date",
        ),
        (
            "start_s,end_ms,mbps\n0,1,2\n100,2,3\n",
            "'start_s' and column 'end_ms' look like times, and differ",
        ),
    ):
        with pytest.raises(FileProblem, match=message):
            read_rates(file(text))
    with pytest.raises(FileProblem, match=r"no column 'c'; it has t_s, a, b"):
        read_rates(file("t_s,a,b\n0,1,2\n"), column="c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s,mbps\n0,1\n1,-2\n", "line 3, column 'mbps': must be at least 0, not -2"),
        ("time_s,mbps\n0,1\n1,fast\n", "line 3, column 'mbps': expected a number, found 'fast'"),
        ("time_s,mbps\n0,1\n1,1e300\n", "no rate of a link"),
        ("time_s,mbps\n1,1\n0,1\n", "line 3, column 'time_s': times must increase"),
        ("time_s,bytes\n0,1\n1,1\n2.5,1\n3.5,1\n", "steps of unequal length"),
        (
            "rx_bytes\n" + "".join(f"{1000 * i}\n" for i in range(9)),
            "rises from row to row, as a counter",
        ),
        ("time_s,mbps_and_kbps\n0,1\n1,1\n", "several units"),
    ],
)
def test_what_is_wrong_is_told_with_line_and_column(file, text, message):
    with pytest.raises(FileProblem, match=message):
        read_rates(file(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mbps\n1\n2\n", "no column of time"),
        ("time_s,mbps\n0,1\n1,\n", "line 3, column 'mbps': a number is missing"),
        ("time_s,mbps\n0,1\n1,nan\n", "line 3.*found 'nan'"),
        ("0,1\n1,1k\n", "line 2, column 2: expected a number"),
        (
            "0,1k\n1,1\n",
            r"line 1, column 2: expected a number, found '1k' \(the names of columns begin with a "
            r"letter\)",
        ),
        ("5\n4\n", "line 2: 4 after 5; one column of whole numbers is a packet-delivery trace"),
        ("0\n0\n", "ends at 0 ms"),
        ("1772445600000\n", "its times count from 0"),
    ],
)
def test_a_capacity_needs_every_time_and_every_rate(file, text, message):
    with pytest.raises(FileProblem, match=message):
        read_csv(file(text))


# ---- packets


def test_packets_are_counted_into_seconds_and_their_last_is_the_period(file):
    """Worked by hand: 3 packets in the first second (one at its very end), 1 in the second, 4 in
    the last half.
    """
    path = file("0\n700\n1000\n1400\n2100\n2100\n2300\n2500\n")
    trace = read_csv(path)
    assert (trace.times_s, trace.period_s) == ([0, 1, 2], 2.5)
    assert trace.capacity_bps == [36_000, 12_000, 96_000]
    assert trace.integral(0, 2.5) == pytest.approx(8 * 12_000)
    assert "8 packets of 1,500 bytes in 2.5 s" in trace.source.read
    measured = read_throughput(path)
    assert (measured.series_bps.tolist(), measured.step_s) == (
        [36_000, 12_000],
        1.0,
    )  # whole seconds


def test_a_packet_a_millisecond_is_twelve_megabits(file):
    trace = read_csv(file("1\n"))
    assert (trace.capacity_bps, trace.period_s) == ([12e6], 0.001)


def test_a_rate_a_second_is_not_taken_for_packets(file):
    assert read_throughput(file("5\n7\n6\n")).series_bps.tolist() == [5e6, 7e6, 6e6]  # it falls
    assert read_throughput(file("5\n5\n5\n")).series_bps.tolist() == [5e6, 5e6, 5e6]  # it stands
    assert read_throughput(file("mbps\n5\n6\n7\n")).series_bps.tolist() == [
        5e6,
        6e6,
        7e6,
    ]  # it has a name
    assert read_throughput(file("5.0\n6.0\n7.5\n")).series_bps.tolist() == [5e6, 6e6, 7.5e6]


@settings(max_examples=60, deadline=None)
@given(
    sent_ms=st.lists(st.integers(0, 20_000), min_size=2, max_size=200).filter(
        lambda ms: max(ms) > min(ms)
    )
)
def test_no_packet_is_lost_or_made(tmp_path_factory, sent_ms):
    path = tmp_path_factory.mktemp("packets") / "down.trace"
    path.write_text("\n".join(map(str, sorted(sent_ms))))
    trace = read_csv(path)
    assert trace.period_s == max(sent_ms) / 1e3
    assert trace.integral(0, trace.period_s) == pytest.approx(12_000 * len(sent_ms))
    for end_s in range(1, int(trace.period_s) + 1):
        assert trace.integral(0, end_s) == pytest.approx(
            12_000 * sum(ms <= 1000 * end_s for ms in sent_ms), abs=1e-3
        )


def test_a_packet_trace_has_a_longest(file, monkeypatch):
    monkeypatch.setattr(series, "MOST_PACKETS", 3)
    with pytest.raises(FileProblem, match="more than 3 rows"):
        read_csv(file("1\n2\n3\n4\n"))


# ---- what looks wrong


def test_a_doubtful_series_is_told_and_a_plausible_one_is_not():
    assert doubt([20, 10, 30]).startswith("its median is 20 bit/s: is the unit right?")
    assert "1e+12 bit/s" in doubt([1e12])
    assert "zero throughout" in doubt([0, 0])
    assert doubt([0, 0, 0, 2e6]) is None and doubt([1e3]) is None and doubt([1e11, np.nan]) is None


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(
        st.floats(0, 1e9).map(lambda value: float(f"{value:.6g}")) | st.none(),
        min_size=3,
        max_size=40,
    ),
    unit=st.sampled_from([("bps", 1), ("kbps", 1e3), ("Mbit/s", 1e6), ("kB/s", 8e3)]),
    step_s=st.sampled_from([0.1, 0.25, 1.0, 10.0]),
    clock=st.sampled_from([("time_s", 1), ("time_ms", 1e3), ("timestamp_us", 1e6)]),
)
def test_any_throughput_comes_back_from_its_file(tmp_path_factory, rates, unit, step_s, clock):
    if not any(rates):
        return
    cells = ["" if rate is None else repr(rate / unit[1]) for rate in rates]
    rows = [f"{round(i * step_s * clock[1], 6)},{cell}" for i, cell in enumerate(cells)]
    path = tmp_path_factory.mktemp("rates") / "t.csv"
    path.write_text("\n".join([f"{clock[0]},{unit[0]}", *rows]))
    found = read_throughput(path)
    assert found.step_s == pytest.approx(step_s)
    for got, wanted in zip(found.series_bps, rates, strict=True):
        assert isnan(got) if wanted is None else got == pytest.approx(wanted, rel=1e-12)
