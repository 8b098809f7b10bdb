"""`mobifleet calibrate device`: a profile of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import ProfileFolder, ProfileName, folder_of
from sim.cli.terminal import plain


def calibrate_device(
    name: ProfileName = "this-machine",
    out: ProfileFolder = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer shapes and repeats: about a minute.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Also time LoRA and BitFit steps (engine `training`).")
    ] = False,
    backbones: Annotated[
        str, typer.Option(help="What to time, with commas; cuts by -lK.")
    ] = "minilm-l1,minilm-l2,minilm-l4,minilm,minilm-narrow,distilbert-cased-l2",
    on: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[
        int | None,
        typer.Option(
            help="torch threads; default what torch chooses. One is timed by processor time.", min=1
        ),
    ] = None,
    sustained: Annotated[
        float | None,
        typer.Option(
            help="Minutes of continuous load, to see the rate sink; default 1, with --quick 0.12.",
            min=0,
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Profile that lends what cannot be measured here (power, for one)."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Fit a CSV of measurements made elsewhere instead of measuring."
        ),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", help="Measure again and say how far this profile is off now."
        ),
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            metavar="PCT", help="With --validate: exit code 1 above this mean error.", min=0
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which shapes are held out of the fit.", min=0)] = 0,
) -> None:
    """Measure this machine and write a device profile for `device:` in a scenario.

    Times real forward passes over depth x batch x length, fits seconds = overhead + FLOP / rate +
    bytes / bandwidth, and checks the fit on shapes that it did not see. Every timing is in
    measurements.csv as soon as it is made.

    Examples:

        mobifleet calibrate device --quick

        mobifleet calibrate device --name my-laptop --train --sustained 10

        mobifleet calibrate device --validate calibrations/my-laptop/profile.yaml

        mobifleet calibrate device --from phone.csv --name my-phone --like phone-2024-flagship
    """
    from sim.calibrate import device as verb
    from sim.calibrate.device_plan import Plan

    folder = out or folder_of(name)
    names = [backbone.strip() for backbone in backbones.split(",")]
    plan = Plan(name, folder, names, on, precision, threads, quick, train, sustained, like, seed)
    if table is not None and validate is not None:
        raise verb.CalibrationError(
            "--from and --validate exclude each other: fit a table first, then validate it"
        )
    if fail_above is not None and validate is None:
        raise verb.CalibrationError("--fail-above belongs to --validate PROFILE")
    if table is not None:
        verb.fit_table(table, plan, plain)
    elif validate is not None:
        found = verb.validate_profile(validate, plan, plain)
        if fail_above is not None and found.mean_pct > fail_above:
            raise typer.Exit(1)
    else:
        verb.calibrate(plan, plain)
