"""The learning behind methods that upload whole matrices: every token's hidden state of the sampled layers, at few bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from learning.full_activations import FullActivations, decode, encode, pooled
from sim.learners.side_tuning import SideTuningLearner


class MatrixLearner(SideTuningLearner):
    """Devices send [layers, tokens, width] with rounding; the server pools what came to one vector a layer and text.

    Targets on the wire are prediction differences or, for cross-entropy, the labels (one-hot): the server then takes the
    uniform prediction for the backbone's, so that the side network's output alone decides.
    """

    def __init__(self, *args: Any) -> None:
        from learning.backbone import Backbone

        super().__init__(*args)
        self._backbones = {name: Backbone(self.sim.costing.learned[name]) for name in self.vectors}

    def matrices(self, backbone: str, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hidden states of a batch, float32 [layers, N, width], and the texts' lengths."""
        from learning.full_activations import full_states

        tokens = self.sim.task.tokens(self.sim.costing.learned[backbone], samples)
        return full_states(self._backbones[backbone], tokens, self.vectors[backbone])

    def encode(self, backbone: str, samples: np.ndarray, activations: tuple[np.ndarray, np.ndarray]) -> bytes:
        """The payload's bytes at the configured number of bits."""
        from learning.prediction_difference import difference

        if not np.isfinite(activations[0]).all():
            return b""
        labels = self.sim.task.labels[samples]
        if self.config.loss == "cross-entropy":
            y_b = np.zeros((len(samples), self.sim.task.classes), np.float32)
        else:
            y_b = self._own_prediction(backbone, samples)
        return encode(FullActivations(*activations, difference(labels, y_b), samples), self.config.bits)

    def ingest(self, backbone: str, data: bytes) -> bool:
        """Decode a payload, pool it, and keep the vectors as records; False for one that holds nothing usable."""
        from learning import activations

        if not data:
            return False
        received = decode(data, self.shape.backbone_widths[backbone])
        targets = received.targets
        if self.config.loss == "cross-entropy":
            targets = np.concatenate([targets, np.full_like(targets, 1 / targets.shape[1])], axis=1)
        record = activations.Activations(pooled(received, self.config.readout), targets, received.samples)
        return super().ingest(backbone, activations.encode(record, "float32"))
