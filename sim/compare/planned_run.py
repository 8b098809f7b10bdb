"""What a comparison is made of: one run of one method, and why there is none."""

from dataclasses import dataclass
from pathlib import Path

from sim.scenario.schema import Scenario


class CompareError(ValueError):
    """A comparison cannot be made; the message says why."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of the comparison: a method by its label, at which value of `compare.over`, of which
    scenario, where to.
    """

    label: str
    scenario: Scenario
    folder: Path
    at: str = ""
