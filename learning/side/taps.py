"""Layer-wise activation sampling: which layers of each backbone are uploaded (Fed MobiLLM)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from inputs.units import Bytes

SHARE = 2 / 3
"""Of the interval rule's bytes: what the worthiest layers take where nobody says how many."""


@dataclass(frozen=True)
class TapRule:
    """How layers are chosen; by anything but position with the help of public texts."""

    __pydantic_config__ = {"extra": "forbid"}
    only_for: ClassVar[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
        "bytes_a_text": ("a number of `layers` left open", lambda rule: rule.layers is None),
    }

    by: Literal["interval", "importance"] = "importance"
    """Layers at even distances, or those whose vectors together know most of the labels of public
    texts.
    """
    layers: int | None = None
    """How many of each backbone; default as many as `bytes_a_text` allows."""
    bytes_a_text: Bytes | None = None
    """What the vectors of one text may take on the wire; default, of `interval`, what as many
    layers as the shallowest backbone has take, and two thirds of that, of `importance`.
    """
    align: Literal["position", "cka"] = "position"
    """What is block k of unlike backbones: each one's own k-th sampled layer, or of all but the
    deepest the layers most like the deepest one's (linear CKA over public texts).
    """

    @property
    def asks_texts(self) -> bool:
        """Whether it needs public texts."""
        return self.by == "importance" or self.align != "position"

    def blocks(self, shallowest: int, first: int, vector_bytes: int) -> int:
        """How many layers it samples of each backbone of a fleet: `first` is the number of vectors
        beside theirs, `vector_bytes` what the widest vector takes on the wire.

        Raises ValueError where the bytes do not suffice for one layer.
        """
        if self.layers is not None:
            return self.layers
        if self.bytes_a_text is None:
            share = 1.0 if self.by == "interval" else SHARE
            return max(1, math.floor(share * (shallowest + first) + 1e-9) - first)
        room = math.floor(self.bytes_a_text / vector_bytes) - first
        if room < 1:
            raise ValueError(
                f"taps: {self.bytes_a_text:g} B hold no layer: {first + 1} vectors of the widest "
                f"backbone take {(first + 1) * vector_bytes} B (`bytes_a_text`)"
            )
        return min(room, shallowest)


Taps = Literal["interval", "importance"] | int | list[int] | TapRule
"""What a scenario may say of the sampled layers."""


def rule_of(taps: Taps) -> TapRule | None:
    """What it says, as a rule; None for an explicit list."""
    if isinstance(taps, TapRule):
        return taps
    if isinstance(taps, int):
        return TapRule("interval", taps)
    return TapRule(taps) if isinstance(taps, str) else None


def average_interval(layers: int, blocks: int) -> tuple[int, ...]:
    """Indices of the last layer of each of `blocks` equal blocks of a backbone with `layers`
    layers, 1-based.

    layer(k) = floor(k * layers / blocks + 1/2), k = 1..blocks; the last is always `layers`. The
    rule is inferred from the published description ("average interval", the output of the last
    layer of each block).

    Raises ValueError when there are more blocks than layers.
    """
    if not 1 <= blocks <= layers:
        raise ValueError(f"{blocks} blocks cannot be cut from a backbone of {layers} layers")
    return tuple(math.floor(k * layers / blocks + 0.5) for k in range(1, blocks + 1))


def sample(
    depths: Mapping[str, int],
    taps: Taps = "interval",
    first: int = 1,
    vector_bytes: int = 1,
) -> dict[str, tuple[int, ...]]:
    """The sampled layers of every backbone of a fleet; `depths` maps a backbone's name to its
    number of layers.

    `taps` is a rule, or an explicit list of layers used for every backbone (0 is the embedding
    output; every backbone must be deep enough). Of a rule that asks texts, these are as many layers
    as it will choose, by the interval rule. `first` and `vector_bytes` are as in `TapRule.blocks`.
    """
    if isinstance(taps, list):
        chosen = tuple(taps)
        if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0:
            raise ValueError(
                f"taps: {list(chosen)} is not an increasing list of layer numbers (0 is the "
                "embedding)"
            )
        for name, layers in depths.items():
            if chosen[-1] > layers:
                raise ValueError(
                    f"taps: layer {chosen[-1]} does not exist in {name}, which has {layers} layers"
                )
        return dict.fromkeys(depths, chosen)
    rule = rule_of(taps)
    assert rule is not None, "all but a list is one"
    shallow = min(depths, key=lambda name: depths[name])
    shallowest = depths[shallow]
    blocks = rule.blocks(shallowest, first, vector_bytes)
    if blocks > shallowest:
        raise ValueError(
            f"taps: {blocks} sampled layers, but {shallow}, the shallowest backbone of the fleet, "
            f"has {shallowest}: set method.taps to {shallowest} or fewer"
        )
    return {name: average_interval(layers, blocks) for name, layers in depths.items()}
