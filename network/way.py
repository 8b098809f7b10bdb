"""Whether bits can ever pass on a way: its rates are functions of time, so that it can be known without waiting.

Capacities that come and go cost events only while there is something that they can move. A transfer whose way never opens
wakes for nothing, and once no transfer under way can move, shared links are left alone too: then nothing is left to happen,
and whoever runs the clock sees that the run has come to a stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Protocol

import simpy

from network.fair_link import FairLink
from network.fair_trunk import FairTrunk
from network.mobility import Journey

MOST_OPENINGS = 100_000  # of gates on one way that never open at once, before they are taken never to do


class Rate(Protocol):
    """A rate over time: CapacityTrace, VaryingRate, ShiftedTrace; `closes`: whether it is ever 0."""

    closes: bool

    def at(self, t_s: float) -> float:
        """The rate at time t, bit/s."""

    def next_change(self, t_s: float) -> float:
        """The first time after t at which it may change, s."""

    def opens(self, t_s: float) -> float:
        """The first time from t on at which it is above 0, s; inf if there is none."""


def closes(rate: float | Rate, links: FairLink | Mapping[str, FairLink]) -> bool:
    """Whether a rate, or any of the links that a way may take, is ever 0."""
    taken = [links] if isinstance(links, FairLink) else list(links.values())
    gates = [rate, *map(_gate, taken), *(_gate(link.trunk) for link in taken if link.trunk)]
    return any(gate == 0 if isinstance(gate, float | int) else gate.closes for gate in gates)


def opens_s(t_s: float, rate: float | Rate, links: FairLink | Mapping[str, FairLink], journey: Journey | None) -> float:
    """The first time from t on at which a rate, and every link on the way that a journey takes then, are above 0; or inf."""
    for _ in range(MOST_OPENINGS):
        link = links if journey is None else links[journey.at(t_s)]
        always_s = max(_opens(rate, t_s), _opens(_gate(link.trunk), t_s) if link.trunk else t_s)
        here_s = _opens(_gate(link), t_s)
        if always_s == here_s == t_s or always_s == inf:
            return always_s
        moves_s = inf if journey is None else journey.next_change(t_s)
        t_s = min(max(always_s, here_s), moves_s)
        if t_s == inf:
            return inf
    return inf


def _gate(link: FairLink | FairTrunk) -> float | Rate:
    return link.capacity_bps if link.trace is None else link.trace


def _opens(gate: float | Rate, t_s: float) -> float:
    if isinstance(gate, float | int):
        return t_s if gate > 0 else inf
    return gate.opens(t_s)


class Drives:
    """The shared links whose capacity follows a trace, each re-rated at every change while anything under way can move.

    `may_move()` tells whether; `wake()` is to be called when something sets out.
    """

    def __init__(self, env: simpy.Environment, links: Sequence[FairLink | FairTrunk], may_move: Callable[[], bool]):
        self._env, self._may_move, self._asleep = env, may_move, list(links)
        self.wake()

    def wake(self) -> None:
        """Give every link that slept the capacity of this moment, and those of the changes to come."""
        asleep, self._asleep = self._asleep, []
        for link in asleep:
            self._follow(link)

    def _follow(self, link: FairLink | FairTrunk) -> None:
        now, trace = self._env.now, link.trace
        link.set_capacity(trace.at(now))
        change_s = trace.next_change(now)
        if change_s == inf:
            return
        if self._may_move():
            self._env.timeout(change_s - now).callbacks.append(lambda _: self._follow(link))
        else:
            self._asleep.append(link)
