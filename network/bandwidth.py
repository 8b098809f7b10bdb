"""Capacity that changes with time: piecewise-constant traces, read from a file or drawn from a
fitted process.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import erf, exp, floor, inf, isfinite, log, sqrt
from pathlib import Path

import numpy as np

from network.errors import NetworkError
from network.series import Rates, read_rates


class CapacityTrace:
    """A capacity in bit/s over time: `capacity_bps[i]` holds from `times_s[i]` to the next time.

    `times_s` starts at 0 and increases strictly. With `period_s` the trace repeats, else its last
    value holds for ever. `source`: what was read, if it comes from a file.
    """

    def __init__(
        self,
        times_s: Sequence[float],
        capacity_bps: Sequence[float],
        period_s: float | None = None,
        source: Rates | None = None,
    ):
        times = [float(t) for t in times_s]
        rates = [float(c) for c in capacity_bps]
        if not times or len(times) != len(rates):
            raise NetworkError(
                f"a trace needs as many capacities as times, and one at least: {len(times)}, "
                f"{len(rates)}"
            )
        if times[0] != 0 or any(not b > a for a, b in pairwise(times)) or not isfinite(times[-1]):
            raise NetworkError("a trace's times_s must start at 0, be finite and increase strictly")
        if not all(0 <= c < inf for c in rates):
            raise NetworkError("a trace's capacity_bps must be finite and >= 0")
        if period_s is not None and not times[-1] < period_s < inf:
            raise NetworkError(
                f"a trace's period_s ({period_s}) must lie after its last time ({times[-1]})"
            )
        self.times_s = times
        self.capacity_bps = rates
        self.period_s = period_s
        self.source = source
        self._lasts_s = inf if period_s is None else period_s  # each period
        self.peak_bps = max(rates)
        self._is_steady = min(rates) == self.peak_bps
        self._open = [step for step, rate in enumerate(rates) if rate > 0]
        ends = [*times[1:], period_s if period_s is not None else times[-1]]
        self._bits = [0.0]  # offered up to each time, and in a whole period
        for start, end, rate in zip(times, ends, rates, strict=True):
            self._bits.append(self._bits[-1] + (end - start) * rate)

    def at(self, t_s: float) -> float:
        """The capacity at time t, bit/s."""
        return self.capacity_bps[self._locate(t_s)[1]]

    def next_change(self, t_s: float) -> float:
        """The first time after t at which a new step begins, s; inf if none does, or if all steps
        are equal.
        """
        if self._is_steady:
            return inf
        period, step = self._locate(t_s)
        if step + 1 == len(self.times_s):
            if self.period_s is None:
                return inf
            period, step = period + 1, -1
        return self._start(period, step + 1)

    @property
    def closes(self) -> bool:
        """Whether it is ever 0."""
        return len(self._open) < len(self.capacity_bps)

    def opens(self, t_s: float) -> float:
        """The first time from t on at which the capacity is above 0, s; inf if there is none."""
        period, step = self._locate(t_s)
        if self.capacity_bps[step] > 0:
            return t_s
        later = bisect_right(self._open, step)
        if later < len(self._open):
            return self._start(period, self._open[later])
        return (
            self._start(period + 1, self._open[0])
            if self._open and self.period_s is not None
            else inf
        )

    def integral(self, start_s: float, end_s: float) -> float:
        """The bits that the capacity would carry from start to end, bit."""
        return self._offered(end_s) - self._offered(start_s)

    def _start(self, period: int, step: int) -> float:
        return self.times_s[step] + (period * self._lasts_s if period else 0.0)

    def _locate(self, t_s: float) -> tuple[int, int]:
        """(period, step) with start(step) <= t < start(next step), compared in the very floats that
        `_start` gives.
        """
        if not 0 <= t_s < inf:
            raise NetworkError(f"a trace is defined for finite times >= 0 s, not {t_s}")
        if self.period_s is None:
            return 0, bisect_right(self.times_s, t_s) - 1
        period = floor(t_s / self._lasts_s)
        if self._start(period, 0) > t_s:  # the quotient was rounded up
            period -= 1
        elif self._start(period + 1, 0) <= t_s:
            period += 1
        return period, bisect_right(
            self.times_s, t_s, key=lambda time: time + period * self._lasts_s
        ) - 1

    def _offered(self, t_s: float) -> float:
        period, step = self._locate(t_s)
        return (
            period * self._bits[-1]
            + self._bits[step]
            + (t_s - self._start(period, step)) * self.capacity_bps[step]
        )


def read_csv(path: str | Path, period_s: float | None = None) -> CapacityTrace:
    """A trace from a file: two columns, time in s and bit/s or the units that their names say, or
    packets delivered.

    The first row is time 0. A packet-delivery trace has its own period; `period_s` is for the
    others. `network.series` says what is read. Raises FileProblem with line and column,
    NetworkError for a period that is too short.
    """
    rates = read_rates(path, is_capacity=True)
    assert rates.times_s is not None, "a capacity is refused without times"
    try:
        return CapacityTrace(rates.times_s, rates.bps, rates.period_s or period_s, rates)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from None


def lognormal_ar1(
    mean_bps: float,
    cv: float,
    lag1: float,
    n_steps: int,
    rng: np.random.Generator,
    step_s: float = 1.0,
) -> CapacityTrace:
    """A stationary trace whose steps are log-normal, with the given mean, CV = sd/mean and lag-1
    autocorrelation.

    The logarithm is a Gaussian AR(1) of variance s2 = log(1 + cv^2); for the capacity itself to
    have autocorrelation r at one step the logarithm needs log(1 + r cv^2) / s2. The trace repeats
    after `n_steps * step_s` seconds.
    """
    if not (0 < mean_bps < inf and cv >= 0 and 0 <= lag1 < 1 and n_steps >= 1 and step_s > 0):
        raise NetworkError(
            "lognormal_ar1 needs mean_bps > 0, cv >= 0, 0 <= lag1 < 1, n_steps >= 1 and step_s > 0"
        )
    variance = log(1 + cv * cv)
    rho = log(1 + lag1 * cv * cv) / variance if cv else 0.0
    noise = rng.standard_normal(n_steps) * sqrt(variance)
    log_bps, state = [], noise[0]
    for shock in [None, *noise[1:]]:
        state = state if shock is None else rho * state + sqrt(1 - rho * rho) * shock
        log_bps.append(state)
    capacity_bps = [mean_bps * exp(x - variance / 2) for x in log_bps]
    return CapacityTrace([i * step_s for i in range(n_steps)], capacity_bps, n_steps * step_s)


def quantile_ar(
    quantiles_bps: Sequence[float],
    probabilities: Sequence[float],
    slow_share: float,
    slow_s: float,
    fast_lag1: float,
    n_steps: int,
    rng: np.random.Generator,
    step_s: float = 1.0,
) -> CapacityTrace:
    """A stationary trace whose steps have the given quantiles, and whose ranks wander on two time
    scales.

    A Gaussian copula: capacity = Q(Phi(z)) with z = sqrt(w) slow + sqrt(1 - w) fast, two AR(1) of
    variance 1, w the `slow_share`; z has autocorrelation w exp(-k step_s / slow_s) + (1 - w)
    fast_lag1^k at lag k. Q joins the quantiles (bit/s, at `probabilities` from 0 to 1) by straight
    lines. For links that are not log-normal (outages, two levels) and whose level drifts over
    minutes, which one AR(1) cannot do. The trace repeats after `n_steps * step_s` seconds.
    """
    rises = all(b >= a for a, b in pairwise(quantiles_bps)) and all(
        b > a for a, b in pairwise(probabilities)
    )
    spans = len(quantiles_bps) == len(probabilities) >= 2 and (
        probabilities[0],
        probabilities[-1],
    ) == (0, 1)
    if not (rises and spans and quantiles_bps[0] >= 0):
        raise NetworkError(
            "quantile_ar needs rising quantiles_bps, one for each of the probabilities from 0 to 1"
        )
    if not (
        0 <= slow_share <= 1 and slow_s > 0 and 0 <= fast_lag1 < 1 and n_steps >= 1 and step_s > 0
    ):
        raise NetworkError(
            "quantile_ar needs 0 <= slow_share <= 1, slow_s > 0, 0 <= fast_lag1 < 1, n_steps >= 1 "
            "and step_s > 0"
        )
    slow, fast = (_ar1(rho, n_steps, rng) for rho in (exp(-step_s / slow_s), fast_lag1))
    z = sqrt(slow_share) * slow + sqrt(1 - slow_share) * fast
    ranks = [0.5 * (1 + erf(x / sqrt(2))) for x in z]
    capacity_bps = np.interp(ranks, probabilities, quantiles_bps).tolist()
    return CapacityTrace([i * step_s for i in range(n_steps)], capacity_bps, n_steps * step_s)


def _ar1(rho: float, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A stationary Gaussian AR(1) of variance 1."""
    states = rng.standard_normal(n_steps)
    shock_sd = sqrt(1 - rho * rho)
    for i in range(1, n_steps):
        states[i] = rho * states[i - 1] + shock_sd * states[i]
    return states
