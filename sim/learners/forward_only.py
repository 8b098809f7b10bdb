"""The learning behind the forward-only methods' clock: real losses of real backbones, and no backward pass.

Each call of a device is a pure function of its batches, the state it received and a seed (see `learning.forward_gradient`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from learning import forward_gradient as fg
from learning.aggregation import ServerMoments, ServerOptimiser, fed_avg, restrict
from sim.learners.federated import FederatedLearner, sorted_out

if TYPE_CHECKING:
    from torch import Tensor

    State = Mapping[str, Tensor]


class ForwardLearner(FederatedLearner):
    """Losses of batches as functions of a state."""

    def losses(self, backbone: str, batches: Sequence[np.ndarray]) -> list[fg.Loss]:
        """One loss a batch of samples."""
        import torch

        from learning.local_training import inputs

        torch.set_num_threads(1)  # the same bits in every worker
        made = []
        for samples in batches:
            ids_BT, mask_BT, segments_BT = inputs(self.tokens(backbone, samples), range(len(samples)))
            labels_B = torch.as_tensor(self.sim.task.labels[samples]).long()
            made.append(fg.batch_loss(self.models[backbone], ids_BT, mask_BT, labels_B, segments_BT))
        return made


class FwdLLMLearner(ForwardLearner):
    """Directions chosen by the last global gradient, probed on devices; gradients gathered until they agree."""

    gradient: State | None = None

    def choose(self, backbones: Sequence[str], seeds: Sequence[int], number: int, candidates: int) -> list[list[int]]:
        """The seeds of so many directions for each device."""
        return [
            fg.choose_directions(
                own, seed, number, None if self.gradient is None else restrict(self.gradient, own), candidates
            )
            for backbone, seed in zip(backbones, seeds, strict=True)
            for own in [self.part_of(backbone, self.state)]
        ]

    def probe(
        self, backbone: str, batches: Sequence[np.ndarray], state: State, seeds: Sequence[int], h: float, shared: bool
    ) -> bytes:
        """What a device uploads: its gradient, or with `shared` seeds its probes."""
        own, losses = self.part_of(backbone, state), self.losses(backbone, batches)
        slopes = np.array([p.derivative for p in fg.fwdllm_probes(losses, own, seeds, h)]).reshape(len(seeds), -1)
        means = slopes.mean(axis=1).astype(np.float32)  # over the batches, along the same direction
        probes = [fg.Probe(seed, float(mean)) for seed, mean in zip(seeds, means, strict=True)]
        return fg.encode_probes(probes) if shared else self.packed(fg.gradient_of(probes, own))

    def gather(
        self, backbones: Sequence[str], answers: Sequence[bytes], threshold: float | None, shared: bool
    ) -> tuple[list[State], bool, list[int]]:
        """The gradients that came, whether they disagree so much that more are needed, and the places of those that are
        not finite, which are left out.
        """
        gradients = [
            fg.gradient_of(fg.decode_probes(data), self.part_of(backbone, self.state))
            if shared
            else self.unpacked(backbone, data)
            for backbone, data in zip(backbones, answers, strict=True)
        ]
        kept, left_out = sorted_out(gradients)
        gradients = [gradients[k] for k in kept]
        # the head is the one layer that backbones of any depth and kinds of any name share
        return gradients, threshold is not None and fg.needs_more(gradients, "head.weight", threshold), left_out

    def step(self, gradients: Sequence[State], learning_rate: float) -> None:
        """One step along the mean gradient, which is remembered."""
        names = {name for gradient in gradients for name in gradient}
        part = {name: tensor for name, tensor in self.state.items() if name in names}
        new, mean = fg.fwdllm_step(part, gradients, learning_rate)
        self.become({**self.state, **new})
        self.gradient = {name: mean.get(name, tensor * 0) for name, tensor in self.state.items()}


class FedMezoLearner(ForwardLearner):
    """Local SPSA steps, of which seeds and scalars alone travel; the server makes the same states of them."""

    def probe(
        self, backbone: str, batches: Sequence[np.ndarray], state: State, seed: int, learning_rate: float, eps: float
    ) -> bytes:
        """What a device uploads after one step a batch."""
        own, losses = self.part_of(backbone, state), self.losses(backbone, batches)
        return fg.encode_probes(fg.mezo_steps(losses, own, seed, learning_rate, eps)[1])

    def aggregate(self, backbones: Sequence[str], answers: Sequence[bytes], learning_rate: float) -> list[int]:
        """The mean of the states that the probes stand for; returns the places of what is not finite, left out."""
        states = [
            fg.replay(self.part_of(backbone, self.state), fg.decode_probes(data), learning_rate)
            for backbone, data in zip(backbones, answers, strict=True)
        ]
        kept, left_out = sorted_out(states)
        if kept:
            self.become(fed_avg(self.state, [states[k] for k in kept], [1.0] * len(kept)))
        return left_out


class SpryLearner(ForwardLearner):
    """Assigned tensors trained by forward-mode derivatives; a mean of each over those who trained it."""

    _moments: ServerMoments | None = None

    def names(self, backbone: str) -> list[str]:
        """The trained tensors of a backbone in the order in which they are dealt."""
        return list(self.models[backbone].trainable_parameters())

    def train_assigned(
        self, backbone: str, batches: Sequence[np.ndarray], state: State, assigned: Sequence[str], seed: int, *how: Any
    ) -> bytes:
        """What a device uploads: its tensors after one step a batch."""
        own = self.part_of(backbone, state)
        return self.packed(fg.spry_steps(self.losses(backbone, batches), own, assigned, seed, *how).state)

    def aggregate(
        self, assigned: Sequence[Sequence[str]], answers: Sequence[bytes], settings: ServerOptimiser
    ) -> list[int]:
        """A step of the server towards the mean of each tensor; returns the places of what is not finite, left out."""
        from learning.state_codec import unpack

        returned = [unpack(data, restrict(self.state, names)) for data, names in zip(answers, assigned, strict=True)]
        kept, left_out = sorted_out(returned)
        if kept:
            good = [returned[k] for k in kept]
            state, self._moments = fg.spry_server_step(settings, self.state, good, self._moments)
            self.become(state)
        return left_out
