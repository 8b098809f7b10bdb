"""MobiLLM (arXiv 2502.20421): whole activation matrices at few bits, every epoch, and the labels,
to a server that trains.

The device's forward pass of the next batch overlaps the upload of the last one and the server's
step on the one before: two processes of the device, with room for one batch between them. In steady
state a batch takes as long as the slowest of the three; only the first pays for all. PAE MobiLLM is
this with differences for labels, one token for a matrix, and a cache.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import simpy
from pydantic import Field, model_validator

from learning.codecs.chain import Wire
from learning.side.full_activations import plain
from sim.kernel.device import Device
from sim.kernel.server import Server
from sim.methods.side_tuning.matrix_uploads import MatrixUploads
from sim.methods.side_tuning.protection import ProtectedSettings
from sim.methods.side_tuning.shared import SideTuningSettings
from sim.methods.side_tuning.shipping import Shipping, Ships
from sim.methods.side_tuning.updates import one_step, with_labels


class MobiLLM(MatrixUploads):
    """Quantised activation matrices and labels to the server every epoch; forward, upload and
    training overlap.
    """

    class Config(SideTuningSettings, ProtectedSettings):
        """Settings of MobiLLM."""

        kind: Literal["mobillm"]
        taps: Literal["interval"] | int | list[int] = "interval"
        """Sampled layers: as many as the shallowest backbone has, so many, or a list of layers."""
        epochs: int = Field(20, ge=1)
        """Passes over the samples; each is computed and sent."""
        wire: Wire = ("int8",)
        """Number format of uploaded activations."""
        overlap: bool = True
        """Compute the next batch while the last one is under way."""
        loss: Literal["cross-entropy"] = "cross-entropy"
        """The server has the labels."""
        backbone_prediction: Literal["uniform"] = "uniform"
        """The side network's output alone decides."""
        device_batch: int = Field(16, ge=1)
        """Samples of one forward pass, one upload and one update of the server."""
        cache: Literal[False] = False
        shortcut: Literal["matrix"] = "matrix"
        ship_side_network: Ships = Shipping()
        """After training, send each device the side network."""

        @model_validator(mode="after")
        def _matrices_have_a_format_alone(self):
            plain(self.wire)
            if self.protection is not None:
                self.protection.for_matrices(has_differences=False)
            return self

        @property
        def keeps_records(self) -> bool:
            """Every payload is one update, and then forgotten."""
            return False

    targets = ("label",)
    client_update = staticmethod(with_labels)
    server_update = staticmethod(one_step)

    def device(self, device: Device) -> Generator:
        """Its own data, once an epoch: forward passes, with another process that sends what they
        gave.
        """
        yield from device.arrive()
        ready = simpy.Store(self.world.env, capacity=1)
        sender = self.world.start(device, self.sending(device, ready))
        for _ in range(self.config.epochs):
            for batch in device.batches(self.config.device_batch):
                yield from device.until(batch.ready_s)
                activations = yield from device.compute(self.forward(device, batch.samples))
                sent = self.world.env.event()
                yield ready.put((self.payload(device, batch.samples, activations), sent))
                if not self.config.overlap:
                    yield sent
        yield ready.put((None, None))
        yield sender

    def sending(self, device: Device, ready: simpy.Store) -> Generator[simpy.Event, Any, None]:
        """Upload batch after batch, as they become ready."""
        while True:
            payload, sent = yield ready.get()
            if payload is None:
                return
            yield from device.send(payload)
            sent.succeed()

    def server(self, server: Server) -> Generator:
        """Every payload is one update."""
        yield from self.train_as_it_comes(server)
