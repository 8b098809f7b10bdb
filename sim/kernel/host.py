"""Where the host computes: the learning's own work, apart from virtual time.

A piece of learning is a pure function of inputs fixed at its virtual start, so it may run anywhere
and be joined later; the number of workers changes how long the host takes, never a result.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar, cast, overload

from learning.host_device import host_device
from sim.kernel.journal import UNKNOWN, CannotResume, Journal
from sim.kernel.learned import Learned, Piece, key_of, wait_for, with_values
from sim.kernel.ray_cluster import Cluster, NoRay
from sim.kernel.side_by_side import SideBySide
from sim.kernel.together import JointFunction, Together

Result = TypeVar("Result")
Second = TypeVar("Second")
Third = TypeVar("Third")

AUTO = "auto"
PATIENCE = 4  # times as much is at stake before a checkpoint waits for pieces that run side by side

OBJECTS_AT_WORK = 50  # about as many has a device at once: frames, events, open spans


class HostError(ValueError):
    """The asked-for workers cannot be had; the message says what to install or choose."""


class Host:
    """Runs functions inline (`workers=1`), on threads (`workers=N`) or on Ray (`workers="ray"`);
    `"auto"`: on as many threads as there are cores, up to four, where that is faster.

    `learn`, `compute_now` and `start` compute at once, in the order in which they were called, but
    for pieces that may run side by side: these go to the threads, each of which may have a process
    of the `cluster` compute for it. On a card, pieces that it computes as one wait for one another.
    `map` spreads independent pieces over all workers. `journal` remembers what was learned.
    """

    def __init__(self, workers: int | str = 1, journal: Journal | None = None) -> None:
        self.torch_s = 0.0
        self.own_learning_s = 0.0  # processor time of the thread of the clock in it
        self.pieces = 0
        self.journal = journal or Journal(None)
        self._prepared_s = self._saved_s = (
            0.0  # of torch_s, what passed before the first piece and what is not at stake
        )
        self._alive: weakref.WeakSet[Learned[object]] = weakref.WeakSet()
        self.cluster: Cluster | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._beside: SideBySide | None = None
        self._together = Together(self._timed) if host_device().stacks else None
        self._joined: deque[Future[None]] = deque()  # at their virtual end, and not looked at yet
        self._clock = threading.Lock()
        self._thread = threading.current_thread()
        if workers == "ray":
            if host_device().name != "cpu":
                raise HostError(
                    f"--workers ray computes on CPUs: choose --host cpu (got {host_device().name})"
                )
            try:
                self.cluster = Cluster()
            except NoRay as error:
                raise HostError(f"workers: {error}") from error
            threads = self.cluster.cores
            self._pool = ThreadPoolExecutor(threads, "mobifleet-cluster", _one_thread)
            self._beside = SideBySide(self._pool, threads, is_on_trial=False)
        elif workers == AUTO or (isinstance(workers, int) and workers >= 1):
            threads = min(4, os.cpu_count() or 1) if isinstance(workers, str) else workers
            if threads > 1:
                self._pool = ThreadPoolExecutor(threads, "mobifleet-worker", _one_thread)
                if host_device().name == "cpu":  # threads would only queue for an accelerator
                    self._beside = SideBySide(self._pool, threads, is_on_trial=workers == AUTO)
        else:
            raise HostError(f"workers: a number from 1, auto or ray (got {workers!r})")
        self._threads = threads

    # --- the learning, which an interrupted run takes up again

    @overload
    def learn(
        self,
        function: Callable[..., tuple[Result, Second]],
        *arguments: object,
        stored: tuple[bool, bool],
        revive: Callable[..., Result] | None = None,
        side_by_side: bool = False,
        together: JointFunction | None = None,
    ) -> tuple[Learned[Result], Learned[Second]]: ...

    @overload
    def learn(
        self,
        function: Callable[..., tuple[Result, Second, Third]],
        *arguments: object,
        stored: tuple[bool, bool, bool],
        revive: Callable[..., Result] | None = None,
        side_by_side: bool = False,
        together: JointFunction | None = None,
    ) -> tuple[Learned[Result], Learned[Second], Learned[Third]]: ...

    @overload
    def learn(
        self,
        function: Callable[..., Result],
        *arguments: object,
        stored: tuple[bool] = (True,),
        revive: Callable[..., Result] | None = None,
        side_by_side: bool = False,
        together: JointFunction | None = None,
    ) -> Learned[Result]: ...

    @overload
    def learn(
        self,
        function: Callable[..., object],
        *arguments: object,
        stored: Sequence[bool],
        revive: Callable[..., object] | None = None,
        side_by_side: bool = False,
        together: JointFunction | None = None,
    ) -> Learned[object] | tuple[Learned[object], ...]: ...

    def learn(
        self,
        function: Callable[..., object],
        *arguments: object,
        stored: Sequence[bool] = (True,),
        revive: Callable[..., object] | None = None,
        side_by_side: bool = False,
        together: JointFunction | None = None,
    ) -> Learned[object] | tuple[Learned[object], ...]:
        """Begin a piece of learning: `function`, pure, on arguments of which results of other
        pieces may be a part.

        Returns a `Learned` at once, or a tuple of as many as `stored` has entries; those that are
        not stored are computed again in a resumed run. `revive`: as in `Learned`, for the first.
        What the journal's checkpoint holds is not computed. `side_by_side` lets the piece run on a
        thread beside others, in any order: it uses nothing that another piece changes meanwhile.
        `together` gives what `function` does for several pieces at once; it is used where that is
        faster.
        """
        is_past = self.is_replaying
        if self.pieces == 0:
            self._prepared_s = self._saved_s = self.torch_s
        if not is_past and self._is_checkpoint_due():
            self.checkpoint()
        self.pieces += 1
        piece = Piece(function, arguments, stored)
        results = piece.results(self._key(function, arguments), revive)
        if is_past:
            piece.skip(self.journal.fetch)
        else:
            if together and self._together is not None:
                future = self._together.begin(piece, together, arguments, self.pieces - 1)
            else:
                future = self._begun(piece.run, arguments, side_by_side)
            for learned in results:
                learned.future = future
        if self.journal.keeps:
            self._alive.update(
                learned for learned, is_stored in zip(results, stored, strict=True) if is_stored
            )
        return results[0] if len(results) == 1 else tuple(results)

    def compute_now(self, function: Callable[..., Result], *arguments: object) -> Result:
        """A small result (numbers, or lists and dicts of them) that somebody has to know now:
        noted, or computed in turn.
        """
        key = self._key(function, arguments)
        if self._together and not self.is_replaying:
            wait_for(arguments)  # noted or not, so that a resumed run computes as much as one
        noted = self.journal.noted(key)
        if noted is not UNKNOWN:
            return cast(Result, noted)  # by its key it is what this function gave
        if self.is_replaying:
            raise CannotResume.other_course()
        call = functools.partial(_called, function, arguments)
        value = self._begun(call, arguments, side_by_side=False).result()
        if self.journal.keeps:
            self.journal.note(key, value)
        return value

    def value_of(self, learned: Learned[Result]) -> Result:
        """The value of a small result, noted."""
        known: Callable[..., Result] = _itself
        return self.compute_now(known, learned)

    def joined(self, result: Result | Callable[[], Result]) -> Result:
        """What a verb gave, at the virtual end of its work. A function is called, for what is to
        happen only then; what went wrong with a piece is raised (those that were left out stay so).

        A piece that still runs beside others is not waited for: the clock goes on to what the
        threads can do next, and its error is raised as soon as it is known, in the order of virtual
        ends.
        """
        if result is not None:  # as in a dry run
            self._note_end_of(result)
        while self._joined and self._joined[0].done():
            self._joined.popleft().result()
        return result() if callable(result) else result

    def _note_end_of(self, result: object) -> None:
        if isinstance(result, Learned) and result.future is not None:
            self._joined.append(result.future)
        elif isinstance(result, tuple):
            for one in result:
                self._note_end_of(one)

    @property
    def is_parallel(self) -> bool:
        """Whether pieces may run side by side."""
        return self._beside is not None and self._beside.is_worth_it

    @property
    def workers(self) -> str:
        """How many workers there are, in words; of threads on trial, whether they gain anything."""
        if self.cluster:
            return f"{self._threads} cores of a cluster"
        if self._beside is not None and not self._beside.is_worth_it:
            return f"1 worker ({self._threads} threads gained nothing)"
        return "1 worker" if self._threads == 1 else f"{self._threads} workers"

    @property
    def is_replaying(self) -> bool:
        """Whether the run is still where the interrupted one has been, as far as its checkpoint
        holds what it learned.
        """
        return self.pieces < self.journal.position

    @property
    def recalled(self) -> int:
        """How many pieces of learning the journal's checkpoint has spared this run."""
        return min(self.pieces, self.journal.position)

    def checkpoint(self, is_last: bool = False) -> None:
        """Write, in turn, what has been learned and is still of use: if it is worth the time, or
        the last that can be.
        """
        if not self.journal.keeps or self.is_replaying:
            return
        position = self.pieces
        if self._together is not None:
            before = self._together.begun_before(position)
            if before is None:  # what runs later would be computed beside others than now
                return
            position = before
        at_stake_s = math.inf if is_last else self.torch_s - self._saved_s

        def write() -> bool:
            alive = [one for one in self._alive if one.is_there and not one.waits]
            failed = any(learned.future and learned.future.exception() for learned in alive)
            return not failed and self.journal.checkpoint(
                position, alive, at_stake_s, self._learning_s
            )

        if write():
            self._saved_s = self.torch_s

    def _is_checkpoint_due(self) -> bool:
        at_stake_s = self.torch_s - self._saved_s
        if self._beside and self._beside.is_running:
            at_stake_s /= PATIENCE
        return self.journal.is_due(at_stake_s, self._learning_s)

    @property
    def _learning_s(self) -> float:
        """What learning has taken in this process."""
        return self.torch_s - self._prepared_s

    def _key(self, function: Callable[..., object], arguments: Sequence[object]) -> str:
        return key_of(function, arguments) if self.journal.keeps else ""

    # --- anything else

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Do a piece of work; its result is joined with `.result()`, which raises what went
        wrong.
        """
        done: Future[Result] = Future()
        try:
            done.set_result(self._timed(function))
        except Exception as error:  # raised where the work is joined, as with a thread
            done.set_exception(error)
        return done

    def _begun(
        self, function: Callable[[], Result], arguments: Sequence[object], side_by_side: bool
    ) -> Future[Result]:
        """The function's call, on a thread where it may be; what its arguments wait for is no time
        of its own.
        """
        if self._together:
            wait_for(arguments)
        if self._beside is None:
            return self.start(function)
        if side_by_side and self._beside.is_worth_it:
            return self._beside.begin(lambda: self._timed(function), arguments)
        if self._beside.is_running:
            wait_for(arguments)
        return self.start(function)

    def map(
        self, function: Callable[..., Result], items: Iterable[tuple[object, ...]]
    ) -> Iterator[Result]:
        """`function(*item)` of each item, in order; independent pieces, computed at once as far as
        workers reach.
        """
        if self.cluster:
            yield from self.cluster.map(function, items)
        elif self._pool:
            futures = [
                self._pool.submit(self._timed, functools.partial(function, *item)) for item in items
            ]
            try:
                yield from (future.result() for future in futures)
            finally:
                for future in futures:
                    future.cancel()
        else:
            yield from (self._timed(functools.partial(function, *item)) for item in items)

    def spread(self, function: Callable[[tuple[int, int]], Result]) -> list[Result]:
        """Of a piece in turn, `function((k, n))` of each of its n shares k: on as many threads as
        there are, where threads gain anything; called by nothing that itself runs on one of them.
        """
        if self._pool is None or not self.is_parallel or self.cluster:
            return [function((0, 1))]
        beside = [self._pool.submit(function, (k, self._threads)) for k in range(1, self._threads)]
        try:
            return [function((0, self._threads)), *(future.result() for future in beside)]
        finally:
            wait(beside)

    def close(self, at_once: bool = False) -> None:
        """Let the workers go: with what was started done, joined or not, as it is without threads
        (raises what went wrong with what was joined); or at once.
        """
        if self._pool:
            self._pool.shutdown(wait=not at_once, cancel_futures=at_once)
        if self.cluster:
            self.cluster.close()
        while self._joined and not at_once:
            self._joined.popleft().result()

    def _timed(self, function: Callable[[], Result]) -> Result:
        begin, own_begin = time.perf_counter(), time.thread_time()
        try:
            return function()
        finally:
            with self._clock:
                self.torch_s += time.perf_counter() - begin
                if threading.current_thread() is self._thread:
                    self.own_learning_s += time.thread_time() - own_begin


def _called(function: Callable[..., Result], arguments: Sequence[object]) -> Result:
    return function(*map(with_values, arguments))


def _itself(value: Result) -> Result:
    return value


def single_threaded_torch() -> None:
    """One torch thread a worker and deterministic kernels (on an accelerator: where there are any):
    the same bits however many workers there are.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    is_cpu = host_device().name == "cpu"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=not is_cpu)
    # torch would write NaN into memory before a kernel does: 3 to 9 % of a step, and no other bits
    # but for code that reads what nobody wrote
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def seldom_collecting(devices: int) -> Iterator[None]:
    """Look for garbage only among what a world has made since, and only when that is more than so
    many devices have at work: neither is garbage, and a large fleet's would be looked through again
    and again.
    """
    first, *others = thresholds = gc.get_threshold()
    gc.set_threshold(max(first, OBJECTS_AT_WORK * devices), *others)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def _one_thread() -> None:
    """A new thread starts with OpenMP's own number of threads, whatever the main thread has
    chosen.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
