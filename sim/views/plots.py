"""Figures of a run, or of several runs laid over each other: `draw(runs, directory)` writes them
and names the files.

`timeline` is a Gantt chart of the server and the devices, `accuracy` the learning against virtual
time and bytes sent, `devices` what each class of devices sent and spent, `finish_times` when the
devices of each class were done. Figures are drawn on bare `Figure` objects (no pyplot, no display)
in the style of `mobifleet.mplstyle`.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.kernel.vocabulary import FINE, STATES, colours_of
from sim.results.run import Run, RunError, encode, finish_times, sampling_order
from sim.results.span_table import joules_by_state, of_devices
from sim.views.saving_figures import save

STYLE = Path(__file__).with_name("mobifleet.mplstyle")
WIDTH_IN = 7.0  # two columns of a paper
MAX_ROWS = 60  # of devices in the Gantt chart: more cannot be read
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D1F",
    "#000000",
)  # Okabe-Ito
BINS = 600  # of virtual time in the Gantt chart; fewer than its pixels, so that none is lost
FAINTEST = 0.3  # opacity of a bin in which little happened
FAR_APART = 20  # how many times, before runs need a logarithmic axis


def draw(
    runs: Run | Sequence[Run], out_dir: str | Path, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draw every figure that the runs have numbers for, into `out_dir`; returns the files written.

    One run gives timeline, accuracy (unless nothing was learned), devices and finish_times; several
    runs give accuracy and finish_times, one line a run. `formats` are endings that matplotlib
    knows; the same run gives the same bytes. Raises `RunError` for no run at all.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise RunError("nothing to plot: name at least one run directory")
    figures: dict[str, Callable[[], Figure | None]] = {
        "accuracy": lambda: accuracy_figure(runs),
        "finish_times": lambda: finish_times_figure(runs),
    }
    if len(runs) == 1:
        one = runs[0]
        figures = {
            "timeline": lambda: timeline_figure(one),
            **figures,
            "devices": lambda: devices_figure(one),
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


# --- when everybody did what
# ------------------------------------------------------------------------------------------


def timeline_figure(run: Run) -> Figure:
    """A Gantt chart: the server on top, below it devices by class and finish time, at most
    `MAX_ROWS` of them.
    """
    devices = run.devices()
    names = devices["device"].to_pylist()
    classes = devices["device_class"].to_pylist()
    finish_s = finish_times(devices)
    shown = [row for row, _ in islice(sampling_order(devices), MAX_ROWS)]
    shown.sort(key=lambda row: (classes[row], finish_s[row], names[row]))
    rows = ["server", *(names[row] for row in shown)]
    place_of = {
        name: -place - (0.6 if place else 0.0) for place, name in enumerate(rows)
    }  # a gap below the server

    table = run.spans(["actor", "kind", "start_s", "end_s", "outcome"])
    actor, actors = encode(table["actor"])
    kind, kinds = encode(table["kind"])
    y = (
        np.array([place_of.get(name, np.nan) for name in actors])[actor]
        if len(actors)
        else np.zeros(0)
    )
    start_s, end_s = table["start_s"].to_numpy(), table["end_s"].to_numpy()
    last_s = max(end_s[~np.isnan(y)].max(initial=0.0), 1e-9)
    unit, unit_s = _time_unit(last_s)

    title = _title([run])
    if len(shown) < len(names):
        title += (
            f"\n{len(shown)} of {len(names):,} devices: slowest, failed, median, fastest and "
            "random ones of each class"
        )
    figure, (ax,) = _figure(1.15 + 0.125 * len(rows), 1, run_title=title, note=_note([run]))
    colours = colours_of(set(kinds))
    order = list(colours)
    drawn = np.flatnonzero(~np.isnan(y))
    number_of = {name: number for number, name in enumerate(rows)}
    row_of_span = np.array([number_of.get(name, -1) for name in actors], dtype=np.int64)[actor]
    scale = BINS / last_s
    share = np.zeros((len(order), len(rows), BINS))
    for number, name in enumerate(order):
        mine = drawn[kind[drawn] == kinds.index(name)]
        share[number] = coverage(
            row_of_span[mine], start_s[mine] * scale, end_s[mine] * scale, len(rows), BINS
        )
    for row, strip in zip(rows, _blend(share, list(colours.values())), strict=True):
        extent = (0, last_s / unit_s, place_of[row] - 0.4, place_of[row] + 0.4)
        ax.imshow(strip[None], extent=extent, aspect="auto", interpolation="nearest", zorder=1)
    handles: list = [
        Patch(color=colours[name], label=name)
        for name, of_rows in zip(order, share, strict=True)
        if of_rows.any()
    ]
    outcome, outcomes = encode(table["outcome"])
    bad = np.array([name not in FINE for name in outcomes], dtype=bool)[outcome] & ~np.isnan(y)
    if bad.any():
        what = ", ".join(sorted({outcomes[code] for code in outcome[bad]}))
        style = {
            "color": "black",
            "marker": "x",
            "markersize": 3.5,
            "markeredgewidth": 0.8,
            "linestyle": "",
        }
        handles += ax.plot(end_s[bad] / unit_s, y[bad], label=what, **style)
    ax.set_xlim(0, last_s / unit_s * 1.005)
    ax.set_ylim(min(place_of.values()) - 0.7, 0.7)
    ax.set_yticks(list(place_of.values()), rows)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"virtual time [{unit}]")
    for name in sorted({classes[row] for row in shown}):
        mine = [place_of[names[row]] for row in shown if classes[row] == name]
        total = classes.count(name)
        label = f"{name}\n{len(mine)} of {total:,}" if len(mine) < total and len(mine) > 1 else name
        ax.text(
            1.01, np.mean(mine), label, transform=ax.get_yaxis_transform(), fontsize=7, va="center"
        )
        ax.axhline(max(mine) + 0.5, color="#999999", linewidth=0.5)
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=max(len(handles), 1),
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


def _blend(share: np.ndarray, colours: list[str]) -> np.ndarray:
    """Shares of the kinds (kinds, rows, bins) as RGBA (rows, bins, 4): hue by what was done,
    opacity by how much.
    """
    total = share.sum(axis=0)
    rgb = np.einsum(
        "krb,kc->rbc", share, np.array([to_rgb(colour) for colour in colours]).reshape(-1, 3)
    )
    rgb = np.divide(rgb, total[..., None], out=np.zeros_like(rgb), where=total[..., None] > 0)
    # Whatever happened leaves a mark, however short it was.
    alpha = np.where(total > 0, np.clip(total, FAINTEST, 1.0), 0.0)
    return np.clip(np.concatenate([rgb, alpha[..., None]], axis=-1), 0.0, 1.0)


# --- what was learned
# ------------------------------------------------------------------------------------------


def accuracy_figure(runs: Sequence[Run]) -> Figure | None:
    """The metric against virtual time and against uplinked bytes; None where no run measured it.

    One run: a thin line a backbone and a thick one for the fleet (weighted by the fleet's mix).
    Several: a line a run, on logarithmic axes where the runs are more than `FAR_APART` times apart.
    """
    runs = [run for run in runs if len(run.curve(run.metric)[0])]
    if not runs:
        return None
    last_s = max(run.curve(run.metric)[0].max() for run in runs)
    time_unit, unit_s = _time_unit(last_s)
    byte_unit, unit_bytes = _byte_unit(
        max(run.curve("uplink_bytes")[1].max(initial=0.0) for run in runs)
    )
    figure, axes = _figure(2.9, 2, run_title=_title(runs), note=_note(runs), sharey=True)

    def line(run: Run, group: str, **style) -> None:
        time_s, value = run.curve(run.metric, group)
        sent_s, sent_bytes = run.curve("uplink_bytes")
        marker = {"marker": "o", "markersize": 2.5} if len(time_s) <= 30 else {}
        axes[0].plot(time_s / unit_s, value, **style, **marker)
        if len(sent_s):
            before = np.maximum(np.searchsorted(sent_s, time_s, side="right") - 1, 0)
            axes[1].plot(sent_bytes[before] / unit_bytes, value, **style, **marker)

    labels = _distinct_titles(runs)
    for number, run in enumerate(runs):
        groups = sorted(set(_groups(run)) - {""}) if len(runs) == 1 else []
        for place, group in enumerate(groups):
            line(
                run,
                group,
                color=COLOURS[place % len(COLOURS)],
                linewidth=0.9,
                label=group,
                alpha=0.9,
            )
        colour = "black" if len(runs) == 1 else COLOURS[number % len(COLOURS)]
        dashes = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        label = "fleet" if len(runs) == 1 else labels[number]
        line(run, "", color=colour, linestyle=dashes, linewidth=1.8, label=label)
        target = run.target
        if target.get("reached_at_s") is None:
            continue
        at, reached_s = target["value"], target["reached_at_s"]
        style = {
            "marker": "D",
            "markersize": 5,
            "color": colour,
            "markeredgecolor": "white",
            "zorder": 5,
            "ls": "",
        }
        axes[0].plot(
            reached_s / unit_s,
            at,
            **style,
            label=f"{_number(at)} after {_number(reached_s / unit_s)} {time_unit}",
        )
        if target.get("uplink_bytes") is not None:
            axes[1].plot(target["uplink_bytes"] / unit_bytes, at, **style)
    for at in sorted({run.target["value"] for run in runs if run.target}):
        for ax in axes:
            ax.axhline(at, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        missed = all(
            run.target.get("reached_at_s") is None for run in runs if run.target.get("value") == at
        )
        axes[0].plot(
            [],
            [],
            color="#555555",
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            label=_target_label(at, missed),
        )
    metric = runs[0].metric
    axes[0].set(xlabel=f"virtual time [{time_unit}]", ylabel=metric)
    axes[1].set(xlabel=f"uplinked by the fleet [{byte_unit}]")
    lasts_s = [run.curve(run.metric)[0].max() for run in runs]
    sent = [run.curve("uplink_bytes")[1].max(initial=0.0) for run in runs]
    for ax, most in zip(axes, (lasts_s, sent), strict=True):
        if min(most) > 0 and max(most) > FAR_APART * min(most):
            ax.set_xscale(
                "log", nonpositive="mask"
            )  # on a linear axis all but the longest run would be one upright line
        else:
            ax.set_xlim(left=0)
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center")
    return figure


def _target_label(value: float, missed: bool) -> str:
    return f"target {_number(value)}" + (", not reached" if missed else "")


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


def devices_figure(run: Run) -> Figure:
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

    figure, axes = _figure(
        1.2 + 0.26 * len(classes), 2, run_title=_title([run]), note=_note([run]), sharey=True
    )
    byte_unit, unit_bytes = _byte_unit(
        (mean["uplink_bytes"] + mean["downlink_bytes"]).max(initial=0.0)
    )
    joule_unit, unit_j = _joule_unit(energy.sum(axis=0).max(initial=0.0))
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
    axes[0].set_xlabel(f"bytes of a device, mean [{byte_unit}]")
    axes[1].set_xlabel(f"energy of a device, mean [{joule_unit}]")
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


def finish_times_figure(runs: Sequence[Run]) -> Figure | None:
    """The share of devices that have finished against virtual time, a line a class (one run) or a
    line a run.

    Devices that never finished count in the share, so their line stops below 1. One run names the
    devices that finish last.
    """
    lines: list[tuple[str, np.ndarray]] = []
    if len(runs) == 1:
        devices = runs[0].devices()
        codes, classes = encode(devices["device_class"])
        finish_s = finish_times(devices)
        lines = [(name, finish_s[codes == classes.index(name)]) for name in sorted(classes)]
    else:
        labels = _distinct_titles(runs)
        lines = [
            (label, finish_times(run.devices())) for label, run in zip(labels, runs, strict=True)
        ]
    done = [of_line_s[np.isfinite(of_line_s)] for _, of_line_s in lines]
    if not sum(map(len, done)):
        return None
    ends_s = [end_s for finished_s in done if (end_s := finished_s.max(initial=0.0)) > 0]
    last_s = max(ends_s, default=0.0)
    spread = len(runs) > 1 and last_s > 30 * min(ends_s, default=0.0)  # else upright lines at 0
    unit, unit_s = ("s", 1.0) if spread else _time_unit(last_s)
    figure, (ax,) = _figure(2.9, 1, run_title=_title(runs), note=_note(runs))
    for number, ((label, of_line_s), finished_s) in enumerate(zip(lines, done, strict=True)):
        share = np.arange(len(finished_s) + 1) / len(of_line_s)
        at = np.concatenate([[0.0], np.sort(finished_s), [last_s * 1.03]]) / unit_s
        text = f"{label} ({len(finished_s):,} of {len(of_line_s):,})"
        dashes = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": dashes, "linewidth": 1.3}
        ax.step(at, np.append(share, share[-1]), where="post", label=text, **style)
    ax.set(xlabel=f"finish time [{unit}]", ylabel="share of devices finished")
    ax.set(ylim=(0, 1.04), xlim=(0, last_s * 1.03 / unit_s))
    if spread:
        every_s = np.concatenate(done)
        ax.set(xscale="log", xlim=(every_s[every_s > 0].min() / 1.1, last_s * 1.1))
    title = "device class (finished)" if len(runs) == 1 else "run (finished)"
    handles, texts = ax.get_legend_handles_labels()
    if len(runs) == 1:
        last = [row for row in np.argsort(-finish_s, kind="stable") if np.isfinite(finish_s[row])][
            :3
        ]
        handles.append(Line2D([], [], linestyle=""))
        texts.append("last to finish")
        for row in last:
            of_class, at_s = codes[row], finish_s[row]
            same = finish_s[codes == of_class]
            colour = COLOURS[sorted(classes).index(classes[of_class]) % len(COLOURS)]
            style = {
                "marker": "o",
                "markersize": 4,
                "color": colour,
                "markerfacecolor": "white",
                "linestyle": "",
            }
            handles += ax.plot(
                at_s / unit_s, np.sum(same <= at_s) / len(same), **style, clip_on=False, zorder=5
            )
            where = f"{classes[of_class]}, {devices['link'][int(row)].as_py()}"
            texts.append(
                f"{devices['device'][int(row)].as_py()}: {_number(at_s / unit_s)} {unit}\n{where}"
            )
    figure.legend(
        handles, texts, title=title, title_fontsize=7, alignment="left", loc="outside right center"
    )
    return figure


# --- what the figures share
# ------------------------------------------------------------------------------------------


def _figure(height_in: float, columns: int, run_title: str, note: str, **subplots):
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=ConstrainedLayoutEngine(wspace=0.05))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, **subplots)[0]
    figure.suptitle(run_title, fontsize=8, x=0.01, ha="left")
    if note:
        figure.supxlabel(note, fontsize=7, x=0.99, ha="right", color="#8B0000")
    return figure, axes


def _title(runs: Sequence[Run]) -> str:
    return runs[0].title if len(runs) == 1 else " / ".join(dict.fromkeys(run.name for run in runs))


def _note(runs: Sequence[Run]) -> str:
    """Says whose costs the clock charged, where that is not the model that learned."""
    costed_as = dict.fromkeys(
        str(run.summary["costed_as"]) for run in runs if run.summary.get("costed_as")
    )
    return f"costed as {', '.join(costed_as)}" if costed_as else ""


def _distinct_titles(runs: Sequence[Run]) -> list[str]:
    """A label a run, as short as tells them apart: the method, with name, seed or directory added
    where needed.
    """
    for label in (
        lambda run: run.method or run.name,
        lambda run: f"{run.name} · {run.method}",
        lambda run: run.title,
        lambda run: run.path.name,
        lambda run: str(run.path),
    ):
        labels = [label(run) for run in runs]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({number})" for number, label in enumerate(labels, start=1)]


def _time_unit(longest_s: float) -> tuple[str, float]:
    return next(
        (
            (unit, unit_s)
            for unit, unit_s in (("d", 86400.0), ("h", 3600.0), ("min", 60.0))
            if longest_s >= 3 * unit_s
        ),
        ("s", 1.0),
    )


def _byte_unit(most_bytes: float) -> tuple[str, float]:
    return next(
        (
            (unit, size)
            for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
            if most_bytes >= size
        ),
        ("B", 1.0),
    )


def _joule_unit(most_j: float) -> tuple[str, float]:
    return next(
        ((unit, size) for unit, size in (("MJ", 1e6), ("kJ", 1e3)) if most_j >= size), ("J", 1.0)
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
