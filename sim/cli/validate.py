"""`mobifleet validate`: the clock against real processes, passes and TCP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sim.cli.options import AllowCode, Labels, Overrides, ScenarioName, Seed, labels_of
from sim.cli.terminal import console, errors


def validate(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    methods: Labels = None,
    compress: Annotated[
        float | None,
        typer.Option(help="Virtual seconds in a real one; default: 50 s for the longest real run."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Real runs of each method, for their own spread.", min=1)
    ] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default a fresh runs/NAME-validate.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Most real seconds of one run.", min=1)] = 600.0,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit code 1 if a makespan is off by more percent, or bytes or ranking differ."
        ),
    ] = None,
) -> None:
    """Check the clock against reality: simulate, then execute with real processes, passes and TCP,
    and compare.

    One process a device, one for the server, one for the links, all on this machine. Writes
    validation.json, report.md, figures, and a run directory of every run. Leave the machine alone
    meanwhile.

    Examples:

        mobifleet validate validate_small

        mobifleet validate validate_small --methods fed-mobillm --repeats 3 --compress 0.1
    """
    from sim.api import load
    from sim.validate.agreement_report import conclusion, tables
    from sim.validate.verb import headline, validate
    from sim.views.terminal_tables import show

    chosen = load(scenario, overrides or (), seed, allow_code)
    only = labels_of(methods)
    try:
        with console.status("validating") as status:
            found = validate(
                chosen, chosen.folder, out, compress, repeats, only, limit, _sayer(status)
            )
    except KeyboardInterrupt:
        errors.print("stopped: every process has ended, and the runs that were finished are kept")
        raise typer.Exit(130) from None
    for table in tables(found):
        show(table, console)
    console.print(conclusion(found), highlight=False)
    console.print(f"written to {found['path']}", highlight=False, soft_wrap=True)
    bars = headline(found)
    is_far = fail_above is not None and bars["worst_makespan_error"] > fail_above / 100
    if fail_above is not None and (is_far or not bars["bytes_exact"] or not bars["ranking_agrees"]):
        raise typer.Exit(1)


def _sayer(status):
    """On a terminal one line that changes; elsewhere a line when something begins, and then every
    five seconds.
    """
    import time

    said, at_s = "", 0.0

    def say(line: str) -> None:
        nonlocal said, at_s
        what = line.partition(":")[0]
        if console.is_terminal:
            status.update(Text(line))
        elif what != said or time.monotonic() - at_s > 5:
            said, at_s = what, time.monotonic()
            console.print(line, highlight=False, soft_wrap=True)

    return say
