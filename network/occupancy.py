"""When a link was busy, and how many bytes passed meanwhile: kept as times without a gap, not as
transfers.
"""

from __future__ import annotations

from array import array

import numpy as np


class Occupancy:
    """Times without a gap in which a link had transfers, and the bits that had passed by the end of
    each.
    """

    __slots__ = ("_bits_by_then", "_from_s", "_until_s", "bits")

    def __init__(self) -> None:
        self.bits = 0.0
        self._from_s = array("d")
        self._until_s = array("d")
        self._bits_by_then = array("d")

    def note(self, from_s: float, until_s: float, bits: float) -> None:
        """So many bits passed in this time, which begins where the last one ended, or later."""
        self.bits += bits
        ends_s = self._until_s
        if ends_s and ends_s[-1] == from_s:
            ends_s[-1], self._bits_by_then[-1] = until_s, self.bits
        else:
            self._from_s.append(from_s)
            ends_s.append(until_s)
            self._bits_by_then.append(self.bits)

    def with_(self, from_s: float, until_s: float, bits: float) -> Occupancy:
        """A copy in which that is noted too."""
        copy = Occupancy()
        copy.bits = self.bits
        copy._from_s = self._from_s[:]
        copy._until_s = self._until_s[:]
        copy._bits_by_then = self._bits_by_then[:]
        copy.note(from_s, until_s, bits)
        return copy

    def times(self) -> np.ndarray:
        """One row a time without a gap: from when, until when (s), bytes that passed; float64 of
        shape (times, 3).
        """
        nbytes = np.diff(np.array(self._bits_by_then), prepend=0.0) / 8
        return np.column_stack([np.array(self._from_s), np.array(self._until_s), nbytes])


def union(of_links: list[np.ndarray]) -> np.ndarray:
    """Times in which any of some links was busy, and the bytes of all, as `Occupancy.times` has
    them; shape (times, 3).
    """
    rows = np.concatenate([np.empty((0, 3)), *of_links])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    until_s = np.maximum.accumulate(rows[:, 1])
    begins = np.flatnonzero(np.append(True, rows[1:, 0] > until_s[:-1])[: len(rows)])
    if not len(begins):
        return rows
    ends = np.append(begins[1:], len(rows)) - 1
    return np.column_stack([rows[begins, 0], until_s[ends], np.add.reduceat(rows[:, 2], begins)])
