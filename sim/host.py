"""Where the host computes: the learning's own work, apart from virtual time.

A piece of learning is a pure function of inputs fixed at its virtual start, so it may run anywhere and be joined at its
virtual end; the number of workers changes how long the host takes, never a result.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class HostError(ValueError):
    """The asked-for workers cannot be had; the message says what to install or choose."""


class Host:
    """Runs functions inline (`workers=1`), on threads (`workers=N`) or on Ray (`workers="ray"`).

    `start` keeps the order in which it was called (one lane); `map` spreads independent pieces over all workers.
    """

    def __init__(self, workers: int | str = 1) -> None:
        self.torch_s = 0.0
        self._ray, self._pool, self._lane = None, None, None
        if workers == "ray":
            self._ray = _start_ray()
        elif isinstance(workers, int) and workers >= 1:
            if workers > 1:
                self._pool = ThreadPoolExecutor(workers, "mobifleet-worker", _one_thread)
                self._lane = ThreadPoolExecutor(1, "mobifleet-lane", _one_thread)
        else:
            raise HostError(f"workers: a number from 1, or ray (got {workers!r})")

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Begin a piece of work; its result is joined with `.result()`. Pieces run one after another, in call order."""
        if self._lane:
            return self._lane.submit(self._timed, function)
        done: Future[Result] = Future()
        try:
            done.set_result(self._timed(function))
        except Exception as error:  # raised where the work is joined, as with a thread
            done.set_exception(error)
        return done

    def map(self, function: Callable[..., Result], items: Iterable[tuple]) -> Iterator[Result]:
        """`function(*item)` of each item, in order; independent pieces, computed at once as far as workers reach."""
        if self._ray:
            remote = self._ray.remote(function)
            pending = [remote.remote(*item) for item in items]
            yield from (self._ray.get(reference) for reference in pending)
        elif self._pool:
            futures = [self._pool.submit(self._timed, lambda item=item: function(*item)) for item in items]
            try:
                yield from (future.result() for future in futures)
            finally:
                for future in futures:
                    future.cancel()
        else:
            yield from (self._timed(lambda item=item: function(*item)) for item in items)

    def close(self) -> None:
        """Let the workers go."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._lane:
            self._lane.shutdown(wait=True)  # what was started is done, joined or not: as it is without threads
        if self._ray:
            self._ray.shutdown()

    def _timed(self, function: Callable[[], Result]) -> Result:
        begin = time.perf_counter()
        try:
            return function()
        finally:
            self.torch_s += time.perf_counter() - begin


def single_threaded_torch() -> None:
    """One torch thread a worker and deterministic kernels: the same bits however many workers there are."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _one_thread() -> None:
    """A new thread starts with OpenMP's own number of threads, whatever the main thread has chosen."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _start_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise HostError("workers: ray is not installed; run `pip install 'mobifleet[ray]'`") from error
    ray.init(logging_level="ERROR", include_dashboard=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    return ray
