"""Devices that work when the server asks them, and a server that asks in rounds: what is the same
in every method of that kind.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any

import numpy as np

from learning.cost.costs import Cost
from sim.kernel.device import Device, Payload
from sim.kernel.learner import Learner
from sim.kernel.ledger import PER_TEXT_KINDS
from sim.kernel.server import Server
from sim.kernel.work import ClientTask
from sim.kernel.world import World


class ServerDriven:
    """Devices that serve: a method adds `client_round` and `server`."""

    config: Any
    world: World
    learner: Learner
    keeps_on_device: frozenset[str] = PER_TEXT_KINDS

    def device(self, device: Device) -> Generator:
        """Take part whenever the server asks."""
        yield from device.arrive()
        yield from device.serve(functools.partial(self.client_round, device))

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """What a device does for one task of the server's."""
        raise NotImplementedError

    def seed(self, device: Device, version: int) -> int:
        """The seed of what is random in a device's work on a task; 0 where nothing learns."""
        if self.world.dry:
            return 0
        return self.world.streams.seed64("local-training", f"{device.id}/{version}") % 2**31

    def batches(self, device: Device, task: ClientTask, count: int) -> list[np.ndarray]:
        """So many batches of the device's texts, which are shuffled anew whenever all have been
        used.
        """
        rng = self.world.streams.rng("local-training", f"{device.id}/{task.version}")
        size = self.config.device_batch
        made: list[np.ndarray] = []
        while len(made) < count:
            order = rng.permutation(device.samples)
            made += [order[start : start + size] for start in range(0, len(order), size)]
        return made[:count]

    def steps(self, device: Device, epochs: int) -> int:
        """How many batches so many epochs of the device are."""
        return epochs * -(-len(device.samples) // self.config.device_batch)

    def model_of(self, device: Device) -> Any:
        """Which of the learner's models the device trains: a backbone's name, unless a method has
        several of a backbone.
        """
        return device.backbone

    def of_each(self, answers: list[Payload]) -> tuple[list[Any], list[Any]]:
        """Of each answer, which model trained it and what it carries."""
        return [self.model_of(p.sender) for p in answers], [p.data for p in answers]


class SynchronousRounds(ServerDriven):
    """The server asks a cohort round by round; a method adds `client_round` and `server_round`."""

    @property
    def wanted(self) -> int:
        """How many answers a round waits for."""
        return max(1, round(self.config.participation * len(self.world.devices)))

    @property
    def asked(self) -> int:
        """How many devices a round asks."""
        return self.wanted

    def server(self, server: Server) -> Generator:
        """Rounds, until there are no more or the target is reached."""
        one_round = functools.partial(self.server_round, server)
        yield from server.rounds(self.config.rounds, self.asked, self.learner, one_round)

    def server_round(
        self, server: Server, cohort: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """Ask the cohort and make an update of what comes; returns the answers that counted."""
        raise NotImplementedError


def mean_and_step(nbytes: float) -> Cost:
    """Of a mean and a step on so many bytes of float32: four FLOP a number, each read and
    written.
    """
    return Cost(float(nbytes), 2.0 * nbytes)
