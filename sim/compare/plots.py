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

from sim.compare.costs import COLUMNS, costs_at, costs_until
from sim.compare.planned_run import PlannedRun
from sim.results.looks import chosen_score, converged_at_s
from sim.results.run import Run, open_run
from sim.sweep.grid import value_text
from sim.views.page import FULL_WIDTH, STYLE, line_style
from sim.views.saving_figures import save

PANELS = ("flop", "communication_bytes", "time_s")


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

    Our cost is that of our own convergence. `claims` are drawn as dashed lines; baselines whose
    accuracy stays below `learned` are left out. Returns the file; None without accuracy.
    """
    until_s = converged_at_s(runs[ours])
    if until_s is None:
        return None
    mine = costs_until(runs[ours], until_s)
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = FULL_WIDTH.figure(2.9, len(PANELS), title=f"what {ours} saves", note="")
        for number, label in enumerate(baselines):
            run, style = runs[label], line_style(number)
            time_s, converged = run.curve(run.metric)[0], converged_at_s(run)
            if converged is None or (chosen_score(run) or 0.0) < learned:
                continue
            cost = costs_at(run, time_s)
            here = int(np.searchsorted(time_s, converged))
            for ax, name in zip(axes, PANELS, strict=True):
                with np.errstate(divide="ignore"):
                    saved = 100 * (1 - mine[name] / cost[name])
                named: dict[str, Any] = {"label": label} if ax is axes[0] else {}
                ax.plot(cost["updates"], saved, **style, **named)
                dot: dict[str, Any] = {
                    "marker": "o",
                    "color": style["color"],
                    "markeredgecolor": "white",
                }
                ax.plot(cost["updates"][here], saved[here], linestyle="", **dot)
        for ax, name in zip(axes, PANELS, strict=True):
            ax.set(
                title=COLUMNS[name],
                xlabel="server updates of the baseline",
                xscale="log",
                ylim=(0, 101),
            )
            if name in claims:
                ax.axhline(
                    100 * claims[name], color="#555555", linestyle=(0, (4, 3)), linewidth=0.8
                )
        axes[0].set_ylabel("saved [%]")
        axes[0].plot([], [], "o", color="#555555", label="its convergence")
        if claims:
            axes[0].plot(
                [], [], color="#555555", linestyle=(0, (4, 3)), linewidth=0.8, label="as reported"
            )
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        return save(figure, out / "reductions.png")


def draw_over(key: str, entries: Sequence[PlannedRun], out: Path) -> Path:
    """Every method's accuracy, at the look that validation chose, against the values of the swept
    setting; a bar from the worst seed to the best.
    """
    values = list(dict.fromkeys(entry.at for entry in entries))
    with matplotlib.style.context(["default", STYLE]):
        figure, (ax,) = FULL_WIDTH.figure(2.9, 1, title=f"accuracy against {key}", note="")
        for number, label in enumerate(dict.fromkeys(entry.label for entry in entries)):
            found = [
                [
                    chosen_score(open_run(e.folder))
                    for e in entries
                    if (e.label, e.at) == (label, at)
                ]
                for at in values
            ]
            chosen = [
                [math.nan if one is None else one for one in seeds] for seeds in found
            ]  # a gap in the line
            middle = np.array([np.mean(seeds) for seeds in chosen])
            spread = [
                middle - [min(seeds) for seeds in chosen],
                [max(seeds) for seeds in chosen] - middle,
            ]
            at = np.arange(len(values)) + 0.04 * number
            style = line_style(number) | {"marker": "o", "capsize": 2}
            ax.errorbar(at, middle, np.abs(spread), label=label, **style)
        named = {entry.at: value_text(entry.values[key]) for entry in entries}
        ax.set_xticks(range(len(values)), [named[at] for at in values])
        metric = open_run(entries[0].folder).metric
        ax.set(xlabel=key, ylabel=COLUMNS["chosen"].replace("accuracy", metric))
        figure.legend(loc="outside right center")
        return save(figure, out / "over.png")
