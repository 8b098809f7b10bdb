"""Fed MobiLLM (arXiv 2508.06765): devices only run forward passes; the server trains one shared
side network.

Every device passes over its data once and uploads, for each sample, one vector of a few sampled
layers and the difference between the truth and its backbone's own prediction. Every arrival may
trigger updates at once: no rounds, no barrier, and no model goes to a device during training. What
the papers leave open is a documented setting here (docs/fed_mobillm.md).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

from pydantic import Field, model_validator

from learning.codecs.chain import Wire
from sim.kernel.device import Device
from sim.methods.side_tuning.protection import ProtectedSettings
from sim.methods.side_tuning.shared import SideTuning, SideTuningSettings
from sim.methods.side_tuning.shipping import Shipping, Ships
from sim.methods.side_tuning.updates import one_step, with_differences


class FedMobiLLM(SideTuning):
    """Forward-only devices, an asynchronous server, one side network for backbones of any depth and
    width.
    """

    class Config(SideTuningSettings, ProtectedSettings):
        """Settings of Fed MobiLLM."""

        kind: Literal["fed-mobillm"]
        wire: Wire = ("float16",)
        """How activations are sent: a number format or a list with one, as [pca-64, int8, zstd]."""
        replay: float = Field(20, gt=0)
        """Sample-updates granted to the server for each sample ingested."""
        update_share_on_arrival: float = Field(0.25, ge=0, le=1)
        """Share of the granted updates that is spent as samples arrive; the rest follows when all
        have arrived.
        """
        server_batch: int = Field(32, ge=1)
        ship_side_network: Ships = Shipping()
        """After training, send each device the side network and its backbone's projections.
        """

        @model_validator(mode="after")
        def _codes_are_for_differences(self):
            if self.protection is not None and self.loss != "squared-error":
                raise ValueError(
                    "protection: hides differences, and loss: cross-entropy sends the labels "
                    "themselves: leave one of them out"
                )
            return self

    client_update = staticmethod(with_differences)
    server_update = staticmethod(one_step)

    def device(self, device: Device) -> Generator:
        """Its own data, once."""
        yield from self.begin(device)
        yield from self.pass_over_data(device)
