"""Shared links that meet in one: cells and access points under a server's ingress.

On this two-level tree max-min fairness has a short form. There is one level L for the whole trunk,
and in each link the transfers stop rising at L or at the link's own water level, whichever is
lower. What the links then carry together,

    carried(L) = sum over links of min(capacity of the link, sum over its transfers of min(cap, L)),

is concave, increasing and piecewise linear in L, so Newton's method finds carried(L) = capacity of
the trunk exactly and in few steps, from below without overshooting. When the links together cannot
fill the trunk there is nothing to solve and each link minds its own transfers.

Whether they can is asked at every change, so what they want together is kept as an exact sum: a
change of one link costs nothing for all others. Links without transfers are left alone; one that
begins to carry again first takes the ceiling of that moment.

Max-min by progressive filling: Bertsekas & Gallager, "Data Networks" (2nd ed., 1992), section
6.5.2.
"""

from __future__ import annotations

import sys
from math import fsum, inf

import numpy as np
import simpy

from network.bandwidth import CapacityTrace
from network.errors import NetworkError
from network.fair_link import FairLink
from network.occupancy import union

PER_UNIT = (
    sys.float_info.mant_dig - sys.float_info.min_exp
)  # the least step between floats is 2**-PER_UNIT


class FairTrunk:
    """A link of `capacity_bps` bit/s fed by fair links; a change costs O(links that carry something
    + log transfers) when it binds, and O(log transfers) when it does not.
    """

    def __init__(self, env: simpy.Environment, capacity_bps: float):
        if not capacity_bps >= 0:
            raise NetworkError(f"a link's capacity must be >= 0 bit/s, not {capacity_bps}")
        self.env = env
        self.capacity_bps = capacity_bps
        self.trace: CapacityTrace | None = None  # as a FairLink's
        self.links: list[FairLink] = []
        self._place: dict[FairLink, int] = {}  # of each in `links`
        self._wants_bps: dict[FairLink, float] = {}  # of those that have transfers
        self._wanted = 0  # the exact sum of these, in units of 2**-PER_UNIT bit/s
        self._level_bps = 0.0  # of the last time it bound: where the next search starts
        self._binds = False

    def link(self, capacity_bps: float) -> FairLink:
        """A new fair link under this trunk; infinite if its transfers share nothing but the trunk
        (and have caps).
        """
        return FairLink(self.env, capacity_bps, trunk=self)

    def add(self, link: FairLink) -> None:
        """Called by a link that is made under this trunk."""
        self._place[link] = len(self.links)
        self.links.append(link)

    def set_capacity(self, capacity_bps: float) -> None:
        """Re-rate the trunk from now on; 0 bit/s stops every transfer until a later call."""
        if not 0 <= capacity_bps < inf:
            raise NetworkError(
                f"a link's new capacity must be finite and >= 0 bit/s, not {capacity_bps}"
            )
        self.capacity_bps = capacity_bps
        self.rebalance()

    @property
    def n_flows(self) -> int:
        """Transfers under way now."""
        return sum(link.n_flows for link in self._wants_bps)

    @property
    def rate_bps(self) -> float:
        """Sum of the rates now, bit/s."""
        return fsum(link.rate_bps for link in self._wants_bps)

    @property
    def ceiling_bps(self) -> float:
        """What holds down the level of every link now, bit/s; infinite while nothing does."""
        return self._level_bps if self._binds else inf

    @property
    def bytes_carried(self) -> float:
        """Bytes that have passed since the trunk was made, aborted transfers' included."""
        return fsum(link.bytes_carried for link in self.links)

    def busy_times(self) -> np.ndarray:
        """When any link had transfers, a row a time without a gap: from, until (s), bytes; float64
        (times, 3).
        """
        return union([link.busy_times() for link in self.links])

    @property
    def busy_s(self) -> float:
        """Seconds during which at least one transfer was under way."""
        return fsum(np.diff(self.busy_times()[:, :2]).flat)

    def rebalance(self, changed: FairLink | None = None) -> None:
        """Find the level after a change in one link (or, with None, in the trunk) and arm the
        timers that it moves.
        """
        if changed is not None:
            self._note(changed)
        if self._wanted / 2**PER_UNIT > self.capacity_bps:
            touched = self._busy()
            for link in touched:
                link._advance()
            self._find_level(touched)
            self._binds = True
        elif self._binds or changed is None:
            touched = self._busy()
            for link in touched:
                link._advance()
                link._set_ceiling(inf)
            self._binds = False
        else:
            touched = [changed]
        for link in touched:
            link._arm()

    def _note(self, link: FairLink) -> None:
        before_bps, wants_bps = self._wants_bps.pop(link, 0.0), link.demand_bps
        if link.n_flows:
            self._wants_bps[link] = wants_bps
        if wants_bps != before_bps:
            self._wanted += _exact(wants_bps) - _exact(before_bps)

    def _busy(self) -> list[FairLink]:
        """The links that have transfers, in the order of all."""
        return sorted(self._wants_bps, key=self._place.__getitem__)

    def _find_level(self, links: list[FairLink]) -> None:
        lowest_bps = (
            self.capacity_bps / self.n_flows
        )  # nobody gets less, unless held lower by cap or link
        level_bps = max(self._level_bps, lowest_bps)
        started = False
        while True:
            carried_bps, held = 0.0, 0
            for link in links:
                rate_bps, n = link._set_ceiling(level_bps)
                carried_bps += rate_bps
                held += n
            spare_bps = self.capacity_bps - carried_bps
            # Only the first step may go down: it lands at or below the answer, and from there every
            # step goes up.
            if spare_bps < 0 and not started:
                level_bps = max(lowest_bps, level_bps + spare_bps / held) if held else lowest_bps
            elif spare_bps > 0 and held and level_bps + spare_bps / held > level_bps:
                level_bps += spare_bps / held
            else:
                break
            started = True
        self._level_bps = level_bps


def _exact(bps: float) -> int:
    """A float as a whole number of the smallest step between floats, so that sums lose nothing."""
    numerator, denominator = bps.as_integer_ratio()
    return numerator << (PER_UNIT + 1 - denominator.bit_length())
