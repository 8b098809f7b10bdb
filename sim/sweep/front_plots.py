"""Figures of what combinations get for what they cost: a mark each, and a line along those that no
other beats, numbered and named beside it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.privacy.measures import SAID
from sim.sweep.effects import Rows, outcomes_of
from sim.sweep.front import BYTES, FrontPoint, points_of
from sim.sweep.grid import value_text
from sim.views.page import COLOURS, FAR_APART, byte_unit
from sim.views.saving_figures import shortened

WIDTH_IN, ONE_IN, LINE_IN = 7.0, 3.6, 2.7
ACROSS = 2
MARKS = "osD^vP*X"
MOST_NAMED = 14  # of a front
NAME_LENGTH = 46  # characters a line


@dataclass(frozen=True)
class Panel:
    """One pair of axes: points, what their cost is, in which unit, and where they would stand by a
    guess: each by its own, as what can be guessed differs with what is sent.
    """

    points: Sequence[FrontPoint]
    x_label: str
    are_bytes: bool = False
    guesses: Sequence[FrontPoint] = ()

    def is_telling(self, least: int) -> bool:
        """Whether there are so many combinations, and their costs differ."""
        return len(self.points) >= least and len({p.cost for p in self.points}) > 1


def bytes_figure(rows: Rows, keys: Sequence[str], metric: str) -> Figure | None:
    """What is learned against bytes; None where there is too little to see."""
    panel = Panel(points_of(rows, keys, BYTES), "bytes a device, up and down", are_bytes=True)
    return _figure([panel], metric) if panel.is_telling(3) else None


def privacy_figure(rows: Rows, keys: Sequence[str], metric: str) -> Figure | None:
    """What is learned against what attacks got, a panel each measure; None where nothing was
    attacked, or differs.
    """
    panels = []
    for name in [name for name in outcomes_of(rows) if name in SAID]:
        guesses = points_of(rows, keys, f"{name}_chance")
        panel = Panel(points_of(rows, keys, name), SAID[name], False, guesses)
        panels += [panel] if panel.is_telling(2) else []
    return _figure(panels, metric) if panels else None


def _figure(panels: Sequence[Panel], y_label: str) -> Figure:
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    height_in = ONE_IN if len(panels) == 1 else LINE_IN * down
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    every = [point for panel in panels for point in panel.points]
    by = _varying(every)
    ways = [_ways(every, name) for name in by[:2]]
    for ax, panel in zip(axes, panels, strict=False):
        _draw(ax, panel, by, ways, is_numbered=len(panels) == 1)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for row in range(down):
        axes[row * across].set_ylabel(y_label)
    _legend(figure, ways, _front(panels[0]) if len(panels) == 1 else [], by)
    return figure


def _draw(
    ax: Axes,
    panel: Panel,
    by: Sequence[str],
    ways: Sequence[Mapping[str, int]],
    is_numbered: bool,
) -> None:
    unit, size = byte_unit(max(p.cost for p in panel.points)) if panel.are_bytes else ("", 1.0)
    for point in panel.points:
        places = [way[_text(point, name)] for way, name in zip(ways, by, strict=False)]
        colour, mark = ([*places, 0, 0])[:2]
        x, y = point.cost / size, point.score
        style: dict[str, Any] = {"color": COLOURS[colour % len(COLOURS)]}
        ax.errorbar(
            [x],
            [y],
            xerr=[[x - point.cost_least / size], [point.cost_most / size - x]],
            yerr=[[y - point.score_least], [point.score_most - y]],
            marker=MARKS[mark % len(MARKS)],
            markersize=5 if point.on_front else 3.5,
            alpha=1.0 if point.on_front else 0.55,
            elinewidth=0.6,
            zorder=3 if point.on_front else 2,
            **style,
        )
    front = _front(panel)
    costs, scores = [p.cost / size for p in front], [p.score for p in front]
    line: dict[str, Any] = {"color": "#555555", "linewidth": 0.8, "zorder": 1}
    ax.plot(costs, scores, drawstyle="steps-post", **line)
    for number, point in enumerate(front[:MOST_NAMED] if is_numbered else (), 1):
        where, text = (point.cost / size, point.score), str(number)
        ax.annotate(text, where, (0, 5), textcoords="offset points", fontsize=6.5, ha="center")
    some = [p.cost for p in panel.points if p.cost > 0]
    if panel.are_bytes and some and max(some) > FAR_APART * min(some):
        has_none = len(some) < len(panel.points)  # 0 has no place on a logarithmic axis
        ax.set_xscale("symlog", linthresh=min(some) / size) if has_none else ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    for point in panel.guesses:
        ax.plot([point.cost], [point.score], "|", color="#999999", markersize=7, zorder=0)
    ax.set_xlabel(f"{panel.x_label} [{unit}]" if unit else panel.x_label)


def _front(panel: Panel) -> list[FrontPoint]:
    """Those that nothing beats, each of several alike once, by rising cost."""
    unlike = {(p.cost, p.score): p for p in reversed(panel.points) if p.on_front}
    return sorted(unlike.values(), key=lambda p: p.cost)


def _varying(points: Sequence[FrontPoint]) -> list[str]:
    """What tells the combinations apart: the method ("") where there are several, and keys."""
    methods = [""] if len({p.method for p in points}) > 1 else []
    keys = points[0].values
    return methods + [key for key in keys if len({_text(p, key) for p in points}) > 1]


def _text(point: FrontPoint, name: str) -> str:
    if not name:
        return point.method
    value = point.values[name]
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else value_text(value)


def _ways(points: Sequence[FrontPoint], name: str) -> dict[str, int]:
    return {text: n for n, text in enumerate(dict.fromkeys(_text(p, name) for p in points))}


def _legend(
    figure: Figure,
    ways: Sequence[Mapping[str, int]],
    front: Sequence[FrontPoint],
    by: Sequence[str],
) -> None:
    handles = []
    for place, way in enumerate(ways):
        for text, n in way.items():
            style: dict[str, Any] = {"color": "#555555", "marker": MARKS[n % len(MARKS)]}
            if place == 0:
                style = {"color": COLOURS[n % len(COLOURS)], "marker": "o"}
            name = by[place].rpartition(".")[-1]
            label = shortened(f"{name}: {text}" if name else text)
            handles.append(Line2D([], [], linestyle="", markersize=4, label=label, **style))
    lines = ["", "on the front:"] if front else []
    for number, point in enumerate(front[:MOST_NAMED], 1):
        named = ", ".join(_text(point, name) for name in by)
        text = f"{number}  {named}: {point.score:.3f}"
        lines += textwrap.wrap(text, NAME_LENGTH, subsequent_indent="    ")
    if len(front) > MOST_NAMED:
        lines.append(f"... and {len(front) - MOST_NAMED} more, in front.csv")
    handles.extend(Line2D([], [], linestyle="", label=line or " ") for line in lines)
    figure.legend(
        handles=handles,
        loc="outside right upper",
        fontsize=6,
        handlelength=0.8,
        handletextpad=0.4,
        labelspacing=0.25,
    )
