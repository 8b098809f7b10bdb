"""What the federated PEFT methods share: a device downloads the trainable part, trains it on its
own data and sends it back.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from devices import compute
from inputs.units import Seconds, format_seconds
from learning.backbones.catalogue import BackboneSpec
from learning.backbones.language_head import output_embedding
from learning.codecs import states
from learning.codecs.chain import Chain, Wire, chain_of
from learning.codecs.states import require_by_shape
from learning.cost.costs import Cost, TrainingArchitecture
from learning.cost.count_training import training_architecture
from learning.federated.local_training import LocalTraining
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import only
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.federated_peft.client_updates import (
    changed,
    changed_and_lost,
    locally_trained,
)
from sim.methods.federated_peft.learner import FederatedLearner, RoundLearner
from sim.methods.protocols import ServerDriven, SynchronousRounds, mean_and_step
from sim.methods.responses import vocabularies, with_words
from sim.methods.trained import Head, OptimiserSettings, TrainableSettings
from sim.methods.wires import sent_width
from sim.scenario.settings import OnlyFor, Responses

EXACT = Chain("float32")
KNOWN_COSTS = 4_096  # of local training, by the texts' lengths

LEARNING_RATES = {
    "lora": 5e-3,
    "adapter": 1e-3,
    "bitfit": 5e-3,
    "full": 5e-5,
    "head": 5e-3,
}  # FedPETuning's for MRPC


class PeftSettings(OptimiserSettings, TrainableSettings):
    """What is trained on a device, and how."""

    responses: ClassVar[Responses] = "also"
    local_epochs: int = Field(1, ge=1)
    device_batch: int = Field(32, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    """Default FedPETuning's: LoRA 5e-3, adapter 1e-3, BitFit 5e-3, full 5e-5."""
    schedule: Literal["linear", "constant"] = "constant"
    """The learning rate within a round: decaying linearly to zero (FedPETuning), or constant."""
    weight_decay: float = Field(0.0, ge=0)
    proximal_mu: float = Field(0.0, ge=0)
    """FedProx's mu."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In training, wherever the backbone has any, and of the head's inputs (FedPETuning); 0:
    none.
    """
    rank: int = Field(8, ge=1)
    alpha: float = Field(8, gt=0)
    bottleneck: int = Field(16, ge=1)
    head: Head = "dense"
    """Trained and sent with the rest: RoBERTa's (a square map, tanh, a linear map), as in
    FedPETuning, or one linear map.
    """
    readout: Literal["first", "last", "mean"] = "mean"
    gradient_checkpointing: bool = False
    evaluate_every: int = Field(5, ge=1)
    """Server updates between two evaluations."""


class SendsChanges(PeftSettings):
    """Settings of a method whose devices may send how they have changed the model by a codec."""

    only_for: ClassVar[OnlyFor] = {
        "error_feedback": (
            "a `wire` that loses something",
            lambda s: s.chain.number != "float32" or s.chain.top is not None,
        )
    }
    wire: Wire = ("float32",)
    """How a device's change of the model is sent: a number format or a list with one, as [top-0.1,
    int8]. float32 sends what it has trained, as it is.
    """
    error_feedback: bool = False
    """A device adds what its last change lost on the wire to its next one."""
    wire_down: Wire = ("float32",)
    """How the server's model is sent to devices: a number format. They train, and send the change
    of, what they got.
    """

    @property
    def chain(self) -> Chain:
        """The wire, read."""
        return chain_of(self.wire)

    @property
    def chain_down(self) -> Chain:
        """The wire down, read."""
        return chain_of(self.wire_down)

    @model_validator(mode="after")
    def _changes_have_no_axes(self) -> Self:
        require_by_shape(self.chain, "a change of a model is sent")
        require_by_shape(self.chain_down, "a model is sent")
        if self.chain_down.top is not None:
            raise ValueError("wire_down: a model is sent whole: leave top-K out")
        return self


class RoundSettings(PeftSettings):
    """What is trained, and how synchronous rounds go."""

    only_for: ClassVar[OnlyFor] = {
        "over_selection": ("`participation` below 1", lambda s: s.participation < 1)
    }
    rounds: int = Field(100, ge=1)
    participation: float = Field(0.1, gt=0, le=1)
    """Share of the fleet that answers in a round."""
    over_selection: float = Field(1.0, ge=1)
    """Ask so many times the devices that are needed; the last ones are told that they are late."""
    deadline: Seconds | None = None
    """End a round after this time, with whatever has come."""
    weigh_by_samples: bool = False
    """Weigh devices by their number of samples (McMahan et al.) instead of equally (FedPETuning).
    """


class FederatedPeft(ServerDriven):
    """The devices' side of federated PEFT, synchronous or not; a method adds the server's and says
    what learns (`new_learner`).
    """

    learner: FederatedLearner

    @property
    def client_update(self) -> Callable[..., Any]:
        """(client, state, settings, seed) -> what the device sends, a pure function."""
        return locally_trained

    def __init__(self, config: PeftSettings, world: World) -> None:
        self.config, self.world, self.peft = config, world, config.trains
        self.settings = LocalTraining(
            epochs=config.local_epochs,
            batch=config.device_batch,
            learning_rate=config.learning_rate or LEARNING_RATES[self.peft],
            weight_decay=config.weight_decay,
            optimiser=config.optimiser,
            proximal_mu=config.proximal_mu,
            momentum=config.momentum,
            schedule=config.schedule,
            dropout=config.dropout,
        )
        self.says = vocabularies(world)
        head = "linear" if self.says else config.head
        self.chain = getattr(config, "chain", EXACT)
        self.chain_down = getattr(config, "chain_down", EXACT)
        # whether devices send changes by a codec, or of what they got by one
        self.sends_coded = (self.chain, self.chain_down) != (EXACT, EXACT)
        sizes = (config.bottleneck, head, config.target_modules, config.adapters)
        self.costs = {}
        for model, device in {self.model_of(device): device for device in world.devices}.items():
            how = (self.peft, world.task.classes, self.rank_of(device), *sizes)
            self.costs[model] = self._counted(world.costing.charged[device.backbone], *how)
            if isinstance(self.chain.top, int):  # of what is charged, and of what learns
                learned = self._counted(world.costing.learned[device.backbone], *how)
                for counted in (self.costs[model], learned):
                    sent_width(self.chain, counted.trainable)
        self.charged = functools.lru_cache(KNOWN_COSTS)(self._charged)  # of tasks alike, once
        self.learner_args = config.classifier
        self.lost: dict[str, Any] = {}  # by device, where errors are fed back
        self.learner = self.new_learner()
        if self.sends_coded and not world.dry:
            self.learner.chain = self.chain

    def _counted(self, spec: BackboneSpec, *how: Any) -> TrainingArchitecture:
        """What training a backbone costs, with its own vocabulary, where it says responses."""
        counted = training_architecture(spec, *how)
        if not self.says:
            return counted
        return counted.with_numbers(output_embedding(spec).numbers, self.peft == "full")

    def new_learner(self) -> FederatedLearner:
        """What learns."""
        return learner_for(self.world, FederatedLearner, *self.learner_args)

    def rank_of(self, device: Device) -> int:
        """The rank of the device's LoRA."""
        return self.config.rank

    def nbytes(self, device: Device) -> int:
        """What a round carries down: the trainable part of the device's model."""
        return self._coded_bytes(device, self.chain_down)

    def sent_bytes(self, device: Device) -> int:
        """What it carries up: the same, or the change of it by a codec."""
        if not self.sends_coded:
            return self.nbytes(device)
        return self._coded_bytes(device, self.chain)

    def _coded_bytes(self, device: Device, chain: Chain) -> int:
        whole = self.costs[self.model_of(device)].trainable_bytes
        return states.nbytes(whole // 4, chain) if self.sends_coded else whole

    @property
    def feeds_back(self) -> bool:
        """Whether devices keep what a change has lost."""
        return self.sends_coded and self.config.error_feedback

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Download, train, upload."""
        yield from device.download(only("parameters", self.nbytes(device)))
        made: Any = yield from device.compute(self.local_training(device, task))
        is_fed_back = self.feeds_back and not self.world.dry
        data, lost = made if is_fed_back else (made, None)
        sent = only("parameters", self.sent_bytes(device))
        answer = device.payload(device.samples, sent, data, task.version)
        yield from device.send(answer)
        if is_fed_back:  # what did not arrive is not what a change has lost
            self.lost[device.id] = lost

    def peak_bytes(self, device: Device) -> int:
        """Of local training on the device's longest batch, with the backbone's weights."""
        return device.held_bytes(
            self.local_training(device, ClientTask(0, None, None)).cost.peak_bytes
        )

    def delivery_bytes(self, device: Device) -> int:
        """The trained part of the device's model, as a broadcast carries it."""
        return self.nbytes(device)

    def local_training(self, device: Device, task: ClientTask) -> Work:
        """The local epochs, real and charged."""
        model = self.model_of(device)
        lengths = self.world.lengths(device, device.samples)
        said = self.world.response_lengths(device, device.samples) if self.says else lengths[:0]
        cost = self.charged(model, device.backbone, tuple(lengths.tolist()), tuple(said.tolist()))
        seed = self.seed(device, task.version)
        how = (model, device.samples, task.model, self.settings, seed)
        if not self.sends_coded:
            return self.learner.work(cost, self.learner.client, self.client_update, *how)
        numbers = self.costs[model].trainable_bytes // 4
        cost += Cost(states.encoding_flop(numbers, self.chain), 8.0 * numbers)
        learn, down = self.learner.work, None if self.chain_down == EXACT else self.chain_down
        if not self.feeds_back:
            return learn(cost, self.learner.client, changed, *how, down)
        cost = dataclasses.replace(cost, peak_bytes=cost.peak_bytes + 4 * numbers)
        more = (down, self.lost.get(device.id), self.chain)
        return learn(cost, self.learner.client, changed_and_lost, *how, *more, results=2)

    def _charged(
        self, model: Any, backbone: str, lengths: tuple[int, ...], said: tuple[int, ...]
    ) -> Cost:
        """What the local epochs on texts of these lengths cost, with so many tokens of each to be
        said, where there are responses.
        """
        counted, epoch = self.costs[model], Cost()
        for start in range(0, len(lengths), self.config.device_batch):
            batch = lengths[start : start + self.config.device_batch]
            tokens = self.world.costing.fixed_tokens or max(batch)
            form = self.config.gradient_checkpointing
            step = counted.step(len(batch), tokens, self.settings.charged_as, form)
            if self.says:
                saved = counted.saved_bytes(len(batch), tokens, form)
                words = sum(said[start : start + self.config.device_batch])
                step = with_words(
                    step, saved, self.says[backbone].training(words, self.peft == "full")
                )
            epoch += step
        epochs = self.config.local_epochs
        peak = epoch.peak_bytes + counted.optimiser_bytes(self.settings.charged_as)
        return Cost(epochs * epoch.flop, epochs * epoch.bytes_moved, peak)

    def mean_cost(self, answers: list[Payload]) -> Cost:
        """Of the server's mean of what these answers are decoded to, and its step."""
        models = [self.model_of(answer.sender) for answer in answers]
        return mean_and_step(sum(self.costs[model].trainable_bytes for model in models))

    def alone_s(self, device: Device) -> float:
        """Nominal seconds of a round of the device when nobody else sends: download, training,
        upload.
        """
        cost = self.local_training(device, ClientTask(0, None, None)).cost
        computing_s = compute.seconds(
            device.profile, device.member.engine, cost.flop, cost.bytes_moved
        )
        # the fewer of both ways' bytes: no deadline is called too short that is not
        nbytes = min(self.nbytes(device), self.sent_bytes(device))
        return computing_s + self.world.network.alone_s(device.id, nbytes)


class SynchronousPeft(SynchronousRounds, FederatedPeft):
    """Rounds of federated PEFT: a cohort trains, the server waits for the slowest and averages."""

    learner: RoundLearner

    def __init__(self, config: RoundSettings, world: World) -> None:
        super().__init__(config, world)
        if config.deadline is not None:
            self.look_at_deadline(config.deadline)

    def look_at_deadline(self, deadline_s: float) -> None:
        """Say beforehand that no device can answer in time, as far as that can be known."""
        fastest_s = min(self.alone_s(device) for device in self.world.devices)
        if deadline_s < fastest_s:
            self.world.remark(
                f"method.deadline: {format_seconds(deadline_s)} is too short for an answer: the "
                f"fastest device, with its link to itself, needs about {format_seconds(fastest_s)}"
            )

    @property
    def asked(self) -> int:
        """More than are wanted, by `over_selection`."""
        return math.ceil(self.wanted * self.config.over_selection)

    def server_round(
        self, server: Server, cohort: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """Ask, collect, average."""
        sent = self.broadcast()
        answers = yield from server.ask(
            cohort, number, sent, min(self.wanted, len(cohort)), self.config.deadline
        )
        return (yield from server.aggregate(answers, self.aggregation(sent, answers)))

    def broadcast(self) -> Any:
        """What the cohort of a round receives: the server's model."""
        return self.learner.state

    def aggregation(self, sent: Any, answers: list[Payload]) -> Work:
        """The server's mean and step: a few passes over the numbers."""
        cost = self.mean_cost(answers)
        weights = [len(p.samples) if self.config.weigh_by_samples else 1.0 for p in answers]
        models, data = self.of_each(answers)
        return self.learner.work(cost, self.learner.aggregate, models, sent, data, weights)
