"""What changes on devices while they work: what a scenario's `devices` section may say of it; all
is off by default.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from devices.thermal import RECOVERY
from inputs.units import Seconds, Watts
from sim.scenario.settings import OnlyFor, Settings


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first must not be above the second")
    return bounds


Share = Annotated[float, Field(ge=0, le=1)]
Left = Annotated[float, Field(gt=0, le=1)]
TimeOfDay = Annotated[Seconds, Field(lt=86_400)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_in_order)]


class BackgroundLoad(Settings):
    """Other apps: quiet spells alternate with busy ones, in which a part of the speed is left. All
    defaults estimated.
    """

    quiet: Seconds = Field(340.0, gt=0)
    """Mean length of a quiet spell."""
    busy: Seconds = Field(60.0, gt=0)
    """Mean length of a busy spell."""
    left: Annotated[tuple[Left, Left], AfterValidator(_in_order)] = (0.5, 0.9)
    """Least and most of the speed that is left in a busy spell."""
    sigma: float = Field(0.05, ge=0)
    """Of the log-normal factor of a quiet spell."""


class BatterySettings(Settings):
    """Devices whose profile has a `battery_wh` run on it; low, they stop computing until it is
    charged, empty, they are off.
    """

    only_for: ClassVar[OnlyFor] = {
        "starts_at": ("`hours`", lambda settings: settings.hours is not None)
    }
    initial: Shares = (0.3, 1.0)
    """Least and most of the charge at the start; drawn for each device."""
    stop_below: float = Field(0.2, ge=0, lt=1)
    """State of charge at which a device stops computing."""
    resume_at: float = Field(0.5, gt=0, lt=1)
    """State of charge at which it goes on."""
    charger: Annotated[Watts, Field(gt=0)] | None = 10.0
    """Into the battery while it is plugged in; null: nobody plugs it in, and it is gone when it is
    empty.
    """
    hours: tuple[TimeOfDay, TimeOfDay] | None = None
    """From and until which time of day a device is plugged in, e.g. `[22 h, 6 h]`; without,
    whenever it is low.
    """
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
    """Other apps hold a share of the RAM that changes; work that needs more than they leave dies.
    All estimated.
    """

    only_for: ClassVar[OnlyFor] = dict.fromkeys(
        ("restart", "retries"), ("`then: retry`", lambda settings: settings.then == "retry")
    )
    share: Shares = (0.3, 0.6)
    """Least and most of the RAM that others hold."""
    every: Seconds = Field(300.0, gt=0)
    """Mean time between two changes."""
    then: Literal["retry", "fail"] = "retry"
    """After an out-of-memory kill: begin that piece of work again once it fits, or end the device's
    day.
    """
    restart: Seconds = Field(10.0, ge=0)
    """Before the work begins again."""
    retries: int = Field(10, ge=0)
    """How often one piece of work is begun again before the device gives up."""


class Varying(Settings):
    """What changes on a device while it works; everything is off unless it is asked for."""

    only_for: ClassVar[OnlyFor] = {
        "thermal_recovery": ("`thermal: true`", lambda settings: settings.thermal)
    }
    thermal: bool = False
    """Slow down under continuous work and recover in pauses, as the profile's `sustained_*` numbers
    say.
    """
    thermal_recovery: float = Field(RECOVERY, gt=0)
    """Time constant of recovery over that of slowing down; estimated at 3 to 5."""
    radio_power_by_rate: bool = False
    """Joules of a transfer from its rate, where the profile has the line of its radio; else the
    constant power.
    """
    background_load: BackgroundLoad | None = None
    battery: BatterySettings | None = None
    memory_pressure: MemoryPressure | None = None
