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
        # with which start it was; a tuple weighs half of a list
        self._of: dict[Device, tuple[tuple[int, simpy.Process], ...]] = {}
        self._starts = count()
        self._forgetting = self._forget  # one for all

    def add(self, process: simpy.Process, actor: Device | None) -> None:
        """Note a process until it ends."""
        self.alive[process] = actor
        if actor is not None:
            self._of[actor] = (*self._of.get(actor, ()), (next(self._starts), process))
        process.callbacks.append(self._forgetting)

    def _forget(self, process: simpy.Event) -> None:
        assert isinstance(process, simpy.Process)  # whose callback it is
        if (actor := self.alive.pop(process)) is not None:
            left = tuple(one for one in self._of.pop(actor) if one[1] is not process)
            if left:
                self._of[actor] = left

    def all(self) -> list[simpy.Process]:
        """All of them."""
        return list(self.alive)

    def of_devices(self) -> list[simpy.Process]:
        """All but the server's."""
        return [process for process, actor in self.alive.items() if actor is not None]

    def of(self, devices: Iterable[Device]) -> list[simpy.Process]:
        """Those of these devices, without a look at the others."""
        started = [one for device in dict.fromkeys(devices) for one in self._of.get(device, ())]
        return [process for _, process in sorted(started)]
