"""Availability: a pure function of time, a rhythm that behaves as the phones did that it was fitted
to, traces as recorded.
"""

from csv import DictReader
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from devices import availability
from devices.availability import (
    DAY_S,
    PROFILES,
    Availability,
    AvailabilityError,
    by_rhythm,
    by_trace,
    load,
    never,
    read_trace,
)
from devices.availability_fit import describe, fit, sessions_of, write
from inputs.files import FileProblem

FLASH = load("charging-wifi-locked")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"


def phone(number: int, seed: int = 0, starts_at_s: float = 0.0, rhythm=FLASH) -> Availability:
    return by_rhythm(
        rhythm,
        lambda part: np.random.default_rng([seed, number, crc32(part.encode())]),
        starts_at_s,
    )


def recorded(
    who: Availability, length_s: float, origin_s: float = 0.0
) -> list[tuple[float, float]]:
    """The on intervals of so many seconds, as someone who watches would note them."""
    noted, now_s = [], 0.0
    while now_s < length_s:
        change_s = min(who.next_change(now_s), length_s)
        if who.is_on(now_s):
            noted.append((origin_s + now_s, origin_s + change_s))
        now_s = change_s
    return noted


def watched(windows: dict, seed: int = 0, rhythm=FLASH) -> dict:
    """The sessions of as many phones of the rhythm, each watched through its window (times count
    from a midnight).
    """
    noted = {}
    for number, (device, (start_s, end_s)) in enumerate(windows.items()):
        who = phone(number, seed, start_s % DAY_S, rhythm)
        noted[device] = recorded(who, end_s - start_s, start_s)
    return sessions_of(noted, windows)


# --- a pure function of time


@settings(max_examples=30)
@given(st.lists(st.floats(0, 6 * DAY_S), min_size=1, max_size=30), st.integers(0, 5))
def test_answers_depend_on_the_moment_alone(moments, number):
    asked_in_order, asked_at_random = phone(number), phone(number)
    answers = {t: (asked_in_order.is_on(t), asked_in_order.next_change(t)) for t in sorted(moments)}
    assert {
        t: (asked_at_random.is_on(t), asked_at_random.next_change(t)) for t in moments
    } == answers
    for t in moments:
        fresh = phone(number)
        assert (fresh.next_change(t), fresh.is_on(t)) == answers[t][::-1]


def test_every_change_is_a_change_and_nothing_happens_in_between():
    for who in (phone(3), by_trace([(0, 10), (50, 60), (90, 100)], 100, 30)):
        now_s = 0.0
        for _ in range(200):
            change_s = who.next_change(now_s)
            assert change_s > now_s
            assert who.is_on(change_s) != who.is_on(now_s)
            for at_s in np.linspace(now_s, change_s, 5)[:-1]:
                assert (who.is_on(at_s), who.next_change(at_s)) == (who.is_on(now_s), change_s)
            now_s = change_s


def test_a_later_start_of_the_day_is_the_same_day_seen_later():
    midnight, evening = phone(5), phone(5, starts_at_s=20 * 3600)
    for at_s in np.random.default_rng(0).uniform(0, 4 * DAY_S, 300):
        assert evening.is_on(at_s) == midnight.is_on(at_s + 20 * 3600)


def test_never_means_never():
    for who in (never(), by_trace([], 100), phone(0, rhythm=_changed(FLASH, never_ready=1.0))):
        assert not who.is_on(0)
        assert who.next_change(0) == inf
        assert not who.is_on(1e9)
        assert who.share(0, 1e6) == 0


def _changed(rhythm, **changes):
    return availability.Rhythm(**{**vars(rhythm), **changes})


# --- the rhythm against what it was fitted to


def test_the_rhythm_behaves_as_the_shipped_measurements_say():
    """1,400 phones through the windows' mean length (4.75 days), against the numbers in the
    profile's file.
    """
    windows = {str(i): (i % 24 * 3600.0, i % 24 * 3600.0 + 4.75 * DAY_S) for i in range(1_400)}
    seen, meant = describe(watched(windows), windows), FLASH.observed
    assert np.abs(np.subtract(seen["share_by_hour"], meant["share_by_hour"])).max() < 0.025
    assert np.corrcoef(seen["share_by_hour"], meant["share_by_hour"])[0, 1] > 0.9
    for q, allowed in ((0.05, 0.2), (0.25, 0.2), (0.5, 0.2), (0.75, 0.2), (0.9, 0.3), (0.95, 0.2)):
        assert seen["session_s"][q] == pytest.approx(meant["session_s"][q], rel=allowed), q
    assert seen["mean_device_share"] == pytest.approx(meant["mean_device_share"], rel=0.1)
    for q in (0.5, 0.75, 0.9, 0.95):
        assert seen["device_share"][q] == pytest.approx(meant["device_share"][q], rel=0.3), q


@pytest.fixture(scope="module")
def trace() -> tuple[dict, dict]:
    """The measured intervals and windows of 710 phones."""
    if not SHARED.is_dir():
        pytest.skip("the measured traces are not beside this checkout")
    with (SHARED / "availability_flash1000_devices.csv").open() as file:
        windows = {
            r["device"]: (float(r["trace_start_s"]), float(r["trace_end_s"]))
            for r in DictReader(file)
        }
    intervals: dict = {}
    with (SHARED / "availability_flash1000_intervals.csv").open() as file:
        for r in DictReader(file):
            intervals.setdefault(r["device"], []).append(
                (float(r["ready_start_s"]), float(r["ready_end_s"]))
            )
    return intervals, windows


def distance(one: dict, other: dict) -> float:
    """The Kolmogorov-Smirnov distance of two populations' session lengths."""
    return stats.ks_2samp(
        *([b - a for mine in x.values() for a, b in mine] for x in (one, other))
    ).statistic


@pytest.mark.thorough
def test_the_rhythm_is_no_further_from_the_trace_than_half_of_its_phones_from_the_other(trace):
    intervals, windows = trace
    measured = sessions_of(intervals, windows)
    drawn, names = np.random.default_rng(0), list(windows)
    lengths, hours = [], []
    for _ in range(20):
        order = drawn.permutation(names)
        halves = [{d: windows[d] for d in part} for part in np.array_split(order, 2)]
        both = [{d: measured[d] for d in half} for half in halves]
        lengths.append(distance(*both))
        profiles = [describe(s, w)["share_by_hour"] for s, w in zip(both, halves, strict=True)]
        hours.append(np.abs(np.subtract(*profiles)).max())
    ours = watched(windows)
    profile = np.subtract(
        describe(ours, windows)["share_by_hour"], describe(measured, windows)["share_by_hour"]
    )
    assert distance(measured, ours) < np.quantile(lengths, 0.95) < 0.06
    assert np.abs(profile).max() < np.quantile(hours, 0.95) < 0.04


def test_the_shipped_parameters_are_those_of_the_fit(trace, tmp_path):
    fitted = fit(*trace, FLASH.name, FLASH.source)
    write(fitted, tmp_path / "again.yaml")
    assert load(str(tmp_path / "again.yaml")) == FLASH


def predicted_from_half(intervals, windows):
    """How far a rhythm fitted to half of the phones is off the other half, and the shares by hour
    of both.
    """
    order = np.random.default_rng(1).permutation(list(windows))
    known, held_out = ({d: windows[d] for d in half} for half in np.array_split(order, 2))
    theirs = sessions_of(intervals, held_out)
    ours = watched(held_out, rhythm=fit(intervals, known, "half", "half of the phones"))
    profiles = [describe(s, held_out)["share_by_hour"] for s in (theirs, ours)]
    return distance(theirs, ours), profiles


def test_a_rhythm_fitted_to_half_of_the_phones_foretells_the_other_half(trace):
    off, profiles = predicted_from_half(*trace)
    assert off < 0.08
    assert np.abs(np.subtract(*profiles)).max() < 0.04


def test_a_rhythm_fitted_to_half_of_the_phones_that_are_shipped_foretells_the_other_half():
    """100 phones and when they charged (charging.csv says from where); eight splits of them differ
    by 0.04 to 0.11.
    """
    path = Path(__file__).parent / "charging.csv"
    rows: dict = {}
    for row in DictReader(line for line in path.open(encoding="utf-8") if not line.startswith("#")):
        rows.setdefault(row["device"], []).append(
            (float(row["ready_start_s"]), float(row["ready_end_s"]))
        )
    assert len(rows) == 100 and read_trace(path).devices.keys() == rows.keys()
    windows = {device: (mine[0][0], mine[-1][1]) for device, mine in rows.items()}
    intervals = {device: [(a, b) for a, b in mine if b > a] for device, mine in rows.items()}
    off, profiles = predicted_from_half(intervals, windows)
    assert off < 0.1
    assert np.abs(np.subtract(*profiles)).max() < 0.15
    assert np.mean(profiles[0]) == pytest.approx(np.mean(profiles[1]), rel=0.35)


def test_fitting_what_a_rhythm_gave_finds_the_rhythm_again():
    windows = {str(i): (0.0, 6 * DAY_S) for i in range(700)}
    found = fit(watched(windows), windows, "again", "simulated")
    for kind, tolerance in (("short", 0.15), ("long", 0.25)):
        meant, got = FLASH.kinds[kind], found.kinds[kind]
        assert got.per_day == pytest.approx(meant.per_day, rel=tolerance)
        assert got.log_length_sd == pytest.approx(meant.log_length_sd, rel=tolerance)
        weight = np.array(meant.start_weight)
        assert np.average(got.log_length_mean, weights=weight) == pytest.approx(
            np.average(meant.log_length_mean, weights=weight), abs=0.25
        )
        assert np.corrcoef(got.start_weight, weight)[0, 1] > 0.9


def test_too_little_to_fit_is_said():
    with pytest.raises(AvailabilityError, match="3 sessions, too few"):
        fit({"a": [(0, 100), (200, 300), (400, 500)]}, {"a": (0, DAY_S)}, "few", "")


# --- traces

CSV = "device,ready_start_s,ready_end_s\n"


def test_the_worked_trace_of_the_docs(tmp_path):
    """On from 22 to 6 h in the file's first night and from 23 to 7 h in the second: 16 of 48
    hours.
    """
    path = tmp_path / "mine.csv"
    path.write_text(CSV + "a,79200,108000\na,169200,198000\n")
    one = read_trace(path, 3 * DAY_S)
    who = by_trace(one.devices["a"], one.period_s)
    assert [who.next_change(0.0), who.next_change(79200.0)] == [79200.0, 108000.0]
    assert who.next_change(198000.0) == 3 * DAY_S + 79200.0
    assert who.share(0.0, 3 * DAY_S) == pytest.approx(16 / 72)
    assert by_trace(one.devices["a"], one.period_s, DAY_S).next_change(0.0) == 108000.0 - DAY_S


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=20),
    st.integers(0, 2_000),
    st.integers(1, 100),
)
def test_a_trace_is_what_was_recorded_over_and_over(steps, at, shift):
    edges = np.cumsum(steps).tolist()
    intervals = list(pairwise(edges))[::2]
    period = edges[-1] + 1
    who = by_trace(intervals, period, shift)
    assert who.is_on(at) == any(a <= (at + shift) % period < b for a, b in intervals)
    assert who.share(0, period) == pytest.approx(sum(b - a for a, b in intervals) / period)


def test_a_session_over_the_end_of_the_period_is_one_session():
    who = by_trace([(0, 10), (90, 100)], 100)
    assert [who.next_change(t) for t in (0, 10, 90, 105, 110)] == [10, 90, 110, 110, 190]
    always = by_trace([(0, 100)], 100)
    assert always.is_on(1234)
    assert always.next_change(50) == inf


def test_devices_of_a_trace_and_days_are_drawn(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text(CSV + "a,0,3600\nb,90000,93600\nb,93600,97200\nc,5,5\n")
    two = read_trace(path)
    assert two.period_s == 2 * DAY_S
    assert two.devices == {"a": ((0.0, 3600.0),), "b": ((90000.0, 97200.0),), "c": ()}
    drawn = [two.of(np.random.default_rng(i), shifted=False).next_change(0.0) for i in range(60)]
    assert set(drawn) == {3600.0, 90000.0, inf}
    shifted = {two.of(np.random.default_rng(i), shifted=True).next_change(0.0) for i in range(60)}
    assert shifted == {3600.0, DAY_S, 90000.0, 90000.0 - DAY_S, inf}


@pytest.mark.parametrize(
    "text",
    [
        "device,ready_start_ms,ready_end_s\n"
        "b,3600000,7200\na,0,10\nb,7200000,9000\nb,5000000,6000\n",
        "device;ready_start_s;ready_end_s\na;0,0;10\nb;3600;9000\n",
        "device\tready_start\tready_end\na\t2026-03-02T00:00:00Z\t2026-03-02T00:00:10Z\n"
        "b\t2026-03-02T01:00:00Z\t2026-03-02T03:30:00+01:00\n",
        "\ufeffready_end_s,device,ready_start_s\n10,a,0\n9000,b,3600\n",
    ],
    ids=["ms, overlapping, in no order", "decimal commas", "dates", "mark, other order of columns"],
)
def test_a_trace_is_read_in_the_units_that_it_names(text, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    found = read_trace(path)
    assert found.period_s == DAY_S
    assert found.devices == {"a": ((0.0, 10.0),), "b": ((3600.0, 9000.0),)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("device,start\na,1\n", "no column 'ready_start_s' in device, start"),
        ("device,redy_start_s,ready_end_s\na,1,2\n", "did you mean 'redy_start_s'"),
        ("a,1,2\n", "no column 'device' in a first line without names"),
        (CSV, "no rows in it, but one of names"),
        (CSV + "a,1,x\n", "line 2, column 'ready_end_s': expected"),
        (CSV + "a,1,2\na,1,1k\n", "line 3, column 'ready_end_s': expected a number, found '1k'"),
        (CSV + "a,1\n", "line 2: 2 cells where 3 are expected"),
        (CSV + "a,5,1\n", "line 2, column 'ready_end_s': an interval from 5 to 1 s"),
        (CSV + "a,nan,1\n", "line 2, column 'ready_start_s': expected"),
        (CSV + "a,1,2\n ,1,2\n", "line 3, column 'device': a device is missing"),
        ("device,ready_start,ready_end\na,1,2\n", "'ready_start': in which unit"),
        ("device,ready_start,ready_end\na,10:00:00,11:00:00\n", "does not say of which day"),
        (
            "device,ready_start_s,ready_end_s\na,1772445600000,1772445660000\n",
            "no time in s, but one in ms",
        ),
    ],
)
def test_what_is_no_trace_is_refused(text, says, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(FileProblem, match=says):
        read_trace(path)
    with pytest.raises(FileProblem, match="cannot be opened"):
        read_trace(tmp_path / "missing.csv")


def test_a_period_must_hold_the_trace(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(CSV + "a,0,90000\n")
    with pytest.raises(AvailabilityError, match="more than the period of 86400 s"):
        read_trace(path, DAY_S)


def _document(**change: object) -> str:
    """FLASH as a file, with something else in its short sessions."""
    document = yaml.safe_load((PROFILES["charging-wifi-locked"]).read_text(encoding="utf-8"))
    document["kinds"][min(document["kinds"])] |= change
    return yaml.safe_dump(document)


def test_profiles_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(AvailabilityError, match="did you mean 'charging-wifi-locked'"):
        load("charging-wifi-lock")
    path = tmp_path / "mine.yaml"
    for text, says in (
        ("- 1", "a rhythm is a mapping"),
        ("name: x", "a rhythm is a mapping"),
        ("kinds: {a: {per_day: x}}", "not a rhythm"),
        ("kinds: {a: [1]}", "not a rhythm"),
        (_document(start_weight="1" * 24), "a list of numbers is needed"),
        (_document(per_day=[1.0]), "not a rhythm"),
        (_document(more=1.0), "a kind of sessions has per_day, .* and nothing else"),
        ("kinds: {}", "not a rhythm .*missing"),
    ):
        path.write_text(text)
        with pytest.raises(AvailabilityError, match=says):
            load(str(path))
    path.write_text("{{")
    with pytest.raises(FileProblem, match="line 1, column 3: not YAML"):
        load(str(tmp_path / "mine.yaml"))
    with pytest.raises(FileProblem, match="cannot be opened"):
        load(str(tmp_path / "none.yaml"))
    with pytest.raises(FileProblem, match="is a folder"):
        (tmp_path / "folder.yaml").mkdir()
        load(str(tmp_path / "folder.yaml"))
    with pytest.raises(AvailabilityError, match="never_ready from 0 to 1"):
        _changed(FLASH, never_ready=2.0)
    short = FLASH.kinds["short"]
    for change, says in (
        ({"start_weight": (1.0,)}, "1 values, not 24"),
        ({"per_day": -1.0}, "finite"),
    ):
        with pytest.raises(AvailabilityError, match=says):
            _changed(FLASH, kinds={"short": availability.Sessions(**{**vars(short), **change})})


def test_nobody_is_off_for_less_than_the_rhythms_least():
    """Phones of a rhythm that sends them on and off all day, so that most draws would come too
    soon.
    """
    often = {name: replace(kind, per_day=40 * kind.per_day) for name, kind in FLASH.kinds.items()}
    busy, gaps_s = replace(FLASH, kinds=often, never_ready=0.0), []
    for number in range(30):
        on = recorded(phone(number, rhythm=busy), 5 * DAY_S)
        gaps_s += [start - end for (_, end), (start, _) in pairwise(on)]
    assert len(gaps_s) > 1000 and min(gaps_s) >= FLASH.shortest_s - 1e-6
