"""The learning behind split learning's clock: real parts of real backbones, which meet only in
bytes.

`Held` is what one side holds: a state (of which it touches the tensors of its own parts alone) and
its optimiser's moments. Bytes are vectors of the real tokens, after each text's length and what it
is learned by, where that goes up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from learning.backbones.catalogue import config_of, width_of
from learning.codecs.chain import Chain, chain_of
from learning.federated.aggregation import is_finite, restrict, weighted_mean
from learning.federated.seeds import derived_seed
from sim.kernel.learned import Learned, Taken
from sim.methods.federated_peft.learner import FederatedLearner, sorted_out
from sim.methods.split.targets import Targets, packed_said, unpacked_labels, unpacked_said

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State
    from learning.federated.split import Dropout, Pass
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

    @property
    def width(self) -> int:
        """Of what it put out."""
        return self.passed.output.shape[-1]


def round_mean(
    state: State, answers: Sequence[State], copies: Sequence[State], weights: Sequence[float]
) -> State:
    """A round's server update: the mean of what devices sent and, where the server has a copy of
    its own part for each of them, of these; what nobody has stays.
    """
    copied = weighted_mean(copies, weights) if copies else {}
    return {**state, **weighted_mean(answers, weights), **copied}


class SplitLearner(FederatedLearner):
    """Parts of a model, numbered from the tokens to the loss, of which `own` are on the device; a
    method cuts them, and adds what the server does with a batch.
    """

    own: tuple[int, ...] = (0,)
    by = chain_of("float32")  # how vectors and their gradients are sent
    side_by_side = False  # a batch's pieces are parts of one graph on one model

    def __init__(
        self,
        world: World,
        optimiser: str,
        learning_rate: float,
        weight_decay: float,
        momentum: float,
        dropout: float,
        layers: int,
        *args: Any,
    ) -> None:
        from learning.federated.split import new_optimiser

        super().__init__(world, *args)
        self.optimiser = new_optimiser(optimiser, learning_rate, weight_decay, momentum)
        self._dropout = dropout
        self.parts = {name: self._cut(model, layers) for name, model in self.models.items()}
        on_device = {
            name for parts in self.parts.values() for own in self.own for name in parts[own].names
        }
        self._server_names = [name for name in self.initial if name not in on_device]

    def _cut(self, model: Any, layers: int) -> Sequence[Any]:
        raise NotImplementedError

    def width_of(self, backbone: str) -> int:
        """Of what crosses the wire."""
        return width_of(config_of(self.world.costing.learned[backbone]))

    @property
    def label_format(self) -> str:
        """Of a label on the wire: the number of a class or, as long, a rating."""
        return "<f4" if self.world.task.has_ratings else "<i4"

    @property
    def held(self) -> Held:
        """The server's present model, with which a round begins."""
        return Held(self.state)

    # --- a batch

    def dropout(self, seed: int, part: int) -> Dropout:
        """What a part drops out of the batch that has the seed."""
        return self._dropout, derived_seed(seed, part)

    def embed(
        self, backbone: str, samples: np.ndarray, held: Held, seed: int, with_targets: bool = False
    ) -> Sent:
        """The device's first part; what goes up are the texts' lengths, what they are learned by if
        that is to go, and vectors.
        """
        how = (backbone, samples, held, self.dropout(seed, 0), with_targets)
        return Sent(*self.world.host.learn(self._embedded, *how, stored=(False, True)))

    def _embedded(
        self, backbone: str, samples: np.ndarray, held: Held, dropout: Dropout, with_targets: bool
    ) -> tuple[Ran, bytes]:
        from learning.federated import split
        from learning.federated.local_training import inputs

        single_thread()
        tokens = self.tokens(backbone, samples)
        ids_BT, mask_BT, segments_BT = inputs(tokens, range(len(samples)))
        first = self.parts[backbone][0]
        ran = split.forward(first, held.state, ids_BT, mask_BT, segments_BT, dropout)
        header = mask_BT.sum(1).numpy().astype("<i4").tobytes()
        if with_targets and self.world.task.has_responses:
            header += packed_said(tokens)
        elif with_targets:
            header += self.world.task.labels[samples].astype(self.label_format).tobytes()
        return Ran(ran, mask_BT), header + packed_vectors(ran.output, mask_BT, self.by)

    def targets_from(self, data: bytes, mask_BT: Tensor) -> Targets:
        """What a batch is learned by, as it came up."""
        if self.world.task.has_responses:
            return unpacked_said(data, mask_BT)
        return unpacked_labels(data, self.label_format, len(mask_BT))

    def step_of(self, *what: Any) -> tuple[Learned, Held]:
        """Begin a piece that gives a gradient to send, and what is held after a step."""
        gradient, *held = self.world.host.learn(*what, stored=(True, True, True))
        return gradient, Held(*held)

    def finish(
        self,
        update: Callable[..., Any],
        slot: list[Held],
        sent: Sent,
        data: Learned,
        *head: Learned,
    ) -> Held:
        """Begin a client update on the gradient that came down, where `head`'s own gradients are
        known: `update(optimiser, held, passed, gradient, *head)`.

        What the device held is taken out of its slot: in a fleet in step, old and new of all
        devices would be in memory.
        """
        now = (slot.pop(), Taken(sent.ran), data, *head)
        return Held(*self.world.host.learn(self._finished, update, *now, stored=(True, True)))

    def _finished(
        self, update: Callable[..., Any], held: Held, ran: Ran, data: bytes, *head: Any
    ) -> tuple:
        single_thread()
        gradient_BTD = unpacked_vectors(data, ran.mask_BT, self.by, ran.width)
        return update(self.optimiser, held, ran.passed, gradient_BTD, *head)

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
        parts: list[State] = [{} for _ in states]
        if copies:
            trained = [self.models[backbone].trainable_parameters() for backbone in backbones]
            server_names = [[n for n in self._server_names if n in own] for own in trained]
            parts = [
                {n: copy[n] for n in own} for copy, own in zip(copies, server_names, strict=True)
            ]
        kept, left_out = sorted_out(
            [{**one, **part} for one, part in zip(states, parts, strict=True)]
        )
        server = {} if shared is None else restrict(shared, self._server_names)
        if kept:
            copied = [parts[k] for k in kept] if copies else []
            means = ([states[k] for k in kept], copied, [weights[k] for k in kept])
            state = {**round_mean(state, *means), **server}
        return state, [left_out, is_finite(state) and is_finite(server)]


def single_thread() -> None:
    """One thread of torch: the same bits in every worker."""
    import torch

    torch.set_num_threads(1)


def mask_of(lengths: np.ndarray) -> Tensor:
    """The mask of real tokens [B, T] of right-padded texts."""
    import torch

    return (torch.arange(int(lengths.max())) < torch.as_tensor(lengths.copy())[:, None]).long()


def packed_vectors(h_BTD: Tensor, mask_BT: Tensor, by: Chain) -> bytes:
    """The vectors of real tokens as bytes."""
    from learning.codecs.numbers import to_bytes
    from learning.federated.split import pack_rows

    return to_bytes(pack_rows(h_BTD, mask_BT).numpy(), by)


def unpacked_vectors(data: bytes, mask_BT: Tensor, by: Chain, width: int) -> Tensor:
    """Vectors [B, T, D] from such bytes."""
    import torch

    from learning.codecs.numbers import from_bytes
    from learning.federated.split import unpack_rows

    rows = from_bytes(data, by, (int(mask_BT.sum()), width))
    return unpack_rows(torch.from_numpy(rows), mask_BT)
