"""The learning behind the references: at the server alone, one side network a backbone, and every
device on its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.side.taps import rule_of
from sim.kernel.learned import Learned
from sim.kernel.learner import Part, RealLearner
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.tap_choice import sampled

if TYPE_CHECKING:
    from learning.metrics import Score
    from sim.kernel.world import World


class ServerLearner(SideTuningLearner):
    """One backbone at the server reads everybody's texts; its accuracy is every device's."""

    def _parts_of(self, backbone: str) -> list[np.ndarray]:
        return [device.samples for device in self.world.devices]

    def evaluate(self, part: Part = "test") -> dict[str, Score | None]:
        """The one model's score, under the name of every backbone of the fleet."""
        (score,) = super().evaluate(part).values()
        return dict.fromkeys(self.world.costing.learned, score)


class SeparateLearner(RealLearner):
    """A `SideTuningLearner` for each backbone."""

    def __init__(self, world: World, config: Any) -> None:
        if (rule := rule_of(config.taps)) is not None:  # as many of each as of the whole fleet
            blocks = len(next(iter(sampled(config, world, _depths(world)).values())))
            rule = dataclasses.replace(rule, layers=blocks, bytes_a_text=None)
            config = config.model_copy(update={"taps": rule})
        self.world = world
        self._of = {
            name: SideTuningLearner(world, config, [name]) for name in world.costing.learned
        }

    def of(self, backbone: str) -> SideTuningLearner:
        """What learns from this backbone's records."""
        return self._of[backbone]

    def prepare(self) -> None:
        """Each of its learners."""
        for learner in self._of.values():
            learner.prepare()

    @property
    def diverged(self) -> str | None:
        """What of any network is no longer finite."""
        return next((learner.diverged for learner in self._of.values() if learner.diverged), None)

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """The sampled layers of every backbone."""
        return {name: learner.layers[name] for name, learner in self._of.items()}

    @property
    def predicts_untrained(self) -> bool:
        """As one of its learners."""
        return next(iter(self._of.values())).predicts_untrained

    def forward(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        """The sampled vectors of a batch, float32 [n, vectors, hidden]."""
        return self._of[backbone].forward(backbone, samples)

    def encode(
        self,
        update: Callable[..., Any],
        backbone: str,
        samples: np.ndarray,
        activations: np.ndarray,
    ) -> bytes:
        """The payload's bytes."""
        return self._of[backbone].encode(update, backbone, samples, activations)

    def ingest(self, backbone: str, data: Any, count: int) -> bool:
        """Decode a payload into its backbone's records; False for one that holds nothing usable."""
        return self._of[backbone].ingest(backbone, data, count)

    def step_of(
        self, update: Callable[..., Any], backbone: str, records: Sequence[int]
    ) -> Callable[[], Learned]:
        """Begin a server update of one backbone's side network; gives its loss."""
        return self._of[backbone].step(update, records)

    def fit_of(self, update: Callable[..., Any], backbone: str) -> Callable[[], Learned]:
        """Begin a server update of one backbone's side network on all its records; gives its
        loss.
        """
        return self._of[backbone].fit(update)

    def evaluate(self, part: Part = "test") -> dict[str, Score | None]:
        """The score of every backbone with its own side network."""
        return {name: learner.evaluate(part)[name] for name, learner in self._of.items()}

    def delivered(self, precision: str) -> dict[str, Score | None]:
        """The same of what the devices have, when the side networks have gone to them."""
        return {name: learner.delivered(precision)[name] for name, learner in self._of.items()}

    def digest(self) -> str:
        """A digest of all networks."""
        return hashlib.sha256(
            "".join(learner.digest() for learner in self._of.values()).encode()
        ).hexdigest()

    def save(self, folder: Path) -> None:
        """model/<backbone>/side_network.safetensors of each."""
        folder.mkdir(exist_ok=True)
        for name, learner in self._of.items():
            learner.save(folder / name)


def _depths(world: World) -> dict[str, int]:
    from learning.backbones import catalogue

    return {
        name: catalogue.depth_of(catalogue.config_of(spec))
        for name, spec in world.costing.learned.items()
    }
