"""Asynchronous federated PEFT: FedAsync (Xie et al. 2019) mixes every answer in as it lands,
FedBuff (Nguyen et al., AISTATS
2022) steps on every K of them. Nobody waits: a device that answers makes room for the next.

An answer's staleness is the number of server updates between the version it was trained on and the
moment it is applied.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from learning.cost.costs import Cost
from learning.federated.aggregation import ServerOptimiser, Staleness
from sim.kernel.learner import NullLearner
from sim.kernel.server import Server
from sim.kernel.work import Payload, Task, Work
from sim.methods.federated_peft.learner import FedAsyncLearner
from sim.methods.federated_peft.shared import FederatedPeft, PeftSettings
from sim.scenario.settings import OnlyFor

if TYPE_CHECKING:
    from sim.simulation import Simulation


class FedAsync(FederatedPeft):
    """Asynchronous federated PEFT: every answer (fedasync) or every K answers (fedbuff) make a new
    model.
    """

    class Config(PeftSettings):
        """Settings of asynchronous federated PEFT."""

        only_for: ClassVar[OnlyFor] = {
            **dict.fromkeys(
                ("mixing", "staleness"), ("fedasync", lambda settings: settings.kind == "fedasync")
            ),
            **dict.fromkeys(
                ("buffer", "server_optimiser"),
                ("fedbuff", lambda settings: settings.kind == "fedbuff"),
            ),
        }
        kind: Literal["fedasync", "fedbuff"]
        peft: Literal["lora", "adapter", "bitfit", "full", "head"] = "lora"
        answers: int = Field(1000, ge=1)
        """Answers of devices to take in, over the whole run (FedPETuning's 100 rounds of 10)."""
        concurrency: float = Field(0.1, gt=0, le=1)
        """Share of the fleet that works at any time."""
        mixing: float = Field(0.6, gt=0, le=1)
        """FedAsync's alpha: the weight of a fresh answer (ours: the paper leaves it to tuning)."""
        staleness: Staleness = Staleness()
        """FedAsync's factor for stale answers."""
        buffer: int = Field(10, ge=1)
        """FedBuff's K."""
        server_optimiser: ServerOptimiser = ServerOptimiser()
        """FedBuff's step on the mean of the buffer."""
        evaluate_every: int = Field(10, ge=1)

        @model_validator(mode="after")
        def _the_buffer_can_fill(self) -> FedAsync.Config:
            if self.kind == "fedbuff" and self.buffer > self.answers:
                raise ValueError(
                    f"buffer: an update takes {self.buffer} answers, but the run takes in "
                    f"{self.answers} in all (`answers`)"
                )
            return self

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, config.peft, sim)
        self.learner = (
            NullLearner() if sim.dry else FedAsyncLearner(sim, config, *self.learner_args)
        )
        self.version, self.training = 0, "train_delta" if config.kind == "fedbuff" else "train"

    def server(self, server: Server) -> Generator:
        """Keep so many devices at work; apply what lands, in its order."""
        busy, taken, buffer = set(), 0, []
        slots = max(1, round(self.config.concurrency * len(self.sim.devices)))
        while (
            taken < self.config.answers and not self.sim.target_reached and self.sim.devices_at_work
        ):
            busy = {device for device in busy if self.sim.is_at_work(device)} - server.take_lost()
            for device in server.free(slots - len(busy), taken, busy):
                server.assign(device, self.task())
                busy.add(device)
            yield from server.wait()
            for payload in server.take():
                busy.discard(payload.sender)
                payload.sender.fared("unused")  # until it is taken out of the buffer
                taken, buffer = taken + 1, [*buffer, payload]
                if len(buffer) >= (self.config.buffer if self.config.kind == "fedbuff" else 1):
                    counted = yield from server.take_in(buffer, self.aggregation(buffer))
                    buffer = []
                    if counted:
                        self.version += 1
                        self.sim.after_update(self.learner, None, taken)
        yield from server.dismiss()
        self.sim.end_training(self.learner)

    def task(self) -> Task:
        """The present model, to be worked on without any round to wait for."""
        closed = self.sim.env.event()
        closed.succeed()
        return Task(self.version, self.learner.state, closed)

    def aggregation(self, buffer: list[Payload]) -> Work:
        """Mixing or stepping; the staleness of each answer is noted as it is applied."""
        stale = [self.version - payload.version for payload in buffer]
        for payload, staleness in zip(buffer, stale, strict=True):
            self.sim.recorder.metric(
                self.sim.env.now, "staleness", staleness, payload.sender.member.device
            )
        numbers = sum(payload.nbytes / 4 for payload in buffer)
        parts = ([p.sender.backbone for p in buffer], [p.data for p in buffer], stale)
        return self.learner.work(Cost(4 * numbers, 8 * numbers), "apply", *parts)
