"""FlexLoRA (Bai et al., NeurIPS 2024): LoRA of as high a rank as each device can bear, in
synchronous rounds.

The server takes the mean of the dense updates (alpha / rank) B A, decomposes it, and sends each
device the best approximation of its own rank: a strong device need not make do with the rank of the
weakest (docs/federated_peft.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from learning.cost.costs import Cost
from learning.cost.count_forward_only import lora_maps
from learning.federated.aggregation import cut_rank, flex_lora, flex_lora_flop
from learning.metrics import mean_score
from sim.kernel.device import Device, Payload
from sim.kernel.learner import Part, learner_for
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.federated_peft.client_updates import locally_trained
from sim.methods.federated_peft.learner import RoundLearner
from sim.methods.federated_peft.shared import RoundSettings, SynchronousPeft
from sim.scenario.complaints import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from learning.backbones.tokens import Tokens
    from learning.metrics import Score
    from sim.kernel.learned import Learned

Model = tuple[str, int]  # a backbone and the rank of its LoRA


def server_update(
    state: Mapping[str, Tensor],
    memory: Any,
    answers: Sequence[Mapping[str, Tensor]],
    kept: Sequence[int],
    weights: Sequence[float],
    scalings: Sequence[float],
    whole: tuple[int, float],
) -> tuple[dict[str, Tensor], Any]:
    """The mean of the dense updates, decomposed into LoRA of the `whole` (rank, scaling)."""
    mine = ([weights[k] for k in kept], [scalings[k] for k in kept])
    (mean,) = flex_lora(answers, *mine, [whole])
    return {**state, **mean}, memory


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
        alpha: float | None = Field(None, gt=0)  # type: ignore[assignment]  # None: each rank's own
        """LoRA's alpha; default each device's own rank (as FedPETuning's), so that every update is
        B A itself.
        """

        @property
        def trains(self) -> str:
            """LoRA, always."""
            return "lora"

    client_update = staticmethod(locally_trained)

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
        widest = max([config.rank, *config.ranks.values()])
        narrowest = min(world.costing.widths().values())
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

    def model_of(self, device: Device) -> Model:
        """A backbone with LoRA of a rank."""
        return device.backbone, self.rank_of(device)

    def maps(self, backbone: str) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix that has LoRA: query and value of every layer, or what
        else is counted.
        """
        model = next(model for model in self.costs if model[0] == backbone)
        counted = self.costs[model]
        a = self.world.costing.architectures[backbone]
        width, classes, config = counted.head_inputs, self.world.task.classes, self.config
        is_dense = config.head == "dense" and not self.says
        head = (width + 1) * (classes + (width if is_dense else 0))
        if counted.trainable - head == 4 * a.layers * model[1] * a.hidden_size:
            return [(a.hidden_size, a.hidden_size)] * 2 * a.layers
        size = (classes, model[1], config.bottleneck, config.target_modules)
        return lora_maps(self.world.costing.charged[backbone], *size)

    def aggregation(self, sent: Any, answers: list[Payload]) -> Work:
        """The mean of what is not LoRA, and for each matrix two QR factorisations and a small
        SVD.
        """
        work = super().aggregation(sent, answers)
        most = max(rank for _, rank in self.costs)
        ranks = [self.rank_of(p.sender) for p in answers]
        maps = [self.maps(name) for name in sorted({p.sender.backbone for p in answers})]
        flop = max(
            (math.fsum(flex_lora_flop(ranks, most, *map_) for map_ in own) for own in maps),
            default=0.0,
        )
        return Work(work.cost + Cost(flop), work.run)


class FlexLoRALearner(RoundLearner):
    """Real LoRA of each device's own rank; `devices` says how many devices have each (backbone,
    rank).

    The server's state has the greatest rank, its directions in the order of their strength, so that
    what a device downloads, the best approximation of its rank, is the first part of it. `alpha`
    None stands for each model's own rank.
    """

    def __init__(
        self,
        world: World,
        devices: Counter[Model],
        alpha: float | None,
        readout: str,
        bottleneck: int,
        head: str,
        target_modules: Sequence[str] | str | None = None,
    ) -> None:
        self.devices, self.alpha = devices, alpha
        self.greatest = max(rank for _, rank in devices)
        size = (self.greatest, alpha or self.greatest, bottleneck)
        super().__init__(world, "lora", readout, *size, head, target_modules)
        whole = self.models
        self.models = {}
        for name, rank in sorted(devices):
            own_size = (rank, alpha or rank, bottleneck)
            model = self.new_model(name, "lora", readout, *own_size, head, target_modules)
            for own, shared in zip(model.parameters(), whole[name].parameters(), strict=True):
                if not own.requires_grad:
                    own.data = (
                        shared.data
                    )  # the frozen weights are in memory once, whatever the ranks
            self.models[name, rank] = model

    def scaling(self, rank: int) -> float:
        """The factor before B A."""
        return (self.alpha or rank) / rank

    def tokens(self, model: Any, samples: np.ndarray) -> Tokens:
        """The samples as the tokens of a model's backbone."""
        return super().tokens(model[0], samples)

    def part_of(self, model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The server's state cut to a model's depth and rank."""
        own, rank = super().part_of(model, state), model[1]
        return cut_rank(own, rank, self.scaling(self.greatest), self.scaling(rank))

    def aggregate(
        self,
        models: Sequence[Model],
        received: Learned,
        states: Sequence[Learned],
        weights: Sequence[float],
    ) -> Callable[[], list[int]]:
        """The mean of the dense updates, decomposed; what nobody sent stays. Gives the places of
        what is not finite.
        """
        scalings = [self.scaling(rank) for _, rank in models]
        whole = (self.greatest, self.scaling(self.greatest))
        return self.serve(server_update, models, states, weights, scalings, whole)

    def _scores_of(self, state: Mapping[str, Tensor], part: Part) -> dict[Any, Score | None]:
        """Of every backbone: the mean over its devices, each with the model of its rank."""
        scores: dict[str, list[Score | None]] = {}
        for (name, rank), score in super()._scores_of(state, part).items():
            scores.setdefault(name, []).extend([score] * self.devices[name, rank])
        finite = {name: [one for one in mine if one is not None] for name, mine in scores.items()}
        return {
            name: mean_score(finite[name]) if len(finite[name]) == len(mine) else None
            for name, mine in scores.items()
        }
