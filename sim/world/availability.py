"""Which device is there when: devices go off and on by their availability, never come, or drop out
for good.

One small process a device tells it of its own changes, so that an idle device costs no events but
these. What that does to it is in `Device.go_off` and `come_on`; what is drawn follows from
the device's own streams alone.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from devices import availability as models
from inputs.files import located
from sim.scenario.availability import AnyAvailability, Diurnal, DropOut, Traced

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.kernel.streams import Streams
    from sim.kernel.world import World

MOST_S = (
    100 * models.DAY_S
)  # of a run in which devices come and go and whose scenario names no horizon


def assign(world: World, how: AnyAvailability | None, folder: Path) -> None:
    """Give every device its availability; ValueError (AvailabilityError) for a rhythm or trace that
    cannot be used.
    """
    if isinstance(how, Traced):
        trace = models.read_trace(located(how.path, folder), how.period)
        own = functools.partial(_of_trace, world.streams, trace, how.shift)
    elif isinstance(how, Diurnal):
        rhythm = models.load(how.rhythm, folder)
        if how.never_ready is not None:
            rhythm = replace(rhythm, never_ready=how.never_ready)
        own = functools.partial(_of_rhythm, world.streams, rhythm, how.starts_at)
    else:
        return
    for device in world.devices:
        device.availability = own(device.id)
        if not device.availability.is_on(0.0):
            device.go_off()
        if device.first_on_s == inf and device.outcome == "ok":
            device.outcome = "never-ready"


def _of_trace(
    streams: Streams, trace: models.AvailabilityTrace, shift: bool, id_: str
) -> models.Availability:
    return trace.of(streams.rng("availability", id_), shift)


def _of_rhythm(
    streams: Streams, rhythm: models.Rhythm, starts_at_s: float, id_: str
) -> models.Availability:
    return models.by_rhythm(
        rhythm, lambda part: streams.rng("availability", f"{id_}/{part}"), starts_at_s
    )


def start(world: World, drop_out: DropOut | None) -> None:
    """Let devices come, go and drop out from now on."""
    for index, device in enumerate(world.devices):
        if device.availability is not None and device.outcome == "ok":
            world.env.process(_on_and_off(world, device, device.availability))
        if device.meter.battery and device.outcome == "ok":
            device.meter.battery.follow()
        if (
            drop_out is not None
            and (at_s := _leaving_s(world.streams, device, drop_out, index)) < inf
        ):
            world.env.timeout(at_s).callbacks.append(functools.partial(_leave, device))


def may_stall(world: World) -> bool:
    """Whether devices come and go, so that a run without a horizon might never end."""
    return any(device.availability or device.meter.battery for device in world.devices)


def _on_and_off(world: World, device: Device, own: models.Availability) -> Generator:
    # in the availability's own numbers: the clock's sums round differently
    at_s, is_on = 0.0, own.is_on(0.0)
    while (at_s := own.next_change(at_s)) < inf:
        yield world.env.timeout(max(0.0, at_s - world.env.now))
        if device.is_gone:
            return
        is_on = not is_on
        if not is_on:
            device.go_off()
            if own.next_change(at_s) == inf:
                device.leave("never-back")
        else:
            device.come_on()


def _leaving_s(streams: Streams, device: Device, how: DropOut, index: int) -> float:
    rng = streams.rng("drop-out", device.id)
    if how.times is not None:
        at_s = how.times[index]
        return inf if at_s is None else at_s
    if how.rate is not None:
        return device.joined_at_s + rng.exponential(1 / how.rate)
    if how.share is None:
        return inf
    is_leaving, when = rng.random() < how.share, rng.random()
    return device.joined_at_s + when * how.within if is_leaving else inf


def _leave(device: Device, _event: object) -> None:
    if not device.is_gone:
        device.leave("dropped")
