"""Columns on one scale, as an attacker sees them."""

from __future__ import annotations

import numpy as np

_LEAST = 1e-3


def standards(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each column's mean and deviation [features], float64; infinite where it hardly varies (below
    a thousandth of the root mean square of all deviations), so that dividing by it leaves nothing
    of a dead column's rounding errors.
    """
    x_NF = x_NF.astype(np.float64)
    mean_F, spread_F = x_NF.mean(axis=0), x_NF.std(axis=0)
    least = _LEAST * np.sqrt((spread_F**2).mean())
    return mean_F, np.where((spread_F > least) & (spread_F > 0), spread_F, np.inf)


def standardised(x_NF: np.ndarray) -> np.ndarray:
    """Each column less its mean, over its deviation; float64."""
    mean_F, spread_F = standards(x_NF)
    return (x_NF - mean_F) / spread_F


def unit(x_NF: np.ndarray) -> np.ndarray:
    """Each vector [..., d] over its length."""
    return x_NF / np.maximum(np.linalg.norm(x_NF, axis=-1, keepdims=True), 1e-12)
