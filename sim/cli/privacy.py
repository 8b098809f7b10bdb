"""`mobifleet privacy RUN`: what each party saw, and how far attacks on it get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sim.cli.terminal import console, errors

Attack = Literal["labels", "texts", "model", "all", "none"]


def privacy(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    attacks: Annotated[
        Attack,
        typer.Option(help="On labels or texts that were sent, on the trained model, or all."),
    ] = "all",
    folder: Annotated[
        Path, typer.Option(help="Where the scenario's own files are, if it names any.")
    ] = Path(),
) -> None:
    """Show what each party of a run saw, by kind, and run attacks on it.

    The run is simulated again to have its payloads; what attacks found goes into RUN/privacy.json.

    Examples:

        mobifleet privacy runs/quickstart

        mobifleet privacy runs/quickstart --attacks none
    """
    from sim.privacy.report import ledger_tables, outcome_table, report
    from sim.results.run import RunError, open_run
    from sim.views.terminal_tables import show

    opened = open_run(run)
    try:
        for table in ledger_tables(opened):
            show(table, console)
            console.print()
    except RunError as error:
        console.print(str(error), highlight=False)
    if attacks == "none":
        return
    with console.status("simulating the run again") as status:

        def say(what: str) -> None:
            status.update(what)
            if not console.is_terminal:
                errors.print(what)

        say("simulating the run again")
        found = report(opened, attacks, folder, say)
    for remark in found.remarks:
        console.print(remark, highlight=False)
    if found.outcomes:
        show(outcome_table(found.outcomes), console)
    console.print(f"written to {run / 'privacy.json'}", highlight=False, soft_wrap=True)
