"""The settings of the shared side network, its size and its cost. Plain numbers, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from learning.cost.costs import Cost

Precision = Literal["float32", "float16", "int8"]
"""Of the numbers of a side network on its way to a device."""


@dataclass(frozen=True)
class SideNetworkConfig:
    """Gated bottleneck adapters over the sampled layers. Defaults beyond the papers are measured;
    see docs/fed_mobillm.md.
    """

    __pydantic_config__ = {"extra": "forbid"}
    only_for: ClassVar[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
        "features": ("`skip: random-features`", lambda s: s.skip == "random-features"),
        "bandwidth": ("`skip: random-features`", lambda s: s.skip == "random-features"),
        "ridge": ("a `skip`", lambda s: s.skip != "none"),
    }

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
    skip: Literal["none", "ridge", "random-features"] = "none"
    """What stands beside the adapters, solved in closed form from all records and averaged with
    their output: a ridge regression on all vectors of a record at once (`ridge`), or on these and
    random Fourier features of them (`random-features`).
    """
    features: int = 2048
    """Random features of `skip: random-features`."""
    bandwidth: float = 2.0
    """Of their Gaussian kernel, in units of the root mean square length of a record's vectors."""
    ridge: float = 1.0
    """Penalty of the skip's weights; a record's features have a mean square length of about 1."""

    def __post_init__(self) -> None:
        for name, least, below in (
            ("dropout", 0, 1),
            ("averaging", 0, 1),
            ("gate_temperature", 1e-6, 1e6),
            ("bandwidth", 1e-6, 1e6),
            ("ridge", 1e-6, 1e9),
        ):
            if not least <= getattr(self, name) < below:
                raise ValueError(
                    f"{name} must be at least {least} and below {below}, got {getattr(self, name)}"
                )
        for name in ("bottleneck", "width", "features"):
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
    skip: str = "none"
    random_features: int = 0

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

    def shipped_bytes(self, backbone: str, precision: Precision) -> int:
        """What a device needs to predict: the shared part, its own projections and the statistics
        of its vectors, as `learning.side.delivery` encodes them.
        """
        numbers = self.parameters(backbone) + self._skip_numbers(backbone)
        if self.normalise == "standard":
            numbers += 2 * self.vectors * self.backbone_widths[backbone]
        if precision != "int8":
            return (4 if precision == "float32" else 2) * numbers
        matrices = self.matrices(backbone)
        in_matrices = sum(n * rows * columns for n, rows, columns in matrices)
        scales = sum(n * min(rows, columns) for n, rows, columns in matrices)
        return in_matrices + 4 * scales + 2 * (numbers - in_matrices)

    def matrices(self, backbone: str) -> list[tuple[int, int, int]]:
        """The learned matrices that a backbone needs: (how many, rows, columns)."""
        d, r = self.width, self.bottleneck
        projected, features = self.is_projected(backbone), self.skip_features(backbone)
        return [
            (self.blocks, r, d),
            (self.blocks, d, r),
            (1, self.classes, d),
            *([(self.vectors, self.backbone_widths[backbone], d)] if projected else []),
            *([(1, features, self.classes)] if features else []),
        ]

    def skip_features(self, backbone: str) -> int:
        """What the skip's weights meet: all numbers of a record's vectors, and random features of
        them; 0 without a skip.
        """
        if self.skip == "none":
            return 0
        return self.vectors * self.backbone_widths[backbone] + self.random_features

    def forward_flop(self, backbone: str) -> float:
        """FLOP of one record's forward pass, matrix products only."""
        return (
            self._trunk_flop()
            + self._projection_flop(backbone)
            + self._features_flop(backbone)
            + 2.0 * self.skip_features(backbone) * self.classes
        )

    def fitting(self, records: Mapping[str, int]) -> Cost:
        """Solving the skip for so many records of each backbone: their features, sums of products
        (of features or of records, whichever are fewer) and a Cholesky factor, in float64.
        """
        by_width: dict[int, tuple[str, int]] = {}
        for name, n in records.items():
            width = self.backbone_widths[name]
            by_width[width] = (name, by_width.get(width, (name, 0))[1] + n)
        cost = Cost()
        for name, n in by_width.values():
            features = self.skip_features(name)
            inputs = features - self.random_features
            fewer = min(n, features)
            products = float(n) * features * (fewer + 2 * self.classes)
            flop = n * self._features_flop(name) + products + fewer**3 / 3
            flop += 2.0 * fewer**2 * self.classes
            held = 8 * (fewer**2 + features * self.classes)
            cost += Cost(flop, 4.0 * n * inputs + 2.0 * held, held)
        return cost

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

    def _features_flop(self, backbone: str) -> float:
        inputs = self.skip_features(backbone) - self.random_features
        return 2.0 * inputs * self.random_features

    def _skip_numbers(self, backbone: str) -> int:
        """What is shipped of the skip: its weights, a bias a class and a scale; the random
        directions are drawn again.
        """
        features = self.skip_features(backbone)
        return features * self.classes + self.classes + 1 if features else 0

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
        config.skip,
        config.features if config.skip == "random-features" else 0,
    )
