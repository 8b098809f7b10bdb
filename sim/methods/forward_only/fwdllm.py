"""FwdLLM (USENIX ATC 2024): devices probe the loss along random directions by forward passes; the
server makes the step.

A round asks the same devices for further directions until the gradients that came agree well enough
(the variance gate). The server chooses directions by their seeds, of ten times as many those
nearest to its last gradient. Defaults are the published ones (docs/forward_only_and_split.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learning.cost.costs import Cost
from learning.federated import forward_gradient as fg
from learning.federated.aggregation import restrict
from sim.kernel.device import Device, Payload
from sim.kernel.learned import Learned
from sim.kernel.learner import learner_for
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.federated_peft.learner import verdict_on
from sim.methods.forward_only.learner import ForwardClient, ForwardLearner
from sim.methods.forward_only.shared import ForwardOnly, ForwardOnlySettings, moves
from sim.methods.protocols import mean_and_step

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State


def client_update(
    client: ForwardClient,
    state: State,
    chosen: Sequence[Sequence[int]],
    place: int,
    h: float,
    shared: bool,
) -> State | list[fg.Probe]:
    """The gradient along the directions whose seeds were chosen for the device's place: the mean of
    s v, s over all batches. Where the seeds are shared, the probes (seed, s) stand for it.
    """
    own, seeds = client.part_of(state), chosen[place]
    slopes = [probe.derivative for probe in fg.fwdllm_probes(client.losses, own, seeds, h)]
    means = np.array(slopes).reshape(len(seeds), -1).mean(axis=1).astype(np.float32)
    probes = [fg.Probe(seed, float(mean)) for seed, mean in zip(seeds, means, strict=True)]
    return probes if shared else fg.gradient_of(probes, own)


def server_update(
    state: State, gradients: Sequence[State], learning_rate: float
) -> tuple[State, State]:
    """One step along the mean gradient, and that gradient, zero where nobody has a tensor."""
    names = {name for gradient in gradients for name in gradient}
    part = {name: tensor for name, tensor in state.items() if name in names}
    new, mean = fg.fwdllm_step(part, gradients, learning_rate)
    state = {**state, **new}
    return state, {name: mean.get(name, tensor * 0) for name, tensor in state.items()}


class FwdLLM(ForwardOnly):
    """Forward gradients with a variance gate."""

    learner: FwdLLMLearner
    requests = 0  # how many times, over all rounds

    class Config(ForwardOnlySettings):
        """Settings of FwdLLM."""

        kind: Literal["fwdllm"]
        peft: Literal["lora", "adapter", "bitfit"] = "bitfit"
        rounds: int = Field(3000, ge=1)
        learning_rate: float = Field(0.01, gt=0)
        warm_up: float = Field(0.1, ge=0, le=1)
        """Share of the rounds in which the learning rate rises; then it falls in a line to 0."""
        perturbations: int = Field(1, ge=1)
        """Directions that a device probes each time it is asked, on all of its texts."""
        h: float = Field(0.01, gt=0)
        """Step of the central difference."""
        candidates: int = Field(10, ge=1)
        """Directions drawn for each one that is probed, from the second round on."""
        variance_threshold: float | None = Field(0.2, gt=0)
        """Ask again while the halves of the received gradients of the head differ more; null:
        never.
        """
        asks: int = Field(1, ge=1)
        """Times that a round asks at least; in a dry run, which cannot know gradients, exactly."""
        most_asks: int = Field(10, ge=1)
        """Times that a round asks at most."""
        shared_seeds: bool = False
        """Upload 12 bytes a direction instead of the gradient, which the server then makes itself.
        """

    def new_learner(self) -> FwdLLMLearner:
        """Gradients from devices (`client_update`), `server_update` at the server."""
        peft = self.config.classifier("linear")
        return learner_for(self.world, FwdLLMLearner, self.config.shared_seeds, *peft)

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Download directions (and the model, where it is new), probe them, upload the gradient."""
        state, chosen, places, is_new = task.model
        nbytes = self.costs[device.backbone].nbytes()
        directions = self.config.perturbations
        yield from device.download(8 * directions + is_new * nbytes)
        data = yield from device.compute(
            self.probing(device, task, state, chosen, places[device.id])
        )
        payload = device.payload(
            device.samples,
            fg.PROBE_BYTES * directions if self.config.shared_seeds else nbytes,
            data,
            task.version,
        )
        yield from device.send(payload)

    def peak_bytes(self, device: Device) -> int:
        """Of a round's probes, with the backbone's weights."""
        return device.held_bytes(
            self.probing(device, ClientTask(0, None, None), None, None, 0).cost.peak_bytes
        )

    def probing(
        self, device: Device, task: ClientTask, state: Any, chosen: Any, place: int
    ) -> Work:
        """Two forward passes for each direction and batch; theta, v, theta + h v and the gradient
        are in memory.
        """
        counted, c = self.costs[device.backbone], self.config
        batches = self.batches(device, task, self.steps(device, epochs=1))
        cost = self.passes(
            device,
            batches,
            counted.ahead,
            2 * c.perturbations,
            (4 - c.shared_seeds) * counted.nbytes(),
        )
        moved = 2 * len(batches) + (
            not c.shared_seeds
        )  # ahead and behind of each batch, and into the gradient
        cost += moves(c.perturbations * moved, counted.nbytes())
        how = (state, chosen, place, c.h, c.shared_seeds)
        return self.learner.work(
            cost, self.learner.client, client_update, device.backbone, batches, *how
        )

    def server_round(
        self, server: Server, devices: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: ask the same devices until the gradients that came agree, then make one step
        along their mean.
        """
        gradients: Learned | None = None
        payloads: list[Payload] = []
        left_out: list[int] = []
        for ask in range(max(self.config.asks, self.config.most_asks)):
            if not (devices := [device for device in devices if self.world.is_at_work(device)]):
                break
            chosen = yield from server.compute(self.choosing(devices, number), kind="choose")
            places = {device.id: place for place, device in enumerate(devices)}
            came = yield from server.ask(
                devices, self.requests, (self.learner.state, chosen, places, ask == 0)
            )
            self.requests, payloads = self.requests + 1, payloads + came
            if not payloads:
                continue  # nobody answered
            gathered = yield from server.compute(
                self.gathering(payloads, came), [p.number for p in came], "gather"
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
            number, c.learning_rate, round(c.warm_up * c.rounds), c.rounds
        )
        return self.learner.work(mean_and_step(nbytes), self.learner.step, gradients, rate)

    def choosing(self, devices: list[Device], number: int) -> Work:
        """Draw candidates and take their cosines: a draw and six FLOP a number of each, once there
        is a gradient.
        """
        c = self.config
        numbers = sum(self.costs[d.backbone].nbytes() / 4 for d in devices)
        drawn = c.perturbations * c.candidates * numbers if number > 0 else 0.0
        names = [d.backbone for d in devices]
        seeds = [self.seed(d, self.requests) for d in devices]
        return self.learner.work(
            Cost(7 * drawn, 8 * drawn),
            self.learner.choose,
            names,
            seeds,
            c.perturbations,
            c.candidates,
        )

    def gathering(self, payloads: list[Payload], came: list[Payload]) -> Work:
        """Unpack what came (shared seeds: make the gradients), and compare the halves of all."""
        nbytes = sum(self.costs[p.sender.backbone].nbytes() for p in came)
        cost = (
            moves(self.config.perturbations, nbytes)
            if self.config.shared_seeds
            else Cost(nbytes / 4, 2 * nbytes)
        )
        threshold = self.config.variance_threshold
        return self.learner.work(cost, self.learner.gather, *self.of_each(payloads), threshold)


class FwdLLMLearner(ForwardLearner):
    """Directions chosen by the last global gradient; gradients gathered until they agree."""

    gradient: Learned | None = None

    def __init__(self, world: World, shared_seeds: bool, *model: Any) -> None:
        super().__init__(world, *model)
        self._shared_seeds = shared_seeds

    def choose(
        self, backbones: Sequence[str], seeds: Sequence[int], number: int, candidates: int
    ) -> Learned:
        """The seeds of so many directions for each device."""
        now = (self.state, self.gradient)
        return self.world.host.learn(self._chosen, *now, backbones, seeds, number, candidates)

    def _chosen(self, state, gradient, backbones, seeds, number, candidates) -> list[list[int]]:
        return [
            fg.choose_directions(
                own, seed, number, None if gradient is None else restrict(gradient, own), candidates
            )
            for backbone, seed in zip(backbones, seeds, strict=True)
            for own in [self.part_of(backbone, state)]
        ]

    def received(self, state: State, backbone: str, data: bytes) -> list[dict[str, Tensor]]:
        """A device's gradient, made of its probes where the seeds are shared."""
        if not self._shared_seeds:
            return super().received(state, backbone, data)
        return [fg.gradient_of(fg.decode_probes(data), self.part_of(backbone, state))]

    def gather(
        self, backbones: Sequence[str], answers: Sequence[Learned], threshold: float | None
    ) -> Callable[[], tuple[Learned, bool, list[int]]]:
        """Gives the gradients that came, whether they disagree so much that more are needed, and
        the places of those that are not finite, which are left out.
        """
        host, came = self.world.host, (self.state, backbones, answers)
        gradients, left_out = host.learn(self._gathered, *came, stored=(True, True))
        # the head is the one layer that backbones of any depth and kinds of any name share
        watched = (gradients, "head.weight", threshold)
        return lambda: (
            gradients,
            threshold is not None and host.compute_now(fg.needs_more, *watched),
            host.value_of(left_out),
        )

    def _gathered(self, state: State, backbones, answers) -> tuple[list[State], list[int]]:
        gradients, _, left_out = self.finite(state, backbones, answers)
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
