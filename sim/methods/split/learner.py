"""The learning behind split learning's clock: real parts of real backbones, which meet only in
bytes.

`Held` is what one side holds: a state (of which it touches the tensors of its own parts alone) and
its optimiser's moments. Bytes are float32 vectors of the real tokens, after each text's length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from learning.federated.aggregation import is_finite, restrict, weighted_mean
from sim.kernel.learned import Learned, Taken
from sim.methods.federated_peft.learner import FederatedLearner, sorted_out

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.split import Moments, Pass
    from sim.kernel.world import World


class Held(NamedTuple):
    """What one side trains with: a state, and the moments of its optimiser (None before its first
    step); both `Learned`.
    """

    state: Any
    moments: Any = None


class Sent(NamedTuple):
    """A forward pass (`Ran`) that waits for its gradient, and what crosses the wire; both
    `Learned`.
    """

    ran: Learned
    data: Learned


class Ran(NamedTuple):
    """A forward pass and the mask [B, T] of its tokens."""

    passed: Pass
    mask_BT: Tensor


class SplitLearner(FederatedLearner):
    """SplitFed: parts 0 (device: embeddings and the first `layers` layers) and 1 (server: the rest
    and the head).
    """

    own = (0,)

    def __init__(self, world: World, step: Mapping[str, float], layers: int, *args: Any) -> None:
        from learning.federated.split import AdamW

        super().__init__(world, *args)
        self._optimiser = AdamW(**step)
        self.parts = {name: self._cut(model, layers) for name, model in self.models.items()}
        on_device = {
            name for parts in self.parts.values() for own in self.own for name in parts[own].names
        }
        self._server_names = [name for name in self.initial if name not in on_device]

    def _cut(self, model: Any, layers: int) -> Sequence[Any]:
        from learning.federated.split import splitfed

        return splitfed(model, layers)

    @property
    def held(self) -> Held:
        """The server's present model, with which a round begins."""
        return Held(self.state)

    # --- a batch

    def embed(
        self, backbone: str, samples: np.ndarray, held: Held, with_labels: bool = False
    ) -> Sent:
        """The device's first part; what goes up are the texts' lengths, their labels if they are to
        go, and vectors.
        """
        return Sent(
            *self.world.host.learn(
                self._embedded, backbone, samples, held, with_labels, stored=(False, True)
            )
        )

    def _embedded(
        self, backbone: str, samples: np.ndarray, held: Held, with_labels: bool
    ) -> tuple[Ran, bytes]:
        from learning.federated import split
        from learning.federated.local_training import inputs

        _single_thread()
        ids_BT, mask_BT, segments_BT = inputs(self.tokens(backbone, samples), range(len(samples)))
        ran = split.forward(self.parts[backbone][0], held.state, ids_BT, mask_BT, segments_BT)
        labels = (
            self.world.task.labels[samples].astype("<i4") if with_labels else np.empty(0, "<i4")
        )
        header = mask_BT.sum(1).numpy().astype("<i4").tobytes() + labels.tobytes()
        return Ran(ran, mask_BT), header + _vectors(ran.output, mask_BT)

    def learn(self, backbone: str, count: int, held: Held, data: Learned) -> tuple[Learned, Held]:
        """SplitFed's server: the rest of the model on `count` texts, its step, and the gradient to
        send down.
        """
        return self._with_step(self._learned, backbone, count, held, data)

    def _with_step(self, *what: Any) -> tuple[Learned, Held]:
        """What gives a gradient to send, and what is held after a step."""
        gradient, *held = self.world.host.learn(*what, stored=(True, True, True))
        return gradient, Held(*held)

    def _learned(self, backbone: str, count: int, held: Held, data: bytes) -> tuple:
        import torch

        from learning.federated import split

        _single_thread()
        lengths, labels = np.frombuffer(data, "<i4", 2 * count).reshape(2, count)
        mask_BT = _mask(lengths)
        received = _received(data[8 * count :], mask_BT)
        targets = torch.as_tensor(labels.astype(np.int64))
        _, gradients, back = split.learn(
            self.parts[backbone][1], held.state, received, mask_BT, targets
        )
        return _vectors(back, mask_BT), *self._stepped(held, gradients)

    def finish(
        self, slot: list[Held], sent: Sent, data: Learned, others: Learned | None = None
    ) -> Held:
        """The device's first part backward, from the gradient that came down, and one step with
        `others`' gradients.

        What the device held is taken out of its slot: in a fleet in step, old and new of all
        devices would be in memory.
        """
        now = (slot.pop(), Taken(sent.ran))
        return Held(*self.world.host.learn(self._finished, *now, data, others, stored=(True, True)))

    def _finished(
        self, held: Held, ran: Ran, data: bytes, others: Mapping[str, Tensor] | None
    ) -> tuple:
        _single_thread()
        gradients, _ = ran.passed.backward(_received(data, ran.mask_BT))
        return self._stepped(held, {**gradients, **(others or {})})

    def _stepped(
        self, held: Held, gradients: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Moments]:
        return self._optimiser.step(held.state, gradients, held.moments)

    # --- a round

    def answer(self, held: Held) -> Learned:
        """The device's trained parts as bytes."""
        return self.world.host.learn(self._own_parts, held.state)

    def _own_parts(self, state: Mapping[str, Tensor]) -> bytes:
        return self.packed({n: t for n, t in state.items() if n not in self._server_names})

    def unpacked(self, backbone: str, data: bytes) -> dict[str, Tensor]:
        """The device's trained parts from their bytes."""
        from learning.federated.state_codec import unpack

        return unpack(data, {n: t for n, t in self.initial.items() if n not in self._server_names})

    def aggregate(
        self,
        backbones: Sequence[str],
        answers: Sequence[Learned],
        weights: Sequence[float],
        copies: Sequence[Held],
        shared: Held | None = None,
    ) -> Callable[[], list[int]]:
        """The mean of what devices sent, and of the server's copies for them, or what all devices
        `shared` there.

        A device whose own part or whose copy is not finite is left out; gives the places of those.
        """
        now = (
            self.state,
            [copy.state for copy in copies],
            None if shared is None else shared.state,
        )
        how = (backbones, answers, weights)
        self.state, verdict = self.world.host.learn(self._averaged, *now, *how, stored=(True, True))
        return self.judged(verdict)

    def _averaged(self, state, copies, shared, backbones, answers, weights) -> tuple:
        states = [
            self.unpacked(backbone, data) for backbone, data in zip(backbones, answers, strict=True)
        ]
        parts = []
        if copies:
            trained = [self.models[backbone].trainable_parameters() for backbone in backbones]
            server_names = [[n for n in self._server_names if n in own] for own in trained]
            parts = [
                {n: copy[n] for n in own} for copy, own in zip(copies, server_names, strict=True)
            ]
        kept, left_out = sorted_out(
            [{**one, **part} for one, part in zip_longest(states, parts, fillvalue={})]
        )
        server = {} if shared is None else restrict(shared, self._server_names)
        if kept:
            weights = [weights[k] for k in kept]
            server |= weighted_mean([parts[k] for k in kept], weights) if copies else {}
            state = {**state, **weighted_mean([states[k] for k in kept], weights), **server}
        return state, [left_out, is_finite(state) and is_finite(server)]


class FedBertLearner(SplitLearner):
    """FedBert: parts 0 and 2 (device: embeddings, and readout with head) and 1 (server: the body);
    labels stay.
    """

    own = (0, 2)

    def _cut(self, model: Any, layers: int) -> Sequence[Any]:
        from learning.federated.split import fedbert

        return fedbert(model)

    def body(self, backbone: str, count: int, held: Held, data: Learned) -> Sent:
        """The server's layers on what came up; what goes down are vectors alone."""
        return Sent(
            *self.world.host.learn(
                self._through_body, backbone, count, held, data, stored=(False, True)
            )
        )

    def _through_body(
        self, backbone: str, count: int, held: Held, data: bytes
    ) -> tuple[Ran, bytes]:
        from learning.federated import split

        _single_thread()
        mask_BT = _mask(np.frombuffer(data, "<i4", count))
        ran = split.forward(
            self.parts[backbone][1], held.state, _received(data[4 * count :], mask_BT), mask_BT
        )
        return Ran(ran, mask_BT), _vectors(ran.output, mask_BT)

    def loss(
        self, backbone: str, samples: np.ndarray, held: Held, sent: Sent, data: Learned
    ) -> tuple:
        """The device's head on the body's output: the gradient to send up, and the head's own
        gradients.
        """
        return self.world.host.learn(
            self._lost, backbone, samples, held, sent.ran, data, stored=(True, True)
        )

    def _lost(
        self, backbone: str, samples: np.ndarray, held: Held, ran: Ran, data: bytes
    ) -> tuple[bytes, dict]:
        import torch

        from learning.federated import split

        _single_thread()
        mask_BT = ran.mask_BT
        labels, received = (
            torch.as_tensor(self.world.task.labels[samples]).long(),
            _received(data, mask_BT),
        )
        _, gradients, back = split.learn(
            self.parts[backbone][2], held.state, received, mask_BT, labels
        )
        return _vectors(back, mask_BT), gradients

    def body_back(self, sent: Sent, held: Held, data: Learned) -> tuple[Learned, Held]:
        """The server's layers backward and their step; the gradient of the embeddings goes down."""
        return self._with_step(self._back_through_body, Taken(sent.ran), held, data)

    def _back_through_body(self, ran: Ran, held: Held, data: bytes) -> tuple:
        _single_thread()
        gradients, back = ran.passed.backward(_received(data, ran.mask_BT))
        return _vectors(back, ran.mask_BT), *self._stepped(held, gradients)


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)  # the same bits in every worker


def _mask(lengths: np.ndarray) -> Tensor:
    """The mask of real tokens [B, T] of right-padded texts."""
    import torch

    return (torch.arange(int(lengths.max())) < torch.as_tensor(lengths.copy())[:, None]).long()


def _vectors(h_BTD: Tensor, mask_BT: Tensor) -> bytes:
    from learning.federated.split import pack

    return pack(h_BTD, mask_BT).numpy().astype("<f4", copy=False).tobytes()


def _received(data: bytes, mask_BT: Tensor) -> Tensor:
    import torch

    from learning.federated.split import unpack

    rows = np.frombuffer(data, "<f4").reshape(int(mask_BT.sum()), -1).astype(np.float32)
    return unpack(torch.from_numpy(rows), mask_BT)
