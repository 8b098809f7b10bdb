"""The simulated run over the real one: a row an actor, both timelines on one axis."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sim.kernel.vocabulary import colours_of
from sim.results.run import Run
from sim.views.page import FULL_WIDTH, STYLE
from sim.views.saving_figures import save

MOST_DEVICES = 12


def draw_overlay(simulated: Run, real: Run, title: str, path: Path) -> Path:
    """Write the figure: for the server and each device (at most `MOST_DEVICES`) the simulated strip
    over the real one.
    """
    devices = simulated.devices().to_pylist()[:MOST_DEVICES]
    labels = {
        "server": "server",
        **{d["device"]: f"{d['device']}\n{d['device_class']}" for d in devices},
    }
    place = {actor: -1.0 * row - (0.3 if row else 0.0) for row, actor in enumerate(labels)}
    last_s = max(run.summary["virtual_time_s"] for run in (simulated, real))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(
            figsize=(FULL_WIDTH.width_in, 1.2 + 0.42 * len(labels)), layout="constrained"
        )
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        drawn = [
            (span, offset, alpha)
            for run, offset, alpha in ((simulated, 0.21, 1.0), (real, -0.21, 0.6))
            for span in run.spans(["actor", "kind", "start_s", "end_s"]).to_pylist()
            if span["actor"] in place
        ]
        colours = colours_of({span["kind"] for span, _, _ in drawn})
        for span, offset, alpha in drawn:
            ax.barh(
                place[span["actor"]] + offset,
                span["end_s"] - span["start_s"],
                0.38,
                span["start_s"],
                color=colours[span["kind"]],
                alpha=alpha,
                linewidth=0,
            )
        for actor, y in place.items():
            for name, offset in (("simulated", 0.21), ("real", -0.21)):
                ax.text(
                    last_s * 1.012, y + offset, name, va="center", fontsize=5.5, color="#555555"
                )
            for run, offset in ((simulated, 0.21), (real, -0.21)):
                ends = [
                    s["end_s"]
                    for s in run.spans(["actor", "end_s"]).to_pylist()
                    if s["actor"] == actor
                ]
                ax.plot(
                    [max(ends, default=0.0)] * 2,
                    [y + offset - 0.19, y + offset + 0.19],
                    color="black",
                    lw=0.9,
                )
        ax.set_yticks(list(place.values()), list(labels.values()))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, last_s * 1.01)
        ax.set_ylim(min(place.values()) - 0.6, 0.6)
        ax.set_xlabel("virtual time [s]; a black mark is an actor's end")
        handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(handles),
            borderpad=0,
        )
        figure.suptitle(title, fontsize=8, x=0.01, ha="left")
        save(figure, path)
    return path
