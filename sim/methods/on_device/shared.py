"""Devices that keep to themselves: what local LoRA and local ladder side-tuning share."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from sim.kernel.device import Device
from sim.kernel.server import Server
from sim.kernel.work import Work

if TYPE_CHECKING:
    from sim.simulation import Simulation


class Alone:
    """Every device trains alone, over and over; a method adds `rounds`, `own_round` and its
    learner.
    """

    sim: Simulation
    learner: Any
    rounds: int
    own_round: Callable[[Device, int], Work]

    def device(self, device: Device) -> Generator:
        """Its own texts, over and over, once they are all there."""
        yield from device.arrive()
        for batch in device.batches(len(device.samples)):
            yield from device.until(batch.ready_s)
        for number in range(self.rounds):
            result = yield from device.compute(self.own_round(device, number))
            if not self.sim.dry and not self.learner.keep(device.id, result):
                self.sim.leave_out(device, "weights")
            self.sim.after_update(self.learner, None, 0)
            self.sim.server.wake()

    def server(self, server: Server) -> Generator:
        """Nothing to do but to see when all is over."""
        while self.sim.devices_at_work and not self.sim.target_reached:
            yield from server.wait()
        self.sim.end_training(self.learner)
