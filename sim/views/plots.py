"""Figures of a run, or of several runs laid over each other: `draw(runs, directory)` writes them
and names the files.

`timeline` is a Gantt chart of the server and the devices, `accuracy` (or whatever the metric is)
the learning against virtual time and bytes sent, `devices` what each class of devices sent and
spent, `finish_times` when the devices of each class were done. Figures are drawn on bare `Figure`
objects (no pyplot, no display) in the style of `mobifleet.mplstyle`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from learning.metrics import LESS_IS_BETTER
from sim.kernel.vocabulary import STATES
from sim.results.run import Run, RunError, encode
from sim.results.span_table import joules_by_state, of_devices
from sim.views.finish_times import finish_times_figure
from sim.views.gantt import timeline_figure
from sim.views.page import (
    COLOURS,
    FAR_APART,
    FULL_WIDTH,
    REFERENCE_DASHES,
    STYLE,
    Page,
    by_label,
    byte_unit,
    joule_unit,
    line_style,
    logarithmic_time,
    methods_and_references,
    note_of,
    number,
    time_unit,
    title_of,
)
from sim.views.saving_figures import save


def draw(
    runs: Run | Sequence[Run],
    out_dir: str | Path,
    formats: Sequence[str] = ("png",),
    *,
    labels: Sequence[str] | None = None,
    page: Page = FULL_WIDTH,
) -> list[Path]:
    """Draw every figure that the runs have numbers for, into `out_dir`; returns the files written.

    One run gives timeline, accuracy (unless nothing was learned), devices and finish_times; several
    runs give accuracy and finish_times, one line for all runs of a label (default: for all that
    differ in their seed alone), with a band from the lowest seed to the highest. The figure of
    accuracy is called by the metric that the runs are judged by; of several metrics each has its
    own. `formats` are endings that matplotlib knows; the same run gives the same bytes. Raises
    `RunError` for no run at all.

        draw(open_run("runs/quickstart"), "figures", ["pdf"], page=Page(3.3, is_titled=False))
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise RunError("nothing to plot: name at least one run directory")
    if len(runs) == 1 and labels:
        runs = [replace(runs[0], label=labels[0])]
    figures: dict[str, Callable[[], Figure | None]] = {
        metric: partial(metric_figure, some, named, page)
        for metric, (some, named) in _by_metric(runs, labels).items()
    }
    figures["finish_times"] = lambda: finish_times_figure(runs, labels, page)
    if len(runs) == 1:
        one = runs[0]
        figures = {
            "timeline": lambda: timeline_figure(one, page),
            **figures,
            "devices": lambda: devices_figure(one, page),
        }
    out_dir = Path(out_dir)
    files = []
    with matplotlib.style.context(["default", STYLE]):
        for name, make in figures.items():
            figure = make()
            if figure is None:
                continue
            for ending in formats:
                files.append(out_dir / f"{name}.{ending}")
                # A date in the file would make two drawings of one run differ.
                metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(ending)
                save(figure, files[-1], metadata)
    return files


# --- what was learned
# ------------------------------------------------------------------------------------------


def _by_metric(
    runs: Sequence[Run], labels: Sequence[str] | None
) -> dict[str, tuple[list[Run], list[str] | None]]:
    """The runs that are judged by each metric, and their labels."""
    chosen = {
        metric: [at for at, run in enumerate(runs) if run.metric == metric]
        for metric in dict.fromkeys(run.metric for run in runs)
    }
    return {
        metric: (
            [runs[at] for at in places],
            None if labels is None else [labels[at] for at in places],
        )
        for metric, places in chosen.items()
    }


def metric_figure(
    runs: Sequence[Run], labels: Sequence[str] | None = None, page: Page = FULL_WIDTH
) -> Figure | None:
    """The metric against virtual time and against uplinked bytes; None where no run measured it.

    One run: a thin line a backbone and a thick one for the fleet (weighted by the fleet's mix).
    Several: a line a label, the mean over its runs, in a band from the lowest to the highest; on
    logarithmic axes where the lines are more than `FAR_APART` times apart. Beside other methods a
    reference is a level line, at what it had come to at its end.
    """
    measured_of = {
        label: some
        for label, group in by_label(runs, labels).items()
        if (some := [run for run in group if len(run.curve(run.metric)[0])])
    }
    groups, references = methods_and_references(measured_of)
    measured = [run for group in groups.values() for run in group]
    if not measured:
        return None
    lasts_s = [run.curve(run.metric)[0].max() for run in measured]
    sent = [run.curve("uplink_bytes")[1].max(initial=0.0) for run in measured]
    t_unit, unit_s = time_unit(max(lasts_s))
    b_unit, unit_bytes = byte_unit(max(sent))
    figure, axes = page.figure(
        2.9 if not page.is_narrow else 1.9,
        2,
        title=title_of(measured),
        note=note_of(measured),
        sharey=True,
    )
    style: dict[str, Any]
    if len(measured) == 1 and not references:
        run = measured[0]
        for place, backbone in enumerate(sorted(set(_groups(run)) - {""})):
            style = {"color": COLOURS[place % len(COLOURS)], "linewidth": 0.9, "alpha": 0.9}
            _learning(axes, [run], backbone, (unit_s, unit_bytes), label=backbone, **style)
        style = {"color": "black", "linewidth": 1.8}
        _learning(axes, [run], "", (unit_s, unit_bytes), label="fleet", **style)
        _mark_target(axes, [run], (unit_s, unit_bytes), t_unit, "black")
    else:
        for place, (label, group) in enumerate(groups.items()):
            style = line_style(place) | {"linewidth": 1.5}
            named = f"{label} ({len(group)} seeds)" if len(group) > 1 else label
            _learning(axes, group, "", (unit_s, unit_bytes), label=named, **style)
            _mark_target(axes, group, (unit_s, unit_bytes), t_unit, str(style["color"]))
    for place, (label, group) in enumerate(references.items()):
        _level(axes, group, f"{label} (reference)", REFERENCE_DASHES[place % len(REFERENCE_DASHES)])
    for at in sorted({run.target["value"] for run in measured if run.target}):
        style = {"color": "#555555", "linewidth": 0.8, "linestyle": (0, (4, 3))}
        for ax in axes:
            ax.axhline(at, zorder=1, **style)
        its = [run.target for run in measured if run.target.get("value") == at]
        missed = all(target.get("reached_at_s") is None for target in its)
        text = f"target {number(at)}" + (", not reached" if missed else "")
        axes[0].plot([], [], label=text, **style)
    axes[0].set(xlabel=f"virtual time [{t_unit}]", ylabel=measured[0].metric)
    axes[1].set(xlabel=f"uplinked by the fleet [{b_unit}]")
    if measured[0].metric in LESS_IS_BETTER:  # a cut model begins at a perplexity of millions
        found = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes[0].lines])
        found = found[np.isfinite(found) & (found > 0)]
        if len(found) and found.max() > FAR_APART * found.min():
            axes[0].set_yscale("log")
    if page.is_narrow:
        axes[1].set(ylabel=measured[0].metric)
    for ax, most in zip(axes, (lasts_s, sent), strict=True):
        if min(most) <= 0 or max(most) <= FAR_APART * min(most):
            ax.set_xlim(left=0)
        elif ax is axes[0]:  # on a linear axis all but the longest run would be one upright line
            logarithmic_time(ax, "virtual time", unit_s)
        else:
            ax.set_xscale("log", nonpositive="mask")
    page.legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _learning(
    axes: Sequence[Axes],
    runs: Sequence[Run],
    group: str,
    units: tuple[float, float],
    **style,
) -> None:
    """One line: the metric of some runs against time and bytes, with the band of several."""
    curves = []
    for run in runs:
        time_s, value = run.curve(run.metric, group)
        sent_s, sent_bytes = run.curve("uplink_bytes")
        before = np.maximum(np.searchsorted(sent_s, time_s, side="right") - 1, 0)
        sent = sent_bytes[before] if len(sent_s) else np.full(len(time_s), np.nan)
        curves.append((time_s / units[0], sent / units[1], value))
    few = max(len(value) for *_, value in curves) <= 30
    marker: dict[str, Any] = {"marker": "o", "markersize": 2.5} if few else {}
    for way, ax in enumerate(axes):
        lines = [(curve[way], curve[2]) for curve in curves if not np.isnan(curve[way]).any()]
        if not lines:
            continue
        if len(lines) == 1:
            ax.plot(*lines[0], **style, **marker)
            continue
        at = np.unique(np.concatenate([x for x, _ in lines]))
        # between its looks a run is taken to have learned evenly, after its last one to stay
        value = np.stack([np.interp(at, *_unique(x, y)) for x, y in lines])
        ax.plot(at, value.mean(axis=0), **style)
        ax.fill_between(
            at, value.min(axis=0), value.max(axis=0), color=style["color"], alpha=0.2, linewidth=0
        )


def _level(axes: Sequence[Axes], runs: Sequence[Run], label: str, dashes: Any) -> None:
    """A level line at the mean of what some runs had come to."""
    ends = [run.curve(run.metric)[1][-1] for run in runs]
    style: dict[str, Any] = {"color": "#333333", "linewidth": 1.1, "linestyle": dashes}
    for ax in axes:
        ax.axhline(float(np.mean(ends)), zorder=1.5, **style)
    axes[0].plot([], [], label=label, **style)


def _unique(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last value at each place of a line that may stand upright."""
    last = np.append(np.diff(x) > 0, True)
    return x[last], y[last]


def _mark_target(
    axes: Sequence[Axes],
    runs: Sequence[Run],
    units: tuple[float, float],
    unit: str,
    colour: str,
) -> None:
    """A diamond where the target was reached: by all of these runs, in the mean."""
    targets = [run.target for run in runs]
    if any(target.get("reached_at_s") is None for target in targets):
        return
    style: dict[str, Any] = {
        "marker": "D",
        "markersize": 5,
        "color": colour,
        "markeredgecolor": "white",
    }
    style |= {"zorder": 5, "ls": ""}
    at = targets[0]["value"]
    reached = np.mean([target["reached_at_s"] for target in targets]) / units[0]
    axes[0].plot(reached, at, label=f"{number(at)} after {number(reached)} {unit}", **style)
    sent = [target["uplink_bytes"] for target in targets if target.get("uplink_bytes") is not None]
    if len(sent) == len(targets):
        axes[1].plot(np.mean(sent) / units[1], at, **style)


def _groups(run: Run) -> list[str]:
    table = run.metrics()
    names = table["name"].to_pylist()
    return [
        group
        for group, name in zip(table["group"].to_pylist(), names, strict=True)
        if name == run.metric
    ]


# --- what it cost
# ------------------------------------------------------------------------------------------


def devices_figure(run: Run, page: Page = FULL_WIDTH) -> Figure:
    """Mean bytes (up and down) and mean joules (compute, radio, idle) of a device, by class."""
    devices = run.devices()
    class_of_row, classes = encode(devices["device_class"])
    order = sorted(range(len(classes)), key=classes.__getitem__)
    count = np.bincount(class_of_row, minlength=len(classes))
    mean = {
        name: np.bincount(class_of_row, devices[name].to_numpy().astype(float), len(classes))
        / count
        for name in ("uplink_bytes", "downlink_bytes")
    }
    energy = _energy_by_use(run, devices["device"].to_pylist(), class_of_row, len(classes)) / count

    height_in = 1.2 + 0.26 * len(classes)
    figure, axes = page.figure(
        height_in, 2, title=title_of([run]), note=note_of([run]), sharey=True
    )
    b_unit, unit_bytes = byte_unit((mean["uplink_bytes"] + mean["downlink_bytes"]).max(initial=0.0))
    j_unit, unit_j = joule_unit(energy.sum(axis=0).max(initial=0.0))
    parts = [
        ("uplink", mean["uplink_bytes"], "#D55E00"),
        ("downlink", mean["downlink_bytes"], "#56B4E9"),
    ]
    _stack(axes[0], [(name, values[order] / unit_bytes, colour) for name, values, colour in parts])
    uses = (("compute", "#0072B2"), ("radio", "#E69F00"), ("idle", "#BFBFBF"))
    _stack(
        axes[1], [(use, energy[i][order] / unit_j, colour) for i, (use, colour) in enumerate(uses)]
    )
    axes[0].set_yticks(range(len(order)), [f"{classes[i]} ({count[i]:,})" for i in order])
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    axes[0].set_xlabel(f"bytes of a device, mean [{b_unit}]")
    axes[1].set_xlabel(f"energy of a device, mean [{j_unit}]")
    return figure


def _stack(ax, parts: list[tuple[str, np.ndarray, str]]) -> None:
    left = np.zeros(len(parts[0][1]))
    for name, values, colour in parts:
        ax.barh(np.arange(len(values)), values, left=left, height=0.6, color=colour, label=name)
        left = left + values
    ax.set_xlim(0, max(left.max(initial=0.0) * 1.05, 1e-9))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts))


def _energy_by_use(
    run: Run, names: list[str], class_of_row: np.ndarray, classes: int
) -> np.ndarray:
    """Joules in the spans of devices: shape (3, classes), for compute, radio and idle."""
    table = of_devices(run.spans(["actor", "kind", "joules"]))
    actor, actors = encode(table["actor"])
    row_of = {name: row for row, name in enumerate(names)}
    class_of_actor = np.array([class_of_row[row_of[name]] for name in actors], dtype=np.int64)
    by_state = dict(
        zip(STATES, joules_by_state(table, class_of_actor[actor], classes), strict=True)
    )
    return np.stack(
        [by_state["compute"], by_state["uplink"] + by_state["downlink"], by_state["idle"]]
    )
