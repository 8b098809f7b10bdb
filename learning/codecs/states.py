"""A change of a model on the wire by a chain of codecs, and what it loses there.

The numbers of all tensors follow one another in the order that both sides know. Rounded ones have a
float16 scale for each block of 256 numbers (as QSGD's buckets; Alistarh et al., NeurIPS 2017); the
largest are chosen, and rounded by one scale, among all of them (deep gradient compression; Lin et
al., ICLR 2018). No header is needed: sizes follow from how many numbers there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from learning.codecs.chain import Chain, CodecError
from learning.codecs.numbers import from_tensors, shapes_of, to_tensors

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
ORDER = ("places", "scale", "values")
_TYPES = {"F32": "<f4", "F16": "<f2", "U16": "<u2", "I8": "i1", "U8": "u1"}


def require_for_states(chain: Chain) -> None:
    """Raise CodecError for what changes of models are not sent by: they have no axes and channels,
    and what an entropy code makes of them is known too late for the clock.
    """
    if chain.projection or chain.by_channel or chain.coder:
        raise CodecError(
            f"a change of a model is sent by a number format (float32, float16, bfloat16, int8, "
            f"int4), before it top-K where only the largest are sent: {chain} is more than that"
        )


def nbytes(numbers: int, chain: Chain) -> int:
    """How many bytes a change of so many numbers takes."""
    shapes = shapes_of(chain, _shape(numbers, chain))
    return sum(np.dtype(_TYPES[kind]).itemsize * math.prod(of) for kind, of in shapes.values())


def to_bytes(change: Mapping[str, Tensor], chain: Chain) -> bytes:
    """The bytes of a change."""
    flat = _flat(change)
    rows, width = _shape(len(flat), chain)
    padded = np.zeros(rows * width, dtype=np.float32)
    padded[: len(flat)] = flat
    tensors = to_tensors(padded.reshape(rows, width), chain)
    parts = [np.ascontiguousarray(tensors[name]) for name in ORDER if name in tensors]
    return b"".join(part.tobytes() for part in parts)


def from_bytes(data: bytes, like: Mapping[str, Tensor], chain: Chain) -> dict[str, Tensor]:
    """The change that was sent, as tensors of these shapes. ValueError for another size."""
    import torch
    from torch._utils import _unflatten_dense_tensors

    numbers = sum(tensor.numel() for tensor in like.values())
    if len(data) != nbytes(numbers, chain):
        raise ValueError(f"{len(data)} bytes are no change of {numbers} numbers as {chain}")
    shape, at = _shape(numbers, chain), 0
    shapes = shapes_of(chain, shape)
    tensors: dict[str, np.ndarray] = {}
    for name in ORDER:
        if name in shapes:
            kind, of = shapes[name]
            count = math.prod(of)
            tensors[name] = np.frombuffer(data, _TYPES[kind], count, at).reshape(of)
            at += tensors[name].nbytes
    flat = from_tensors(tensors, chain, shape).reshape(-1)[:numbers]
    parts = _unflatten_dense_tensors(torch.from_numpy(flat.copy()), list(like.values()))
    return dict(zip(like, parts, strict=True))


def encoding_flop(numbers: int, chain: Chain) -> float:
    """Operations for a change of so many numbers."""
    rows, width = _shape(numbers, chain)
    return rows * chain.encoding_flop(width)


def _shape(numbers: int, chain: Chain) -> tuple[int, int]:
    if chain.top is not None:
        return 1, max(1, numbers)
    return max(1, math.ceil(numbers / BLOCK)), BLOCK


def _flat(change: Mapping[str, Tensor]) -> np.ndarray:
    from torch._utils import _flatten_dense_tensors

    tensors = [tensor.detach().cpu() for tensor in change.values()]
    return _flatten_dense_tensors(tensors).numpy() if tensors else np.empty(0, np.float32)
