"""Figures of a sweep: what was learned when, combination by combination, and outcomes against each
factor.

Lines are means over seeds; a band reaches from the worst seed to the best. A curve whose training
ended before others' goes on, dotted, at the level that its model keeps.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from sim.sweep.effects import METHOD, OUTCOMES, SCORES, Rows, factors_of, number_of, outcomes_of
from sim.sweep.front_plots import bytes_figure, privacy_figure
from sim.sweep.grid import value_text
from sim.views.page import (
    FAR_APART,
    STYLE,
    byte_unit,
    line_style,
    logarithmic_time,
    number,
    time_unit,
)
from sim.views.saving_figures import save, shortened

WIDTH_IN = 7.0
MOST_PANELS = 12  # combinations whose curves are drawn
COLUMNS = 3
NARROWEST = 0.05  # share of a cost that an axis shows at least, to both sides
AFTER_TRAINING: dict[str, Any] = {
    **{"linestyle": ":", "linewidth": 0.8},
    **{"marker": "o", "markersize": 3, "markevery": [0]},  # where it ended
}
ON_FIGURE = (
    *SCORES,
    *("target.reached_at_s", "virtual_time_s", "per_device.uplink_bytes.mean"),
)


def draw(rows: Rows, curves: Rows, keys: Sequence[str], metric: str, out: Path) -> list[Path]:
    """Draw what there are numbers for, `curves.png`, `effects.png`, `front.png` and `privacy.png`;
    returns the files written.

    `rows` and `curves` are those of `sim.sweep.table`, `keys` the grid's, `metric` the name of what
    is learned.
    """
    files = []
    with matplotlib.style.context(["default", STYLE]):
        learned = [row for row in curves if row["name"] == metric]
        for name, figure in (
            ("curves", curves_figure(learned, keys, metric, _lost(rows, keys))),
            ("effects", effects_figure(rows, keys, metric)),
            ("front", bytes_figure(rows, keys, metric)),
            ("privacy", privacy_figure(rows, keys, metric)),
        ):
            if figure is not None:
                files.append(save(figure, out / f"{name}.png"))
            else:  # that of an earlier sweep is not of this one
                (out / f"{name}.png").unlink(missing_ok=True)
    return files


def curves_figure(
    curves: Rows, keys: Sequence[str], metric: str, lost: Container[tuple[str, str]] = ()
) -> Figure | None:
    """The metric against virtual time: a panel a combination, a line a method.

    What is `lost`, as (combination, method), has no model at its end, so its curve just ends.
    """
    by_cell: dict[str, dict[str, dict[int, list[tuple[float, float]]]]] = {}
    for row in curves:
        cell = _cell(row, keys)
        seeds = by_cell.setdefault(cell, {}).setdefault(row["method"], {})
        seeds.setdefault(row["seed"], []).append((row["time_s"], row["value"]))
    if not by_cell:
        return None
    shown = list(itertools.islice(by_cell.items(), MOST_PANELS))
    methods = list(dict.fromkeys(row["method"] for row in curves))
    ends_s = [
        max(time_s for time_s, _ in points)
        for _, of in shown
        for seeds in of.values()
        for points in seeds.values()
    ]
    across = min(COLUMNS, len(shown))
    down = -(-len(shown) // across)
    figure, axes = _figure(0.7 + 1.6 * down, down, across, sharex=True, sharey=True)
    unit, unit_s = time_unit(max(ends_s))
    is_short = False  # whether any training ended before the last
    some = f", {len(shown)} of {len(by_cell)} combinations" if len(by_cell) > len(shown) else ""
    figure.suptitle(f"{metric} over virtual time{some}", fontsize=8, x=0.01, ha="left")
    for ax, (cell, of) in zip(axes.flat, shown, strict=False):
        ax.set_title(_combination(json.loads(cell), 96 // across), fontsize=7)
        for method, seeds in of.items():
            moments_s, values = _over_seeds(seeds.values())
            style = line_style(methods.index(method))
            _band(ax, moments_s / unit_s, values, style)
            if moments_s[-1] < max(ends_s) and (cell, method) not in lost:
                level = values[:, -1].mean()
                rest = {**AFTER_TRAINING, "color": style["color"]}
                ax.plot([moments_s[-1] / unit_s, max(ends_s) / unit_s], [level, level], **rest)
                is_short = True
    time_axis = f"virtual time [{unit}]"
    if min(ends_s) > 0 and max(ends_s) > FAR_APART * min(ends_s):
        time_axis = "virtual time"
        logarithmic_time(axes.flat[0], time_axis, unit_s)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(metric)
    for column in range(across):
        last = max(row for row in range(down) if row * across + column < len(shown))
        axes[last, column].set_xlabel(time_axis)
        axes[last, column].tick_params(labelbottom=True)
    after = {"training has ended": Line2D([], [], color="#555555", **AFTER_TRAINING)}
    _legend(figure, methods, after if is_short else {})
    return figure


def _cell(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps({key: row[key] for key in keys})


def _lost(rows: Rows, keys: Sequence[str]) -> set[tuple[str, str]]:
    """Combinations and methods of which some seed's model has no score at its end."""
    return {
        (_cell(row, keys), row["method"])
        for row in rows
        if row["status"] == "finished" and row.get("final") is None
    }


def effects_figure(rows: Rows, keys: Sequence[str], metric: str) -> Figure | None:
    """Outcomes against each factor, means over all other factors; a line a method."""
    factors = factors_of(rows, keys)
    outcomes = [name for name in ON_FIGURE if name in outcomes_of(rows)]
    if "target.reached_at_s" in outcomes:
        outcomes.remove("virtual_time_s")
    if not factors or not outcomes:
        return None
    against = {name: values for name, values in factors.items() if name != METHOD} or factors
    methods = list(dict.fromkeys(row["method"] for row in rows))
    scales = {name: _scale(rows, name) for name in outcomes}
    figure, axes = _figure(
        0.6 + 1.45 * len(outcomes), len(outcomes), len(against), sharey="row", sharex="col"
    )
    for (line, outcome), (column, (factor, values)) in itertools.product(
        enumerate(outcomes), enumerate(against.items())
    ):
        ax = axes[line, column]
        lines = ["" if factor == METHOD else method for method in methods]
        for place, method in enumerate(dict.fromkeys(lines)):
            mine = [row for row in rows if method in ("", row["method"])]
            means = _by_seed(mine, outcome, factor, values) / scales[outcome][1]
            _band(ax, np.arange(len(values)), means, line_style(place) | {"marker": "o"})
        named = [shortened(_value(value)) for value in values]
        turned = {"rotation": 30, "ha": "right"} if max(map(len, named)) > 12 else {}
        ax.set_xticks(range(len(values)), named, **turned)
        ax.margins(x=0.08)
        if line == len(outcomes) - 1:
            ax.set_xlabel(shortened(factor))
        if column == 0:
            said = OUTCOMES[outcome].format(metric=metric) + scales[outcome][0]
            ax.set_ylabel(textwrap.fill(said, 22))
    for line in range(len(outcomes)):
        heights = [
            height
            for drawn in axes[line].flat
            for one in drawn.get_lines()
            for height in np.asarray(one.get_ydata(), dtype=float)
        ]
        if outcomes[line] not in SCORES:
            _cost_axis(axes[line, 0], heights)
    if METHOD not in against:
        _legend(figure, methods)
    return figure


def _cost_axis(ax: Axes, heights: Sequence[float]) -> None:
    """An axis of costs: logarithmic where they are far apart, with 0 on it where there is one, and
    never narrower than a twentieth of them, where a difference of nothing would fill it.
    """
    if not (some := [height for height in heights if height > 0]):
        return
    least, most, has_none = min(some), max(some), min(heights) <= 0
    if most > FAR_APART * least and has_none:
        ax.set_yscale("symlog", linthresh=least)
        ax.set_ylim(-least / 2, 2 * most)
        ax.yaxis.set_major_formatter(lambda value, _: number(value))
        return
    if most > FAR_APART * least:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,)))
        ax.yaxis.set_major_formatter(lambda value, _: number(value))
        ax.yaxis.set_minor_locator(NullLocator())
        return
    ax.ticklabel_format(axis="y", useOffset=False)
    if most - least < NARROWEST * most and not has_none:
        ax.set_ylim(most * (1 - NARROWEST), most * (1 + NARROWEST))


def _by_seed(rows: Rows, outcome: str, factor: str, values: Sequence[Any]) -> np.ndarray:
    """Means over all combinations, float64 of shape (seeds, values); NaN where there is none."""
    seeds = sorted({row["seed"] for row in rows})
    found = np.full((len(seeds), len(values)), np.nan)
    for (line, seed), (column, value) in itertools.product(enumerate(seeds), enumerate(values)):
        numbers = [
            number
            for row in rows
            if row["seed"] == seed and row[factor] == value
            if (number := number_of(row, outcome)) is not None
        ]
        if numbers:
            found[line, column] = np.mean(numbers)
    return found


def _over_seeds(
    curves: Iterable[Sequence[tuple[float, float]]],
) -> tuple[np.ndarray, np.ndarray]:
    """The moments at which any seed was looked at (n,) and each seed's value then (seeds, n): NaN
    before its first look, between looks as if it had learned evenly, after its last as it was.
    """
    series = [np.array(sorted(dict(points).items())) for points in curves]
    moments = np.unique(np.concatenate([each[:, 0] for each in series]))
    values = [np.interp(moments, each[:, 0], each[:, 1], left=np.nan) for each in series]
    return moments, np.stack(values)


def _band(ax: Any, x: np.ndarray, values: np.ndarray, style: dict[str, Any]) -> None:
    """The mean over seeds, where all have a value, and from the least seed to the most."""
    whole = ~np.isnan(values).any(axis=0)
    x, values = x[whole], values[:, whole]
    if not len(x):
        return
    if len(x) == 1:  # no line, but a look
        style = {"marker": "o"} | style
    ax.plot(x, values.mean(axis=0), markersize=3, **style)
    if len(values) > 1:
        ax.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.2, linewidth=0
        )


def _figure(height_in: float, down: int, across: int, **subplots: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=ConstrainedLayoutEngine(wspace=0.03))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, squeeze=False, **subplots)


def _legend(
    figure: Figure, methods: Sequence[str], more: Mapping[str, Line2D] = MappingProxyType({})
) -> None:
    handles = [Line2D([], [], **line_style(number)) for number in range(len(methods))]
    texts = [shortened(method) for method in methods]
    figure.legend([*handles, *more.values()], [*texts, *more], loc="outside right upper")


def _scale(rows: Rows, outcome: str) -> tuple[str, float]:
    """In which unit an outcome is drawn, in brackets, and how large that is."""
    most = max(abs(number) for row in rows if (number := number_of(row, outcome)) is not None)
    if "bytes" in outcome:
        unit, size = byte_unit(most)
    elif outcome.endswith("_s"):
        unit, size = time_unit(most)
    else:
        return "", 1.0
    return f" [{unit}]", size


def _combination(cell: Mapping[str, Any], most: int) -> str:
    """The values of a combination, one below the other, in lines of so many characters."""
    last = [key.rpartition(".")[-1] for key in cell]
    lines: list[str] = []
    for (key, value), short in zip(cell.items(), last, strict=True):
        name = short if last.count(short) == 1 else key
        text = f"{name}={_value(value)}"
        lines += textwrap.wrap(text, most, max_lines=2, placeholder="…")
    return "\n".join(lines)


def _value(value: Any) -> str:
    """A value as it stands beside its factor's name: settings without braces and quotes."""
    if not isinstance(value, Mapping):
        return value_text(value)
    return ", ".join(f"{key}: {_value(one)}" for key, one in value.items()) or "{}"
