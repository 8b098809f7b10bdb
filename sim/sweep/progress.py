"""How far the runs of a sweep or a comparison are, for whoever waits: a bar on a terminal, a line a
run, and how long the rest will take.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from inputs.files import FileProblem, read_json
from inputs.units import format_seconds
from learning.host_device import CPU, HostDevice
from sim.sweep.cluster import cores
from sim.sweep.engine import (
    NO_ATTACKS,
    Processes,
    failure,
    is_whole,
    require_replaceable,
    run_all,
    why_again,
)
from sim.sweep.planned_run import PlannedRun


def run_shown(
    entries: list[PlannedRun],
    folder: Path,
    out: Path,
    dry: bool,
    processes: Processes,
    console: Console,
    what: str = "run",
    host: HostDevice = CPU,
    keep_going: bool = False,
    attacks: str = NO_ATTACKS,
) -> None:
    """`run_all`, saying on the console what is made again, what has ended, and what is left."""
    done_before = {entry.folder for entry in entries if is_whole(entry, dry, folder, host, attacks)}
    ended = [entry for entry in entries if entry.folder in done_before]
    waiting = [entry for entry in entries if entry.folder not in done_before]
    require_replaceable(waiting, dry)
    again = Counter(why for entry in entries if (why := why_again(entry, dry, folder, host)))
    for why, count in again.items():
        runs = "1 run is" if count == 1 else f"{count} runs are"
        console.print(f"{why}: {runs} made again", highlight=False)
    took_s = {entry.folder: _took_s(entry) for entry in ended}
    if processes == "ray":
        at_once = cores() if waiting else 1  # no cluster is begun for nothing
    else:
        at_once = processes
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(
            what,
            total=len(entries),
            completed=len(ended),
            left=_left(ended, waiting, took_s, at_once),
        )

        def done(entry: PlannedRun, count: int, of: int) -> None:
            why = failure(entry)
            took_s[entry.folder] = None if why is not None else _took_s(entry)
            ended.append(entry)
            waiting[:] = [other for other in waiting if other.folder != entry.folder]
            left = _left(ended, waiting, took_s, at_once)
            progress.update(bar, completed=count, left=left)
            if why is not None:
                left = f"failed: {why}"
            said = f"{what} {count}/{of} {entry.folder.relative_to(out)}"
            console.print(f"{said}  {left}" if left else said, highlight=False, soft_wrap=True)

        run_all(entries, folder, dry, processes, done, host, keep_going, attacks)


def left_s(
    took_s: Mapping[str, Sequence[float]], waiting: Iterable[str], processes: int
) -> float | None:
    """How long the waiting runs, each by the name of its method, will take so many processes, by
    what runs of the same method took (of any, where none of it has ended); None as long as none
    has.
    """
    every = [seconds for each in took_s.values() for seconds in each]
    if not every:
        return None
    total, count = 0.0, 0
    for method in waiting:
        known = took_s.get(method) or every
        total += math.fsum(known) / len(known)
        count += 1
    return total / max(1, min(processes, count))


def _left(
    ended: Iterable[PlannedRun],
    waiting: Sequence[PlannedRun],
    took_s: Mapping[Path, float | None],
    processes: int,
) -> str:
    known: dict[str, list[float]] = {}
    for entry in ended:
        if (seconds := took_s.get(entry.folder)) is not None:
            known.setdefault(entry.label, []).append(seconds)
    seconds = left_s(known, [entry.label for entry in waiting], processes)
    return f"about {format_seconds(math.ceil(seconds))} left" if seconds and waiting else ""


def _took_s(entry: PlannedRun) -> float | None:
    """How long the host took for a run that has ended, None where nobody knows."""
    try:
        summary = read_json(entry.folder / "summary.json")
        return float(summary["host"]["wall_s"])
    except (FileProblem, KeyError, TypeError, ValueError):
        return None
