"""How much the store of activations may hold, what it holds, and what goes first: what was used
least recently.

A shard's time of modification is when it was last written or read: readers set it. Whoever prunes
asks nobody: a reader has mapped what it needs, and what it does not find it computes again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from safetensors import SafetensorError, safe_open

from inputs.units import parse

LIMIT = "MOBIFLEET_ACTIVATIONS_LIMIT"
DEFAULT_LIMIT = "20 GB"


class StoreError(ValueError):
    """The limit of the store is no size; the message says what one looks like."""


@dataclass(frozen=True)
class Shard:
    """A file of the store, its size, and when it was last used, in seconds since 1970."""

    file: Path
    nbytes: int
    used_at_s: float

    def whose(self) -> str:
        """The backbone whose activations it holds, by name where the shard says so."""
        with suppress(OSError, SafetensorError), safe_open(self.file, framework="numpy") as opened:
            return (opened.metadata() or {}).get("backbone", "")
        return ""


def limit_bytes() -> float:
    """The size that the store may have: the environment variable MOBIFLEET_ACTIVATIONS_LIMIT, or 20
    GB. Raises StoreError for what is no size.
    """
    try:
        return parse(os.environ.get(LIMIT) or DEFAULT_LIMIT, "B")
    except ValueError as error:
        raise StoreError(f"{LIMIT}: {error} (got {os.environ[LIMIT]!r})") from error


def shards(root: Path) -> list[Shard]:
    """All that the store holds, what was used last first."""
    found = []
    for file in root.rglob("*.safetensors"):
        with suppress(OSError):  # another process has just removed it
            seen = file.stat()
            found.append(Shard(file, seen.st_size, seen.st_mtime))
    return sorted(found, key=lambda shard: (-shard.used_at_s, shard.file))


def superfluous(
    held: Iterable[Shard], keep_bytes: float | None = None, used_before_s: float | None = None
) -> list[Shard]:
    """Of shards, what was used last first, those beyond so many bytes and those that have not been
    used since; in the order given.
    """
    held = list(held)
    filled = accumulate(shard.nbytes for shard in held)
    return [
        shard
        for shard, nbytes in zip(held, filled, strict=True)
        if (keep_bytes is not None and nbytes > keep_bytes)
        or (used_before_s is not None and shard.used_at_s < used_before_s)
    ]


def remove(unwanted: Iterable[Shard]) -> list[Shard]:
    """Remove shards, but for those that were used meanwhile and those that cannot be; returns what
    is gone.
    """
    gone = []
    for shard in unwanted:
        with suppress(OSError):
            if shard.file.stat().st_mtime <= shard.used_at_s:
                shard.file.unlink()
                gone.append(shard)
    return gone
