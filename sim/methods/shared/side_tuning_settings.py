"""The settings that the relatives of Fed MobiLLM share: how a side network reads a backbone, and how it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.side_config import SideNetworkConfig
from sim.settings import Settings


class SideTuningSettings(Settings):
    """A side network over the sampled layers of a backbone, trained by AdamW."""

    taps: Literal["interval"] | int | list[int] = "interval"
    """Sampled layers: as many as the shallowest backbone has (all, where there is one), so many, or a list of layers."""
    readout: Literal["first", "last", "mean"] = "mean"
    """The one vector a layer: first token, last token, or the mean."""
    backbone_prediction: Literal["uniform", "label-names", "random-head"] = "uniform"
    """The backbone's own prediction y_b, which the side network adds to."""
    loss: Literal["squared-error", "cross-entropy"] = "squared-error"
    """Squared error on the prediction difference, or cross-entropy, which needs the labels where it trains."""
    side_network: SideNetworkConfig = SideNetworkConfig()
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1.0, ge=0)
    device_batch: int = Field(8, ge=1)
    """Samples of one forward pass and one upload."""
