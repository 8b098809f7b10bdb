"""Federated PEFT in synchronous rounds (FedPETuning, Findings of ACL 2023): each round a sample of the devices downloads the
trainable part, trains it on its own data and sends it back; the server averages what came and waits for the slowest.

FedProx, FedAvgM, FedAdam and FedYogi are settings of it. Defaults are FedPETuning's (docs/federated_peft.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learning.aggregation import ServerOptimiser
from learning.cost import Cost
from learning.count_training import training_architecture
from learning.local_training import LocalTraining
from sim.actors import Device, Payload, Server, Task, Work
from sim.federated_learner import FedAvgLearner
from sim.learner import NullLearner
from sim.settings import Settings
from sim.units import Seconds

if TYPE_CHECKING:
    from sim.simulation import Simulation

LEARNING_RATES = {"lora": 5e-3, "adapter": 1e-3, "bitfit": 5e-3, "full": 5e-5}  # FedPETuning's for MRPC


class FedAvg:
    """Synchronous federated PEFT: LoRA, adapters, BitFit or full fine-tuning, averaged every round."""

    class Config(Settings):
        """Settings of federated PEFT."""

        kind: Literal["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"]
        rounds: int = Field(100, ge=1)
        participation: float = Field(0.1, gt=0, le=1)
        """Share of the fleet that answers in a round."""
        over_selection: float = Field(1.0, ge=1)
        """Ask so many times the devices that are needed; the last ones are told that they are late."""
        deadline: Seconds | None = None
        """End a round after this time, with whatever has come."""
        local_epochs: int = Field(1, ge=1)
        device_batch: int = Field(32, ge=1)
        learning_rate: float | None = Field(None, gt=0)
        """Default FedPETuning's: LoRA 5e-3, adapter 1e-3, BitFit 5e-3, full 5e-5."""
        weight_decay: float = Field(0.0, ge=0)
        proximal_mu: float = Field(0.0, ge=0)
        """FedProx's mu."""
        server_optimiser: ServerOptimiser = ServerOptimiser()
        weigh_by_samples: bool = False
        """Weigh devices by their number of samples (McMahan et al.) instead of equally (FedPETuning)."""
        rank: int = Field(8, ge=1)
        alpha: float = Field(8, gt=0)
        bottleneck: int = Field(16, ge=1)
        readout: Literal["first", "last", "mean"] = "mean"
        gradient_checkpointing: bool = False
        evaluate_every: int = Field(5, ge=1)
        """Rounds between two evaluations."""

    def __init__(self, config: Config, sim: Simulation) -> None:
        self.config, self.sim, self.peft = config, sim, config.kind.removeprefix("fedavg-")
        self.settings = LocalTraining(
            config.local_epochs, config.device_batch, config.learning_rate or LEARNING_RATES[self.peft],
            config.weight_decay, "adamw", config.proximal_mu,
        )  # fmt: skip
        size = (config.rank, config.bottleneck)
        self.costs = {
            name: training_architecture(spec, self.peft, sim.task.classes, *size)
            for name, spec in sim.costing.charged.items()
        }
        args = (config.server_optimiser, self.peft, config.readout, config.rank, config.alpha, config.bottleneck)
        self.learner = NullLearner() if sim.dry else FedAvgLearner(sim, *args)
        self.payloads = 0

    def device(self, device: Device) -> Generator:
        """Answer whenever the server asks."""
        yield from device.arrive()
        yield from device.serve(functools.partial(self.round, device))

    def round(self, device: Device, task: Task) -> Generator:
        """Download, train, upload."""
        yield from device.download(self.costs[device.backbone].trainable_bytes)
        state = yield from device.compute(self.local_training(device, task))
        payload = self.payload(device, task, state)
        yield from device.upload(payload)
        self.sim.server.receive(payload)

    def server(self, server: Server) -> Generator:
        """Rounds, until there are no more or the target is reached."""
        wanted = max(1, round(self.config.participation * len(self.sim.devices)))
        for number in range(self.config.rounds):
            asked = yield from server.select(math.ceil(wanted * self.config.over_selection), number)
            task = Task(number, getattr(self.learner, "state", None), self.sim.env.event())
            for device in asked:
                device.assign(task)
            answers = yield from server.collect(task, asked, min(wanted, len(asked)), self.config.deadline)
            yield from server.compute(self.aggregation(task, answers), [p.number for p in answers], "aggregate")
            self.sim.after_update(self.learner, None, len(answers))
            if self.sim.target_reached or not self.sim.devices_at_work:
                break
        yield from server.dismiss()
        self.sim.end_training(self.learner)

    def local_training(self, device: Device, task: Task) -> Work:
        """The local epochs, real and charged."""
        cost, batch = Cost(), self.config.device_batch
        lengths = self.sim.lengths(device, device.samples)
        for _ in range(self.config.local_epochs):
            for start in range(0, len(lengths), batch):
                tokens = self.sim.costing.fixed_tokens or int(lengths[start : start + batch].max())
                count = len(lengths[start : start + batch])
                cost += self.costs[device.backbone].step(count, tokens, "adamw", self.config.gradient_checkpointing)
        kept = self.costs[device.backbone].optimiser_bytes("adamw")
        seed = self.sim.streams.seed64("local-training", f"{device.id}/{task.version}") % 2**31
        cost = Cost(cost.flop, cost.bytes_moved, cost.peak_bytes + kept)
        return self.learner.work(cost, "train", device.backbone, device.samples, task.model, self.settings, seed)

    def payload(self, device: Device, task: Task, state) -> Payload:
        """The trained part as bytes."""
        self.payloads += 1
        data = None if state is None else self.learner.packed(state)
        nbytes = self.costs[device.backbone].trainable_bytes
        return Payload(self.payloads, device, device.samples, nbytes, data, task.version)

    def aggregation(self, task: Task, answers: list[Payload]) -> Work:
        """The server's mean and step: a few passes over the numbers."""
        numbers = sum(payload.nbytes / 4 for payload in answers)
        weights = [len(p.samples) if self.config.weigh_by_samples else 1.0 for p in answers]
        parts = ([p.sender.backbone for p in answers], task.model, [p.data for p in answers], weights)
        return self.learner.work(Cost(4 * numbers, 8 * numbers), "aggregate", *parts)
