"""What the forward-only federated methods share: their settings, a device's batches, what passes
and payloads cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from learning.cost.costs import Cost
from learning.cost.count_forward_only import forward_architecture
from learning.cost.count_split import PassCounts
from sim.kernel.device import Device
from sim.kernel.learner import learner_for
from sim.kernel.world import World
from sim.methods.forward_only.learner import ForwardLearner
from sim.methods.protocols import SynchronousRounds
from sim.methods.responses import vocabularies, with_words
from sim.methods.trained import TrainableSettings
from sim.scenario.settings import Responses


class ForwardOnlySettings(TrainableSettings):
    """Settings of every forward-only federated method."""

    responses: ClassVar[Responses] = "also"
    peft: Literal["lora", "adapter", "bitfit"] = "lora"
    """What is trained beside the head."""
    rounds: int = Field(500, ge=1)
    participation: float = Field(0.1, gt=0, le=1)
    """Share of the fleet that takes part in a round."""
    device_batch: int = Field(8, ge=1)
    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
    bottleneck: int = Field(48, ge=1)
    """Width of the adapters; FwdLLM's reduction of 16 makes 48 of a width of 768."""
    adapters: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """One adapter a layer, after the feed-forward block, as in FwdLLM, or two, the other after
    attention.
    """
    readout: Literal["first", "last", "mean"] = "mean"
    evaluate_every: int = Field(5, ge=1)
    """Server updates between two evaluations."""


class ForwardOnly(SynchronousRounds):
    """The devices' side of a forward-only method; a method adds `client_round` and
    `server_round`, and says what learns (`new_learner`).
    """

    learner: ForwardLearner

    def __init__(self, config: Any, world: World) -> None:
        self.config, self.world = config, world
        self.says = vocabularies(world)
        rank, bottleneck, head, *forms = config.size
        self.size = (world.task.classes, rank, bottleneck, "linear" if self.says else head, *forms)
        self.costs = {
            name: forward_architecture(spec, config.peft, *self.size)
            for name, spec in world.costing.charged.items()
        }
        self.learner = self.new_learner()

    def new_learner(self) -> ForwardLearner:
        """What learns."""
        return learner_for(self.world, ForwardLearner, *self.config.classifier)

    def delivery_bytes(self, device: Device) -> int:
        """All trained tensors, as a broadcast carries them."""
        return self.costs[device.backbone].nbytes()

    def passes(
        self,
        device: Device,
        batches: Sequence[np.ndarray],
        counted: PassCounts,
        each: int,
        kept: int,
    ) -> Cost:
        """`each` passes over every batch; the peak holds one, and `kept` bytes of copies of what is
        trained.
        """
        read, alive = self.world.costing.shares(device.member)
        total = Cost()
        for samples in batches:
            tokens = self.world.costing.fixed_tokens or int(
                self.world.lengths(device, samples).max()
            )
            one = counted.cost(len(samples), tokens)
            if self.says:
                words = int(self.world.response_lengths(device, samples).sum())
                one = with_words(one, 0, self.says[device.backbone].forward(words))
            total += Cost(
                each * one.flop, read * each * one.bytes_moved, round(alive * one.peak_bytes)
            )
        return replace(total, peak_bytes=total.peak_bytes + kept)


def moves(count: float, nbytes: int) -> Cost:
    """So many times theta + s v, on states of `nbytes` in float32: two FLOP a number, two read and
    one written.
    """
    return Cost(count * nbytes / 2, 3 * count * nbytes)
