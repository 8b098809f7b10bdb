"""What runs on the clock, by who does it, in the order of starting."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    from sim.kernel.device import Device


class ActiveProcesses:
    """The processes that have not ended; an actor of None is the server."""

    def __init__(self) -> None:
        self._alive: dict[simpy.Process, Device | None] = {}
        self._of: dict[Device, dict[simpy.Process, int]] = {}  # -> which start it was
        self._starts = count()

    def __bool__(self) -> bool:
        return bool(self._alive)

    def add(self, process: simpy.Process, actor: Device | None) -> None:
        """Note a process until it ends."""
        self._alive[process] = actor
        if actor is not None:
            self._of.setdefault(actor, {})[process] = next(self._starts)
        process.callbacks.append(lambda _: self._forget(process))

    def _forget(self, process: simpy.Process) -> None:
        if (actor := self._alive.pop(process)) is not None:
            del self._of[actor][process]

    def all(self) -> list[simpy.Process]:
        """All of them."""
        return list(self._alive)

    def of_devices(self) -> list[simpy.Process]:
        """All but the server's."""
        return [process for process, actor in self._alive.items() if actor is not None]

    def of(self, devices: Iterable[Device]) -> list[simpy.Process]:
        """Those of these devices, without a look at the others."""
        started = {
            p: at for device in dict.fromkeys(devices) for p, at in self._of.get(device, {}).items()
        }
        return sorted(started, key=started.__getitem__)
