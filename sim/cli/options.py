"""Arguments and options that several verbs take; those of one verb stand in its file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from sim.cli.faults import UserError

ScenarioName = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a shipped one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value, e.g. task.train=500. Repeatable."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Another seed than the scenario's.", min=0)]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run the code of methods and partitions that the scenario names by file.",
    ),
]
Dry = Annotated[
    bool, typer.Option("--dry", help="Timing, bytes, FLOP and joules alone: nothing learns.")
]
HostName = Annotated[
    str, typer.Option("--host", help="Where the learning is computed: cpu, cuda or mps.")
]
Precision = Annotated[
    str,
    typer.Option(help="float32, bfloat16 (faster, coarser), or int8 (frozen weights alone)."),
]
Engine = Annotated[
    Literal["processes", "ray"],
    typer.Option(help="Where runs are made: on this machine, or on a Ray cluster's cores."),
]
Attacks = Annotated[
    Literal["none", "labels", "texts", "model", "all"],
    typer.Option(help="Attack each run, as `mobifleet privacy` does: columns, and a figure."),
]
Labels = Annotated[
    str | None, typer.Option(help="Only these labels of `compare.methods`, with a comma.")
]
ProfileName = Annotated[
    str, typer.Option(help="Name of the profile; files go to calibrations/NAME.")
]
ProfileFolder = Annotated[Path | None, typer.Option("--out", help="Another output folder.")]


def runs_at_a_time(asked: int | None, option: str, engine: str) -> int | Literal["ray"]:
    """As many processes as are asked for, by default one a core, or `ray`; UserError for both."""
    if engine != "ray":
        return asked or os.cpu_count() or 1
    if asked is not None:
        raise UserError(f"--engine ray runs on the cluster's cores: leave {option} out")
    return "ray"


def labels_of(methods: str | None) -> list[str]:
    """The labels that `--methods` lists, in quotes where they hold a comma; none where it is not
    given. UserError for a comma that parts nothing.
    """
    from sim.sweep.grid import parts_of

    parts = [] if methods is None else parts_of(methods)
    if "" in parts:
        raise UserError(f"expected names, with a comma between two (got {methods!r})")
    return [part[1:-1] if re.fullmatch("(['\"]).*\\1", part) else part for part in parts]


def folder_of(name: str) -> Path:
    """Where the files of a new profile go; its name is a folder's too, and stays inside
    `calibrations/`.
    """
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            "--name: letters, digits, `.`, `_` and `-`, beginning with a letter or digit (got "
            f"{name!r})"
        )
    return Path("calibrations") / name
