"""The charge of one device's battery, brought forward at every change of what the device draws;
empty, it switches it off.

A device idles all the time that it is not switched off, also between spans and before it joins;
spans draw above that what they bear in joules (`spans.EnergyMeter`), the bytes of a transfer as
they pass. An empty device is off, draws nothing, and is back when it is charged up to `resume_at`,
as its charger says. So a battery never gives more than it held and was given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import simpy

from devices.battery import Battery, Charger, TopUp

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.scenario.conditions import BatterySettings

# of a battery's capacity: a level that was aimed at counts as reached, whatever the last bit says
LEVEL_ROUNDING = 1e-9


class Charge:
    """What a battery holds, in joules: somebody plugs it in whenever it is low (`top_up`), or its
    own charger has hours.
    """

    def __init__(
        self,
        device: Device,
        battery: Battery,
        top_up: TopUp | None,
        levels_j: tuple[float, float],
        held_j: float,
    ) -> None:
        self.device, self.battery, self.top_up = device, battery, top_up
        self.low_j, self.resume_j = levels_j
        self.rounding_j = LEVEL_ROUNDING * battery.capacity_j
        self.is_plugged, self.is_empty = False, False  # plugged in by somebody
        self._held_j, self._at_s = held_j, 0.0
        self._look: simpy.Event | None = None
        self._looks_at_s = math.inf

    def held_j(self) -> float:
        """What the battery holds now."""
        now, byte_j = self.device.world.env.now, self.device.meter.new_byte_j()
        seconds = now - self._at_s
        if seconds > 0:
            drain_w, byte_j = self.drain_w + byte_j / seconds, 0.0
            if self.top_up:
                self._held_j, self.is_plugged = self.top_up.after(
                    self._held_j, self.is_plugged, seconds, drain_w
                )
            else:
                self._held_j = self.battery.after(self._held_j, self._at_s, now, drain_w)
            self._at_s = now
        self._held_j -= byte_j  # of the last byte, which is whole only at its end
        return self._held_j

    @property
    def drain_w(self) -> float:
        """What the device draws now, but for bytes on their way."""
        return 0.0 if self.is_empty else self.device.power.idle_w + self.device.meter.above_idle_w

    # --- low: it may not compute

    def is_low(self) -> bool:
        """Whether the device may not compute: until it is charged up to the level at which it goes
        on.
        """
        return self.held_j() <= self.low_j + self.rounding_j or self.is_plugged

    def low_in_s(self, drain_w: float, within_s: float) -> float:
        """Seconds until it is low; infinite if that is not within so many, or if it is low only
        when it is empty.
        """
        if self.low_j == 0:
            return math.inf
        return self.battery.seconds_until(self.low_j, self.held_j(), self._at_s, drain_w, within_s)

    def goes_on_in_s(self) -> float:
        """Seconds until it is charged up to the level at which it goes on, if the device draws no
        more than now.
        """
        held_j = self.held_j()
        if self.top_up:
            return self.top_up.seconds(held_j, self.drain_w) + self.rounding_j / self.top_up.watts
        return self.battery.seconds_until(self.resume_j, held_j, self._at_s, self.drain_w)

    # --- empty: it is off

    def follow(self) -> None:
        """See to it that somebody looks when the battery may be empty: no timer where an earlier
        one looks anyway.
        """
        if self.is_empty or self.device.is_gone:
            return
        now, held_j = self.device.world.env.now, max(0.0, self.held_j())
        byte_w, until_s = self.device.meter.most_byte_w()
        if self.top_up:
            lasts_s = self.top_up.lasts_s(held_j, self.is_plugged, self.drain_w + byte_w)
        else:
            lasts_s = self.battery.lasts_s(held_j, now, self.drain_w + byte_w)
        lasts_s = min(lasts_s, until_s - now)
        if now + lasts_s < self._looks_at_s:
            self._look_in(lasts_s)

    def _look_in(self, seconds: float) -> None:
        self._looks_at_s = self.device.world.env.now + seconds
        self._look = self.device.world.env.timeout(seconds)
        self._look.callbacks.append(self._on_look)

    def _on_look(self, look: simpy.Event) -> None:
        if look is not self._look or self.device.is_gone:
            return
        self._looks_at_s, held_j = math.inf, self.held_j()
        if self.is_empty:
            self.is_empty = False
            self.device.come_on("battery")
        elif held_j <= self.rounding_j:
            self._switch_off()
        self.follow()

    def _switch_off(self) -> None:
        self.device.go_off("battery")
        self.is_empty = True
        back_in_s = self.goes_on_in_s()
        if back_in_s < math.inf:
            self._look_in(back_in_s)
        else:
            self.device.leave("never-charged")


def charge_of(device: Device, capacity_j: float, settings: BatterySettings, share: float) -> Charge:
    """The charge of a device with a battery of `capacity_j`; at first it holds a `share` of the
    range in the settings.

    Raises `ValueError` for a charger that cannot keep up with an idle device.
    """
    idle_w, watts, charger = device.power.idle_w, settings.charger, None
    if settings.hours and watts is not None:
        charger = Charger(watts, *settings.hours, settings.starts_at)
    battery = Battery(capacity_j, charger)
    low_j = settings.stop_below * capacity_j
    goal_j = settings.resume_at * capacity_j
    top_up = (
        None
        if charger or watts is None
        else TopUp(watts, low_j + LEVEL_ROUNDING * capacity_j, goal_j)
    )
    waits_s = (
        top_up.seconds(low_j, idle_w)
        if top_up
        else battery.seconds_until(goal_j, low_j, 0.0, idle_w)
    )
    if watts is not None and math.isinf(waits_s):
        raise ValueError(
            f"a {device.profile.name} draws {idle_w:g} W when idle: from a charger of {watts:g} W"
            f"{f' for {charger.daily_s / 3600:g} h a day' if charger else ''} it would never be "
            "charged up to "
            f"{settings.resume_at:g}; give devices.battery a stronger charger or more hours"
        )
    low, high = settings.initial
    return Charge(
        device, battery, top_up, (low_j, goal_j), capacity_j * (low + (high - low) * share)
    )
