"""What a device uploads of its places on a next-token task, as real bytes: states and gradients in
the first pass, gradients alone in those that follow, for the server has kept the states.
"""

from __future__ import annotations

import functools

import numpy as np
from safetensors.numpy import load, save

from learning.codecs.chain import Chain, chain_of
from learning.codecs.file_sizes import file_sizes
from learning.codecs.numbers import from_tensors, shapes_of, to_tensors


def encode(
    values_MVD: np.ndarray | None, targets_MK: np.ndarray, wire: tuple[str, ...] | Chain
) -> bytes:
    """States [M, V, D] (None: they are there already) and targets [M, K], both by the wire."""
    chain = chain_of(wire)
    tensors: dict[str, np.ndarray] = {}
    for name, array in (("values", values_MVD), ("targets", targets_MK[:, None])):
        if array is not None:
            parts = to_tensors(np.ascontiguousarray(array, dtype=np.float32), chain)
            tensors |= {f"{name}/{part}": np.ascontiguousarray(t) for part, t in parts.items()}
    return save(tensors)


def decode(
    data: bytes, vectors: int, width: int, targets: int, wire: tuple[str, ...] | Chain
) -> tuple[np.ndarray | None, np.ndarray]:
    """What arrives of them, float32."""
    chain, tensors = chain_of(wire), load(data)
    found: dict[str, np.ndarray] = {}
    for name, columns, wide in (("values", vectors, width), ("targets", 1, targets)):
        parts = {
            part.removeprefix(f"{name}/"): tensor
            for part, tensor in tensors.items()
            if part.startswith(f"{name}/")
        }
        if parts:
            records = len(parts["values"])
            found[name] = from_tensors(parts, chain, (records, columns, wide))
    return found.get("values"), found["targets"][:, 0]


@functools.cache
def encoded_sizes(
    wire: tuple[str, ...] | Chain, records: int, vectors: int, width: int, targets: int
) -> dict[str, int]:
    """The exact bytes of such a payload: `values` with their scales and places, `targets` with
    theirs, and `frame`, its header; 0 vectors: none go along.
    """
    chain = chain_of(wire)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, columns, wide in (("values", vectors, width), ("targets", 1, targets)):
        if columns:
            parts = shapes_of(chain, (records, columns, wide)).items()
            shapes |= {f"{name}/{part}": one for part, one in parts}
    sizes = file_sizes(shapes)
    found = {
        whole: sum(nbytes for name, nbytes in sizes.items() if name.startswith(f"{whole}/"))
        for whole in ("values", "targets")
    }
    return {**found, "frame": sizes["frame"]}
