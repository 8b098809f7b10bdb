"""`mobifleet plot`: the figures of runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.faults import UserError
from sim.cli.terminal import console


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are overlaid.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default RUN/figures.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="png, pdf, svg, or several with commas.")
    ] = "png",
    width: Annotated[
        float, typer.Option(help="Width in inches: 7 for a page, 3.3 for a column.", min=2, max=20)
    ] = 7.0,
    title: Annotated[
        bool, typer.Option("--title/--no-title", help="The run's name and seed above each figure.")
    ] = True,
    label: Annotated[
        list[str] | None,
        typer.Option(help="What a run is called, once a run; runs of one label are one line."),
    ] = None,
) -> None:
    """Draw the timeline, accuracy, bytes and energy by class, and finish times of one or more runs.

    Examples:

        mobifleet plot runs/quickstart

        mobifleet plot runs/seed0 runs/seed1 --out figures --format png,pdf

        mobifleet plot runs/quickstart --format pdf --width 3.3 --no-title

        mobifleet plot runs/a runs/b --label "ours, 8 bit" --label LoRA
    """
    from sim.results.run import open_run
    from sim.views.page import Page
    from sim.views.plots import draw

    wanted = list(dict.fromkeys(text.strip() for text in formats.split(",")))
    if unknown := set(wanted) - {"png", "pdf", "svg"}:
        raise UserError(f"--format: png, pdf or svg, with commas (got {sorted(unknown)[0]!r})")
    if label and len(label) != len(runs):
        raise UserError(f"--label: give one for each of the {len(runs)} runs (got {len(label)})")
    opened = [open_run(path) for path in runs]
    folder = out or (runs[0] / "figures" if len(runs) == 1 else Path("figures"))
    files = draw(opened, folder, wanted, labels=label, page=Page(width, title))
    if not files:
        raise UserError(
            f"nothing to plot: none of the {len(runs)} runs measured {opened[0].metric}, and "
            "in none did a device finish; `mobifleet plot RUN` of one alone shows its timeline"
        )
    for path in files:
        console.print(str(path))
