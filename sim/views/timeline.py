"""A run as a Perfetto trace: open the file at https://ui.perfetto.dev, or query it with Perfetto's
trace processor.

One track for the server and each link, then one group of tracks a device class with counters above
its devices. What is drawn is planned first (`_Plan`), because a viewer copes with about a million
slices and a few hundred tracks: a larger fleet is drawn as a stratified sample, and says so in the
names of its tracks. Counters always cover the whole fleet.

Formats and limits: https://perfetto.dev/docs/reference/synthetic-track-event. Slices that overlap
on a track without nesting are hidden there without a word, so an actor that does two things at once
gets a second lane.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from sim.kernel.vocabulary import KINDS, LINK
from sim.results.run import Run, RunError, encode, finish_times, sampling_order
from sim.views.trace_writer import TraceWriter

MAX_COUNTER_POINTS = 2_000
MAX_LANES = (
    8  # of one actor; what overlaps more than that is left out and counted in the track's name
)
COUNTED = {name: kind.doing for name, kind in KINDS.items() if kind.doing}


@dataclass(frozen=True)
class Written:
    """What a timeline file holds: its slices and tracks, and how many of the fleet's devices have a
    track.
    """

    slices: int
    tracks: int
    devices: int
    of_devices: int


def write_perfetto(
    run: Run,
    path: str | Path,
    *,
    max_slices: int = 1_000_000,
    max_tracks: int = 500,
    devices: Sequence[str | int] | None = None,
    from_s: float | None = None,
    to_s: float | None = None,
    rng_seed: int = 0,
) -> Written:
    """Write a run's spans as a Perfetto trace of at most `max_slices` slices on at most
    `max_tracks` tracks.

    `devices` (names, or the numbers in them) picks who is drawn; otherwise everybody is, or a
    stratified sample seeded by `rng_seed` where that would not fit. `from_s` and `to_s` keep the
    spans that touch that part of virtual time. One virtual second is 10^9 ns of trace time. Raises
    `RunError` for an unknown device or a budget too small for the server.
    """
    window_s = (-np.inf if from_s is None else from_s, np.inf if to_s is None else to_s)
    fleet, spans = run.devices(), _Spans.read(run, window_s)
    plan = _Plan(fleet, spans, max_slices, max_tracks)
    plan.add_server_and_links()
    plan.add_devices(_chosen(fleet, devices), rng_seed)
    arrows = _arrows(spans, plan.drawn_rows())
    with open(path, "wb") as file:
        writer = TraceWriter(file, spans.labels, spans.outcomes)
        root = writer.track(run.title)
        _write_provenance(writer, root, run)
        for drawing in plan.others:
            _write_drawing(writer, root, drawing, spans, arrows)
        _write_fleet_counters(writer, writer.track("whole fleet", root), run, spans, plan, window_s)
        for name, drawings in plan.by_class.items():
            parent = writer.track(plan.class_name(name, rng_seed), root)
            if plan.counters_by_class:
                of_class = plan.class_of_span == plan.classes.index(name)
                _write_activity_counters(writer, parent, spans, of_class, window_s)
            for drawing in drawings:
                _write_drawing(writer, parent, drawing, spans, arrows)
    return Written(
        writer.slices, writer.tracks, sum(map(len, plan.by_class.values())), fleet.num_rows
    )


# --- what there is to draw
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spans:
    """The spans as columns, sorted by actor and start; times in ns. Row numbers below are positions
    in this order.
    """

    actors: list[str]
    first_row: np.ndarray  # (actors + 1,): actor i owns the rows first_row[i]:first_row[i + 1]
    actor: np.ndarray
    kinds: list[str]
    kind: np.ndarray
    labels: list[str]
    label: np.ndarray  # a kind, with the outcome beside it where that is not "ok"
    outcomes: list[str]
    outcome: np.ndarray
    start_ns: np.ndarray
    end_ns: np.ndarray
    nbytes: np.ndarray
    flop: np.ndarray
    joules: np.ndarray
    flow_row: np.ndarray  # one entry a payload number: the row that carries it ...
    flow_number: np.ndarray  # ... and the number

    @classmethod
    def read(cls, run: Run, window_s: tuple[float, float]) -> "_Spans":
        """Column by column: a whole table weighs as much again as what is kept of it."""
        keep, is_all = None, window_s == (-np.inf, np.inf)
        if not is_all:
            times = run.spans(["start_s", "end_s"])
            is_in = times["end_s"].to_numpy() >= window_s[0]
            keep = pa.array(is_in & (times["start_s"].to_numpy() <= window_s[1]))

        def column(name: str) -> pa.ChunkedArray:
            found = run.spans([name], coded=is_all)[name]
            return found if keep is None else found.filter(keep)

        actor, actors = _codes(column("actor"))
        start_ns, end_ns = (
            np.rint(column(name).to_numpy() * 1e9).astype(np.int64) for name in ("start_s", "end_s")
        )
        order = np.lexsort((end_ns, start_ns, actor))
        kind, kinds = _codes(column("kind"))
        outcome, outcomes = _codes(column("outcome"))
        pairs, label = np.unique(kind * max(len(outcomes), 1) + outcome, return_inverse=True)
        label = label.astype(np.int32)
        named = ((kinds[pair // len(outcomes)], outcomes[pair % len(outcomes)]) for pair in pairs)
        flows = column("flows").combine_chunks()
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return cls(
            actors=actors,
            first_row=np.searchsorted(actor[order], np.arange(len(actors) + 1)),
            actor=actor[order],
            kinds=kinds,
            kind=kind[order],
            labels=[what if how == "ok" else f"{what} ({how})" for what, how in named],
            label=label[order],
            outcomes=outcomes,
            outcome=outcome[order],
            start_ns=start_ns[order],
            end_ns=end_ns[order],
            nbytes=column("nbytes").to_numpy()[order],
            flop=column("flop").to_numpy()[order],
            joules=column("joules").to_numpy()[order],
            flow_row=place[flows.value_parent_indices().to_numpy().astype(np.int64)],
            flow_number=flows.flatten().to_numpy(),
        )

    def rows(self, actor: int) -> np.ndarray:
        """Those of one actor."""
        return np.arange(self.first_row[actor], self.first_row[actor + 1])

    def is_kind(self, kind: str) -> np.ndarray:
        return self.kind == (self.kinds.index(kind) if kind in self.kinds else -1)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    codes, names = encode(column)
    return codes.astype(np.int32), names


@dataclass(frozen=True)
class _Drawing:
    """One actor as it will be drawn: rows of the spans, lane by lane."""

    name: str
    lanes: list[np.ndarray]

    @property
    def slices(self) -> int:
        return sum(map(len, self.lanes))


@dataclass
class _Plan:
    """Who is drawn within the budget: first the server, then links, then devices, whole or as a
    sample.
    """

    fleet: pa.Table
    spans: _Spans
    slices_left: int
    tracks_left: int
    others: list[_Drawing] = field(default_factory=list)
    by_class: dict[str, list[_Drawing]] = field(default_factory=dict)
    sampled: bool = False

    def __post_init__(self) -> None:
        self.row_of_device = {
            name: row for row, name in enumerate(self.fleet["device"].to_pylist())
        }
        self.actor_of_name = {name: actor for actor, name in enumerate(self.spans.actors)}
        class_of_device, self.classes = encode(self.fleet["device_class"])
        rows = np.array(
            [self.row_of_device.get(name, -1) for name in self.spans.actors], dtype=np.int64
        )
        class_of_actor = (
            np.where(rows >= 0, class_of_device[rows], -1) if self.fleet.num_rows else rows
        )
        self.class_of_span = class_of_actor[self.spans.actor]  # -1: not a device
        self.class_of_device = class_of_device
        self.slices_left -= 1  # the one that says where the run came from
        self.tracks_left -= (
            2 + len(COUNTED) + 3
        )  # the run, the counters of the whole fleet and their group
        self.counters_by_class = len(COUNTED) * len(self.classes) <= self.tracks_left // 4
        self.tracks_left -= len(COUNTED) * len(self.classes) if self.counters_by_class else 0
        if self.tracks_left < 1 or self.slices_left < 1:
            raise RunError(
                "the budget of the timeline is too small for the server: allow at least 12 tracks, "
                "2 slices"
            )

    def drawn_rows(self) -> np.ndarray:
        """Which spans are drawn: bool of shape (spans,)."""
        drawn = np.zeros(len(self.spans.actor), dtype=bool)
        for drawing in [*self.others, *(one for many in self.by_class.values() for one in many)]:
            for lane in drawing.lanes:
                drawn[lane] = True
        return drawn

    def add_server_and_links(self) -> None:
        """Everything that is not a device: the server gets at most half of the slices, the links a
        quarter of all.
        """
        others = [name for name in self.spans.actors if name not in self.row_of_device]
        others.sort(key=lambda name: (name.startswith(LINK), name))
        links = [
            self.spans.rows(self.actor_of_name[name]) for name in others if name.startswith(LINK)
        ]
        link_share = self.slices_left // 4 // max(len(links), 1)
        link_tracks = max(self.tracks_left // 4, 1)
        for name in others:
            is_link = name.startswith(LINK)
            if is_link and link_tracks < 1:
                break
            rows = self.spans.rows(self.actor_of_name[name])
            stride = -(-len(rows) // max(link_share if is_link else self.slices_left // 2, 1))
            rows = rows[::stride]
            limit = min(MAX_LANES, link_tracks if is_link else self.tracks_left)
            lanes = _lanes(rows, self.spans.start_ns, self.spans.end_ns, limit)
            note = f" (1 span in {stride})" if stride > 1 else ""
            self._charge(_Drawing(name + note + _left_out(rows, lanes), lanes), self.others)
            link_tracks -= len(lanes) if is_link else 0

    def add_devices(self, chosen: list[int] | None, rng_seed: int) -> None:
        """Devices in the order of `chosen` rows, else all of them, else (when they do not fit) a
        stratified sample.
        """
        names = self.fleet["device"].to_pylist()
        everyone = [(row, "") for row in (range(len(names)) if chosen is None else chosen)]
        drawings = self._fitting(everyone, names)
        if drawings is None:
            self.sampled = True
            order = sampling_order(self.fleet, rng_seed) if chosen is None else everyone
            drawings = self._fitting(order, names, partly=True) or []
        finish_s = finish_times(self.fleet)
        for row, drawing in sorted(
            drawings, key=lambda pair: pair[0] if not self.sampled else -finish_s[pair[0]]
        ):
            of_class = self.by_class.setdefault(self.classes[self.class_of_device[row]], [])
            self._charge(drawing, of_class)

    def _fitting(self, order: Iterable[tuple[int, str]], names: list[str], partly: bool = False):
        """The drawings of devices in `order` that fit what is left; None when not all of them do,
        unless `partly`.
        """
        slices = self.slices_left
        tracks = self.tracks_left
        fitting = []
        open_classes = set()
        for row, reason in order:
            actor = self.actor_of_name.get(names[row])
            if actor is None:
                continue  # it did nothing in this part of virtual time
            new_class = self.class_of_device[row] not in open_classes
            room = min(MAX_LANES, tracks - new_class)
            rows = self.spans.rows(actor)
            lanes = (
                _lanes(rows, self.spans.start_ns, self.spans.end_ns, MAX_LANES)
                if len(rows) <= slices
                else []
            )
            if room < 1 or not 0 < len(lanes) <= room:
                if not partly:
                    return None
                if room < 1:
                    break
                continue
            open_classes.add(self.class_of_device[row])
            name = names[row] + (f" · {reason}" if reason else "") + _left_out(rows, lanes)
            fitting.append((row, _Drawing(name, lanes)))
            slices -= fitting[-1][1].slices
            tracks -= len(lanes) + new_class
        return fitting

    def _charge(self, drawing: _Drawing, to: list[_Drawing]) -> None:
        to.append(drawing)
        self.slices_left -= drawing.slices
        self.tracks_left -= len(drawing.lanes)

    def class_name(self, name: str, rng_seed: int) -> str:
        """The name of a class's group of tracks; says so when only a part of the class is drawn."""
        count = int(np.sum(self.class_of_device == self.classes.index(name)))
        drawn = len(self.by_class[name])
        if drawn == count:
            return f"{name}: {count} device{'s' if count > 1 else ''}"
        how = (
            f" (sample of slowest, failed, median, fastest and random ones, seed {rng_seed})"
            if self.sampled
            else ""
        )
        return f"{name}: {drawn} of {count} devices drawn{how}"


def _chosen(fleet: pa.Table, devices: Sequence[str | int] | None) -> list[int] | None:
    if devices is None:
        return None
    names = fleet["device"].to_pylist()
    known = {name: row for row, name in enumerate(names)}
    known |= {name.rpartition("-")[2].lstrip("0") or "0": row for row, name in enumerate(names)}
    rows = [known.get(str(wanted), known.get(str(wanted).lstrip("0") or "0")) for wanted in devices]
    unknown = [str(wanted) for wanted, row in zip(devices, rows, strict=True) if row is None]
    if unknown:
        raise RunError(
            f"no device {', '.join(unknown)} in this run: it has {len(names)}, {names[0]} to "
            f"{names[-1]}"
        )
    return list(dict.fromkeys(row for row in rows if row is not None))


def _lanes(
    rows: np.ndarray, start_ns: np.ndarray, end_ns: np.ndarray, limit: int
) -> list[np.ndarray]:
    """Rows (in start order) spread first-fit over lanes on which nothing overlaps; beyond `limit`
    lanes, left out.
    """
    start, end = start_ns[rows], end_ns[rows]
    if np.all(start[1:] >= end[:-1]):
        return [rows]
    free_at_ns: list[int] = []
    lanes: list[list[int]] = []
    for row, begins, ends in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        lane = next((lane for lane, free in enumerate(free_at_ns) if free <= begins), None)
        if lane is None:
            if len(lanes) == limit:
                continue
            lane = len(lanes)
            lanes.append([])
            free_at_ns.append(0)
        lanes[lane].append(row)
        free_at_ns[lane] = ends
    return [np.array(lane) for lane in lanes]


def _left_out(rows: np.ndarray, lanes: list[np.ndarray]) -> str:
    missing = len(rows) - sum(map(len, lanes))
    return f" ({missing} overlapping spans not drawn)" if missing else ""


def _arrows(spans: _Spans, drawn: np.ndarray) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Arrows from an upload that arrived to the server step that first uses it, both drawn: {row:
    flow ids} of each.
    """
    shown = drawn[spans.flow_row]
    kind_is = {kind: shown & spans.is_kind(kind)[spans.flow_row] for kind in ("upload", "train")}
    arrived = np.array([outcome == "ok" for outcome in spans.outcomes], dtype=bool)[spans.outcome]
    sent = kind_is["upload"] & arrived[spans.flow_row]
    both = np.intersect1d(spans.flow_number[sent], spans.flow_number[kind_is["train"]])
    ends: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    for arrows, at in zip(ends, (sent, kind_is["train"]), strict=True):
        at = at & np.isin(spans.flow_number, both)
        for row, number in zip(
            spans.flow_row[at].tolist(), spans.flow_number[at].tolist(), strict=True
        ):
            arrows.setdefault(row, []).append(number + 1)  # an id of 0 means none
    return ends


# --- writing it
# ------------------------------------------------------------------------------------------


def _write_provenance(writer: TraceWriter, track: int, run: Run) -> None:
    """The trace's first slice: where it came from, over the whole of virtual time."""
    end_ns = round(float(run.summary.get("virtual_time_s") or 0.0) * 1e9)
    facts = {
        "seed": str(run.seed),
        "scenario digest": str(run.manifest.get("scenario_digest")),
        "run digest": str(run.manifest.get("digest")),
        "git revision": str(run.manifest.get("git_revision")),
        "costed as": str(run.summary.get("costed_as") or "itself"),
    }
    writer.note(track, "run", 0, end_ns, facts)


def _write_drawing(
    writer: TraceWriter, parent: int, drawing: _Drawing, spans: _Spans, arrows
) -> None:
    """An actor: lanes of one name under one parent, which the viewer shows as one."""
    leaving, arriving = arrows
    for lane in drawing.lanes:
        track = writer.track(drawing.name, parent)
        columns = (
            spans.label,
            spans.start_ns,
            spans.end_ns,
            spans.nbytes,
            spans.flop,
            spans.joules,
            spans.outcome,
        )
        for row, label, start_ns, end_ns, nbytes, flop, joules, outcome in zip(
            lane.tolist(), *(column[lane].tolist() for column in columns), strict=True
        ):
            flows = leaving.get(row, ()), arriving.get(row, ())
            writer.slice(track, label, start_ns, end_ns, nbytes, flop, joules, outcome, *flows)


def _write_fleet_counters(writer, parent, run, spans, plan, window_s) -> None:
    """Counters over all devices, drawn or not: what they do, the bytes on their way, and what has
    been learned.
    """
    _write_activity_counters(writer, parent, spans, plan.class_of_span >= 0, window_s)
    uploads = spans.is_kind("upload") & (plan.class_of_span >= 0)
    in_flight = _running_sum(spans.start_ns[uploads], spans.end_ns[uploads], spans.nbytes[uploads])
    _write_counter(writer, parent, "uplink bytes in flight", *in_flight, window_s)
    for name, metric in (("uplink bytes, cumulative", "uplink_bytes"), (run.metric, run.metric)):
        time_s, value = run.curve(metric)
        _write_counter(
            writer, parent, name, np.rint(time_s * 1e9).astype(np.int64), value, window_s
        )


def _write_activity_counters(writer, parent, spans, mask, window_s) -> None:
    """How many of the devices in `mask` compute, upload and wait."""
    for kind, doing in COUNTED.items():
        rows = mask & spans.is_kind(kind)
        count = _running_sum(
            spans.start_ns[rows], spans.end_ns[rows], np.ones(int(rows.sum()), dtype=np.int64)
        )
        _write_counter(writer, parent, f"devices {doing}", *count, window_s)


def _write_counter(writer, parent, name, time_ns, value, window_s) -> None:
    time_ns, value = _thinned(time_ns, value, window_s)
    writer.counter(
        writer.track(name, parent, unit="bytes" if "bytes" in name else "count"), time_ns, value
    )


def _running_sum(
    start_ns: np.ndarray, end_ns: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The total weight of the spans that are open: (time_ns, value) after each change, one entry an
    instant.
    """
    time_ns = np.concatenate([start_ns, end_ns])
    order = np.argsort(time_ns, kind="stable")
    time_ns = time_ns[order]
    value = np.concatenate([weight, -weight])[order].cumsum()
    last = np.append(time_ns[1:] != time_ns[:-1], True)[: len(time_ns)]
    return time_ns[last], value[last]


def _thinned(
    time_ns: np.ndarray, value: np.ndarray, window_s: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_COUNTER_POINTS` of the points inside the window, evenly spread, the first and
    the last included.
    """
    inside = (time_ns >= window_s[0] * 1e9) & (time_ns <= window_s[1] * 1e9)
    time_ns, value = time_ns[inside], value[inside]
    if len(time_ns) <= MAX_COUNTER_POINTS:
        return time_ns, value
    keep = np.linspace(0, len(time_ns) - 1, MAX_COUNTER_POINTS).round().astype(np.int64)
    return time_ns[keep], value[keep]
