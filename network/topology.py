"""Who shares what: access links, cells or access points, the server's ingress and egress.

    device --access link--> [cell or access point, if any] --> server ingress      (upload)
    device <--access link-- [cell or access point, if any] <-- server egress       (download)

A transfer first waits for the device's earlier ones in its direction (one at a time, in order),
then pays the profile's overhead and one-way latency, then moves at its max-min fair share of
everything on its way, never faster than its access link:

    finish = start + overhead_s + latency_s + fluid time

Up and down are independent (full duplex). What may be asked for on top: cells of shared air
(`wifi.py`), rates that vary (`bandwidth.py`, `varying.py`), what TCP makes of loss and windows
(`tcp.py`), devices that move (`mobility.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import fsum, inf
from typing import Literal, TypeVar

import simpy

from network.bandwidth import CapacityTrace
from network.errors import NetworkError
from network.fair_link import FairLink, Transfer
from network.fair_trunk import FairTrunk
from network.lane import Lane, LaneTransfer
from network.mobility import Journey
from network.profile import LinkProfile
from network.route import Rate, Route, TracedCapacities
from network.wifi import AirLink

Key = TypeVar("Key")
Named = TypeVar("Named")


@dataclass(frozen=True)
class Cell:
    """What the devices of one cell or access point share: capacities in bit/s, towards the server
    and from it.

    `shared` is a pipe; `wifi` and `cellular` are air, with a wire of `up_bps` and `down_bps` behind
    it. On `wifi` stations send in turn (`fair_uplink`: by equal time, where the access point
    schedules them) and receive by equal time; a `cellular` scheduler gives equal time both ways,
    `gain` seconds a second when several compete.
    """

    up_bps: float = inf
    down_bps: float = inf
    kind: Literal["shared", "wifi", "cellular"] = "shared"
    gain: float = 1.0
    fair_uplink: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("shared", "wifi", "cellular"):
            raise NetworkError(f"a cell is 'shared', 'wifi' or 'cellular', not {self.kind!r}")
        if not 1 <= self.gain < inf or (self.gain != 1 and self.kind != "cellular"):
            raise NetworkError(
                f"a gain is finite and >= 1, and a cellular scheduler's alone, not {self.gain}"
            )
        if self.fair_uplink and self.kind != "wifi":
            raise NetworkError(
                "fair_uplink is for a cell of kind wifi: the others are fair already"
            )


class Network:
    """The links between a fleet and its server.

    `ingress_bps`, `egress_bps`: the server's capacities (egress as ingress if not given). `traces`:
    capacity over time of shared links, keyed "ingress", "egress", "<cell>/up" or "<cell>/down".
    `shared` holds those links under the same keys, with their counters. Raises NetworkError for a
    name that does not exist, with the nearest that does.
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
        self._up = self._share("ingress", ingress_bps, cells, "up")
        self._down = self._share("egress", egress_bps, cells, "down")
        self._lanes: dict[str, tuple[Lane, Lane]] = {}
        self._routes: dict[tuple[float, FairLink], Route] = {}
        for name, trace in (traces or {}).items():
            _named(self.shared, name, "shared link").trace = trace
        self._traced = TracedCapacities(
            env, [(link, link.trace) for link in self.shared.values() if link.trace], self._moves
        )

    def attach(
        self,
        device_id: str,
        profile: LinkProfile,
        cell: str | None = None,
        trace: Rate | None = None,
        down_trace: Rate | None = None,
        tcp: bool = False,
        journey: Journey | None = None,
        handover_s: float = 0.0,
    ) -> None:
        """Connect a device, under a cell or straight to the server; traces replace the profile's up
        and down rates.

        `tcp`: count the profile's loss and windows. `journey`: the cells that it moves through; a
        transfer under way stands still for `handover_s` when the cell changes and goes on in the
        new one with the bytes that are left.
        """
        if device_id in self._lanes:
            raise NetworkError(
                f"device {device_id!r} is attached already: give each device its own id"
            )
        if journey and cell is not None:
            raise NetworkError(
                f"device {device_id!r} has a journey, which says in which cell it is: leave out "
                "the cell"
            )
        if not 0 <= handover_s < inf:
            raise NetworkError(f"handover_s must be finite and >= 0 s, not {handover_s}")
        lanes = []
        for links, rate in (
            (self._up, trace or profile.up_bps),
            (self._down, down_trace or profile.down_bps),
        ):
            for name in journey.cells if journey else (cell,):
                _named(links, name, "cell")
            route = self._route(rate, links, cell, journey)
            lane = Lane(self.env, route, profile, tcp, handover_s, self._traced)
            lanes.append(lane)
        self._lanes[device_id] = (lanes[0], lanes[1])

    def _route(
        self,
        rate: Rate | float,
        links: dict[str | None, FairLink],
        cell: str | None,
        journey: Journey | None,
    ) -> Route:
        if journey:
            return Route(rate, {name: links[name] for name in journey.cells}, journey)
        if not isinstance(rate, float | int):
            return Route(rate, {None: links[cell]})
        key = (rate, links[cell])
        if key not in self._routes:  # one for all devices alike
            self._routes[key] = Route(rate, {None: links[cell]})
        return self._routes[key]

    def upload(self, device_id: str, nbytes: float) -> LaneTransfer:
        """Send bytes from a device to the server; the event's value is the finish time, s."""
        return _named(self._lanes, device_id, "attached device")[0].send(nbytes)

    def download(self, device_id: str, nbytes: float) -> LaneTransfer:
        """Send bytes from the server to a device; the event's value is the finish time, s."""
        return _named(self._lanes, device_id, "attached device")[1].send(nbytes)

    def alone_s(self, device_id: str, nbytes: float) -> float:
        """Least seconds of bytes down to a device and as many up again: nobody else sends; a rate
        that varies costs nothing.
        """
        return fsum(
            lane.delay_s
            + (8 * nbytes / lane.route.rate if isinstance(lane.route.rate, float) else 0.0)
            for lane in _named(self._lanes, device_id, "attached device")
        )

    def abort(self, event: simpy.Event) -> float:
        """Give up a transfer; return the bytes that had passed (0 while it waits, all of them once
        it has ended).
        """
        sent = _sent(event, "abort")
        return sent.lane.abort(sent)

    def progress(self, event: simpy.Event) -> tuple[float, float, float]:
        """Bytes of a transfer that have passed, the most that pass a second as things are, and
        until when they are so, s.
        """
        sent = _sent(event, "progress")
        return sent.lane.progress(sent)

    @property
    def resent_bytes(self) -> float:
        """Bytes that had to be sent again, up and down, in the transfers that have ended or were
        given up.
        """
        return fsum(lane.resent_bytes for lanes in self._lanes.values() for lane in lanes)

    def _moves(self) -> bool:
        """Whether anything under way moves now."""
        return bool(self.shared["ingress"].rate_bps or self.shared["egress"].rate_bps)

    def _share(
        self, name: str, capacity_bps: float, cells: dict[str, Cell], direction: str
    ) -> dict[str | None, FairLink]:
        """The link that a device enters, by the name of its cell (None: no cell)."""
        if not cells:
            self.shared[name] = link = FairLink(self.env, capacity_bps)
            return {None: link}
        self.shared[name] = trunk = FairTrunk(self.env, capacity_bps)
        links: dict[str | None, FairLink] = {}
        for cell, how in cells.items():
            links[cell] = self.shared[f"{cell}/{direction}"] = self._medium(how, trunk, direction)
        links[None] = trunk.link(inf)
        return links

    def _medium(self, cell: Cell, trunk: FairTrunk, direction: str) -> FairLink:
        capacity_bps = cell.up_bps if direction == "up" else cell.down_bps
        if cell.kind == "shared":
            return trunk.link(capacity_bps)
        fair = cell.kind == "cellular" or direction == "down" or cell.fair_uplink
        return AirLink(self.env, capacity_bps, fair, cell.gain, trunk)


class InstantNetwork:
    """A network whose transfers take no time: for tests, and to see a method without its
    network.
    """

    def __init__(self, env: simpy.Environment):
        self.env = env

    def attach(self, device_id: str, *how: object, **more: object) -> None:
        """Nothing to connect."""

    def upload(self, device_id: str, nbytes: float) -> Transfer:
        """An event that succeeds now."""
        transfer = Transfer(self.env, nbytes)
        transfer.moved_bytes = nbytes
        transfer.succeed(self.env.now)
        return transfer

    download = upload

    def alone_s(self, device_id: str, nbytes: float) -> float:
        """No time at all."""
        return 0.0

    def abort(self, event: Transfer) -> float:
        """All the bytes: they passed at once."""
        return event.nbytes

    def progress(self, event: Transfer) -> tuple[float, float, float]:
        """All the bytes, and nothing to come."""
        return event.nbytes, 0.0, inf


def _sent(event: simpy.Event, verb: str) -> LaneTransfer:
    if not isinstance(event, LaneTransfer):
        raise NetworkError(f"{verb}() needs an event that upload() or download() returned")
    return event


def _named(known: Mapping[Key, Named], name: Key, kind: str) -> Named:
    try:
        return known[name]
    except KeyError:
        near = get_close_matches(
            str(name), [str(k) for k in known if k is not None], n=1, cutoff=0.4
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NetworkError(f"no {kind} is called {name!r}{hint}") from None
