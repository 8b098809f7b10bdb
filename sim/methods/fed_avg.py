"""Federated PEFT in synchronous rounds (FedPETuning, Findings of ACL 2023): each round a sample of the devices downloads the
trainable part, trains it on its own data and sends it back; the server averages what came and waits for the slowest.

FedProx, FedAvgM, FedAdam and FedYogi are settings of it. Defaults are FedPETuning's (docs/federated_peft.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from learning.aggregation import ServerOptimiser
from learning.cost import Cost
from sim.actors import Payload, Server, Work
from sim.learners.federated import FedAvgLearner
from sim.learners.null import NullLearner
from sim.methods.shared.federated_peft import FederatedPeft, RoundSettings

if TYPE_CHECKING:
    from sim.simulation import Simulation


class FedAvg(FederatedPeft):
    """Synchronous federated PEFT: LoRA, adapters, BitFit or full fine-tuning, averaged every round."""

    class Config(RoundSettings):
        """Settings of synchronous federated PEFT."""

        kind: Literal["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"]
        server_optimiser: ServerOptimiser = ServerOptimiser()

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, config.kind.removeprefix("fedavg-"), sim)
        self.learner = NullLearner() if sim.dry else FedAvgLearner(sim, config.server_optimiser, *self.learner_args)

    def server(self, server: Server) -> Generator:
        """Rounds, until there are no more or the target is reached."""
        yield from server.rounds(self.config.rounds, self.learner, functools.partial(self.average, server))

    def average(self, server: Server, number: int) -> Generator[Any, Any, int]:
        """One round: ask, collect, average."""
        wanted = max(1, round(self.config.participation * len(self.sim.devices)))
        asked = yield from server.select(math.ceil(wanted * self.config.over_selection), number)
        sent = self.learner.state
        answers = yield from server.ask(asked, number, sent, min(wanted, len(asked)), self.config.deadline)
        yield from server.compute(self.aggregation(sent, answers), [p.number for p in answers], "aggregate")
        return len(answers)

    def aggregation(self, sent: Any, answers: list[Payload]) -> Work:
        """The server's mean and step: a few passes over the numbers."""
        numbers = sum(payload.nbytes / 4 for payload in answers)
        weights = [len(p.samples) if self.config.weigh_by_samples else 1.0 for p in answers]
        parts = ([self.model_of(p.sender) for p in answers], sent, [p.data for p in answers], weights)
        return self.learner.work(Cost(4 * numbers, 8 * numbers), "aggregate", *parts)
