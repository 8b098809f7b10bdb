"""When devices join, when texts reach them and in which order: what a scenario may say of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from devices.arrivals import DAY_S
from inputs.units import PerSecond, Seconds
from sim.scenario.named_files import FilePath
from sim.scenario.settings import Settings

DayTime = Annotated[Seconds, Field(lt=DAY_S)]
Hours = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=24, max_length=24)]
"""24 weights of the hours of the day; default those at which phones are ready
(`charging-wifi-locked`).
"""


class Daily(Settings):
    """A rate that follows the hour of the day."""

    hours: Hours | None = None
    starts_at: DayTime = 0.0
    """Time of day at which the virtual clock starts."""


class Batches(Settings):
    """So many at a time, with exponential gaps."""

    size: int = Field(ge=1)
    mean_gap: Seconds = Field(gt=0)


class AtOnce(Settings):
    """Every device is there from the start."""

    kind: Literal["at-once"]


class PoissonJoin(Settings):
    """Devices join one by one, in random order, with exponential gaps."""

    kind: Literal["poisson"]
    mean_gap: Seconds = Field(gt=0)


class DiurnalJoin(Daily):
    """Devices join one by one, in random order, at a rate that follows the hour of the day."""

    kind: Literal["diurnal"]
    mean_gap: Seconds = Field(gt=0)
    """Over a day."""


class BurstJoin(Batches):
    """Devices join in batches, in random order, with exponential gaps between batches."""

    kind: Literal["burst"]


class ListedJoin(Settings):
    """One joining time a device, in fleet order."""

    kind: Literal["list"]
    times: list[Seconds]


class TracedJoin(Settings):
    """Joining times in fleet order from the column time_s of a CSV file, in seconds."""

    kind: Literal["trace"]
    path: FilePath


class DataPresent(Settings):
    """All of a device's samples are there when it joins."""

    kind: Literal["present"]


class DataStream(Settings):
    """Fresh samples reach each device as a Poisson stream from the moment it joins."""

    kind: Literal["poisson"]
    rate: PerSecond = Field(gt=0)


class DataDiurnal(Daily):
    """Fresh samples reach each device at a rate that follows the hour of the day, from the moment
    it joins.
    """

    kind: Literal["diurnal"]
    rate: PerSecond = Field(gt=0)
    """Over a day."""


class DataBurst(Batches):
    """Fresh samples reach each device in batches, with exponential gaps, from the moment it
    joins.
    """

    kind: Literal["burst"]


class DataTraced(Settings):
    """Fresh samples reach each device as recorded, from the moment it joins: a CSV file with the
    column time_s.

    With a column device each device takes one of the records at random.
    """

    kind: Literal["trace"]
    path: FilePath
    period: Seconds | None = None
    """After which a record repeats; without it a record must be long enough."""


AnyJoin = Annotated[
    AtOnce | PoissonJoin | DiurnalJoin | BurstJoin | ListedJoin | TracedJoin,
    Field(discriminator="kind"),
]
AnyData = Annotated[
    DataPresent | DataStream | DataDiurnal | DataBurst | DataTraced, Field(discriminator="kind")
]


class Drift(Settings):
    """A device's texts come in an order in which one half of the labels (or domains) gives way to
    the other.
    """

    kind: Literal["gradual", "sudden"]
    """In a line over all of the device's texts, or at once in their middle."""
    by: Literal["label", "domain"] = "label"
    """What drifts: the labels, or the data set's own client column."""
    strength: float = Field(1.0, ge=0, le=1)
    """0: no drift; 1: from one half alone to the other half alone."""
