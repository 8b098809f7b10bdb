"""`mobifleet compare`: several methods on one scenario, in one table."""

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
    Labels,
    Overrides,
    Precision,
    ScenarioName,
    Seed,
    labels_of,
    runs_at_a_time,
)
from sim.cli.terminal import console, errors


def compare(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    seeds: Annotated[
        int | None,
        typer.Option(help="Repeat with so many seeds; default what the scenario says.", min=1),
    ] = None,
    methods: Labels = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default runs/NAME-compare. Finished runs in it are kept."),
    ] = None,
    dry: Dry = False,
    processes: Annotated[
        int | None,
        typer.Option("--workers", "--processes", help="Runs at a time; default one a core.", min=1),
    ] = None,
    engine: Engine = "processes",
    tune: Annotated[
        bool, typer.Option(help="Choose every method's dials first, where the scenario lists some.")
    ] = True,
    columns: Annotated[
        str | None, typer.Option(help="Of the LaTeX tables, with commas: names as in table.csv.")
    ] = None,
    host: HostName = "cpu",
    precision: Precision = "float32",
    attacks: Attacks = "none",
) -> None:
    """Run several methods on one scenario under common random numbers and put them into one table.

    The scenario lists them under `compare: {methods: {label: {kind: ...}}}`; beside them may stand
    `target` (a second table, of costs to a common accuracy), `tune` (each method's dials, chosen
    with one budget) and `over` (all of it at several values of a setting). Writes table.csv,
    table.md, table.tex (7 in wide), table-column.tex (3.3 in) and figures.

    Examples:

        mobifleet compare table1_small

        mobifleet compare table1_small --methods fed-mobillm,fedavg-lora --seeds 3

        mobifleet compare table1_small --columns chosen,time_s,communication_bytes

        mobifleet compare table1 --engine ray
    """
    from sim.api import load
    from sim.compare.runs import compare_of
    from sim.compare.verb import compare_scenario

    chosen = load(scenario, overrides or (), seed, allow_code)
    at_once = runs_at_a_time(processes, "--workers", engine)
    folder = out or Path("runs") / f"{chosen.name}-compare"
    seeds = seeds or compare_of(chosen).seeds
    where, only, of_latex = HostDevice(host, precision), labels_of(methods), labels_of(columns)
    try:
        compared = compare_scenario(
            chosen,
            chosen.folder,
            folder,
            seeds,
            only,
            dry,
            at_once,
            console,
            tune,
            where,
            of_latex,
            attacks,
        )
    except KeyboardInterrupt:
        errors.print(f"stopped: {folder} holds what has been run, the same command goes on")
        raise typer.Exit(130) from None
    for table in compared.tables_for(console.width):
        console.print(table)
    for sentence in compared.notes:
        console.print(sentence, highlight=False)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
