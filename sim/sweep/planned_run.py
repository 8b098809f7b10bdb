"""What a sweep is made of: one run of one method at one combination of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.scenario.schema import Scenario


class SweepError(ValueError):
    """A sweep cannot be made; the message says why."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: a method by its label, of which scenario, where to, at which combination of settings
    (`at` as its folder is called, `values` by dotted path).
    """

    label: str
    scenario: Scenario
    folder: Path
    at: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
