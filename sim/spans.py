"""Letting time pass on the record: every span of a device or the server is made here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    from sim.simulation import Simulation


def recorded(
    sim: Simulation,
    actor: str,
    kind: str,
    event: simpy.Event,
    watts: float,
    *,
    seconds: float = 0.0,
    flop: float = 0.0,
    nbytes: int = 0,
    flows: Sequence[int] = (),
    outcome: str = "ok",
    j_per_byte: float = 0.0,
    abort: Callable[[simpy.Event], float] | None = None,
    done: Callable[[float], float] | None = None,
    spent: Callable[[float, float], None] | None = None,
) -> Generator:
    """Wait for an event and record the span; an interrupted one holds the share of its FLOP, or the bytes, until then."""
    start = sim.env.now
    try:
        yield event
    except simpy.Interrupt as stop:
        if kind != "wait" or stop.cause != "offline":  # who only waited loses nothing by going
            outcome = str(stop.cause)
        share = done or (lambda passed: passed / seconds if seconds > 0 else 1.0)
        flop *= share(sim.env.now - start)
        nbytes = int(abort(event)) if abort else nbytes
        raise
    finally:
        if kind != "wait" or sim.env.now > start:  # no time passed, nobody waited
            joules = watts * (sim.env.now - start) + j_per_byte * nbytes
            sim.recorder.span(actor, kind, start, sim.env.now, nbytes, flop, joules, outcome, flows)
            if spent:
                spent(joules, sim.env.now - start)
