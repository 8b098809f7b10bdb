"""The settings of what devices do to what they send (`learning.side.protection`), and its cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field, model_serializer, model_validator

from learning.cost.costs import Cost
from learning.differential_privacy import noise_for
from learning.side.config import SideShape
from sim.kernel.world import World
from sim.scenario.settings import OnlyFor, Settings

STATISTIC_BYTES = 2
"""Of a number of the public axes, on its way to a device."""


class Protection(Settings):
    """What devices do to what they send, by a secret that they share and the server has not.
    Differences go as codes of the classes, always; the rest is chosen here.
    """

    only_for: ClassVar[OnlyFor] = {
        "axes": ("an `offset`", lambda settings: settings.offset > 0),
        "decoy_classes": ("`decoys`", lambda settings: settings.decoys > 0),
        "delta": ("an `epsilon`", lambda settings: settings.epsilon is not None),
    }
    codes: int | None = Field(None, ge=1)
    """Numbers of a code, at least as many as classes; default as many."""
    offset: float = Field(0.0, ge=0)
    """Variance, over that of the codes, of a secret function of the text's vectors that is taken
    off before sending and added again to what the side network says.
    """
    axes: int = Field(64, ge=1)
    """Leading axes of public texts' vectors (`task.public`) that this function is linear in."""
    noise: float = Field(0.0, ge=0)
    """Deviation of what is added to each number of a difference; two codes are 1.41 apart."""
    rotate: bool = False
    """Rotate every vector, each place of the side network by a rotation of its own."""
    activation_noise: float = Field(0.0, ge=0)
    """Deviation of what is added to each number of a vector, over the vector's root mean square."""

    decoys: float = Field(0.0, ge=0, le=10)
    """Records of no text for each record of one, in each payload one at least: each lies about two
    of its texts.
    """
    decoy_classes: int = Field(0, ge=0)
    """Classes that are none, which decoys are of; 0: they are of real classes, in shares that the
    server does not know.
    """
    epsilon: float | None = Field(None, gt=0)
    """Each text's upload is (epsilon, delta)-differentially private against the server: vectors are
    brought to unit length, and every number gets noise that is enough for it.
    """
    delta: float = Field(1e-5, gt=0, lt=1)
    """Of `epsilon`."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Protection], dict[str, Any]]) -> dict[str, Any]:
        """Who has nothing of what came later keeps the digest from before."""
        fields = type(self).model_fields
        later = ("decoys", "decoy_classes", "epsilon", "delta")
        return {
            name: value
            for name, value in dump(self).items()
            if name not in later or value != fields[name].default
        }

    @model_validator(mode="after")
    def _what_is_bounded(self) -> Protection:
        if self.epsilon is not None and self.offset > 0:
            raise ValueError(
                "epsilon: noise is enough for differences of bounded length, and `offset` makes "
                "them longer: leave one of them out"
            )
        if self.epsilon is not None and self.decoys > 0:
            raise ValueError(
                "epsilon: is of one upload a text, and `decoys` are made of texts' vectors, too: "
                "leave one of them out"
            )
        return self

    @property
    def none_classes(self) -> int:
        """How many classes that are none there are."""
        return self.decoy_classes if self.decoys else 0

    def decoys_of(self, records: int) -> int:
        """How many decoys go along with a payload of so many records."""
        return max(1, math.floor(self.decoys * records + 0.5)) if self.decoys else 0

    def outputs(self, classes: int) -> int:
        """How many numbers the side network says."""
        return classes + self.none_classes if self.codes is None else self.codes

    def for_matrices(self, has_differences: bool) -> Protection:
        """The same, of whole matrices; ValueError for what is of single vectors or differences."""
        for name in ("offset", "epsilon", "decoys"):
            if getattr(self, name):
                raise ValueError(f"protection.{name}: is for single vectors: leave it out")
        for name in ("codes", "noise") if not has_differences else ():
            if getattr(self, name):
                raise ValueError(
                    f"protection.{name}: is for differences, and labels go as they are here"
                )
        if not (has_differences or self.rotate or self.activation_noise):
            raise ValueError(
                "protection: changes nothing here, where labels go as they are: say `rotate` or "
                "`activation_noise`, or leave it out"
            )
        return self


class ProtectedSettings(Settings):
    """Settings of a method whose devices may protect what they send."""

    protection: Protection | None = None
    """What devices do to what they send, so that the server learns less from it."""

    @model_serializer(mode="wrap")
    def _without_later(self, dump: Callable[[ProtectedSettings], dict[str, Any]]) -> dict[str, Any]:
        """Who protects nothing keeps the digest from before there was this setting."""
        return {
            name: value
            for name, value in dump(self).items()
            if name != "protection" or value is not None
        }


def protection_of(config: Any) -> Protection | None:
    """What a method's devices do to what they send; None also for methods that have no such."""
    return getattr(config, "protection", None)


def outputs_of(config: Any, classes: int) -> int:
    """How many numbers a method's side network says of a text."""
    protection = protection_of(config)
    return classes if protection is None else protection.outputs(classes)


def sent_records(config: Any, records: int) -> int:
    """How many records go in a payload of so many texts."""
    protection = protection_of(config)
    return records if protection is None else records + protection.decoys_of(records)


def wanted_axes(config: Any) -> int:
    """How many axes of public texts devices need; 0: none."""
    protection = protection_of(config)
    return protection.axes if protection is not None and protection.offset > 0 else 0


def text_privacy(config: Any) -> dict[str, dict[str, float]]:
    """For the summary: what each text's upload is, if noise is added for it."""
    protection = protection_of(config)
    if protection is None or protection.epsilon is None:
        return {}
    return {"differential_privacy": {"epsilon": protection.epsilon, "delta": protection.delta}}


def require_protection(config: Any, world: World) -> None:
    """Raise ValueError where codes have too few numbers for all classes, noise cannot be counted,
    or decoys cannot be made.
    """
    protection = protection_of(config)
    if protection is not None and world.task.has_ratings:
        for name in ("epsilon", "decoys"):
            if getattr(protection, name):
                raise ValueError(
                    f"method.protection.{name}: is for classes, and the labels here are ratings: "
                    "leave it out"
                )
    if protection is not None and protection.epsilon is not None:
        if config.backbone_prediction == "own-head":
            raise ValueError(
                "method.protection.epsilon: an `own-head` is fitted to all of a device's labels, "
                "so that a text's label moves the uploads of others: say another "
                "`backbone_prediction`"
            )
        try:
            noise_for(protection.epsilon, protection.delta)
        except ValueError as error:
            raise ValueError(f"method.protection.epsilon: {error}") from None
    classes = world.task.classes
    if protection is None:
        return
    needed = classes + protection.none_classes
    if protection.outputs(classes) < needed:
        raise ValueError(
            f"method.protection.codes: {protection.codes} numbers cannot tell {needed} classes "
            f"apart: say at least {needed}"
        )
    if protection.decoys:
        _require_decoys(protection.decoys, config.device_batch, world)


def _require_decoys(decoys: float, batch: int, world: World) -> None:
    """Each payload has one at least, and two texts that it can be made of."""
    if decoys * batch < 0.5:
        raise ValueError(
            f"method.protection.decoys: {decoys:g} for each of the {batch} records of a payload "
            f"comes to none: say {math.ceil(50 / batch) / 100:g} or more, or "
            f"`device_batch: {math.ceil(0.5 / decoys)}`"
        )

    def alone(size: int) -> list[str]:
        return [d.id for d in world.devices if size == 1 or len(d.samples) % size == 1]

    if not (lonely := alone(batch)):
        return
    most = max(len(device.samples) for device in world.devices)
    others = sorted(range(2, most + 1), key=lambda size: abs(size - batch))
    better = next((size for size in others if not alone(size)), None)
    remedy = f"say `device_batch: {better}`" if better else "let every device have two or more"
    raise ValueError(
        f"method.protection.decoys: {lonely[0]} sends a text alone, and a decoy is made of two of "
        f"its payload: {remedy}"
    )


def device_cost(config: Any, shape: SideShape, backbone: str, records: int, classes: int) -> Cost:
    """What protecting so many records costs a device beside its forward pass; its peak is the
    secret, which the device holds all the time.
    """
    protection = protection_of(config)
    if protection is None:
        return Cost()
    width, numbers = shape.backbone_widths[backbone], shape.inputs(backbone)
    secret = classes * shape.classes
    if protection.offset:
        secret += numbers * shape.classes
    if protection.rotate:
        secret += numbers * width
    # squares, their root, a division and noise: of each number
    scaled = 4.0 * records * numbers if protection.epsilon is not None else 0.0
    return Cost(2.0 * records * secret + scaled, 4.0 * secret, 4 * secret)


def axes_cost(shape: SideShape, texts: int) -> Cost:
    """What the axes of so many public texts cost the server: a singular value decomposition in
    6 n F min(n, F) (Golub & Van Loan, section 8.6), all backbones of a width together.
    """
    cost = Cost()
    for width in {*shape.backbone_widths.values()}:
        rows = texts * sum(w == width for w in shape.backbone_widths.values())
        numbers = shape.vectors * width
        cost += Cost(6.0 * rows * numbers * min(rows, numbers), 8.0 * rows * numbers)
    return cost


def axes_bytes(config: Any, shape: SideShape, backbone: str) -> int:
    """What a device is sent of them, if any are wanted: its axes, and the mean and deviation of
    each number.
    """
    axes = wanted_axes(config)
    return STATISTIC_BYTES * (axes + 2) * shape.inputs(backbone) if axes else 0
