"""The links of the real world, built of relays that shape real TCP connections (`network.shaping`).

    device --> relay of its own access link --> [relay of its cell] -->
    relay of the server's ingress and egress --> server

Each relay is a line that bytes pass one chunk after the other; a shared one serves its connections
in turn. Nothing here knows of max-min shares: they have to come out of it, chunk by chunk.
"""

from __future__ import annotations

import asyncio
import selectors
from math import inf, isfinite
from pathlib import Path

import network.profile
from network.shaping import Access, ShapedRelay
from sim.scenario.schema import Scenario
from sim.validate.wire import HERE


class PreciseTimers(asyncio.DefaultEventLoopPolicy):
    """Event loops that wake within microseconds: epoll, asyncio's usual choice, rounds every wait
    up to a millisecond.
    """

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())


def start_links(
    scenario: Scenario,
    folder: Path,
    members: list[tuple[str, str, str | None]],
    server_port: int,
    speed: float,
) -> dict[str, int]:
    """Start all relays, for (device, link, cell) each, and return the port that each device
    connects to.

    Files of links are looked for in `folder`. Rates are those of the scenario times `speed`,
    latencies by it. The relays live as long as their process.
    """
    asyncio.set_event_loop_policy(PreciseTimers())

    def relay(target: int, up_bps: float, down_bps: float, delay_s: float = 0.0) -> int:
        access = (Access(latency_s=delay_s / speed),)
        return ShapedRelay((HERE, target), up_bps * speed, down_bps * speed, access).start().port

    server = scenario.server
    ingress = inf if server.ingress is None else server.ingress
    egress = ingress if server.egress is None else server.egress
    shared = (
        relay(server_port, ingress, egress)
        if isfinite(ingress) or isfinite(egress)
        else server_port
    )
    cells = {
        name: relay(
            shared, inf if cell.up is None else cell.up, inf if cell.down is None else cell.down
        )
        for name, cell in scenario.cells.items()
    }
    ports = {}
    for device, link, cell in members:
        own = network.profile.load(link, folder)
        behind = shared if cell is None else cells[cell]
        ports[device] = relay(behind, own.up_bps, own.down_bps, own.overhead_s + own.latency_s)
    return ports
