"""What a sweep is made of: one run of one method at one combination of settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sim.scenario.schema import Scenario


class SweepError(ValueError):
    """A sweep cannot be made; the message says why."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: a method by its label, at which combination of settings (`at`, as its folder is
    called), of which scenario, where to.
    """

    label: str
    scenario: Scenario
    folder: Path
    at: str = ""
