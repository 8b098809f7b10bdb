"""Whether bits can ever pass on a route: its rates are functions of time, so that it can be known
without waiting.

Capacities that come and go cost events only while there is something that they can move. A transfer
whose route never opens wakes for nothing, and once no transfer under way can move, shared links are
left alone too: then nothing is left to happen, and whoever runs the clock sees that the run has
come to a stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final, Protocol

import simpy

from network.bandwidth import CapacityTrace
from network.fair_link import FairLink, Trunk
from network.fair_trunk import FairTrunk
from network.mobility import Journey

NUMBER: Final = (float, int)  # a rate that never changes
LONGEST_S = 9e9  # 285 years: what ends later, or opens later, never does for anybody
# a year at the highest rate: each step of a rate is an event, and nobody waits for so many
LONGEST_TRANSFER_S = 3.2e7
MOST_OPENINGS = (
    100_000  # of gates on one route that never open at once, before they are taken never to do
)


class Rate(Protocol):
    """A rate over time: CapacityTrace, VaryingRate, ShiftedTrace."""

    @property
    def closes(self) -> bool:
        """Whether it is ever 0."""

    @property
    def peak_bps(self) -> float:
        """The highest that it ever is, bit/s."""

    def at(self, t_s: float) -> float:
        """The rate at time t, bit/s."""

    def next_change(self, t_s: float) -> float:
        """The first time after t at which it may change, s."""

    def opens(self, t_s: float) -> float:
        """The first time from t on at which it is above 0, s; inf if there is none."""


class Route:
    """What the bits of a device pass in one direction: its own rate, the links that it enters,
    where it is meanwhile.

    `links` by the cell that its journey is in; without a journey the one link under None.
    """

    __slots__ = ("_closes", "_peak_bps", "journey", "links", "rate")

    def __init__(
        self,
        rate: float | Rate,
        links: Mapping[str | None, FairLink],
        journey: Journey | None = None,
    ) -> None:
        self.rate, self.links, self.journey = rate, links, journey
        taken = list(links.values())
        gates = [rate, *map(_gate, taken), *(_gate(link.trunk) for link in taken if link.trunk)]
        self._closes = any(gate == 0 if isinstance(gate, NUMBER) else gate.closes for gate in gates)
        self._peak_bps = rate if isinstance(rate, NUMBER) else rate.peak_bps

    def link(self, t_s: float) -> FairLink:
        """The link that is entered at time t."""
        return self.links[None if self.journey is None else self.journey.at(t_s)]

    def opens(self, t_s: float) -> float:
        """The first time from t on at which the rate, the link entered then and what lies behind it
        are above 0; or inf.
        """
        if not self._closes:
            return t_s
        for _ in range(MOST_OPENINGS):
            link = self.link(t_s)
            always_s = max(
                _opens(self.rate, t_s), _opens(_gate(link.trunk), t_s) if link.trunk else t_s
            )
            here_s = _opens(_gate(link), t_s)
            if always_s == here_s == t_s:
                return t_s
            moves_s = inf if self.journey is None else self.journey.next_change(t_s)
            t_s = max(always_s, min(here_s, moves_s))
            if t_s > LONGEST_S:
                return inf
        return inf

    def carries(self, bits: float) -> bool:
        """Whether so many bits could pass in any time that matters, at the highest rate."""
        return bits <= self._peak_bps * LONGEST_TRANSFER_S


def _gate(link: FairLink | Trunk) -> float | Rate:
    return link.capacity_bps if link.trace is None else link.trace


def _opens(gate: float | Rate, t_s: float) -> float:
    if isinstance(gate, NUMBER):
        return t_s if gate > 0 else inf
    return gate.opens(t_s)


class Sender(Protocol):
    """What may have something under way: a Lane."""

    def may_move(self) -> bool:
        """Whether bits of it pass now, or ever will."""


class TracedCapacities:
    """The shared links whose capacity follows a trace, each re-rated at every change while anything
    under way can move: while `moves()`, or while one of those that have something under way says
    that it may.
    """

    def __init__(
        self,
        env: simpy.Environment,
        links: Sequence[tuple[FairLink | FairTrunk, CapacityTrace]],
        moves: Callable[[], bool],
    ):
        self._env = env
        self._moves = moves
        self._under_way: dict[Sender, None] = {}
        self._paused, self._is_any = list(links), bool(links)
        self._resume()

    def set_out(self, sender: Sender) -> None:
        """Somebody has something under way."""
        if self._is_any:
            self._under_way[sender] = None
        if self._paused:
            self._resume()

    def rest(self, sender: Sender) -> None:
        """He has no more."""
        self._under_way.pop(sender, None)

    def _resume(self) -> None:
        """Give every paused link the capacity of this moment, and those of the changes to
        come.
        """
        paused, self._paused = self._paused, []
        for link, trace in paused:
            self._follow(link, trace)

    def _follow(self, link: FairLink | FairTrunk, trace: CapacityTrace) -> None:
        now = self._env.now
        link.set_capacity(trace.at(now))
        change_s = trace.next_change(now)
        if change_s == inf:
            return
        if self._moves() or any(sender.may_move() for sender in self._under_way):
            self._env.timeout(change_s - now).callbacks.append(lambda _: self._follow(link, trace))
        else:
            self._paused.append((link, trace))
