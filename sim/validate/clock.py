"""A SimPy clock that keeps pace with the wall: the real world's twin of `simpy.Environment`.

Processes and verbs run on it unchanged. An event that lies ahead happens when its time has come on
the wall; what other threads have to tell (bytes that landed, a message) is posted and happens at
once. An event that is late, because the host was busy with real work, happens late and says so:
`now` is then the wall's time, never the planned one.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from heapq import heappop

import simpy

# real seconds after which `step` returns although nothing happened, so that its caller can look
# around
LOOK_S = 0.1


class RealClock(simpy.Environment):
    """`speed` virtual seconds pass in a real one; virtual time 0 is the moment of
    `time.monotonic()` given to `begin`.
    """

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.speed, self._began_s = speed, 0.0
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def begin(self, at_s: float) -> None:
        """Let virtual time start at a moment of `time.monotonic()`, which all processes of a
        machine share.
        """
        time.sleep(max(0.0, at_s - time.monotonic()))
        self._began_s = at_s

    def elapsed(self) -> float:
        """The virtual time on the wall right now, s."""
        return (time.monotonic() - self._began_s) * self.speed

    def post(self, call: Callable[[], None]) -> None:
        """Let the clock's own thread call something as soon as it can; for other threads."""
        self._posted.put(call)

    def step(self) -> None:
        """Wait for the next event or post and let it happen; or return after `LOOK_S` in which
        nothing did.
        """
        left_s = (self.peek() - self.elapsed()) / self.speed
        try:
            call = (
                self._posted.get_nowait()
                if left_s <= 0
                else self._posted.get(timeout=min(left_s, LOOK_S))
            )
        except queue.Empty:
            if self.peek() <= self.elapsed():
                self._happen()
            return
        self._now = self.elapsed()
        call()

    def _happen(self) -> None:
        """SimPy's own step, except that the clock shows the wall's time instead of the planned
        one.
        """
        _, _, _, event = heappop(self._queue)
        self._now = self.elapsed()
        callbacks = event.callbacks
        event.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of what has happened
        for callback in callbacks:
            callback(event)
        if not event._ok and not hasattr(event, "_defused"):
            raise event._value
