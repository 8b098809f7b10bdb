"""Figures of a comparison: what is saved against how long a baseline trains, and accuracy against a
swept setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.ticker import MaxNLocator

from learning.host_device import HostDevice
from sim.compare.costs import COLUMNS, costs_at, costs_until, own_convergence
from sim.compare.planned_run import PlannedRun
from sim.results.looks import chosen_score, validated_score
from sim.results.run import Run, open_run
from sim.sweep.front_plots import privacy_figure
from sim.sweep.grid import value_text
from sim.sweep.table import rows_of
from sim.views.page import FULL_WIDTH, REFERENCE_DASHES, STYLE, line_style, note_of
from sim.views.saving_figures import save, shortened

PANELS = {
    "flop": "compute",
    "communication_bytes": "communication, with delivery",
    "time_s": "time",
}
DECADE = 10  # updates: fewer need no logarithm
LEAST_SAVED = -100.0  # percent that a figure has room for: twice a baseline's cost


def draw_privacy(
    entries: Sequence[PlannedRun], out: Path, folder: Path, host: HostDevice
) -> Path | None:
    """What is learned against what attacks got, a mark a method; None where none were tried."""
    rows = rows_of(entries, out, False, folder, host)
    keys, metric = list(entries[0].values), open_run(entries[0].folder).metric
    with matplotlib.style.context(["default", STYLE]):
        figure = privacy_figure(rows, keys, metric)
        return None if figure is None else save(figure, out / "figures" / "privacy.png")


def draw_reductions(
    runs: Mapping[str, Run],
    ours: str,
    baselines: Sequence[str],
    claims: Mapping[str, float],
    out: Path,
    learned: float = 0.0,
) -> Path | None:
    """How much less `ours` costs, against the server updates that a baseline is given; a dot where
    it had converged.

    Our cost is that of our own convergence. `claims` are drawn as dashed lines. Baselines that
    learn nothing, or whose accuracy stays below `learned`, are left out, and the figure says so.
    Returns the file; None where `ours` learns nothing, or no baseline is left.
    """
    until = own_convergence(runs[ours])
    left_out = {label: why for label in baselines if (why := _why_left_out(runs[label], learned))}
    if until is None or len(left_out) == len(baselines):
        return None
    mine = costs_until(runs[ours], until.at_s)
    said = ", ".join(f"{label} ({why})" for label, why in left_out.items())
    note = "; ".join(filter(None, [note_of([runs[ours]]), said and f"left out: {said}"]))
    with matplotlib.style.context(["default", STYLE]):
        title = f"what {ours} saves, seed {runs[ours].seed}"
        figure, axes = FULL_WIDTH.figure(2.9, len(PANELS), title, note)
        lowest, most_updates = 0.0, 0.0
        for number, label in enumerate(baselines):
            run, style, moment = runs[label], line_style(number), own_convergence(runs[label])
            if label in left_out or moment is None:
                continue
            cost, there = costs_at(run, run.curve(run.metric)[0]), costs_until(run, moment.at_s)
            most_updates = max(most_updates, float(cost["updates"].max()))
            for ax, name in zip(axes, PANELS, strict=True):
                with np.errstate(divide="ignore"):
                    saved = 100 * (1 - mine[name] / cost[name])
                    at_dot = 100 * (1 - mine[name] / np.float64(there[name]))
                named: dict[str, Any] = {"label": label} if ax is axes[0] else {}
                ax.plot(cost["updates"], saved, **style, **named)
                if not np.isfinite(at_dot):  # it needs none of it
                    continue
                lowest = min(lowest, float(at_dot))
                dot: dict[str, Any] = {
                    "marker": "o" if at_dot >= LEAST_SAVED else "v",
                    "color": style["color"],
                    "markeredgecolor": "white",
                }
                shown = max(float(at_dot), LEAST_SAVED)
                ax.plot(there["updates"], shown, linestyle="", clip_on=False, **dot)
        axes[1].set_xlabel("server updates of the baseline")
        for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
            ax.set(title=title, ylim=(0, 101))
            if most_updates >= DECADE:
                ax.set(xscale="log", xlim=(0.85, 1.2 * most_updates))
            else:
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if lowest < 0:  # it costs more than a baseline
                ax.set_ylim(LEAST_SAVED, 101)
                ax.axhline(0, color="#555555", linewidth=0.8)
            if name in claims:
                ax.axhline(
                    100 * claims[name], color="#555555", linestyle=(0, (4, 3)), linewidth=0.8
                )
        axes[0].set_ylabel("saved [%]")
        axes[0].plot([], [], "o", color="#555555", label="its convergence")
        if lowest < LEAST_SAVED:
            below = "its convergence,\nbelow the panel"
            axes[0].plot([], [], "v", color="#555555", label=below)
        if claims:
            axes[0].plot(
                [], [], color="#555555", linestyle=(0, (4, 3)), linewidth=0.8, label="as reported"
            )
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        return save(figure, out / "reductions.png")


def _why_left_out(run: Run, learned: float) -> str | None:
    """Why a baseline is in no figure of what is saved; None for one that is."""
    if chosen_score(run) is None or own_convergence(run) is None:
        return "diverged" if run.has_diverged else "never above its start"
    if (validated_score(run) or 0.0) >= learned:
        return None
    low = f"{run.metric} {learned:g} not reached on validation texts"
    return "diverged" if run.has_diverged else low


def draw_over(key: str, entries: Sequence[PlannedRun], out: Path) -> Path:
    """Every method's accuracy, at the look that validation chose, against the values of the swept
    setting; a bar from the worst seed to the best. References are level lines at each value.
    """
    values = list(dict.fromkeys(entry.at for entry in entries))
    runs = [(entry.label, entry.at, open_run(entry.folder)) for entry in entries]
    metric = runs[0][2].metric
    references = 0
    with matplotlib.style.context(["default", STYLE]):
        seeds = len({entry.scenario.seed for entry in entries})
        note = f"means of {seeds} seeds, bars from the worst seed to the best" if seeds > 1 else ""
        figure, (ax,) = FULL_WIDTH.figure(2.9, 1, title=f"{metric} against {key}", note=note)
        for number, label in enumerate(dict.fromkeys(entry.label for entry in entries)):
            mine = [[run for of, its, run in runs if (of, its) == (label, at)] for at in values]
            found = [[_or_gap(chosen_score(run)) for run in some] for some in mine]
            middle = np.array([np.mean(seeds) for seeds in found])
            if all(run.is_reference for some in mine for run in some):
                level: dict[str, Any] = {"color": "#333333", "linewidth": 1.1}
                level |= {"linestyle": REFERENCE_DASHES[references % len(REFERENCE_DASHES)]}
                ends = np.arange(len(values)) - 0.4, np.arange(len(values)) + 0.4
                ax.hlines(middle, *ends, label=f"{label} (reference)", **level)
                references += 1
                continue
            spread = [
                middle - [min(seeds) for seeds in found],
                [max(seeds) for seeds in found] - middle,
            ]
            where = np.arange(len(values)) + 0.04 * number
            style = line_style(number) | {"marker": "o", "capsize": 2}
            ax.errorbar(where, middle, np.abs(spread), label=label, **style)
        named = {entry.at: shortened(value_text(entry.values[key])) for entry in entries}
        ax.set_xticks(range(len(values)), [named[at] for at in values])
        ax.set(xlabel=key, ylabel=COLUMNS["chosen"].replace("accuracy", metric))
        figure.legend(loc="outside right center")
        return save(figure, out / "over.png")


def _or_gap(accuracy: float | None) -> float:
    """A gap in the line, where there is no accuracy."""
    return math.nan if accuracy is None else accuracy
