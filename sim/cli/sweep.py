"""`mobifleet sweep`: a scenario at every combination of settings, methods and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from learning.host_device import HostDevice
from sim.cli.options import (
    AllowCode,
    Attacks,
    Dry,
    Engine,
    HostName,
    Overrides,
    Precision,
    ScenarioName,
    Seed,
    labels_of,
    runs_at_a_time,
)
from sim.cli.terminal import console, errors


def sweep(
    scenario: ScenarioName,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,...",
            help="Values of one setting, e.g. task.partition.alpha=0.1,1. Repeatable.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Labels of `compare.methods`, or kinds, with a comma; default the scenario's own."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Repeat every combination with so many seeds.", min=1)
    ] = 1,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default runs/NAME-sweep. Finished runs in it are kept."),
    ] = None,
    dry: Dry = False,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time; default one a core.", min=1)
    ] = None,
    engine: Engine = "processes",
    host: HostName = "cpu",
    precision: Precision = "float32",
    attacks: Attacks = "none",
) -> None:
    """Run a scenario at every combination of some settings, methods and seeds, into one table.

    Values are YAML: numbers, words, lists in brackets. Every run has a folder as `mobifleet run`
    leaves it. Ctrl-C loses nothing: the same command goes on, and tries again what failed. Writes
    sweep.csv and sweep.parquet (one row a run), effects.csv, curves and figures.

    With `--engine ray` runs go to the nodes of the Ray cluster at RAY_ADDRESS, or that runs here.

    Examples:

        mobifleet sweep quickstart --grid task.partition.alpha=0.1,1,10 --seeds 5

        mobifleet sweep quickstart --grid fleet.0.count=4,12 --grid method.replay=5,20 --dry

        mobifleet sweep table1_small --methods fed-mobillm,fedavg-lora --grid task.train=200,600
    """
    from sim.api import load
    from sim.sweep.grid import grid_of
    from sim.sweep.verb import failures, sweep_scenario

    chosen = load(scenario, overrides or (), seed, allow_code)
    folder = out or Path("runs") / f"{chosen.name}-sweep"
    try:
        made = sweep_scenario(
            chosen,
            chosen.folder,
            folder,
            grid_of(grid or ()),
            labels_of(methods),
            seeds,
            dry,
            runs_at_a_time(workers, "--workers", engine),
            console,
            HostDevice(host, precision),
            attacks,
        )
    except KeyboardInterrupt:
        errors.print(f"stopped: {folder} holds what has been run, the same command goes on")
        raise typer.Exit(130) from None
    for view in made.tables_for(console.width):
        console.print(view)
    for sentence in made.notes:
        console.print(sentence, highlight=False)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    for line in failures(made):
        errors.print(f"failed: {line}")
    if made.failed:
        errors.print("the same command tries them again, and them alone")
        raise typer.Exit(1)
