"""The table of `mobifleet cache`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from inputs.units import format_bytes, format_seconds
from learning.side.store_size import Shard

KINDS = {
    "assets": "weights and texts (mobifleet fetch)",
    "models": "converted models",
    "tokenizers": "converted tokenizers",
    "costs": "counted costs",
    "trials": "backbones that were tried",
}


def table(cache: Path, held: Sequence[Shard], now_s: float) -> Table:
    """What lies in the cache: activations a backbone and readout, what was used last first, and the
    rest by kind.
    """
    shown = Table(box=None, header_style="bold", padding=(0, 1))
    shown.add_column("what")
    shown.add_column("bytes", justify="right", no_wrap=True)
    shown.add_column("last used", no_wrap=True)
    everything = [shard.nbytes for shard in held]
    by_use: dict[str, list[Shard]] = {}
    for folder, shards in _by_folder(held).items():
        name = shards[0].whose() or f"a backbone ({folder.relative_to(cache).parts[1][:8]})"
        by_use.setdefault(f"activations of {name}, {folder.name}", []).extend(shards)
    for what, shards in by_use.items():
        ago_s = now_s - max(shard.used_at_s for shard in shards)
        shown.add_row(what, _bytes(shard.nbytes for shard in shards), _ago(ago_s))
    for folder in sorted(path for path in cache.glob("*") if path.is_dir()):
        if folder.name != "activations" and (nbytes := _sizes(folder)):
            shown.add_row(KINDS.get(folder.name, folder.name), _bytes(nbytes), "")
            everything += nbytes
    shown.add_row("all", _bytes(everything), "")
    return shown


def _by_folder(held: Iterable[Shard]) -> dict[Path, list[Shard]]:
    found: dict[Path, list[Shard]] = {}
    for shard in held:
        found.setdefault(shard.file.parent, []).append(shard)
    return found


def _sizes(folder: Path) -> list[int]:
    sizes = []
    for file in folder.rglob("*"):
        with suppress(OSError):
            if file.is_file():
                sizes.append(file.stat().st_size)
    return sizes


def _bytes(sizes: Iterable[int]) -> str:
    return format_bytes(sum(sizes))


def _ago(seconds: float) -> str:
    return "now" if seconds < 1 else f"{format_seconds(round(seconds))} ago"
