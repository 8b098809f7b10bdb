"""Differential privacy: how much Gaussian noise it takes, and what noise is worth.

A mechanism is (epsilon, delta)-differentially private if what it gives for two neighbouring inputs
differs in probability by no more than a factor exp(epsilon), but for delta (Dwork et al. 2006).
Noise of `noise_multiplier` times the sensitivity is counted by Opacus' accountant of Renyi
differential privacy (Mironov, CSF 2017; subsampled: Mironov, Talwar & Zhang 2019).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MISSING = "differential privacy is counted by Opacus: pip install 'mobifleet[privacy]'"


class NoAccountant(ValueError):
    """Opacus is not installed."""


@functools.cache
def noise_for(epsilon: float, delta: float) -> float:
    """The noise multiplier at which one release is (epsilon, delta)-differentially private, to a
    hundredth of epsilon. NoAccountant without Opacus; ValueError where no noise is enough.

    noise_for(8, 1e-5)   # 0.64
    """
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise NoAccountant(MISSING) from error
    with warnings.catch_warnings():  # of orders, where a finer grid would tell a little less
        warnings.simplefilter("ignore")
        try:
            return get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=1.0,
                steps=1,
                accountant="rdp",
            )
        except ValueError as error:
            raise ValueError(
                f"{epsilon:g} at delta {delta:g} is less than can be counted: say more of one"
            ) from error


def epsilon_of(noise_multiplier: float, sample_rate: float, releases: int, delta: float) -> float:
    """What so many releases are worth, each of a random share of the inputs; infinity without
    noise, 0 without releases. NoAccountant without Opacus.

    epsilon_of(1.0, 0.1, 100, 1e-5)   # 7.9
    """
    if not releases:
        return 0.0
    if noise_multiplier <= 0:
        return math.inf
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise NoAccountant(MISSING) from error
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, releases)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def require_accountant() -> None:
    """Raise NoAccountant without Opacus."""
    import importlib.util

    if importlib.util.find_spec("opacus") is None:
        raise NoAccountant(MISSING)


def clipped(delta: Mapping[str, Tensor], length: float) -> dict[str, Tensor]:
    """A change of a model, all tensors together at most so long (Abadi et al., CCS 2016)."""
    import torch

    tensors = list(delta.values())
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)).double()))
    share = min(1.0, length / max(norm, 1e-30))
    return dict(zip(delta, torch._foreach_mul(tensors, share), strict=True))


def with_noise(mean: Mapping[str, Tensor], deviation: float, seed: int) -> dict[str, Tensor]:
    """A change of a model with Gaussian noise on every number, which follows from the seed."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    return {
        name: tensor + deviation * torch.randn(tensor.shape, generator=draws)
        for name, tensor in mean.items()
    }
