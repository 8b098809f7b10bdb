"""What of a response is sent: at which tokens, and how much of the prediction difference."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Positions: TypeAlias = Literal["response", "last"] | int
"""At which tokens of a response something is sent."""


class Form(NamedTuple):
    """How a difference is told: `gradient`, `whole`, or `top`, with so many entries."""

    kind: str
    entries: int = 0

    def numbers(self, width: int, words: int) -> int:
        """Of a place, where the last state is so wide and there are so many words. ValueError for
        more entries than words.
        """
        if self.entries > words:
            raise ValueError(f"method.difference: top-{self.entries} of {words:,} words; say fewer")
        return {"gradient": width, "whole": words, "top": self.entries}[self.kind]


def form_of(text: str) -> Form:
    """Of `gradient`, `whole` or `top-K`; ValueError for anything else."""
    if text in ("gradient", "whole"):
        return Form(text)
    if found := re.fullmatch(r"top-([1-9]\d*)", text):
        return Form("top", int(found[1]))
    raise ValueError(f"{text!r} is no difference: say gradient, whole, or top-K, as in top-64")


def chosen_places(count: int, positions: Positions, rng: np.random.Generator) -> np.ndarray:
    """Of a response of so many tokens: all, the last, or so many at random, in their order."""
    if positions == "response" or (isinstance(positions, int) and positions >= count):
        return np.arange(count)
    if positions == "last":
        return np.arange(count)[-1:]
    return np.sort(rng.choice(count, positions, replace=False))


def chosen_counts(counts_n: np.ndarray, positions: Positions) -> np.ndarray:
    """How many places these are, of responses of so many tokens."""
    if positions == "response":
        return counts_n
    return np.minimum(counts_n, 1 if positions == "last" else positions)
