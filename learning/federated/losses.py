"""The loss that a classifier with a head is trained by: of classes or of ratings, as the labels
are.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.metrics import is_rating


def targets_of(labels_N: np.ndarray) -> Tensor:
    """Numbers of classes as int64, ratings as float32, [N]."""
    return torch.as_tensor(labels_N.astype(np.float32 if is_rating(labels_N) else np.int64))


def loss_of(outputs_BC: Tensor, targets_B: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the classes' logits; of ratings, the squared error of the one output."""
    if targets_B.is_floating_point():
        return F.mse_loss(outputs_BC[:, 0], targets_B, reduction=reduction)
    return F.cross_entropy(outputs_BC, targets_B, reduction=reduction)
