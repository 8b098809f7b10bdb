"""The Ray cluster that computes for us."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import NamedTuple, Protocol, TypeVar, cast

Result = TypeVar("Result")


class Reference(Protocol):
    """Of an object that the cluster has or computes."""

    def hex(self) -> str:
        """Which object it is."""


class Task(Protocol):
    """A function that the cluster's processes call."""

    def remote(self, *arguments: object) -> Reference:
        """Begin a call."""


class NoRay(ValueError):
    """Ray cannot be had; the message says what to install."""


def started() -> ModuleType:
    """Ray, connected: to the cluster of `RAY_ADDRESS` or the one that runs on this machine, else to
    a new one on this machine. NoRay where it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise NoRay("ray is not installed; run `pip install 'mobifleet[ray]'`") from error
    if not ray.is_initialized():
        # of a cluster begun here: Ray's own workers (15) starve beside anything else
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            logging_level=logging.CRITICAL,
            log_to_driver=False,
            include_dashboard=False,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
    module: ModuleType = ray
    return module


class Shared(NamedTuple):
    """A value that a node gets once, whatever is computed with it there."""

    name: str
    reference: list[Reference]  # in a list, as Ray would fetch it for every call

    def value(self) -> object:
        """The value, in one of the cluster's processes, which keeps the last of each name."""
        mark = self.reference[0].hex()
        if _held.get(self.name, ("", None))[0] != mark:
            _held[self.name] = mark, started().get(self.reference[0])
        return _held[self.name][1]


_held: dict[str, tuple[str, object]] = {}


class Cluster:
    """Processes of a Ray cluster, for pure functions of this module's users; what a lost node was
    at, Ray gives to another. NoRay where it is not installed.
    """

    def __init__(self) -> None:
        self._ray = started()
        self._tasks: dict[Callable[..., object], Task] = {}
        self._shared: dict[str, tuple[object, Shared]] = {}
        self._lock = threading.Lock()

    @property
    def cores(self) -> int:
        """How many pieces it computes at a time."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def shared(self, name: str, value: object, made: Callable[[], object] | None = None) -> Shared:
        """The value, or what is made of it, for calls of now; it goes to the cluster once, until
        another object comes by that name.
        """
        with self._lock:
            known = self._shared.get(name)
            if known is None or known[0] is not value:
                reference = self._ray.put(value if made is None else made())
                known = self._shared[name] = (value, Shared(name, [reference]))
            return known[1]

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The function's call, on the cluster; waits for it, and raises what it raises."""
        try:
            return cast(Result, self._ray.get(self._task(function).remote(*arguments)))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def map(
        self, function: Callable[..., Result], items: Iterable[tuple[object, ...]]
    ) -> Iterator[Result]:
        """`function(*item)` of each item, in order."""
        task = self._task(function)
        pending = [task.remote(*item) for item in items]
        yield from (self._ray.get(reference) for reference in pending)

    def by_value(self, function: Callable[..., object]) -> None:
        """Send a function of a file of the user's own with its code: no node has the file."""
        module = sys.modules[function.__module__]
        if module.__name__.partition(".")[0] not in ("sim", "learning"):
            self._ray.cloudpickle.register_pickle_by_value(module)

    def close(self) -> None:
        """Let it go; a cluster that was begun here ends."""
        self._ray.shutdown()

    def _task(self, function: Callable[..., object]) -> Task:
        with self._lock:
            if function not in self._tasks:
                self._tasks[function] = self._ray.remote(function)
            return self._tasks[function]
