"""The learning behind FlexLoRA's clock: LoRA of several ranks on devices, one LoRA of the greatest
rank at the server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.methods.federated_peft.learner import FederatedLearner

if TYPE_CHECKING:
    from torch import Tensor

    from learning.backbones.tokens import Tokens
    from sim.kernel.learned import Learned
    from sim.kernel.world import World

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
    from learning.federated.aggregation import flex_lora

    mine = ([weights[k] for k in kept], [scalings[k] for k in kept])
    (mean,) = flex_lora(answers, *mine, [whole])
    return {**state, **mean}, memory


class FlexLoRALearner(FederatedLearner):
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
        from learning.federated.trainable import TrainableClassifier

        self.devices, self.alpha = devices, alpha
        self.greatest = max(rank for _, rank in devices)
        size = (alpha or self.greatest, bottleneck, head, target_modules)
        super().__init__(world, "lora", readout, self.greatest, *size)
        seed, whole = world.streams.seed64("server/model") % 2**31, self.models
        self.models = {}
        for name, rank in sorted(devices):
            size = (rank, alpha or rank, bottleneck, seed)
            model = TrainableClassifier(
                *(world.costing.learned[name], "lora", world.task.classes, readout, *size),
                head=head,
                target_modules=target_modules,
            )
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
        from learning.federated.aggregation import cut_rank

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

    def _scores_of(self, state: Mapping[str, Tensor]) -> dict[str, float | None]:
        """Of every backbone: the mean over its devices, each with the model of its rank."""
        scores: dict[str, list[float | None]] = {}
        for (name, rank), score in super()._scores_of(state).items():
            scores.setdefault(name, []).extend([score] * self.devices[name, rank])
        return {
            name: None if None in mine else math.fsum(mine) / len(mine)
            for name, mine in scores.items()
        }
