"""A skip beside the gated adapters that is solved, not stepped: ridge regression of the prediction
differences on all of a record's vectors at once, and on random Fourier features of them.

phi(x) is x itself, over the records' root mean square length, and D random features (Rahimi and
Recht 2007) sqrt(2/D) cos(x W / s + b), W normal, b uniform, which stand for a Gaussian kernel of
bandwidth s. What is solved for,

    (sum of phi phi' - n m m' + ridge I) weights = sum of phi y' - n m ybar',   m, ybar the means,

rests on sums over records, which no order of arrival changes. The drawn numbers follow from a fixed
seed, so that nobody is sent them; the solved ones are (inputs + D) x classes.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor, nn

_PIECE = 1024  # records whose features are in memory at once


class Skip(nn.Module):
    """Vectors of all sampled layers, side by side [B, inputs], to prediction differences [B,
    classes]; buffers only, none of them trained. Zero until it is fitted.
    """

    scale: Tensor
    weights: Tensor
    bias: Tensor
    records: Tensor

    def __init__(self, inputs: int, classes: int, random_features: int, bandwidth: float) -> None:
        """`bandwidth`: of the random features, in units of the records' root mean square length."""
        super().__init__()
        self.random_features, self.bandwidth = random_features, bandwidth
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("weights", torch.zeros(inputs + random_features, classes))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("records", torch.zeros((), dtype=torch.int64))

    @property
    def is_fitted(self) -> bool:
        """Whether it has seen records."""
        return bool(self.records > 0)

    def fit(self, x_NF: Tensor, y_NC: Tensor, ridge: float) -> None:
        """Solve for all records [N, inputs] and targets [N, classes], in float64; by records where
        they are fewer than features, which is the same solution.
        """
        self.scale.copy_(x_NF.double().square().sum(dim=1).mean().sqrt().clamp_min(1e-12))
        self.records.fill_(len(x_NF))
        y_NC = y_NC.double()
        ybar_C = y_NC.mean(dim=0)
        pieces = range(0, len(x_NF), _PIECE)
        if len(x_NF) <= len(self.weights):
            phi_ND = torch.cat([self._phi(x_NF[at : at + _PIECE]).double() for at in pieces])
            m_D = phi_ND.mean(dim=0)
            phi_ND = phi_ND - m_D
            weights_DC = phi_ND.T @ _solved(phi_ND @ phi_ND.T, y_NC - ybar_C, ridge)
        else:
            m_D = self.weights.new_zeros(len(self.weights), dtype=torch.float64)
            gram_DD = torch.zeros(len(m_D), len(m_D), dtype=torch.float64, device=m_D.device)
            moment_DC = torch.zeros(self.weights.shape, dtype=torch.float64, device=m_D.device)
            for at in pieces:
                phi_PD = self._phi(x_NF[at : at + _PIECE]).double()
                m_D += phi_PD.sum(dim=0) / len(x_NF)
                gram_DD.addmm_(phi_PD.T, phi_PD)
                moment_DC.addmm_(phi_PD.T, y_NC[at : at + _PIECE])
            gram_DD.addr_(m_D, m_D, alpha=-len(x_NF))
            moment_DC.addr_(m_D, ybar_C, alpha=-len(x_NF))
            weights_DC = _solved(gram_DD, moment_DC, ridge)
        self.weights.copy_(weights_DC)
        self.bias.copy_(ybar_C - m_D @ weights_DC)

    def forward(self, x_BF: Tensor) -> Tensor:
        """The fitted prediction difference."""
        return self._phi(x_BF) @ self.weights + self.bias

    def _phi(self, x_BF: Tensor) -> Tensor:
        x_BF = x_BF / self.scale
        if not self.random_features:
            return x_BF
        directions_FD, phases_D = _drawn(x_BF.shape[1], self.random_features)
        angles_BD = x_BF @ directions_FD.to(x_BF.device) / self.bandwidth
        waves_BD = torch.cos(angles_BD + phases_D.to(x_BF.device))
        return torch.cat([x_BF, math.sqrt(2 / self.random_features) * waves_BD], dim=1)


def _solved(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


@functools.lru_cache(maxsize=4)
def _drawn(inputs: int, features: int) -> tuple[Tensor, Tensor]:
    """Normal directions [inputs, features] and phases [features], the same for everyone who draws
    them: of raw bits, which numpy promises never to change, by Box and Muller's rule.
    """
    bits = np.random.PCG64(features).random_raw((2 * inputs + 1) * features)
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle, phases_D = np.split(uniform, [inputs * features, 2 * inputs * features])
    normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    directions_FD = torch.from_numpy(normal.reshape(inputs, features).astype(np.float32))
    return directions_FD, torch.from_numpy((2 * np.pi * phases_D).astype(np.float32))
