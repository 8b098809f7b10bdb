"""FedBert (ACM TIST 13(4), 2022): the device has the embeddings and the head, the server every
layer; labels never leave.

A batch crosses the network four times: embeddings up, the body's output down, its gradient up, the
embeddings' gradient down. Rounds are those of SplitFed: the devices' parts are averaged, and so are
the bodies that the server trains for them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from learning.cost.count_split import part_architecture
from sim.kernel.device import Device
from sim.kernel.work import ClientTask
from sim.kernel.world import World
from sim.methods.split.learner import FedBertLearner
from sim.methods.split.shared import SplitSettings, SplitTraining


class FedBert(SplitTraining):
    """Split learning with the head on the device."""

    class Config(SplitSettings):
        """Settings of FedBert; the defaults are its fine-tuning of MRPC."""

        kind: Literal["fedbert"]
        rounds: int = Field(10, ge=1)
        learning_rate: float = Field(1e-5, gt=0)
        body: Literal["parallel", "sequential"] = "parallel"
        """A body for each client, averaged every round, or one body that serves clients in turn."""

    Learner = FedBertLearner

    def __init__(self, config: Config, world: World) -> None:
        parts = {
            name: (
                part_architecture(spec, 0, embeds=True),
                part_architecture(spec, world.costing.depths()[name]),
                part_architecture(spec, None, head=True, classes=world.task.classes),
            )
            for name, spec in world.costing.charged.items()
        }
        peft = ("full", config.readout, 8, 8, 16)  # sizes of what full training has none of
        SplitTraining.__init__(
            self, config, world, parts, config.body == "parallel", config.learning_rate, 0, *peft
        )

    def batch(
        self, device: Device, task: ClientTask, samples: np.ndarray, slot: list
    ) -> Generator[Any, Any, Any]:
        """Embeddings up, body, output down, loss on the device, gradient up, body, gradient down,
        embeddings.
        """
        charge, name, work = self.charging, device.backbone, self.learner.work
        sent = yield from device.compute(
            work(charge.forward(device, samples, 0), self.learner.embed, name, samples, slot[0])
        )
        nbytes = charge.wire_bytes(device, samples, 0, numbers=1)  # each text's length
        up = yield from self.exchange(device, task, samples, nbytes, sent and sent.data)
        ahead = charge.forward(device, samples, 1)
        out = yield from self.served(device, task, up, ahead, self.learner.body, name, len(samples))
        yield from device.download(charge.wire_bytes(device, samples, 1))
        both = charge.forward(device, samples, 2) + charge.backward(device, samples, 2)
        loss = work(both, self.learner.loss, name, samples, slot[0], sent, out and out.data)
        gradient, head = (yield from device.compute(loss)) or (None, None)
        up = yield from self.exchange(
            device, task, samples, charge.wire_bytes(device, samples, 1), gradient
        )
        back = charge.backward(device, samples, 1)
        gradient = yield from self.trained(device, task, up, back, self.learner.body_back, out)
        yield from device.download(charge.wire_bytes(device, samples, 0))
        finish = work(
            charge.backward(device, samples, 0), self.learner.finish, slot, sent, gradient, head
        )
        return (yield from device.compute(finish))
