"""Who is there when: devices go off and on by their availability, never come, or drop out for good.

One small process a device tells it of its own changes, so that an idle device costs no events but these. What being told does
is the device's affair (`Device.go_off`, `come_on` in actors.py); what is drawn follows from the device's own streams alone.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from devices import availability as models
from inputs.files import located
from sim.named_files import FilePath, RhythmName
from sim.settings import OnlyFor, Settings
from sim.units import PerSecond, Seconds

if TYPE_CHECKING:
    from sim.actors import Device
    from sim.simulation import Simulation
    from sim.streams import Streams

MOST_S = 100 * models.DAY_S  # of a run in which devices come and go and whose scenario names no horizon


class Always(Settings):
    """Every device is on from its joining to its end."""

    kind: Literal["always"]


class Diurnal(Settings):
    """Devices go on and off by a fitted daily rhythm; each draws its own habits and days."""

    kind: Literal["diurnal"]
    rhythm: RhythmName = Field("charging-wifi-locked", validate_default=True)
    """A shipped rhythm, or the path of a YAML file like those of devices/availability_profiles."""
    starts_at: Annotated[Seconds, Field(lt=86_400)] = 0.0
    """Time of day at which the virtual clock starts, e.g. `20 h`."""
    never_ready: float | None = Field(None, ge=0, le=1)
    """Share of devices that are never on; default the rhythm's."""


class Traced(Settings):
    """Devices go on and off as recorded: each takes one device of a trace at random."""

    kind: Literal["trace"]
    path: FilePath
    """CSV with the columns device, ready_start_s, ready_end_s; time 0 is the midnight before its first interval."""
    period: Seconds | None = Field(None, gt=0)
    """After which the trace repeats; default whole days."""
    shift: bool = False
    """Start each device at a random whole day of the trace."""


class DropOut(Settings):
    """Devices that leave for good, whatever they are doing; say one of `rate`, `share` and `times`."""

    only_for: ClassVar[OnlyFor] = {"within": ("`share`", lambda settings: settings.share is not None)}
    rate: PerSecond | None = Field(None, gt=0)
    """Of a Poisson process, from joining on, e.g. `0.1 /d`."""
    share: float | None = Field(None, gt=0, le=1)
    """Of the devices, each at a random moment within `within` of its joining."""
    within: Annotated[Seconds, Field(gt=0)] = 86_400.0
    times: list[Seconds | None] | None = None
    """When each device leaves, in fleet order; null: never."""

    @model_validator(mode="after")
    def _one_way(self) -> DropOut:
        if sum(way is not None for way in (self.rate, self.share, self.times)) != 1:
            raise ValueError("say exactly one of rate, share and times")
        return self


AnyAvailability = Annotated[Always | Diurnal | Traced, Field(discriminator="kind")]


def give(sim: Simulation, how: AnyAvailability | None, folder: Path) -> None:
    """Give every device its availability; ValueError (AvailabilityError) for a rhythm or trace that cannot be used."""
    if how is None or how.kind == "always":
        return
    trace = models.read_trace(located(how.path, folder), how.period) if how.kind == "trace" else None
    for device in sim.devices:
        if trace is not None:
            device.availability = trace.of(sim.streams.rng("availability", device.id), how.shift)
        else:
            device.availability = _own_rhythm(sim.streams, device.id, how)
        if not device.availability.is_on(0.0):
            device.go_off()
        if first_on_s(device) == inf and device.outcome == "ok":
            device.outcome = "never-ready"


def _own_rhythm(streams: Streams, id_: str, how: Diurnal) -> models.Availability:
    rhythm = models.load(how.rhythm)
    if how.never_ready is not None:
        rhythm = replace(rhythm, never_ready=how.never_ready)
    return models.by_rhythm(rhythm, lambda part: streams.rng("availability", f"{id_}/{part}"), how.starts_at)


def first_on_s(device: Device) -> float:
    """The first moment at which the device has joined and is on; infinity if there is none."""
    own, joined_s = device.availability, device.joined_at_s
    return joined_s if own is None or own.is_on(joined_s) else own.next_change(joined_s)


def start(sim: Simulation, drop_out: DropOut | None) -> None:
    """Let devices come, go and drop out from now on."""
    for index, device in enumerate(sim.devices):
        if device.availability is not None and device.outcome == "ok":
            sim.env.process(_come_and_go(sim, device))
        if device.meter.battery and device.outcome == "ok":
            device.meter.battery.watch()
        if drop_out is not None and (at_s := _leaving_s(sim.streams, device, drop_out, index)) < inf:
            sim.env.timeout(at_s).callbacks.append(functools.partial(_leave, sim, device))
    if sim.scenario.stop.horizon is None and any(device.availability or device.meter.battery for device in sim.devices):
        sim.env.timeout(MOST_S).callbacks.append(lambda _: sim.stop("stalled"))


def _come_and_go(sim: Simulation, device: Device) -> Generator:
    at_s, own, is_on = (
        0.0,
        device.availability,
        device.availability.is_on(0.0),
    )  # in the availability's own numbers: the clock's sums round differently
    while (at_s := own.next_change(at_s)) < inf:
        yield sim.env.timeout(max(0.0, at_s - sim.env.now))
        if device.is_gone:
            return
        is_on = not is_on
        if not is_on:
            device.go_off()
            if own.next_change(at_s) == inf:
                leave(sim, device, "never-back")
        else:
            device.come_on()


def note_absence(sim: Simulation, device: Device) -> None:
    """An "offline" (or "empty") span, up to now, of a device that has joined and whose day goes on, or ends now."""
    if not device.is_on and sim.is_at_work(device):
        start_s = max(device.off_since_s, first_on_s(device))
        if start_s < sim.env.now:
            kind = "empty" if "battery" in device.off_for else "offline"
            sim.recorder.span(device.id, kind, start_s, sim.env.now)
    device.off_since_s = sim.env.now


def _leaving_s(streams: Streams, device: Device, how: DropOut, index: int) -> float:
    rng = streams.rng("drop-out", device.id)
    if how.times is not None:
        return inf if how.times[index] is None else how.times[index]
    if how.rate is not None:
        return device.joined_at_s + rng.exponential(1 / how.rate)
    is_leaving, when = rng.random() < how.share, rng.random()
    return device.joined_at_s + when * how.within if is_leaving else inf


def leave(sim: Simulation, device: Device, reason: str) -> None:
    """Let a device go for good: what it is doing ends with the reason as outcome, and nobody waits for it."""
    device.is_gone = True
    sim.interrupt([device], reason)


def _leave(sim: Simulation, device: Device, _event: object) -> None:
    if not device.is_gone:
        leave(sim, device, "dropped")
