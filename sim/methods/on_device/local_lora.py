"""Local LoRA: every device fine-tunes alone, with gradients, on its own texts. Nothing is sent,
nothing is shared.

What federation has to beat: its accuracy is the mean over devices, each with the model that it made
for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sim.kernel.device import Device
from sim.kernel.learner import NullLearner
from sim.kernel.work import Task, Work
from sim.methods.federated_peft.shared import FederatedPeft, PeftSettings
from sim.methods.on_device.learner import LocalPeftLearner
from sim.methods.on_device.shared import Alone

if TYPE_CHECKING:
    from sim.simulation import Simulation


class LocalLoRA(Alone, FederatedPeft):
    """Every device trains LoRA alone; nothing is uploaded, and the accuracy is the mean over
    devices.
    """

    class Config(PeftSettings):
        """Settings of local LoRA; those of federated PEFT on a device."""

        takes_texts_as_they_come: ClassVar[bool] = True
        kind: Literal["local-lora"]
        rounds: int = Field(20, ge=1)
        """Rounds of `local_epochs`; AdamW starts anew with each, as it does in a federated round.
        """
        evaluated_devices: int = Field(10, ge=1)
        """The accuracy is the mean over a seeded sample of so many devices, with one of every
        backbone at least.
        """

        @property
        def trains(self) -> str:
            """LoRA, always."""
            return "lora"

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, config.trains, sim)
        self.rounds, self.training = config.rounds, "train_alone"
        self.learner = (
            NullLearner()
            if sim.dry
            else LocalPeftLearner(sim, config.evaluated_devices, *self.learner_args)
        )

    def own_round(self, device: Device, number: int) -> Work:
        """The local epochs of a round, from the device's own last state."""
        return self.local_training(device, Task(number, device.id, None))
