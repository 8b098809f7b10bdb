"""What makes one device unlike its profile: heat, background load, its battery and the
memory others hold.

A scenario's `devices` section turns each of them on; all are off by default. `Conditions` holds the
state of one device and runs its pieces of work: how long each takes, and what cuts it short. The
models are in `devices/`.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import simpy

from devices.battery import JOULES_PER_WH
from devices.load import ALWAYS_QUIET, Spells, background_load, work_done_s, work_seconds
from devices.memory import fits_at_s, pressure, shortage_at_s
from devices.thermal import Throttle, throttle_of
from sim.kernel.spans import recorded
from sim.scenario.conditions import Varying
from sim.world.charge import charge_of

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.kernel.streams import Streams
    from sim.kernel.work import Steps, Work

NO_THROTTLE = Throttle(1.0, 1.0, 1.0)


class Conditions:
    """The state of one device: heat, load, charge, and memory that others hold.

    Everything random is a pure function of time from a stream of its own, so that nothing that a
    method does changes what a device meets. Raises `ValueError` for a charger that cannot keep up
    with an idle device.
    """

    def __init__(self, device: Device, settings: Varying, streams: Streams) -> None:
        s, profile, id_ = settings, device.profile, device.id
        self.device = device
        self.settings = settings
        self.radio_by_rate = settings.radio_power_by_rate
        self.throttle = (s.thermal and throttle_of(profile, s.thermal_recovery)) or NO_THROTTLE
        self.load = ALWAYS_QUIET
        if s.background_load:
            b = s.background_load
            self.load = background_load(
                streams.rng("background-load", id_), b.quiet, b.busy, b.left, b.sigma
            )
        self.charge = None
        if s.battery and profile.battery_wh:
            self.charge = device.meter.battery = charge_of(
                device,
                profile.battery_wh * JOULES_PER_WH,
                s.battery,
                streams.rng("battery", id_).random(),
            )
        self.taken = None
        if s.memory_pressure:
            p = s.memory_pressure
            self.taken = pressure(streams.rng("memory-pressure", id_), p.every, p.share)
        self.heat, self._cool_since_s = 0.0, 0.0

    def compute(self, work: Work, nominal_s: float) -> Steps[None]:
        """Let the seconds pass that work of so many nominal ones takes here and now, through pauses
        and restarts.

        Raises `simpy.Interrupt("oom")` in a device that gives up, and ends.
        """
        device = self.device
        done_s = 0.0
        kills = 0
        spent_s = 0.0
        needed = device.held_bytes(work.cost.peak_bytes)
        while True:
            yield from self._charge()
            start_s = device.world.env.now
            self.heat = self.throttle.after_rest(self.heat, start_s - self._cool_since_s)
            at = (self.throttle, self.load, self.heat, start_s)
            seconds, outcome = work_seconds(*at, nominal_s - done_s), "ok"
            low_s = self._low_in_s(seconds)
            short_s = self._short_in_s(needed, seconds)
            if min(low_s, short_s) < seconds:
                seconds, outcome = (low_s, "low-battery") if low_s < short_s else (short_s, "oom")
            piece_s = nominal_s - done_s if outcome == "ok" else work_done_s(*at, seconds)
            try:
                flop = work.cost.flop * (piece_s / nominal_s if nominal_s else 1.0)
                done = functools.partial(_share_done, at, piece_s)
                yield from device.timed(
                    "compute", seconds, device.power.compute_w, flop, outcome, done
                )
            finally:
                worked_s = device.world.env.now - start_s
                self.heat = self.throttle.after_work(self.heat, worked_s)
                self._cool_since_s = device.world.env.now
            done_s, spent_s = done_s + piece_s, spent_s + seconds
            if outcome == "ok":
                break
            if outcome == "oom":
                done_s, kills = 0.0, kills + 1
                yield from self._restart(needed, kills)
        self._note(nominal_s / spent_s if spent_s else 1.0)

    def _charge(self) -> Steps[None]:
        """If the battery is low, wait until it is charged."""
        while self.charge and self.charge.is_low():
            env, wait_s = self.device.world.env, self.charge.goes_on_in_s()
            charged = (
                env.timeout(wait_s) if wait_s < math.inf else env.event()
            )  # never: nobody charges it
            yield from recorded(self.device, "charge", charged, self.device.power.idle_w)

    def _low_in_s(self, within_s: float) -> float:
        return (
            self.charge.low_in_s(self.device.power.compute_w, within_s) if self.charge else math.inf
        )

    def _short_in_s(self, needed: float, within_s: float) -> float:
        if self.taken is None:
            return math.inf
        now = self.device.world.env.now
        return (
            shortage_at_s(self.taken, self.device.memory_bytes, needed, now, now + within_s) - now
        )

    def _restart(self, needed: float, kills: int) -> Steps[None]:
        """After an out-of-memory kill: wait until the work fits again, or give up."""
        p, taken, device = self.settings.memory_pressure, self.taken, self.device
        assert p and taken, "memory pressure alone kills"
        never_fits = needed > device.memory_bytes * (1 - p.share[0])
        if p.then == "fail" or kills > p.retries or never_fits:
            raise simpy.Interrupt("oom")
        yield from device.until(
            fits_at_s(taken, device.memory_bytes, needed, device.world.env.now + p.restart)
        )

    def _note(self, speed: float) -> None:
        """The piece's speed as a share of the nominal one, and the battery's charge, as metrics of
        this device.
        """
        recorder, now = self.device.world.recorder, self.device.world.env.now
        recorder.metric(now, "speed", speed, self.device.id)
        if self.charge:
            recorder.metric(
                now, "charge", self.charge.held_j() / self.charge.battery.capacity_j, self.device.id
            )


def _share_done(at: tuple[Throttle, Spells, float, float], piece_s: float, seconds: float) -> float:
    """The share of a piece of work that is done after so many seconds of it."""
    return work_done_s(*at, seconds) / piece_s if piece_s > 0 else 1.0
