"""Local LoRA: every device fine-tunes alone, with gradients, on its own texts. Nothing is sent,
nothing is shared.

What federation has to beat: its accuracy is the mean over devices, each with the model that it made
for itself.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sim.kernel.device import Device
from sim.kernel.learner import learner_for
from sim.kernel.work import ClientTask, Work
from sim.methods.federated_peft.client_updates import locally_trained
from sim.methods.federated_peft.shared import FederatedPeft, PeftSettings
from sim.methods.on_device.learner import LocalPeftLearner
from sim.methods.on_device.shared import OnDeviceMethod


class LocalLoRA(OnDeviceMethod, FederatedPeft):
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

    client_update = staticmethod(locally_trained)

    @property
    def rounds(self) -> int:
        """How often each device passes over its texts."""
        return self.config.rounds

    def new_learner(self) -> LocalPeftLearner:
        """A state for each device that is looked at."""
        sample = self.config.evaluated_devices
        return learner_for(self.world, LocalPeftLearner, sample, *self.learner_args)

    def own_round(self, device: Device, number: int) -> Work:
        """The local epochs of a round, from the device's own last state."""
        return self.local_training(device, ClientTask(number, device.id, None))
