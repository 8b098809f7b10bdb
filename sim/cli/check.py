"""`mobifleet check`: what a scenario was read as, and what it will take."""

from __future__ import annotations

from sim.cli.options import AllowCode, Overrides, ScenarioName, Seed
from sim.cli.terminal import console, show_remarks


def check(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
) -> None:
    """Validate a scenario and say what it read, who holds what, and what it will take, without
    learning anything.

    Example:

        mobifleet check my_study.yaml --set stop.target=0.8
    """
    from sim.api import load
    from sim.cli.answer import answer
    from sim.views.terminal_tables import show

    chosen = load(scenario, overrides or (), seed, allow_code)
    with console.status(f"building the world of {chosen.name} ..."):
        found = answer(chosen, chosen.folder)
    show(found.table(), console)
    show_remarks(found.remarks)
