"""Who shares what: access links, cells or access points, the server's ingress and egress.

    device --access link--> [cell or access point, if any] --> server ingress      (upload)
    device <--access link-- [cell or access point, if any] <-- server egress       (download)

A transfer first waits for the device's earlier ones in its direction (one at a time, in order), then pays the
profile's overhead and one-way latency, then moves at its max-min fair share of everything on its way, never faster than
its access link:

    finish = start + overhead_s + latency_s + fluid time

Up and down are independent (full duplex).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf

import simpy

from network.bandwidth import CapacityTrace, drive
from network.errors import NetworkError
from network.fair_link import FairLink, Transfer
from network.fair_trunk import FairTrunk
from network.profile import LinkProfile


@dataclass(frozen=True)
class Cell:
    """What the devices of one cell or access point share: capacities in bit/s, towards the server and from it."""

    up_bps: float
    down_bps: float


class Network:
    """The links between a fleet and its server.

    `ingress_bps`, `egress_bps`: the server's capacities (egress as ingress if not given). `traces`: capacity over time
    of shared links, keyed "ingress", "egress", "<cell>/up" or "<cell>/down". `shared` holds those links under the same
    keys, with their counters. Raises NetworkError for a name that does not exist, with the nearest that does.
    """

    def __init__(
        self,
        env: simpy.Environment,
        ingress_bps: float = inf,
        egress_bps: float | None = None,
        cells: Mapping[str, Cell] | None = None,
        traces: Mapping[str, CapacityTrace] | None = None,
    ):
        self.env = env
        cells = dict(cells or {})
        egress_bps = ingress_bps if egress_bps is None else egress_bps
        self.shared: dict[str, FairLink | FairTrunk] = {}
        self._up = self._share("ingress", ingress_bps, {name: cell.up_bps for name, cell in cells.items()}, "up")
        self._down = self._share("egress", egress_bps, {name: cell.down_bps for name, cell in cells.items()}, "down")
        self._lanes: dict[str, tuple[_Lane, _Lane]] = {}
        for name, trace in (traces or {}).items():
            env.process(drive(env, _named(self.shared, name, "shared link"), trace))

    def attach(
        self,
        device_id: str,
        profile: LinkProfile,
        cell: str | None = None,
        trace: CapacityTrace | None = None,
        down_trace: CapacityTrace | None = None,
    ) -> None:
        """Connect a device, under a cell or straight to the server; traces replace the profile's up and down rates."""
        if device_id in self._lanes:
            raise NetworkError(f"device {device_id!r} is attached already: give each device its own id")
        delay_s = profile.overhead_s + profile.latency_s
        up = _named(self._up, cell, "cell")
        down = _named(self._down, cell, "cell")
        self._lanes[device_id] = (
            _Lane(self.env, up, profile.up_bps, delay_s, trace),
            _Lane(self.env, down, profile.down_bps, delay_s, down_trace),
        )

    def upload(self, device_id: str, nbytes: float) -> simpy.Event:
        """Send bytes from a device to the server; the event's value is the finish time, s."""
        return _named(self._lanes, device_id, "attached device")[0].send(nbytes)

    def download(self, device_id: str, nbytes: float) -> simpy.Event:
        """Send bytes from the server to a device; the event's value is the finish time, s."""
        return _named(self._lanes, device_id, "attached device")[1].send(nbytes)

    def abort(self, event: simpy.Event) -> float:
        """Give up a transfer; return the bytes that had passed (0 while it waits, all of them once it has ended)."""
        if not isinstance(event, _Sent):
            raise NetworkError("abort() needs an event that upload() or download() returned")
        return event.lane.abort(event)

    def _share(self, name: str, capacity_bps: float, cells: dict[str, float], direction: str) -> dict:
        """The link that a device enters, by the name of its cell (None: no cell)."""
        if not cells:
            self.shared[name] = link = FairLink(self.env, capacity_bps)
            return {None: link}
        self.shared[name] = trunk = FairTrunk(self.env, capacity_bps)
        links = {cell: trunk.link(bps) for cell, bps in cells.items()}
        self.shared |= {f"{cell}/{direction}": link for cell, link in links.items()}
        return {None: trunk.link(inf), **links}


class InstantNetwork:
    """A network whose transfers take no time: for tests, and to see a method without its network."""

    def __init__(self, env: simpy.Environment):
        self.env = env

    def attach(self, device_id: str, profile=None, cell=None, trace=None, down_trace=None) -> None:
        """Nothing to connect."""

    def upload(self, device_id: str, nbytes: float) -> simpy.Event:
        """An event that succeeds now."""
        transfer = Transfer(self.env, nbytes)
        transfer.moved_bytes = nbytes
        return transfer.succeed(self.env.now)

    download = upload

    def abort(self, event: simpy.Event) -> float:
        """All the bytes: they passed at once."""
        return event.moved_bytes


class _Sent(Transfer):
    __slots__ = ("lane",)


class _Lane:
    """One direction of one device's access link: transfers go through one at a time, in order."""

    __slots__ = ("delay_s", "env", "link", "rate_bps", "sending", "trace", "waiting")

    def __init__(self, env, link: FairLink, rate_bps: float, delay_s: float, trace: CapacityTrace | None):
        self.env = env
        self.link = link
        self.rate_bps = rate_bps
        self.delay_s = delay_s
        self.trace = trace
        self.sending: _Sent | None = None
        self.waiting: deque[_Sent] = deque()

    def send(self, nbytes: float) -> _Sent:
        transfer = _Sent(self.env, nbytes, self.rate_bps)
        transfer.lane = self
        transfer.callbacks.append(self._next)
        self.waiting.append(transfer)
        if self.sending is None:
            self._next()
        return transfer

    def abort(self, transfer: _Sent) -> float:
        if transfer.link is not None:
            moved_bytes = self.link.abort(transfer)
        elif transfer.moved_bytes is None:
            transfer.moved_bytes = moved_bytes = 0
            if transfer is not self.sending:
                self.waiting.remove(transfer)
        else:
            return transfer.moved_bytes
        if transfer is self.sending and not transfer.triggered:
            self._next()
        return moved_bytes

    def _next(self, _ended: simpy.Event | None = None) -> None:
        self.sending = transfer = self.waiting.popleft() if self.waiting else None
        if transfer is None:
            return
        if self.delay_s > 0:
            self.env.timeout(self.delay_s).callbacks.append(lambda _: self._join(transfer))
        else:
            self._join(transfer)

    def _join(self, transfer: _Sent) -> None:
        if transfer.moved_bytes is not None:
            return  # aborted on the way
        if self.trace is not None:
            transfer.cap_bps = self.trace.at(self.env.now)
            self._follow_trace(transfer)
        self.link.admit(transfer)

    def _follow_trace(self, transfer: _Sent) -> None:
        """Wake at the trace's next change, as long as this transfer lasts: an idle device costs no events."""
        change_s = self.trace.next_change(self.env.now)
        if change_s < inf:
            self.env.timeout(change_s - self.env.now).callbacks.append(lambda _: self._re_rate(transfer))

    def _re_rate(self, transfer: _Sent) -> None:
        if transfer.moved_bytes is None:
            self.link.set_cap(transfer, self.trace.at(self.env.now))
            self._follow_trace(transfer)


def _named(known: Mapping, name, kind: str):
    try:
        return known[name]
    except KeyError:
        near = get_close_matches(str(name), [str(k) for k in known if k is not None], n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NetworkError(f"no {kind} is called {name!r}{hint}") from None
