"""What a person sees while a scenario runs: a live panel on a terminal, a line every few seconds
elsewhere.
"""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from inputs.units import format_bytes, format_score, format_seconds
from sim.runner import STOPPING
from sim.simulation import RunCallbacks, Simulation

SECONDS_BETWEEN_LINES = 5.0  # where there is no terminal


class LiveView:
    """Shows preparation and the running clock; use as a context, and hand `callbacks` to the
    runner.

    Nothing is shown of what is over within `patience_s`.
    """

    def __init__(
        self,
        console: Console,
        quiet: bool = False,
        seconds_between_lines: float | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.console, self.quiet = console, quiet
        self.callbacks = RunCallbacks(on_prepare=self._prepare, on_progress=self._look)
        self._fancy = console.is_terminal and not quiet
        lines_s = SECONDS_BETWEEN_LINES if seconds_between_lines is None else seconds_between_lines
        self._every_s = 0.25 if self._fancy else lines_s
        self._last_s = self._began_s = time.perf_counter()
        self._patience_s = patience_s
        if patience_s:
            self._last_s += patience_s - self._every_s  # so that the first line comes with its end
        self._events, self._stage = 0, ""
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} texts"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if self._fancy else None
        )

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live and self._live.is_started:
            self._live.stop()

    def _show(self, what: RenderableType) -> None:
        """Put it on the terminal, if it can be, in place of what was there."""
        if self._live is None:
            return
        self._live.update(what)
        if not self._live.is_started and self._is_long:
            self._live.start(refresh=True)

    @property
    def _is_long(self) -> bool:
        return time.perf_counter() - self._began_s >= self._patience_s

    def stage(self, name: str) -> None:
        """Note what is going on now."""
        self._stage = name
        if self._live:
            self._show(Group(self._bars, f"{name} ..."))
        elif name == STOPPING and not self.quiet:
            self.console.print(name, highlight=False, soft_wrap=True)

    def _prepare(self, backbone: str, done: int, total: int) -> None:
        if total == 0 or self.quiet:
            return
        if self._live:
            if backbone not in self._tasks:
                self._tasks[backbone] = self._bars.add_task(
                    f"forward passes of {backbone}", total=total
                )
            self._bars.update(self._tasks[backbone], completed=done)
            self._show(Group(self._bars))
        elif self._is_time() or (done in (0, total) and self._is_long):
            self.console.print(
                f"forward passes of {backbone}: {done}/{total} texts",
                highlight=False,
                soft_wrap=True,
            )

    def _look(self, sim: Simulation) -> None:
        if self.quiet or not self._is_time():
            return
        facts = _facts(sim, self._clock_s(sim))
        if self._live:
            self._show(_panel(facts))
        else:
            self.console.print(_line(facts), highlight=False, soft_wrap=True)

    def _is_time(self) -> bool:
        now = time.perf_counter()
        if now - self._last_s < self._every_s:
            return False
        self._last_s = now
        return True

    def _clock_s(self, sim: Simulation) -> float:
        """Seconds of the host since the clock began."""
        return max(1e-9, time.perf_counter() - self._began_s - sim.build_s)


def _facts(sim: Simulation, clock_s: float) -> list[tuple[str, str]]:
    """What a person is told of a run whose clock has run for so long on the host."""
    done, rounds = len(sim.devices) - sim.devices_at_work, sim.tally.rounds
    most = getattr(sim.scenario.method, "rounds", None)  # of one's own method: whatever it is
    most = most if type(most) is int and 0 < rounds <= most else 0
    facts = [
        ("virtual clock", format_seconds(sim.env.now)),
        ("devices done", f"{done}/{len(sim.devices)}"),
        *([("rounds", f"{rounds}/{most}")] if most else []),
        ("server updates", str(sim.updates)),
        ("uplinked", format_bytes(sim.recorder.uplink_bytes)),
    ]
    if sim.score is not None:
        target = sim.scenario.stop.target
        facts.append(
            (sim.task.metric, format_score(sim.score) + (f" (target {target})" if target else ""))
        )
    if sim.host.is_replaying:
        facts.append(
            (
                "replaying",
                f"{sim.host.pieces} of {sim.host.journal.position} known pieces of learning",
            )
        )
    facts.append(("host rate", f"{sim.env.now / clock_s:.3g} virtual s per s"))
    if rounds < most and not sim.host.recalled:  # what is recalled goes faster than what comes
        facts.append(("left", f"about {format_seconds(clock_s * (most / rounds - 1))}"))
    return facts


def _panel(facts: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(name, Text(value, "bold"))
    return table


def _line(facts: list[tuple[str, str]]) -> str:
    return " · ".join(f"{name} {value}" for name, value in facts)
