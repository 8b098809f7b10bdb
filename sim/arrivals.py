"""When devices join and when texts reach them, as a scenario says it; the models are in devices/arrivals.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from devices import arrivals as models
from devices import availability
from inputs.files import located
from sim.named_files import FilePath
from sim.settings import Settings
from sim.streams import Streams
from sim.units import PerSecond, Seconds

DayTime = Annotated[Seconds, Field(lt=models.DAY_S)]
Hours = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=24, max_length=24)]
"""24 weights of the hours of the day; default those at which phones are ready (`charging-wifi-locked`)."""


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
    """Fresh samples reach each device at a rate that follows the hour of the day, from the moment it joins."""

    kind: Literal["diurnal"]
    rate: PerSecond = Field(gt=0)
    """Over a day."""


class DataBurst(Batches):
    """Fresh samples reach each device in batches, with exponential gaps, from the moment it joins."""

    kind: Literal["burst"]


class DataTraced(Settings):
    """Fresh samples reach each device as recorded, from the moment it joins: a CSV file with the column time_s.

    With a column device each device takes one of the records at random.
    """

    kind: Literal["trace"]
    path: FilePath
    period: Seconds | None = None
    """After which a record repeats; without it a record must be long enough."""


AnyJoin = Annotated[
    AtOnce | PoissonJoin | DiurnalJoin | BurstJoin | ListedJoin | TracedJoin, Field(discriminator="kind")
]
AnyData = Annotated[DataPresent | DataStream | DataDiurnal | DataBurst | DataTraced, Field(discriminator="kind")]


def joining_times(how: AnyJoin, count: int, streams: Streams, folder: Path) -> np.ndarray:
    """When each device joins, seconds (count,); ValueError where that cannot be."""
    gaps, order = streams.rng("arrivals/gaps"), streams.rng("arrivals/order")
    match how:
        case PoissonJoin():
            return models.join_poisson(count, how.mean_gap, gaps, order)
        case DiurnalJoin():
            return models.join_diurnal(count, how.mean_gap, _weights(how.hours), gaps, order, how.starts_at)
        case BurstJoin():
            return models.join_burst(count, how.size, how.mean_gap, gaps, order)
        case ListedJoin():
            return models.join_listed(how.times, count)
        case TracedJoin():
            times_s = np.concatenate(list(models.read_times(located(how.path, folder)).values()))
            return models.join_listed(times_s, count)
    return models.join_together(count)


def data_times(
    how: AnyData, samples: list[int], ids: list[str], joined_s: np.ndarray, streams: Streams, folder: Path
) -> list[np.ndarray]:
    """When each of a device's so many samples is there, rising seconds, of every device; ValueError as above."""
    records = models.read_times(located(how.path, folder)) if isinstance(how, DataTraced) else {}

    def of(count: int, id_: str, start_s: float) -> np.ndarray:
        match how:
            case DataStream():
                return models.data_poisson(count, how.rate, streams.rng("fresh-data", id_), start_s)
            case DataDiurnal():
                rng = streams.rng("fresh-data", id_)
                return models.data_diurnal(count, how.rate, _weights(how.hours), rng, start_s, how.starts_at)
            case DataBurst():
                return models.data_burst(count, how.size, how.mean_gap, streams.rng("fresh-data", id_), start_s)
            case DataTraced():
                record = models.pick(records, streams.rng("fresh-data", id_))
                return models.data_traced(count, record, start_s, how.period)
        return models.data_present(count, start_s)

    return [of(*device) for device in zip(samples, ids, joined_s, strict=True)]


def _weights(hours: list[float] | None) -> list[float]:
    return availability.load("charging-wifi-locked").observed["share_by_hour"] if hours is None else hours
