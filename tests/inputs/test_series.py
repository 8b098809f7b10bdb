"""Tables of a time series: rows of names, delimiters, decimal commas, and what a column of time may
hold.
"""

from math import isnan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs import series
from inputs.files import FileProblem
from inputs.series import in_order, is_named_time, looks_like_time, read_table, times


@pytest.fixture
def table(tmp_path):
    """The table of a text, or of bytes, in a file."""

    def read(text: str | bytes):
        path = tmp_path / "t.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(path)

    return read


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("a,b\n1,2\n", ("a", "b"), [["1", "2"]]),
        ("1,2\n3,4\n", (), [["1", "2"], ["3", "4"]]),
        ("\ufefft,v\r\n1,2\r\n", ("t", "v"), [["1", "2"]]),
        ("t;v\n0;1,5\n1;2\n", ("t", "v"), [["0", "1,5"], ["1", "2"]]),
        ("0;1,5\n1;2,25\n", (), [["0", "1,5"], ["1", "2,25"]]),
        ("t\tv\n0\t1\n", ("t", "v"), [["0", "1"]]),
        ("0 1\n1   2\n", (), [["0", "1"], ["1", "2"]]),
        ("time (s),rate (Mbit/s)\n0,1\n", ("time (s)", "rate (Mbit/s)"), [["0", "1"]]),
        ("rate (Mbit/s)\n1\n2\n", ("rate (Mbit/s)",), [["1"], ["2"]]),
        ("# walked\n\nup\n1\n", ("up",), [["1"]]),
        (
            "# time_ms mbps\n0 1\n100 2\n",
            ("time_ms", "mbps"),
            [["0", "1"], ["100", "2"]],
        ),  # as numpy.savetxt has it
        ("# Minneapolis, walking\n0,1\n1,2\n", (), [["0", "1"], ["1", "2"]]),
        ("t,v,\n0,1,\n", ("t", "v"), [["0", "1"]]),
        ('t,"v"\n0,"1"\n', ("t", "v"), [["0", "1"]]),
        (",time,v\n0,5,1\n", ("", "time", "v"), [["0", "5", "1"]]),  # as pandas writes its index
        ("t,v\r0,1\r", ("t", "v"), [["0", "1"]]),
    ],
)
def test_names_and_cells_are_told_apart(table, text, names, rows):
    found = table(text)
    assert (found.names, found.rows) == (names, rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0;1000\n1,2e7\n2,2e7\n", r"line 1: 1 cell where 2 are expected \('0;1000'\)"),
        ("0,1,2\n1,2\n2,3\n", "line 1: 3 cells where 2"),
        ("t,v\n0,1\n1\n", "line 3: 1 cell where 2"),
        ("", "no rows in it"),
        ("# only\n", "no rows in it"),
        ("t,v\n", r"no rows in it, but one of names \(t, v\)"),
        ("t,v,v\n0,1,2\n", "line 1: two columns are called 'v'"),
        (b"0,1\n1,\xff\n", "line 2: not utf-8"),
        (b"\x00\x01", "binary"),
        ('t,v\n0,"1\n', "quotation mark"),
    ],
)
def test_what_is_no_table_is_told_with_its_line(table, text, message):
    with pytest.raises(FileProblem, match=message):
        table(text)


@pytest.mark.parametrize(
    "first",
    ["0,1k", "O,1000", "10o,5", "1e,7", "-,3", "0x1,2", "1_000,2", "٣,2", "0,inf", "0,1e999"],
)
def test_a_first_row_with_a_typo_is_an_error_and_no_header(table, first):
    found = table(f"{first}\n1,2\n2,3\n")
    assert len(found.rows) == 3
    with pytest.raises(FileProblem, match=r"line 1, column [12]: "):
        for place in (0, 1):
            found.numbers(place)


def test_numbers_are_strict_and_missing_ones_are_asked_for(table):
    found = table("v,w\n1,-1\nnan,2\n,3\nNA,4\n")
    values = found.numbers(0, may_miss=True)
    assert values[0] == 1 and all(map(isnan, values[1:]))
    with pytest.raises(FileProblem, match="line 3, column 'v': expected a number, found 'nan'"):
        found.numbers(0)
    with pytest.raises(FileProblem, match="line 2, column 'w': must be at least 0, not -1"):
        found.numbers(1, least=0)
    assert table("v;w\n1,5;2\n3;4,25\n").numbers(0) == [1.5, 3]
    with pytest.raises(FileProblem, match="which is the decimal sign"):
        table("v;w\n1,5;2\n3;4.25\n").numbers(1)
    with pytest.raises(FileProblem, match="found '1,234,567'"):
        table("v;w\n1,5;2\n1,234,567;4\n").numbers(0)


@pytest.mark.parametrize(
    ("name", "cells", "unit", "seconds"),
    [
        ("time_s", ["0", "0.5"], "s", [0, 0.5]),
        ("t", ["3", "4"], "s", [3, 4]),
        ("timestamp_ms", ["0", "100"], "ms", [0, 0.1]),
        ("Time [us]", ["5", "10"], "us", [5e-6, 1e-5]),
        ("elapsedNs", ["0", "2000000000"], "ns", [0, 2]),
        ("time (µs)", ["0", "1e6"], "us", [0, 1]),
        ("ms", ["0", "1000"], "ms", [0, 1]),
        ("time_min", ["0", "2"], "min", [0, 120]),
        ("ts", ["1772445600", "1772445601.5"], "s", [1772445600, 1772445601.5]),
        ("timestamp", ["1772445600000", "1772445600250"], "ms", [1772445600, 1772445600.25]),
        ("time_ms", ["1772445600000", "1772445601000"], "ms", [1772445600, 1772445601]),
        (
            "date",
            ["2026-03-02T10:00:00Z", "2026-03-02T11:00:01.5+01:00"],
            "dates",
            [1772445600, 1772445601.5],
        ),
        ("x", ["2026-03-02 10:00:00", "2026-03-02 10:00:02"], "dates", [1772445600, 1772445602]),
        ("clock", ["23:59:59", "00:00:00.5"], "hh:mm:ss", [86399, 86400.5]),
        ("t", ["0:00:01", "25:00:00"], "hh:mm:ss", [1, 90000]),
    ],
)
def test_times_are_read_in_the_unit_that_is_said_or_that_follows(table, name, cells, unit, seconds):
    found = table(f"{name},v\n{cells[0]},1\n{cells[1]},2\n")
    read = times(found, 0)
    assert read.unit == unit and read.seconds == pytest.approx(seconds, rel=1e-12)
    assert looks_like_time(found, 0)


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        ("timestamp", ["0", "100"], "in which unit.*timestamp_ms"),
        ("time_s", ["1772445600000", "1772445600250"], "no time in s, but one in ms"),
        (
            "date",
            ["2026-03-02T10:00:00", "2026-13-02T10:00:00"],
            "line 3, column 'date': expected a date",
        ),
        ("date", ["2026-03-02T10:00:00", "5"], "expected a date"),
        ("clock", ["10:00:00", "10:61:00"], "line 3.*time of day"),
        (
            "clock",
            ["10:00", "10:01"],
            "expected seconds, a date .* found '10:00'",
        ),  # hours or minutes?
        ("time_s", ["0", ""], "a number is missing"),
        ("time_s", ["0", "nan"], "found 'nan'"),
    ],
)
def test_times_that_can_be_read_in_two_ways_are_refused(table, name, cells, message):
    with pytest.raises(FileProblem, match=message):
        times(table(f"{name},v\n{cells[0]},1\n{cells[1]},2\n"), 0)


def test_order_is_asked_of_times(table):
    found = table("t,v\n0,1\n2,2\n1,3\n")
    with pytest.raises(
        FileProblem, match="line 4, column 't': times must increase, and 1 follows 2"
    ):
        in_order(found, 0, times(found, 0).seconds)
    again = table("t,v\n0,1\n0,2\n")
    with pytest.raises(FileProblem, match=r"line 3.*0 follows 0"):
        in_order(again, 0, times(again, 0).seconds)


def test_a_column_is_told_for_time_by_name_or_by_what_it_holds(table):
    assert all(
        map(
            is_named_time,
            ("t", "Time", "time_s", "elapsedTime", "ms", "TIMESTAMP", "start_s", "UTC"),
        )
    )
    assert not any(
        map(is_named_time, ("rtt_ms", "latency_s", "up", "power_mw", "Mbit/s", "min", "temp", "tx"))
    )
    even = table("x,n,k,u\n0,0,1,5\n100,1,2,6\n200,2,3,9\n300,3,4,1\n")
    assert [looks_like_time(even, place) for place in range(4)] == [True, False, False, False]


def test_too_many_rows_are_refused_before_they_are_read(table, monkeypatch):
    monkeypatch.setattr(series, "MOST_ROWS", 10)
    with pytest.raises(FileProblem, match="more than 10 rows"):
        table("1\n" * 11)


NUMBERS = st.floats(0, 1e12, allow_nan=False).map(lambda value: float(f"{value:.9g}"))


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(NUMBERS, min_size=3, max_size=30),
    start=st.floats(0, 1e6).map(lambda value: round(value, 3)),
    unit=st.sampled_from([("s", 1), ("ms", 1e3), ("us", 1e6)]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    comma=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_series_comes_back_as_it_was_written(
    tmp_path_factory, values, start, unit, delimiter, comma, end
):
    name, per_s = unit
    moments = [start + 0.25 * i for i in range(len(values))]
    rows = [f"time_{name}{delimiter}v"] + [
        f"{t * per_s!r}{delimiter}{v!r}" for t, v in zip(moments, values, strict=True)
    ]
    text = end.join(rows) + end
    if comma and delimiter != ",":
        text = text.replace(".", ",")
    path = tmp_path_factory.mktemp("series") / "t.csv"
    path.write_bytes(text.encode())
    found = read_table(path)
    assert found.numbers(1) == values
    assert times(found, 0).seconds == pytest.approx(moments, rel=1e-12)
