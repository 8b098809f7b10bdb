"""The settings of the shared side network, its size and its cost. Plain numbers, no torch."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from learning.cost.costs import Cost

Precision = Literal["float32", "float16", "int8"]
"""Of the numbers of a side network on its way to a device."""
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 7))
"""Of which a skip's is chosen; half decades from a thousandth to a thousand."""
EVALUATIONS = 100
"""Of loss and gradient that one solution of a logistic skip may take."""


@dataclass(frozen=True)
class SideNetworkConfig:
    """Gated bottleneck adapters over the sampled layers. Defaults beyond the papers are measured;
    see docs/fed_mobillm.md.
    """

    __pydantic_config__ = {"extra": "forbid"}
    only_for: ClassVar[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
        **dict.fromkeys(("penalty", "adapters"), ("a `skip`", lambda s: s.skip != "none")),
        **dict.fromkeys(
            ("bottleneck", "width", "projection", "dropout", "gate_temperature", "averaging"),
            ("adapters (`adapters` above 0)", lambda s: s.has_adapters),
        ),
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
    skip: Literal["none", "ridge", "logistic"] = "none"
    """What stands beside the adapters, solved in closed form from all records: a `ridge` regression
    on all vectors of a record at once; or, for reference, a `logistic` one, which needs the labels.
    """
    penalty: Literal["auto"] | float = "auto"
    """On the skip's squared weights, a record's vectors having a mean square length of about 1; or
    the one whose predictions of records left out are best.
    """
    adapters: float = 0.1
    """Their share in what is predicted; the rest is the skip's. 0: there are no adapters."""

    @property
    def has_adapters(self) -> bool:
        """Whether there is anything but a skip."""
        return self.skip == "none" or self.adapters > 0

    @property
    def penalties(self) -> tuple[float, ...]:
        """Those that are tried."""
        return PENALTIES if self.penalty == "auto" else (self.penalty,)

    def __post_init__(self) -> None:
        for name, least, below in (
            ("dropout", 0, 1),
            ("averaging", 0, 1),
            ("gate_temperature", 1e-6, 1e6),
            ("adapters", 0, 1),
            *([] if self.penalty == "auto" else [("penalty", 1e-6, 1e9)]),
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
class SideNetworkSettings(SideNetworkConfig):
    """The settings of a method, which may leave it to where they are used what is solved."""

    skip: Literal["auto", "none", "ridge", "logistic"] = "auto"  # type: ignore[assignment]
    """As of `SideNetworkConfig`; `auto`: `ridge` where the server keeps records and learns from
    squared errors (measured better, see docs/fed_mobillm.md), else `none`.
    """

    def settled(self, keeps_records: bool, loss: str) -> SideNetworkConfig:
        """What is meant of a server that does or does not keep records and has such a loss."""
        solved = "ridge" if keeps_records and loss == "squared-error" else "none"
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return SideNetworkConfig(**mine | ({"skip": solved} if self.skip == "auto" else {}))

    def unfit(self, keeps_records: bool, loss: str) -> Iterator[tuple[str, str]]:
        """What cannot be solved there, and what nothing would read as there is no skip by itself:
        (field, what is wrong).
        """
        if self.skip in ("ridge", "logistic") and not keeps_records:
            yield "skip", f"{self.skip} is solved from all records, and none are kept: leave it out"
        elif self.skip == "logistic" and loss != "cross-entropy":
            yield (
                "skip",
                "logistic needs the labels at the server: say so by `loss: cross-entropy`, or say "
                "`ridge`, which needs the differences alone",
            )
        if self.skip == "auto" and (settled := self.settled(keeps_records, loss)).skip == "none":
            for name in ("penalty", "adapters"):
                if getattr(settled, name) != getattr(SideNetworkConfig, name):
                    why = "no records are kept" if not keeps_records else f"the loss is {loss}"
                    yield (
                        name,
                        f"is for a `skip` alone, and there is none where {why}: leave it out",
                    )


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
    has_adapters: bool = True

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
        if not self.has_adapters:
            return 0
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
        found = [(self.blocks, r, d), (self.blocks, d, r), (1, self.classes, d)]
        if self.is_projected(backbone):
            found.append((self.vectors, self.backbone_widths[backbone], d))
        solved = [(1, self.inputs(backbone), self.classes)] if self.skip != "none" else []
        return (found if self.has_adapters else []) + solved

    def inputs(self, backbone: str) -> int:
        """What a skip's weights meet: all numbers of a record's vectors."""
        return self.vectors * self.backbone_widths[backbone]

    def forward_flop(self, backbone: str) -> float:
        """FLOP of one record's forward pass, matrix products only."""
        flop = self._trunk_flop() + self._projection_flop(backbone) if self.has_adapters else 0.0
        if self.skip != "none":
            flop += 2.0 * self.inputs(backbone) * self.classes
        return flop

    def fitting(self, records: Mapping[str, int], penalties: int) -> Cost:
        """Solving the skip for so many records of each backbone, with one of so many penalties.

        `ridge`, in float64: products of inputs (or of records, whichever are fewer, and back), all
        eigenvectors in 9 K^3 (Golub & Van Loan, section 8.3), and the records along them, which
        each penalty weighs. `logistic`: all evaluations that each solution may take.
        """
        by_width: dict[int, tuple[int, int]] = {}
        for name, n in records.items():
            width = self.backbone_widths[name]
            by_width[width] = self.inputs(name), by_width.get(width, (0, 0))[1] + n
        cost = Cost()
        for inputs, n in by_width.values():
            if self.skip == "logistic":
                solutions = penalties + 1 if penalties > 1 else 1
                flop = EVALUATIONS * solutions * 4.0 * n * inputs * self.classes
                cost += Cost(flop, 4.0 * n * inputs * EVALUATIONS * solutions, 4 * n * inputs)
                continue
            rank, products = min(n, inputs), 2.0 * n * inputs * min(n, inputs)
            flop = products * (2 if n > inputs else 3) + 9.0 * rank**3
            flop += 2.0 * self.classes * (rank * (n + inputs) + inputs)  # moment, weights, bias
            flop += penalties * 2.0 * n * rank * (self.classes + 1)
            held = 8 * (rank**2 + inputs * (rank + self.classes) + n * (inputs + rank))
            cost += Cost(flop, 2.0 * held, held)
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

    def _skip_numbers(self, backbone: str) -> int:
        """What is shipped of the skip: its weights, a bias a class and a scale."""
        if self.skip == "none":
            return 0
        return self.inputs(backbone) * self.classes + self.classes + 1

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
        config.has_adapters,
    )
