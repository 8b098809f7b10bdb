"""FlexLoRA (Bai et al., NeurIPS 2024): LoRA of as high a rank as each device can bear, in
synchronous rounds.

The server takes the mean of the dense updates (alpha / rank) B A, decomposes it, and sends each
device the best approximation of its own rank: a strong device need not make do with the rank of the
weakest (docs/federated_peft.md).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field

from learning.cost.costs import Cost
from learning.cost.count_forward_only import lora_maps
from learning.federated.aggregation import flex_lora_flop
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.federated_peft.flex_lora_learner import FlexLoRALearner
from sim.methods.federated_peft.shared import RoundSettings, SynchronousPeft
from sim.scenario.complaints import nearest


class FlexLoRA(SynchronousPeft):
    """Federated LoRA with a rank for each device: dense updates are averaged, and cut to every rank
    by an SVD.
    """

    class Config(RoundSettings):
        """Settings of FlexLoRA; those of federated LoRA, and the ranks."""

        kind: Literal["flexlora"]
        ranks: dict[str, Annotated[int, Field(ge=1)]] = {}
        """Rank by the name of a group of the fleet or of a device; a group's goes before its
        device's.
        """
        rank: int = Field(8, ge=1)
        """The rank of all others."""
        alpha: float | None = Field(None, gt=0)
        """LoRA's alpha; default each device's own rank (as FedPETuning's), so that every update is
        B A itself.
        """

        @property
        def trains(self) -> str:
            """LoRA, always."""
            return "lora"

    def __init__(self, config: Config, world: World) -> None:
        names = {
            name for device in world.devices for name in (device.member.group, device.member.device)
        }
        for odd in sorted(set(config.ranks) - names):
            known = ", ".join(sorted(names))
            raise ValueError(
                f"method.ranks: {odd} is no group or device of the fleet "
                f"({known}){nearest(odd, names)}"
            )
        widest, narrowest = (
            max([config.rank, *config.ranks.values()]),
            min(world.costing.widths().values()),
        )
        if widest > narrowest:
            raise ValueError(
                f"method.ranks: {widest} is more than the width of the narrowest backbone, "
                f"{narrowest}"
            )
        super().__init__(config, world)

    def new_learner(self) -> FlexLoRALearner:
        """LoRA of each device's rank, and one of the greatest at the server."""
        c, models = self.config, Counter(map(self.model_of, self.world.devices))
        sizes = (c.alpha, c.readout, c.bottleneck, c.head, c.target_modules)
        return learner_for(self.world, FlexLoRALearner, models, *sizes)

    def rank_of(self, device: Device) -> int:
        """The group's rank, else the device's, else the rank of all others."""
        ranks, member = self.config.ranks, device.member
        return ranks.get(member.group, ranks.get(member.device, self.config.rank))

    def model_of(self, device: Device) -> tuple[str, int]:
        """A backbone with LoRA of a rank."""
        return device.backbone, self.rank_of(device)

    def maps(self, backbone: str) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix that has LoRA: query and value of every layer, or what
        else is counted.
        """
        model = next(model for model in self.costs if model[0] == backbone)
        counted, a = self.costs[model], self.world.costing.architectures[backbone]
        width, classes, config = counted.head_inputs, self.world.task.classes, self.config
        head = (width + 1) * (classes + (width if config.head == "dense" else 0))
        if counted.trainable - head == 4 * a.layers * model[1] * a.hidden_size:
            return [(a.hidden_size, a.hidden_size)] * 2 * a.layers
        size = (classes, model[1], config.bottleneck, config.target_modules)
        return lora_maps(self.world.costing.charged[backbone], *size)

    def aggregation(self, sent: Any, answers: list[Payload]) -> Work:
        """The mean of what is not LoRA, and for each matrix two QR factorisations and a small
        SVD.
        """
        work = super().aggregation(sent, answers)
        most, ranks = max(rank for _, rank in self.costs), [self.rank_of(p.sender) for p in answers]
        maps = [self.maps(name) for name in sorted({p.sender.backbone for p in answers})]
        flop = max(
            (math.fsum(flex_lora_flop(ranks, most, *map_) for map_ in own) for own in maps),
            default=0.0,
        )
        return Work(work.cost + Cost(flop), work.run)
