"""What side-tuning learns, without a clock: what a device makes of a batch, and the server's step.

A record is a text's vectors of the sampled layers, from the device's frozen backbone, and a target.
A method names in its file which of these it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from learning.side.prediction_difference import difference

if TYPE_CHECKING:
    from torch import Tensor

    from learning.side.tuning import SideNetworkTrainer


def with_differences(
    values: np.ndarray, labels_N: np.ndarray, y_b_NC: np.ndarray, loss: str
) -> tuple[np.ndarray, np.ndarray]:
    """A client update (PAE and Fed MobiLLM): the vectors, and the truth less the backbone's own
    prediction; for cross-entropy, which no difference can give, the truth beside it.
    """
    targets = difference(labels_N, y_b_NC)
    if loss == "cross-entropy":
        targets = np.concatenate([targets + y_b_NC, y_b_NC], axis=1)
    return values, targets


def with_labels(
    values: np.ndarray, labels_N: np.ndarray, y_b_NC: np.ndarray, loss: str
) -> tuple[np.ndarray, np.ndarray]:
    """A client update (MobiLLM): the vectors, and the truth alone, one-hot."""
    return values, difference(labels_N, np.zeros_like(y_b_NC))


def one_step(
    trainer: SideNetworkTrainer, records: Sequence[tuple[str, Tensor, Tensor]]
) -> tuple[SideNetworkTrainer, float]:
    """A server update: an AdamW step of the side network on (backbone, vectors, target) records,
    and its loss before. What is random in it follows from the trainer's seed and its step number;
    the trainer that came is the one that goes on.
    """
    return trainer, trainer.train(records)


def closed_form(
    trainer: SideNetworkTrainer, records: Sequence[tuple[str, Tensor, Tensor]]
) -> tuple[SideNetworkTrainer, float]:
    """A server update: the skip of the side network solved for all (backbone, vectors, target)
    records, and its error; the adapters stay as they are.
    """
    return trainer, trainer.fit(records)
