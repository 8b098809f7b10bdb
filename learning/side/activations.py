"""What a device uploads: sampled activations and prediction differences, encoded into real bytes.

The encoding is the safetensors format (a JSON header and raw numbers): self-describing, free of
code, and its size depends on the shapes alone, so `encoded_nbytes` tells it without having the
numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from learning.codecs.chain import Chain, chain_of
from learning.codecs.numbers import from_tensors, noted, read_note, to_tensors


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


def encode(activations: Activations, wire: str | Sequence[str] | Chain = "float16") -> bytes:
    """The bytes that cross the link, of vectors that have been projected, where `wire` says so.

    Vectors go by `learning.codecs.numbers`, targets as float32 where those do, else as float16.
    CodecError for a wire that is none.
    """
    chain = chain_of(wire)
    number = np.float32 if chain.number == "float32" else np.float16
    limit = np.finfo(number).max  # what is beyond half precision saturates instead of infinity
    tensors = {
        "samples": activations.samples.astype(np.int32),
        "targets": np.clip(activations.targets, -limit, limit).astype(number),
        **to_tensors(activations.values, chain),
    }
    # safetensors writes an array's memory as it lies, whatever its strides
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(whole, noted(chain, activations.values.shape) or None)


def decode(data: bytes, hidden: int | None = None) -> Activations:
    """The records in a payload, as float32; what the wire lost stays lost. `hidden` tells a 4-bit
    vector of odd width from one a number longer, which it is taken for without.
    """
    tensors = load(data)
    values = tensors["values"]
    if note := read_note(data):
        chain, shape = note
    else:  # the tensors say it all
        four_bits = values.dtype == np.uint8
        chain = chain_of("int4" if four_bits else values.dtype.name)
        width = (hidden or 2 * values.shape[-1]) if four_bits else values.shape[-1]
        shape = (*values.shape[:-1], width)
    return Activations(
        from_tensors(tensors, chain, shape),
        tensors["targets"].astype(np.float32),
        tensors["samples"].astype(np.int64),
    )


def sizes_of(data: bytes) -> dict[str, int]:
    """The bytes of each tensor of a payload, and of its header (`frame`)."""
    sizes = {name: tensor.nbytes for name, tensor in load(data).items()}
    return {**sizes, "frame": len(data) - sum(sizes.values())}


@functools.cache
def encoded_sizes(
    wire: str | tuple[str, ...] | Chain, records: int, vectors: int, hidden: int, classes: int
) -> dict[str, int]:
    """The exact bytes of each tensor of such a payload, and of its header (`frame`), before any
    entropy coding: those of one full of zeros. `hidden` numbers a vector, as it is sent.
    """
    shape = Activations(
        np.zeros((records, vectors, hidden), np.float32),
        np.zeros((records, classes), np.float32),
        np.zeros(records, np.int64),
    )
    return sizes_of(encode(shape, chain_of(wire).without_coder))


def encoded_nbytes(
    wire: str | tuple[str, ...] | Chain, records: int, vectors: int, hidden: int, classes: int
) -> int:
    """The exact size of such a payload, header included, before any entropy coding."""
    return sum(encoded_sizes(wire, records, vectors, hidden, classes).values())
