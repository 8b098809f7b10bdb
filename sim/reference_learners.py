"""The learning behind the references: at the server alone, one side network a backbone, and every device on its own."""

from __future__ import annotations

import numpy as np

from sim.learner import SideTuningLearner


class ServerLearner(SideTuningLearner):
    """One backbone at the server reads everybody's texts; its accuracy is every device's."""

    def _parts_of(self, backbone: str) -> list[np.ndarray]:
        return [device.samples for device in self.sim.devices]

    def evaluate(self) -> dict[str, float]:
        """The one model's held-out accuracy, under the name of every backbone of the fleet."""
        (accuracy,) = super().evaluate().values()
        return dict.fromkeys(self.sim.costing.learned, accuracy)
