"""Which texts go through a frozen backbone at once.

Kernels round differently for another shape of their input. So a text is always computed in the same
shape: padded to one of few lengths, in a batch of exactly as many rows as that length has on this
device. A batch that is not full repeats its texts, so texts are put together over all of a set
before it is divided among workers: one such batch a length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

VERSION = 2
"""Of what decides a text's shape, and with it the last bits of what is stored."""

_FINEST = 16  # steps to the length from which on they are twice as long

Rows = Callable[[int], int]
"""How many rows a batch of a padded length has."""


def padded(lengths_N: np.ndarray, step: int, most: int = 1 << 30) -> np.ndarray:
    """To how many tokens texts of these lengths are padded, with positions for `most`: multiples of
    `step` up to 16 steps, of 2 x `step` up to 32, of 4 x `step` up to 64, and so on. So a long text
    grows by less than an eighth, and there are 8 lengths between one and twice as much.
    """
    steps_N = -(-lengths_N // step)
    _, octave_N = np.frexp((np.maximum(steps_N, 1) - 1) // _FINEST)
    coarse_N = step << octave_N
    return np.minimum(-(-lengths_N // coarse_N) * coarse_N, most)


def batches(padded_N: np.ndarray, rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """Texts of one padded length, the shortest first: that length, and the numbers of at most so
    many texts.
    """
    for length in map(int, np.unique(padded_N)):
        same = np.flatnonzero(padded_N == length)
        for start in range(0, len(same), rows(length)):
            yield length, same[start : start + rows(length)]


def pieces(lengths_N: np.ndarray, step: int, rows: Rows, texts: int) -> Iterator[np.ndarray]:
    """The numbers of all texts, in pieces of work of whole batches, with at least `texts` each but
    the last.
    """
    held: list[np.ndarray] = []
    for _, batch in batches(padded(lengths_N, step), rows):
        held.append(batch)
        if sum(map(len, held)) >= texts:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
