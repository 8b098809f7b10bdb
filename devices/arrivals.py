"""When devices join, and when data reach a device. Pure functions; every random generator is passed in."""

from collections.abc import Sequence

import numpy as np


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
    """Joining times (count,) in seconds, indexed by fleet position: a Poisson process with the given mean gap.

    Gaps are exponential, the first one counted from `start_s`. With `order_rng` devices come in a shuffled order, as
    they should unless the study is about order: fleets are written group by group. Without it they come in fleet order.
    The shuffle sorts one uniform key per device, so a device appended to the fleet joins somewhere in between and
    leaves the order of the others alone. Raises `ValueError` unless `mean_gap_s` is positive.
    """
    if not mean_gap_s > 0:
        raise ValueError(f"mean gap is {mean_gap_s} s, allowed: above 0")
    times_s = start_s + np.cumsum(gap_rng.exponential(mean_gap_s, count))
    if order_rng is None:
        return times_s
    joining_s = np.empty(count)
    joining_s[np.argsort(order_rng.random(count), kind="stable")] = times_s
    return joining_s


def join_listed(times_s: Sequence[float], count: int) -> np.ndarray:
    """Joining times (count,) as listed, in fleet order; raises `ValueError` if there are not `count` valid times."""
    listed_s = np.asarray(times_s, dtype=float)
    if listed_s.shape != (count,):
        raise ValueError(f"{listed_s.size} joining times listed for {count} devices; give one per device")
    if not (np.isfinite(listed_s).all() and (listed_s >= 0).all()):
        raise ValueError("joining times must be finite and at least 0 s")
    return listed_s


def data_present(samples: int, start_s: float = 0.0) -> np.ndarray:
    """Arrival times (samples,) in seconds of data that are all on the device from `start_s`."""
    return np.full(samples, float(start_s))


def data_poisson(samples: int, rate_per_s: float, rng: np.random.Generator, start_s: float = 0.0) -> np.ndarray:
    """Arrival times (samples,) in seconds, rising: fresh samples as a Poisson stream of `rate_per_s` from `start_s`.

    Raises `ValueError` unless the rate is positive.
    """
    if not rate_per_s > 0:
        raise ValueError(f"rate is {rate_per_s} samples per second, allowed: above 0")
    return start_s + np.cumsum(rng.exponential(1.0 / rate_per_s, samples))
