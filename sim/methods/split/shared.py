"""What methods that split the model share: their settings, a device's round, the server's copies,
what is charged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from learning.backbones.catalogue import config_of, width_of
from learning.codecs.chain import Wire, chain_of
from learning.codecs.states import require_by_shape
from learning.cost.costs import Cost
from learning.cost.count_split import PartArchitecture
from learning.federated.seeds import derived_seed
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import Contents, only
from sim.kernel.server import Server
from sim.kernel.spans import waiting
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.protocols import SynchronousRounds, mean_and_step
from sim.methods.split.charging import Charging
from sim.methods.split.learner import SplitLearner
from sim.methods.trained import HeadSettings, OptimiserSettings
from sim.methods.wires import sent_width
from sim.scenario.settings import Responses


class SplitSettings(OptimiserSettings, HeadSettings):
    """Settings of every method that splits the model between device and server."""

    responses: ClassVar[Responses] = "also"
    participation: float = Field(1.0, gt=0, le=1)
    """Share of the fleet that takes part in a round."""
    local_epochs: int = Field(1, ge=1)
    """Passes of a device over its texts in a round."""
    device_batch: int = Field(16, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    """In training, on both sides, wherever the backbone has any, and of the head's inputs; 0: none.
    """
    wire: Wire = ("float32",)
    """How vectors and their gradients are sent, both ways: a number format, or a list with one, as
    [top-0.5, int8].
    """
    readout: Literal["first", "last", "mean"] = "mean"
    weigh_by_samples: bool = False
    """Weigh devices by their number of samples instead of equally."""
    evaluate_every: int = Field(1, ge=1)
    """Rounds between two evaluations."""

    @model_validator(mode="after")
    def _vectors_have_no_axes(self) -> Self:
        require_by_shape(chain_of(self.wire), "a batch's vectors are sent")
        return self


class SplitTraining(SynchronousRounds):
    """The devices' side of split learning and what the server keeps; a method adds `batch`,
    `learner_class` and its parts.
    """

    learner: SplitLearner

    @property
    def learner_class(self) -> type[SplitLearner]:
        """What learns."""
        raise NotImplementedError

    def __init__(
        self,
        config: Any,
        world: World,
        parts: Mapping[str, tuple[PartArchitecture, ...]],
        in_parallel: bool,
        learning_rate: float,
        layers: int,
        trains: str,
        *sizes: Any,
    ) -> None:
        self.config, self.world, self.in_parallel = config, world, in_parallel
        chain, own = chain_of(config.wire), self.learner_class.own
        for spec in (*world.costing.charged.values(), *world.costing.learned.values()):
            sent_width(chain, width_of(config_of(spec)))
        sent = (config.charged_as, chain)
        self.charging = Charging(world, parts, own, *sent, trains_words=trains == "full")
        step = (config.optimiser, learning_rate, config.weight_decay, config.momentum)
        how = (*step, config.dropout, layers, trains)
        self.learner = learner_for(world, self.learner_class, *how, *sizes)
        if not world.dry:
            self.learner.by = chain
        self.copies: dict[
            str, Any
        ] = {}  # what the server trains for each device, or for all of them
        self.turns = 0

    def peak_bytes(self, device: Device) -> int:
        """Of the device's own parts, trained on its longest batch."""
        own = self.charging.own
        batches = self.texts(device, ClientTask(0, None, None))
        peaks = [
            self.charging.backward(device, samples, part).peak_bytes
            for samples in batches
            for part in own
        ]
        return device.held_bytes(max(peaks, default=0))

    def delivery_bytes(self, device: Device) -> int:
        """The trained numbers of both sides, to predict without the server."""
        return self.charging.device_bytes(device) + self.charging.server_bytes(device)

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Download the device's parts, train them batch by batch together with the server, and send
        them back.
        """
        own = only("parameters", self.charging.device_bytes(device))
        yield from device.download(own)
        slot = [task.model]
        for number, samples in enumerate(self.texts(device, task)):
            seed = derived_seed(self.seed(device, task.version), number)
            slot[:] = [(yield from self.batch(device, task, samples, seed, slot))]
        (held,) = slot
        data = None if held is None else self.learner.answer(held)
        del slot, held  # what is on its way is all that the device has left
        if device.id in self.copies:
            self.copies[device.id] = self.copies[device.id]._replace(moments=None)
        yield from device.send(device.payload(device.samples, own, data, task.version))

    def batch(
        self, device: Device, task: ClientTask, samples: np.ndarray, seed: int, slot: list
    ) -> Generator[Any, Any, Any]:
        """A step of the device and the server on a batch; returns what the device then holds, in
        place of what is in the slot. What is random in it follows from the seed.
        """
        raise NotImplementedError

    def texts(self, device: Device, task: ClientTask) -> list[np.ndarray]:
        """The batches of a round: the device's texts, shuffled anew every epoch."""
        return self.batches(device, task, self.steps(device, self.config.local_epochs))

    def exchange(
        self, device: Device, task: ClientTask, samples: np.ndarray, held: Contents, data: object
    ) -> Generator[Any, Any, Payload]:
        """Upload what the server works on at once, while the device waits for it."""
        payload = device.payload(samples, held, data, task.version)
        return (yield from device.send(payload, into_inbox=False))

    # --- what the server does for a device

    def served(
        self,
        device: Device,
        task: ClientTask,
        payload: Payload,
        cost: Cost,
        verb: Callable[..., object],
        *args: Any,
    ) -> Generator[Any, Any, Any]:
        """The server works on what has just come with what it trains together with this device; the
        device waits.
        """
        copy = self.copies.get(device.id if self.in_parallel else "all", task.model)
        work = self.learner.work(cost, verb, *args, copy, payload.data)
        with waiting(device):
            return (yield from self.world.server.compute(work, [payload.number]))

    def trained(
        self, device: Device, task: ClientTask, payload: Payload, *what: Any
    ) -> Generator[Any, Any, Any]:
        """The same where the server makes a step: what it trained is kept; returns the gradient for
        the device.
        """
        return self.keep(device, (yield from self.served(device, task, payload, *what)))

    def keep(self, device: Device, done: tuple[Any, Any] | None) -> Any:
        """Keep what the server trained; returns what it has for the device."""
        if done is None:
            return None
        gradient, self.copies[device.id if self.in_parallel else "all"] = done
        return gradient

    def server_round(
        self, server: Server, asked: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: all clients at once or one by one, then the means."""
        model = None if self.world.dry else self.learner.held
        answers: list[Payload] = []
        turns = [asked]
        if self.in_parallel:
            self.copies = {}
        else:
            turns = [
                [asked[i]]
                for i in self.world.streams.rng("server/turns", number).permutation(len(asked))
            ]
        for devices in turns:
            self.turns += 1
            answers += yield from server.ask(devices, self.turns, model)
        landed = [p.number for p in answers]
        answers.sort(key=lambda p: p.sender.id)  # a sum's last bit must not tell who was faster
        return (yield from server.aggregate(answers, self.aggregation(answers), landed))

    def aggregation(self, answers: list[Payload]) -> Work:
        """The means of what devices sent and, with clients in parallel, of the server's copies for
        them.
        """
        weights = [len(p.samples) if self.config.weigh_by_samples else 1.0 for p in answers]
        nbytes = sum(
            p.nbytes + self.in_parallel * self.charging.server_bytes(p.sender) for p in answers
        )
        names, data = self.of_each(answers)
        copies: list[Any] = (
            [self.copies.get(p.sender.id) for p in answers] if self.in_parallel else []
        )
        parts = (names, data, weights, copies, self.copies.get("all"))
        return self.learner.work(mean_and_step(nbytes), self.learner.aggregate, *parts)
