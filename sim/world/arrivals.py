"""When devices join and when texts reach them, as a scenario says it; the models are in
devices/arrivals.py.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from devices import arrivals as models
from devices import availability
from inputs.files import located
from sim.kernel.streams import Streams
from sim.scenario.arrivals import (
    AnyData,
    AnyJoin,
    BurstJoin,
    DataBurst,
    DataDiurnal,
    DataStream,
    DataTraced,
    DiurnalJoin,
    ListedJoin,
    PoissonJoin,
    TracedJoin,
)


def joining_times(how: AnyJoin, count: int, streams: Streams, folder: Path) -> np.ndarray:
    """When each device joins, seconds (count,); ValueError where that cannot be."""
    gaps, order = streams.rng("arrivals/gaps"), streams.rng("arrivals/order")
    match how:
        case PoissonJoin():
            return models.join_poisson(count, how.mean_gap, gaps, order)
        case DiurnalJoin():
            return models.join_diurnal(
                count, how.mean_gap, _weights(how.hours), gaps, order, how.starts_at
            )
        case BurstJoin():
            return models.join_burst(count, how.size, how.mean_gap, gaps, order)
        case ListedJoin():
            return models.join_listed(how.times, count)
        case TracedJoin():
            times_s = np.concatenate(list(models.read_times(located(how.path, folder)).values()))
            return models.join_listed(times_s, count)
    return models.join_together(count)


def data_times(
    how: AnyData,
    samples: list[int],
    ids: list[str],
    joined_s: np.ndarray,
    streams: Streams,
    folder: Path,
) -> list[np.ndarray]:
    """When each of a device's so many samples is there, rising seconds, of every device (one where
    all are there at once); ValueError as above.
    """
    records = models.read_times(located(how.path, folder)) if isinstance(how, DataTraced) else {}

    def of(count: int, id_: str, start_s: float) -> np.ndarray:
        match how:
            case DataStream():
                return models.data_poisson(count, how.rate, streams.rng("fresh-data", id_), start_s)
            case DataDiurnal():
                rng = streams.rng("fresh-data", id_)
                return models.data_diurnal(
                    count, how.rate, _weights(how.hours), rng, start_s, how.starts_at
                )
            case DataBurst():
                return models.data_burst(
                    count, how.size, how.mean_gap, streams.rng("fresh-data", id_), start_s
                )
            case DataTraced():
                record = models.pick(records, streams.rng("fresh-data", id_))
                return models.data_traced(count, record, start_s, how.period)
        return present(min(count, 1), start_s)  # that of all

    present = functools.lru_cache(1)(models.data_present)  # one for those that join at once
    return [of(*device) for device in zip(samples, ids, joined_s, strict=True)]


def _weights(hours: list[float] | None) -> list[float]:
    if hours is not None:
        return hours
    observed = availability.load("charging-wifi-locked").observed
    assert observed is not None, "a shipped rhythm says what was measured"
    shares: list[float] = observed["share_by_hour"]
    return shares
