"""What some seeds, and so many test texts, say: 95 % intervals, paired differences and ratios, and
how many seeds would tell two methods apart.

Methods of one comparison meet the same worlds (common random numbers), so they are compared seed by
seed: Law, Simulation Modeling and Analysis, 10.2.1 (paired t). Means over seeds get Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL, POWER = 0.95, 0.8
MOST_SEEDS = 1000
MOST_LOG = 700.0  # of a ratio that is a number
MANY = 1e6  # degrees of freedom, with which t is normal


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval, which are None where one seed says nothing of
    others.
    """

    value: float
    low: float | None
    high: float | None


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one value a seed, with Student's t interval: of no width where all seeds have one
    value but for the rounding of sums.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    deviation = np.std(values, ddof=1)
    if deviation <= 1e-12 * abs(mean):
        return Interval(mean, mean, mean)
    half = _t(len(values) - 1) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half))


def between_looks(before: Sequence[float], at: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of what lies, in each seed, between two looks: from the lower end of what it was at
    the look before to the upper end of what it was at the look after.

    An interval that covers every value that the looks allow: Horowitz and Manski 2000, Journal of
    the American Statistical Association 95(449). Costs are never below 0.
    """
    low, high = over_seeds(before), over_seeds(after)
    return Interval(
        over_seeds(at).value,
        max(0.0, low.value if low.low is None else low.low),
        high.value if high.high is None else high.high,
    )


def of_accuracy(values: Sequence[float], texts: int, overlap: float = 1.0) -> Interval:
    """The mean accuracy over seeds, each judged on so many texts, with the error of seeds *and*
    texts.

    One seed: Wilson's interval for the texts alone (1927). Several: Var = S^2 / k + overlap p(1 -
    p) / n, where S is the deviation over k seeds and `overlap` the share of its n test texts that
    a seed has in common with another. It follows from accuracy = p + seed + mean of the texts'
    difficulties: what two seeds share of the latter, S does not show (Bouthillier et al. 2021,
    arXiv 2103.03098, have both parts; Miller 2024, arXiv 2411.00640, the sum). p(1 - p) bounds the
    variance of difficulties, so this is not too narrow. Degrees of freedom are Satterthwaite's.

    Texts that seeds have not in common make S^2 at least (1 - overlap) p(1 - p) / n in the mean: a
    few seeds that happen to agree more closely than that know no better, and the interval is at
    least that of this variance.
    """
    mean, k = math.fsum(values) / len(values), len(values)
    seeds = float(np.var(values, ddof=1)) / k if k > 1 else 0.0
    drawn = overlap * mean * (1 - mean) / texts
    least = (1 - overlap) * mean * (1 - mean) / texts / k
    if k == 1 or not seeds + drawn:
        return Interval(mean, *_wilson(mean, texts))
    half = max(_half(seeds, drawn, k), _half(0.0, drawn + least, k))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def paired_difference(
    ours: Sequence[float], others: Sequence[float], texts: int, overlap: float = 1.0
) -> Interval:
    """How much more accurate ours is, seed by seed; its interval is over seeds and over texts.

    The texts' part is that of two independent scores on them: an upper bound, for methods tend to
    be wrong on the same texts. Texts that seeds have not in common are in the seeds' spread, which
    counts for no less than they give, as in `of_accuracy`.
    """
    each = [a - b for a, b in zip(ours, others, strict=True)]
    mean, k = over_seeds(each).value, len(each)
    seeds = float(np.var(each, ddof=1)) / k if k > 1 else 0.0
    shared = overlap if k > 1 else 1.0
    below, above = (
        max(_half(seeds, shared * drawn, k), _half(0.0, (shared + (1 - shared) / k) * drawn, k))
        for drawn in variances_of_texts(ours, others, texts)
    )
    return Interval(mean, max(-1.0, mean - below), min(1.0, mean + above))


def variances_of_texts(
    ours: Sequence[float], others: Sequence[float], texts: int
) -> tuple[float, float]:
    """The variance that so many texts give a difference of accuracies, at most: of what lies below
    it, and of what lies above.

    They are the squares, added up, by which Wilson's intervals of the two reach in that direction
    (Newcombe 1998, Statistics in Medicine 17, 873-890, method 10). So they do not vanish where
    all texts, or none, are right.
    """
    p, q = (math.fsum(values) / len(values) for values in (ours, others))
    (p_low, p_high), (q_low, q_high) = _wilson(p, texts), _wilson(q, texts)
    z2 = _t(MANY) ** 2
    return ((p - p_low) ** 2 + (q_high - q) ** 2) / z2, ((p_high - p) ** 2 + (q - q_low) ** 2) / z2


def _wilson(share: float, texts: int) -> tuple[float, float]:
    """The ends of Wilson's interval (1927) of a share of so many texts."""
    z2 = _t(MANY) ** 2 / texts
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


class Costs(NamedTuple):
    """One cost a seed: what it had been at the look before, at the moment itself, and at the look
    after.
    """

    before: Sequence[float]
    at: Sequence[float]
    after: Sequence[float]


def paired_ratio(ours: Costs, others: Costs) -> Interval:
    """The geometric mean of ours / others over seeds, with Student's t interval of the logarithms.

    Its ends are those of the least and the greatest ratio that the looks allow. Others are above 0.
    """
    value = math.exp(over_seeds(log_ratios(ours.at, others.at)).value) if min(ours.at) > 0 else 0.0
    if len(ours.at) == 1 and not value:
        return Interval(value, None, None)
    low = high = math.nan
    if min(ours.before) <= 0:
        low = 0.0
    else:
        one = over_seeds(log_ratios(ours.before, others.after))
        low = math.exp(one.value if one.low is None else one.low)
    if min(others.before) <= 0:
        high = math.inf
    elif min(ours.after) <= 0:
        high = 0.0
    else:
        one = over_seeds(log_ratios(ours.after, others.before))
        end = one.value if one.high is None else one.high
        high = math.exp(end) if end < MOST_LOG else math.inf
    return Interval(value, min(low, value), max(high, value))


def log_ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """The logarithm of ours / others, seed by seed; both are above 0."""
    return [math.log(a / b) for a, b in zip(ours, others, strict=True)]


def seeds_needed(differences: Sequence[float], stays: float = 0.0) -> int | None:
    """How many seeds would show the mean of these paired differences at 5 %, with a power of 80 %;
    None for more than `MOST_SEEDS`.

    By the noncentral t distribution (Cohen 1988, ch. 2); `stays` is variance that more seeds do not
    lessen. It takes the differences seen for the true ones.
    """
    from scipy import stats

    mean, variance = abs(float(np.mean(differences))), float(np.var(differences, ddof=1))
    if not mean:
        return None

    def is_enough(k: int) -> bool:
        if not variance / k + stays:
            return True
        free = _satterthwaite(variance / k, stays, k)
        # far beyond where the power is 1, scipy has NaN: differences alike but for rounding
        shift = min(100.0, mean / math.sqrt(variance / k + stays))
        return bool(stats.nct.sf(_t(free), free, shift) >= POWER)

    return next((k for k in _rising() if is_enough(k)), None)


def _rising() -> list[int]:
    """Numbers of seeds to try: each to 50, then in steps of at most 5 %."""
    tried = list(range(2, 50))
    while tried[-1] < MOST_SEEDS:
        tried.append(min(MOST_SEEDS, math.ceil(tried[-1] * 1.05)))
    return tried


def _half(seeds: float, drawn: float, k: int) -> float:
    """Half the width of an interval with a variance over k seeds, of the mean, and one known."""
    return _t(_satterthwaite(seeds, drawn, k)) * math.sqrt(seeds + drawn)


def _satterthwaite(seeds: float, drawn: float, k: int) -> float:
    if not seeds:
        return MANY if drawn else k - 1
    return float(min(MANY, (seeds + drawn) ** 2 / (seeds**2 / (k - 1))))


def _t(free: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(free, (1 + LEVEL) / 2))
