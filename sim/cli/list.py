"""`mobifleet list`: what a scenario may name."""

from __future__ import annotations

from typing import Annotated

import typer

from sim.cli.faults import UserError
from sim.cli.terminal import console, show_remarks


def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="devices, links, backbones, datasets, methods, partitions, scenarios or assets",
        ),
    ],
) -> None:
    """List what a scenario may name.

    Example:

        mobifleet list devices
    """
    from sim.cli.listing import LISTINGS, unseen
    from sim.views.terminal_tables import show

    if what not in LISTINGS:
        from sim.scenario.complaints import nearest

        raise UserError(
            f"list: one of {', '.join(LISTINGS)} (got {what!r}){nearest(what, LISTINGS)}"
        )
    show(LISTINGS[what](), console)
    show_remarks(unseen(what))
