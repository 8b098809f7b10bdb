"""A linear head in closed form: what a frozen backbone predicts once it has seen some labels.

Ridge regression of one-hot labels on a text's vector, with an intercept that is not shrunk. Leaving
a text out changes its own prediction in closed form, too (Cook & Weisberg 1982, section 2.2):

    H = 1/n + X (X'X + k I)^-1 X',    out of sample y_i - (y_i - y^_i) / (1 - H_ii),

X being the centred vectors; k is the one of `SHRINKAGES` (times the vectors' mean square) whose
predictions out of sample have the least squared error. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learning.cost.costs import Cost

SHRINKAGES = tuple(float(10.0**power) for power in np.arange(-3, 3.5, 0.5))
"""Relative to the centred vectors' mean square, so that they fit vectors of any size."""
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class Head:
    """weights float32 [D + 1, C], the intercept last; and what each text that it was fitted to is
    predicted as by the head without that text, float32 [n, C].
    """

    weights: np.ndarray
    left_out: np.ndarray


def fit(vectors_ND: np.ndarray, labels_N: np.ndarray, n_classes: int) -> Head:
    """The head for these labelled vectors; of one text, or of none, it knows nothing: 1/C."""
    n, width = vectors_ND.shape
    if n < 2:
        weights = np.zeros((width + 1, n_classes), dtype=np.float32)
        weights[-1] = 1 / n_classes
        return Head(weights, np.full((n, n_classes), 1 / n_classes, dtype=np.float32))
    x_ND = vectors_ND.astype(np.float64)
    y_NC = np.eye(n_classes)[labels_N]
    mean_D, base_C = x_ND.mean(axis=0), y_NC.mean(axis=0)
    u_NK, s_K, v_KD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    scale = max(float((s_K**2).sum()) / width, 1e-12)
    k, left_NC = leave_one_out(u_NK, s_K**2, y_NC, scale)
    projected_KC = u_NK.T @ (y_NC - base_C)
    weights_DC = v_KD.T @ ((s_K / (s_K**2 + k))[:, None] * projected_KC)
    whole = np.vstack([weights_DC, base_C - mean_D @ weights_DC])
    return Head(whole.astype(np.float32), left_NC.astype(np.float32))


def leave_one_out(
    u_NK: np.ndarray, squares_K: np.ndarray, y_NC: np.ndarray, scale: float
) -> tuple[float, np.ndarray]:
    """The shrinkage k (of `SHRINKAGES`, times `scale`) whose predictions out of sample have the
    least squared error, and these predictions; of centred vectors X with X X' = U diag(squares) U'.
    """
    base_C = y_NC.mean(axis=0)
    projected_KC = u_NK.T @ (y_NC - base_C)
    best: tuple[float, float, np.ndarray] | None = None
    for shrinkage in SHRINKAGES:
        kept_K = squares_K / (squares_K + shrinkage * scale)
        fitted_NC = base_C + u_NK @ (kept_K[:, None] * projected_KC)
        leverage_N = 1 / len(y_NC) + (u_NK**2) @ kept_K
        left_NC = y_NC - (y_NC - fitted_NC) / np.maximum(1 - leverage_N, 1e-6)[:, None]
        error = float(((y_NC - left_NC) ** 2).sum())
        if best is None or error < best[0]:
            best = error, shrinkage * scale, left_NC
    assert best is not None, "there are shrinkages to choose from"
    return best[1:]


def head_bytes(width: int, n_classes: int) -> int:
    """What a head is sent as: float32."""
    return _NUMBER_BYTES * (width + 1) * n_classes


def fitting(texts: int, width: int, n_classes: int) -> Cost:
    """What fitting a head to so many vectors costs: a singular value decomposition, 6 N D K + 20
    K^3 FLOP with K = min(N, D) (Golub & Van Loan, figure 8.6.1), the predictions of every shrinkage
    and the head. The vectors, the two factors and the predictions are in memory.
    """
    rank = min(texts, width)
    decomposition = 6.0 * texts * width * rank + 20.0 * rank**3
    tried = len(SHRINKAGES) * 2.0 * texts * rank * (n_classes + 1)
    head = 2.0 * rank * n_classes * (texts + width)
    held = 8 * (texts * width + rank * (texts + width) + 2 * texts * n_classes)
    return Cost(decomposition + tried + head, 2 * held, held)
