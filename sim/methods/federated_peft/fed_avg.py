"""Federated PEFT in synchronous rounds (FedPETuning, Findings of ACL 2023): each round a sample of
the devices downloads the trainable part, trains it on its own data and sends it back; the server
averages what came and waits for the slowest.

FedProx, FedAvgM, FedAdam and FedYogi are settings of it. Defaults are FedPETuning's
(docs/federated_peft.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from learning.differential_privacy import epsilon_of, require_accountant
from learning.federated.aggregation import ServerOptimiser
from sim.kernel.device import Device, Payload
from sim.kernel.learned import Learned
from sim.kernel.learner import learner_for
from sim.kernel.server import Server
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.federated_peft.client_updates import locally_trained
from sim.methods.federated_peft.learner import RoundLearner
from sim.methods.federated_peft.shared import RoundSettings, SendsChanges, SynchronousPeft
from sim.scenario.settings import Settings

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
    private: tuple[float, float, int] | None = None,
    are_changes: bool = False,
) -> tuple[State, Any]:
    """The mean of what the answers changed, and the server optimiser's step along it; `private`:
    each change is clipped to a length, and their sum gets noise of a deviation, from a seed.
    `are_changes`: that is what the answers are.
    """
    from learning.differential_privacy import clipped, with_noise
    from learning.federated.aggregation import model_delta, server_step, weighted_mean

    deltas = [answer if are_changes else model_delta(answer, received) for answer in answers]
    if private is not None:
        deltas = [clipped(delta, private[0]) for delta in deltas]
    mean = weighted_mean(deltas, [weights[k] for k in kept])
    if private is not None:
        mean = with_noise(mean, private[1] / len(deltas), private[2])
    return server_step(optimiser, state, mean, moments)


class DifferentialPrivacy(Settings):
    """DP-FedAvg (McMahan et al., ICLR 2018): changes are clipped, and their mean gets noise."""

    clip: float = Field(gt=0)
    """Length of a device's change of the model, at most."""
    noise_multiplier: float = Field(1.0, ge=0)
    """Deviation of the noise on the sum of a round's changes, over `clip`."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """At which epsilon is told, in `summary.json`."""


class FedAvg(SynchronousPeft):
    """Synchronous federated PEFT: what devices train is averaged every round.

    fedavg-lora: FedAvg of LoRA in synchronous rounds.

    fedavg-adapter: FedAvg of adapters in synchronous rounds.

    fedavg-bitfit: FedAvg of BitFit (the biases alone) in synchronous rounds.

    fedavg-full: FedAvg of all weights (full fine-tuning) in synchronous rounds.
    """

    class Config(RoundSettings, SendsChanges):
        """Settings of synchronous federated PEFT."""

        kind: Literal["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"]
        schedule: Literal["linear", "constant"] = "linear"
        server_optimiser: ServerOptimiser = ServerOptimiser()
        differential_privacy: DifferentialPrivacy | None = None
        """What the server does so that its models tell little of any one device."""

        @property
        def trains(self) -> str:
            """As the kind says."""
            return self.kind.removeprefix("fedavg-")

        @model_validator(mode="after")
        def _devices_weigh_alike(self) -> FedAvg.Config:
            if self.differential_privacy is not None and self.weigh_by_samples:
                raise ValueError(
                    "differential_privacy: noise is for devices that weigh alike: leave "
                    "`weigh_by_samples` out"
                )
            return self

    learner: FedAvgLearner
    client_update = staticmethod(locally_trained)

    def __init__(self, config: Config, world: World) -> None:
        self.averaged = 0  # rounds
        self.is_whole = True  # every round was drawn of the whole fleet
        self.asked_of: Counter[str] = Counter()  # rounds of each device, where that is counted
        super().__init__(config, world)
        if config.differential_privacy is not None:
            require_accountant()
            if len({*map(self.model_of, world.devices)}) > 1:
                raise ValueError(
                    "method.differential_privacy: devices of several backbones train other parts "
                    "of the model, so that fewer stand behind a mean than noise is made for: let "
                    "all have one"
                )

    def new_learner(self) -> FedAvgLearner:
        """`server_update` at the server."""
        return learner_for(
            self.world, FedAvgLearner, *self.learner_args, self.config.server_optimiser
        )

    def server_round(
        self, server: Server, cohort: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """As of all; for differential privacy, who was asked of whom is counted."""
        if self.config.differential_privacy is not None:
            # the cohort was drawn of the roster: who has ended or is off is not in it
            self.is_whole = self.is_whole and len(server.roster) == len(self.world.devices)
            self.asked_of.update(device.id for device in cohort)
        return (yield from super().server_round(server, cohort, number))

    def aggregation(self, sent: Any, answers: list[Payload]) -> Work:
        """The mean and the server's step; with clipping and noise, two more passes."""
        if (private := self.config.differential_privacy) is None:
            return super().aggregation(sent, answers)
        self.averaged += 1
        deviation = private.noise_multiplier * private.clip
        seed = self.world.streams.seed64("server/noise", str(self.averaged)) % 2**63
        cost = self.mean_cost(answers) + self.mean_cost(answers)
        models, data = self.of_each(answers)
        weights, noise = [1.0] * len(answers), (private.clip, deviation, seed)
        step = self.learner.aggregate
        return self.learner.work(cost, step, models, sent, data, weights, noise)

    def findings(self) -> dict[str, Any]:
        """What the noise is worth, for the summary: of a device's taking part, against whoever gets
        the models. Rounds' cohorts are counted as if each device were in one by a coin of its own;
        where some were not there to be drawn, that is no secret, and every round counts in which
        the device that was asked most was asked.
        """
        if (private := self.config.differential_privacy) is None:
            return {}
        share, rounds = min(1.0, self.asked / len(self.world.devices)), self.averaged
        if not self.is_whole:
            share, rounds = 1.0, max(self.asked_of.values(), default=0)
        epsilon = epsilon_of(private.noise_multiplier, share, rounds, private.delta)
        known = epsilon if math.isfinite(epsilon) else None  # without noise there is none
        return {"differential_privacy": {"epsilon": known, "delta": private.delta}}


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
        private: tuple[float, float, int] | None = None,
    ) -> Any:
        """One step of the server on what came; gives the places of what was left out."""
        how = (received, weights, *([] if private is None else [private]))
        if self.chain is not None:
            how = (received, weights, private, True)
        return self.serve(server_update, backbones, sent, self._optimiser, *how)
