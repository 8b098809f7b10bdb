"""Who did what when: a Gantt chart of the server and the devices."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sim.kernel.vocabulary import FINE, colours_of
from sim.results.run import Run, encode, finish_times, sampling_order
from sim.views.page import FULL_WIDTH, Page, note_of, time_unit, title_of

MAX_ROWS = 60  # of devices: more cannot be read
BINS = 600  # of virtual time; fewer than the chart's pixels, so that none is lost
THINNEST = 0.15  # share of a row that is given to whatever happened in a bin, however short
ROW = 0.8  # height of a row's colours; rows are 1 apart


def timeline_figure(run: Run, page: Page = FULL_WIDTH) -> Figure | None:
    """A Gantt chart: the server on top, below it devices by class and finish time, at most
    `MAX_ROWS` of them.

    Time is cut into `BINS`; the height of a colour is the share of the bin that its kind of span
    takes, so that what alternates faster than can be drawn keeps the colours of the legend. None
    where nothing of it took time.
    """
    devices = run.devices()
    names = devices["device"].to_pylist()
    classes = devices["device_class"].to_pylist()
    finish_s = finish_times(devices)
    shown = [row for row, _ in islice(sampling_order(devices), MAX_ROWS)]
    shown.sort(key=lambda row: (classes[row], finish_s[row], row))
    rows = ["server", *(names[row] for row in shown)]
    place_of = {
        name: -place - (0.6 if place else 0.0) for place, name in enumerate(rows)
    }  # a gap below the server

    table = run.spans(["actor", "kind", "start_s", "end_s", "outcome"])
    actor, actors = encode(table["actor"])
    kind, kinds = encode(table["kind"])
    number_of = {name: number for number, name in enumerate(rows)}
    row = np.array([number_of.get(name, -1) for name in actors], dtype=np.int64)[actor]
    start_s, end_s = table["start_s"].to_numpy(), table["end_s"].to_numpy()
    last_s = end_s[row >= 0].max(initial=0.0)
    if not last_s:
        return None
    unit, unit_s = time_unit(last_s)

    title = title_of([run])
    if len(shown) < len(names):
        title += (
            f"\n{len(shown)} of {len(names):,} devices: slowest, failed, median, fastest and "
            "random ones of each class"
        )
    height_in = 1.15 + 0.125 * len(rows)
    figure, (ax,) = page.figure(height_in, 1, title=title, note=note_of([run]))
    colours = colours_of(set(kinds))
    scale = BINS / last_s
    share = np.zeros((len(colours), len(rows), BINS))
    for number, name in enumerate(colours):
        mine = (row >= 0) & (kind == kinds.index(name))
        share[number] = coverage(
            row[mine], start_s[mine] * scale, end_s[mine] * scale, len(rows), BINS
        )
    bottom, top = stacked(share)
    at = np.append(np.linspace(0, last_s / unit_s, BINS + 1), last_s / unit_s)
    handles: list = []
    for number, (name, colour) in enumerate(colours.items()):
        if not share[number].any():
            continue
        handles.append(Patch(color=colour, label=name))
        # all rows in one drawing; a last point that is never filled keeps them apart
        low, high = (
            np.pad(edge[number], ((0, 0), (0, 2)), mode="edge") * ROW
            + np.array([[place_of[name] - ROW / 2] for name in rows])
            for edge in (bottom, top)
        )
        filled = np.pad(share[number] > 0, ((0, 0), (0, 2)))
        ax.fill_between(
            np.tile(at, len(rows)),
            low.ravel(),
            high.ravel(),
            where=list(_closed(filled).ravel()),
            step="post",
            color=colour,
            linewidth=0,
            antialiased=False,
        )
    outcome, outcomes = encode(table["outcome"])
    bad = np.array([name not in FINE for name in outcomes], dtype=bool)[outcome] & (row >= 0)
    if bad.any():
        what = ", ".join(sorted({outcomes[code] for code in outcome[bad]}))
        handles += ax.plot(
            end_s[bad] / unit_s,
            np.array([place_of[name] for name in rows])[row[bad]],
            label=what,
            color="black",
            marker="x",
            markersize=3.5,
            markeredgewidth=0.8,
            linestyle="",
        )
    ax.set_xlim(0, last_s / unit_s * 1.005)
    ax.set_ylim(min(place_of.values()) - 0.7, 0.7)
    ax.set_yticks(list(place_of.values()), rows)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"virtual time [{unit}]")
    for name in sorted({classes[row] for row in shown}):
        places = [place_of[names[row]] for row in shown if classes[row] == name]
        total = classes.count(name)
        part = 1 < len(places) < total
        label = f"{name}\n{len(places)} of {total:,}" if part else name
        beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "fontsize": 7}
        ax.text(1.01, float(np.mean(places)), label, va="center", **beside)
        ax.axhline(max(places) + 0.5, color="#999999", linewidth=0.5)
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=min(max(len(handles), 1), 3 if page.is_narrow else 7),
        borderpad=0,
    )
    return figure


def coverage(
    row: np.ndarray, start: np.ndarray, end: np.ndarray, rows: int, bins: int
) -> np.ndarray:
    """How much of each bin of each row is covered by spans: float64 of shape (rows, bins).

    `row` (int), `start` and `end` have shape (spans,), times in widths of a bin between 0 and
    `bins`. What overlaps adds up; the sum over bins is the sum of the spans' lengths.
    """
    first = np.clip(np.floor(start), 0, bins - 1).astype(np.int64)
    last = np.clip(np.floor(end), 0, bins - 1).astype(np.int64)
    cells, size = row * (bins + 1), rows * (bins + 1)
    over = last > first
    covered = np.bincount(cells + first, np.minimum(end, first + 1) - start, size)
    covered += np.bincount((cells + last)[over], (end - last)[over], size)
    inside = np.bincount((cells + first + 1)[over], minlength=size) - np.bincount(
        (cells + last)[over], minlength=size
    )
    return (covered + inside.cumsum()).reshape(rows, bins + 1)[:, :bins]


def stacked(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of each kind's part of a row's height, both [kinds, rows, bins].

    `share` [kinds, rows, bins] is how much of each bin a kind covers. What is there has at least
    `THINNEST` of the height; what together is more than the row fills it, in proportion.
    """
    height = np.where(share > 1e-12, np.maximum(share, THINNEST), 0.0)
    height /= np.maximum(height.sum(axis=0), 1.0)
    top = height.cumsum(axis=0)
    return top - height, top


def _closed(filled: np.ndarray) -> np.ndarray:
    """The same [rows, points] with the point that ends each run of filled bins, as steps need."""
    return filled | np.pad(filled[:, :-1], ((0, 0), (1, 0)))
