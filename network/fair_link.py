"""One link, shared fairly: when does the last byte of each transfer pass?

Transfers share the link's capacity C by max-min fairness under their own caps: transfer i moves at
min(cap_i, level), where the water level makes the rates add up to C, or everyone runs at its cap.
The link keeps two groups:

    at the level   all move alike, so the link counts the bits V that each of them has received
                   (virtual service time,
                   dV/dt = level); one that joins at V0 with S bits left ends when V reaches V0 +
                   S, whoever comes later
    at their cap   a constant rate, so the end is a fixed instant

A change (arrival, departure, capacity, cap, ceiling) only moves the level, and with it the few
transfers whose cap the level crosses: O(log n) plus O(log n) per crossing. Heaps delete lazily: an
entry counts only while its ticket is its transfer's present one, and a ticket is never used twice,
so that an old entry cannot come back to life.

Virtual time of a shared server: Parekh & Gallager, "A generalized processor sharing approach to
flow control" (1993).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import fsum, inf
from typing import Protocol

import numpy as np
import simpy

from network.bandwidth import CapacityTrace
from network.errors import NetworkError
from network.occupancy import Occupancy

# Ends closer together than this share of the clock are one instant: a few rounding errors of a
# float64, not a model.
CLOCK_ROUNDING = 1e-15


class Transfer(simpy.Event):
    """Bytes under way: an event that succeeds, with the finish time in seconds, when the last byte
    has passed.

    `rate_bps` is for shared air (`wifi.py`): what the station would move with the channel to
    itself.
    """

    __slots__ = (
        "_airtime",
        "_bits",
        "_capped",
        "_order",
        "_past",
        "_since_s",
        "_ticket",
        "_weight",
        "cap_bps",
        "link",
        "moved_bytes",
        "nbytes",
        "rate_bps",
    )
    # the link's notes about it, from when it joins
    _order: int
    _capped: bool
    _bits: float
    _since_s: float
    _weight: float  # on shared air alone, and
    _airtime: float

    def __init__(
        self,
        env: simpy.Environment,
        nbytes: float,
        cap_bps: float = inf,
        rate_bps: float = inf,
    ):
        if not 0 <= nbytes < inf:
            raise NetworkError(f"a transfer needs a finite number of bytes >= 0, not {nbytes}")
        cap_bps = min(cap_bps, rate_bps)
        if not cap_bps >= 0:
            raise NetworkError(f"a transfer's cap must be >= 0 bit/s, not {cap_bps}")
        self.env = env  # what `Event.__init__` does, without the call, as SimPy's own events do
        self.callbacks = []
        self.nbytes = nbytes
        self.cap_bps = cap_bps
        self.rate_bps = rate_bps
        self.link: FairLink | None = None
        self.moved_bytes: float | None = None  # known once the transfer has ended or was aborted
        self._ticket = -1
        self._past = 0  # no ticket that it had elsewhere was higher


class Trunk(Protocol):
    """What several links lead into, and may hold each of them down: a FairTrunk."""

    capacity_bps: float
    trace: CapacityTrace | None

    @property
    def ceiling_bps(self) -> float:
        """What holds down every link's level now; infinite while nothing does."""

    def add(self, link: FairLink) -> None:
        """One more link that leads into it."""

    def rebalance(self, changed: FairLink) -> None:
        """Find everybody's level after a change in one link."""


HeapEntry = tuple[float, int, Transfer]  # of a heap: what it is ordered by, ticket, transfer


class FairLink:
    """A link of `capacity_bps` bit/s that its transfers share by max-min fairness under
    per-transfer caps.

    An infinite capacity is allowed when every transfer has a finite cap. A `trunk` (FairTrunk) may
    hold the level down.
    """

    def __init__(self, env: simpy.Environment, capacity_bps: float, trunk: Trunk | None = None):
        if not capacity_bps >= 0:
            raise NetworkError(f"a link's capacity must be >= 0 bit/s, not {capacity_bps}")
        self.env = env
        self.capacity_bps = capacity_bps
        # what its capacity follows, if it is known to follow a trace
        self.trace: CapacityTrace | None = None
        # the water level now; the ceiling (inf without a trunk) while everyone runs at its cap
        self.level_bps = inf
        self.trunk = trunk
        self._ceiling_bps = inf

        self._n_level = 0
        self._volume_bits = 0.0  # V, of the group at the level
        self._ends_at_volume: list[HeapEntry] = []  # (V at the end, ticket, transfer)
        # (cap, ticket, transfer); those without a cap never enter it
        self._level_by_cap: list[HeapEntry] = []
        self._n_capped = 0
        self._capped_bps = 0.0
        self._ends_at_time: list[HeapEntry] = []  # (end, ticket, transfer)
        self._capped_by_cap: list[HeapEntry] = []  # (-cap, ticket, transfer)
        self._ticket = 0
        self._admitted = 0
        self._caps_bps = 0.0  # sum over all transfers with a finite cap
        self._n_uncapped = 0

        self._last_s = env.now
        self._occupancy = Occupancy()
        self._timer: simpy.Event | None = None
        self._timer_s = inf
        if trunk is not None:
            trunk.add(self)

    # ---- what users call

    def transfer(self, nbytes: float, cap_bps: float = inf) -> Transfer:
        """Send `nbytes` bytes, never faster than `cap_bps`; the event's value is the finish time in
        seconds.
        """
        return self.admit(Transfer(self.env, nbytes, cap_bps))

    def admit(self, transfer: Transfer, left_bits: float | None = None) -> Transfer:
        """Let a transfer made elsewhere join now, whole or with what `release` left; one of zero
        bytes ends at once.
        """
        if transfer.link is not None or transfer.moved_bytes is not None:
            raise NetworkError(
                "this transfer has already been sent: make a new one for each payload"
            )
        cap_bps = transfer.cap_bps
        if cap_bps == inf and self.capacity_bps == inf:
            raise NetworkError("a transfer without a cap needs a link of finite capacity")
        transfer.link = self
        if transfer.nbytes == 0:
            transfer.moved_bytes = 0
            transfer.succeed(self.env.now)
            return transfer
        self._advance()
        if self.trunk is not None and not self.n_flows:
            self._set_ceiling(self.trunk.ceiling_bps)  # while it carried nothing, nobody told it
        self._ticket = max(
            self._ticket, transfer._past
        )  # or an entry that it left on another link could match again
        self._admitted += 1
        transfer._order = self._admitted
        self._enter(transfer, 8.0 * transfer.nbytes if left_bits is None else left_bits)
        self._relevel()
        self._settle()
        return transfer

    def release(self, transfer: Transfer) -> float:
        """Take a transfer under way off the link and return the bits that it has left, for another
        link to `admit`.
        """
        if transfer.link is not self or transfer.moved_bytes is not None:
            raise NetworkError("release() needs a transfer that is under way on this link")
        self._advance()
        left_bits = self._leave(transfer)
        transfer.link, transfer._past = None, self._ticket
        self._relevel()
        self._settle()
        return left_bits

    def abort(self, transfer: Transfer) -> float:
        """Take a transfer off the link; return the bytes that had passed, all of them if it had
        already ended.

        An aborted event never succeeds. Whole bytes are counted, rounded to the nearest.
        """
        if getattr(transfer, "link", None) is not self:
            raise NetworkError("abort() needs an event that this link's transfer() returned")
        if transfer.moved_bytes is None:
            self._advance()
            transfer.moved_bytes = transfer.nbytes - min(
                transfer.nbytes, round(self._leave(transfer) / 8)
            )
            self._relevel()
            self._settle()
        return transfer.moved_bytes

    def left_bits(self, transfer: Transfer) -> float:
        """Bits that a transfer under way here has left now; a look, like the counters below."""
        if transfer._capped:
            return max(0.0, transfer._bits - transfer.cap_bps * (self.env.now - transfer._since_s))
        volume_bits = self._volume_bits + self.level_bps * (self.env.now - self._last_s)
        return max(0.0, transfer._bits - volume_bits)

    def set_capacity(self, capacity_bps: float) -> None:
        """Re-rate the link from now on; 0 bit/s stops it until a later call."""
        if not 0 <= capacity_bps < inf:
            raise NetworkError(
                f"a link's new capacity must be finite and >= 0 bit/s, not {capacity_bps}"
            )
        self._advance()
        self.capacity_bps = capacity_bps
        self._relevel()
        self._settle()

    def set_cap(self, transfer: Transfer, cap_bps: float) -> None:
        """Re-rate the cap of a transfer under way; one that has ended is left alone."""
        if transfer.link is not self or not 0 <= cap_bps < inf:
            raise NetworkError(
                "set_cap() needs a transfer of this link and a finite cap >= 0 bit/s, not "
                f"{cap_bps}"
            )
        if transfer.moved_bytes is None:
            self._advance()
            left_bits = self._leave(transfer)
            transfer.cap_bps = cap_bps
            self._enter(transfer, left_bits)
            self._relevel()
            self._settle()

    @property
    def n_flows(self) -> int:
        """Transfers under way now."""
        return self._n_level + self._n_capped

    @property
    def rate_bps(self) -> float:
        """Sum of the rates now, bit/s."""
        return (
            self._capped_bps + self._n_level * self.level_bps if self._n_level else self._capped_bps
        )

    @property
    def demand_bps(self) -> float:
        """What the transfers would take if nothing outside this link held them back, bit/s."""
        return self.capacity_bps if self._n_uncapped else min(self.capacity_bps, self._caps_bps)

    # These look without touching: a float sum split at the moment of a look would change later
    # results.

    @property
    def bytes_carried(self) -> float:
        """Bytes that have passed since the link was made, aborted transfers' included."""
        return (self._occupancy.bits + self.rate_bps * (self.env.now - self._last_s)) / 8

    def busy_times(self) -> np.ndarray:
        """When transfers were on the link, a row a time without a gap: from, until (s), bytes;
        float64 (times, 3).
        """
        since_s, now = self._last_s, self.env.now
        if not self.n_flows or now == since_s:
            return self._occupancy.times()
        return self._occupancy.with_(since_s, now, self.rate_bps * (now - since_s)).times()

    @property
    def busy_s(self) -> float:
        """Seconds during which at least one transfer was on the link."""
        return fsum(np.diff(self.busy_times()[:, :2]).flat)

    # ---- what a trunk calls, after `_advance`

    def _set_ceiling(self, ceiling_bps: float) -> tuple[float, int]:
        """Hold the level at or under a ceiling; return the rate, bit/s, and how many transfers the
        ceiling holds.
        """
        if ceiling_bps != self._ceiling_bps:
            self._ceiling_bps = ceiling_bps
            self._relevel()
        if not self._n_level:
            return self._capped_bps, 0
        held = self._n_level if self.level_bps == ceiling_bps else 0
        return self._capped_bps + self._n_level * self.level_bps, held

    # ---- the mechanics

    def _advance(self) -> None:
        """Bring the counters to the present."""
        now, since_s = self.env.now, self._last_s
        elapsed_s = now - since_s
        if elapsed_s > 0:
            self._last_s = now
            bps = self._capped_bps
            if self._n_level:
                self._volume_bits += self.level_bps * elapsed_s
                bps += self._n_level * self.level_bps
            elif not self._n_capped:
                return
            self._occupancy.note(since_s, now, bps * elapsed_s)

    def _enter(self, transfer: Transfer, left_bits: float) -> None:
        cap_bps = transfer.cap_bps
        if cap_bps == inf:
            self._n_uncapped += 1
            self._to_level(transfer, left_bits)
        else:
            self._caps_bps += cap_bps
            (self._to_cap if cap_bps <= self.level_bps else self._to_level)(transfer, left_bits)

    def _leave(self, transfer: Transfer) -> float:
        """Take a transfer out of its group and return the bits it has left."""
        if transfer.cap_bps == inf:
            self._n_uncapped -= 1
        else:
            self._caps_bps -= transfer.cap_bps
        left_bits = self._from_cap(transfer) if transfer._capped else self._from_level(transfer)
        if not self._n_level and not self._n_capped:
            self._caps_bps = 0.0  # what rounding left behind ends with the busy period
        return left_bits

    def _to_level(self, transfer: Transfer, left_bits: float) -> None:
        self._ticket = ticket = self._ticket + 1
        transfer._ticket = ticket
        transfer._capped = False
        transfer._bits = end = self._volume_bits + left_bits
        self._n_level = n = self._n_level + 1
        heappush(self._ends_at_volume, (end, ticket, transfer))
        if len(self._ends_at_volume) > 2 * n + 64:
            _sweep(self._ends_at_volume)
        if transfer.cap_bps != inf:
            heappush(self._level_by_cap, (transfer.cap_bps, ticket, transfer))
            if len(self._level_by_cap) > 2 * n + 64:
                _sweep(self._level_by_cap)

    def _from_level(self, transfer: Transfer) -> float:
        transfer._ticket = -1
        left_bits = max(0.0, transfer._bits - self._volume_bits)
        self._n_level -= 1
        if not self._n_level:
            self._volume_bits = 0.0
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
        heappush(
            self._ends_at_time, (now + left_bits / cap_bps if cap_bps else inf, ticket, transfer)
        )
        if len(self._ends_at_time) > 2 * n + 64:
            _sweep(self._ends_at_time)
        heappush(self._capped_by_cap, (-cap_bps, ticket, transfer))
        if len(self._capped_by_cap) > 2 * n + 64:
            _sweep(self._capped_by_cap)

    def _from_cap(self, transfer: Transfer) -> float:
        transfer._ticket = -1
        self._n_capped -= 1
        self._capped_bps = self._capped_bps - transfer.cap_bps if self._n_capped else 0.0
        return max(0.0, transfer._bits - transfer.cap_bps * (self._last_s - transfer._since_s))

    def _relevel(self) -> None:
        """Find the water level, moving the transfers whose cap it crosses.

        First down, then up, each way once: every move of the first loop raises a level that was too
        low because too many were taken to run at their cap; every move of the second raises it
        further. So rounding cannot make a transfer hop to and fro for ever.
        """
        ceiling_bps = self._ceiling_bps
        by_cap = self._capped_by_cap
        while True:
            while by_cap and by_cap[0][2]._ticket != by_cap[0][1]:
                heappop(by_cap)
            largest_cap_bps = -by_cap[0][0] if by_cap else 0.0
            if not largest_cap_bps:
                self._capped_bps = (
                    0.0  # whatever rounding left behind would keep a link of 0 bit/s moving
                )
            room_bps = self.capacity_bps - self._capped_bps
            if self._n_level:
                level_bps = min(ceiling_bps, room_bps / self._n_level)
            else:
                level_bps = ceiling_bps if room_bps >= 0 else room_bps
            if not by_cap or largest_cap_bps <= level_bps:
                break
            transfer = heappop(by_cap)[2]
            self._to_level(transfer, self._from_cap(transfer))

        by_cap = self._level_by_cap
        while by_cap:
            cap_bps, ticket, transfer = by_cap[0]
            if transfer._ticket == ticket:
                if cap_bps > level_bps:
                    break
                heappop(by_cap)
                self._to_cap(transfer, self._from_level(transfer))
                if self._n_level:
                    level_bps = min(
                        ceiling_bps, (self.capacity_bps - self._capped_bps) / self._n_level
                    )
                else:
                    level_bps = ceiling_bps
            else:
                heappop(by_cap)
        self.level_bps = level_bps

    def _settle(self) -> None:
        if self.trunk is None:
            self._arm()
        else:
            self.trunk.rebalance(self)

    def _arm(self) -> None:
        """See to it that a timer fires no later than the next end.

        SimPy cannot cancel a timer, so one that fires too early is let be and armed again when it
        fires; only an end that comes earlier needs a new one, and the one it replaces is no longer
        `_timer` when it fires.
        """
        wait_s = inf
        ends = self._ends_at_volume
        while ends and ends[0][2]._ticket != ends[0][1]:
            heappop(ends)
        if ends and self.level_bps > 0:
            wait_s = (ends[0][0] - self._volume_bits) / self.level_bps
        ends = self._ends_at_time
        while ends and ends[0][2]._ticket != ends[0][1]:
            heappop(ends)
        if ends:
            wait_s = min(wait_s, ends[0][0] - self._last_s)
        if self._last_s + wait_s < self._timer_s:
            self._timer_s = self._last_s + wait_s
            self._timer = timer = self.env.timeout(max(0.0, wait_s))
            timer.callbacks.append(self._on_timer)

    def _on_timer(self, timer: simpy.Event) -> None:
        if timer is not self._timer:
            return
        self._timer = None
        self._timer_s = inf
        self._advance()
        now = self.env.now
        slack_s = CLOCK_ROUNDING * now
        ended = []
        ends = self._ends_at_volume
        due_bits = self._volume_bits + self.level_bps * slack_s if self._n_level else 0.0
        while ends and (ends[0][0] <= due_bits or ends[0][2]._ticket != ends[0][1]):
            _, ticket, transfer = heappop(ends)
            if transfer._ticket == ticket:
                ended.append(transfer)
                self._leave(transfer)
        ends = self._ends_at_time
        while ends and (ends[0][0] <= now + slack_s or ends[0][2]._ticket != ends[0][1]):
            _, ticket, transfer = heappop(ends)
            if transfer._ticket == ticket:
                ended.append(transfer)
                self._leave(transfer)
        if len(ended) > 1:
            ended.sort(key=_order)  # a tie goes to the one that came first
        for transfer in ended:
            transfer.moved_bytes = transfer.nbytes
            transfer.succeed(now)
        if ended:
            self._relevel()
            self._settle()
        else:
            self._arm()


def _order(transfer: Transfer) -> int:
    return transfer._order


def _sweep(heap: list[HeapEntry]) -> None:
    """Throw out the dead entries, so that a heap stays within twice its living."""
    heap[:] = [entry for entry in heap if entry[2]._ticket == entry[1]]
    heapify(heap)
