"""From a scenario to its network: whose rate varies and how, who shares which air, who moves where.

Every draw is from a stream of the device's own, named by its id: "link/up", "link/down", "link/trace", "link/journey".
So a device added, or another method, leaves all other links alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

import simpy

import network.profile
from devices.fleet import Member
from inputs.files import located
from network.bandwidth import CapacityTrace, read_csv
from network.errors import NetworkError
from network.lane import Rate
from network.mobility import Journey
from network.profile import LinkProfile
from network.topology import Cell, Network
from network.varying import ShiftedTrace, VaryingRate
from sim.scenario import Group, Scenario
from sim.streams import Streams


def build(
    env: simpy.Environment, scenario: Scenario, members: Sequence[Member], streams: Streams, folder: Path
) -> Network:
    """The network between a fleet and its server; paths of traces start at `folder`.

    Raises NetworkError for a link or a trace file that cannot be read.
    """
    cells = {
        name: Cell(
            *(inf if bps is None else bps for bps in (cell.up, cell.down)), cell.kind, cell.gain, cell.fair_uplink
        )
        for name, cell in scenario.cells.items()
    }
    shared = {name: CapacityTrace(t.times, t.capacity, t.period) for name, t in scenario.traces.items()}
    ingress_bps = inf if scenario.server.ingress is None else scenario.server.ingress
    net = Network(env, ingress_bps, scenario.server.egress, cells, shared)

    profiles = {name: network.profile.load(name) for name in sorted({member.link for member in members})}
    groups = [group for group in scenario.fleet for _ in range(group.count)]
    files = {path for group in scenario.fleet for path in (group.trace, group.down_trace) if path is not None}
    traces = {path: read_trace(path, folder) for path in sorted(files)}
    for member, group in zip(members, groups, strict=True):
        profile = profiles[member.link]
        up, down = _rates(member.id, group, profile, traces, scenario.links.vary, streams)
        journey, handover_s = None, 0.0
        if group.mobility:
            how = group.mobility
            journey = Journey(how.cells, how.mean_stay, streams.rng("link/journey", member.id), how.order)
            handover_s = how.handover
        net.attach(member.id, profile, member.cell, up, down, scenario.links.tcp, journey, handover_s)
    return net


def read_trace(path: str, folder: Path) -> CapacityTrace:
    """A trace that repeats: its last step lasts as long as the one before it.

    A relative path must lead to a file below `folder`. Raises NetworkError if it does not, FileProblem for a file that is none.
    """
    place = located(path)
    if not place.is_absolute():
        place = (folder / place).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise NetworkError(f"trace {path!r} lies outside the scenario's folder {folder}: give its absolute path")
    once = read_csv(place)
    if once.period_s is not None or len(once.times_s) == 1:
        return once
    return CapacityTrace(once.times_s, once.capacity_bps, 2 * once.times_s[-1] - once.times_s[-2], once.read)


def _rates(
    device_id: str, group: Group, profile: LinkProfile, traces: dict[str, CapacityTrace], vary: bool, streams: Streams
) -> list[Rate | None]:
    """Up and down: a trace from a file, a varying rate, or None where the profile's own rate holds."""
    rates: list[Rate | None] = []
    for way, file, mean_bps in (("up", group.trace, profile.up_bps), ("down", group.down_trace, profile.down_bps)):
        if file is not None:
            trace = traces[file]
            u = streams.rng("link/trace", device_id).random()  # the same for both ways: what belongs together stays so
            rates.append(ShiftedTrace(trace, u * trace.period_s) if trace.period_s else trace)
        elif vary and profile.cv:
            rates.append(VaryingRate(mean_bps, profile.cv, profile.lag1, streams.rng(f"link/{way}", device_id)))
        else:
            rates.append(None)
    return rates
