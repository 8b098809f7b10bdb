"""Devices that move: in which cell one is at each time.

A journey is a walk over cells. A device stays in each for an exponential time and then goes to one
of the others (`random`: each with the same probability, a Markov chain) or to the next of the list
(`tour`, round and round). It starts in any of them with the same probability, so it is as likely to
be found in one as in another at every time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import Literal

import numpy as np

from network.errors import NetworkError


class Journey:
    """A walk over `cells` with stays of `mean_stay_s` seconds in the mean, drawn from `rng` as far
    as it is asked for.

    A function of time alone: asked often, seldom or out of order, it says the same. Raises
    NetworkError unless there are two different cells at least and the stay is finite and positive.
    """

    def __init__(
        self,
        cells: Sequence[str],
        mean_stay_s: float,
        rng: np.random.Generator,
        order: Literal["random", "tour"] = "random",
    ):
        if len(cells) < 2 or len(set(cells)) < len(cells):
            raise NetworkError(
                f"a journey needs two different cells at least, each once, not {list(cells)}"
            )
        if not 0 < mean_stay_s < inf:
            raise NetworkError(
                f"a journey needs a mean stay that is finite and > 0 s, not {mean_stay_s}"
            )
        if order not in ("random", "tour"):
            raise NetworkError(f"the order of a journey is 'random' or 'tour', not {order!r}")
        self.cells = list(cells)
        self.mean_stay_s = mean_stay_s
        self.order = order
        self._rng = rng
        self._starts_s = [0.0]
        self._stops = [int(rng.integers(len(cells)))]  # indices into `cells`
        self._end_s = float(rng.exponential(mean_stay_s))

    def at(self, t_s: float) -> str:
        """The cell at time t; the new one at the very moment of a change."""
        return self.cells[self._stops[self._stop(t_s)]]

    def next_change(self, t_s: float) -> float:
        """The first time after t at which the device enters another cell, s."""
        stop = self._stop(t_s)
        return self._starts_s[stop + 1] if stop + 1 < len(self._starts_s) else self._end_s

    def _stop(self, t_s: float) -> int:
        if not 0 <= t_s < inf:
            raise NetworkError(f"a journey is defined for finite times >= 0 s, not {t_s}")
        while self._end_s <= t_s:
            step = 1 if self.order == "tour" else int(self._rng.integers(1, len(self.cells)))
            self._starts_s.append(self._end_s)
            self._stops.append((self._stops[-1] + step) % len(self.cells))
            self._end_s += float(self._rng.exponential(self.mean_stay_s))
        return bisect_right(self._starts_s, t_s) - 1
