"""A trained side network as it goes to a device: the bytes of all that the device cannot know, at
one of three precisions.

The device knows the shape and what a seed draws, so no header goes along: the tensors of the state
follow one another, those that belong to other backbones and counts of records left out. `float32`
and `float16` send every number so. `int8` rounds the numbers of a matrix to 1/127 of the largest in
their line, the longer way of the matrix, whose scale goes along in float32; what is no matrix, and
the mean and deviation of the vectors, go in float16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from learning.side.network import SideNetwork, names_of

_HALF = np.finfo(np.float16).max


def encode(network: SideNetwork, backbone: str, precision: str) -> bytes:
    """What a device of this backbone is sent; `SideShape.shipped_bytes` many."""
    return b"".join(
        _encoded(tensor, precision, _is_matrix(name, tensor))
        for name, tensor in _as_sent(network, backbone).items()
    )


def decode(data: bytes, network: SideNetwork, backbone: str, precision: str) -> None:
    """Let a network of that shape predict for this backbone by what was sent. ValueError where
    the bytes are not as many as it needs.
    """
    state, at = network.state_dict(), 0
    received: dict[str, Tensor] = {}
    for name, tensor in _as_sent(network, backbone).items():
        values, at = _decoded(data, at, tuple(tensor.shape), precision, _is_matrix(name, tensor))
        received[name] = torch.from_numpy(values)
    if at != len(data):
        raise ValueError(f"{len(data)} bytes are not the {at} of this side network at {precision}")
    network.load_state_dict({**state, **_as_used(received, network, backbone)})


def delivered(network: SideNetwork, precision: str) -> SideNetwork:
    """The side network that all devices have together: for each backbone what was sent to its."""
    there = SideNetwork(network.shape, network.config).to(network.place.device).eval()
    for backbone in network.shape.backbone_widths:
        decode(encode(network, backbone, precision), there, backbone, precision)
    return there


def _as_sent(network: SideNetwork, backbone: str) -> dict[str, Tensor]:
    """Of the state what this backbone needs: in place of summed squares the deviation."""
    state = network.state_dict()
    sent = {name: state[name] for name in _names(network, backbone) if not _is_count(name, state)}
    for name in [name for name in sent if name.endswith(".squares")]:
        stem = name.removesuffix("squares")
        count = state[stem + "count"]
        if count < 2:  # nothing was standardised
            sent[name] = torch.ones_like(sent[name])
            sent[stem + "mean"] = torch.zeros_like(sent[name])
        else:
            sent[name] = (sent[name] / count).sqrt()
    return sent


def _as_used(
    received: Mapping[str, Tensor], network: SideNetwork, backbone: str
) -> dict[str, Tensor]:
    """The state that was sent. Of counts a device needs to know only whether there were any, which
    shows: a skip that was never solved has no weights.
    """
    state, used = network.state_dict(), dict(received)
    for name in _names(network, backbone):
        stem, _, last = name.rpartition(".")
        if _is_count(name, state):
            is_there = last != "records" or bool(received[f"{stem}.weights"].any())
            used[name] = torch.full_like(state[name], 2 * is_there)
        elif last == "squares":
            used[name] = 2 * received[name].double() ** 2
    return used


def _names(network: SideNetwork, backbone: str) -> list[str]:
    """Of the tensors that are all backbones' or this one's, in the order of the state."""
    mine = names_of(backbone, network.shape.backbone_widths[backbone])
    names = [(name, name.split(".")) for name in network.state_dict()]
    return [name for name, parts in names if {p for p in parts if p.startswith("of ")} <= mine]


def _is_count(name: str, state: Mapping[str, Tensor]) -> bool:
    return name.endswith(".count") or not state[name].is_floating_point()


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether it is rounded by the line: statistics are vectors, one for each that is uploaded."""
    return tensor.ndim >= 2 and not name.startswith("standardisers.")


def _encoded(tensor: Tensor, precision: str, is_matrix: bool) -> bytes:
    values = tensor.detach().cpu().double().numpy()
    if precision == "int8" and is_matrix:
        along = _along(values.shape)
        largest = np.abs(values).max(axis=along, keepdims=True)
        scale = (np.where(largest > 0, largest, 1) / 127).astype("<f4")
        rounded = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        return scale.tobytes() + rounded.tobytes()
    if precision == "float32":
        return values.astype("<f4").tobytes()
    return np.clip(values, -_HALF, _HALF).astype("<f2").tobytes()  # saturates, as uploads do


def _decoded(
    data: bytes, at: int, shape: tuple[int, ...], precision: str, is_matrix: bool
) -> tuple[np.ndarray, int]:
    """The tensor that begins at a byte, float32, and where the next one does."""

    def read(kind: str, shape: tuple[int, ...]) -> np.ndarray:
        nonlocal at
        end = at + int(np.prod(shape)) * np.dtype(kind).itemsize
        if end > len(data):
            raise ValueError(f"{len(data)} bytes end within this side network at {precision}")
        values, at = np.frombuffer(data[at:end], kind).reshape(shape), end
        return values.astype(np.float32)

    if precision == "int8" and is_matrix:
        lines = list(shape)
        lines[_along(shape)] = 1
        scale = read("<f4", tuple(lines))
        return scale * read("i1", shape), at
    return read("<f4" if precision == "float32" else "<f2", shape), at


def _along(shape: tuple[int, ...]) -> int:
    """The longer of the last two axes: the fewer lines, the fewer scales."""
    return -1 if shape[-1] >= shape[-2] else -2
