"""FwdLLM (USENIX ATC 2024): devices probe the loss along random directions by forward passes; the
server makes the step.

A round asks the same devices for further directions until the gradients that came agree well enough
(the variance gate). The server chooses directions by their seeds, of ten times as many those
nearest to its last gradient. Defaults are the published ones (docs/forward_only_and_split.md).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

from pydantic import Field

from learning.cost.costs import Cost
from learning.federated.forward_gradient import PROBE_BYTES, warm_up_then_linear
from sim.kernel.device import Device, Payload
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.methods.forward_only.learner import FwdLLMLearner
from sim.methods.forward_only.shared import ForwardOnly, ForwardOnlySettings, moves


class FwdLLM(ForwardOnly):
    """Forward gradients with a variance gate."""

    Learner = FwdLLMLearner
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

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Download directions (and the model, where it is new), probe them, upload the gradient."""
        state, chosen, places, is_new = task.model
        nbytes, directions = self.costs[device.backbone].nbytes(), self.config.perturbations
        yield from device.download(8 * directions + is_new * nbytes)
        data = yield from device.compute(
            self.probing(device, task, state, chosen, places[device.id])
        )
        payload = device.payload(
            device.samples,
            PROBE_BYTES * directions if self.config.shared_seeds else nbytes,
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
        batches = self.batches(device, task, -(-len(device.samples) // c.device_batch))
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
        return self.learner.work(
            cost,
            self.learner.probe,
            device.backbone,
            batches,
            state,
            chosen,
            place,
            c.h,
            c.shared_seeds,
        )

    def server_round(
        self, server: Server, devices: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One round: ask the same devices until the gradients that came agree, then make one step
        along their mean.
        """
        payloads, gradients, left_out = [], None, []
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
        c, numbers = self.config, sum(self.costs[p.sender.backbone].nbytes() / 4 for p in payloads)
        rate = warm_up_then_linear(number, c.learning_rate, round(c.warm_up * c.rounds), c.rounds)
        return self.learner.work(Cost(4 * numbers, 8 * numbers), self.learner.step, gradients, rate)

    def choosing(self, devices: list[Device], number: int) -> Work:
        """Draw candidates and take their cosines: a draw and six FLOP a number of each, once there
        is a gradient.
        """
        c, numbers = self.config, sum(self.costs[d.backbone].nbytes() / 4 for d in devices)
        drawn = c.perturbations * c.candidates * numbers if number > 0 else 0.0
        names, seeds = [d.backbone for d in devices], [self.seed(d, self.requests) for d in devices]
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
        names, data = [p.sender.backbone for p in payloads], [p.data for p in payloads]
        return self.learner.work(
            cost,
            self.learner.gather,
            names,
            data,
            self.config.variance_threshold,
            self.config.shared_seeds,
        )
