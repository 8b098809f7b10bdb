"""Building every world once before anything runs, so that what cannot be is told at once, and not
when what stands before it in the plan has been computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from inputs.files import is_ours
from sim.simulation import Simulation, building
from sim.sweep.grid import title
from sim.sweep.planned_run import PlannedRun, SweepError
from sim.world.preflight import preflight


def try_all(entries: Iterable[PlannedRun], dry: bool, folder: Path) -> None:
    """Build the world of each combination and method once; SweepError with all that cannot be.

    `folder` is where the scenario's relative paths start.
    """
    refused: dict[str, None] = {}
    tried: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.at, entry.label) in tried:
            continue
        tried.add((entry.at, entry.label))
        try:
            with building(entry.scenario):
                if not dry:
                    preflight(entry.scenario, folder)
                Simulation(entry.scenario, folder, dry=True)
        except Exception as error:
            if not is_ours(error):
                raise
            where = ", ".join(part for part in (title(entry.values), entry.label) if part)
            refused[f"{where}: {error}"] = None
    if refused:
        raise SweepError("\n".join(refused))
