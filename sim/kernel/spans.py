"""Letting time pass on the record: every span of a device or the server is made here, and what it
costs in joules.

    P(t) = idle + sum over open spans of (P_span - idle)
    while any span of the actor is open (devices/power.py)

The idle power of a moment is borne by the span that has been open longest; one that joins it adds
what it draws above idle. So joules of spans that overlap add up to the integral of the power, and a
span alone has all of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import simpy

from sim.kernel.recorder import Recorder
from sim.kernel.work import Steps

TransferProgress = Callable[[], tuple[float, float, float]]
AWAY = ("offline", "battery")  # why a device goes that may come back


class PowerSource(Protocol):
    """What an actor draws from, told of every change (a battery: `sim.world.charge`)."""

    def held_j(self) -> float:
        """What it holds now, J; called before a change."""

    def follow(self) -> None:
        """Called after a change: it may be empty earlier, or later."""


class RecordedWorld(Protocol):
    """Of a world, what a span needs."""

    @property
    def env(self) -> simpy.Environment:
        """The clock; `env.now` is the virtual time, s."""

    @property
    def recorder(self) -> Recorder:
        """Keeps the spans."""


class Actor(Protocol):
    """Whose spans are recorded: a device, or the server."""

    @property
    def id(self) -> str:
        """What its spans are kept under."""

    @property
    def world(self) -> RecordedWorld:
        """Where it acts."""

    @property
    def meter(self) -> EnergyMeter:
        """Its power over time."""


class Draw:
    """What an open span draws: watts of the whole actor if it were alone, and perhaps joules for
    each byte beside them.

    `progress` tells the bytes that have passed, the most that pass a second as things are, and
    until when they are so.
    """

    __slots__ = ("counted_j", "j_per_byte", "progress", "since_s", "watts")

    def __init__(
        self, since_s: float, watts: float, j_per_byte: float, progress: TransferProgress | None
    ) -> None:
        self.since_s = since_s
        self.watts = watts
        self.j_per_byte = j_per_byte
        self.progress = progress
        self.counted_j = 0.0


class EnergyMeter:
    """The power of one actor over time, and the joules of each of its spans; a `battery` is told of
    every change.
    """

    __slots__ = ("_bears_since_s", "_open", "battery", "env", "idle_w")

    def __init__(self, env: simpy.Environment, idle_w: float) -> None:
        self.env, self.idle_w = env, idle_w
        self.battery: PowerSource | None = None
        self._open: tuple[Draw, ...] = ()  # the first of them bears the idle power,
        self._bears_since_s = 0.0  # from this moment on

    @property
    def above_idle_w(self) -> float:
        """What all open spans draw now above idle."""
        return math.fsum(draw.watts - self.idle_w for draw in self._open)

    def new_byte_j(self) -> float:
        """Joules that the bytes of open spans have taken since the last time somebody asked."""
        new_j = 0.0
        for draw in self._open:
            if draw.j_per_byte and draw.progress is not None:
                byte_j = draw.j_per_byte * draw.progress()[0]
                new_j, draw.counted_j = new_j + byte_j - draw.counted_j, byte_j
        return new_j

    def most_byte_w(self) -> tuple[float, float]:
        """Watts that the bytes of open spans may take at most, and until when that holds, s."""
        most_w, until_s = 0.0, math.inf
        for draw in self._open:
            if draw.j_per_byte and draw.progress is not None:
                _, bytes_per_s, holds_until_s = draw.progress()
                most_w += draw.j_per_byte * bytes_per_s
                until_s = min(until_s, holds_until_s)
        return most_w, until_s

    def begin(
        self, watts: float, j_per_byte: float = 0.0, progress: TransferProgress | None = None
    ) -> Draw:
        """A span opens."""
        if self.battery:
            self.battery.held_j()
        now = self.env.now
        if not self._open:
            self._bears_since_s = now
        draw = Draw(now, watts, j_per_byte, progress)
        self._open += (draw,)
        if self.battery:
            self.battery.follow()
        return draw

    def end(self, draw: Draw, nbytes: float = 0.0) -> float:
        """The span closes, after so many bytes; returns all joules that it bears."""
        if self.battery:
            self.battery.held_j()
        now = self.env.now
        spared_s = seconds = now - draw.since_s  # of idle power, which another span bore
        if draw is self._open[0]:
            spared_s = self._bears_since_s - draw.since_s
            self._bears_since_s = now
        self._open = tuple(one for one in self._open if one is not draw) if self._open[1:] else ()
        if self.battery:
            self.battery.follow()
        return draw.watts * seconds - self.idle_w * spared_s + draw.j_per_byte * nbytes


def recorded(
    who: Actor,
    kind: str,
    event: simpy.Event,
    watts: float,
    *,
    seconds: float = 0.0,
    flop: float = 0.0,
    nbytes: int = 0,
    flows: Sequence[int] = (),
    outcome: str = "ok",
    j_per_byte: float = 0.0,
    abort: Callable[[simpy.Event], float] | None = None,
    progress: Callable[[simpy.Event], tuple[float, float, float]] | None = None,
    done: Callable[[float], float] | None = None,
    landed: Callable[[], None] | None = None,
) -> Steps[None]:
    """Wait for an event and record the span; an interrupted one holds the share of its FLOP, or the
    bytes, until then, and has not `landed`.
    """
    env, meter = who.world.env, who.meter
    draw = meter.begin(watts, j_per_byte, progress and functools.partial(progress, event))
    start = draw.since_s
    try:
        yield event
        if landed is not None:
            landed()
    except simpy.Interrupt as stop:
        if kind != "wait" or stop.cause not in AWAY:  # who only waited loses nothing by going
            outcome = str(stop.cause)
        flop *= _share(env.now - start, seconds) if done is None else done(env.now - start)
        nbytes = int(abort(event)) if abort else nbytes
        raise
    finally:
        joules, now = meter.end(draw, nbytes), env.now
        if kind != "wait" or now > start:  # no time passed, nobody waited
            who.world.recorder.span(who.id, kind, start, now, nbytes, flop, joules, outcome, flows)


def _share(passed_s: float, of_s: float) -> float:
    return passed_s / of_s if of_s > 0 else 1.0


@contextmanager
def waiting(device: Actor) -> Iterator[None]:
    """Record that a device waits, idle, while the server works for it; one that is stopped takes
    its batch along.
    """
    env = device.world.env
    draw = device.meter.begin(device.meter.idle_w)
    outcome = "ok"
    try:
        yield
    except simpy.Interrupt as stop:
        outcome = str(stop.cause)
        raise
    finally:
        joules = device.meter.end(draw)
        device.world.recorder.span(
            device.id, "wait", draw.since_s, env.now, 0, 0.0, joules, outcome
        )
