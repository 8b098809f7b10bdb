"""`mobifleet cache`: what is kept on the disk between runs, and room made there."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.faults import UserError
from sim.cli.terminal import console, plain

if TYPE_CHECKING:
    from learning.side.store_size import Shard


def cache(
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Let stored activations take at most this, e.g. 2GB: what was used longest ago "
            "goes.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Remove activations that were not used for this long, e.g. 30d."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Show what the cache holds (what, bytes, last used), or make room in it.

    What is removed are stored activations, which a run that needs them computes again. Other runs
    may go on meanwhile.

    Examples:

        mobifleet cache

        mobifleet cache --keep 2GB

        mobifleet cache --older-than 30d --yes
    """
    from inputs.units import format_bytes
    from learning.backbones.assets import cache_dir
    from learning.side import store_size
    from sim.cli.cached import table
    from sim.views.terminal_tables import show

    root = cache_dir() / "activations"
    keep_bytes, age_s = _quantity("--keep", keep, "B"), _quantity("--older-than", older_than, "s")
    held = store_size.shards(root)
    if keep is None and older_than is None:
        limit = format_bytes(store_size.limit_bytes())
        show(table(cache_dir(), held, time.time()), console)
        plain.print(f"{cache_dir()}; activations: at most {limit} ({store_size.LIMIT})")
        return
    before_s = None if age_s is None else time.time() - age_s
    unwanted = store_size.superfluous(held, keep_bytes, before_s)
    if not unwanted:
        plain.print(f"nothing to remove: {_sum(held)} of activations are there")
        return
    if not yes:
        _ask(f"remove {_sum(unwanted)} of activations, of {_sum(held)}?")
    gone = store_size.remove(unwanted)
    plain.print(f"removed {_sum(gone)} of activations; {_sum(store_size.shards(root))} are there")


def _sum(shards: Sequence[Shard]) -> str:
    from inputs.units import format_bytes

    return f"{format_bytes(sum(shard.nbytes for shard in shards))} ({len(shards):,} files)"


def _quantity(option: str, text: str | None, dimension: str) -> float | None:
    from inputs.units import parse

    bare = (text or "").strip()
    if re.fullmatch(r"[0-9]*\.?[0-9]+", bare) and float(bare):
        example = bare + {"B": "GB", "s": "d"}[dimension]
        raise UserError(f"{option}: what unit is that? Say e.g. {example} (got {text!r})")
    try:
        return None if text is None else parse(text, dimension)
    except ValueError as error:
        raise UserError(f"{option}: {error} (got {text!r})") from error


def _ask(question: str) -> None:
    """Go on if somebody says yes."""
    if not _is_asked():
        raise UserError(f"{question} Nobody is there to answer: say --yes")
    if not typer.confirm(question):
        raise typer.Exit(1)


def _is_asked() -> bool:
    return sys.stdin.isatty()
