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
        str, typer.Option("--format", help="png, pdf or both, with a comma.")
    ] = "png",
) -> None:
    """Draw the timeline, accuracy, bytes and energy by class, and finish times of one or more runs.

    Examples:

        mobifleet plot runs/quickstart

        mobifleet plot runs/seed0 runs/seed1 --out figures --format png,pdf
    """
    from sim.results.run import open_run
    from sim.views.plots import draw

    wanted = formats.split(",")
    if unknown := set(wanted) - {"png", "pdf"}:
        raise UserError(f"--format: png, pdf or png,pdf (got {sorted(unknown)[0]!r})")
    opened = [open_run(path) for path in runs]
    folder = out or (runs[0] / "figures" if len(runs) == 1 else Path("figures"))
    for path in draw(opened, folder, wanted):
        console.print(str(path))
