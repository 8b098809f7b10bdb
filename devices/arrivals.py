"""When devices join, and when data reach a device. Pure functions; every random generator is passed
in.

Four ways for both: evenly in time (Poisson), by the hour of the day (a Poisson process whose rate
follows a profile), in bursts, and as listed or recorded.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path

import numpy as np

from inputs.series import instants, read_table

HOUR_S, DAY_S = 3_600.0, 86_400.0


def join_together(count: int, at_s: float = 0.0) -> np.ndarray:
    """Joining times (count,) in seconds: everyone at `at_s`."""
    return np.full(count, float(at_s))


def join_poisson(
    count: int,
    mean_gap_s: float,
    gap_rng: np.random.Generator,
    order_rng: np.random.Generator | None = None,
    start_s: float = 0.0,
) -> np.ndarray:
    """Joining times (count,) in seconds, indexed by fleet position: a Poisson process with the
    given mean gap.

    Gaps are exponential, the first one counted from `start_s`. With `order_rng` devices come in a
    shuffled order, as they should unless the study is about order: fleets are written group by
    group. Without it they come in fleet order. The shuffle sorts one uniform key per device, so a
    device appended to the fleet joins somewhere in between and leaves the order of the others
    alone. Raises `ValueError` unless `mean_gap_s` is positive.
    """
    return _joining_s(
        poisson(count, _above_zero(mean_gap_s, "mean gap", "s"), gap_rng), order_rng, start_s
    )


def join_diurnal(
    count: int,
    mean_gap_s: float,
    hour_weight: Sequence[float],
    gap_rng: np.random.Generator,
    order_rng: np.random.Generator | None = None,
    starts_at_s: float = 0.0,
) -> np.ndarray:
    """Joining times (count,) in seconds: as `join_poisson`, but at a rate that follows the hour of
    the day.

    `mean_gap_s` is the mean over a day; `hour_weight` (24,) says how the rate is spread over it;
    `starts_at_s` is the time of day at time 0. Raises `ValueError` as `by_hour` does.
    """
    steady_s = poisson(count, _above_zero(mean_gap_s, "mean gap", "s"), gap_rng)
    return _joining_s(by_hour(steady_s, hour_weight, starts_at_s), order_rng)


def join_burst(
    count: int,
    size: int,
    mean_gap_s: float,
    gap_rng: np.random.Generator,
    order_rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Joining times (count,) in seconds: `size` devices at once, with exponential gaps between the
    batches.

    Raises `ValueError` unless gap and size are positive.
    """
    return _joining_s(
        bursts(count, size, _above_zero(mean_gap_s, "mean gap", "s"), gap_rng), order_rng
    )


def _joining_s(
    times_s: np.ndarray, order_rng: np.random.Generator | None, start_s: float = 0.0
) -> np.ndarray:
    if order_rng is None:
        return start_s + times_s
    joining_s = np.empty(len(times_s))
    joining_s[np.argsort(order_rng.random(len(times_s)), kind="stable")] = start_s + times_s
    return joining_s


def join_listed(times_s: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    """Joining times (count,) as listed, in fleet order; raises `ValueError` if there are not
    `count` valid times.
    """
    listed_s = np.asarray(times_s, dtype=float)
    if listed_s.shape != (count,):
        raise ValueError(
            f"{listed_s.size} joining times listed for {count} devices; give one per device"
        )
    if not (np.isfinite(listed_s).all() and (listed_s >= 0).all()):
        raise ValueError("joining times must be finite and at least 0 s")
    return listed_s


def data_present(samples: int, start_s: float = 0.0) -> np.ndarray:
    """Arrival times (samples,) in seconds of data that are all on the device from `start_s`."""
    return np.full(samples, float(start_s))


def data_poisson(
    samples: int, rate_per_s: float, rng: np.random.Generator, start_s: float = 0.0
) -> np.ndarray:
    """Arrival times (samples,) in seconds, rising: fresh samples as a Poisson stream of
    `rate_per_s` from `start_s`.

    Raises `ValueError` unless the rate is positive.
    """
    return start_s + poisson(
        samples, 1.0 / _above_zero(rate_per_s, "rate", "samples per second"), rng
    )


def data_diurnal(
    samples: int,
    rate_per_s: float,
    hour_weight: Sequence[float],
    rng: np.random.Generator,
    start_s: float = 0.0,
    starts_at_s: float = 0.0,
) -> np.ndarray:
    """Arrival times (samples,) in seconds, rising: a Poisson stream whose rate follows the hour of
    the day.

    `rate_per_s` is the mean over a day; the rest as in `join_diurnal`.
    """
    steady_s = poisson(samples, 1.0 / _above_zero(rate_per_s, "rate", "samples per second"), rng)
    return start_s + by_hour(steady_s, hour_weight, starts_at_s + start_s)


def data_burst(
    samples: int, size: int, mean_gap_s: float, rng: np.random.Generator, start_s: float = 0.0
) -> np.ndarray:
    """Arrival times (samples,) in seconds, rising: `size` samples at once, with exponential gaps in
    between.
    """
    return start_s + bursts(samples, size, _above_zero(mean_gap_s, "mean gap", "s"), rng)


def data_traced(
    samples: int,
    times_s: Sequence[float] | np.ndarray,
    start_s: float = 0.0,
    period_s: float | None = None,
) -> np.ndarray:
    """Arrival times (samples,) in seconds, rising: as recorded from `start_s` on, over and over
    after `period_s`.

    Raises `ValueError` where a record without period is too short, or longer than its period.
    """
    recorded_s = np.sort(np.asarray(times_s, dtype=float))
    if period_s is None and len(recorded_s) < samples:
        raise ValueError(
            f"{len(recorded_s)} arrivals recorded for {samples} samples: record more, or give a "
            "period"
        )
    if period_s is not None and (not len(recorded_s) or recorded_s[-1] > period_s):
        raise ValueError(
            f"the period of {period_s:g} s must hold all recorded arrivals, at least one"
        )
    lap, place = np.divmod(np.arange(samples), max(len(recorded_s), 1))
    return start_s + recorded_s[place] + (0.0 if period_s is None else lap * period_s)


def read_times(path: Path) -> dict[str, np.ndarray]:
    """Recorded times in seconds of each device, from a table with the column time_s (or time_ms)
    and, if they differ, device.

    Without a device column there is one record, named "". Raises FileProblem with the line that is
    wrong.
    """
    table = read_table(path)
    at = table.place_of(lambda words: words[:1] == ["time"], "time_s")
    who = next((place for place, name in enumerate(table.names) if name.lower() == "device"), None)
    read = instants(table, at)
    if read.is_absolute:
        raise table.problem(
            0, at, "counts from 1970, and a run from 0: give seconds from its beginning"
        )
    found: dict[str, list[float]] = {}
    for row, time_s in enumerate(read.seconds):
        if time_s < 0:
            raise table.problem(
                row, at, f"must be a number of seconds, at least 0 (got {table.rows[row][at]!r})"
            )
        found.setdefault(table.rows[row][who].strip() if who is not None else "", []).append(time_s)
    return {name: np.array(found[name]) for name in sorted(found)}


def pick(records: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """One of the records at random."""
    return records[list(records)[rng.integers(len(records))]]


# --- point processes from time 0


def poisson(count: int, mean_gap_s: float, rng: np.random.Generator) -> np.ndarray:
    """The first `count` times, s, of a Poisson process."""
    return np.cumsum(rng.exponential(mean_gap_s, count))


def by_hour(
    steady_s: Iterable[float], hour_weight: Sequence[float], starts_at_s: float = 0.0
) -> np.ndarray:
    """Times of a steady process moved so that the rate follows the hour of the day: a Poisson
    process stays one.

    With weights of mean 1, W(t) = integral of the weight from time 0 to t; a time u moves to the t
    with W(t) = u, so that the rate at t is the steady rate times the weight. Raises `ValueError`
    unless there are 24 weights of at least 0, not all 0.
    """
    weight = np.asarray(hour_weight, dtype=float)
    if (
        weight.shape != (24,)
        or not np.isfinite(weight).all()
        or (weight < 0).any()
        or weight.sum() <= 0
    ):
        raise ValueError("hours: give 24 weights of at least 0, one of them above 0")
    clock_s = np.arange(25) * HOUR_S
    spent_s = np.concatenate([[0.0], np.cumsum(weight)]) * DAY_S / fsum(weight)
    before = np.interp(starts_at_s % DAY_S, clock_s, spent_s)
    day, left_s = np.divmod(np.asarray(steady_s, dtype=float) + before, DAY_S)
    hours = np.flatnonzero(np.diff(spent_s) > 0)
    hour = hours[np.searchsorted(spent_s[hours], left_s, side="right") - 1]
    in_hour = (left_s - spent_s[hour]) / (spent_s[hour + 1] - spent_s[hour])
    return day * DAY_S + (hour + in_hour) * HOUR_S - starts_at_s % DAY_S


def bursts(count: int, size: int, mean_gap_s: float, rng: np.random.Generator) -> np.ndarray:
    """The first `count` times, s, of batches of `size` with exponential gaps."""
    if size < 1:
        raise ValueError(f"size is {size}, allowed: at least 1")
    return np.repeat(np.cumsum(rng.exponential(mean_gap_s, -(-count // size))), size)[:count]


def _above_zero(value: float, name: str, unit: str) -> float:
    if not value > 0:
        raise ValueError(f"{name} is {value} {unit}, allowed: above 0")
    return value
