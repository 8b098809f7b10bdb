"""What runs on the clock, by who does it, in the order of starting."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    from sim.kernel.device import Device


class ActiveProcesses:
    """The processes that have not ended (`alive`, each with its actor); an actor of None is the
    server.
    """

    def __init__(self) -> None:
        self.alive: dict[simpy.Process, Device | None] = {}
        self._of: dict[Device, dict[simpy.Process, int]] = {}  # -> which start it was
        self._starts = count()

    def add(self, process: simpy.Process, actor: Device | None) -> None:
        """Note a process until it ends."""
        self.alive[process] = actor
        if actor is not None:
            self._of.setdefault(actor, {})[process] = next(self._starts)
        process.callbacks.append(self._forget)

    def _forget(self, process: simpy.Event) -> None:
        assert isinstance(process, simpy.Process)  # whose callback it is
        if (actor := self.alive.pop(process)) is not None:
            del self._of[actor][process]
            if not self._of[actor]:
                del self._of[actor]

    def all(self) -> list[simpy.Process]:
        """All of them."""
        return list(self.alive)

    def of_devices(self) -> list[simpy.Process]:
        """All but the server's."""
        return [process for process, actor in self.alive.items() if actor is not None]

    def of(self, devices: Iterable[Device]) -> list[simpy.Process]:
        """Those of these devices, without a look at the others."""
        started = {
            p: at for device in dict.fromkeys(devices) for p, at in self._of.get(device, {}).items()
        }
        return sorted(started, key=started.__getitem__)
