"""What a device uploads: sampled activations and prediction differences, encoded into real bytes.

The encoding is the safetensors format (a JSON header and raw numbers): self-describing, free of
code, and its size depends on the shapes alone, so `encoded_nbytes` tells it without having the
numbers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from learning.side.full_activations import pack_nibbles, quantise, unpack_nibbles

WIRES = ("float32", "float16", "int8", "int4")


@dataclass(frozen=True)
class Activations:
    """A batch of records: activations [n, vectors, hidden], targets [n, classes] (float32), sample
    numbers [n].
    """

    values: np.ndarray
    targets: np.ndarray
    samples: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)


def encode(activations: Activations, wire: str = "float16") -> bytes:
    """The bytes that cross the link. `int8` and `int4` send each vector with its own float16 scale
    (`learning.side.full_activations.quantise`), two numbers of 4 bits in a byte; targets go as
    float16 or float32.
    """
    values = activations.values
    number = np.float32 if wire == "float32" else np.float16
    limit = np.finfo(number).max  # what is beyond half precision saturates instead of infinity
    tensors = {
        "samples": activations.samples.astype(np.int32),
        "targets": np.clip(activations.targets, -limit, limit).astype(number),
    }
    if wire in ("int8", "int4"):
        bits = 4 if wire == "int4" else 8
        rounded, tensors["scale"] = quantise(values, bits)
        tensors["values"] = pack_nibbles(rounded) if bits == 4 else rounded
    elif wire in WIRES:
        tensors["values"] = np.clip(values, -limit, limit).astype(number)
    else:
        raise ValueError(f"wire {wire!r} is not one of {', '.join(WIRES)}")
    # safetensors writes an array's memory as it lies, whatever its strides
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def decode(data: bytes, hidden: int | None = None) -> Activations:
    """The records in a payload, as float32; what the wire's precision lost stays lost. `hidden`
    tells a 4-bit vector of odd width from one a number longer, which it is taken for without.
    """
    tensors = load(data)
    values = tensors["values"]
    if values.dtype == np.uint8:
        values = unpack_nibbles(values, hidden or 2 * values.shape[-1])
    values = values.astype(np.float32)
    if "scale" in tensors:
        values *= tensors["scale"].astype(np.float32)
    return Activations(
        values, tensors["targets"].astype(np.float32), tensors["samples"].astype(np.int64)
    )


@functools.cache
def encoded_sizes(
    wire: str, records: int, vectors: int, hidden: int, classes: int
) -> dict[str, int]:
    """The exact bytes of each tensor of such a payload, and of its header (`frame`): those of one
    full of zeros.
    """
    shape = Activations(
        np.zeros((records, vectors, hidden), np.float32),
        np.zeros((records, classes), np.float32),
        np.zeros(records, np.int64),
    )
    data = encode(shape, wire)
    sizes = {name: tensor.nbytes for name, tensor in load(data).items()}
    return {**sizes, "frame": len(data) - sum(sizes.values())}


def encoded_nbytes(wire: str, records: int, vectors: int, hidden: int, classes: int) -> int:
    """The exact size of such a payload, header included."""
    return sum(encoded_sizes(wire, records, vectors, hidden, classes).values())
