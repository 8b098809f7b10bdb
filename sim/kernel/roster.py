"""Which devices a server may ask, kept up to date as devices come, go and get work: no question to
it looks at the whole fleet.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import simpy
from sortedcontainers import SortedList


class Askable(Protocol):
    """What is looked at in a device."""

    place: int
    has_ended: bool
    is_serving: bool
    is_on: bool
    joined_at_s: float


Member = TypeVar("Member", bound=Askable)


Member_co = TypeVar("Member_co", bound=Askable, covariant=True)


class Fleet(Protocol[Member_co]):
    """What is looked at in a world."""

    @property
    def env(self) -> simpy.Environment: ...
    @property
    def devices(self) -> Sequence[Member_co]: ...
    @property
    def devices_at_work(self) -> int: ...


class Roster(Generic[Member]):
    """The devices that serve, are on, have not ended and are not busy, in the fleet's order; and
    how many have not ended and will serve if they are waited for.
    """

    def __init__(self, world: Fleet[Member]) -> None:
        self.world = world
        self.busy: set[Member] = set()
        self._free = SortedList()  # places in the fleet, and
        self._is_free = bytearray(len(world.devices))  # whether each is among them
        self._off: set[Member] = set()  # have joined, have not ended
        self._off_before_joining: list[tuple[float, int]] = []  # a heap of (joining time, place)
        for device in world.devices:
            self.note(device)

    def note(self, device: Member) -> None:
        """Something has changed with a device: it serves, is off or on again, has ended, or is busy
        or not.
        """
        place, is_at_work = device.place, not device.has_ended
        if not is_at_work:
            self.busy.discard(device)
        is_free = is_at_work and device.is_serving and device.is_on and device not in self.busy
        if is_free != self._is_free[place]:
            self._is_free[place] = is_free
            (self._free.add if is_free else self._free.remove)(place)
        self._off.discard(device)
        if is_at_work and not device.is_on:
            if device.joined_at_s <= self.world.env.now:
                self._off.add(device)
            else:
                heapq.heappush(self._off_before_joining, (device.joined_at_s, place))

    def occupy(self, devices: Iterable[Member]) -> None:
        """These devices have work: they are not free."""
        for device in devices:
            self.busy.add(device)
            self.note(device)

    def release(self, devices: Iterable[Member]) -> None:
        """These devices are rid of their work."""
        for device in devices:
            self.busy.discard(device)
            self.note(device)

    def __len__(self) -> int:
        return len(self._free)

    def __getitem__(self, rank: int) -> Member:
        """The free device of that rank in the fleet's order."""
        place: int = self._free[rank]
        return self.world.devices[place]

    @property
    def able(self) -> int:
        """Devices that have not ended, but for those that have joined and are off."""
        while self._off_before_joining and self._off_before_joining[0][0] <= self.world.env.now:
            device = self.world.devices[heapq.heappop(self._off_before_joining)[1]]
            if not device.is_on and not device.has_ended:
                self._off.add(device)
        return self.world.devices_at_work - len(self._off)
