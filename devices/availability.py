"""When a device is there: on and off by a fitted daily rhythm or by a trace, as a pure function of
time.

`Availability` answers `is_on(t)` and `next_change(t)`, the same however often and in whichever
order it is asked: its sessions are made cycle by cycle (a day, or a repetition of the trace), each
from a stream of its own. Times are virtual seconds; a session is on in [start, end). A device that
is always on needs none of this.

The rhythm (docs/availability.md) is an alternating process: while a device is off, sessions start
as a Poisson process with the device's own rate and an hour-of-day profile; a session's length is
log-normal, its mean depending on the hour of its start and on the device. Short sessions and long
ones (through the night) are kinds of their own.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache, partial
from math import exp, fsum, inf, isfinite, log
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from inputs.files import read_yaml
from inputs.series import instants, read_table
from inputs.shipped import Shipped, is_file

PROFILES = Shipped(Path(__file__).parent / "availability_profiles", "mobifleet.rhythms")
MOST_BYTES = 2**20  # of a profile
DAY_S, HOUR_S = 86_400.0, 3_600.0
# of the rhythm before time 0, so that sessions begun in the evening are under way at midnight
WARM_UP_DAYS = 3
FOREVER_CYCLES = 3_660  # without a session after so many, none is expected any more


class AvailabilityError(ValueError):
    """A profile or a trace of availability that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Sessions:
    """One kind of session of a rhythm, e.g. through the night.

    `per_day`: mean rate of starts while off, over devices; `rate_shape`: shape of its gamma
    distribution over devices (the smaller, the more unlike). `start_weight` (24,): starts by hour
    of the day, mean 1. `log_length_mean` (24,) and `log_length_sd`: of a session's seconds, by the
    hour of its start; `device_sd`: spread of a device's own mean.
    """

    per_day: float
    rate_shape: float
    start_weight: tuple[float, ...]
    log_length_mean: tuple[float, ...]
    log_length_sd: float
    device_sd: float


@dataclass(frozen=True)
class Rhythm:
    """A fitted daily rhythm of a population of devices, as kinds of sessions that start
    independently.

    Sessions last from `shortest_s` to `longest_s`; off times last `shortest_s` at least.
    `never_ready`: share of devices that have no session at all. `observed` holds what the source
    measured, for comparison. Raises AvailabilityError.
    """

    name: str
    source: str
    never_ready: float
    shortest_s: float
    longest_s: float
    kinds: Mapping[str, Sessions]
    observed: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for kind, how in self.kinds.items():
            for field in ("start_weight", "log_length_mean"):
                if len(getattr(how, field)) != 24:
                    raise AvailabilityError(
                        f"{self.name}: {kind}.{field} has {len(getattr(how, field))} values, not 24"
                    )
            positive = (how.rate_shape, how.log_length_sd, fsum(how.start_weight))
            others = (how.per_day, how.device_sd, *how.start_weight)
            numbers = (*positive, *others, *how.log_length_mean)
            if not all(map(isfinite, numbers)) or min(positive) <= 0 or min(others) < 0:
                raise AvailabilityError(
                    f"{self.name}: rates, weights and spreads of {kind!r} must be finite, at least "
                    "0"
                )
        if not 0 <= self.never_ready <= 1 or not 0 < self.shortest_s < self.longest_s < inf:
            raise AvailabilityError(
                f"{self.name}: never_ready from 0 to 1 and 0 < shortest_s < longest_s, finite, are "
                "needed"
            )


class Availability:
    """When one device is on.

    `sessions_of(cycle, free_s)` gives the sessions (start_s, end_s) of one cycle of `cycle_s`
    seconds, in order, none starting before `free_s`, the first moment that earlier cycles leave
    free; cycles are asked for once each, in order, from `first_cycle`, which starts at `origin_s`.
    """

    def __init__(
        self,
        sessions_of: Callable[[int, float], Iterable[tuple[float, float]]],
        cycle_s: float,
        first_cycle: int = 0,
        origin_s: float = 0.0,
    ) -> None:
        self._sessions_of, self._cycle_s, self._origin_s = sessions_of, cycle_s, origin_s
        self._first = self._next = first_cycle
        self._starts_s: list[float] = []
        self._ends_s: list[float] = []

    def is_on(self, time_s: float) -> bool:
        """Whether the device is on at a moment; at the start of a session it is, at the end it is
        not.
        """
        session = self._at(time_s)
        return session >= 0 and time_s < self._ends_s[session]

    def next_change(self, time_s: float) -> float:
        """The first moment after `time_s` at which the device goes on or off; infinity if there is
        none.
        """
        session, last_cycle = self._at(time_s), self._next + FOREVER_CYCLES
        if session >= 0 and time_s < self._ends_s[session]:
            while self._ends_s[session] >= self._made_until_s and self._next < last_cycle:
                self._make()  # the next cycle may carry on where this session ends
            return self._ends_s[session] if self._ends_s[session] < self._made_until_s else inf
        while session + 1 == len(self._starts_s) and self._next < last_cycle:
            self._make()
        return self._starts_s[session + 1] if session + 1 < len(self._starts_s) else inf

    def share(self, from_s: float, to_s: float) -> float:
        """The share of a span of time in which the device is on."""
        on_s, now_s = 0.0, from_s
        while now_s < to_s:
            change_s = min(self.next_change(now_s), to_s)
            on_s += (change_s - now_s) * self.is_on(now_s)
            now_s = change_s
        return on_s / (to_s - from_s) if to_s > from_s else float(self.is_on(from_s))

    @property
    def _made_until_s(self) -> float:
        return self._origin_s + (self._next - self._first) * self._cycle_s

    def _at(self, time_s: float) -> int:
        while self._made_until_s <= time_s:
            self._make()
        return bisect_right(self._starts_s, time_s) - 1

    def _make(self) -> None:
        free_s = self._ends_s[-1] if self._ends_s else -inf
        for start_s, end_s in self._sessions_of(self._next, free_s):
            if self._ends_s and start_s <= self._ends_s[-1]:
                self._ends_s[-1] = end_s  # one session, seen as two because a cycle ends in it
            else:
                self._starts_s.append(start_s)
                self._ends_s.append(end_s)
        self._next += 1


def never() -> Availability:
    """A device that is never on."""
    return Availability(lambda cycle, free_s: (), cycle_s=FOREVER_CYCLES * DAY_S)


def by_rhythm(
    rhythm: Rhythm, rng_of: Callable[[str], np.random.Generator], starts_at_s: float = 0.0
) -> Availability:
    """The availability of one device of the rhythm's population.

    `rng_of("device")` and `rng_of("day 3")` give the device's streams: what it is like, and each
    day's draws. `starts_at_s`: the time of day at virtual time 0, seconds after midnight.
    """
    own = rng_of("device")
    is_never = own.random() < rhythm.never_ready
    kinds = [_Own.draw(kind, own) for kind in rhythm.kinds.values()]
    if is_never or not any(kind.starts_by_hour[-1] > 0 for kind in kinds):
        return never()

    def sessions_of(day: int, free_s: float) -> list[tuple[float, float]]:
        rng, made = rng_of(f"day {day}"), []
        candidates = sorted(
            (hour, number, u) for number, kind in enumerate(kinds) for hour, u in kind.starts(rng)
        )
        for hour, number, u in candidates:
            start_s = day * DAY_S + hour * HOUR_S - starts_at_s
            if start_s >= free_s + rhythm.shortest_s:
                free_s = start_s + kinds[number].length_s(
                    hour, u, rhythm.shortest_s, rhythm.longest_s
                )
                made.append((start_s, free_s))
        return made

    return Availability(sessions_of, DAY_S, -WARM_UP_DAYS, -WARM_UP_DAYS * DAY_S - starts_at_s)


@dataclass(frozen=True)
class _Own:
    """One device's sessions of one kind: expected starts from midnight to the end of each hour, own
    mean length.
    """

    kind: Sessions
    starts_by_hour: np.ndarray
    shift: float

    @classmethod
    def draw(cls, kind: Sessions, rng: np.random.Generator) -> "_Own":
        per_day = rng.gamma(kind.rate_shape, kind.per_day / kind.rate_shape)
        share = np.cumsum([0.0, *kind.start_weight]) / fsum(kind.start_weight)
        return cls(kind, per_day * share, kind.device_sd * rng.standard_normal())

    def starts(self, rng: np.random.Generator) -> list[tuple[float, float]]:
        """A day's candidates: (hour of the day, uniform for the length) of each."""
        draws = rng.random((rng.poisson(self.starts_by_hour[-1]), 2))
        hours = np.interp(draws[:, 0] * self.starts_by_hour[-1], self.starts_by_hour, np.arange(25))
        return list(zip(hours.tolist(), draws[:, 1].tolist(), strict=True))

    def length_s(self, hour: float, u: float, shortest_s: float, longest_s: float) -> float:
        """The quantile u of the log-normal length, cut to what a session may last."""
        law = NormalDist(
            self.kind.log_length_mean[min(int(hour), 23)] + self.shift, self.kind.log_length_sd
        )
        low, high = law.cdf(log(shortest_s)), law.cdf(log(longest_s))
        inside = min(max(low + u * (high - low), 1e-12), 1 - 1e-12)
        return min(max(exp(law.inv_cdf(inside)), shortest_s), longest_s)


def by_trace(
    intervals: Sequence[tuple[float, float]], period_s: float, shift_s: float = 0.0
) -> Availability:
    """The availability that a trace recorded, repeated after `period_s`; at virtual time 0 the
    trace is at `shift_s`.

    `intervals`: (start_s, end_s) within [0, period_s], rising and apart.
    """
    if not intervals:
        return never()

    def sessions_of(cycle: int, free_s: float) -> Iterable[tuple[float, float]]:
        return (
            (cycle * period_s + start - shift_s, cycle * period_s + end - shift_s)
            for start, end in intervals
        )

    first = int(shift_s // period_s)
    return Availability(sessions_of, period_s, first, first * period_s - shift_s)


# --- files


def names() -> list[str]:
    """The shipped rhythms, then those of installed packages."""
    return [*PROFILES]


def load(name: str, folder: Path = Path()) -> Rhythm:
    """A shipped rhythm by name, or one of your own by the path of its YAML file, which is looked
    for below `folder` and then in the working directory; AvailabilityError says what is wrong.
    """
    path = PROFILES.file(name, folder)
    if not is_file(name) and name not in PROFILES:
        near = get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AvailabilityError(
            f"no rhythm is called {name!r}{hint} (there are: {', '.join(names())})"
        )
    return _read(path) if is_file(name) else _named(path)


@cache
def _named(path: Path) -> Rhythm:
    return _read(path)


def _read(path: Path) -> Rhythm:
    data = read_yaml(path, MOST_BYTES)
    if not isinstance(data, dict) or not isinstance(data.get("kinds"), dict):
        raise AvailabilityError(
            f"{path}: a rhythm is a mapping with kinds of sessions; see those in {PROFILES.folder}"
        )
    try:
        kinds = {str(key): _sessions(kind) for key, kind in data["kinds"].items()}
        return Rhythm(**{**data, "kinds": kinds})
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise AvailabilityError(
            f"{path}: not a rhythm ({' '.join(str(error).split())[:200]})"
        ) from None


def _sessions(kind: Mapping[str, Any]) -> Sessions:
    names = [field.name for field in fields(Sessions)]
    if set(kind) != set(names):
        raise ValueError(f"a kind of sessions has {', '.join(names)}, and nothing else")
    return Sessions(
        per_day=float(kind["per_day"]),
        rate_shape=float(kind["rate_shape"]),
        start_weight=_floats(kind["start_weight"]),
        log_length_mean=_floats(kind["log_length_mean"]),
        log_length_sd=float(kind["log_length_sd"]),
        device_sd=float(kind["device_sd"]),
    )


def _floats(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a list of numbers is needed, not {str(values)[:40]!r}")
    return tuple(map(float, values))


@dataclass(frozen=True)
class AvailabilityTrace:
    """Recorded availability: intervals (start_s, end_s) of each device within [0, period_s], rising
    and apart.
    """

    devices: Mapping[str, tuple[tuple[float, float], ...]]
    period_s: float

    def of(self, rng: np.random.Generator, shifted: bool) -> Availability:
        """One of the trace's devices, drawn at random; `shifted` begins it at a random whole
        day.
        """
        names, days = list(self.devices), max(1, int(self.period_s // DAY_S))
        name, day = names[rng.integers(len(names))], int(rng.integers(days))
        return by_trace(self.devices[name], self.period_s, shifted * day * DAY_S)


def read_trace(path: Path, period_s: float | None = None) -> AvailabilityTrace:
    """A trace from a table with the columns device, ready_start_s and ready_end_s (or _ms, or
    dates).

    The trace's time 0 is the midnight before its first interval, with days counted from 0 s of the
    file's clock; the period defaults to whole days until the last interval has ended. An interval
    that ends where it starts names a device that is never ready. Rows may come in any order, and
    intervals of one device may touch or overlap. Raises FileProblem with line and column,
    AvailabilityError for a period that is too short.
    """
    table = read_table(path)
    who = table.place_of(lambda words: words == ["device"], "device")
    at = [
        table.place_of(partial(_begins, ["ready", edge]), f"ready_{edge}_s")
        for edge in ("start", "end")
    ]
    starts, ends = (instants(table, place) for place in at)
    found: dict[str, list[tuple[float, float]]] = {}
    for row, (device, start, end) in enumerate(
        zip(table.cells(who), starts.seconds, ends.seconds, strict=True)
    ):
        if not device:
            raise table.problem(row, who, "a device is missing")
        if end < start:
            raise table.problem(
                row, at[1], f"an interval from {start:g} to {end:g} s; end it after its start"
            )
        found.setdefault(device, []).append((start, end))
    origin = min(start for intervals in found.values() for start, _ in intervals) // DAY_S * DAY_S
    last = max(end for intervals in found.values() for _, end in intervals) - origin
    period = max(1.0, -(-last // DAY_S)) * DAY_S if period_s is None else period_s
    if last > period:
        raise AvailabilityError(
            f"{path}: lasts {last:g} s, more than the period of {period:g} s: give a longer one"
        )
    own = {
        name: _merged([(a - origin, b - origin) for a, b in found[name] if b > a])
        for name in sorted(found)
    }
    return AvailabilityTrace(own, period)


def _begins(with_words: list[str], words: list[str]) -> bool:
    return words[: len(with_words)] == with_words


def _merged(
    intervals: Iterable[tuple[float, float]], gap_s: float = 0.0
) -> tuple[tuple[float, float], ...]:
    """Intervals in order, those no more than `gap_s` apart made one."""
    made: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if made and start - made[-1][1] <= gap_s:
            made[-1] = made[-1][0], max(made[-1][1], end)
        else:
            made.append((start, end))
    return tuple(made)
