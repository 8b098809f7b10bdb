"""Uploads of whole activation matrices, and a server that trains on each payload as it comes: what
MobiLLM and PAE MobiLLM without its shortcut or its cache have in common.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import numpy as np

from learning.side.full_activations import encoded_sizes
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.server import Server
from sim.kernel.work import Work
from sim.methods.side_tuning.contents import uploaded
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.matrix_learner import MatrixLearner
from sim.methods.side_tuning.passes import device_pass
from sim.methods.side_tuning.protection import device_cost
from sim.methods.side_tuning.sending import sending_cost
from sim.methods.side_tuning.shared import SideTuning


class MatrixUploads(SideTuning):
    """Side-tuning whose uploads are whole matrices where `shortcut` says so."""

    learner: MatrixLearner  # a `SideTuningLearner`, where single vectors are sent

    def new_learner(self) -> MatrixLearner:
        """What learns from single vectors or from matrices."""
        kind: type = MatrixLearner if self.config.shortcut == "matrix" else SideTuningLearner
        return learner_for(self.world, kind, self.config)

    def peak_bytes(self, device: Device) -> int:
        """Of the largest forward pass, with what it keeps until it is sent, and the backbone's
        weights.
        """
        if self.config.shortcut == "pivot":
            return super().peak_bytes(device)
        batches = device.batches(self.config.device_batch)
        peaks = [self.forward(device, batch.samples).cost.peak_bytes for batch in batches]
        return device.held_bytes(max(peaks, default=0))

    @property
    def sent_targets(self) -> int:
        """Numbers that go along with a text's matrix: its difference, or its label."""
        is_difference = self.config.loss == "squared-error"
        return self.shape.classes if is_difference else self.world.task.classes

    def forward(self, device: Device, samples: np.ndarray) -> Work:
        """The frozen backbone over a batch; whole matrices stay in memory until they are sent."""
        if self.config.shortcut == "pivot":
            return super().forward(device, samples)
        lengths = self.world.lengths(device, samples)
        cost = device_pass(self.config, self.world, device, lengths)
        width = self.shape.backbone_widths[device.backbone]
        tokens = int(lengths.sum())
        shape, classes = self.shape_of(device.backbone), self.world.task.classes
        more = device_cost(self.config, shape, device.backbone, tokens, classes)
        cost = dataclasses.replace(cost + more, peak_bytes=cost.peak_bytes + more.peak_bytes)
        cost += sending_cost(self.config, tokens * self.shape.vectors, width, 1)
        kept = 4 * self.shape.vectors * tokens * width
        cost = dataclasses.replace(cost, peak_bytes=cost.peak_bytes + kept)
        how = (self.client_update, device.backbone, samples)
        return self.learner.work(cost, self.learner.matrices, *how)

    def payload(self, device: Device, samples: np.ndarray, activations: Any) -> Payload:
        """Activations and targets, encoded; charged by the exact size of the charged shapes."""
        if self.config.shortcut == "pivot":
            return super().payload(device, samples, activations)
        tokens = int(self.world.lengths(device, samples).sum())
        width = self.shape.backbone_widths[device.backbone]
        shape = (len(samples), tokens, self.shape.vectors, width, self.sent_targets)
        data = self.learner.encode(self.client_update, device.backbone, samples, activations)
        sizes = encoded_sizes(self.config.wire, *shape)
        held = uploaded(sizes, self.sent_layers(device.backbone), "each", self.targets)
        return device.payload(samples, held, data)

    def train_as_it_comes(self, server: Server) -> Generator:
        """Every payload is one update and then forgotten."""
        yield from self.read_public(server)
        landed: list[Payload] = []
        while not self.world.target_reached:
            landed += server.take()
            if landed:
                payload = landed.pop(0)
                before = len(self.cache)
                self.ingest(payload)
                if not (records := list(range(before, len(self.cache)))):
                    continue  # nothing usable came
                loss = yield from server.compute(self.update(records), [payload.number])
                self.learner.forget(records)
                self.world.after_update(self.learner, loss, len(landed))
            elif self.world.devices_at_work:
                yield from server.wait()
            else:
                break
        yield from self.end(server)
