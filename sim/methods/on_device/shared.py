"""Devices that keep to themselves: what local LoRA and local ladder side-tuning share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar

from sim.kernel.device import Device
from sim.kernel.ledger import KINDS
from sim.kernel.server import Server
from sim.kernel.work import Work
from sim.kernel.world import World


class OnDeviceMethod:
    """Every device trains alone, over and over; a method adds `rounds`, `own_round` and its
    learner.
    """

    world: World
    learner: Any
    keeps_on_device: ClassVar[frozenset[str]] = frozenset(KINDS)

    @property
    def rounds(self) -> int:
        """How often each device passes over its texts."""
        raise NotImplementedError

    def own_round(self, device: Device, number: int) -> Work:
        """What a device computes in a round."""
        raise NotImplementedError

    def delivery_bytes(self, device: Device) -> int:
        """It has trained its own."""
        return 0

    def device(self, device: Device) -> Generator:
        """Its own texts, over and over, once they are all there."""
        yield from device.arrive()
        for batch in device.batches(len(device.samples)):
            yield from device.until(batch.ready_s)
        for number in range(self.rounds):
            result = yield from device.compute(self.own_round(device, number))
            if not self.world.dry and not self.learner.keep(device.id, result):
                self.world.note_diverged(device, "weights")
            self.world.after_update(self.learner, None, 0)
            self.world.server.wake()

    def server(self, server: Server) -> Generator:
        """Nothing to do but to see when all is over."""
        while self.world.devices_at_work and not self.world.target_reached:
            yield from server.wait()
        self.world.end_training(self.learner)
