"""A trainable state on the wire: its numbers in float32, in the fixed order that both sides know;
no header is needed. Its digest, and its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def pack(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of all tensors, one after the other: four a number."""
    if not state:
        return b""
    with torch.no_grad():
        numbers = _flatten_dense_tensors(list(state.values())).numpy()
    return numbers.astype("<f4", copy=False).tobytes()


def nbytes(like: Mapping[str, Tensor]) -> int:
    """How many bytes `pack` makes of a state of these shapes."""
    return 4 * sum(tensor.numel() for tensor in like.values())


def unpack(data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that was packed, by the names and shapes of `like`, in one piece of memory;
    ValueError if the size is another.
    """
    if len(data) != nbytes(like):
        raise ValueError(f"{len(data)} bytes are no state of {len(like)} tensors like these")
    numbers = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
    return dict(zip(like, _unflatten_dense_tensors(numbers, list(like.values())), strict=True))


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all names and numbers, in their order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file of the state, in a folder that is made if it is not there."""
    path.parent.mkdir(exist_ok=True)
    save_file({name: t.detach().contiguous().clone() for name, t in state.items()}, path)
