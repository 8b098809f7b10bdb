"""The server's cache of records, shuffled as it is stored: which record numbers there are and which
come next.
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np


class ReplayCache:
    """Record numbers in a random order, replayed epoch by epoch.

    New records enter at random positions of what is still to come in the running epoch, against the
    bias of the order in which non-IID devices arrive; when an epoch is used up all records are
    shuffled anew.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._backbone_of: list[str] = []
        self._backbones: set[str] = set()
        self._to_come = array("q")  # a list of as many numbers weighs four times as much

    def __len__(self) -> int:
        return len(self._backbone_of)

    def insert(self, backbone: str, count: int) -> None:
        """Add `count` records of one backbone, numbered on from the last."""
        to_come = self._to_come
        for number, u in enumerate(self._rng.random(count).tolist(), len(self)):
            # swap with a random one instead of shifting: the order is as random, the cost does not
            # grow
            to_come.append(number)
            other = int(u * len(to_come))
            to_come[other], to_come[-1] = number, to_come[other]
        self._backbone_of += [backbone] * count
        self._backbones.add(backbone)

    def draw(self, count: int) -> list[int]:
        """The next record numbers, at most all of them, none twice."""
        drawn = self._take(count)
        if len(drawn) == count:
            return drawn
        count = min(count, len(self))
        if len(drawn) < count:
            # the epoch is used up: shuffle anew, but give no record twice in one draw
            again = self._rng.permutation(len(self))
            first = again[self._are_not(drawn)[again]][len(drawn) - count :]
            self._to_come = array("q", again[self._are_not(first)[again]].tobytes())
            drawn += first.tolist()
        return drawn

    def _are_not(self, records: list[int] | np.ndarray) -> np.ndarray:
        """[N] bool: which of all records are not among these, without sorting them."""
        are_not = np.ones(len(self), bool)
        are_not[records] = False
        return are_not

    def _take(self, count: int) -> list[int]:
        taken = self._to_come[-count:].tolist() if count else []
        del self._to_come[len(self._to_come) - len(taken) :]
        return taken

    def count_by_backbone(self, records: list[int]) -> dict[str, int]:
        """How many of these records came from each backbone."""
        if len(self._backbones) == 1:
            return {name: len(records) for name in self._backbones if records}
        return Counter(map(self._backbone_of.__getitem__, records))
