"""What Fed MobiLLM and its relatives share: how a side network reads a backbone, how it is trained,
and its shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from learning.side.config import SideNetworkConfig, SideShape, shape_for
from learning.side.taps import sample
from sim.scenario.settings import Settings

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.simulation import Simulation


class SideTuningSettings(Settings):
    """A side network over the sampled layers of a backbone, trained by AdamW."""

    takes_texts_as_they_come: ClassVar[bool] = True
    takes_texts_in_order: ClassVar[bool] = True
    taps: Literal["interval"] | int | list[int] = "interval"
    """Sampled layers: as many as the shallowest backbone has (average interval; all, where there is
    one backbone), so many, or a list of layers.
    """
    readout: Literal["first", "last", "mean"] = "mean"
    """The one vector a layer: first token, last token, or the mean (measured far better for
    sentence encoders).
    """
    backbone_prediction: Literal["uniform", "label-names", "random-head"] = "uniform"
    """The backbone's own prediction y_b, which the side network adds to."""
    loss: Literal["squared-error", "cross-entropy"] = "squared-error"
    """Squared error needs the prediction difference alone; cross-entropy NEEDS THE LABELS where the
    side network trains.
    """
    side_network: SideNetworkConfig = SideNetworkConfig()
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1.0, ge=0)
    device_batch: int = Field(8, ge=1)
    """Samples of one forward pass and one upload."""


def require_updates(config: Any, devices: Iterable[Device]) -> None:
    """Raise ValueError where all samples of the devices together grant not one update of the
    server.
    """
    samples = sum(len(device.samples) for device in devices)
    if (
        getattr(config, "cache", True) and config.replay * samples < config.server_batch
    ):  # else each payload is one
        raise ValueError(
            f"method.replay: no update is ever granted, as replay {config.replay:g} x {samples} "
            "samples is less than the "
            f"{config.server_batch} of one update (`server_batch`)"
        )


def shape_over(
    settings: SideTuningSettings, sim: Simulation, backbones: Iterable[str]
) -> SideShape:
    """The side network over these backbones of the fleet, as it is charged; a block for each
    sampled layer.
    """
    depths, widths = sim.costing.depths(), sim.costing.widths()
    sampled = sample({name: depths[name] for name in backbones}, settings.taps)
    blocks = len(next(iter(sampled.values())))
    return shape_for(
        settings.side_network, blocks, {name: widths[name] for name in sampled}, sim.task.classes
    )
