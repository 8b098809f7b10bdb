"""FwdLLM (USENIX ATC 2024): devices probe the loss along random directions by forward passes; the
server makes the step.

A round goes over its devices' batches. For each, every device that has one left probes the loss of
it along a direction of its own; the server asks for more directions on the same batches until the
gradients that came agree well enough (the variance gate), then makes a step. After every other
batch, directions are put together tensor by tensor of those of ten times as many that are nearest
to the last gradient. This and the defaults are those of the published code
(docs/forward_only_and_split.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from learning.backbones.catalogue import layer_of
from learning.cost.costs import Cost
from learning.federated import forward_gradient as fg
from sim.kernel.device import Device, Payload
from sim.kernel.learned import Learned
from sim.kernel.learner import learner_for
from sim.kernel.ledger import Contents, Item, only
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.federated_peft.learner import verdict_on
from sim.methods.forward_only.learner import ForwardClient, RecallingLearner
from sim.methods.forward_only.shared import ForwardOnly, ForwardOnlySettings, moves
from sim.methods.protocols import mean_and_step

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State


def client_update(
    client: ForwardClient,
    state: State,
    hand: Hand,
    numbers: Mapping[str, Sequence[int]] | None,
    h: float,
    shared: bool,
) -> State | np.ndarray:
    """The mean of s v over the device's directions, s the derivative of its batch's loss; where the
    server knows the directions, the derivatives alone.
    """
    own = client.part_of(state)
    directions = hand.directions(own, numbers)
    slopes = fg.slopes_along(client.losses, own, directions, h)
    return slopes if shared else fg.fwdllm_gradient(slopes, directions)


def server_update(
    state: State, gradients: Sequence[State], learning_rate: float
) -> tuple[State, State]:
    """One step along the mean gradient, and that gradient, zero where nobody has a tensor."""
    names = {name for gradient in gradients for name in gradient}
    part = {name: tensor for name, tensor in state.items() if name in names}
    new, mean = fg.fwdllm_step(part, gradients, learning_rate)
    state = {**state, **new}
    return state, {name: mean.get(name, tensor * 0) for name, tensor in state.items()}


class Hand(NamedTuple):
    """Which directions of a pool are a device's: `each` device has so many, in their places."""

    pool: int
    place: int
    each: int

    def directions(
        self, own: State, numbers: Mapping[str, Sequence[int]] | None
    ) -> list[dict[str, Tensor]]:
        """These directions over the device's tensors, of the chosen numbers of each tensor, or of
        the pool as it was drawn.
        """
        first = self.place * self.each
        mine = range(first, first + self.each)
        if numbers is None:
            return [fg.candidate(own, self.pool, dict.fromkeys(own, at)) for at in mine]
        return [fg.candidate(own, self.pool, {n: numbers[n][at] for n in own}) for at in mine]


class Asked(NamedTuple):
    """What devices are asked for: a server's model and directions for one of a round's batches."""

    state: Any
    numbers: Any
    hands: Mapping[str, Hand]
    number: int
    """The round's."""
    batch: int
    is_new: bool
    """Whether the devices do not have the model yet."""
    is_guided: bool
    """Whether the last gradient has chosen the directions, tensor by tensor."""


class FwdLLM(ForwardOnly):
    """Forward gradients with a variance gate."""

    learner: FwdLLMLearner
    requests = 0  # how many times, over all rounds
    is_guided = False  # whether the last gradient chooses directions

    class Config(ForwardOnlySettings):
        """Settings of FwdLLM."""

        kind: Literal["fwdllm"]
        peft: Literal["lora", "adapter", "bitfit"] = "bitfit"
        rounds: int = Field(3000, ge=1)
        """A round goes over all texts of its devices once, with a step of the server's for each
        batch.
        """
        learning_rate: float = Field(0.01, gt=0)
        warm_up: float = Field(0.06, ge=0, le=1)
        """Share of the rounds in which the learning rate rises; then it falls in a line to 0."""
        perturbations: int = Field(1, ge=1)
        """Directions that a device probes each time it is asked, on one batch."""
        h: float = Field(0.01, gt=0)
        """Step of the central difference."""
        candidates: int = Field(10, ge=1)
        """Directions drawn for each one that is probed, where the last gradient chooses."""
        guided: Literal["alternately", "always"] = "alternately"
        """When the last gradient chooses: after a round's batches of odd number, as in the
        published code, or after every one.
        """
        variance_threshold: float | None = Field(0.2, gt=0)
        """Ask again, with the same batches and new directions, while the halves of the received
        gradients of one tensor of the first layer differ more; null: never.
        """
        asks: int = Field(1, ge=1)
        """Times that a step asks at least; in a dry run, which cannot know gradients, exactly."""
        most_asks: int = Field(10, ge=1)
        """Times that a step asks at most."""
        shared_seeds: bool = False
        """Upload 4 bytes a direction instead of the gradient, which the server then makes itself.
        """

    def new_learner(self) -> FwdLLMLearner:
        """Gradients from devices (`client_update`), `server_update` at the server."""
        peft = self.config.classifier
        return learner_for(self.world, FwdLLMLearner, self.config.shared_seeds, *peft)

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Download directions (and the model, where it is new), probe them, upload the gradient."""
        asked: Asked = task.model
        counted, directions = self.costs[device.backbone], self.config.perturbations
        picks = directions * (len(counted.tensors) if asked.is_guided else 1)
        model = asked.is_new * counted.nbytes()
        yield from device.download(Contents(Item("seed", 8 + 4 * picks), Item("parameters", model)))
        data = yield from device.compute(self.probing(device, asked))
        samples = self.batch(device, asked.batch)
        made = only("gradient", counted.nbytes())
        held = only("derivative", 4 * directions) if self.config.shared_seeds else made
        yield from device.send(device.payload(samples, held, data, task.version))

    def batch(self, device: Device, batch: int) -> np.ndarray:
        """One batch of a round: the device's texts in their order, as in the published code."""
        start = batch * self.config.device_batch
        return device.samples[start : start + self.config.device_batch]

    def peak_bytes(self, device: Device) -> int:
        """Of the probes of its longest batch, with the backbone's weights."""
        return device.held_bytes(
            max(
                self.probing(device, Asked(None, None, {}, 0, batch, True, False)).cost.peak_bytes
                for batch in range(self.steps(device, epochs=1))
            )
        )

    def probing(self, device: Device, asked: Asked) -> Work:
        """Two forward passes for each direction; theta, v, theta + h v and the gradient are in
        memory.
        """
        counted, c = self.costs[device.backbone], self.config
        batches = [self.batch(device, asked.batch)]
        kept = (4 - c.shared_seeds) * counted.nbytes()
        cost = self.passes(device, batches, counted.ahead, 2 * c.perturbations, kept)
        # ahead, behind and into the gradient
        cost += moves(c.perturbations * (3 - c.shared_seeds), counted.nbytes())
        how = (asked.state, asked.hands.get(device.id), asked.numbers, c.h, c.shared_seeds)
        return self.learner.work(
            cost, self.learner.client, client_update, device.backbone, batches, *how
        )

    def server_round(
        self, server: Server, devices: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: a step for each batch of the devices', with those that have one left."""
        counted: list[Payload] = []
        for batch in range(max(self.steps(device, epochs=1) for device in devices)):
            asked = [device for device in devices if batch < self.steps(device, epochs=1)]
            came = yield from self.server_step(server, asked, number, batch)
            self.is_guided = bool(came) and (self.config.guided == "always" or batch % 2 == 0)
            counted += came
        return counted

    def server_step(
        self, server: Server, devices: list[Device], number: int, batch: int
    ) -> Generator[Any, Any, list[Payload]]:
        """Ask the same devices until the gradients that came agree, then make one step along their
        mean.
        """
        gradients: Learned | None = None
        payloads: list[Payload] = []
        sent: list[tuple[str, Any, Hand]] = []
        left_out: list[int] = []
        for ask in range(max(self.config.asks, self.config.most_asks)):
            if not (devices := [device for device in devices if not device.has_ended]):
                break
            pool = self.world.streams.seed64("server/candidates", self.requests)
            hands = {
                device.id: Hand(pool, place, self.config.perturbations)
                for place, device in enumerate(devices)
            }
            numbers = None
            if self.is_guided:
                numbers = yield from server.compute(self.choosing(devices, pool), kind="choose")
            what = (self.learner.state, numbers, hands, number, batch, ask == 0, self.is_guided)
            came = yield from server.ask(devices, self.requests, Asked(*what))
            self.requests += 1
            payloads += came
            sent += [(p.sender.backbone, numbers, hands[p.sender.id]) for p in came]
            if not payloads:
                continue  # nobody answered
            gathered = yield from server.compute(
                self.gathering(payloads, sent, came), [p.number for p in came], "gather"
            )
            gradients, needs_more, left_out = gathered or (None, False, [])
            if ask + 1 >= self.config.asks and not needs_more:
                break
        counted = server.counted(payloads, left_out)
        if counted:
            yield from server.compute(self.step(counted, gradients, number), kind="aggregate")
        return counted

    def step(self, payloads: list[Payload], gradients: Any, number: int) -> Work:
        """One step along the mean gradient: a few passes over the numbers."""
        c = self.config
        nbytes = sum(self.costs[p.sender.backbone].nbytes() for p in payloads)
        rate = fg.warm_up_then_linear(
            number, c.learning_rate, math.ceil(c.warm_up * c.rounds), c.rounds
        )
        return self.learner.work(mean_and_step(nbytes), self.learner.step, gradients, rate)

    def choosing(self, devices: list[Device], pool: int) -> Work:
        """Draw candidates and take their cosines: a draw and six FLOP a number of each."""
        count = self.config.perturbations * len(devices)
        numbers = max(self.costs[device.backbone].nbytes() / 4 for device in devices)
        drawn = self.config.candidates * count * numbers
        how = (pool, count, self.config.candidates)
        return self.learner.work(Cost(7 * drawn, 8 * drawn), self.learner.choose, *how)

    def gathering(
        self, payloads: list[Payload], sent: list[tuple[str, Any, Hand]], came: list[Payload]
    ) -> Work:
        """Unpack what came (shared seeds: make the gradients), and compare the halves of all."""
        nbytes = sum(self.costs[p.sender.backbone].nbytes() for p in came)
        cost = (
            moves(self.config.perturbations, nbytes)
            if self.config.shared_seeds
            else Cost(nbytes / 4, 2 * nbytes)
        )
        answers: list[Any] = [p.data for p in payloads]
        threshold: float | None = self.config.variance_threshold
        return self.learner.work(cost, self.learner.gather, list(sent), answers, threshold)


class FwdLLMLearner(RecallingLearner):
    """Directions chosen by the last global gradient; gradients gathered until they agree."""

    gradient: Learned | None = None

    def __init__(self, world: World, shared_seeds: bool, *model: Any) -> None:
        super().__init__(world, *model)
        self._shared_seeds = shared_seeds
        # published: one tensor of the first layer, which backbones of any depth have
        in_first = (name for name in self.initial if layer_of(name) == 0)
        self.watched = next(in_first, next(iter(self.initial)))

    def choose(self, pool: int, count: int, candidates: int) -> Learned:
        """The numbers of so many directions of each tensor, nearest to the last gradient first."""
        assert self.gradient is not None  # whoever asks has made a step
        return self.world.host.learn(fg.nearest_candidates, self.gradient, pool, count, candidates)

    def received(
        self, state: State, sent: tuple[str, Any, Hand], data: bytes
    ) -> list[dict[str, Tensor]]:
        """A device's gradient, made of its derivatives where the seeds are shared."""
        backbone, numbers, hand = sent
        if not self._shared_seeds:
            return super().received(state, backbone, data)
        directions = hand.directions(self.part_of(backbone, state), numbers)
        return [fg.fwdllm_gradient(np.frombuffer(data, "<f4").tolist(), directions)]

    def gather(
        self,
        sent: Sequence[tuple[str, Any, Hand]],
        answers: Sequence[Learned],
        threshold: float | None,
    ) -> Callable[[], tuple[Learned, bool, list[int]]]:
        """Gives the gradients that came, whether they disagree so much that more are needed, and
        the places of those that are not finite, which are left out.
        """
        host, came = self.world.host, (self.state, sent, answers)
        gradients, left_out = host.learn(self._gathered, *came, stored=(True, True))
        watched = (gradients, self.watched, threshold)
        return lambda: (
            gradients,
            threshold is not None and host.compute_now(fg.needs_more, *watched),
            host.value_of(left_out),
        )

    def _gathered(self, state: State, sent, answers) -> tuple[list[State], list[int]]:
        gradients, _, left_out = self.finite(state, sent, answers)
        return gradients, left_out

    def step(self, gradients: Learned, learning_rate: float) -> Callable[[], list[int]]:
        """Begin a server update; its gradient is remembered."""
        now = (self.state, gradients, learning_rate)
        self.state, self.gradient, verdict = self.world.host.learn(
            self._stepped, *now, stored=(True, True, True)
        )
        return self.judged(verdict)

    def _stepped(self, *now: Any) -> tuple:
        state, gradient = server_update(*now)
        return state, gradient, verdict_on(state, [])
