"""Groups of texts behind a secret function of their vectors, by whoever knows that there is one.

    outcome = by_mixture(targets_NK, axes_NA, labels_N, 6, rng)

Protected differences are t = m_z - g(x) with one m a class and g linear in a few axes of the
vectors (`learning.side.protection`). Clustering t finds what g says. A mixture of regressions with
one slope for all classes solves for m, g and each text's class z in turn: hard assignments, least
squares, from several starts, the best fit kept (classification EM; Celeux & Govaert 1992).
"""

from __future__ import annotations

import numpy as np

from learning.attacks.label_recovery import judged_groups
from learning.attacks.outcome import AttackOutcome

ROUNDS, STARTS = 40, 4
RIDGE = 1e-6
"""On the slope, over the axes' mean square: for axes that hardly vary."""


def by_mixture(
    targets_NK: np.ndarray,
    axes_NA: np.ndarray,
    labels_N: np.ndarray,
    classes: int,
    rng: np.random.Generator,
) -> AttackOutcome:
    """Groups of equal m, once a function linear in `axes_NA` [n, axes] is solved for: their
    adjusted Rand index with the labels.
    """
    groups_N = solved_groups(targets_NK, axes_NA, classes, rng)
    attack = f"clustering, solved for a function of {axes_NA.shape[1]} axes"
    return judged_groups(attack, groups_N, labels_N, rng)


def solved_groups(
    targets_NK: np.ndarray, axes_NA: np.ndarray, classes: int, rng: np.random.Generator
) -> np.ndarray:
    """The class of each text, [n] from 0 on, of the best fit that was found."""
    from sklearn.cluster import KMeans

    t_NK = targets_NK.astype(np.float64)
    a_NA = axes_NA.astype(np.float64) - axes_NA.mean(axis=0)
    damping = RIDGE * float((a_NA**2).sum()) / a_NA.shape[1]
    best, found_N = np.inf, np.zeros(len(t_NK), dtype=np.int64)
    normal_AA = a_NA.T @ a_NA + damping * np.eye(a_NA.shape[1])
    left_NK = t_NK - a_NA @ np.linalg.solve(normal_AA, a_NA.T @ t_NK)
    for _ in range(STARTS):
        seed = int(rng.integers(1 << 31))
        z_N = KMeans(classes, n_init=1, random_state=seed).fit_predict(left_NK)
        for _ in range(ROUNDS):
            is_of_NC = np.eye(classes)[z_N]
            both = np.concatenate([is_of_NC, a_NA], axis=1)
            normal = both.T @ both + np.diag([1e-9] * classes + [damping] * a_NA.shape[1])
            solved = np.linalg.solve(normal, both.T @ t_NK)
            off_NCK = (t_NK - a_NA @ solved[classes:])[:, None] - solved[:classes]
            off_NC = (off_NCK**2).sum(axis=-1)
            again_N = off_NC.argmin(axis=1)
            if (again_N == z_N).all():
                break
            z_N = again_N
        if (fit := float(off_NC.min(axis=1).sum())) < best:
            best, found_N = fit, z_N
    return found_N
