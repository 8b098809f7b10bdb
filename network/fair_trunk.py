"""Shared links that meet in one: cells and access points under a server's ingress.

On this two-level tree max-min fairness has a short form. There is one level L for the whole trunk,
and in each link the transfers stop rising at L or at the link's own water level, whichever is
lower. What the links then carry together,

    carried(L) = sum over links of min(capacity of the link, sum over its transfers of min(cap, L)),

is concave, increasing and piecewise linear in L, so Newton's method finds carried(L) = capacity of
the trunk exactly and in few steps, from below without overshooting. When the links together cannot
fill the trunk there is nothing to solve and each link minds its own transfers.

Max-min by progressive filling: Bertsekas & Gallager, "Data Networks" (2nd ed., 1992), section
6.5.2.
"""

from __future__ import annotations

from math import fsum, inf

import numpy as np
import simpy

from network.bandwidth import CapacityTrace
from network.errors import NetworkError
from network.fair_link import FairLink
from network.occupancy import union


class FairTrunk:
    """A link of `capacity_bps` bit/s fed by fair links; a change costs O(links + log transfers)
    when it binds.
    """

    def __init__(self, env: simpy.Environment, capacity_bps: float):
        if not capacity_bps >= 0:
            raise NetworkError(f"a link's capacity must be >= 0 bit/s, not {capacity_bps}")
        self.env = env
        self.capacity_bps = capacity_bps
        self.trace: CapacityTrace | None = None  # as a FairLink's
        self.links: list[FairLink] = []
        self._level_bps = 0.0  # of the last time it bound: where the next search starts
        self._binds = False

    def link(self, capacity_bps: float) -> FairLink:
        """A new fair link under this trunk; infinite if its transfers share nothing but the trunk
        (and have caps).
        """
        link = FairLink(self.env, capacity_bps, trunk=self)
        self.links.append(link)
        return link

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
        return sum(link.n_flows for link in self.links)

    @property
    def rate_bps(self) -> float:
        """Sum of the rates now, bit/s."""
        return fsum(link.rate_bps for link in self.links)

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
        if fsum([link.demand_bps for link in self.links]) > self.capacity_bps:
            for link in self.links:
                link._advance()
            self._find_level()
            self._binds = True
            touched = self.links
        elif self._binds or changed is None:
            for link in self.links:
                link._advance()
                link._set_ceiling(inf)
            self._binds = False
            touched = self.links
        else:
            touched = [changed]
        for link in touched:
            link._arm()

    def _find_level(self) -> None:
        lowest_bps = (
            self.capacity_bps / self.n_flows
        )  # nobody gets less, unless held lower by cap or link
        level_bps = max(self._level_bps, lowest_bps)
        started = False
        while True:
            carried_bps, held = 0.0, 0
            for link in self.links:
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
