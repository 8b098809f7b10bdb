import itertools
import runpy
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from sim.results.run import RunError, open_run
from sim.views.timeline import MAX_COUNTER_POINTS, _lanes, write_perfetto

write_run = runpy.run_path(str(Path(__file__).with_name("synthetic_run.py")))["write_run"]


def parse(path):
    """A trace as tracks by uuid and slices and points by track, read with the official schema,
    names looked up.
    """
    packets = Trace.FromString(path.read_bytes()).packet
    interned = packets[0].interned_data
    labels = {entry.iid: entry.name for entry in interned.event_names}
    args = {entry.iid: entry.name for entry in interned.debug_annotation_names}
    texts = {entry.iid: entry.str.decode() for entry in interned.debug_annotation_string_values}
    tracks, slices, points, open_slices = (
        {},
        defaultdict(list),
        defaultdict(list),
        defaultdict(list),
    )
    for packet in packets:
        if packet.HasField("track_descriptor"):
            assert packet.track_descriptor.uuid not in tracks
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor
        event = packet.track_event
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            slice_ = SimpleNamespace(
                name=event.name or labels[event.name_iid],
                start_ns=packet.timestamp,
                depth=len(open_slices[event.track_uuid]),
                leaving=list(event.flow_ids),
                arriving=list(event.terminating_flow_ids),
                args={},
            )
            for note in event.debug_annotations:
                value = note.WhichOneof("value")
                value = getattr(note, value)
                slice_.args[note.name or args[note.name_iid]] = (
                    texts[note.string_value_iid] if note.string_value_iid else value
                )
            open_slices[event.track_uuid].append(slice_)
            slices[event.track_uuid].append(slice_)
        elif event.type == TrackEvent.TYPE_SLICE_END:
            slice_ = open_slices[event.track_uuid].pop()  # raises when an end has no beginning
            slice_.end_ns = packet.timestamp
        elif event.type == TrackEvent.TYPE_COUNTER:
            points[event.track_uuid].append((packet.timestamp, event.double_counter_value))
    assert not any(open_slices.values())
    return SimpleNamespace(tracks=tracks, slices=slices, points=points, packets=packets)


def all_slices(trace):
    return [(trace.tracks[uuid].name, one) for uuid, many in trace.slices.items() for one in many]


def assert_sound(trace, written):
    """What every timeline must hold, whatever was drawn."""
    assert written.tracks == len(trace.tracks)
    assert written.slices == sum(map(len, trace.slices.values()))
    assert sum(not track.parent_uuid for track in trace.tracks.values()) == 1
    assert all(
        track.parent_uuid in trace.tracks for track in trace.tracks.values() if track.parent_uuid
    )
    for many in trace.slices.values():
        for before, after in itertools.pairwise(many):
            assert (
                before.start_ns <= before.end_ns <= after.start_ns
            )  # nothing overlaps or is hidden
    left, arrived = {}, {}
    for track, one in all_slices(trace):
        for flow in one.leaving:
            assert flow not in left and one.name == "upload" and track.startswith("device-")
            left[flow] = one
        for flow in one.arriving:
            assert flow not in arrived and one.name == "train" and track.startswith("server")
            arrived[flow] = one
    assert left.keys() == arrived.keys() and 0 not in left
    assert all(
        left[flow].end_ns <= arrived[flow].start_ns + 1 for flow in left
    )  # to the rounding of a nanosecond
    for many in trace.points.values():
        times = [at for at, _ in many]
        assert len(many) <= MAX_COUNTER_POINTS and times == sorted(set(times))
    return left


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("timeline") / "run"
    run = open_run(write_run(path, n_devices=30, batches=6, seed=3))
    written = write_perfetto(run, path / "timeline.pftrace")
    return run, written, parse(path / "timeline.pftrace")


def test_every_span_is_a_slice_with_its_numbers(small):
    run, written, trace = small
    left = assert_sound(trace, written)
    spans = run.spans().to_pylist()
    assert written.slices == len(spans) + 1 and written.devices == written.of_devices == 30

    def key(actor, name, start_ns, end_ns, nbytes, flop, joules, outcome):
        return (actor, name, start_ns, end_ns, nbytes, flop, joules, outcome)

    expected = sorted(
        key(
            *(
                span["actor"],
                span["kind"] + ("" if span["outcome"] == "ok" else f" ({span['outcome']})"),
            ),
            *(round(span["start_s"] * 1e9), round(span["end_s"] * 1e9)),
            *(span["nbytes"], span["flop"], span["joules"], span["outcome"]),
        )
        for span in spans
    )
    found = sorted(
        key(
            track,
            one.name,
            one.start_ns,
            one.end_ns,
            *(one.args[k] for k in ("nbytes", "flop", "joules", "outcome")),
        )
        for track, one in all_slices(trace)
        if one.name != "run"
    )
    assert found == expected
    used = {number for span in spans if span["kind"] == "train" for number in span["flows"]}
    assert {flow - 1 for flow in left} == used and used


def test_the_first_slice_says_where_the_run_came_from(small):
    _, _, trace = small
    first = next(p for p in trace.packets if p.track_event.type == TrackEvent.TYPE_SLICE_BEGIN)
    facts = {note.name: note.string_value for note in first.track_event.debug_annotations}
    assert facts["seed"] == "3" and facts["git revision"] == "b81feb6"
    assert facts["scenario digest"] == "fedcba98" and facts["run digest"] == "0123abcd"
    assert trace.tracks[first.track_event.track_uuid].name == "synthetic · fed-mobillm · seed 3"


def test_tracks_are_grouped_by_class_below_server_and_links(small):
    run, _, trace = small
    root = next(uuid for uuid, track in trace.tracks.items() if not track.parent_uuid)
    top = sorted(
        (t for t in trace.tracks.values() if t.parent_uuid == root),
        key=lambda t: t.sibling_order_rank,
    )
    names = [track.name for track in top]
    assert names[:4] == ["server", "link:cell-a", "link:cell-b", "whole fleet"]
    for row in run.devices().to_pylist():
        (track,) = (t for t in trace.tracks.values() if t.name == row["device"])
        assert trace.tracks[track.parent_uuid].name.startswith(row["device_class"] + ": ")


def test_counters_agree_with_counting_open_spans(small):
    run, _, trace = small
    devices = run.devices().to_pylist()
    class_of = {row["device"]: row["device_class"] for row in devices}
    spans = [span for span in run.spans().to_pylist() if span["actor"] in class_of]
    checked = 0
    for uuid, track in trace.tracks.items():
        if not track.name.startswith(("devices ", "uplink bytes in flight")):
            continue
        group = trace.tracks[track.parent_uuid].name.split(":")[0]
        kind = {"devices computing": "compute", "devices waiting": "wait"}.get(track.name, "upload")
        for at_ns, value in trace.points[uuid][::7]:
            opened = [
                span["nbytes"] if "bytes" in track.name else 1
                for span in spans
                if span["kind"] == kind and group in ("whole fleet", class_of[span["actor"]])
                if round(span["start_s"] * 1e9) <= at_ns < round(span["end_s"] * 1e9)
            ]
            assert value == sum(opened)
            checked += 1
        assert trace.points[uuid][-1][1] == 0
    assert checked > 100


def test_accuracy_and_cumulative_bytes_are_counters(small):
    run, _, trace = small
    for name, metric in (("accuracy", "accuracy"), ("uplink bytes, cumulative", "uplink_bytes")):
        (uuid,) = (uuid for uuid, track in trace.tracks.items() if track.name == name)
        time_s, value = run.curve(metric)
        assert trace.points[uuid] == [
            (round(t * 1e9), v) for t, v in zip(time_s, value, strict=True)
        ]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "run"
    return open_run(write_run(path, n_devices=10_000, batches=6, server_s=0.001))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("max_slices", "max_tracks"), [(20_000, 120), (1_000_000, 500), (3_000, 30), (900, 500)]
)
def test_a_large_fleet_is_sampled_within_the_budget(large, tmp_path, max_slices, max_tracks):
    written = write_perfetto(
        large, tmp_path / "t.pftrace", max_slices=max_slices, max_tracks=max_tracks
    )
    trace = parse(tmp_path / "t.pftrace")
    assert_sound(trace, written)
    assert written.slices <= max_slices and written.tracks <= max_tracks
    assert 0 < written.devices < written.of_devices == 10_000
    rows = {row["device"]: row for row in large.devices().to_pylist()}
    drawn = {
        track.name.split(" · ")[0]: track
        for track in trace.tracks.values()
        if track.name.startswith("device-")
    }
    assert len(drawn) == written.devices
    classes = {row["device_class"] for row in rows.values()}
    for name in classes:
        mine = [row for row in rows.values() if row["device_class"] == name]
        slowest = max(
            (row for row in mine if row["finished_at_s"]), key=lambda row: row["finished_at_s"]
        )
        assert drawn[slowest["device"]].name.endswith(" · slowest")
        group = trace.tracks[drawn[slowest["device"]].parent_uuid].name
        count = sum(rows[device]["device_class"] == name for device in drawn)
        assert group.startswith(f"{name}: {count} of {len(mine)} devices drawn (sample of slowest")
    if written.devices > 30:
        assert {track.name.split(" · ")[1] for track in drawn.values()} == {
            *("slowest", "failed", "median", "fastest", "random")
        }


@pytest.mark.thorough
def test_the_sample_follows_its_seed_and_nothing_else(large, tmp_path):
    files = [tmp_path / f"{i}.pftrace" for i in range(3)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        write_perfetto(large, file, max_tracks=100, rng_seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_chosen_devices_in_a_window(large, tmp_path):
    written = write_perfetto(
        large, tmp_path / "zoom.pftrace", devices=["device-0017", 4000], from_s=60.0, to_s=90.0
    )
    trace = parse(tmp_path / "zoom.pftrace")
    assert_sound(trace, written)
    assert sorted(t.name for t in trace.tracks.values() if t.name.startswith("device-")) == [
        "device-0017",
        "device-4000",
    ]
    spans = large.spans()
    for name in ("device-0017", "device-4000"):
        mine = spans.filter(pc.equal(spans["actor"], name))
        start_s, end_s = mine["start_s"].to_numpy(), mine["end_s"].to_numpy()
        assert (
            sum(track == name for track, _ in all_slices(trace))
            == np.sum((end_s >= 60.0) & (start_s <= 90.0))
            > 0
        )
    with pytest.raises(
        RunError, match=r"no device 10000 in this run: it has 10000, device-0000 to device-9999"
    ):
        write_perfetto(large, tmp_path / "none.pftrace", devices=[10_000])
    assert not (tmp_path / "none.pftrace").exists()


def test_an_actor_that_does_two_things_at_once_gets_lanes_and_loses_nothing(tmp_path):
    path = write_run(tmp_path / "run", n_devices=3, batches=4, oom_share=0.0)
    spans = pq.read_table(path / "spans.parquet")
    starts = pc.if_else(
        pc.equal(spans["kind"], "upload"), pc.subtract(spans["start_s"], 2.0), spans["start_s"]
    )
    pq.write_table(spans.set_column(2, "start_s", starts), path / "spans.parquet")
    written = write_perfetto(open_run(path), tmp_path / "t.pftrace")
    trace = parse(tmp_path / "t.pftrace")
    for many in trace.slices.values():
        assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(many))
    assert written.slices == spans.num_rows + 1
    lanes = [track for track in trace.tracks.values() if track.name == "device-0000"]
    assert len(lanes) == 2 and len({lane.parent_uuid for lane in lanes}) == 1


def test_a_budget_too_small_for_anything_is_refused(small, tmp_path):
    with pytest.raises(RunError, match="too small"):
        write_perfetto(small[0], tmp_path / "t.pftrace", max_tracks=5)


@pytest.mark.timed
def test_two_hundred_thousand_slices_take_less_than_five_seconds(tmp_path):
    run = open_run(write_run(tmp_path / "run", n_devices=400, batches=130, oom_share=0.0))
    began_s = time.process_time()
    written = write_perfetto(run, tmp_path / "t.pftrace")
    assert time.process_time() - began_s < 5.0
    assert written.slices > 200_000 and written.devices == 400


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(spans, st.integers(1, 6))
def test_lanes_hold_everything_without_overlap_on_the_fewest_lanes(spans, limit):
    spans = sorted((start, start + length) for start, length in spans)
    start, end = (
        np.array([s for s, _ in spans], dtype=np.int64),
        np.array([e for _, e in spans], dtype=np.int64),
    )
    rows = np.arange(len(spans))
    lanes = _lanes(rows, start, end, limit=len(spans) + 1)
    assert sorted(np.concatenate(lanes).tolist()) == rows.tolist()
    for lane in [*lanes, *_lanes(rows, start, end, limit)]:
        assert np.all(start[lane][1:] >= end[lane][:-1])
    assert len(_lanes(rows, start, end, limit)) <= limit
    most_at_once = max((int(np.sum((start <= t) & (t < end))) for t in range(75)), default=0)
    # A span without length needs a lane too where others are open around it.
    inside = max((int(np.sum((start < s) & (s < end))) + 1 for s, e in spans if s == e), default=0)
    assert len(lanes) <= max(most_at_once, inside, 1)
