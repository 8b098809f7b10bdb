"""Spry (NeurIPS 2024): every device trains a few tensors by forward-mode derivatives, and sends
these alone.

The server deals the trainable tensors over the devices of a round; with a direction v over its
tensors a device computes the loss and its derivative s in one pass, and s v is the gradient of its
AdamW step. The server takes the mean of each tensor over those who trained it, and a FedYogi step
towards it (docs/forward_only_and_split.md).
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from learning.cost.costs import Cost
from learning.cost.count_forward_only import jvp_pass
from learning.cost.count_split import PassCounts
from learning.federated.aggregation import ServerOptimiser, restrict
from learning.federated.forward_gradient import assign_tensors, spry_server_step, spry_steps
from learning.federated.seeds import derived_seed
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import only
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.forward_only.learner import ForwardClient, ForwardLearner
from sim.methods.forward_only.shared import ForwardOnly, ForwardOnlySettings
from sim.methods.protocols import mean_and_step

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State


def client_update(
    client: ForwardClient,
    state: State,
    assigned: Sequence[str],
    seed: int,
    learning_rate: float,
    weight_decay: float,
    perturbations: int,
    dropout: float,
) -> dict[str, Tensor]:
    """The assigned tensors after one AdamW step a batch along s v; the others stay fixed."""
    from learning.federated.dropout import dropping_out

    how = (assigned, seed, learning_rate, weight_decay, perturbations)
    with dropping_out(client.model, dropout, derived_seed(seed, "dropout")):
        return spry_steps(client.losses, client.part_of(state), *how).state


def server_update(
    state: State,
    moments: Any,
    answers: Sequence[State],
    kept: Sequence[int],
    weights: Sequence[float],
    optimiser: YogiOptimiser,
) -> tuple[State, Any]:
    """The mean of each tensor over those who trained it, and the optimiser's step towards it."""
    theirs = [weights[k] for k in kept]
    return spry_server_step(optimiser, state, answers, theirs, moments, optimiser.v_start)


@dataclass(frozen=True)
class YogiOptimiser(ServerOptimiser):
    """A server optimiser whose defaults are Spry's, Flower's FedYogi, for whoever sets one field of
    it alone; v starts from `v_start`.
    """

    kind: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedyogi"
    learning_rate: float = 0.01
    v_start: float = 0.0

    only_for = {"v_start": ("fedadam and fedyogi", lambda s: s.kind in ("fedadam", "fedyogi"))}


class Spry(ForwardOnly):
    """Dealt tensors, forward-mode derivatives, FedYogi."""

    learner: SpryLearner

    class Config(ForwardOnlySettings):
        """Settings of Spry."""

        kind: Literal["spry"]
        rounds: int = Field(1500, ge=1)
        local_epochs: int = Field(1, ge=1)
        learning_rate: float = Field(1e-4, gt=0)
        weight_decay: float = Field(0.01, ge=0)
        dropout: float = Field(0.1, ge=0, lt=1)
        """In training, wherever the backbone has any, of the head's inputs and of LoRA's; 0: none.
        """
        perturbations: int = Field(1, ge=1)
        """Directions of one step; their gradients are averaged."""
        rank: int = Field(1, ge=1)
        alpha: float = Field(1, gt=0)
        tensors_each: int = Field(2, ge=1)
        """Tensors dealt at a time: A and B of one LoRA."""
        share_head: bool = True
        """Every device trains the head besides; else it is dealt like all tensors."""
        weigh_by_samples: bool = True
        """Weigh devices by their number of texts, as Flower does, instead of equally."""
        server_optimiser: YogiOptimiser = YogiOptimiser()

    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.jvp = functools.cache(self._jvp)

    def new_learner(self) -> SpryLearner:
        """Dealt tensors on devices (`client_update`), `server_update` at the server."""
        return learner_for(self.world, SpryLearner, *self.config.classifier)

    def _jvp(self, backbone: str, names: tuple[str, ...]) -> PassCounts:
        return jvp_pass(self.world.costing.charged[backbone], self.config.peft, names, *self.size)

    def hand(self, names: Sequence[str], place: int, clients: int) -> tuple[str, ...]:
        """The tensors of the device at this place among so many."""
        shared = [name for name in names if self.config.share_head and name.startswith("head.")]
        return assign_tensors(names, clients, self.config.tensors_each, shared)[place]

    def charged(self, device: Device, task: ClientTask) -> tuple[str, ...]:
        """The device's tensors of the architecture that is charged."""
        return self.hand(list(self.costs[device.backbone].tensors), *task.model[1][device.id])

    def learned(self, device: Device, place: tuple[int, int]) -> tuple[str, ...]:
        """The device's tensors of the backbone that learns; none in a dry run."""
        return () if self.world.dry else self.hand(self.learner.names(device.backbone), *place)

    def peak_bytes(self, device: Device) -> int:
        """Of a round's training on what the first of a cohort is dealt, with the backbone's
        weights.
        """
        task = ClientTask(0, (None, {device.id: (0, self.wanted)}), None)
        return device.held_bytes(self.training(device, task).cost.peak_bytes)

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Download all tensors, train the dealt ones, upload these."""
        yield from device.download(only("parameters", self.costs[device.backbone].nbytes()))
        data = yield from device.compute(self.training(device, task))
        payload = device.payload(
            device.samples,
            only("parameters", self.costs[device.backbone].nbytes(self.charged(device, task))),
            data,
            task.version,
        )
        yield from device.send(payload)

    def training(self, device: Device, task: ClientTask) -> Work:
        """A pass with derivatives for each direction, AdamW's traffic; all tensors, and of the
        dealt ones five more: the trained copy, v, the gradient and two moments.
        """
        (state, places), c = task.model, self.config
        names, counted = self.charged(device, task), self.costs[device.backbone]
        batches = self.batches(device, task, self.steps(device, c.local_epochs))
        dealt = counted.nbytes(names)
        kept = counted.nbytes() + 5 * dealt
        cost = self.passes(device, batches, self.jvp(device.backbone, names), c.perturbations, kept)
        cost += Cost(0.0, 7 * dealt * len(batches))
        own = self.learned(device, places[device.id])
        seed = self.seed(device, task.version)
        how = (state, own, seed, c.learning_rate, c.weight_decay, c.perturbations, c.dropout)
        return self.learner.work(
            cost, self.learner.client, client_update, device.backbone, batches, *how
        )

    def server_round(
        self, server: Server, asked: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: assign the tensors in a random order, collect, average each tensor."""
        order = self.world.streams.rng("server/deal", number).permutation(len(asked))
        places = {
            device.id: (int(place), len(asked)) for device, place in zip(asked, order, strict=True)
        }
        answers = yield from server.ask(asked, number, (self.learner.state, places))
        return (yield from server.aggregate(answers, self.aggregation(places, answers)))

    def aggregation(self, places: dict[str, tuple[int, int]], answers: list[Payload]) -> Work:
        """The mean of each tensor and the server's step: a few passes over the numbers."""
        cost = mean_and_step(sum(payload.nbytes for payload in answers))
        names = [self.learned(p.sender, places[p.sender.id]) for p in answers]
        weights = [len(p.samples) if self.config.weigh_by_samples else 1.0 for p in answers]
        parts = (names, [p.data for p in answers], weights, self.config.server_optimiser)
        return self.learner.work(cost, self.learner.serve, server_update, *parts)


class SpryLearner(ForwardLearner):
    """Knows what is dealt, and what each device was: `received` takes its names for a backbone."""

    lora_dropout = 0.1

    def names(self, backbone: str) -> list[str]:
        """The trained tensors of a backbone in the order in which they are dealt."""
        return list(self.models[backbone].trainable_parameters())

    def received(self, state: State, names: Sequence[str], data: bytes) -> list[dict[str, Tensor]]:
        """The tensors of these names."""
        from learning.federated.state_codec import unpack

        return [unpack(data, restrict(state, names))]
