"""The learning behind the forward-only methods' clock: real losses of real backbones, and no
backward pass.

Each call of a device is a pure function of its batches, the state it received and a seed (see
`learning.federated.forward_gradient`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.federated import forward_gradient as fg
from sim.methods.federated_peft.learner import FederatedLearner

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State


@dataclass(frozen=True)
class ForwardClient:
    """What a client update computes with: the loss of each of its batches, and its part of a
    state.
    """

    losses: Sequence[fg.Loss]
    part_of: Callable[[State], dict[str, Tensor]]


class ForwardLearner(FederatedLearner):
    """Losses of batches as functions of a state; what is sent are states or probes."""

    def client_of(self, backbone: str, batches: Any) -> ForwardClient:
        """What a client update computes with."""
        part_of = functools.partial(self.part_of, backbone)
        return ForwardClient(self.losses(backbone, batches), part_of)

    def packed(self, state: Any) -> bytes:
        """A state, a probe, or numbers, as bytes on the wire."""
        if isinstance(state, np.ndarray):
            return state.astype("<f4").tobytes()
        return fg.encode_probes([state]) if isinstance(state, fg.Probe) else super().packed(state)

    def losses(self, backbone: str, batches: Sequence[np.ndarray]) -> list[fg.Loss]:
        """One loss a batch of samples."""
        import torch

        from learning.federated.local_training import inputs
        from learning.federated.losses import targets_of

        torch.set_num_threads(1)  # the same bits in every worker
        made = []
        for samples in batches:
            ids_BT, mask_BT, segments_BT = inputs(
                self.tokens(backbone, samples), range(len(samples))
            )
            labels_B = targets_of(self.world.task.labels[samples])
            made.append(
                fg.batch_loss(self.models[backbone], ids_BT, mask_BT, labels_B, segments_BT)
            )
        return made
