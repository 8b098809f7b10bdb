"""Who was done when: of one run a line a class of devices, of several a row a label."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.results.run import Run, encode, finish_times
from sim.views.page import (
    COLOURS,
    FAR_APART,
    FULL_WIDTH,
    Page,
    by_label,
    line_style,
    logarithmic_time,
    methods_and_references,
    note_of,
    number,
    time_unit,
    title_of,
)

ROW_IN, LINE_IN = 0.24, 0.12  # inches of a row, and of every further line of its label
ROW = 0.8  # the share of it that is filled


def finish_times_figure(
    runs: Sequence[Run], labels: Sequence[str] | None = None, page: Page = FULL_WIDTH
) -> Figure | None:
    """The share of devices that have finished against virtual time, and against the time since each
    joined, where not all joined at the start: a line a class (one run) or a row a label.

    Devices that never finished count in the share, so their line stops below 1. One run names the
    devices that finish last; several leave out references beside others. Axes are logarithmic where
    ends are more than `FAR_APART` times apart. None where no device finished.
    """
    groups = {} if len(runs) == 1 else methods_and_references(by_label(runs, labels))[0]
    lines = _of_classes(runs[0]) if len(runs) == 1 else _of_groups(groups)
    done = {label: times[np.isfinite(times[:, 0])] for label, times in lines.items()}
    if not sum(map(len, done.values())):
        return None
    all_at_start = all(np.array_equal(times[:, 0], times[:, 1]) for times in done.values())
    panels = ["finish time"] if all_at_start else ["finish time", "from joining to finish"]
    height_in = 2.9 if not page.is_narrow else 2.0
    texts = [
        fill(f"{label} ({len(done[label]):,} of {len(times):,})", 30, break_on_hyphens=False)
        for label, times in lines.items()
    ]
    if groups:
        further = max(text.count("\n") for text in texts)
        height_in = 0.8 + len(groups) * (ROW_IN + LINE_IN * further)
    figure, axes = page.figure(
        height_in, len(panels), title=title_of(runs), note=note_of(runs), sharey=True
    )
    for column, (ax, what) in enumerate(zip(axes, panels, strict=True)):
        finished_s = [times[:, column] for times in done.values()]
        unit, unit_s = _time_axis(ax, what, finished_s)
        each = [
            _steps(ax, mine, len(lines[label]), unit_s)
            for label, mine in zip(done, finished_s, strict=True)
        ]
        if groups:
            _draw_rows(ax, texts, each)
            continue
        for place, (text, steps) in enumerate(zip(texts, each, strict=True)):
            ax.step(*steps, where="post", label=text, linewidth=1.3, **line_style(place))
        ax.set(ylim=(0, 1.04))
        if column == 0 or page.is_narrow:
            ax.set(ylabel="share finished" if page.is_narrow else "share of devices finished")
        if column == 0:
            handles, named = ax.get_legend_handles_labels()
            last = _last_to_finish(ax, runs[0], unit, unit_s)
            handles += [Line2D([], [], linestyle=""), *(handle for handle, _ in last)]
            named += ["last to finish", *(text for _, text in last)]
    if groups:
        axes[0].set_title("height of a row: share finished", loc="left", fontsize=7)
    else:
        title = "device class (finished)"
        page.legend(figure, handles, named, title=title, title_fontsize=7, alignment="left")
    return figure


def _time_axis(ax: Axes, what: str, finished_s: Sequence[np.ndarray]) -> tuple[str, float]:
    """Give an axis its limits, scale and name; returns the unit of its numbers."""
    ends_s = [end_s for times in finished_s if (end_s := times.max(initial=0.0)) > 0]
    last_s = max(ends_s, default=0.0)
    if last_s > FAR_APART * min(ends_s, default=0.0):  # else upright lines at 0
        logarithmic_time(ax, what)
        every_s = np.concatenate(finished_s)
        ax.set(xlim=(every_s[every_s > 0].min() / 1.1, last_s * 1.1))
        return "s", 1.0
    unit, unit_s = time_unit(last_s)
    ax.set(xlabel=f"{what} [{unit}]", xlim=(0, last_s * 1.03 / unit_s))
    return unit, unit_s


def _steps(
    ax: Axes, finished_s: np.ndarray, of: int, unit_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """The share of so many devices that had finished, from one end of the axis to the other."""
    at = np.concatenate([[0.0], np.sort(finished_s) / unit_s, [ax.get_xlim()[1]]])
    share = np.arange(len(finished_s) + 1) / of
    return at, np.append(share, share[-1])


def _draw_rows(
    ax: Axes, texts: Sequence[str], each: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """A row a label, the first on top: where fourteen lines would stand upright side by side."""
    for row, (at, share) in enumerate(each):
        at = np.maximum(at, ax.get_xlim()[0])  # a logarithmic axis has no 0
        bottom = row + (1 + ROW) / 2
        top = bottom - ROW * share
        ax.step(at, top, where="post", color=COLOURS[0], linewidth=1)
        ax.fill_between(at, top, bottom, step="post", color=COLOURS[0], alpha=0.25, linewidth=0)
    ax.set_yticks(np.arange(len(texts)) + 0.5, texts, fontsize=7)
    ax.set(ylim=(len(texts), 0))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _times(run: Run) -> np.ndarray:
    """Finish times of a run's devices, absolute and since joining: float64 [devices, 2]."""
    devices = run.devices()
    finish_s = finish_times(devices)
    return np.stack([finish_s, finish_s - devices["joined_at_s"].to_numpy()], axis=1)


def _of_classes(run: Run) -> dict[str, np.ndarray]:
    codes, classes = encode(run.devices()["device_class"])
    return {name: _times(run)[codes == classes.index(name)] for name in sorted(classes)}


def _of_groups(groups: Mapping[str, Sequence[Run]]) -> dict[str, np.ndarray]:
    return {
        label: np.concatenate([_times(run) for run in group]) for label, group in groups.items()
    }


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
