"""What the federated PEFT methods share: a device downloads the trainable part, trains it on its
own data and sends it back.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from devices import compute
from inputs.units import Seconds
from learning.cost.costs import Cost
from learning.cost.count_training import training_architecture
from learning.federated.local_training import LocalTraining
from sim.kernel.device import Device
from sim.kernel.work import Payload, Task, Work
from sim.methods.trained import Trained

if TYPE_CHECKING:
    from sim.simulation import Simulation

LEARNING_RATES = {
    "lora": 5e-3,
    "adapter": 1e-3,
    "bitfit": 5e-3,
    "full": 5e-5,
    "head": 5e-3,
}  # FedPETuning's for MRPC


class PeftSettings(Trained):
    """What is trained on a device, and how."""

    local_epochs: int = Field(1, ge=1)
    device_batch: int = Field(32, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    """Default FedPETuning's: LoRA 5e-3, adapter 1e-3, BitFit 5e-3, full 5e-5."""
    weight_decay: float = Field(0.0, ge=0)
    proximal_mu: float = Field(0.0, ge=0)
    """FedProx's mu."""
    rank: int = Field(8, ge=1)
    alpha: float = Field(8, gt=0)
    bottleneck: int = Field(16, ge=1)
    head: Literal["linear", "dense"] = "dense"
    """Trained and sent with the rest: RoBERTa's (a square map, tanh, a linear map), as in
    FedPETuning, or one linear map.
    """
    readout: Literal["first", "last", "mean"] = "mean"
    gradient_checkpointing: bool = False
    evaluate_every: int = Field(5, ge=1)
    """Server updates between two evaluations."""


class RoundSettings(PeftSettings):
    """What is trained, and how synchronous rounds go."""

    rounds: int = Field(100, ge=1)
    participation: float = Field(0.1, gt=0, le=1)
    """Share of the fleet that answers in a round."""
    over_selection: float = Field(1.0, ge=1)
    """Ask so many times the devices that are needed; the last ones are told that they are late."""
    deadline: Seconds | None = None
    """End a round after this time, with whatever has come."""
    weigh_by_samples: bool = False
    """Weigh devices by their number of samples (McMahan et al.) instead of equally (FedPETuning).
    """


class FederatedPeft:
    """The devices' side of federated PEFT, synchronous or not; a method adds the server's and sets
    `learner`.
    """

    def __init__(self, config: PeftSettings, peft: str, sim: Simulation) -> None:
        self.config, self.sim, self.peft = config, sim, peft
        self.settings = LocalTraining(
            config.local_epochs, config.device_batch, config.learning_rate or LEARNING_RATES[peft],
            config.weight_decay, "adamw", config.proximal_mu,
        )  # fmt: skip
        size, charged = (config.bottleneck, config.head, config.target_modules), sim.costing.charged
        self.costs = {
            model: training_architecture(
                charged[device.backbone], peft, sim.task.classes, self.rank_of(device), *size
            )
            for model, device in {self.model_of(device): device for device in sim.devices}.items()
        }
        self.learner_args = (
            *(peft, config.readout, config.rank, config.alpha, config.bottleneck),
            *(config.head, config.target_modules),
        )
        self.training, self.payloads = "train", 0

    def rank_of(self, device: Device) -> int:
        """The rank of the device's LoRA."""
        return self.config.rank

    def model_of(self, device: Device) -> Any:
        """Which of the learner's models the device trains: a backbone's name, unless a method has
        several of a backbone.
        """
        return device.backbone

    def device(self, device: Device) -> Generator:
        """Answer whenever the server asks."""
        yield from device.arrive()
        yield from device.serve(functools.partial(self.round, device))

    def round(self, device: Device, task: Task) -> Generator:
        """Download, train, upload."""
        yield from device.download(self.costs[self.model_of(device)].trainable_bytes)
        data = yield from device.compute(self.local_training(device, task))
        payload = self.payload(device, task, data)
        yield from device.upload(payload)
        self.sim.server.receive(payload)

    def peak_bytes(self, device: Device) -> int:
        """Of local training on the device's longest batch, with the backbone's weights."""
        return device.held_bytes(self.local_training(device, Task(0, None, None)).cost.peak_bytes)

    def local_training(self, device: Device, task: Task) -> Work:
        """The local epochs, real and charged."""
        model, lengths = self.model_of(device), self.sim.lengths(device, device.samples)
        counted, epoch = self.costs[model], Cost()
        for start in range(0, len(lengths), self.config.device_batch):
            batch = lengths[start : start + self.config.device_batch]
            tokens = self.sim.costing.fixed_tokens or int(batch.max())
            epoch += counted.step(len(batch), tokens, "adamw", self.config.gradient_checkpointing)
        epochs, peak = self.config.local_epochs, epoch.peak_bytes + counted.optimiser_bytes("adamw")
        cost = Cost(epochs * epoch.flop, epochs * epoch.bytes_moved, peak)
        seed = self.sim.streams.seed64("local-training", f"{device.id}/{task.version}") % 2**31
        return self.learner.work(
            cost, self.training, model, device.samples, task.model, self.settings, seed
        )

    def alone_s(self, device: Device) -> float:
        """Nominal seconds of a round of the device when nobody else sends: download, training,
        upload.
        """
        cost, nbytes = (
            self.local_training(device, Task(0, None, None)).cost,
            self.costs[self.model_of(device)].trainable_bytes,
        )
        computing_s = compute.seconds(
            device.profile, device.member.engine, cost.flop, cost.bytes_moved
        )
        return computing_s + self.sim.network.alone_s(device.id, nbytes)

    def payload(self, device: Device, task: Task, data: Any) -> Payload:
        """The trained part."""
        self.payloads += 1
        nbytes = self.costs[self.model_of(device)].trainable_bytes
        return Payload(self.payloads, device, device.samples, nbytes, data, task.version)
