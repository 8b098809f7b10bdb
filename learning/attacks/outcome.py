"""What an attack got: its success with a 95 % interval, beside what a guess gets.

Intervals take texts as independent draws. Those of one device are not: where a few devices hold
all texts, the true interval is wider than the one given here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
"""Resamples of a bootstrap."""


@dataclass(frozen=True)
class AttackOutcome:
    """How far one attack gets at one thing.

    attack: what was done, and with which knowledge; what: the measure; success: its value, in
    [0, 1] (an adjusted Rand index may be a little below 0); low, high: the 95 % interval; chance:
    what who guesses as well as he can without the attacked vectors gets at the same measure; n: on
    how many texts (or batches) this rests; known: how many attacked texts (of each class, where
    labels are attacked) the attacker knows beforehand.
    """

    attack: str
    what: str
    success: float
    low: float
    high: float
    chance: float
    n: int
    known: int = 0

    @property
    def above_chance(self) -> bool:
        """Whether the interval lies above what a guess gets."""
        return self.low > self.chance


def of_share(
    attack: str,
    what: str,
    is_hit_N: np.ndarray,
    chance: float,
    texts_N: np.ndarray | None = None,
) -> AttackOutcome:
    """The outcome of hits and misses [n] (bool), with Wilson's interval (JASA 22, 1927), which
    keeps near 95 % with few texts and with shares near 0 or 1. Where a text is hit or missed
    several times, `texts_N` [n] says which each is of, and the interval is that of as many draws as
    there are texts, as if all of a text were alike.

    Raises ValueError where there is nothing to judge.
    """
    from scipy.stats import norm

    if not len(is_hit_N):
        raise ValueError(f"{attack}: there is no text left to judge it on")
    share = float(np.mean(is_hit_N))
    n = len(is_hit_N) if texts_N is None else len(np.unique(texts_N))
    z = float(norm.ppf(0.975))
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4)
    low, high = (float(end / (1 + z**2 / n)) for end in (middle - half, middle + half))
    return AttackOutcome(attack, what, share, max(0.0, low), min(1.0, high), float(chance), n)


def of_mean(
    attack: str, what: str, values_N: np.ndarray, chance: float, rng: np.random.Generator
) -> AttackOutcome:
    """The outcome of a measure that each text has by itself [n], such as its F1: their mean, with
    the percentiles of a bootstrap over texts (Efron & Tibshirani 1993, section 13.3).

    Raises ValueError where there is nothing to judge.
    """
    if not len(values_N):
        raise ValueError(f"{attack}: there is no text left to judge it on")
    values_N = np.asarray(values_N, dtype=np.float64)
    means = values_N[rng.integers(0, len(values_N), (DRAWS, len(values_N)))].mean(axis=1)
    mean, n = float(values_N.mean()), len(values_N)
    return AttackOutcome(attack, what, mean, *interval(means), float(chance), n)


def resampled(
    statistic: Callable[..., float], rng: np.random.Generator, *samples: np.ndarray
) -> np.ndarray:
    """A statistic of several samples, each drawn anew with replacement: its values, [draws]."""
    return np.array(
        [
            statistic(*(sample[rng.integers(0, len(sample), len(sample))] for sample in samples))
            for _ in range(DRAWS)
        ]
    )


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values: the percentile interval of a bootstrap (Efron &
    Tibshirani 1993, section 13.3).
    """
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def majority(labels_N: np.ndarray) -> float:
    """What naming every text alike gets, by whoever knows the commonest class: the better guess of
    this and of 1/C, as some class has 1/C of the texts at least.
    """
    return float(np.bincount(labels_N).max() / len(labels_N))
