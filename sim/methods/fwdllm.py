"""FwdLLM (USENIX ATC 2024): devices probe the loss along random directions by forward passes; the server makes the step.

A round asks the same devices for further directions until the gradients that came agree well enough (the variance gate).
Directions are the server's choice, by their seeds: of ten times as many those nearest to its last gradient. Defaults are
the published ones; what they leave open is a setting (docs/forward_only_and_split.md).
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from learning.cost import Cost
from learning.forward_gradient import PROBE_BYTES, warm_up_then_linear
from sim.actors import Device, Payload, Server, Task, Work
from sim.learners.forward_only import FwdLLMLearner
from sim.methods.shared.forward_only import ForwardOnly, ForwardOnlySettings, moves

if TYPE_CHECKING:
    from sim.simulation import Simulation


class FwdLLM(ForwardOnly):
    """Forward gradients with a variance gate."""

    Learner = FwdLLMLearner

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
        """Ask again while the halves of the received gradients of the head differ more; null: never."""
        asks: int = Field(1, ge=1)
        """Times that a round asks at least; in a dry run, which cannot know gradients, exactly."""
        most_asks: int = Field(10, ge=1)
        """Times that a round asks at most."""
        shared_seeds: bool = False
        """Upload 12 bytes a direction instead of the gradient, which the server then makes itself."""

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, sim)
        self.asked = 0

    def round(self, device: Device, task: Task) -> Generator:
        """Download directions (and the model, where it is new), probe them, upload the gradient."""
        state, seeds, is_new = task.model
        nbytes, directions = self.costs[device.backbone].nbytes(), self.config.perturbations
        yield from device.download(8 * directions + is_new * nbytes)
        data = yield from device.compute(self.probing(device, task, state, seeds.get(device.id)))
        sent = PROBE_BYTES * directions if self.config.shared_seeds else nbytes
        payload = self.payload(device, task, sent, data)
        yield from device.upload(payload)
        self.sim.server.receive(payload)

    def peak_bytes(self, device: Device) -> int:
        """Of a round's probes, with the backbone's weights."""
        return device.held_bytes(self.probing(device, Task(0, None, None), None, None).cost.peak_bytes)

    def probing(self, device: Device, task: Task, state: Any, seeds: list[int] | None) -> Work:
        """Two forward passes for each direction and batch; theta, v, theta + h v and the gradient are in memory."""
        counted, c = self.costs[device.backbone], self.config
        batches = self.batches(device, task, -(-len(device.samples) // c.device_batch))
        cost = self.passes(device, batches, counted.ahead, 2 * c.perturbations, (4 - c.shared_seeds) * counted.nbytes())
        moved = 2 * len(batches) + (not c.shared_seeds)  # ahead and behind of each batch, and into the gradient
        cost += moves(c.perturbations * moved, counted.nbytes())
        return self.learner.work(cost, "probe", device.backbone, batches, state, seeds, c.h, c.shared_seeds)

    def server(self, server: Server) -> Generator:
        """Rounds, until there are no more or the target is reached."""
        yield from server.rounds(self.config.rounds, self.learner, functools.partial(self.agree, server))

    def agree(self, server: Server, number: int) -> Generator[Any, Any, int]:
        """One round: ask until the gradients agree, and make one step."""
        devices = yield from server.select(self.wanted, number)
        answers = yield from self.agreed(server, devices, number)
        if answers:
            yield from server.compute(self.step(answers, number), kind="aggregate")
        return len(answers)

    def agreed(self, server: Server, devices: list[Device], number: int) -> Generator[Any, Any, list[tuple]]:
        """Ask the devices until their gradients agree; returns all (payload, gradient)."""
        answers: list[tuple[Payload, Any]] = []
        for ask in range(max(self.config.asks, self.config.most_asks)):
            devices = [device for device in devices if self.sim.is_at_work(device)]
            if not devices:
                break
            chosen = yield from server.compute(self.choosing(devices, number), kind="choose")
            seeds = dict(zip((d.id for d in devices), chosen or [None] * len(devices), strict=True))
            came = yield from server.ask(devices, self.asked, (self.learner.state, seeds, ask == 0))
            self.asked += 1
            gathered = yield from server.compute(self.gathering(came, answers), [p.number for p in came], "gather")
            gradients, needs_more = gathered or ([None] * len(answers + came), False)
            answers = list(zip([p for p, _ in answers] + came, gradients, strict=True))
            if ask + 1 >= self.config.asks and not needs_more:
                break
        return answers

    def step(self, answers: list[tuple[Payload, Any]], number: int) -> Work:
        """One step along the mean gradient: a few passes over the numbers."""
        c, numbers = self.config, sum(self.costs[p.sender.backbone].nbytes() / 4 for p, _ in answers)
        rate = warm_up_then_linear(number, c.learning_rate, round(c.warm_up * c.rounds), c.rounds)
        return self.learner.work(Cost(4 * numbers, 8 * numbers), "step", [gradient for _, gradient in answers], rate)

    def choosing(self, devices: list[Device], number: int) -> Work:
        """Draw candidates and take their cosines: a draw and six FLOP a number of each, once there is a gradient."""
        c, drawn = self.config, 0.0
        if number > 0:
            drawn = c.perturbations * c.candidates * sum(self.costs[d.backbone].nbytes() / 4 for d in devices)
        seeds = [self.seed(device, self.asked) for device in devices]
        names = [device.backbone for device in devices]
        return self.learner.work(Cost(7 * drawn, 8 * drawn), "choose", names, seeds, c.perturbations, c.candidates)

    def gathering(self, came: list[Payload], before: list[tuple[Payload, Any]]) -> Work:
        """Unpack what came (shared seeds: make the gradients), and compare the halves of all."""
        nbytes = sum(self.costs[p.sender.backbone].nbytes() for p in came)
        cost = moves(self.config.perturbations, nbytes) if self.config.shared_seeds else Cost(nbytes / 4, 2 * nbytes)
        payloads = [p for p, _ in before] + came
        names, data = [p.sender.backbone for p in payloads], [p.data for p in payloads]
        return self.learner.work(cost, "gather", names, data, self.config.variance_threshold, self.config.shared_seeds)
