"""Figures of a run, or of several runs laid over each other: `draw(runs, directory)` writes them
and names the files.

`timeline` is a Gantt chart of the server and the devices, `accuracy` the learning against virtual
time and bytes sent, `devices` what each class of devices sent and spent, `finish_times` when the
devices of each class were done. Figures are drawn on bare `Figure` objects (no pyplot, no display)
in the style of `mobifleet.mplstyle`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.kernel.vocabulary import STATES
from sim.results.run import Run, RunError, encode, finish_times
from sim.results.span_table import joules_by_state, of_devices
from sim.views.gantt import timeline_figure
from sim.views.page import (
    COLOURS,
    FAR_APART,
    FULL_WIDTH,
    STYLE,
    Page,
    by_label,
    byte_unit,
    joule_unit,
    line_style,
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
    differ in their seed alone), with a band from the lowest seed to the highest. `formats` are
    endings that matplotlib knows; the same run gives the same bytes. Raises `RunError` for no run
    at all.

        draw(open_run("runs/quickstart"), "figures", ["pdf"], page=Page(3.3, is_titled=False))
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise RunError("nothing to plot: name at least one run directory")
    figures: dict[str, Callable[[], Figure | None]] = {
        "accuracy": lambda: accuracy_figure(runs, labels, page),
        "finish_times": lambda: finish_times_figure(runs, labels, page),
    }
    if len(runs) == 1:
        one = runs[0]
        figures = {
            "timeline": lambda: timeline_figure(one, page),
            **figures,
            "devices": lambda: devices_figure(one, page),
        }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
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


def accuracy_figure(
    runs: Sequence[Run], labels: Sequence[str] | None = None, page: Page = FULL_WIDTH
) -> Figure | None:
    """The metric against virtual time and against uplinked bytes; None where no run measured it.

    One run: a thin line a backbone and a thick one for the fleet (weighted by the fleet's mix).
    Several: a line a label, the mean over its runs, in a band from the lowest to the highest; on
    logarithmic axes where the lines are more than `FAR_APART` times apart.
    """
    groups = {
        label: some
        for label, group in by_label(runs, labels).items()
        if (some := [run for run in group if len(run.curve(run.metric)[0])])
    }
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
    if len(measured) == 1:
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
    if page.is_narrow:
        axes[1].set(ylabel=measured[0].metric)
    for ax, most in zip(axes, (lasts_s, sent), strict=True):
        if min(most) > 0 and max(most) > FAR_APART * min(most):
            ax.set_xscale(
                "log", nonpositive="mask"
            )  # on a linear axis all but the longest run would be one upright line
        else:
            ax.set_xlim(left=0)
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


# --- who was done when
# ------------------------------------------------------------------------------------------


def finish_times_figure(
    runs: Sequence[Run], labels: Sequence[str] | None = None, page: Page = FULL_WIDTH
) -> Figure | None:
    """The share of devices that have finished against virtual time, and against the time since each
    joined, where not all joined at the start: a line a class (one run) or a line a label.

    Devices that never finished count in the share, so their line stops below 1. One run names the
    devices that finish last. Axes are logarithmic where lines end more than `FAR_APART` times
    apart.
    """
    lines = _finishing(runs, labels)
    done = {label: times[np.isfinite(times[:, 0])] for label, times in lines.items()}
    if not sum(map(len, done.values())):
        return None
    all_at_start = all(np.array_equal(times[:, 0], times[:, 1]) for times in done.values())
    panels = ["finish time"] if all_at_start else ["finish time", "from joining to finish"]
    height_in = 2.9 if not page.is_narrow else 2.0
    figure, axes = page.figure(
        height_in, len(panels), title=title_of(runs), note=note_of(runs), sharey=True
    )
    for column, (ax, what) in enumerate(zip(axes, panels, strict=True)):
        of_each = {label: times[:, column] for label, times in done.items()}
        ends_s = [end_s for times in of_each.values() if (end_s := times.max(initial=0.0)) > 0]
        last_s = max(ends_s, default=0.0)
        spread = last_s > FAR_APART * min(ends_s, default=0.0)  # else upright lines at 0
        unit, unit_s = ("s", 1.0) if spread else time_unit(last_s)
        for place, (label, finished_s) in enumerate(of_each.items()):
            share = np.arange(len(finished_s) + 1) / len(lines[label])
            at = np.concatenate([[0.0], np.sort(finished_s), [last_s * 1.03]]) / unit_s
            text = f"{label} ({len(finished_s):,} of {len(lines[label]):,})"
            style = line_style(place) | {"linewidth": 1.3}
            ax.step(at, np.append(share, share[-1]), where="post", label=text, **style)
        ax.set(xlabel=f"{what} [{unit}]", ylim=(0, 1.04), xlim=(0, last_s * 1.03 / unit_s))
        if spread:
            every_s = np.concatenate(list(of_each.values()))
            ax.set(xscale="log", xlim=(every_s[every_s > 0].min() / 1.1, last_s * 1.1))
        if column == 0 or page.is_narrow:
            ax.set(ylabel="share finished" if page.is_narrow else "share of devices finished")
        if column == 0:
            first_unit, first_unit_s = unit, unit_s
    handles, texts = axes[0].get_legend_handles_labels()
    if len(runs) == 1:
        last = _last_to_finish(axes[0], runs[0], first_unit, first_unit_s)
        handles += [Line2D([], [], linestyle=""), *(handle for handle, _ in last)]
        texts += ["last to finish", *(text for _, text in last)]
    title = "device class (finished)" if len(runs) == 1 else "run (finished)"
    page.legend(figure, handles, texts, title=title, title_fontsize=7, alignment="left")
    return figure


def _finishing(runs: Sequence[Run], labels: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Lines and their devices' finish times, absolute and since joining: float64 [devices, 2]."""

    def times(run: Run) -> np.ndarray:
        devices = run.devices()
        finish_s = finish_times(devices)
        return np.stack([finish_s, finish_s - devices["joined_at_s"].to_numpy()], axis=1)

    if len(runs) == 1:
        codes, classes = encode(runs[0].devices()["device_class"])
        return {name: times(runs[0])[codes == classes.index(name)] for name in sorted(classes)}
    groups: Mapping[str, list[Run]] = by_label(runs, labels)
    return {label: np.concatenate([times(run) for run in group]) for label, group in groups.items()}


def _last_to_finish(ax: Axes, run: Run, unit: str, unit_s: float) -> list[tuple[Line2D, str]]:
    """Marks at the three devices that finish last, and what the legend says of each."""
    devices = run.devices()
    codes, classes = encode(devices["device_class"])
    finish_s = finish_times(devices)
    last = [row for row in np.argsort(-finish_s, kind="stable") if np.isfinite(finish_s[row])]
    said = []
    for row in last[:3]:
        of_class, at_s = codes[row], finish_s[row]
        same = finish_s[codes == of_class]
        colour = COLOURS[sorted(classes).index(classes[of_class]) % len(COLOURS)]
        [handle] = ax.plot(
            at_s / unit_s,
            np.sum(same <= at_s) / len(same),
            marker="o",
            markersize=4,
            color=colour,
            markerfacecolor="white",
            linestyle="",
            clip_on=False,
            zorder=5,
        )
        where = f"{classes[of_class]}, {devices['link'][int(row)].as_py()}"
        name = devices["device"][int(row)].as_py()
        said.append((handle, f"{name}: {number(at_s / unit_s)} {unit}\n{where}"))
    return said
