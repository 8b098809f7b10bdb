"""One side network a backbone: the uploads of Fed MobiLLM, without sharing between devices of
different backbones.

The ablation of Fed MobiLLM (arXiv 2508.06765) against one side network for all. Each network learns
from the records of its own backbone alone and has that backbone's width, so that it needs no
projections; whose turn it is follows from the budget.
"""

from __future__ import annotations

from typing import Literal

from learning.side.config import SideShape, shape_for
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.methods.side_tuning.reference_learners import SeparateLearner
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.methods.side_tuning.shared import require_updates
from sim.methods.side_tuning.tap_choice import require_texts_to_choose_by
from sim.methods.side_tuning.updates import closed_form, one_step, with_differences


class SingleSideNetwork(FedMobiLLM):
    """Fed MobiLLM with a side network of its own for every backbone: nothing is shared between
    unlike devices.
    """

    Learner = SeparateLearner
    learner: SeparateLearner  # type: ignore[assignment]  # with the same verbs

    class Config(FedMobiLLM.Config):
        """Settings of separate side networks: those of Fed MobiLLM; updates are granted to the
        sample's own network.
        """

        kind: Literal["single-side-network"]  # type: ignore[assignment]  # tells the two apart

    client_update = staticmethod(with_differences)
    server_update = staticmethod(one_step)

    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        widths = self.shape.backbone_widths
        require_texts_to_choose_by(config, world, list(widths)[:1])  # nobody shares a network
        self.shapes = {
            name: shape_for(
                config.side_network, self.shape.blocks, {name: width}, self.shape.classes
            )
            for name, width in widths.items()
        }
        by_backbone = [
            [device for device in world.devices if device.backbone == name] for name in widths
        ]
        require_updates(
            config, max(by_backbone, key=lambda mine: sum(len(device.samples) for device in mine))
        )
        self.caches = {
            name: ReplayCache(world.streams.rng("server/replay", name)) for name in widths
        }
        self.updates_of = dict.fromkeys(self.caches, 0)

    @property
    def records(self) -> int:
        """How many records all caches have."""
        return sum(map(len, self.caches.values()))

    def next_update(self, share: float) -> Work | None:
        """Of the network that is furthest behind what its samples grant."""
        due = {
            name: share * self.config.replay * len(cache) / self.config.server_batch
            - self.updates_of[name]
            for name, cache in self.caches.items()
        }
        name = max(due, key=due.__getitem__)
        if due[name] < 1 or not self.shape.has_adapters:
            return None
        self.updates_of[name] += 1
        return self.update_of(name, self.caches[name].draw(self.config.server_batch))

    def next_fit(self) -> Work | None:
        """Of the first network that is due."""
        for name, cache in self.caches.items():
            if self.is_fit_due(name, len(cache)):
                penalties = len(self.config.side_network.penalties)
                cost = self.shapes[name].fitting({name: len(cache)}, penalties)
                return self.learner.work(cost, self.learner.fit_of, closed_form, name)
        return None

    def cache_of(self, backbone: str) -> ReplayCache:
        """Of its own."""
        return self.caches[backbone]

    def shape_of(self, backbone: str) -> SideShape:
        """Of its own."""
        return self.shapes[backbone]

    @property
    def shapes_apart(self) -> list[SideShape]:
        """One a backbone."""
        return list(self.shapes.values())

    def update_of(self, name: str, records: list[int]) -> Work:
        """One AdamW update of one backbone's side network; it moves no other network's weights."""
        cost = self.shapes[name].training_step({name: len(records)})
        return self.learner.work(cost, self.learner.step_of, self.server_update, name, records)
