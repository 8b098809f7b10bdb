"""A skip beside the gated adapters that is solved, not stepped: a linear readout of all of a
record's vectors at once.

With x the vectors side by side, over the records' root mean square length, `ridge` is

    (sum of x x' - n m m' + k I) weights = sum of x y' - n m ybar',   m, ybar the means,

which rests on sums over records, so that no order of arrival changes it. k is given, or the one of
`PENALTIES` whose predictions of records left out have the least squared error; those follow in
closed form from the principal axes of the centred x (as in `learning.side.heads`), with no label
and no text but what was uploaded. `logistic`, for which a server needs the labels, is there as a
reference: cross-entropy of softmax(log y_b + x weights + bias) and k / 2 times the sum of squared
weights, k the one of `PENALTIES` with the least cross-entropy on every fifth record, if these are
left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.side.config import EVALUATIONS, PENALTIES

_FOLDS = 5


class Skip(nn.Module):
    """Vectors of all sampled layers, side by side [B, inputs], to prediction differences [B,
    classes]; buffers only, none of them trained. Zero until it is fitted.
    """

    scale: Tensor
    weights: Tensor
    bias: Tensor
    records: Tensor

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("weights", torch.zeros(inputs, classes))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("records", torch.zeros((), dtype=torch.int64))

    @property
    def is_fitted(self) -> bool:
        """Whether it has seen records."""
        return bool(self.records > 0)

    def fit(self, x_NF: Tensor, y_NC: Tensor, penalties: Sequence[float] = PENALTIES) -> float:
        """Solve ridge regression for all records [N, inputs] and targets [N, classes], in float64,
        with the best of these penalties; returns which.
        """
        x_NF, y_NC = self._scaled(x_NF).double(), y_NC.double()
        m_F, ybar_C = x_NF.mean(dim=0), y_NC.mean(dim=0)
        x_NF, y_NC = x_NF - m_F, y_NC - ybar_C
        axes_FK, variances_K = _principal(x_NF)
        z_NK = x_NF @ axes_FK
        moment_KC = z_NK.T @ y_NC
        best = penalties[0]
        if len(penalties) > 1:
            best = min(
                penalties, key=lambda k: _left_out_error(z_NK, y_NC, moment_KC, variances_K + k)
            )
        weights_FC = axes_FK @ (moment_KC / (variances_K + best)[:, None])
        self.weights.copy_(weights_FC)
        self.bias.copy_(ybar_C - m_F @ weights_FC)
        return best

    def fit_logistic(
        self,
        x_NF: Tensor,
        one_hot_NC: Tensor,
        log_y_b_NC: Tensor,
        penalties: Sequence[float] = PENALTIES,
    ) -> float:
        """Solve logistic regression beside the backbones' own log-probabilities, with the best of
        these penalties; returns which.
        """
        x_NF = self._scaled(x_NF)
        best = penalties[0]
        if len(penalties) > 1 and len(x_NF) >= _FOLDS:
            is_left = torch.arange(len(x_NF), device=x_NF.device) % _FOLDS == 0
            parts = x_NF[~is_left], one_hot_NC[~is_left], log_y_b_NC[~is_left]
            left = x_NF[is_left], one_hot_NC[is_left], log_y_b_NC[is_left]
            solved: dict[float, tuple[Tensor, Tensor]] = {}
            at = self.weights.new_zeros(self.weights.shape), torch.zeros_like(self.bias)
            for k in sorted(penalties, reverse=True):  # each from the next stronger one's
                at = solved[k] = _logistic(*parts, k, *at)
            best = min(penalties, key=lambda k: float(_cross_entropy(*left, *solved[k])))
        start = torch.zeros_like(self.weights), torch.zeros_like(self.bias)
        weights_FC, bias_C = _logistic(x_NF, one_hot_NC, log_y_b_NC, best, *start)
        self.weights.copy_(weights_FC)
        self.bias.copy_(bias_C)
        return best

    def forward(self, x_BF: Tensor) -> Tensor:
        """The fitted prediction difference."""
        return x_BF / self.scale @ self.weights + self.bias

    def _scaled(self, x_NF: Tensor) -> Tensor:
        self.scale.copy_(x_NF.double().square().sum(dim=1).mean().sqrt().clamp_min(1e-12))
        self.records.fill_(len(x_NF))
        return x_NF / self.scale


def _principal(x_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Axes [inputs, K] along which centred records vary, and how much in all [K]; by records where
    they are fewer than inputs, which gives the same.
    """
    if len(x_NF) > x_NF.shape[1]:
        variances_K, axes_FK = torch.linalg.eigh(x_NF.T @ x_NF)
        return axes_FK, variances_K.clamp_min(0)
    variances_K, axes_NK = torch.linalg.eigh(x_NF @ x_NF.T)
    is_real = variances_K > 1e-12 * variances_K[-1].clamp_min(1e-12)
    variances_K, axes_NK = variances_K[is_real], axes_NK[:, is_real]
    return x_NF.T @ (axes_NK / variances_K.sqrt()), variances_K


def _left_out_error(z_NK: Tensor, y_NC: Tensor, moment_KC: Tensor, damped_K: Tensor) -> float:
    """Squared error of every record as it is predicted without itself; of centred targets."""
    leverage_N = 1 / len(y_NC) + z_NK.square() @ (1 / damped_K)
    off_NC = y_NC - z_NK @ (moment_KC / damped_K[:, None])
    return float((off_NC / (1 - leverage_N).clamp_min(1e-6)[:, None]).square().sum())


def _cross_entropy(
    x_NF: Tensor, one_hot_NC: Tensor, log_y_b_NC: Tensor, weights_FC: Tensor, bias_C: Tensor
) -> Tensor:
    scores_NC = log_y_b_NC + x_NF @ weights_FC + bias_C
    return F.cross_entropy(scores_NC, one_hot_NC, reduction="sum")


def _logistic(
    x_NF: Tensor,
    one_hot_NC: Tensor,
    log_y_b_NC: Tensor,
    penalty: float,
    weights_FC: Tensor,
    bias_C: Tensor,
) -> tuple[Tensor, Tensor]:
    """By L-BFGS from these weights on, in at most `EVALUATIONS` of the loss and its gradient."""
    weights_FC = weights_FC.clone().requires_grad_()
    bias_C = bias_C.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weights_FC, bias_C],
        max_iter=EVALUATIONS,
        max_eval=EVALUATIONS,
        tolerance_grad=1e-4,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        found = _cross_entropy(x_NF, one_hot_NC, log_y_b_NC, weights_FC, bias_C)
        found = found + penalty / 2 * weights_FC.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        solver.step(loss)
    return weights_FC.detach(), bias_C.detach()
