"""Progress of `mobifleet fetch`: a bar an asset on a terminal, a line a change elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)


class FetchView:
    """Use as a context; `report` is the callback that `assets.fetch` wants."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> FetchView:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    def report(self, asset: str, done_bytes: int, total_bytes: int, note: str) -> None:
        """Show how far an asset is."""
        if asset not in self._tasks:
            self._tasks[asset] = self._bars.add_task(asset, total=total_bytes, note=note)
        self._bars.update(self._tasks[asset], completed=done_bytes, total=total_bytes, note=note)
        now = time.monotonic()
        if not self.console.is_terminal and (
            done_bytes >= total_bytes or now - self._printed.get(asset, 0) > 5
        ):
            self._printed[asset] = now
            self.console.print(
                f"{asset}: {done_bytes / 1e6:.1f}/{total_bytes / 1e6:.1f} MB {note}",
                highlight=False,
                soft_wrap=True,
            )

    def summary(self) -> None:
        """Where things lie now."""
        from learning.backbones.assets import cache_dir

        self.console.print(f"fetched into {cache_dir()}", soft_wrap=True)
