"""A change of a model on the wire by a chain of codecs, and what it loses there.

The numbers of all tensors follow one another in the order that both sides know. Rounded ones have a
float32 scale for each block of 256 numbers (as QSGD's buckets; Alistarh et al., NeurIPS 2017); the
largest are chosen, and rounded by one scale, among all of them (deep gradient compression; Lin et
al., ICLR 2018). No header is needed: sizes follow from how many numbers there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from learning.codecs import numbers
from learning.codecs.chain import Chain, CodecError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256


def require_by_shape(chain: Chain, what: str) -> None:
    """Raise CodecError for what changes of models, or a batch's vectors and gradients, are not sent
    by: they have no axes and channels, and what an entropy code makes of them is known too late for
    the clock.
    """
    if chain.projection or chain.by_channel or chain.coder:
        raise CodecError(
            f"{what} by a number format (float32, float16, bfloat16, int8, int4), before it top-K "
            f"where only the largest are sent: {chain} is more than that"
        )


def nbytes(count: int, chain: Chain) -> int:
    """How many bytes a change of so many numbers takes."""
    return numbers.nbytes(chain, _shape(count, chain))


def to_bytes(change: Mapping[str, Tensor], chain: Chain) -> bytes:
    """The bytes of a change."""
    flat = _flat(change)
    rows, width = _shape(len(flat), chain)
    padded = np.zeros(rows * width, dtype=np.float32)
    padded[: len(flat)] = flat
    return numbers.to_bytes(padded.reshape(rows, width), chain)


def from_bytes(data: bytes, like: Mapping[str, Tensor], chain: Chain) -> dict[str, Tensor]:
    """The change that was sent, as tensors of these shapes. ValueError for another size."""
    import torch
    from torch._utils import _unflatten_dense_tensors

    count = sum(tensor.numel() for tensor in like.values())
    flat = numbers.from_bytes(data, chain, _shape(count, chain)).reshape(-1)[:count]
    parts = _unflatten_dense_tensors(torch.from_numpy(flat.copy()), list(like.values()))
    return dict(zip(like, parts, strict=True))


def encoding_flop(count: int, chain: Chain) -> float:
    """Operations for a change of so many numbers."""
    rows, width = _shape(count, chain)
    return rows * chain.encoding_flop(width)


def _shape(count: int, chain: Chain) -> tuple[int, int]:
    if chain.top is not None or not chain.is_scaled:
        return 1, max(1, count)
    return max(1, math.ceil(count / BLOCK)), BLOCK


def _flat(change: Mapping[str, Tensor]) -> np.ndarray:
    from torch._utils import _flatten_dense_tensors

    tensors = [tensor.detach().cpu() for tensor in change.values()]
    return _flatten_dense_tensors(tensors).numpy() if tensors else np.empty(0, np.float32)
