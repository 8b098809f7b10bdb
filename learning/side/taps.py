"""Layer-wise activation sampling: which layers of each backbone are uploaded (Fed MobiLLM)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


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
    depths: Mapping[str, int], taps: str | int | Sequence[int] = "interval"
) -> dict[str, tuple[int, ...]]:
    """The sampled layers of every backbone of a fleet; `depths` maps a backbone's name to its
    number of layers.

    `taps` is "interval" (as many blocks as the shallowest backbone has layers), a number of blocks,
    or an explicit list of layers used for every backbone (0 is the embedding output; every backbone
    must be deep enough).
    """
    if not isinstance(taps, str | int):
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
    shallowest = min(depths.values())
    blocks = shallowest if taps == "interval" else int(taps)
    if blocks > shallowest:
        raise ValueError(
            f"taps: {blocks} blocks, but the shallowest backbone of the fleet has {shallowest} "
            "layers"
        )
    return {name: average_interval(layers, blocks) for name, layers in depths.items()}
