"""Background load: how much of a device is left while other apps run on it, as a function of time.

An alternating process: quiet spells, in which the speed is what was measured up to a small
log-normal factor, and busy spells, in which a uniform share of it is left. Spells last exponential
times. The factor belongs to the moment, not to the call: two pieces of work in one spell see the
same load, and asking changes nothing.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np

from devices.thermal import Throttle


class Spells:
    """A piecewise constant function of time, drawn spell by spell from a stream of its own as far
    as it is asked for.

    `draw()` gives the next spell's (seconds, value); what has been drawn stays, so the answer at a
    time never depends on what was asked before.
    """

    def __init__(self, draw: Callable[[], tuple[float, float]]) -> None:
        self._draw = draw
        self._ends_s: list[float] = []
        self._values: list[float] = []

    def from_(self, time_s: float) -> Iterator[tuple[float, float]]:
        """The spell at this time (at least 0) and all after it, without end: (value, when it ends
        in seconds).
        """
        place = bisect_right(self._ends_s, time_s)
        while True:
            if place == len(self._ends_s):
                seconds, value = self._draw()
                self._ends_s.append((self._ends_s[-1] if self._ends_s else 0.0) + seconds)
                self._values.append(value)
            if self._ends_s[place] > time_s:
                yield self._values[place], self._ends_s[place]
            place += 1

    def at(self, time_s: float) -> float:
        """The value at this time; a spell holds from its start until just before its end."""
        return next(self.from_(time_s))[0]


ALWAYS_QUIET = Spells(lambda: (math.inf, 1.0))


def background_load(
    rng: np.random.Generator,
    quiet_s: float = 340.0,
    busy_s: float = 60.0,
    left: tuple[float, float] = (0.5, 0.9),
    sigma: float = 0.05,
) -> Spells:
    """The factor on a device's speed: log-normal(0, sigma) in quiet spells, uniform within `left`
    in busy ones.

    `quiet_s` and `busy_s` are mean lengths of spells; their defaults give 85 % quiet time. All
    defaults are estimated, as no measured distribution was found: sweep them. The process starts in
    its stationary state.
    """
    busy = bool(rng.random() < busy_s / (quiet_s + busy_s))

    def draw() -> tuple[float, float]:
        nonlocal busy
        now, busy = busy, not busy
        seconds = rng.exponential(busy_s if now else quiet_s)
        # both, so that settings do not shift the stream
        uniform = rng.random()
        normal = rng.standard_normal()
        return float(seconds), left[0] + (left[1] - left[0]) * uniform if now else math.exp(
            sigma * normal
        )

    return Spells(draw)


def work_seconds(
    throttle: Throttle, load: Spells, heat: float, start_s: float, nominal_s: float
) -> float:
    """Seconds that work of so many nominal ones takes from `start_s`: the t whose integral of speed
    x load is nominal_s.

    Exact: within a spell the load is constant and the throttle's integral has a closed form.
    """
    now_s, missing_s = start_s, nominal_s
    for factor, end_s in load.from_(start_s):
        room_s = factor * throttle.done_s(heat, end_s - now_s)
        if room_s >= missing_s:
            break
        missing_s -= room_s
        heat = throttle.after_work(heat, end_s - now_s)
        now_s = end_s
    return now_s - start_s + throttle.seconds(heat, missing_s / factor)


def work_done_s(
    throttle: Throttle, load: Spells, heat: float, start_s: float, seconds: float
) -> float:
    """Nominal seconds of work that get done in so many real ones from `start_s`."""
    now_s = start_s
    done_s = 0.0
    stop_s = start_s + seconds
    for factor, end_s in load.from_(start_s):
        until_s = min(end_s, stop_s)
        done_s += factor * throttle.done_s(heat, until_s - now_s)
        if end_s >= stop_s:
            break
        heat, now_s = throttle.after_work(heat, until_s - now_s), until_s
    return done_s
