"""Throttling with recovery: a device slows down while it works and speeds up again while it rests.

The state is one number, heat h in [0, 1]; the speed is a share of the cold device's:

    busy:  dh/dt = (1 - h) / tau      idle:  dh/dt = -h / tau_recover      f = 1 - (1 - f_inf) h

From cold, under continuous load, f(t) = f_inf + (1 - f_inf) e^(-t / tau), the curve that measured
runs follow. Both solutions are closed forms, so the state after any history of work and rest is
exact, however the history is cut.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from devices.hardware import DeviceProfile

RECOVERY = 4.0  # tau_recover / tau; estimated at 3-5, as no measured series has pauses: sweep it


@dataclass(frozen=True)
class Throttle:
    """How one kind of device slows down; every function of it is pure, and `heat` is the only
    state.

    `floor` is f_inf, the share of the cold speed that is left after long work; `tau_s` and
    `recover_s` are the time constants of heating and cooling. Raises `ValueError` unless floor is
    in (0, 1] and both times are above 0.
    """

    floor: float
    tau_s: float
    recover_s: float

    def __post_init__(self) -> None:
        if not (0 < self.floor <= 1 and self.tau_s > 0 and self.recover_s > 0):
            raise ValueError(f"floor must be in (0, 1], both times above 0: {self}")

    def speed(self, heat: float) -> float:
        """Share of the cold device's speed at this heat."""
        return 1.0 - (1.0 - self.floor) * heat

    def after_work(self, heat: float, seconds: float) -> float:
        """Heat after so many seconds of work."""
        return 1.0 - (1.0 - heat) * math.exp(-seconds / self.tau_s)

    def after_rest(self, heat: float, seconds: float) -> float:
        """Heat after so many seconds of rest."""
        return heat * math.exp(-seconds / self.recover_s)

    def done_s(self, heat: float, seconds: float) -> float:
        """Nominal seconds of work that get done in so many real ones: the integral of the speed.

        f_inf t + (1 - f_inf) (1 - h) tau (1 - e^(-t / tau))
        """
        gone = -math.expm1(-seconds / self.tau_s)
        return self.floor * seconds + (1.0 - self.floor) * (1.0 - heat) * self.tau_s * gone

    def seconds(self, heat: float, nominal_s: float) -> float:
        """Seconds that work of so many nominal ones takes, begun at this heat: the inverse of
        `done_s`.

        Newton's method from below. The integral is increasing and concave, so each tangent stays
        above it: no step can pass the root, and each is at least as long as the work that is still
        missing. Between nominal and nominal / floor.
        """
        seconds = nominal_s
        for _ in range(100):  # quadratic: below ten in practice
            missing_s = nominal_s - self.done_s(heat, seconds)
            if missing_s <= 1e-15 * nominal_s:
                break
            seconds += missing_s / self.speed(self.after_work(heat, seconds))
        return seconds


def throttle_of(profile: DeviceProfile, recovery: float = RECOVERY) -> Throttle | None:
    """How a profile's device throttles, from its `sustained_factor` and `sustained_tau_s`; None if
    it does not.
    """
    if profile.sustained_factor >= 1 or profile.sustained_tau_s <= 0:
        return None
    return Throttle(
        profile.sustained_factor, profile.sustained_tau_s, recovery * profile.sustained_tau_s
    )


@dataclass(frozen=True)
class ThrottleFit:
    """A fitted curve rate(t) = burst (floor + (1 - floor) e^(-t / tau)): of a run from a cold
    start.
    """

    burst: float
    floor: float
    tau_s: float

    def rate(self, time_s: np.ndarray) -> np.ndarray:
        """Modelled rate at these times, in the unit of the fitted rates."""
        return self.burst * (
            self.floor + (1 - self.floor) * np.exp(-np.asarray(time_s, dtype=float) / self.tau_s)
        )


def fit(time_s: Sequence[float] | np.ndarray, rate: Sequence[float] | np.ndarray) -> ThrottleFit:
    """Fit the throttling curve to a measured rate under continuous work from a cold start, by least
    squares.

    `rate` may be in any unit (tokens, frames or passes per second). `floor` is kept in [0.05, 1],
    tau between one second and ten times the window. Raises `ValueError` for fewer than 10 samples,
    or ones that are not finite and above 0.
    """
    from scipy.optimize import least_squares

    t, y = np.asarray(time_s, dtype=float), np.asarray(rate, dtype=float)
    if t.shape != y.shape or t.size < 10:
        raise ValueError(
            f"a fit needs at least 10 times and as many rates, not {t.size} and {y.size}"
        )
    if not (np.isfinite(t).all() and np.isfinite(y).all() and (y > 0).all()):
        raise ValueError("times must be finite, rates finite and above 0")
    t = t - t[0]
    top, window_s = float(y[:5].mean()), float(t[-1])

    def residual(p: np.ndarray) -> np.ndarray:
        error: np.ndarray = ThrottleFit(*p).rate(t) * top - y
        return error

    bounds = ([0.1, 0.05, 1.0], [10.0, 1.0, 10 * window_s])
    best = min(
        (
            least_squares(residual, [1.0, 0.6, max(1.5, window_s * share)], bounds=bounds)
            for share in (0.02, 0.1, 0.5)
        ),
        key=lambda result: result.cost,  # three starts, as the curve may be steep, slow or flat
    )
    burst, floor, tau_s = map(float, best.x)
    return ThrottleFit(burst * top, floor, tau_s)
