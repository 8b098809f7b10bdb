"""The learning behind the forward-only methods' clock: real losses of real backbones, and no
backward pass.

Each call of a device is a pure function of its batches, the state it received and a seed (see
`learning.federated.forward_gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.federated import forward_gradient as fg
from learning.federated.aggregation import ServerOptimiser, fed_avg, restrict
from sim.kernel.learned import Learned
from sim.methods.federated_peft.learner import FederatedLearner, sorted_out, verdict_on

if TYPE_CHECKING:
    from torch import Tensor

    State = Mapping[str, Tensor]


class ForwardLearner(FederatedLearner):
    """Losses of batches as functions of a state."""

    def losses(self, backbone: str, batches: Sequence[np.ndarray]) -> list[fg.Loss]:
        """One loss a batch of samples."""
        import torch

        from learning.federated.local_training import inputs

        torch.set_num_threads(1)  # the same bits in every worker
        made = []
        for samples in batches:
            ids_BT, mask_BT, segments_BT = inputs(
                self.tokens(backbone, samples), range(len(samples))
            )
            labels_B = torch.as_tensor(self.world.task.labels[samples]).long()
            made.append(
                fg.batch_loss(self.models[backbone], ids_BT, mask_BT, labels_B, segments_BT)
            )
        return made


class FwdLLMLearner(ForwardLearner):
    """Directions chosen by the last global gradient, probed on devices; gradients gathered until
    they agree.
    """

    gradient: Learned | None = None

    def choose(
        self, backbones: Sequence[str], seeds: Sequence[int], number: int, candidates: int
    ) -> Learned:
        """The seeds of so many directions for each device."""
        now = (self.state, self.gradient)
        return self.world.host.learn(self._chosen, *now, backbones, seeds, number, candidates)

    def _chosen(self, state, gradient, backbones, seeds, number, candidates) -> list[list[int]]:
        return [
            fg.choose_directions(
                own, seed, number, None if gradient is None else restrict(gradient, own), candidates
            )
            for backbone, seed in zip(backbones, seeds, strict=True)
            for own in [self.part_of(backbone, state)]
        ]

    def probe(
        self,
        backbone: str,
        batches: Sequence[np.ndarray],
        state: Learned,
        chosen: Learned,
        place: int,
        *how: Any,
    ) -> Learned:
        """What a device uploads: its gradient along the directions chosen for its place, or their
        seeds and derivatives.
        """
        return self.world.host.learn(self._probed, backbone, batches, state, chosen, place, *how)

    def _probed(
        self, backbone, batches, state: State, chosen, place: int, h: float, shared: bool
    ) -> bytes:
        seeds = chosen[place]
        own, losses = self.part_of(backbone, state), self.losses(backbone, batches)
        slopes = np.array([p.derivative for p in fg.fwdllm_probes(losses, own, seeds, h)]).reshape(
            len(seeds), -1
        )
        means = slopes.mean(axis=1).astype(np.float32)  # over the batches, along the same direction
        probes = [fg.Probe(seed, float(mean)) for seed, mean in zip(seeds, means, strict=True)]
        return fg.encode_probes(probes) if shared else self.packed(fg.gradient_of(probes, own))

    def gather(
        self,
        backbones: Sequence[str],
        answers: Sequence[Learned],
        threshold: float | None,
        shared: bool,
    ) -> Callable[[], tuple[Learned, bool, list[int]]]:
        """Gives the gradients that came, whether they disagree so much that more are needed, and
        the places of those that are not finite, which are left out.
        """
        host, how = self.world.host, (backbones, answers, shared)
        gradients, left_out = host.learn(self._gathered, self.state, *how, stored=(True, True))
        # the head is the one layer that backbones of any depth and kinds of any name share
        watched = (gradients, "head.weight", threshold)
        return lambda: (
            gradients,
            threshold is not None and host.look(fg.needs_more, *watched),
            host.know(left_out),
        )

    def _gathered(
        self, state: State, backbones, answers, shared: bool
    ) -> tuple[list[State], list[int]]:
        gradients = [
            fg.gradient_of(fg.decode_probes(data), self.part_of(backbone, state))
            if shared
            else self.unpacked(backbone, data)
            for backbone, data in zip(backbones, answers, strict=True)
        ]
        kept, left_out = sorted_out(gradients)
        return [gradients[k] for k in kept], left_out

    def step(self, gradients: Learned, learning_rate: float) -> Callable[[], list[int]]:
        """One step along the mean gradient, which is remembered."""
        now = (self.state, gradients, learning_rate)
        self.state, self.gradient, verdict = self.world.host.learn(
            self._stepped, *now, stored=(True, True, True)
        )
        return self.judged(verdict)

    def _stepped(self, state: State, gradients: Sequence[State], learning_rate: float) -> tuple:
        names = {name for gradient in gradients for name in gradient}
        part = {name: tensor for name, tensor in state.items() if name in names}
        new, mean = fg.fwdllm_step(part, gradients, learning_rate)
        state = {**state, **new}
        gradient = {name: mean.get(name, tensor * 0) for name, tensor in state.items()}
        return state, gradient, verdict_on(state, [])


class FedMezoLearner(ForwardLearner):
    """Local SPSA steps, of which seeds and scalars alone travel; the server makes the same states
    of them.
    """

    def probe(
        self, backbone: str, batches: Sequence[np.ndarray], state: Learned, *how: Any
    ) -> Learned:
        """What a device uploads after one step a batch."""
        return self.world.host.learn(self._probed, backbone, batches, state, *how)

    def _probed(
        self, backbone, batches, state: State, seed: int, learning_rate: float, eps: float
    ) -> bytes:
        own, losses = self.part_of(backbone, state), self.losses(backbone, batches)
        return fg.encode_probes(fg.mezo_steps(losses, own, seed, learning_rate, eps)[1])

    def aggregate(
        self, backbones: Sequence[str], answers: Sequence[Learned], learning_rate: float
    ) -> Callable[[], list[int]]:
        """The mean of the states that the probes stand for; gives the places of what is not finite,
        left out.
        """
        how = (backbones, answers, learning_rate)
        self.state, verdict = self.world.host.learn(
            self._averaged, self.state, *how, stored=(True, True)
        )
        return self.judged(verdict)

    def _averaged(self, state: State, backbones, answers, learning_rate: float) -> tuple:
        states = [
            fg.replay(self.part_of(backbone, state), fg.decode_probes(data), learning_rate)
            for backbone, data in zip(backbones, answers, strict=True)
        ]
        kept, left_out = sorted_out(states)
        if kept:
            state = fed_avg(state, [states[k] for k in kept], [1.0] * len(kept))
        return state, verdict_on(state, left_out)


class SpryLearner(ForwardLearner):
    """Assigned tensors trained by forward-mode derivatives; a mean of each over those who trained
    it.
    """

    _moments: Learned | None = None

    def names(self, backbone: str) -> list[str]:
        """The trained tensors of a backbone in the order in which they are dealt."""
        return list(self.models[backbone].trainable_parameters())

    def train_assigned(
        self, backbone: str, batches: Sequence[np.ndarray], state: Learned, *how: Any
    ) -> Learned:
        """What a device uploads: its assigned tensors after one step a batch."""
        return self.world.host.learn(self._trained_assigned, backbone, batches, state, *how)

    def _trained_assigned(
        self, backbone, batches, state: State, assigned, seed: int, *how: Any
    ) -> bytes:
        own = self.part_of(backbone, state)
        return self.packed(
            fg.spry_steps(self.losses(backbone, batches), own, assigned, seed, *how).state
        )

    def aggregate(
        self,
        assigned: Sequence[Sequence[str]],
        answers: Sequence[Learned],
        settings: ServerOptimiser,
    ) -> Callable[[], list[int]]:
        """A step of the server towards the mean of each tensor; gives the places of what is not
        finite, left out.
        """
        now, how = (self.state, self._moments), (assigned, answers, settings)
        self.state, self._moments, verdict = self.world.host.learn(
            self._averaged, *now, *how, stored=(True, True, True)
        )
        return self.judged(verdict)

    def _averaged(self, state: State, moments, assigned, answers, settings) -> tuple:
        from learning.federated.state_codec import unpack

        returned = [
            unpack(data, restrict(state, names))
            for data, names in zip(answers, assigned, strict=True)
        ]
        kept, left_out = sorted_out(returned)
        if kept:
            state, moments = fg.spry_server_step(
                settings, state, [returned[k] for k in kept], moments
            )
        return state, moments, verdict_on(state, left_out)
