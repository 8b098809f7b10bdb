"""`mobifleet calibrate link`: a profile of the path between two machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import ProfileFolder, ProfileName, folder_of
from sim.cli.terminal import plain


def calibrate_link(
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
    name: ProfileName = "this-path",
    out: ProfileFolder = None,
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
        verb.serve(host, port, plain)
        return
    found = (
        verb.measure_link(to, port, seconds, plain)
        if to
        else verb.read(files or (), unit, direction, column)
    )
    verb.report(found, name, out or folder_of(name), like, plain)
