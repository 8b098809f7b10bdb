"""What devices and the server do and exchange: pieces of work, batches, payloads, and tasks that
the server assigns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from learning.cost.costs import Cost

if TYPE_CHECKING:
    from sim.kernel.device import Device


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


@dataclass(frozen=True)
class Payload:
    """What an upload carries: its number in the run, who sent how many records, its size, and
    (unless dry) its bytes, or the `Learned` that will be these.
    """

    number: int
    sender: Device
    samples: np.ndarray
    nbytes: int
    data: Any = field(default=None, repr=False)
    version: int = 0


@dataclass(eq=False)
class ClientTask:
    """What a server asks of a device: to work on version `version` of a model; `closed` happens
    when that round ends (None: there is no round to wait for).
    """

    version: int
    model: Any
    closed: simpy.Event | None = None
