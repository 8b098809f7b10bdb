"""A battery: its charge is the integral of what goes in less what is drawn.

    dQ/dt = P_charger(t) - P_device(t),    0 <= Q <= capacity

The charger is a pure function of time (`Charger`: plugged in every day from one hour to another) or
somebody who plugs the device in when it is low (`TopUp`). Every function here is pure: the caller
holds the charge, in joules.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

DAY_S = 86_400.0
JOULES_PER_WH = 3_600.0
LONGEST_S = 100 * DAY_S


@dataclass(frozen=True)
class Charger:
    """Watts into the battery, every day from `from_s` to `until_s` seconds after midnight (over
    midnight if it is later).

    `start_s` is the time of day at which the virtual clock starts. Raises `ValueError` for hours
    outside the day, or from and until at the same time.
    """

    watts: float
    from_s: float
    until_s: float
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if not (
            0 <= self.from_s < DAY_S and 0 <= self.until_s < DAY_S and self.from_s != self.until_s
        ):
            raise ValueError(f"charging hours must be two different ones within 0 and 24 h: {self}")

    @property
    def daily_s(self) -> float:
        """Seconds a day that the device is plugged in."""
        return (self.until_s - self.from_s) % DAY_S

    def pieces(self, time_s: float) -> Iterator[tuple[float, float]]:
        """Without end, the watts from this time on: (watts, until when in seconds of the virtual
        clock).
        """
        since_s = (time_s + self.start_s - self.from_s) % DAY_S
        plugged = since_s < self.daily_s
        end_s = time_s + (self.daily_s if plugged else DAY_S) - since_s
        while True:
            yield (self.watts if plugged else 0.0), end_s
            plugged = not plugged
            end_s += self.daily_s if plugged else DAY_S - self.daily_s


@dataclass(frozen=True)
class Battery:
    """Joules that a battery holds when full, and the charger it hangs on from time to time (None:
    nobody plugs it in).
    """

    capacity_j: float
    charger: Charger | None = None

    def after(self, charge_j: float, start_s: float, end_s: float, drain_w: float) -> float:
        """Joules in it at `end_s`, when the device draws `drain_w` all the time from `start_s`
        on.
        """
        for watts, until_s in self._pieces(start_s):
            stop_s = min(until_s, end_s)
            charge_j = min(
                self.capacity_j, max(0.0, charge_j + (watts - drain_w) * (stop_s - start_s))
            )
            start_s = stop_s
            if until_s >= end_s:
                return charge_j
        raise AssertionError("the pieces of a charger have no end")

    def seconds_until(
        self,
        level_j: float,
        charge_j: float,
        start_s: float,
        drain_w: float,
        within_s: float = math.inf,
    ) -> float:
        """Seconds until the charge crosses `level_j`, up or down; infinite if it does not
        `within_s` or a hundred days.
        """
        if charge_j == level_j:
            return 0.0
        falling = charge_j > level_j
        now_s = start_s
        within_s = min(within_s, LONGEST_S)
        for watts, until_s in self._pieces(start_s):
            net_w = watts - drain_w
            end_j = (
                min(self.capacity_j, max(0.0, charge_j + net_w * (until_s - now_s)))
                if net_w
                else charge_j
            )
            if (end_j <= level_j) if falling else (end_j >= level_j):
                seconds = now_s - start_s + (level_j - charge_j) / net_w
                return seconds if seconds <= within_s else math.inf
            if until_s - start_s >= within_s:
                return math.inf
            charge_j, now_s = end_j, until_s
        raise AssertionError("the pieces of a charger have no end")

    def lasts_s(self, charge_j: float, start_s: float, drain_w: float) -> float:
        """Seconds that it will last at least; exact unless the charger comes or goes before it is
        empty.
        """
        if drain_w <= 0:
            return math.inf
        watts, until_s = next(self._pieces(start_s))
        alone_s = charge_j / (drain_w - watts) if drain_w > watts else math.inf
        return max(charge_j / drain_w, min(alone_s, until_s - start_s))

    def _pieces(self, time_s: float) -> Iterator[tuple[float, float]]:
        return iter([(0.0, math.inf)]) if self.charger is None else self.charger.pieces(time_s)


@dataclass(frozen=True)
class TopUp:
    """Somebody plugs the device in whenever the charge is down to `low_j`, and unplugs it at
    `goal_j`.
    """

    watts: float
    low_j: float
    goal_j: float

    def seconds(self, charge_j: float, drain_w: float) -> float:
        """Seconds from plugging in until the goal; infinite if the charger does not outweigh the
        drain.
        """
        if charge_j >= self.goal_j:
            return 0.0
        return (
            (self.goal_j - charge_j) / (self.watts - drain_w) if self.watts > drain_w else math.inf
        )

    def lasts_s(self, charge_j: float, is_plugged: bool, drain_w: float) -> float:
        """Seconds until it is empty; infinite if the charger outweighs the drain."""
        if drain_w <= self.watts:
            return math.inf
        before_s = (
            0.0 if is_plugged or charge_j <= self.low_j else (charge_j - self.low_j) / drain_w
        )
        return before_s + (charge_j - before_s * drain_w) / (drain_w - self.watts)

    def after(
        self, charge_j: float, is_plugged: bool, seconds: float, drain_w: float
    ) -> tuple[float, bool]:
        """Charge in joules, and whether it is plugged in, after so many seconds of a constant
        drain.
        """
        while True:
            is_plugged = charge_j < self.goal_j if is_plugged else charge_j <= self.low_j
            if is_plugged:
                turn_s = self.seconds(charge_j, drain_w)
            else:
                turn_s = (charge_j - self.low_j) / drain_w if drain_w > 0 else math.inf
            if turn_s > seconds:
                return max(
                    0.0, charge_j + (self.watts * is_plugged - drain_w) * seconds
                ), is_plugged
            charge_j = self.goal_j if is_plugged else self.low_j
            seconds -= turn_s
