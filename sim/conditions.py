"""What makes one device's day unlike its profile's: heat, background load, its battery and the memory others hold.

A scenario's `devices` section turns each of them on; all are off by default. `Conditions` holds the state of one device
and lives its pieces of work: how long each takes, and what cuts it short. The models are in `devices/`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import simpy
from pydantic import AfterValidator, Field, model_validator

from devices.load import ALWAYS_QUIET, background_load, work_done_s, work_seconds
from devices.memory import fits_at_s, pressure, shortage_at_s
from devices.thermal import RECOVERY, Throttle, throttle_of
from sim.charge import charge_of
from sim.settings import OnlyFor, Settings
from sim.spans import recorded
from sim.units import Seconds, Watts

if TYPE_CHECKING:
    from sim.actors import Device, Work
    from sim.streams import Streams


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first must not be above the second")
    return bounds


Share, Left = Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(gt=0, le=1)]
TimeOfDay = Annotated[Seconds, Field(lt=86_400)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_in_order)]
NO_THROTTLE = Throttle(1.0, 1.0, 1.0)


class BackgroundLoad(Settings):
    """Other apps: quiet spells alternate with busy ones, in which a part of the speed is left. All defaults estimated."""

    quiet: Seconds = Field(340.0, gt=0)
    """Mean length of a quiet spell."""
    busy: Seconds = Field(60.0, gt=0)
    """Mean length of a busy spell."""
    left: Annotated[tuple[Left, Left], AfterValidator(_in_order)] = (0.5, 0.9)
    """Least and most of the speed that is left in a busy spell."""
    sigma: float = Field(0.05, ge=0)
    """Of the log-normal factor of a quiet spell."""


class BatterySettings(Settings):
    """Devices whose profile has a `battery_wh` run on it; low, they stop computing until it is charged, empty, they are off."""

    only_for: ClassVar[OnlyFor] = {"starts_at": ("`hours`", lambda settings: settings.hours is not None)}
    initial: Shares = (0.3, 1.0)
    """Least and most of the charge at the start; drawn for each device."""
    stop_below: float = Field(0.2, ge=0, lt=1)
    """State of charge at which a device stops computing."""
    resume_at: float = Field(0.5, gt=0, lt=1)
    """State of charge at which it goes on."""
    charger: Annotated[Watts, Field(gt=0)] | None = 10.0
    """Into the battery while it is plugged in; null: nobody plugs it in, and it is gone when it is empty."""
    hours: tuple[TimeOfDay, TimeOfDay] | None = None
    """From and until which time of day a device is plugged in, e.g. `[22 h, 6 h]`; without, whenever it is low."""
    starts_at: TimeOfDay = 0.0
    """Time of day at which the virtual clock starts, e.g. `20 h`."""

    @model_validator(mode="after")
    def _in_order(self) -> BatterySettings:
        if self.resume_at <= self.stop_below:
            raise ValueError("resume_at must be above stop_below")
        if self.hours and self.charger is None:
            raise ValueError("hours are those of a charger: without one leave them out")
        if self.hours and self.hours[0] == self.hours[1]:
            raise ValueError("hours must be two different times of day")
        return self


class MemoryPressure(Settings):
    """Other apps hold a share of the RAM that changes; work that needs more than they leave dies. All estimated."""

    only_for: ClassVar[OnlyFor] = dict.fromkeys(
        ("restart", "retries"), ("`then: retry`", lambda settings: settings.then == "retry")
    )
    share: Shares = (0.3, 0.6)
    """Least and most of the RAM that others hold."""
    every: Seconds = Field(300.0, gt=0)
    """Mean time between two changes."""
    then: Literal["retry", "fail"] = "retry"
    """After an out-of-memory kill: begin that piece of work again once it fits, or end the device's day."""
    restart: Seconds = Field(10.0, ge=0)
    """Before the work begins again."""
    retries: int = Field(10, ge=0)
    """How often one piece of work is begun again before the device gives up."""


class Varying(Settings):
    """What changes on a device while it works; everything is off unless it is asked for."""

    only_for: ClassVar[OnlyFor] = {"thermal_recovery": ("`thermal: true`", lambda settings: settings.thermal)}
    thermal: bool = False
    """Slow down under continuous work and recover in pauses, as the profile's `sustained_*` numbers say."""
    thermal_recovery: float = Field(RECOVERY, gt=0)
    """Time constant of recovery over that of slowing down; estimated at 3 to 5."""
    radio_power_by_rate: bool = False
    """Joules of a transfer from its rate, where the profile has the line of its radio; else the constant power."""
    background_load: BackgroundLoad | None = None
    battery: BatterySettings | None = None
    memory_pressure: MemoryPressure | None = None


class Conditions:
    """The state of one device: heat, load, charge, and memory that others hold.

    Everything random is a pure function of time from a stream of its own, so that nothing that a method does changes what
    a device meets. Raises `ValueError` for a charger that cannot keep up with an idle device.
    """

    def __init__(self, device: Device, settings: Varying, streams: Streams) -> None:
        s, profile, id_ = settings, device.profile, device.id
        self.device, self.settings, self.radio_by_rate = device, settings, settings.radio_power_by_rate
        self.throttle = (s.thermal and throttle_of(profile, s.thermal_recovery)) or NO_THROTTLE
        self.load = ALWAYS_QUIET
        if s.background_load:
            b = s.background_load
            self.load = background_load(streams.rng("background-load", id_), b.quiet, b.busy, b.left, b.sigma)
        self.charge = None
        if s.battery and profile.battery_wh:
            self.charge = device.meter.battery = charge_of(device, s.battery, streams.rng("battery", id_).random())
        self.taken = None
        if s.memory_pressure:
            p = s.memory_pressure
            self.taken = pressure(streams.rng("memory-pressure", id_), p.every, p.share)
        self.heat, self._cool_since_s = 0.0, 0.0

    def compute(self, work: Work, nominal_s: float) -> Generator:
        """Let the seconds pass that work of so many nominal ones takes here and now, through pauses and restarts.

        Raises `simpy.Interrupt("oom")` in a device that gives up: it ends its day.
        """
        device, done_s, kills, spent_s = self.device, 0.0, 0, 0.0
        needed = device.held_bytes(work.cost.peak_bytes)
        while True:
            yield from self._charge()
            start_s = device.sim.env.now
            self.heat = self.throttle.after_rest(self.heat, start_s - self._cool_since_s)
            at = (self.throttle, self.load, self.heat, start_s)
            seconds, outcome = work_seconds(*at, nominal_s - done_s), "ok"
            low_s, short_s = self._low_in_s(seconds), self._short_in_s(needed, seconds)
            if min(low_s, short_s) < seconds:
                seconds, outcome = (low_s, "low-battery") if low_s < short_s else (short_s, "oom")
            piece_s = nominal_s - done_s if outcome == "ok" else work_done_s(*at, seconds)
            try:
                flop = work.cost.flop * (piece_s / nominal_s if nominal_s else 1.0)
                done = functools.partial(_share_done, at, piece_s)
                yield from device.timed("compute", seconds, device.power.compute_w, flop, outcome, done)
            finally:
                worked_s = device.sim.env.now - start_s
                self.heat = self.throttle.after_work(self.heat, worked_s)
                self._cool_since_s = device.sim.env.now
            done_s, spent_s = done_s + piece_s, spent_s + seconds
            if outcome == "ok":
                break
            if outcome == "oom":
                done_s, kills = 0.0, kills + 1
                yield from self._restart(needed, kills)
        self._note(nominal_s / spent_s if spent_s else 1.0)

    def _charge(self) -> Generator:
        """If the battery is low, wait until it is charged."""
        while self.charge and self.charge.is_low():
            env, wait_s = self.device.sim.env, self.charge.goes_on_in_s()
            charged = env.timeout(wait_s) if wait_s < math.inf else env.event()  # never: nobody charges it
            yield from recorded(self.device, "charge", charged, self.device.power.idle_w)

    def _low_in_s(self, within_s: float) -> float:
        return self.charge.low_in_s(self.device.power.compute_w, within_s) if self.charge else math.inf

    def _short_in_s(self, needed: float, within_s: float) -> float:
        if self.taken is None:
            return math.inf
        now = self.device.sim.env.now
        return shortage_at_s(self.taken, self.device.memory_bytes, needed, now, now + within_s) - now

    def _restart(self, needed: float, kills: int) -> Generator:
        """After an out-of-memory kill: wait until the work fits again, or give up."""
        p, device = self.settings.memory_pressure, self.device
        never_fits = needed > device.memory_bytes * (1 - p.share[0])
        if p.then == "fail" or kills > p.retries or never_fits:
            raise simpy.Interrupt("oom")
        yield from device.until(fits_at_s(self.taken, device.memory_bytes, needed, device.sim.env.now + p.restart))

    def _note(self, speed: float) -> None:
        """The piece's speed as a share of the nominal one, and the battery's charge, as metrics of this device."""
        recorder, now = self.device.sim.recorder, self.device.sim.env.now
        recorder.metric(now, "speed", speed, self.device.id)
        if self.charge:
            recorder.metric(now, "charge", self.charge.held_j() / self.charge.battery.capacity_j, self.device.id)


def _share_done(at: tuple, piece_s: float, seconds: float) -> float:
    """The share of a piece of work that is done after so many seconds of it."""
    return work_done_s(*at, seconds) / piece_s if piece_s > 0 else 1.0
