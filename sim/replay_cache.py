"""The server's cache of records, shuffled as it is stored: which record numbers there are and which come next."""

from __future__ import annotations

from collections import Counter

import numpy as np


class ReplayCache:
    """Record numbers in a random order, replayed epoch by epoch.

    New records enter at random positions of what is still to come in the running epoch, against the bias of the order in
    which non-IID devices arrive; when an epoch is used up all records are shuffled anew.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._backbone_of: list[str] = []
        self._to_come: list[int] = []

    def __len__(self) -> int:
        return len(self._backbone_of)

    def insert(self, backbone: str, count: int) -> None:
        """Add `count` records of one backbone, numbered on from the last."""
        for number in range(len(self._backbone_of), len(self._backbone_of) + count):
            # swap with a random one instead of shifting: the order is as random, the cost does not grow
            self._to_come.append(number)
            other = int(self._rng.integers(len(self._to_come)))
            self._to_come[other], self._to_come[-1] = self._to_come[-1], self._to_come[other]
        self._backbone_of += [backbone] * count

    def draw(self, count: int) -> list[int]:
        """The next record numbers, at most all of them, none twice."""
        drawn: list[int] = []
        while len(drawn) < min(count, len(self)):
            if not self._to_come:
                taken = set(drawn)
                self._to_come = [int(n) for n in self._rng.permutation(len(self)) if int(n) not in taken]
            drawn.append(self._to_come.pop())
        return drawn

    def count_by_backbone(self, records: list[int]) -> Counter[str]:
        """How many of these records came from each backbone."""
        return Counter(self._backbone_of[number] for number in records)
