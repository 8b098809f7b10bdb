"""What a device of the federated methods does with its texts: client updates, pure functions of
what the device has and of the state that came; each alone, or those of one time as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from learning.backbones.tokens import Tokens
from learning.codecs import states
from learning.codecs.chain import Chain
from learning.federated.local_training import LocalResult, LocalTraining
from sim.kernel.host import single_threaded_torch
from sim.kernel.ray_cluster import Shared

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State
    from learning.federated.stackable import Room
    from learning.federated.trainable import TrainableClassifier


class ClientTraining(NamedTuple):
    """Local epochs of a client from a state: the arguments of
    `learning.federated.local_training.train`.
    """

    client: Client
    state: Mapping[str, Tensor]
    settings: LocalTraining
    seed: int
    correction: Mapping[str, Tensor] | None

    def alone(self) -> LocalResult:
        """What comes of them, computed by themselves."""
        from learning.federated.local_training import train

        own = self.client
        return train(
            *(own.model, self.state, own.tokens, own.labels),
            *(self.settings, self.seed, self.correction),
        )


@dataclass(frozen=True)
class Client:
    """What a client update computes with: a model, a device's texts, and its part of a state; and
    who trains.
    """

    model: TrainableClassifier
    tokens: Tokens
    labels: np.ndarray
    part_of: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    trainer: Callable[[ClientTraining], LocalResult] = ClientTraining.alone

    def train(
        self,
        state: Mapping[str, Tensor],
        settings: LocalTraining,
        seed: int,
        correction: Mapping[str, Tensor] | None = None,
    ) -> LocalResult:
        """Local epochs from a state (`learning.federated.local_training.train`).

        What comes of them is what this gives: with which numbers it leaves `model` is not said.
        """
        return self.trainer(ClientTraining(self, state, settings, seed, correction))


def made_elsewhere(
    update: Callable[..., Any],
    model: Shared,
    tokens: Tokens,
    labels: np.ndarray,
    how: Sequence[Any],
) -> Any:
    """What a client update gives, in a process of a cluster; `how` has what the update is called
    with, its states shared together with the device's part of each.
    """
    single_threaded_torch()
    both = {
        place: cast("tuple[State, dict[str, Tensor]]", one.value())
        for place, one in enumerate(how)
        if isinstance(one, Shared)
    }

    def part_of(state: State) -> dict[str, Tensor]:
        return next(part for whole, part in both.values() if whole is state)

    given = [both[place][0] if place in both else one for place, one in enumerate(how)]
    own = cast("TrainableClassifier", model.value())
    return update(Client(own, tokens, labels, part_of), *given)


def locally_trained(
    client: Client, state: Mapping[str, Tensor], settings: LocalTraining, seed: int
) -> dict[str, Tensor]:
    """A client update: local epochs on the device's part of the state that it received."""
    return client.train(client.part_of(state), settings, seed).state


def changed(
    client: Client,
    state: Mapping[str, Tensor],
    settings: LocalTraining,
    seed: int,
    down: Chain | None = None,
) -> dict[str, Tensor]:
    """A client update: what local epochs change of the device's part of the state that came, by a
    codec `down` where there is one.
    """
    from learning.federated.aggregation import model_delta

    own = client.part_of(state)
    if down is not None:
        own = states.from_bytes(states.to_bytes(own, down), own, down)
    return model_delta(client.train(own, settings, seed).state, own)


def changed_and_lost(
    client: Client,
    state: Mapping[str, Tensor],
    settings: LocalTraining,
    seed: int,
    down: Chain | None,
    lost: Mapping[str, Tensor] | None,
    chain: Chain,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A client update with error feedback (Karimireddy et al., ICML 2019): the change with what the
    last one lost on the wire, and what this one loses, which stays on the device. One that is not
    finite goes into no update, and nothing of it is kept.
    """
    from learning.federated.aggregation import is_finite

    change = changed(client, state, settings, seed, down)
    before = dict(lost) if lost else {n: t.new_zeros(t.shape) for n, t in change.items()}
    if lost is not None:
        change = {name: tensor + lost[name] for name, tensor in change.items()}
    arrives = states.from_bytes(states.to_bytes(change, chain), change, chain)
    loses = {name: tensor - arrives[name] for name, tensor in change.items()}
    return change, loses if is_finite(loses) else before


# --- several as one

Update = tuple[Callable[..., Any], Client, Sequence[Any]]
"""A client update, the client, and what else it is called with."""


def updated_together(updates: Sequence[Update], room: Room) -> list[Any]:
    """What client updates of one model give; whatever they ask their clients to train alike is
    trained as one, as far as there is room.

    An update is pure, so it is called to see what it wants trained, and again with what came of
    that.
    """
    known: list[list[LocalResult]] = [[] for _ in updates]
    made: dict[int, Any] = {}
    while len(made) < len(updates):
        wanted: dict[int, ClientTraining] = {}
        for k, (update, client, how) in enumerate(updates):
            if k not in made:
                asking = dataclasses.replace(client, trainer=_telling(known[k]))
                try:
                    made[k] = update(asking, *how)
                except _Wanted as ask:
                    wanted[k] = ask.training
        for k, result in _trained(wanted, room).items():
            known[k].append(result)
    return [made[k] for k in range(len(updates))]


class _Wanted(BaseException):
    """What a client update wants trained; no Exception, so that none catches it."""

    def __init__(self, training: ClientTraining) -> None:
        super().__init__()
        self.training = training


def _telling(known: Sequence[LocalResult]) -> Callable[[ClientTraining], LocalResult]:
    """A trainer that tells these results, in their order, and then asks."""
    results = iter(known)

    def next_known(training: ClientTraining) -> LocalResult:
        for result in results:
            return result
        raise _Wanted(training)

    return next_known


def _trained(wanted: Mapping[int, ClientTraining], room: Room) -> dict[int, LocalResult]:
    from learning.federated.stackable import Holding, can_be_stacked
    from learning.federated.stacked import train_together

    alike: dict[tuple[int, LocalTraining], dict[int, Holding]] = {}
    for k, ask in wanted.items():
        if ask.correction is None and can_be_stacked(ask.client.model):
            holding = Holding(ask.state, ask.client.tokens, ask.client.labels, ask.seed)
            alike.setdefault((id(ask.client.model), ask.settings), {})[k] = holding
    found: dict[int, LocalResult] = {}
    for (_, settings), holdings in alike.items():
        for some in room.groups(holdings, settings):
            if len(some) > 1:
                model, stack = wanted[some[0]].client.model, [holdings[k] for k in some]
                found |= zip(some, train_together(model, stack, settings), strict=True)
    return found | {k: ask.alone() for k, ask in wanted.items() if k not in found}
