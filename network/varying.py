"""Rates of one device's own: drawn from its stream as time goes on, or read from a trace that
starts somewhere else.

Both answer what a `CapacityTrace` answers, `at(t)` and `next_change(t)`, and are functions of time
alone: asked often, seldom or out of order, they say the same.
"""

from __future__ import annotations

from array import array
from math import exp, floor, inf, log, sqrt, ulp

import numpy as np

from network.bandwidth import CapacityTrace
from network.errors import NetworkError

PERIOD_STEPS = 1800  # half an hour at 1 s: 14 kB a device and direction, however long the run
DRAWN_AT_ONCE = 64


class VaryingRate:
    """A log-normal AR(1), as `bandwidth.lognormal_ar1` draws it, but drawn only as far as it has
    been asked for.

    Steps of `step_s` seconds with the given mean (bit/s), CV and lag-1 autocorrelation; repeats
    after `period_steps`.
    """

    closes, peak_bps = False, inf  # a log-normal rate is never 0, and has no highest

    def __init__(
        self,
        mean_bps: float,
        cv: float,
        lag1: float,
        rng: np.random.Generator,
        step_s: float = 1.0,
        period_steps: int = PERIOD_STEPS,
    ):
        if not (
            0 < mean_bps < inf
            and 0 <= cv < inf
            and 0 <= lag1 < 1
            and 0 < step_s < inf
            and period_steps >= 1
        ):
            raise NetworkError(
                "a varying rate needs mean_bps > 0, cv >= 0, 0 <= lag1 < 1, step_s > 0, "
                "period_steps >= 1"
            )
        self.step_s, self.period_steps = step_s, period_steps
        self._mean_bps = mean_bps
        self._variance = log(1 + cv * cv)
        self._rng = rng
        self._rho = log(1 + lag1 * cv * cv) / self._variance if cv else 0.0
        self._state: float | None = None
        self._bps = array("d")

    def at(self, t_s: float) -> float:
        """The rate at time t, bit/s."""
        step = self._step(t_s) % self.period_steps
        while step >= len(self._bps):
            self._draw()
        return self._bps[step]

    def next_change(self, t_s: float) -> float:
        """The first time after t at which a new step begins, s."""
        return (self._step(t_s) + 1) * self.step_s

    def opens(self, t_s: float) -> float:
        """The first time from t on at which the rate is above 0, s: t itself."""
        return t_s

    def _step(self, t_s: float) -> int:
        if not 0 <= t_s < inf:
            raise NetworkError(f"a varying rate is defined for finite times >= 0 s, not {t_s}")
        step = floor(t_s / self.step_s)
        if (step + 1) * self.step_s <= t_s:  # the quotient was rounded down,
            return step + 1
        return (
            step - 1 if step * self.step_s > t_s else step
        )  # or up: compared in the floats that are given out

    def _draw(self) -> None:
        deviation, shock = sqrt(self._variance), sqrt(1 - self._rho * self._rho)
        level_bps = self._mean_bps * exp(-self._variance / 2)
        for noise in (self._rng.standard_normal(DRAWN_AT_ONCE) * deviation).tolist():
            self._state = noise if self._state is None else self._rho * self._state + shock * noise
            self._bps.append(level_bps * exp(self._state))


class ShiftedTrace:
    """A trace that is read from `offset_s` on, so that devices that share it do not march in
    step.
    """

    def __init__(self, trace: CapacityTrace, offset_s: float):
        if not 0 <= offset_s < inf:
            raise NetworkError(f"a trace can be read from a finite time >= 0 s on, not {offset_s}")
        self.trace, self.offset_s = trace, offset_s
        self.closes, self.peak_bps = trace.closes, trace.peak_bps

    def at(self, t_s: float) -> float:
        """The rate at time t, bit/s."""
        return self.trace.at(t_s + self.offset_s)

    def next_change(self, t_s: float) -> float:
        """The first time after t at which a new step begins, s; inf if none does."""
        shifted_s = t_s + self.offset_s
        # Rounding could put the change on t itself, and whoever waits for it would wait for ever
        # without time passing.
        return max(self.trace.next_change(shifted_s) - self.offset_s, t_s + ulp(shifted_s))

    def opens(self, t_s: float) -> float:
        """The first time from t on at which the rate is above 0, s; inf if there is none."""
        shifted_s = t_s + self.offset_s
        opens_s = self.trace.opens(shifted_s)
        return t_s if opens_s == shifted_s else max(opens_s - self.offset_s, t_s + ulp(shifted_s))
