"""The settings of the shared side network, its size and its cost. Plain numbers, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from learning.cost.costs import Cost


@dataclass(frozen=True)
class SideNetworkConfig:
    """Gated bottleneck adapters over the sampled layers. Defaults beyond the papers are measured;
    see docs/fed_mobillm.md.
    """

    __pydantic_config__ = {"extra": "forbid"}

    bottleneck: int | None = None
    """Adapter bottleneck r; default one eighth of the common width."""
    width: Literal["median", "max"] | int = "median"
    """Common width d_s that the backbones' widths are scaled to: the median or the largest of the
    fleet, or a number.
    """
    projection: Literal["where-needed", "always"] = "where-needed"
    """One trainable projection per (backbone, block): only where the widths differ, or everywhere
    (started at identity).
    """
    start: Literal["embedding", "zero"] = "embedding"
    """First side state: the embedding output (uploaded as one more vector), or zero."""
    normalise: Literal["standard", "layer", "none"] = "standard"
    """What brings all backbones onto one scale: each number by its mean and deviation over the
    records received so far (`standard`), or each vector by its own mean and deviation (`layer`).
    """
    dropout: float = 0.3
    """On the incoming vectors, in training."""
    gate_temperature: float = 0.1
    """mu = sigmoid(alpha / T); alpha starts at 0."""
    averaging: float = 0.99
    """Decay of the running mean of weights that is evaluated and shipped; 0 uses the last weights.
    """

    def __post_init__(self) -> None:
        for name, least, below in (
            ("dropout", 0, 1),
            ("averaging", 0, 1),
            ("gate_temperature", 1e-6, 1e6),
        ):
            if not least <= getattr(self, name) < below:
                raise ValueError(
                    f"{name} must be at least {least} and below {below}, got {getattr(self, name)}"
                )
        for name in ("bottleneck", "width"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class SideShape:
    """The shape of one side network: blocks, common width, bottleneck, classes, and the width of
    each backbone it serves.
    """

    blocks: int
    width: int
    bottleneck: int
    classes: int
    backbone_widths: Mapping[str, int] = field(hash=False)
    start: str = "embedding"
    projection: str = "where-needed"
    normalise: str = "standard"

    @property
    def vectors(self) -> int:
        """Vectors uploaded a record: one a block, and the embedding output where the side state
        starts from it.
        """
        return self.blocks + (self.start == "embedding")

    def is_projected(self, backbone: str) -> bool:
        """Whether this backbone's vectors pass a trainable projection first."""
        return self.projection == "always" or self.backbone_widths[backbone] != self.width

    def parameters(self, backbone: str | None = None) -> int:
        """Trainable numbers: of the shared part and the projections of one backbone, or of all
        backbones (None).
        """
        d, r = self.width, self.bottleneck
        adapters = self.blocks * (2 * d * r + d + r + 2 * d + 1)
        head = 2 * d + d * self.classes + self.classes
        names = self.backbone_widths if backbone is None else [backbone]
        projections = sum(
            self.vectors * self.backbone_widths[n] * d for n in names if self.is_projected(n)
        )
        return adapters + head + projections

    def shipped_bytes(self, backbone: str) -> int:
        """What a device needs to predict: the shared part, its own projections and the statistics
        of its vectors, float32.
        """
        statistics = (
            2 * self.vectors * self.backbone_widths[backbone] if self.normalise == "standard" else 0
        )
        return 4 * (self.parameters(backbone) + statistics)

    def forward_flop(self, backbone: str) -> float:
        """FLOP of one record's forward pass, matrix products only."""
        return self._trunk_flop() + self._projection_flop(backbone)

    def training_step(self, records: Mapping[str, int]) -> Cost:
        """One update from so many records of each backbone: forward, backward, and AdamW's pass
        over its state.

        Backward costs twice the forward, but the uploaded vectors need no gradient, so projections
        cost it once. AdamW reads weights, gradients and two moments and writes three of them, in
        float32.
        """
        flop = math.fsum(
            n * (3 * self._trunk_flop() + 2 * self._projection_flop(name))
            for name, n in records.items()
        )
        return Cost(flop, 7 * 4 * self.parameters(), 4 * 4 * self.parameters())

    def _trunk_flop(self) -> float:
        return 2.0 * (self.blocks * 2 * self.width * self.bottleneck + self.width * self.classes)

    def _projection_flop(self, backbone: str) -> float:
        if not self.is_projected(backbone):
            return 0.0
        return 2.0 * self.vectors * self.backbone_widths[backbone] * self.width


def shape_for(
    config: SideNetworkConfig, blocks: int, backbone_widths: Mapping[str, int], classes: int
) -> SideShape:
    """Settle the common width and the bottleneck for a fleet's backbones (name -> hidden size)."""
    widths = sorted(backbone_widths.values())
    if config.width == "median":
        width = statistics.median_low(widths)
    else:
        width = widths[-1] if config.width == "max" else config.width
    bottleneck = config.bottleneck or max(1, width // 8)
    return SideShape(
        blocks,
        width,
        bottleneck,
        classes,
        dict(backbone_widths),
        config.start,
        config.projection,
        config.normalise,
    )
