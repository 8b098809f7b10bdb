"""Ladder side-tuning on the device (LST, NeurIPS 2022): a side network beside the frozen backbone,
trained where the texts are.

The backward pass does not enter the backbone, so a device needs little more memory than inference
does. Nothing is sent; the accuracy is the mean over devices, each with its own side network.
Defaults are LST's (docs/pae_mobillm.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from learning.cost.costs import Cost
from learning.side.prediction_difference import SAID_FIRST
from sim.kernel.device import Device
from sim.kernel.learner import learner_for
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.on_device.learner import LadderLearner
from sim.methods.on_device.shared import OnDeviceMethod
from sim.methods.side_tuning.passes import class_pass, device_pass
from sim.methods.side_tuning.shared import (
    SideTuningSettings,
    Unfitted,
    require_words,
    settled,
    shape_over,
)

if TYPE_CHECKING:
    from learning.side.tuning import SideNetworkTrainer


def share_of_rate(step: int, steps: int, warm_up: int) -> float:
    """What share of the learning rate step `step` of `steps` makes, from 0: it rises for `warm_up`
    steps and falls for the others, both in a straight line (the schedule of LST's trainer, that of
    transformers).
    """
    return step / warm_up if step < warm_up else (steps - step) / (steps - warm_up)


def client_update(
    trainer: SideNetworkTrainer,
    records: int,
    batch: int,
    rng: np.random.Generator,
    epochs: int,
    warm_up: float,
) -> SideNetworkTrainer:
    """One pass of `epochs` over the device's records in an order of the rng's, an AdamW step a
    batch; the trainer that came is the one that goes on.
    """
    order, steps = rng.permutation(records), epochs * -(-records // batch)
    for start in range(0, records, batch):
        share = share_of_rate(trainer.steps, steps, round(warm_up * steps))
        for group in trainer.optimiser.param_groups:
            group["lr"] = trainer.training.learning_rate * share
        trainer.step(order[start : start + batch].tolist())
    return trainer


class LocalLST(OnDeviceMethod):
    """Every device trains a ladder side network on its own activations; nothing is uploaded."""

    class Config(SideTuningSettings):
        """Settings of local ladder side-tuning."""

        takes_texts_in_order: ClassVar[bool] = False
        kind: Literal["local-lst"]
        taps: Literal["interval"] | int | list[int] = "interval"
        """Sampled layers: all of the backbone's, so many, or a list of layers."""
        epochs: int = Field(20, ge=1)
        cache: bool = False
        """Keep the activations on the device after the first epoch instead of computing them again.
        """
        loss: Literal["squared-error", "cross-entropy"] = "cross-entropy"
        """The labels are on the device."""
        backbone_prediction: Unfitted = "uniform"
        """As in Fed MobiLLM, but for heads that are fitted: no server, and the side network is the
        device's own already.
        """
        learning_rate: float = Field(3e-3, gt=0)
        weight_decay: float = Field(0.0, ge=0)
        warm_up: float = Field(0.2, ge=0, le=1)
        """Share of a device's steps in which the learning rate rises; in the others it falls to
        zero.
        """
        device_batch: int = Field(16, ge=1)
        """LST's 100 would give a device of 67 texts 20 steps in all."""
        evaluated_devices: int | None = Field(None, ge=1)
        """The accuracy is the mean over so many devices, with one of every backbone at least;
        default all.
        """
        wire: Literal["float32"] = "float32"
        """Activations stay on the device, unrounded."""

        @property
        def keeps_records(self) -> bool:
            """There is no server."""
            return False

    def __init__(self, config: Config, world: World) -> None:
        self.config = config = settled(config)
        self.world = world
        require_words(config, world)
        self.shapes = {name: shape_over(config, world, [name]) for name in world.costing.learned}
        self.learner = learner_for(world, LadderLearner, config)

    @property
    def rounds(self) -> int:
        """How often each device passes over its texts."""
        return self.config.epochs

    def peak_bytes(self, device: Device) -> int:
        """Of an epoch that computes activations, with the backbone's weights."""
        return device.held_bytes(self.own_round(device, 0).cost.peak_bytes)

    def own_round(self, device: Device, number: int) -> Work:
        """Forward passes of the backbone (the first time, or without a cache) and steps of the side
        network.
        """
        shape, cost = self.shapes[device.backbone], Cost()
        vector_bytes = 4 * shape.vectors * shape.backbone_widths[device.backbone]
        own_bytes = shape.training_step({}).peak_bytes  # weights, gradients and moments
        for batch in device.batches(self.config.device_batch):
            n = len(batch.samples)
            step = shape.training_step({device.backbone: n})
            cost += Cost(step.flop, step.bytes_moved, n * vector_bytes + own_bytes)
            if number == 0 or not self.config.cache:
                lengths = self.world.lengths(device, batch.samples)
                forward = device_pass(self.config, self.world, device, lengths)
                cost += Cost(
                    forward.flop,
                    forward.bytes_moved,
                    forward.peak_bytes + n * vector_bytes + own_bytes,
                )
        if number == 0 and self.config.backbone_prediction in SAID_FIRST:
            cost += class_pass(self.config, self.world, device)
        if self.config.cache:
            cost += Cost(peak_bytes=cost.peak_bytes + len(device.samples) * vector_bytes)
        who = (device.backbone, device.samples, device.id, number)
        return self.learner.work(cost, self.learner.epoch, client_update, *who)
