"""One direction of one device's access link: what happens to a payload between being asked for and
its last byte.

A transfer waits its turn, pays overhead, latency and (with TCP) its slow start, and joins the share
of the link that its device is under. While it is under way it follows the device's rate, and the
device's cell, wherever they go.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import simpy

from network import tcp
from network.fair_link import FairLink, Transfer
from network.mobility import Journey
from network.profile import LinkProfile
from network.route import NUMBER, Rate, Route, TracedCapacities


class LaneTransfer(Transfer):
    """A payload of a lane: `nbytes` on the air, `payload_bytes` of them the user's; bits left, once
    it has started.

    Nothing of it can pass before `opens_s`.
    """

    __slots__ = ("lane", "left_bits", "opens_s", "payload_bytes")

    def __init__(self, lane: Lane, payload_bytes: float, on_air_bytes: float):
        super().__init__(lane.env, on_air_bytes)
        self.lane = lane
        self.payload_bytes = payload_bytes
        self.left_bits: float | None = None
        self.opens_s = -1.0

    def join(self, _: simpy.Event) -> None:
        """Set out, now that what comes before the first bit is over."""
        self.lane._join(self)


class Lane:
    """One direction of one device's access link: transfers go through one at a time, in order.

    `route` is what they pass: the device's own rate and the link that it is under. Rates and cells
    are looked at only while a transfer is under way: an idle device costs no events.
    """

    __slots__ = (
        *("bound_bps", "delay_s", "traced", "env", "handover_s"),
        *("profile", "resent_bytes", "sending", "uses_tcp", "waiting", "route"),
    )

    def __init__(
        self,
        env: simpy.Environment,
        route: Route,
        profile: LinkProfile,
        uses_tcp: bool,
        handover_s: float,
        traced: TracedCapacities,
    ):
        self.env = env
        self.route = route
        self.profile = profile
        self.delay_s = profile.overhead_s + profile.latency_s
        self.uses_tcp = uses_tcp
        self.bound_bps = tcp.bound_bps(profile) if uses_tcp else inf
        self.handover_s = handover_s
        self.traced = traced
        self.resent_bytes = 0.0
        self.sending: LaneTransfer | None = None
        # few wait; an empty list of each lane weighs more than all that do
        self.waiting: tuple[LaneTransfer, ...] = ()

    def send(self, nbytes: float) -> LaneTransfer:
        on_air_bytes = tcp.on_air_bytes(nbytes, self.profile.loss) if self.uses_tcp else nbytes
        transfer = LaneTransfer(self, nbytes, on_air_bytes)
        transfer.callbacks.append(self._next)
        self.waiting += (transfer,)
        if self.sending is None:
            self._next()
        return transfer

    def abort(self, transfer: LaneTransfer) -> float:
        """Give up a transfer; return the bytes of its payload that had passed."""
        moved_bytes = transfer.moved_bytes
        if moved_bytes is None:
            if transfer.link is not None:
                moved_bytes = transfer.link.abort(transfer)
            else:
                left_bits = transfer.left_bits  # between two cells, or not on its way yet
                moved_bytes = (
                    0
                    if left_bits is None
                    else transfer.nbytes - min(transfer.nbytes, round(left_bits / 8))
                )
                transfer.moved_bytes = moved_bytes
                if transfer is not self.sending:
                    self.waiting = tuple(one for one in self.waiting if one is not transfer)
            if transfer is self.sending:
                self._count_resent(transfer, moved_bytes)
                self._next()
        return self._passed(transfer, moved_bytes)

    def progress(self, transfer: LaneTransfer) -> tuple[float, float, float]:
        """Bytes of its payload that have passed, the most that pass a second as things are, and
        until when they are so, s.
        """
        if transfer.moved_bytes is not None:
            return self._passed(transfer, transfer.moved_bytes), 0.0, inf
        left_bits = (
            transfer.link.left_bits(transfer) if transfer.link is not None else transfer.left_bits
        )
        share = (
            transfer.payload_bytes / transfer.nbytes if transfer.nbytes else 0.0
        )  # of what is on the air
        passed = 0.0 if left_bits is None else (transfer.nbytes - left_bits / 8) * share
        rate = self.route.rate
        until_s = inf if isinstance(rate, NUMBER) else rate.next_change(self.env.now)
        return passed, min(self._rate_bps(), self.bound_bps) / 8 * share, until_s

    def _passed(self, transfer: LaneTransfer, moved_bytes: float) -> float:
        """Bytes of its payload in what has moved on the air."""
        if transfer.nbytes == transfer.payload_bytes or moved_bytes == 0:
            return moved_bytes
        return round(transfer.payload_bytes * (moved_bytes / transfer.nbytes))

    def _count_resent(self, transfer: LaneTransfer, moved_bytes: float) -> None:
        self.resent_bytes += moved_bytes - self._passed(transfer, moved_bytes)

    def _next(self, ended: LaneTransfer | None = None) -> None:
        if ended is not None:
            self._count_resent(ended, ended.nbytes)
        if not self.waiting:
            self.sending = None
            self.traced.rest(self)
            return
        self.sending = transfer = self.waiting[0]
        self.waiting = self.waiting[1:]
        self.traced.set_out(self)
        delay_s = (
            self.delay_s + self._slow_start_s(transfer.nbytes) if self.uses_tcp else self.delay_s
        )
        if delay_s > 0:
            self.env.timeout(delay_s).callbacks.append(transfer.join)
        else:
            self._join(transfer)

    def _slow_start_s(self, nbytes: float) -> float:
        alone_bps = min(self._rate_bps(), self.bound_bps)
        return tcp.slow_start_s(
            nbytes, alone_bps, self.profile.rtt_s, self.profile.initial_window_bytes
        )

    def _rate_bps(self) -> float:
        rate = self.route.rate
        return rate if isinstance(rate, NUMBER) else rate.at(self.env.now)

    def _link(self) -> FairLink:
        return self.route.link(self.env.now)

    def _join(self, transfer: LaneTransfer) -> None:
        if transfer.moved_bytes is not None:
            return  # aborted on the way
        transfer.rate_bps = self._rate_bps() if self.may_move() else 0.0
        transfer.cap_bps = min(transfer.rate_bps, self.bound_bps)
        if transfer.left_bits is None:
            transfer.left_bits = 8.0 * transfer.nbytes
            self._at_change(self.route.rate, self._re_rate, transfer)
            self._at_change(self.route.journey, self._hand_over, transfer)
        self._link().admit(transfer, transfer.left_bits)

    def may_move(self) -> bool:
        """Whether bits of the transfer under way pass now, or ever will."""
        transfer, now = self.sending, self.env.now
        if transfer is None:
            return False
        if transfer.opens_s < now:
            transfer.opens_s = (
                self.route.opens(now) if self.route.carries(8 * transfer.nbytes) else inf
            )
        return transfer.opens_s < inf

    def _at_change(
        self,
        of: float | Rate | Journey | None,
        act: Callable[[LaneTransfer], None],
        transfer: LaneTransfer,
    ) -> None:
        """Wake at the next change, as long as this transfer lasts and may still move."""
        if of is None or isinstance(of, NUMBER):
            return  # nothing will ever change
        change_s = of.next_change(self.env.now) if self.may_move() else inf
        if change_s < inf:
            self._at(change_s, act, transfer)

    def _at(
        self, time_s: float, act: Callable[[LaneTransfer], None], transfer: LaneTransfer
    ) -> None:
        self.env.timeout(time_s - self.env.now).callbacks.append(lambda _: act(transfer))

    def _re_rate(self, transfer: LaneTransfer) -> None:
        if transfer.moved_bytes is None:
            if (
                transfer.link is not None
            ):  # else it is between two cells and will look when it arrives
                transfer.rate_bps = self._rate_bps() if self.may_move() else 0.0
                transfer.link.set_cap(transfer, min(transfer.rate_bps, self.bound_bps))
            self._at_change(self.route.rate, self._re_rate, transfer)

    def _hand_over(self, transfer: LaneTransfer) -> None:
        if transfer.moved_bytes is None:
            if transfer.link is not None and transfer.link is not self._link():
                transfer.left_bits = transfer.link.release(transfer)
                if self.handover_s > 0:
                    self._at(self.env.now + self.handover_s, self._join, transfer)
                else:
                    self._join(transfer)
            self._at_change(self.route.journey, self._hand_over, transfer)
