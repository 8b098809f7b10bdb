"""Sums over a table of spans: which of them are devices', what state each is, what was for nothing,
and joules by state.
"""

from __future__ import annotations

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
