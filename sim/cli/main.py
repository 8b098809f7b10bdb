"""The command line, `mobifleet VERB`: one file a verb. Heavy imports happen inside the verbs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sim.cli import faults
from sim.cli.cache import cache
from sim.cli.calibrate_device import calibrate_device
from sim.cli.calibrate_link import calibrate_link
from sim.cli.check import check
from sim.cli.compare import compare
from sim.cli.fetch import fetch
from sim.cli.list import list_
from sim.cli.plot import plot
from sim.cli.privacy import privacy
from sim.cli.run import run
from sim.cli.sweep import sweep
from sim.cli.terminal import console, errors
from sim.cli.validate import validate
from sim.scenario.own_code import OwnCodeError


class Verbs(TyperGroup):
    """Says that it was stopped, which typer does without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Do what was asked."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            errors.print("stopped")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="mobifleet",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run)
app.command("plot")(plot)
app.command("compare")(compare)
app.command("sweep")(sweep)
app.command("validate")(validate)
app.command("privacy")(privacy)
app.command("check")(check)
app.command("list")(list_)
app.command("fetch")(fetch)
app.command("cache")(cache)

calibrate = typer.Typer(
    name="calibrate",
    help="Measure this machine, or a path between two, into a profile that a scenario can name.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
calibrate.command("device")(calibrate_device)
calibrate.command("link")(calibrate_link)
app.add_typer(calibrate)


def main() -> None:
    """Run the command line; every mistake a user can make is one message and exit code 2, never a
    traceback.

    What is no mistake of a user's is called a fault of mobifleet's, with how to report it, and ends
    with exit code 70.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # users' words on a terminal that cannot show them, as on stderr
    try:
        sys.exit(
            app(standalone_mode=False)
        )  # the code of a `typer.Exit`, None where a verb simply returns
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        message = faults.of_the_user(error)
        is_code = message is None or isinstance(error, OwnCodeError)
        if is_code and os.environ.get(faults.TRACEBACK):
            raise
        if message != "":  # as of a command that has shown its help
            errors.print(faults.ours(error) if message is None else message)
        sys.exit(faults.OURS if message is None else faults.USERS)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"mobifleet {faults.version()}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Simulate fleets of unlike mobile devices that fine-tune a language model together.

    Examples:

        mobifleet run quickstart

        mobifleet list scenarios

        mobifleet run --help
    """


if __name__ == "__main__":
    main()
