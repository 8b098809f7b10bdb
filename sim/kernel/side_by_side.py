"""Threads for pieces of learning that need not wait for one another, such as those of a round's
devices.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sim.kernel.learned import wait_for

Result = TypeVar("Result")

AHEAD = 2  # pieces begun for each thread, those that it computes included
TRIAL = 8  # pieces for each thread that a trial lasts,
WARM_UP = 2  # of which the first ones are not looked at
LEAST_GAIN = 1.15  # processors' worth of work that threads must do at once to be worth having


class SideBySide:
    """Pieces of a pool of `threads`, begun in the order of their calls.

    Pieces wait for others that were begun before them alone, so none can wait in a circle. So few
    are begun at a time that an interrupted run soon comes to its end, and so few models are needed
    at once. On trial, the first pieces show whether threads gain anything: small ones mostly wait
    for Python's one lock.
    """

    def __init__(self, pool: ThreadPoolExecutor, threads: int, is_on_trial: bool) -> None:
        self.is_worth_it = True
        self._pool = pool
        self._room = threading.Semaphore(AHEAD * threads)
        self._lock = threading.Lock()
        self._unfinished = self._computing = 0
        self._left = TRIAL * threads if is_on_trial else 0
        self._looks_from = (TRIAL - WARM_UP) * threads
        self._busy_s = self._worked_s = self._busy_since = 0.0

    @property
    def is_running(self) -> bool:
        """Whether any piece has not ended yet."""
        return self._unfinished > 0

    def begin(self, function: Callable[[], Result], arguments: Sequence[object]) -> Future[Result]:
        """Begin a piece, which is computed when its arguments are there and a thread is free; waits
        while enough are begun.
        """
        self._room.acquire()
        with self._lock:
            self._unfinished += 1
        future = self._pool.submit(self._run, function, arguments)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Result]) -> None:
        with self._lock:
            self._unfinished -= 1
        self._room.release()

    def _run(self, function: Callable[[], Result], arguments: Sequence[object]) -> Result:
        wait_for(arguments)
        if not self._left:
            return function()
        begin_s = time.thread_time()
        with self._lock:
            if not self._computing:
                self._busy_since = time.perf_counter()
            self._computing += 1
        try:
            return function()
        finally:
            self._look(time.thread_time() - begin_s)

    def _look(self, worked_s: float) -> None:
        """Count a piece of the trial, and end the trial with the last: how much processor time its
        threads have had in a second of them.
        """
        with self._lock:
            self._computing -= 1
            now_s = time.perf_counter()
            if 0 < self._left <= self._looks_from:
                self._busy_s += now_s - self._busy_since
                self._worked_s += worked_s
            self._busy_since = now_s
            self._left = max(0, self._left - 1)
            if not self._left and self._busy_s:
                self.is_worth_it = self._worked_s >= LEAST_GAIN * self._busy_s
