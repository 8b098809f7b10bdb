"""Local LoRA: every device fine-tunes alone, with gradients, on its own texts. Nothing is sent, nothing is shared.

What federation has to beat: its accuracy is the mean over devices, each with the model that it made for itself.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sim.actors import Device, Server, Task
from sim.learners.local import LocalPeftLearner
from sim.learners.null import NullLearner
from sim.methods.shared.federated_peft import FederatedPeft, PeftSettings

if TYPE_CHECKING:
    from sim.simulation import Simulation


class LocalLoRA(FederatedPeft):
    """Every device trains LoRA alone; nothing is uploaded, and the accuracy is the mean over devices."""

    class Config(PeftSettings):
        """Settings of local LoRA; those of federated PEFT on a device."""

        kind: Literal["local-lora"]
        rounds: int = Field(20, ge=1)
        """Rounds of `local_epochs`; AdamW starts anew with each, as it does in a federated round."""
        evaluated_devices: int = Field(10, ge=1)
        """The accuracy is the mean over a seeded sample of so many devices, with one of every backbone at least."""

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, "lora", sim)
        self.training = "train_alone"
        self.learner = NullLearner() if sim.dry else LocalPeftLearner(sim, config.evaluated_devices, *self.learner_args)

    def device(self, device: Device) -> Generator:
        """Its own texts, over and over, once they are all there."""
        yield from device.arrive()
        for batch in device.batches(len(device.samples)):
            yield from device.until(batch.ready_s)
        for number in range(self.config.rounds):
            state = yield from device.compute(self.local_training(device, Task(number, device.id, None)))
            if not self.sim.dry:
                self.learner.keep(device.id, state)
            self.sim.after_update(self.learner, None, 0)
            self.sim.server.wake()

    def server(self, server: Server) -> Generator:
        """Nothing to do but to see when all is over."""
        while self.sim.devices_at_work and not self.sim.target_reached:
            yield from server.wait()
        self.sim.end_training(self.learner)
