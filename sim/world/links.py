"""From a scenario to its network: whose rate varies and how, who shares which air, who moves where.

Every draw is from a stream of the device's own, named by its id: "link/up", "link/down",
"link/trace", "link/journey". So a device added, or another method, leaves all other links alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median

import simpy

import network.profile
from devices.fleet import Member
from inputs.files import located
from inputs.units import format_seconds, format_si
from network.bandwidth import CapacityTrace, read_csv
from network.errors import NetworkError
from network.mobility import Journey
from network.profile import LinkProfile
from network.route import Rate
from network.series import doubt
from network.topology import Cell, Network
from network.varying import ShiftedTrace, VaryingRate
from sim.kernel.streams import Streams
from sim.scenario.schema import GroupSettings, Scenario

FEWEST_GAPS, HOLE = 3, 100  # a step that is so many times the usual one may be a hole
LEAST_STEP_S = 1e-4  # in the mean; a run of an hour would have 36 million of them
LONG_STEP_S = 60.0  # of times whose unit nobody says


def read_traces(scenario: Scenario, folder: Path) -> dict[str, CapacityTrace]:
    """Every trace that the scenario names or holds: by its path, or by the shared link's name for
    one within the scenario.

    Paths start at `folder`. Raises NetworkError or FileProblem.
    """
    own = {
        path
        for group in scenario.fleet
        for path in (group.trace, group.down_trace)
        if path is not None
    }
    files = own | {trace for trace in scenario.traces.values() if isinstance(trace, str)}
    traces = {path: read_capacity_trace(path, folder) for path in sorted(files)}
    traces |= {
        f"traces.{name}": CapacityTrace(t.times, t.capacity, t.period)
        for name, t in scenario.traces.items()
        if not isinstance(t, str)
    }
    for name, trace in traces.items():
        lasts_s = trace.period_s or trace.times_s[-1]
        if lasts_s and lasts_s / len(trace.times_s) < LEAST_STEP_S:
            raise NetworkError(
                f"{name}: {len(trace.times_s):,} steps in {lasts_s:g} s are too fine to follow: is "
                "the unit of its times right?"
            )
    return traces


def read_capacity_trace(path: str, folder: Path) -> CapacityTrace:
    """A trace that repeats: its last step lasts as long as the one before it.

    A relative path must lead to a file below `folder`. Raises NetworkError if it does not,
    FileProblem for a file that is none.
    """
    place = located(path)
    if not place.is_absolute():
        place = (folder / place).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise NetworkError(
                f"trace {path!r} lies outside the scenario's folder {folder}: give its absolute "
                "path"
            )
    once = read_csv(place)
    if once.period_s is not None or len(once.times_s) == 1:
        return once
    return CapacityTrace(
        once.times_s, once.capacity_bps, 2 * once.times_s[-1] - once.times_s[-2], once.source
    )


def described(traces: Mapping[str, CapacityTrace]) -> Iterator[str]:
    """What each trace that comes from a file was read as, for whoever checks a scenario."""
    for path, trace in traces.items():
        if trace.source:
            low, high = (format_si(edge(trace.capacity_bps), "bit/s") for edge in (min, max))
            lasts = f", {format_seconds(trace.period_s)} that repeat" if trace.period_s else ""
            yield (
                f"{path}: {trace.source.read}; {len(trace.times_s):,} steps{lasts}, {low} to {high}"
            )


def doubts(scenario: Scenario, traces: Mapping[str, CapacityTrace]) -> Iterator[str]:
    """What looks wrong with links: nothing ever passes, rates or times of another unit, a hole
    among even steps.
    """
    fixed = {"ingress": scenario.server.ingress, "egress": scenario.server.egress}
    for name, cell in scenario.cells.items():
        fixed |= {f"{name}/up": cell.up, f"{name}/down": cell.down}
    yield from (
        f"{name} has 0 bit/s: nothing will ever pass"
        for name, bps in fixed.items()
        if bps == 0 and name not in scenario.traces
    )
    for name, trace in traces.items():
        if (what := doubt(trace.capacity_bps)) is not None:
            yield f"{name}: {what}"
        gaps_s = [b - a for a, b in pairwise(trace.times_s)]
        if not gaps_s:
            continue
        usual_s, longest_s = median(gaps_s), max(gaps_s)
        if trace.source and not trace.source.is_time_said and usual_s >= LONG_STEP_S:
            yield (
                f"{name}: its steps last {format_seconds(usual_s)}: if its times are in ms, call "
                "their column time_ms"
            )
        if len(gaps_s) >= FEWEST_GAPS and longest_s > HOLE * usual_s:
            yield (
                f"{name}: the rate at {trace.times_s[gaps_s.index(longest_s)]:g} s holds for "
                f"{format_seconds(longest_s)}, "
                f"where steps of {format_seconds(usual_s)} are usual: fill in what is missing, if "
                "it is a hole"
            )


def build(
    env: simpy.Environment,
    scenario: Scenario,
    members: Sequence[Member],
    streams: Streams,
    traces: Mapping[str, CapacityTrace],
    folder: Path = Path(),
) -> Network:
    """The network between a fleet and its server, with the traces that `read_traces` gave;
    NetworkError for a bad link, whose file is looked for in `folder` first.
    """
    cells = {
        name: Cell(
            inf if cell.up is None else cell.up,
            inf if cell.down is None else cell.down,
            cell.kind,
            cell.gain,
            cell.fair_uplink,
        )
        for name, cell in scenario.cells.items()
    }
    shared = {
        name: traces[t if isinstance(t, str) else f"traces.{name}"]
        for name, t in scenario.traces.items()
    }
    ingress_bps = inf if scenario.server.ingress is None else scenario.server.ingress
    net = Network(env, ingress_bps, scenario.server.egress, cells, shared)

    load = functools.cache(functools.partial(network.profile.load, folder=folder))  # each once
    groups = [group for group in scenario.fleet for _ in range(group.count)]
    for member, group in zip(members, groups, strict=True):
        profile = load(link_of(member))
        up, down = _rates(member.id, group, profile, traces, scenario.links.vary, streams)
        journey, handover_s = None, 0.0
        if group.mobility:
            how = group.mobility
            journey = Journey(
                how.cells, how.mean_stay, streams.rng("link/journey", member.id), how.order
            )
            handover_s = how.handover
        net.attach(
            member.id, profile, member.cell, up, down, scenario.links.tcp, journey, handover_s
        )
    return net


def link_of(member: Member) -> str:
    """The link that a member of a scenario's fleet has; NetworkError where there is none."""
    if member.link is None:
        raise NetworkError(f"{member.id} has no link: name one in its group")
    return member.link


def _rates(
    device_id: str,
    group: GroupSettings,
    profile: LinkProfile,
    traces: Mapping[str, CapacityTrace],
    vary: bool,
    streams: Streams,
) -> list[Rate | None]:
    """Up and down: a trace from a file, a varying rate, or None where the profile's own rate
    holds.
    """
    rates: list[Rate | None] = []
    for way, file, mean_bps in (
        ("up", group.trace, profile.up_bps),
        ("down", group.down_trace, profile.down_bps),
    ):
        if file is not None:
            trace = traces[file]
            u = streams.rng(
                "link/trace", device_id
            ).random()  # the same for both ways: what belongs together stays so
            rates.append(ShiftedTrace(trace, u * trace.period_s) if trace.period_s else trace)
        elif vary and profile.cv:
            rates.append(
                VaryingRate(
                    mean_bps, profile.cv, profile.lag1, streams.rng(f"link/{way}", device_id)
                )
            )
        else:
            rates.append(None)
    return rates
