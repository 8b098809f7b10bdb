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
    from learning.federated.recorded import Recorded
    from learning.federated.trainable import TrainableClassifier
    from sim.kernel.world import World


@dataclass(frozen=True)
class ForwardClient:
    """What a client update computes with: a model, the loss of each of its batches, and its part of
    a state.
    """

    model: TrainableClassifier
    losses: Sequence[fg.Loss]
    part_of: Callable[[State], dict[str, Tensor]]


class ForwardLearner(FederatedLearner):
    """Losses of batches as functions of a state; what is sent are states or probes."""

    side_by_side = False  # forward-mode derivatives go by a level that all threads of torch share

    def client_of(self, model: TrainableClassifier, backbone: str, batches: Any) -> ForwardClient:
        """What a client update computes with."""
        part_of = functools.partial(self.part_of, backbone)
        return ForwardClient(model, self.losses(model, backbone, batches), part_of)

    def packed(self, state: Any) -> bytes:
        """A state, a probe, or numbers, as bytes on the wire."""
        if isinstance(state, np.ndarray):
            return state.astype("<f4").tobytes()
        return fg.encode_probes([state]) if isinstance(state, fg.Probe) else super().packed(state)

    def losses(
        self, model: TrainableClassifier, backbone: str, batches: Sequence[np.ndarray]
    ) -> list[fg.Loss]:
        """One loss a batch of samples."""
        import torch

        torch.set_num_threads(1)  # the same bits in every worker
        return [self.loss(model, backbone, samples) for samples in batches]

    def loss(self, model: TrainableClassifier, backbone: str, samples: np.ndarray) -> fg.Loss:
        """The loss of one batch."""
        from learning.federated.local_training import inputs
        from learning.federated.losses import targets_of

        ids_BT, mask_BT, segments_BT = inputs(self.tokens(backbone, samples), range(len(samples)))
        labels_B = targets_of(self.world.task.labels[samples])
        return fg.batch_loss(model, ids_BT, mask_BT, labels_B, segments_BT)


ROOM_BYTES = 2**28  # for what is recalled of all batches


class RecallingLearner(ForwardLearner):
    """Where the same batches come again, and all trained tensors with them: what passes over one
    have in common is computed once, as far as there is room.
    """

    side_by_side = True

    def __init__(self, world: World, *model: Any) -> None:
        super().__init__(world, *model)
        # by backbone and batch; None: its passes have nothing in common that can be recorded
        self._recorded: dict[tuple[str, bytes], Recorded | None] = {}
        self._room_bytes = ROOM_BYTES

    def loss(self, model: TrainableClassifier, backbone: str, samples: np.ndarray) -> fg.Loss:
        """The loss of one batch, recorded by its first call."""
        key = (backbone, samples.tobytes())
        return self._recorded.get(key) or functools.partial(self._first, model, key, samples)

    def _first(
        self, model: TrainableClassifier, key: tuple[str, bytes], samples: np.ndarray, state: State
    ) -> Tensor:
        from learning.federated.recorded import CannotRecord, Recorded

        recorded = self._recorded.get(key)
        if recorded is None:
            loss = super().loss(model, key[0], samples)
            if key in self._recorded or self._room_bytes <= 0:
                return loss(state)
            try:
                recorded = Recorded(loss, state)
            except CannotRecord:
                self._recorded[key] = None
                return loss(state)
            with self._lending:
                if key not in self._recorded:  # by another thread, meanwhile
                    self._room_bytes -= recorded.nbytes(model)
                    self._recorded[key] = recorded
        return recorded(state)
