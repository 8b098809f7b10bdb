"""`mobifleet calibrate device | link`: profiles of the machine and of the path that a user has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sim.cli.faults import UserError

app = typer.Typer(
    name="calibrate",
    help="Measure this machine, or a path between two, into a profile that a scenario can name.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
console = Console(
    soft_wrap=False, highlight=False, markup=False, emoji=False
)  # as that of `sim.cli.main`


@app.command()
def device(
    name: Annotated[
        str, typer.Option(help="Name of the profile; files go to calibrations/NAME.")
    ] = "this-machine",
    out: Annotated[Path | None, typer.Option(help="Another output folder.")] = None,
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

    folder = out or Path("calibrations") / _held(name)
    names = [backbone.strip() for backbone in backbones.split(",")]
    plan = Plan(name, folder, names, on, precision, threads, quick, train, sustained, like, seed)
    if table is not None and validate is not None:
        raise verb.CalibrationError(
            "--from and --validate exclude each other: fit a table first, then validate it"
        )
    if fail_above is not None and validate is None:
        raise verb.CalibrationError("--fail-above belongs to --validate PROFILE")
    if table is not None:
        verb.fit_table(table, plan, console)
    elif validate is not None:
        found = verb.validate(validate, plan, console)
        if fail_above is not None and found.mean_pct > fail_above:
            raise typer.Exit(1)
    else:
        verb.calibrate(plan, console)


@app.command()
def link(
    serve: Annotated[
        bool, typer.Option("--serve", help="Be the far end of a measurement, until Ctrl-C.")
    ] = False,
    to: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Measure the path to a --serve end.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="iperf3 -J output (one each for up and down, or --bidir), or a file of rates.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the profile; files go to calibrations/NAME.")
    ] = "this-path",
    out: Annotated[Path | None, typer.Option(help="Another output folder.")] = None,
    seconds: Annotated[
        float, typer.Option(help="With --to: seconds of bulk each way.", min=0.5, max=600)
    ] = 20,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Of rates whose column names none: bit/s, kbit/s, Mbit/s (the default), "
            "Gbit/s, B/s, kB/s or MB/s."
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Of a file of rates: the column of throughput, if there are several."),
    ] = None,
    direction: Annotated[str, typer.Option(help="Of a file of rates: up or down.")] = "up",
    like: Annotated[
        str | None,
        typer.Option(
            help="Profile that lends what was not measured: latency, the other direction's ratio."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="With --serve: the address to listen on; 0.0.0.0 lets other machines in."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port to listen on, or that of --to.", min=0, max=65535)
    ] = 5207,
) -> None:
    """Measure a path, or read measurements of one, and write a link profile for `link:` in a
    scenario.

    Finds level, asymmetry, latency, overhead a transfer, and how throughput varies from second to
    second.

    Examples:

        mobifleet calibrate link --serve --host 0.0.0.0

        mobifleet calibrate link --to 192.168.1.20 --seconds 60 --name office-wifi

        mobifleet calibrate link --from up.json --from down.json --name my-lte

        mobifleet calibrate link --from drive.csv --unit Mbit/s --like lte --name drive
    """
    from sim.calibrate import link as verb

    if (serve, to is not None, bool(files)).count(True) != 1:
        raise verb.LinkCalibrationError(
            "one of --serve, --to HOST[:PORT] and --from FILE (see `calibrate link --help`)"
        )
    if direction not in ("up", "down"):
        raise verb.LinkCalibrationError(f"--direction: up or down (got {direction!r})")
    if serve:
        verb.serve(host, port, console)
        return
    found = (
        verb.measure(to, port, seconds, console)
        if to
        else verb.read(files or (), unit, direction, column)
    )
    verb.report(found, name, out or Path("calibrations") / _held(name), like, console)


def _held(name: str) -> str:
    """The name of a profile, which is a folder's too and stays inside `calibrations/`."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            "--name: letters, digits, `.`, `_` and `-`, beginning with a letter or digit (got "
            f"{name!r})"
        )
    return name
