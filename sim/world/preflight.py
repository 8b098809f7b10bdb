"""Before anything runs, each backbone of the user's own does once what it will be asked to do
(`learning.backbones.trial`).
"""

from __future__ import annotations

from pathlib import Path

from learning.backbones import catalogue, trial
from learning.cost.forward_pass import architecture
from sim.kernel.host import single_threaded_torch
from sim.scenario.checks import choices
from sim.scenario.data import SizedData
from sim.scenario.schema import Scenario
from sim.world.costing import own_backbones


def preflight(scenario: Scenario, folder: Path = Path()) -> None:
    """Raise BackboneError or FileProblem for the first backbone of the fleet that could not learn
    from the scenario's texts.

    Relative paths start at `folder`. A backbone that has passed before is not loaded again, nor is
    torch; those that come with mobifleet are known, and only their positions are looked at. Nothing
    learns from data known by its size alone.
    """
    if isinstance(scenario.task.dataset, SizedData):
        return
    own, longest = own_backbones(scenario, folder), scenario.task.max_tokens
    for name in sorted({name for group in scenario.fleet for name in choices(group.backbone)}):
        spec = catalogue.find(name, own)
        if catalogue.is_own(spec):
            if not trial.has_passed(spec, longest):
                single_threaded_torch()
                trial.take(spec, longest)
        elif (positions := architecture(catalogue.whole(spec)).positions or longest) < longest:
            raise catalogue.too_long(name, longest, positions)
