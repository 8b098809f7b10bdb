"""A trainable state on the wire: its numbers in float32, in the fixed order that both sides know;
no header is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def pack(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of all tensors, one after the other: four a number."""
    return b"".join(
        np.ascontiguousarray(tensor.detach().numpy(), dtype="<f4").tobytes()
        for tensor in state.values()
    )


def unpack(data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that was packed, by the names and shapes of `like`; ValueError if the size is
    another.
    """
    numbers = np.frombuffer(data, dtype="<f4")
    if len(numbers) != sum(tensor.numel() for tensor in like.values()):
        raise ValueError(f"{len(data)} bytes are no state of {len(like)} tensors like these")
    state, start = {}, 0
    for name, tensor in like.items():
        part = numbers[start : start + tensor.numel()].reshape(tensor.shape)
        state[name] = torch.from_numpy(part.astype(np.float32))
        start += tensor.numel()
    return state
