"""Federated PEFT in synchronous rounds (FedPETuning, Findings of ACL 2023): each round a sample of
the devices downloads the trainable part, trains it on its own data and sends it back; the server
averages what came and waits for the slowest.

FedProx, FedAvgM, FedAdam and FedYogi are settings of it. Defaults are FedPETuning's
(docs/federated_peft.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from learning.federated.aggregation import ServerOptimiser
from sim.kernel.learned import Learned
from sim.kernel.learner import learner_for
from sim.kernel.world import World
from sim.methods.federated_peft.learner import RoundLearner, locally_trained
from sim.methods.federated_peft.shared import RoundSettings, SynchronousPeft

if TYPE_CHECKING:
    from learning.federated.aggregation import State


def server_update(
    state: State,
    moments: Any,
    answers: Sequence[State],
    kept: Sequence[int],
    optimiser: ServerOptimiser,
    received: State,
    weights: Sequence[float],
) -> tuple[State, Any]:
    """The mean of what the answers changed, and the server optimiser's step along it."""
    from learning.federated.aggregation import model_delta, server_step, weighted_mean

    deltas = [model_delta(answer, received) for answer in answers]
    return server_step(optimiser, state, weighted_mean(deltas, [weights[k] for k in kept]), moments)


class FedAvg(SynchronousPeft):
    """Synchronous federated PEFT: what devices train is averaged every round.

    fedavg-lora: FedAvg of LoRA in synchronous rounds.

    fedavg-adapter: FedAvg of adapters in synchronous rounds.

    fedavg-bitfit: FedAvg of BitFit (the biases alone) in synchronous rounds.

    fedavg-full: FedAvg of all weights (full fine-tuning) in synchronous rounds.
    """

    class Config(RoundSettings):
        """Settings of synchronous federated PEFT."""

        kind: Literal["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"]
        schedule: Literal["linear", "constant"] = "linear"
        server_optimiser: ServerOptimiser = ServerOptimiser()

        @property
        def trains(self) -> str:
            """As the kind says."""
            return self.kind.removeprefix("fedavg-")

    client_update = staticmethod(locally_trained)

    def new_learner(self) -> FedAvgLearner:
        """`server_update` at the server."""
        return learner_for(
            self.world, FedAvgLearner, *self.learner_args, self.config.server_optimiser
        )


class FedAvgLearner(RoundLearner):
    """The learning of FedAvg and its variants."""

    def __init__(self, world: World, *model: Any) -> None:
        *classifier, self._optimiser = model
        super().__init__(world, *classifier)

    def aggregate(
        self,
        backbones: Sequence[str],
        received: Learned,
        sent: Sequence[Learned],
        weights: Sequence[float],
    ) -> Any:
        """One step of the server on what came; gives the places of what was left out."""
        return self.serve(server_update, backbones, sent, self._optimiser, received, weights)
