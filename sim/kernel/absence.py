"""A device that is not there: from when on it is, what its absence leaves on the record, and how it
goes for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.kernel.world import World


def first_on_s(device: Device) -> float:
    """The first moment at which the device has joined and is on; infinity if there is none."""
    own, joined_s = device.availability, device.joined_at_s
    return joined_s if own is None or own.is_on(joined_s) else own.next_change(joined_s)


def note_absence(world: World, device: Device) -> None:
    """An "offline" (or "empty") span, up to now, of a device that has joined and whose day goes on,
    or ends now.
    """
    if not device.is_on and world.is_at_work(device):
        start_s = max(device.off_since_s, first_on_s(device))
        if start_s < world.env.now:
            kind = "empty" if "battery" in device.off_for else "offline"
            world.recorder.span(device.id, kind, start_s, world.env.now)
    device.off_since_s = world.env.now


def leave(world: World, device: Device, reason: str) -> None:
    """Let a device go for good: what it is doing ends with the reason as outcome, and nobody waits
    for it.
    """
    device.is_gone = True
    world.interrupt([device], reason)
