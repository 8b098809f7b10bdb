"""What iperf3 wrote as JSON (`-J`, or `--json-stream`: one event a line): throughput up, down, or
both.

A sender's intervals show its socket buffer filling and overrate the CV, so a receiver's are taken
where the file has them: of a client with --reverse or --bidir, of --get-server-output, or of a
server's own file; else `conditions` says so. Shapes are those of iperf3 3.12 and 3.21
(`iperf_api.c`); before 3.12, --bidir wrote the key `sum` twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from inputs.files import FileProblem, read_text
from network.measured import ThroughputSeries
from network.series import MOST_BPS

MOST_RTT_US = 1e9

MOST_BYTES = 64 * 2**20
# how iperf3 begins to say that Ctrl-C ended it; what it had measured until then stands
INTERRUPTED = "interrupt -"
AT_SENDER = "sender (its buffer inflates the CV: use --get-server-output)"
_FOR_PEOPLE = re.compile(
    r"^(?:Connecting to host |Server listening on |\[ *ID\] *Interval|iperf3: )", re.MULTILINE
)
_WORD = re.compile(r"\S")

Object = Mapping[str, Any]  # of JSON


def is_iperf3(path: str | Path) -> bool:
    """Whether a file begins as what iperf3 writes, JSON or words."""
    start = read_text(path, most_bytes=MOST_BYTES)[:2000].lstrip()
    return start.startswith("{") or _FOR_PEOPLE.search(start) is not None


def read_iperf3(path: str | Path) -> tuple[ThroughputSeries, ...]:
    """The series of a file: one, or up and down of --bidir. Omitted seconds (-O) and a rest at the
    end are left out.

    A test that Ctrl-C ended is read as far as it came, and `conditions` says so. Raises FileProblem
    for one that failed, for UDP, whose rate is chosen and not found, and for what is no result of
    iperf3.
    """
    document, is_cut = _document(read_text(path, most_bytes=MOST_BYTES), path)
    try:
        start, intervals = document["start"], document.get("intervals", [])
        if (error := document.get("error")) and not (
            str(error).startswith(INTERRUPTED) and intervals
        ):
            raise FileProblem(f"{path}: iperf3 failed: {_one_line(error)}")
        test = start["test_start"]
        if test.get("protocol", "TCP") == "UDP":
            raise _udp(document, path)
        at_server = document.get("server_output_json") or {}
        is_server = "accepted_connection" in start
        is_reverse = bool(test.get("reverse"))
        both = any("sum_bidir_reverse" in interval for interval in intervals)
        found = (
            {"up": "sum", "down": "sum_bidir_reverse"}
            if both
            else {"down" if is_reverse else "up": "sum"}
        )
        how = f"iperf3, {_flows(test)}{', both directions at once' if both else ''}"
        how_ended = "; interrupted" if error else "; cut off within its last line" if is_cut else ""
        date = _one_line(start.get("timestamp", {}).get("time", ""))
        rtt_s = min([*_round_trips_s(document), *_round_trips_s(at_server)], default=None)
        measured = []
        for way, key in found.items():
            sums, is_sender = _side(intervals, key, (way == "up") != is_server)
            if is_sender and at_server:
                others, is_sender = _side(at_server.get("intervals", []), key, way == "down")
                sums, is_sender = (sums, True) if is_sender else (others, False)
            series_bps, step_s = _series(sums, path)
            where = f"intervals of {step_s:.3g} s at the {AT_SENDER if is_sender else 'receiver'}"
            measured.append(
                ThroughputSeries(series_bps, step_s, way, f"{how}, {where}{how_ended}", date, rtt_s)
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise FileProblem(
            f"{path}: not a result of `iperf3 -J` ({type(error).__name__}: {_one_line(error)})"
        ) from None
    return tuple(measured)


def _side(intervals: Sequence[Object], key: str, is_sender: bool) -> tuple[list[Object], bool]:
    """The sums of one direction, without those of omitted seconds; whether the sender counted them
    (old files do not say).
    """
    sums = [interval[key] for interval in intervals if not interval[key].get("omitted")]
    said = sums[0].get("sender") if sums else None
    return sums, is_sender if said is None else bool(said)


def _series(sums: Sequence[Object], path: str | Path) -> tuple[np.ndarray, float]:
    """bit/s of each interval but a rest at the end, and the length of an interval."""
    if not sums:
        raise FileProblem(f"{path}: no intervals; run iperf3 for ten seconds or more")
    seconds = [
        _number(entry["seconds"], i, "seconds", 1e6, path) for i, entry in enumerate(sums, 1)
    ]
    bps = [
        _number(entry["bits_per_second"], i, "bits_per_second", MOST_BPS, path)
        for i, entry in enumerate(sums, 1)
    ]
    step_s = median(seconds)
    if step_s == 0:
        raise FileProblem(f"{path}: its intervals last no time")
    if odd := next(
        (i for i, lasts_s in enumerate(seconds[:-1], 1) if not step_s / 2 < lasts_s < 2 * step_s),
        None,
    ):
        raise FileProblem(
            f"{path}, interval {odd}: lasts {seconds[odd - 1]:.3g} s, where {step_s:.3g} s are "
            "usual: take equal ones"
        )
    if seconds[-1] < 0.9 * step_s:
        bps.pop()
    return np.array(bps), step_s


def _number(value: Any, interval: int, key: str, most: float, path: str | Path) -> float:
    if (number := _told(value, most)) is None:
        raise FileProblem(
            f"{path}, interval {interval}: {key} is {_one_line(repr(value))}, which cannot be"
        )
    return number


def _told(value: Any, most: float) -> float | None:
    """A number that can be what it says it is; None for anything else, NaN and whole numbers beyond
    floats included.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= most else None


def _flows(test: Object) -> str:
    count = test.get("num_streams", 1)
    limit_bps = _told(test.get("target_bitrate"), MOST_BPS)
    held = f" held to {limit_bps / 1e6:.3g} Mbit/s by -b" if limit_bps else ""
    protocol = _one_line(test.get("protocol", "TCP"))
    return f"{count if isinstance(count, int) else '?'} {protocol} flow{'s' * (count != 1)}{held}"


def _round_trips_s(document: Object) -> list[float]:
    """The smallest round trip of each stream that a TCP sender saw, s."""
    senders = [
        stream["sender"]
        for stream in document.get("end", {}).get("streams", [])
        if "sender" in stream
    ]
    rtts_us = [_told(sender.get("min_rtt"), MOST_RTT_US) for sender in senders]
    return [rtt_us / 1e6 for rtt_us in rtts_us if rtt_us]


def _udp(document: Object, path: str | Path) -> FileProblem:
    """What to say of a UDP test: how much was sent and how much of it arrived, where its end
    tells.
    """
    total = document.get("end", {}).get("sum", {})
    sent_bps = _told(total.get("bits_per_second"), MOST_BPS)
    lost_pct = _told(total.get("lost_percent"), 100)
    told = ""
    if sent_bps is not None and lost_pct is not None:
        told = (
            f", here {sent_bps / 1e6:.3g} Mbit/s, of which "
            f"{sent_bps * (1 - lost_pct / 100) / 1e6:.3g} arrived"
        )
    return FileProblem(
        f"{path}: a UDP test, which sends at the rate that -b says{told}: measure with TCP, "
        "without -u"
    )


# ---- the JSON


def _document(text: str, path: str | Path) -> tuple[Object, bool]:
    """One result, put together if it is a stream of events; and whether such a stream stops within
    a line.
    """
    if _FOR_PEOPLE.search(text[:2000]) and not text.lstrip().startswith("{"):
        raise FileProblem(f"{path}: iperf3's words for people: run it again with -J")
    decoder = json.JSONDecoder(object_pairs_hook=_pairs)
    documents: list[Any] = []
    at, is_cut = 0, False
    while (found := _WORD.search(text, at)) and not is_cut:
        at = found.start()
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            is_cut = bool(documents) and _is_event(documents[0]) and "\n" not in text[at:].rstrip()
            if not is_cut:
                raise FileProblem(
                    f"{path}: not JSON ({_one_line(error)}): give what `iperf3 -J` wrote"
                ) from None
        else:
            documents.append(document)
    if documents and _is_event(documents[0]):
        return _of_events([event for event in documents if _is_event(event)], path), is_cut
    if len(documents) > 1:
        raise FileProblem(f"{path}: {len(documents)} results in one file: give one a file")
    if not documents or not isinstance(documents[0], dict):
        raise FileProblem(f"{path}: not a result of `iperf3 -J`")
    return documents[0], False


def _is_event(document: Any) -> bool:
    return isinstance(document, dict) and "event" in document


def _of_events(events: Sequence[Object], path: str | Path) -> Object:
    intervals = [
        event["data"] for event in events if event["event"] == "interval" and "data" in event
    ]
    named = {str(event["event"]): event.get("data") for event in events}
    if "start" not in named:
        raise FileProblem(f"{path}: the first event of an iperf3 stream, start, is missing")
    return {**named, "intervals": intervals, "end": named.get("end") or {}}


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which a second `sum` is what newer versions call `sum_bidir_reverse`."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        made["sum_bidir_reverse" if key == "sum" and "sum" in made else key] = value
    return made


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:120]
