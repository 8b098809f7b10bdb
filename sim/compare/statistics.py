"""What some seeds say of a mean."""

from __future__ import annotations

import math

import numpy as np


def interval(values: list[float | None]) -> tuple[float | None, float | None]:
    """The mean, and the half-width of its 95 % interval (Student's t); None for either that there
    is not.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    if len(known) == 1:
        return float(known[0]), None
    from scipy import stats

    half = stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known))
    return math.fsum(known) / len(known), float(half)
