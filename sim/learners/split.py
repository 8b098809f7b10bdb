"""The learning behind split learning's clock: real parts of real backbones, which meet only in bytes.

Each call is a pure function of what it is given. `Held` is what one side holds: a state (of which it touches the tensors of
its own parts alone) and its optimiser's moments. Bytes are float32 vectors of the real tokens, after each text's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from learning.aggregation import is_finite, restrict, weighted_mean
from sim.learners.federated import FederatedLearner, sorted_out

if TYPE_CHECKING:
    from torch import Tensor

    from learning.split import Moments, Pass
    from sim.simulation import Simulation


class Held(NamedTuple):
    """What one side trains with: a state, and the moments of its optimiser (None before its first step)."""

    state: Mapping[str, Tensor]
    moments: Moments | None = None


class Sent(NamedTuple):
    """A forward pass that waits for its gradient, the mask [B, T] of its tokens, and what crosses the wire."""

    ran: Pass
    mask_BT: Tensor
    data: bytes


class SplitLearner(FederatedLearner):
    """SplitFed: parts 0 (device: embeddings and the first `layers` layers) and 1 (server: the rest and the head)."""

    own = (0,)

    def __init__(self, sim: Simulation, step: Mapping[str, float], layers: int, *args: Any) -> None:
        from learning.split import AdamW

        super().__init__(sim, *args)
        self._optimiser = AdamW(**step)
        self.parts = {name: self._cut(model, layers) for name, model in self.models.items()}
        on_device = {name for parts in self.parts.values() for own in self.own for name in parts[own].names}
        self._server_names = [name for name in self.state if name not in on_device]

    def _cut(self, model: Any, layers: int) -> Sequence[Any]:
        from learning.split import splitfed

        return splitfed(model, layers)

    @property
    def held(self) -> Held:
        """The server's present model, with which a round begins."""
        return Held(self.state)

    # --- a batch

    def embed(self, backbone: str, samples: np.ndarray, held: Held, with_labels: bool = False) -> Sent:
        """The device's first part; what goes up are the texts' lengths, their labels if they are to go, and vectors."""
        from learning import split
        from learning.local_training import inputs

        _single_thread()
        ids_BT, mask_BT, segments_BT = inputs(self.tokens(backbone, samples), range(len(samples)))
        ran = split.forward(self.parts[backbone][0], held.state, ids_BT, mask_BT, segments_BT)
        labels = self.sim.task.labels[samples].astype("<i4") if with_labels else np.empty(0, "<i4")
        header = mask_BT.sum(1).numpy().astype("<i4").tobytes() + labels.tobytes()
        return Sent(ran, mask_BT, header + _vectors(ran.output, mask_BT))

    def learn(self, backbone: str, count: int, held: Held, data: bytes) -> tuple[bytes, Held]:
        """SplitFed's server: the rest of the model on `count` texts, its step, and the gradient to send down."""
        import torch

        from learning import split

        _single_thread()
        lengths, labels = np.frombuffer(data, "<i4", 2 * count).reshape(2, count)
        mask_BT = _mask(lengths)
        received = _received(data[8 * count :], mask_BT)
        targets = torch.as_tensor(labels.astype(np.int64))
        _, gradients, back = split.learn(self.parts[backbone][1], held.state, received, mask_BT, targets)
        return _vectors(back, mask_BT), self._stepped(held, gradients)

    def finish(self, slot: list[Held], sent: Sent, data: bytes, others: Mapping[str, Tensor] | None = None) -> Held:
        """The device's first part backward, from the gradient that came down, and one step with `others`' gradients.

        What the device held is taken out of its slot: in a fleet in step, old and new of all devices would be in memory.
        """
        _single_thread()
        gradients, _ = sent.ran.backward(_received(data, sent.mask_BT))
        return self._stepped(slot.pop(), {**gradients, **(others or {})})

    def _stepped(self, held: Held, gradients: Mapping[str, Tensor]) -> Held:
        return Held(*self._optimiser.step(held.state, gradients, held.moments))

    # --- a round

    def packed(self, held: Held) -> bytes:
        """The device's trained parts as bytes."""
        return super().packed({n: t for n, t in held.state.items() if n not in self._server_names})

    def unpacked(self, backbone: str, data: bytes) -> dict[str, Tensor]:
        """The device's trained parts from their bytes."""
        from learning.state_codec import unpack

        return unpack(data, {n: t for n, t in self.state.items() if n not in self._server_names})

    def aggregate(
        self,
        backbones: Sequence[str],
        answers: Sequence[bytes],
        weights: Sequence[float],
        copies: Sequence[Held],
        shared: Held | None = None,
    ) -> list[int]:
        """The mean of what devices sent, and of the server's copies for them, or what all devices `shared` there.

        A device whose own part or whose copy is not finite is left out; returns the places of those.
        """
        states = [self.unpacked(backbone, data) for backbone, data in zip(backbones, answers, strict=True)]
        parts = []
        if copies:
            trained = [self.models[backbone].trainable_parameters() for backbone in backbones]
            server_names = [[n for n in self._server_names if n in own] for own in trained]
            parts = [{n: held.state[n] for n in own} for held, own in zip(copies, server_names, strict=True)]
        kept, left_out = sorted_out([{**state, **part} for state, part in zip_longest(states, parts, fillvalue={})])
        server = {} if shared is None else restrict(shared.state, self._server_names)
        if kept:
            weights = [weights[k] for k in kept]
            server |= weighted_mean([parts[k] for k in kept], weights) if copies else {}
            self.become({**self.state, **weighted_mean([states[k] for k in kept], weights), **server})
        elif not is_finite(server):
            self.diverged = "weights"
        return left_out


class FedBertLearner(SplitLearner):
    """FedBert: parts 0 and 2 (device: embeddings, and readout with head) and 1 (server: the body); labels stay."""

    own = (0, 2)

    def _cut(self, model: Any, layers: int) -> Sequence[Any]:
        from learning.split import fedbert

        return fedbert(model)

    def body(self, backbone: str, count: int, held: Held, data: bytes) -> Sent:
        """The server's layers on what came up; what goes down are vectors alone."""
        from learning import split

        _single_thread()
        mask_BT = _mask(np.frombuffer(data, "<i4", count))
        ran = split.forward(self.parts[backbone][1], held.state, _received(data[4 * count :], mask_BT), mask_BT)
        return Sent(ran, mask_BT, _vectors(ran.output, mask_BT))

    def loss(self, backbone: str, samples: np.ndarray, held: Held, mask_BT: Tensor, data: bytes) -> tuple[bytes, dict]:
        """The device's head on the body's output: the gradient to send up, and the head's own gradients."""
        import torch

        from learning import split

        _single_thread()
        labels, received = torch.as_tensor(self.sim.task.labels[samples]).long(), _received(data, mask_BT)
        _, gradients, back = split.learn(self.parts[backbone][2], held.state, received, mask_BT, labels)
        return _vectors(back, mask_BT), gradients

    def body_back(self, sent: Sent, held: Held, data: bytes) -> tuple[bytes, Held]:
        """The server's layers backward and their step; the gradient of the embeddings goes down."""
        _single_thread()
        gradients, back = sent.ran.backward(_received(data, sent.mask_BT))
        return _vectors(back, sent.mask_BT), self._stepped(held, gradients)


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)  # the same bits in every worker


def _mask(lengths: np.ndarray) -> Tensor:
    """The mask of real tokens [B, T] of right-padded texts."""
    import torch

    return (torch.arange(int(lengths.max())) < torch.as_tensor(lengths.copy())[:, None]).long()


def _vectors(h_BTD: Tensor, mask_BT: Tensor) -> bytes:
    from learning.split import pack

    return pack(h_BTD, mask_BT).numpy().astype("<f4", copy=False).tobytes()


def _received(data: bytes, mask_BT: Tensor) -> Tensor:
    import torch

    from learning.split import unpack

    rows = np.frombuffer(data, "<f4").reshape(int(mask_BT.sum()), -1).astype(np.float32)
    return unpack(torch.from_numpy(rows), mask_BT)
