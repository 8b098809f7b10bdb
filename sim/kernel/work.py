"""What devices and the server do: pieces of work, batches, and tasks that the server assigns."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import simpy

from learning.cost.costs import Cost

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Model = TypeVar("Model")

Steps: TypeAlias = Generator[simpy.Event, object, Result]
"""What a verb is, or a part of one: it waits for events and returns a result."""
Process: TypeAlias = Generator[simpy.Event, None, object]
"""What a process may run: all `Steps`, and generators of less known kinds."""


@dataclass(slots=True)
class Work(Generic[Result_co]):
    """A piece of computation: what it costs, and what begins the real thing on the host (None in a
    dry run) and gives its result, or a function that gives it at the virtual end; in how many
    passes it is done, one after the other.
    """

    cost: Cost
    run: Callable[[], Result_co | Callable[[], Result_co]] | None = None
    passes: int = 1


@dataclass(slots=True)
class Batch:
    """Samples of one device that are processed together, and when the last of them is there."""

    samples: np.ndarray
    ready_s: float


@dataclass(eq=False, slots=True)
class ClientTask(Generic[Model]):
    """What a server asks of a device: to work on version `version` of a model; `closed` happens
    when that round ends (None: there is no round to wait for).
    """

    version: int
    model: Model
    closed: simpy.Event | None = None
