"""Which records of a payload are no texts, but decoys made of its texts.

    scores_N = by_place(payload_ND)                      # who knows nothing
    classifier = Imitated.fit(public_ND, payload=8, decoys=8, shares=decoy_shares, rng=rng)
    scores_N = classifier.scores(payload_ND)             # who has texts of the kind

A decoy lies about a point between two texts. Who sees a payload looks how near each record lies to
a line between two others; who has the backbone and other texts makes decoys of those, as devices
do, and learns to tell them by that, by how far out they lie, and by what they have along and beside
the texts' principal axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

AXES, REPEATS = 100, 4
"""Principal axes that are looked along, and how often the public texts are made payloads of."""


def by_place(x_ND: np.ndarray) -> np.ndarray:
    """How near each record [n, ...] lies to a line between two others, the higher the nearer: minus
    the distance to the nearest segment, over the payload's median. Zeros for fewer than three.
    """
    x_ND = x_ND.reshape(len(x_ND), -1).astype(np.float64)
    n, products_NN = len(x_ND), x_ND @ x_ND.T
    if n < 3:
        return np.zeros(n)
    nearest_N = np.empty(n)
    for i in range(n):
        others = np.delete(np.arange(n), i)
        own = products_NN[others, i]
        # products of the others' vectors as seen from record i
        r_MM = products_NN[np.ix_(others, others)] - own[:, None] - own + products_NN[i, i]
        square_M = np.diag(r_MM)
        length_MM = np.maximum(square_M[:, None] + square_M - 2 * r_MM, 1e-12)
        at_MM = np.clip((square_M[:, None] - r_MM) / length_MM, 0, 1)
        away_MM = square_M[:, None] - 2 * at_MM * (square_M[:, None] - r_MM) + at_MM**2 * length_MM
        np.fill_diagonal(away_MM, np.inf)
        nearest_N[i] = np.sqrt(max(away_MM.min(), 0.0))
    return -nearest_N / max(float(np.median(nearest_N)), 1e-12)


@dataclass(frozen=True)
class Imitated:
    """A logistic regression of which records are decoys, learned from public texts and decoys made
    of them; mean_D, axes_DA and lengths_A are the public vectors': their mean, their principal axes
    and their deviations along these.
    """

    mean_D: np.ndarray
    axes_DA: np.ndarray
    lengths_A: np.ndarray
    classifier: Any

    @classmethod
    def fit(
        cls,
        public: np.ndarray,
        payload: int,
        decoys: int,
        shares: Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]],
        rng: np.random.Generator,
    ) -> Imitated:
        """Of public vectors [n, ...], in payloads of so many texts and decoys; `shares` is
        `learning.side.protection.decoy_shares`. ValueError for fewer texts than a payload has.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x_ND = public.reshape(len(public), -1).astype(np.float64)
        if len(x_ND) < payload:
            raise ValueError(f"{len(x_ND)} public texts make no payload of {payload}")
        mean_D = x_ND.mean(axis=0)
        _, lengths_K, axes_KD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
        lengths_A = lengths_K[:AXES] / np.sqrt(len(x_ND))
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        made = cls(mean_D, axes_KD[:AXES].T, np.maximum(lengths_A, 1e-12), classifier)
        seen: list[np.ndarray] = []
        for _ in range(REPEATS):
            order = rng.permutation(len(x_ND))
            for start in range(0, len(order) - payload + 1, payload):
                texts_ND = x_ND[order[start : start + payload]]
                _, about_MN = shares(payload, decoys, rng)
                seen.append(made._looks(np.concatenate([texts_ND, about_MN @ texts_ND])))
        is_decoy = np.tile(np.repeat([0, 1], [payload, decoys]), len(seen))
        classifier.fit(np.concatenate(seen), is_decoy)
        return made

    def scores(self, payload: np.ndarray) -> np.ndarray:
        """How much each record [n, ...] of a payload looks like a decoy."""
        return self.classifier.decision_function(self._looks(payload))

    def _looks(self, payload: np.ndarray) -> np.ndarray:
        away_ND = payload.reshape(len(payload), -1).astype(np.float64) - self.mean_D
        along_NA = away_ND @ self.axes_DA
        far_N = (away_ND**2).sum(axis=1)
        beside_N = far_N - (along_NA**2).sum(axis=1)
        spread_N = ((along_NA / self.lengths_A) ** 2).sum(axis=1)
        sizes_N3 = np.log(np.maximum(np.stack([far_N, beside_N, spread_N], axis=1), 1e-12))
        return np.column_stack([by_place(payload), sizes_N3])
