"""Who is there when: what a scenario may say of devices that go off and on, never come, or drop out
for good.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from inputs.units import PerSecond, Seconds
from sim.scenario.named_files import FilePath, RhythmName
from sim.scenario.settings import OnlyFor, Settings


class Always(Settings):
    """Every device is on from its joining to its end."""

    kind: Literal["always"]


class Diurnal(Settings):
    """Devices go on and off by a fitted daily rhythm; each draws its own habits and days."""

    kind: Literal["diurnal"]
    rhythm: RhythmName = Field("charging-wifi-locked", validate_default=True)
    """A shipped rhythm, or the path of a YAML file like those of devices/availability_profiles."""
    starts_at: Annotated[Seconds, Field(lt=86_400)] = 0.0
    """Time of day at which the virtual clock starts, e.g. `20 h`."""
    never_ready: float | None = Field(None, ge=0, le=1)
    """Share of devices that are never on; default the rhythm's."""


class Traced(Settings):
    """Devices go on and off as recorded: each takes one device of a trace at random."""

    kind: Literal["trace"]
    path: FilePath
    """CSV with the columns device, ready_start_s, ready_end_s; time 0 is the midnight before its
    first interval.
    """
    period: Seconds | None = Field(None, gt=0)
    """After which the trace repeats; default whole days."""
    shift: bool = False
    """Start each device at a random whole day of the trace."""


class DropOut(Settings):
    """Devices that leave for good, whatever they are doing; say one of `rate`, `share` and
    `times`.
    """

    only_for: ClassVar[OnlyFor] = {
        "within": ("`share`", lambda settings: settings.share is not None)
    }
    rate: PerSecond | None = Field(None, gt=0)
    """Of a Poisson process, from joining on, e.g. `0.1 /d`."""
    share: float | None = Field(None, gt=0, le=1)
    """Of the devices, each at a random moment within `within` of its joining."""
    within: Annotated[Seconds, Field(gt=0)] = 86_400.0
    times: list[Seconds | None] | None = None
    """When each device leaves, in fleet order; null: never."""

    @model_validator(mode="after")
    def _one_way(self) -> DropOut:
        if sum(way is not None for way in (self.rate, self.share, self.times)) != 1:
            raise ValueError("say exactly one of rate, share and times")
        return self


AnyAvailability = Annotated[Always | Diurnal | Traced, Field(discriminator="kind")]
