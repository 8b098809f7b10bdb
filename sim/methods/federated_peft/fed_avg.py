"""Federated PEFT in synchronous rounds (FedPETuning, Findings of ACL 2023): each round a sample of
the devices downloads the trainable part, trains it on its own data and sends it back; the server
averages what came and waits for the slowest.

FedProx, FedAvgM, FedAdam and FedYogi are settings of it. Defaults are FedPETuning's
(docs/federated_peft.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from inputs.units import format_seconds
from learning.cost.costs import Cost
from learning.federated.aggregation import ServerOptimiser
from sim.kernel.device import Device
from sim.kernel.learner import NullLearner
from sim.kernel.server import Server
from sim.kernel.work import Payload, Work
from sim.methods.federated_peft.learner import FedAvgLearner
from sim.methods.federated_peft.shared import FederatedPeft, RoundSettings

if TYPE_CHECKING:
    from sim.simulation import Simulation


class FedAvg(FederatedPeft):
    """Synchronous federated PEFT: LoRA, adapters, BitFit or full fine-tuning, averaged every
    round.
    """

    class Config(RoundSettings):
        """Settings of synchronous federated PEFT."""

        kind: Literal["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"]
        server_optimiser: ServerOptimiser = ServerOptimiser()

        @property
        def trains(self) -> str:
            """As the kind says."""
            return self.kind.removeprefix("fedavg-")

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, config.trains, sim)
        self.learner = (
            NullLearner()
            if sim.dry
            else FedAvgLearner(sim, config.server_optimiser, *self.learner_args)
        )

        if config.deadline is not None:
            self.look_at_deadline(config.deadline)

    def look_at_deadline(self, deadline_s: float) -> None:
        """Say beforehand that no device can answer in time, as far as that can be known."""
        fastest_s = min(self.alone_s(device) for device in self.sim.devices)
        if deadline_s < fastest_s:
            self.sim.remark(
                f"method.deadline: {format_seconds(deadline_s)} is too short for an answer: the "
                "fastest device, with its "
                f"link to itself, needs about {format_seconds(fastest_s)}"
            )

    @property
    def wanted(self) -> int:
        """How many answers a round waits for."""
        return max(1, round(self.config.participation * len(self.sim.devices)))

    def server(self, server: Server) -> Generator:
        """Rounds, until there are no more or the target is reached."""
        wanted = math.ceil(self.wanted * self.config.over_selection)
        yield from server.rounds(
            self.config.rounds, wanted, self.learner, functools.partial(self.average, server)
        )

    def average(
        self, server: Server, asked: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: ask, collect, average."""
        sent = self.learner.state
        answers = yield from server.ask(
            asked, number, sent, min(self.wanted, len(asked)), self.config.deadline
        )
        return (yield from server.take_in(answers, self.aggregation(sent, answers)))

    def aggregation(self, sent: Any, answers: list[Payload]) -> Work:
        """The server's mean and step: a few passes over the numbers."""
        numbers = sum(payload.nbytes / 4 for payload in answers)
        weights = [len(p.samples) if self.config.weigh_by_samples else 1.0 for p in answers]
        parts = (
            [self.model_of(p.sender) for p in answers],
            sent,
            [p.data for p in answers],
            weights,
        )
        return self.learner.work(Cost(4 * numbers, 8 * numbers), "aggregate", *parts)
