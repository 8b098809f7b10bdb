"""What all figures share: the page they are drawn for, colours, units, and what their lines are
called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator

from inputs.units import format_seconds
from sim.results.run import Run

STYLE = Path(__file__).with_name("mobifleet.mplstyle")
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#661100",
    "#000000",
)  # Okabe-Ito, but for a dark brown in place of the yellow, which is too light for a line
DASHES = ("-", "--", ":", "-.")
REFERENCE_DASHES = ((0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (3, 3)))  # of level lines
FAR_APART = 20  # how many times, before lines need a logarithmic axis
TIMES_S = (1e-3, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36e3, 864e2, 864e3, 864e4)
NARROW_IN = 5.0  # below it panels stand one above the other


@dataclass(frozen=True)
class Page:
    """What figures are drawn for: their width in inches, and whether the run's title stands above.

    A column of a paper is about 3.3 in wide, two are 7.
    """

    width_in: float = 7.0
    is_titled: bool = True

    @property
    def is_narrow(self) -> bool:
        """Whether panels stand one above the other, with the legend below them."""
        return self.width_in < NARROW_IN

    def figure(
        self, height_in: float, panels: int, title: str, note: str, **subplots: Any
    ) -> tuple[Figure, list[Axes]]:
        """A figure with so many panels side by side, `height_in` high; `note` stands below, or
        above where the legend is below.
        """
        rows, columns = (panels, 1) if self.is_narrow else (1, panels)
        figure = Figure(
            figsize=(self.width_in, height_in * rows), layout=ConstrainedLayoutEngine(wspace=0.05)
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **subplots)
        heading = [title] * self.is_titled + [note] * (self.is_narrow and bool(note))
        if heading:
            figure.suptitle("\n".join(heading), fontsize=8, x=0.01, ha="left")
        if note and not self.is_narrow:
            figure.supxlabel(note, fontsize=7, x=0.99, ha="right", color="#8B0000")
        return figure, list(axes.flat)

    def legend(self, figure: Figure, handles: list, labels: list[str], **how: Any) -> None:
        """The legend beside the panels, or below them where the page is narrow."""
        if self.is_narrow:
            height_in = 0.16 * (len(handles) // 2 + 1)
            figure.set_size_inches(self.width_in, figure.get_size_inches()[1] + height_in)
            how |= {"ncols": 2}
        how["loc"] = "outside lower center" if self.is_narrow else "outside right center"
        figure.legend(handles, labels, **how)


FULL_WIDTH = Page()


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line: 32 that can be told apart, by the colour-blind too."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def title_of(runs: Sequence[Run]) -> str:
    """The heading of a figure of these runs."""
    return runs[0].title if len(runs) == 1 else " / ".join(dict.fromkeys(run.name for run in runs))


def note_of(runs: Sequence[Run]) -> str:
    """Says whose costs the clock charged, where that is not the model that learned."""
    costed_as = dict.fromkeys(
        str(run.summary["costed_as"]) for run in runs if run.summary.get("costed_as")
    )
    return f"costed as {', '.join(costed_as)}" if costed_as else ""


def by_label(runs: Sequence[Run], labels: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """The runs that make one line each, by what the line is called.

    Without `labels`, runs of one scenario that differ in their seed alone are one line; a line is
    called as short as tells it from the others: by its method, else with its scenario's name, its
    seeds, or its folder.
    """
    if labels is not None:
        groups: dict[str, list[Run]] = {}
        for label, run in zip(labels, runs, strict=True):
            groups.setdefault(label, []).append(run)
        return groups
    found: list[list[Run]] = []
    for run in runs:
        same = next((group for group in found if _is_reseeded(group, run)), None)
        if same is None:
            found.append([run])
        else:
            same.append(run)
    return dict(zip(_distinct(found), found, strict=True))


def methods_and_references(
    groups: Mapping[str, list[Run]],
) -> tuple[dict[str, list[Run]], dict[str, list[Run]]]:
    """The groups of runs that are drawn as lines, and those that others are only held against:
    references beside what is none.
    """
    references = {
        label: group for label, group in groups.items() if all(run.is_reference for run in group)
    }
    methods = {label: group for label, group in groups.items() if label not in references}
    return (methods, references) if methods else (references, {})


def _is_reseeded(group: list[Run], run: Run) -> bool:
    """Whether a run is one of these with another seed."""
    scenarios = [
        {key: value for key, value in one.manifest["scenario"].items() if key != "seed"}
        for one in (group[0], run)
    ]
    return scenarios[0] == scenarios[1] and run.seed not in [one.seed for one in group]


def _distinct(groups: list[list[Run]]) -> list[str]:
    ways: tuple[Callable[[list[Run]], str], ...] = (
        lambda group: group[0].method or group[0].name,
        lambda group: f"{group[0].name} · {group[0].method}",
        lambda group: " / ".join(run.title for run in group),
        lambda group: " / ".join(run.path.name for run in group),
        lambda group: " / ".join(str(run.path) for run in group),
    )
    for way in ways:
        labels = [way(group) for group in groups]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({number})" for number, label in enumerate(labels, start=1)]


def time_unit(longest_s: float) -> tuple[str, float]:
    """The unit in which so long a time is read, and its seconds."""
    return next(
        (
            (unit, unit_s)
            for unit, unit_s in (("d", 86400.0), ("h", 3600.0), ("min", 60.0))
            if longest_s >= 3 * unit_s
        ),
        ("s", 1.0),
    )


def logarithmic_time(ax: Axes, what: str, unit_s: float = 1.0) -> None:
    """Let an axis of times be logarithmic, with marks at 1 s, 10 s, 1 min, ... that say so."""
    ax.set_xscale("log", nonpositive="mask")
    ax.xaxis.set_major_locator(FixedLocator([time_s / unit_s for time_s in TIMES_S]))
    ax.xaxis.set_major_formatter(lambda value, _: format_seconds(float(f"{value * unit_s:.6g}")))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=what)


def byte_unit(most_bytes: float) -> tuple[str, float]:
    """The unit in which so many bytes are read, and its bytes."""
    return next(
        (
            (unit, size)
            for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
            if most_bytes >= size
        ),
        ("B", 1.0),
    )


def joule_unit(most_j: float) -> tuple[str, float]:
    """The unit in which so much energy is read, and its joules."""
    return next(
        ((unit, size) for unit, size in (("MJ", 1e6), ("kJ", 1e3)) if most_j >= size), ("J", 1.0)
    )


def number(value: float) -> str:
    """A number in three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
