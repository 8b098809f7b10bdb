"""What devices and the server do: pieces of work, batches, and tasks that the server assigns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from learning.cost.costs import Cost


@dataclass(frozen=True)
class Work:
    """A piece of computation: what it costs, and what begins the real thing on the host (None in a
    dry run).
    """

    cost: Cost
    run: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one device that are processed together, and when the last of them is there."""

    samples: np.ndarray
    ready_s: float


@dataclass(eq=False)
class ClientTask:
    """What a server asks of a device: to work on version `version` of a model; `closed` happens
    when that round ends (None: there is no round to wait for).
    """

    version: int
    model: Any
    closed: simpy.Event | None = None
