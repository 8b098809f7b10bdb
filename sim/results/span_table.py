"""Sums over a table of spans: which of them are devices', what state each is, what was for nothing,
joules by state, and what all of them come to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sim.kernel.vocabulary import DEVICE, KINDS, NOT_LOST, OTHER, STATES


def of_devices(spans: pa.Table) -> pa.Table:
    """The spans whose actor is a device."""
    return spans.filter(pc.starts_with(spans["actor"], DEVICE))


def states(kind: pa.ChunkedArray) -> np.ndarray:
    """The state of a device in each of its spans, as positions in `STATES`; int64 of shape
    (spans,).
    """
    of_kind = np.array(
        [STATES.index(state) for state in (*(kind.state for kind in KINDS.values()), OTHER)]
    )
    return of_kind[pc.fill_null(pc.index_in(kind, pa.array(list(KINDS))), len(KINDS)).to_numpy()]


def is_waste(spans: pa.Table) -> np.ndarray:
    """Which spans of devices were work for nothing: computing or radio that did not end well; bool
    of shape (spans,).
    """
    at_work = states(spans["kind"]) < STATES.index("idle")
    return at_work & ~pc.is_in(spans["outcome"], pa.array(sorted(NOT_LOST))).to_numpy()


def joules_by_state(spans: pa.Table, group: np.ndarray, groups: int) -> np.ndarray:
    """Joules of devices' spans by state and by `group` (int of shape (spans,)): float64 of shape
    (states, groups).
    """
    cell = states(spans["kind"]) * groups + group
    return np.bincount(cell, spans["joules"].to_numpy(), len(STATES) * groups).reshape(
        len(STATES), groups
    )


class ExactSum:
    """A sum that is rounded once, in however many parts it is added up: a few numbers that come to
    it exactly (Shewchuk, "Adaptive precision floating-point arithmetic", 1997, by `math.fsum`).
    """

    def __init__(self) -> None:
        self._parts: list[float] = []

    def add(self, values: np.ndarray) -> None:
        """More numbers, of shape (n,)."""
        terms, self._parts = [*self._parts, *values.tolist()], []
        while rest := math.fsum(terms):  # what the parts found so far leave over
            self._parts.append(rest)
            terms.append(-rest)
            if not math.isfinite(rest):
                break

    @property
    def value(self) -> float:
        """The sum so far."""
        return math.fsum(self._parts)


class Summed(NamedTuple):
    """What spans come to: amounts by name (bytes, FLOP, J, s), and devices' joules by state."""

    amounts: dict[str, float]
    state_j: dict[str, float]


SUMMED = ("actor", "kind", "start_s", "end_s", "nbytes", "flop", "joules", "outcome")
"""The columns that `summed` reads."""


def summed(blocks: Iterable[pa.Table]) -> Summed:
    """What spans come to that are given in blocks, at least one."""
    sums: defaultdict[str, ExactSum] = defaultdict(ExactSum)
    state_j = np.zeros(len(STATES))
    for spans in blocks:
        ours, server = of_devices(spans), spans.filter(pc.equal(spans["actor"], "server"))
        lost = ours.filter(pa.array(is_waste(ours)))
        at_work = server.filter(pc.not_equal(server["kind"], "wait"))
        seconds = pc.subtract(at_work["end_s"], at_work["start_s"])
        for name, values in {
            "uplink_bytes": _of_kind(ours, "upload")["nbytes"],
            "downlink_bytes": _of_kind(ours, "download")["nbytes"],
            "device_flop": _of_kind(ours, "compute")["flop"],
            "device_energy_j": ours["joules"],
            "server_flop": server["flop"],
            "server_busy_s": seconds,
            "server_energy_j": server["joules"],
            "wasted_bytes": lost["nbytes"],
            "wasted_flop": lost["flop"],
            "wasted_energy_j": lost["joules"],
        }.items():
            sums[name].add(values.to_numpy())
        np.add.at(state_j, states(ours["kind"]), ours["joules"].to_numpy())  # one after the other
    amounts = {name: its.value for name, its in sums.items()}
    return Summed(
        {name: int(n) if name.endswith("_bytes") else n for name, n in amounts.items()},
        dict(zip(STATES, state_j.tolist(), strict=True)),
    )


def _of_kind(spans: pa.Table, kind: str) -> pa.Table:
    return spans.filter(pc.equal(spans["kind"], kind))
