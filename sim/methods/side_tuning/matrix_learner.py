"""The learning behind methods that upload whole matrices: every token's hidden state of the sampled
layers, at few bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from learning.codecs.chain import Chain, chain_of
from learning.side.full_activations import FullActivations, decode, encode, pooled
from sim.kernel.learned import Learned
from sim.methods.side_tuning.learner import Record, SideTuningLearner, paired


class MatrixLearner(SideTuningLearner):
    """Devices send [layers, tokens, width] with rounding; the server pools what came to one vector
    a layer and text.

    Targets on the wire are prediction differences or, for cross-entropy, the labels (one-hot): the
    server then takes the uniform prediction for the backbone's, so that the side network's output
    alone decides.
    """

    def prepare(self) -> None:
        """Besides, the backbones themselves: whole matrices are computed when they are sent."""
        from learning.backbones.backbone import Backbone

        super().prepare()
        self._backbones = {
            name: Backbone(self.world.costing.learned[name]) for name in self.vectors
        }

    def matrices(self, update: Callable[..., Any], backbone: str, samples: np.ndarray) -> Learned:
        """Begin a client update on a batch's hidden states: the payload's bytes."""
        return self.world.host.learn(self._payload, update, backbone, samples)

    @property
    def arrives_by(self) -> Chain:
        """A single token's vector is rounded as that of any; of a mean the tokens were."""
        return chain_of("float32") if self.config.readout == "mean" else super().arrives_by

    def encode(self, update: Any, backbone: str, samples: Any, activations: Any) -> Any:
        """They are bytes already."""
        return activations

    def _payload(self, update: Callable[..., Any], backbone: str, samples: np.ndarray) -> bytes:
        values, lengths = self.states(backbone, samples)
        if not np.isfinite(values).all():
            return b""
        labels = self.world.task.labels[samples]
        y_b = self._own_prediction(backbone, samples)
        values, targets = update(values, labels, y_b, self.config.loss)
        if self._protecting is not None:
            coded = self._protecting.matrices(values, lengths, targets, samples)
            values, targets = coded[0], targets if self.config.loss != "squared-error" else coded[1]
        if not (np.isfinite(values).all() and np.isfinite(targets).all()):
            return b""
        return encode(FullActivations(values, lengths, targets, samples), self.config.wire)

    def states(self, backbone: str, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hidden states of a batch, float32 [layers, N, width], and the texts' lengths."""
        from learning.side.full_activations import full_states

        tokens = self.world.task.tokens(self.world.costing.learned[backbone], samples)
        return full_states(self._backbones[backbone], tokens, self.vectors[backbone])

    def _is_usable(self, data: Learned) -> bool:
        return self.world.host.compute_now(bool, data)  # whether there is anything in it

    def _received(self, backbone: str, data: Learned) -> Learned:
        """The payload decoded and pooled: one vector a layer and text."""
        return self.world.host.learn(self._pooled, backbone, data)

    def _pooled(self, backbone: str, data: bytes) -> list[Record]:
        received = decode(data, self.shape.backbone_widths[backbone], self.config.wire)
        targets = received.targets
        if self.config.loss == "cross-entropy":
            targets = np.concatenate([targets, np.full_like(targets, 1 / targets.shape[1])], axis=1)
        return paired(pooled(received, self.config.readout), targets)
