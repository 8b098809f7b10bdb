"""Asynchronous federated PEFT: FedAsync (Xie et al. 2019) mixes every answer in as it lands,
FedBuff (Nguyen et al., AISTATS
2022) steps on every K of them. Nobody waits: a device that answers makes room for the next.

An answer's staleness is the number of server updates between the version it was trained on and the
moment it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from learning.federated.aggregation import ServerOptimiser, Staleness
from learning.federated.local_training import LocalTraining
from sim.kernel.device import Payload
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.federated_peft.client_updates import Client, locally_trained
from sim.methods.federated_peft.shared import FederatedPeft, SendsChanges
from sim.scenario.settings import OnlyFor

if TYPE_CHECKING:
    from learning.federated.aggregation import State


def local_delta(client: Client, state: State, settings: LocalTraining, seed: int) -> State:
    """FedBuff's client update: what local epochs change of the state that came."""
    from learning.federated.aggregation import model_delta

    return model_delta(locally_trained(client, state, settings, seed), state)


def mixed_in(
    state: State, memory: Any, answers: Sequence[State], kept: Sequence[int], mixing: float
) -> tuple[State, Any]:
    """FedAsync's server update: the answer takes so large a share of the model."""
    from learning.federated.aggregation import fed_async

    return fed_async(state, answers[0], mixing), memory


def buffered(
    state: State,
    moments: Any,
    answers: Sequence[State],
    kept: Sequence[int],
    optimiser: ServerOptimiser,
    stalenesses: Sequence[int],
) -> tuple[State, Any]:
    """FedBuff's server update: the optimiser's step along the discounted mean of the buffer."""
    from learning.federated.aggregation import fed_buff, server_step

    delta = fed_buff(answers, [stalenesses[k] for k in kept])
    return server_step(optimiser, state, delta, moments)


class FedAsync(FederatedPeft):
    """Asynchronous federated PEFT: no device waits for another.

    fedasync: Asynchronous federated PEFT: every answer is mixed into the model as it lands.

    fedbuff: Asynchronous federated PEFT: the server steps on every K answers.
    """

    class Config(SendsChanges):
        """Settings of asynchronous federated PEFT."""

        only_for: ClassVar[OnlyFor] = {
            **dict.fromkeys(
                ("mixing", "staleness"), ("fedasync", lambda settings: settings.kind == "fedasync")
            ),
            **dict.fromkeys(
                ("buffer", "server_optimiser", "wire", "wire_down", "error_feedback"),
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

    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.version = self.taken = 0  # answers taken in,
        self.buffer: list[Payload] = []  # and those of them that are in no update yet

    @property
    def client_update(self) -> Callable[..., State]:
        """FedBuff's devices send what they changed."""
        return local_delta if self.config.kind == "fedbuff" else locally_trained

    def server(self, server: Server) -> Generator:
        """Take in answers until there are enough, the target is reached or nobody is left."""
        try:
            yield from self.take_in(server)
        finally:  # whatever ends it
            if self.buffer and self.config.kind == "fedbuff":
                self.world.remark(
                    f"{len(self.buffer)} of {self.taken} answers entered no update: an update "
                    f"takes {self.config.buffer} (`buffer`)"
                )
        yield from server.dismiss()
        self.world.end_training(self.learner)

    def take_in(self, server: Server) -> Generator:
        """Keep so many devices at work; apply what lands, in its order."""
        slots = max(1, round(self.config.concurrency * len(self.world.devices)))
        while (
            self.taken < self.config.answers
            and not self.world.target_reached
            and self.world.devices_at_work
        ):
            server.roster.release(server.take_dropped())
            asked = server.free(slots - len(server.roster.busy), self.taken)
            for device in asked:
                server.assign(device, self.task())
            server.roster.occupy(asked)
            yield from server.wait()
            for payload in server.take():
                server.roster.release([payload.sender])
                payload.sender.note_outcome("unused")  # until it is taken out of the buffer
                self.taken += 1
                self.buffer.append(payload)
                if len(self.buffer) >= (self.config.buffer if self.config.kind == "fedbuff" else 1):
                    counted = yield from server.aggregate(
                        self.buffer, self.aggregation(self.buffer)
                    )
                    self.buffer = []
                    if counted:
                        self.version += 1
                        self.world.after_update(self.learner, None, self.taken)

    def task(self) -> ClientTask:
        """The present model, to be worked on without any round to wait for."""
        return ClientTask(self.version, self.learner.state)

    def aggregation(self, buffer: list[Payload]) -> Work:
        """Mixing or stepping; the staleness of each answer is noted as it is applied."""
        stale = [self.version - payload.version for payload in buffer]
        for payload, staleness in zip(buffer, stale, strict=True):
            self.world.recorder.metric(
                self.world.env.now, "staleness", staleness, payload.sender.member.device
            )
        c, answers = self.config, self.of_each(buffer)
        how: tuple[Any, ...] = (buffered, *answers, c.server_optimiser, stale)
        if c.kind == "fedasync":
            how = (mixed_in, *answers, c.mixing * c.staleness.weight(stale[0]))
        cost = self.mean_cost(buffer)
        return self.learner.work(cost, self.learner.serve, *how)
