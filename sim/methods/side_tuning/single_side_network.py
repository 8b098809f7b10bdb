"""One side network a backbone: the uploads of Fed MobiLLM, without sharing between devices of
different backbones.

The ablation of Fed MobiLLM (arXiv 2508.06765) against one side network for all. Each network learns
from the records of its own backbone alone and has that backbone's width, so that it needs no
projections; whose turn it is follows from the budget.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Literal

from learning.side.config import shape_for
from sim.kernel.server import Server
from sim.kernel.work import Payload, Work
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.methods.side_tuning.reference_learners import SeparateLearner
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.methods.side_tuning.shared import require_updates

if TYPE_CHECKING:
    from sim.simulation import Simulation


class SingleSideNetwork(FedMobiLLM):
    """Fed MobiLLM with a side network of its own for every backbone: nothing is shared between
    unlike devices.
    """

    real_learner = SeparateLearner

    class Config(FedMobiLLM.Config):
        """Settings of separate side networks: those of Fed MobiLLM; updates are granted to the
        sample's own network.
        """

        kind: Literal["single-side-network"]

    def __init__(self, config: Config, sim: Simulation) -> None:
        super().__init__(config, sim)
        widths = self.shape.backbone_widths
        self.shapes = {
            name: shape_for(config.side_network, self.shape.blocks, {name: width}, sim.task.classes)
            for name, width in widths.items()
        }
        by_backbone = [
            [device for device in sim.devices if device.backbone == name] for name in widths
        ]
        require_updates(
            config, max(by_backbone, key=lambda mine: sum(len(device.samples) for device in mine))
        )
        self.caches = {name: ReplayCache(sim.streams.rng("server/replay", name)) for name in widths}

    def server(self, server: Server) -> Generator:
        """Update the network that is furthest behind what its samples grant; end with the last
        granted update.
        """
        updates, fresh = dict.fromkeys(self.caches, 0), []
        while not self.sim.target_reached:
            for payload in server.take():
                self.ingest(payload)
                fresh.append(payload.number)
            share = self.config.eager if self.sim.devices_at_work else 1.0
            due = {
                name: share * self.config.replay * len(cache) / self.config.server_batch
                - updates[name]
                for name, cache in self.caches.items()
            }
            name = max(due, key=due.get)
            if due[name] >= 1:
                records = self.caches[name].draw(self.config.server_batch)
                loss = yield from server.compute(self.update_of(name, records), flows=fresh)
                updates[name], fresh = updates[name] + 1, []
                self.sim.after_update(self.learner, loss, sum(map(len, self.caches.values())))
            elif self.sim.devices_at_work:
                yield from server.wait()
            else:
                break
        self.sim.end_training(self.learner)
        if self.config.deliver:
            yield from server.deliver(
                self.sim.present_devices(),
                lambda d: self.shapes[d.backbone].shipped_bytes(d.backbone),
            )

    def ingest(self, payload: Payload) -> None:
        """Into the cache of the payload's own backbone."""
        if self.learner.ingest(payload.sender.backbone, payload.data, len(payload.samples)):
            self.caches[payload.sender.backbone].insert(
                payload.sender.backbone, len(payload.samples)
            )
        else:
            self.sim.leave_out(payload.sender, "activations")

    def update_of(self, name: str, records: list[int]) -> Work:
        """One AdamW update of one backbone's side network; it moves no other network's weights."""
        cost = self.shapes[name].training_step({name: len(records)})
        return self.learner.work(cost, "step_of", name, records)
