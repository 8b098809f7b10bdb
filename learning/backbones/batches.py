"""Which texts go through a frozen backbone at once.

Kernels round differently for another shape of their input. So a text is always computed in the same
shape: padded to the next multiple of `LENGTH_STEP` tokens, in a batch of exactly as many rows as
its length has on this device. A batch that is not full repeats its texts, so texts are put together
over all of a set before it is divided among workers: one such batch a length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

LENGTH_STEP = 8

Rows = Callable[[int], int]
"""How many rows a batch of a padded length has."""


def padded(lengths_N: np.ndarray, most: int = 1 << 30) -> np.ndarray:
    """To how many tokens texts of these lengths are padded, with positions for `most`."""
    return np.minimum(-(-lengths_N // LENGTH_STEP) * LENGTH_STEP, most)


def batches(padded_N: np.ndarray, rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """Texts of one padded length, the shortest first: that length, and the numbers of at most so
    many texts.
    """
    for length in map(int, np.unique(padded_N)):
        same = np.flatnonzero(padded_N == length)
        for start in range(0, len(same), rows(length)):
            yield length, same[start : start + rows(length)]


def pieces(lengths_N: np.ndarray, rows: Rows, texts: int) -> Iterator[np.ndarray]:
    """The numbers of all texts, in pieces of work of whole batches, with at least `texts` each but
    the last.
    """
    held: list[np.ndarray] = []
    for _, batch in batches(padded(lengths_N), rows):
        held.append(batch)
        if sum(map(len, held)) >= texts:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
