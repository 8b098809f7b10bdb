"""Pieces of learning that are computed as one, such as the client updates of a round on a card that
each alone would leave idle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from sim.kernel.learned import Piece, Waiting, wait_for

JointFunction = Callable[[Sequence[Sequence[object]]], Sequence[object]]
"""What a piece's function gives for each of several lists of arguments, in their order."""


class Together:
    """Pieces that wait until somebody asks what one of them gave; then all that wait are computed,
    those of one function at once.

    So which are computed together follows from the run alone, not from the time it takes.
    """

    def __init__(self, timed: Callable[[Callable[[], Sequence[object]]], Sequence[object]]) -> None:
        self._timed = timed
        self._waiting: list[tuple[Piece, JointFunction, Future[None]]] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(
        self, piece: Piece, function: JointFunction, arguments: Sequence[object], number: int
    ) -> Future[None]:
        """Let a piece wait, the run's `number`th, once it waits for no result of another."""
        wait_for(arguments)
        if not self._waiting:
            self._first = number
        future = Waiting(self.compute)
        self._waiting.append((piece, function, future))
        return future

    def begun_before(self, pieces: int) -> int | None:
        """How many of the run's first `pieces` pieces had begun before those that wait; None where
        some that began after the first of these have run.
        """
        if not self._waiting:
            return pieces
        return self._first if pieces - self._first == len(self._waiting) else None

    def compute(self) -> None:
        """Compute what waits; what goes wrong is raised where a result is asked for."""
        waiting, self._waiting = self._waiting, []
        for function in dict.fromkeys(one[1] for one in waiting):
            alike = [(piece, future) for piece, wanted, future in waiting if wanted == function]
            try:
                arguments = [piece.taken_arguments() for piece, _ in alike]
                made = self._timed(functools.partial(function, arguments))
                del arguments
                for (piece, future), values in zip(alike, made, strict=True):
                    piece.settle(values)
                    future.set_result(None)
            except Exception as error:
                _fail([future for _, future in alike], error)
            except BaseException as error:
                _fail([future for _, _, future in waiting], error)
                raise


def _fail(futures: Sequence[Future[None]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
