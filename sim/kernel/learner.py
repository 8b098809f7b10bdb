"""The learner that learns nothing, and the calls that every learner answers to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learning.cost.costs import Cost
from sim.kernel.work import Work


class NullLearner:
    """Learns nothing: for dry runs, whose schedule does not depend on what is learned."""

    state: Any = None  # of the server's model, where the method sends one to devices
    diverged: str | None = (
        None  # what of the server's model is no longer finite: its loss, its weights
    )
    has_one_model = True  # that of the server, rather than one on each device
    predicts_untrained = (
        False  # whether what is there before the first update has an accuracy worth the name
    )

    def work(self, cost: Cost, name: str, *args: Any) -> Work:
        """A piece of work that only takes time."""
        return Work(cost)

    def encode(self, backbone: str, samples: np.ndarray, activations: Any) -> bytes | None:
        """No bytes; sizes come from shapes."""
        return None

    def ingest(self, backbone: str, data: Any, count: int) -> bool:
        """Nothing to keep; whether what came can be used."""
        return True

    def forget(self, records: Sequence[int]) -> None:
        """Nothing to drop."""

    def evaluate(self) -> dict[str, float | None]:
        """Nothing to score; elsewhere None says that a model's predictions are not finite."""
        return {}

    def digest(self) -> str:
        """Nothing learned."""
        return ""

    def save(self, folder: Path) -> None:
        """Nothing to save."""
