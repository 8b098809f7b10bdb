"""Fed MobiLLM (arXiv 2508.06765): devices only run forward passes; the server trains one shared
side network.

Every device passes over its data once and uploads, for each sample, one vector of a few sampled
layers and the difference between the truth and its backbone's own prediction. Every arrival may
trigger updates at once: no rounds, no barrier, and no model goes to a device during training. What
the papers leave open is a documented setting here (docs/fed_mobillm.md).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learning.side.activations import encoded_nbytes
from sim.kernel.device import Device
from sim.kernel.learner import NullLearner
from sim.kernel.server import Server
from sim.kernel.work import Payload, Work
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.methods.side_tuning.shared import SideTuningSettings, require_updates, shape_over

if TYPE_CHECKING:
    from sim.simulation import Simulation


class FedMobiLLM:
    """Forward-only devices, an asynchronous server, one side network for backbones of any depth and
    width.
    """

    real_learner = SideTuningLearner

    class Config(SideTuningSettings):
        """Settings of Fed MobiLLM."""

        kind: Literal["fed-mobillm"]
        wire: Literal["float32", "float16", "int8"] = "float16"
        """Number format of uploaded activations."""
        replay: float = Field(20, gt=0)
        """Sample-updates granted to the server for each sample ingested."""
        eager: float = Field(0.25, ge=0, le=1)
        """Share of the granted updates that is spent as samples arrive; the rest follows when all
        have arrived.
        """
        server_batch: int = Field(32, ge=1)
        deliver: bool = True
        """After training, send each device the side network and its backbone's projections."""

    def __init__(self, config: Config, sim: Simulation) -> None:
        self.config, self.sim = config, sim
        require_updates(config, sim.devices)
        self.target_width = sim.task.classes * (2 if config.loss == "cross-entropy" else 1)
        self.shape = shape_over(config, sim, sim.costing.learned)
        self.learner = NullLearner() if sim.dry else self.real_learner(config, sim)
        self.cache = ReplayCache(sim.streams.rng("server/replay"))
        self.payloads = 0

    def device(self, device: Device) -> Generator:
        """Its own data, once."""
        yield from device.arrive()
        yield from self.pass_over_data(device)

    def pass_over_data(self, device: Device) -> Generator:
        """Forward passes over all batches, each uploaded as soon as it is computed."""
        for batch in device.batches(self.config.device_batch):
            yield from device.until(batch.ready_s)
            activations = yield from device.compute(self.forward(device, batch.samples))
            payload = self.payload(device, batch.samples, activations)
            yield from device.upload(payload)
            self.sim.server.receive(payload)

    def server(self, server: Server) -> Generator:
        """Update whenever enough samples have come for another update; end with the last granted
        one, or at the target.
        """
        updates, fresh = 0, []
        while not self.sim.target_reached:
            for payload in server.take():
                self.ingest(payload)
                fresh.append(payload.number)
            share = self.config.eager if self.sim.devices_at_work else 1.0
            if (
                share * self.config.replay * len(self.cache)
                >= (updates + 1) * self.config.server_batch
            ):
                records = self.cache.draw(self.config.server_batch)
                loss = yield from server.compute(self.update(records), flows=fresh)
                updates, fresh = updates + 1, []
                self.sim.after_update(self.learner, loss, len(self.cache))
            elif self.sim.devices_at_work:
                yield from server.wait()
            else:
                break
        yield from self.end(server)

    def end(self, server: Server) -> Generator:
        """The training is over; send every device what it needs to use the side network."""
        self.sim.end_training(self.learner)
        if self.config.deliver:
            yield from server.deliver(
                self.sim.present_devices(), lambda d: self.shape.shipped_bytes(d.backbone)
            )

    def forward(self, device: Device, samples) -> Work:
        """The frozen backbone over a batch: all that a device computes."""
        cost = self.sim.costing.forward(device.member, self.sim.lengths(device, samples))
        return self.learner.work(cost, "forward", device.backbone, samples)

    def payload(self, device: Device, samples, activations) -> Payload:
        """Sampled activations and prediction differences, encoded; charged by the exact size of the
        charged shapes.
        """
        width = self.shape.backbone_widths[device.backbone]
        nbytes = encoded_nbytes(
            self.config.wire, len(samples), self.shape.vectors, width, self.target_width
        )
        self.payloads += 1
        data = self.learner.encode(device.backbone, samples, activations)
        return Payload(self.payloads, device, samples, nbytes, data)

    def ingest(self, payload: Payload) -> None:
        """Into the cache, at random positions."""
        if self.learner.ingest(payload.sender.backbone, payload.data, len(payload.samples)):
            self.cache.insert(payload.sender.backbone, len(payload.samples))
        else:
            self.sim.leave_out(payload.sender, "activations")

    def update(self, records: list[int]) -> Work:
        """One AdamW update of the side network and the projections on the drawn records."""
        return self.learner.work(
            self.shape.training_step(self.cache.count_by_backbone(records)), "step", records
        )
