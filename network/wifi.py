"""Shared air: what a sender costs its neighbours is time on the channel, not bits.

A station that would move r bit/s with the channel to itself uses x / r of the channel's time to
move x bit/s. All of them together have the time there is:

    sum_i x_i / r_i <= airtime        (1 on WiFi)

Who gets what is the medium's manner:

    in turn   (WiFi uplink, DCF)  everyone sends equally often, so all move alike:  x = 1 / sum_i
              (1 / r_i).
              A slow station drags all the others down to it ("performance anomaly", Heusse et al.,
              INFOCOM 2003).
    fair      (WiFi downlink with airtime fairness, a cell's proportional fair scheduler)  everyone
              has the same share
              of the time, so x_i = r_i * airtime / n. A scheduler that serves each user when its
              own channel is good
              has more than one second a second to give: `airtime` is its opportunism gain, and
              nobody exceeds r_i.

Both are fair links with a second price. A transfer moves at min(cap_i, w_i * level), w_i = 1 in
turn and r_i if fair, and the level is the highest at which both the air and the wire behind it
(`capacity_bps`) suffice. So virtual time works as in `fair_link`: at the level all count the same
V, dV/dt = level; one that joins at V0 with S bits left ends at V0 + S / w_i.

Airtime fairness is the downlink's alone unless the access point schedules its stations:
Hoeiland-Joergensen et al., "Ending the Anomaly" (USENIX ATC 2017, arXiv 1703.00064).
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

import simpy

from network.errors import NetworkError
from network.fair_link import FairLink, HeapEntry, Transfer, Trunk, _sweep


class AirLink(FairLink):
    """A channel that stations share by time on it, in turn or fairly, before a wire of
    `capacity_bps` bit/s.

    It is used as a FairLink is, with transfers that have a `rate_bps`. To change a station's rate,
    set its `rate_bps`, then `set_cap`. Under a trunk, stations in turn are held down one by one, as
    in any fair link; in a fair channel the trunk holds all of them together to as much as so many
    transfers are due, and the scheduler goes on giving them equal time.
    """

    def __init__(
        self,
        env: simpy.Environment,
        capacity_bps: float = inf,
        fair: bool = False,
        airtime: float = 1.0,
        trunk: Trunk | None = None,
    ):
        if not 0 < airtime < inf:
            raise NetworkError(
                f"a channel's airtime must be finite and > 0 s a second, not {airtime}"
            )
        super().__init__(env, capacity_bps, trunk)
        self.fair = fair
        self.airtime = airtime
        self._level_weight = 0.0  # bit/s of those at the level, per unit of level
        self._level_airtime = 0.0  # and their seconds a second
        self._capped_airtime = 0.0

    def transfer(self, nbytes: float, cap_bps: float = inf, rate_bps: float = inf) -> Transfer:
        """Send bytes from a station of this (finite) rate, never above `cap_bps`; the event's value
        is the finish time, s.
        """
        return self.admit(Transfer(self.env, nbytes, cap_bps, rate_bps))

    def left_bits(self, transfer: Transfer) -> float:
        """Bits that a transfer under way here has left now."""
        left_bits = super().left_bits(transfer)
        return left_bits if transfer._capped else left_bits * transfer._weight

    @property
    def rate_bps(self) -> float:
        """Sum of the rates now, bit/s."""
        return (
            self._capped_bps + self._level_weight * self.level_bps
            if self._n_level
            else self._capped_bps
        )

    @property
    def airtime_used(self) -> float:
        """Share of the channel's time in use now, s a second."""
        return (
            self._capped_airtime + self._level_airtime * self.level_bps
            if self._n_level
            else self._capped_airtime
        )

    def _set_ceiling(self, ceiling_bps: float) -> tuple[float, int]:
        if not self.fair:
            return super()._set_ceiling(ceiling_bps)
        if ceiling_bps != self._ceiling_bps:
            self._ceiling_bps = ceiling_bps
            self._relevel()
        rate_bps, n = self.rate_bps, self.n_flows
        return rate_bps, n if n and rate_bps >= n * ceiling_bps * (1 - 1e-12) else 0

    def _advance(self) -> None:
        elapsed_s = self.env.now - self._last_s
        if elapsed_s > 0:
            if self.n_flows:
                self._occupancy.note(self._last_s, self.env.now, self.rate_bps * elapsed_s)
                if self._n_level:
                    self._volume_bits += self.level_bps * elapsed_s
            self._last_s = self.env.now

    def _enter(self, transfer: Transfer, left_bits: float) -> None:
        rate_bps = transfer.rate_bps
        if not 0 <= rate_bps < inf or transfer.cap_bps > rate_bps:
            raise NetworkError(
                f"a station needs a finite rate_bps >= 0, and a cap not above it, not {rate_bps}"
            )
        transfer._weight = rate_bps if self.fair and rate_bps else 1.0
        transfer._airtime = (
            transfer._weight / rate_bps if rate_bps else 0.0
        )  # who cannot be heard takes no time
        self._caps_bps += transfer.cap_bps
        at_cap = transfer.cap_bps <= transfer._weight * self.level_bps
        (self._to_cap if at_cap else self._to_level)(transfer, left_bits)

    def _to_level(self, transfer: Transfer, left_bits: float) -> None:
        self._ticket = ticket = self._ticket + 1
        transfer._ticket = ticket
        transfer._capped = False
        transfer._bits = end = self._volume_bits + left_bits / transfer._weight
        self._n_level = n = self._n_level + 1
        self._level_weight += transfer._weight
        self._level_airtime += transfer._airtime
        self._push(self._ends_at_volume, end, transfer, n)
        self._push(self._level_by_cap, transfer.cap_bps / transfer._weight, transfer, n)

    def _from_level(self, transfer: Transfer) -> float:
        left_bits = super()._from_level(transfer) * transfer._weight
        self._level_weight = self._level_weight - transfer._weight if self._n_level else 0.0
        self._level_airtime = self._level_airtime - transfer._airtime if self._n_level else 0.0
        return left_bits

    def _to_cap(self, transfer: Transfer, left_bits: float) -> None:
        self._ticket = ticket = self._ticket + 1
        cap_bps = transfer.cap_bps
        transfer._ticket = ticket
        transfer._capped = True
        transfer._bits = left_bits
        transfer._since_s = now = self._last_s
        self._n_capped = n = self._n_capped + 1
        self._capped_bps += cap_bps
        self._capped_airtime += cap_bps / transfer._weight * transfer._airtime
        self._push(self._ends_at_time, now + left_bits / cap_bps if cap_bps else inf, transfer, n)
        self._push(self._capped_by_cap, -cap_bps / transfer._weight, transfer, n)

    def _from_cap(self, transfer: Transfer) -> float:
        left_bits = super()._from_cap(transfer)
        freed = transfer.cap_bps / transfer._weight * transfer._airtime
        self._capped_airtime = self._capped_airtime - freed if self._n_capped else 0.0
        return left_bits

    @staticmethod
    def _push(heap: list[HeapEntry], key: float, transfer: Transfer, n: int) -> None:
        heappush(heap, (key, transfer._ticket, transfer))
        if len(heap) > 2 * n + 64:
            _sweep(heap)

    def _relevel(self) -> None:
        """As in a fair link, first down, then up; moving one whose cap the level crosses only
        raises the level.
        """
        by_cap = self._capped_by_cap
        while True:
            while by_cap and by_cap[0][2]._ticket != by_cap[0][1]:
                heappop(by_cap)
            if not by_cap or not by_cap[0][0]:  # nobody moves at a cap, whatever rounding has left
                self._capped_bps = self._capped_airtime = 0.0
            level = self._highest_level()
            if not by_cap or -by_cap[0][0] <= level:
                break
            transfer = heappop(by_cap)[2]
            self._to_level(transfer, self._from_cap(transfer))

        by_cap = self._level_by_cap
        while by_cap and (by_cap[0][0] <= level or by_cap[0][2]._ticket != by_cap[0][1]):
            _, ticket, transfer = heappop(by_cap)
            if transfer._ticket == ticket:
                self._to_cap(transfer, self._from_level(transfer))
                level = self._highest_level()
        self.level_bps = level

    def _highest_level(self) -> float:
        """The level at which the wire or the air is full, if those at their cap stay there."""
        ceiling_bps, wire_bps = self._ceiling_bps, self.capacity_bps
        if (
            self.fair
        ):  # the level is a share of the time, so the trunk's ceiling becomes part of the wire
            wire_bps = min(wire_bps, ceiling_bps * self.n_flows) if self.n_flows else wire_bps
            ceiling_bps = inf
        wire_bps -= self._capped_bps
        airtime = self.airtime - self._capped_airtime
        if not self._n_level:
            return ceiling_bps if wire_bps >= 0 and airtime >= 0 else min(wire_bps, airtime)
        level = min(ceiling_bps, wire_bps / self._level_weight)
        return min(level, airtime / self._level_airtime) if self._level_airtime > 0 else level
