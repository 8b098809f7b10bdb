"""FedMeZO (FederatedScope; MeZO, arXiv 2305.17333): local zero-order steps, of which only seeds and
scalars travel.

A step is two forward passes along a random direction that follows from its seed, so 12 bytes stand
for it. A device downloads the model once; from then on it makes the server's model itself from the
seeds and scalars of the rounds it missed, or downloads the model again where that is less
(docs/forward_only_and_split.md).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learning.federated.aggregation import fed_avg
from learning.federated.forward_gradient import (
    PROBE_BYTES,
    SEED_BYTES,
    Probe,
    decode_probes,
    mezo_steps,
    replay,
)
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import Contents, Item, only
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.forward_only.learner import ForwardClient, RecallingLearner
from sim.methods.forward_only.shared import ForwardOnly, ForwardOnlySettings, moves

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State


def client_update(
    client: ForwardClient, state: State, seed: int, learning_rate: float, eps: float
) -> list[Probe]:
    """A step a batch along a direction of the seed's; the probes stand for the model after them."""
    own = client.part_of(state)
    return mezo_steps(client.losses, own, seed, learning_rate, eps)[1]


def server_update(
    state: State,
    memory: Any,
    answers: Sequence[State],
    kept: Sequence[int],
    weights: Sequence[float],
) -> tuple[State, Any]:
    """The mean of the devices' models, which the server has made of their probes."""
    return fed_avg(state, answers, [weights[k] for k in kept]), memory


class FedMezo(ForwardOnly):
    """SPSA steps on devices, averaged every round, with shared seeds."""

    learner: FedMezoLearner

    class Config(ForwardOnlySettings):
        """Settings of FedMeZO."""

        kind: Literal["fedmezo"]
        rounds: int = Field(500, ge=1)
        participation: float = Field(1.0, gt=0, le=1)
        """Share of the fleet that takes part in a round; the published three clients all do."""
        local_steps: int = Field(30, ge=1)
        device_batch: int = Field(1, ge=1)
        learning_rate: float = Field(1e-5, gt=0)
        """Published for Alpaca; 2.5e-5 for GSM8K."""
        weigh_by_samples: bool = True
        """Weigh devices by the texts that their steps of the round took, as FederatedScope does,
        instead of equally; equal while all batches are full.
        """
        eps: float = Field(1e-3, gt=0)
        """Step of the central difference."""
        rank: int = Field(128, ge=1)
        alpha: float = Field(256, gt=0)

    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.probes_of_round: list[int] = []
        self.known: dict[str, int] = {}  # the version of the server's model that a device has

    def new_learner(self) -> FedMezoLearner:
        """Probes from devices (`client_update`), `server_update` at the server."""
        peft = self.config.classifier
        return learner_for(self.world, FedMezoLearner, self.config.learning_rate, *peft)

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Catch up with the server's model, take local steps, upload seeds and scalars."""
        missed = self.missed(device, task)
        nbytes = self.costs[device.backbone].nbytes()
        catch_up = only("parameters", nbytes) if missed is None else probes(missed)
        yield from device.download(catch_up)
        self.known[device.id] = task.version
        data = yield from device.compute(self.stepping(device, task, missed or 0))
        held = probes(self.config.local_steps)
        used = np.unique(np.concatenate(self.batches(device, task, self.config.local_steps)))
        yield from device.send(device.payload(used, held, data, task.version))

    def missed(self, device: Device, task: ClientTask) -> int | None:
        """How many probes lead from the device's model to the server's; None where downloading the
        model is less.
        """
        if device.id not in self.known:
            return None
        missed = sum(self.probes_of_round[self.known[device.id] : task.version])
        return missed if PROBE_BYTES * missed < self.costs[device.backbone].nbytes() else None

    def peak_bytes(self, device: Device) -> int:
        """Of a round's steps, with the backbone's weights."""
        return device.held_bytes(
            self.stepping(device, ClientTask(0, None, None), 0).cost.peak_bytes
        )

    def delivery_bytes(self, device: Device) -> int:
        """The probes that it has missed, or the model where that is less."""
        missed = self.missed(device, ClientTask(len(self.probes_of_round), None, None))
        return super().delivery_bytes(device) if missed is None else PROBE_BYTES * missed

    def stepping(self, device: Device, task: ClientTask, missed: int) -> Work:
        """Two forward passes a step, and the arithmetic of moving; the server's theta, the own, v
        and theta + eps v.
        """
        counted, c = self.costs[device.backbone], self.config
        batches = self.batches(device, task, c.local_steps)
        cost = self.passes(device, batches, counted.ahead, 2, 4 * counted.nbytes())
        cost += moves(missed + 3 * c.local_steps, counted.nbytes())  # ahead, behind and the step
        how = (self.seed(device, task.version), c.learning_rate, c.eps)
        return self.learner.work(
            cost, self.learner.client, client_update, device.backbone, batches, task.model, *how
        )

    def server_round(
        self, server: Server, asked: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: ask, collect, make the devices' models of their probes and average them."""
        answers = yield from server.ask(asked, number, self.learner.state)
        counted = yield from server.aggregate(answers, self.aggregation(answers))
        self.probes_of_round.append(sum(p.nbytes // PROBE_BYTES for p in counted))
        return counted

    def aggregation(self, answers: list[Payload]) -> Work:
        """Make the devices' models of their probes, and average them."""
        nbytes = sum(self.costs[p.sender.backbone].nbytes() for p in answers)
        cost = moves(self.config.local_steps + 1, nbytes)
        weights = [self.weight(p) for p in answers]
        parts = (server_update, *self.of_each(answers), weights)
        return self.learner.work(cost, self.learner.serve, *parts)

    def weight(self, answer: Payload) -> float:
        """How much a device's model counts."""
        if not self.config.weigh_by_samples:
            return 1.0
        task = ClientTask(answer.version, None, None)
        return sum(map(len, self.batches(answer.sender, task, self.config.local_steps)))


class FedMezoLearner(RecallingLearner):
    """Makes the devices' models of their probes, at their learning rate."""

    def __init__(self, world: World, learning_rate: float, *model: Any) -> None:
        super().__init__(world, *model)
        self._learning_rate = learning_rate

    def received(self, state: State, backbone: str, data: bytes) -> list[dict[str, Tensor]]:
        """The model of the device that sent these probes."""
        return [replay(self.part_of(backbone, state), decode_probes(data), self._learning_rate)]


def probes(count: int) -> Contents:
    """So many seeds, each with the derivative along its direction."""
    return Contents(Item("seed", SEED_BYTES * count), Item("derivative", 4 * count))
