"""What a device uploads of its places on a next-token task, as real bytes: states and differences
in the first pass, differences alone in those that follow, for the server has kept the states.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load, save

from learning.codecs.chain import Chain, chain_of
from learning.codecs.file_sizes import file_sizes
from learning.codecs.numbers import from_tensors, shapes_of, to_tensors


class PlaceShape(NamedTuple):
    """Of what is sent of a place: so many state vectors so wide, `targets` numbers of the
    difference and, where these are entries of it, in a vocabulary of so many `words`.
    """

    vectors: int
    width: int
    targets: int
    words: int = 0

    @property
    def word_type(self) -> tuple[str, str]:
        """The type of a word's number, as safetensors and NumPy call it: the shortest."""
        return ("U16", "<u2") if self.words <= 2**16 else ("I32", "<i4")


def encode(
    values_MVD: np.ndarray | None,
    targets_MN: np.ndarray,
    words_MN: np.ndarray | None,
    shape: PlaceShape,
    wire: tuple[str, ...] | Chain,
) -> bytes:
    """States [M, V, D] (None: they are there already) and numbers of the difference [M, N], both by
    the wire; which words these are of, where they are not of all, exactly.
    """
    chain = chain_of(wire)
    tensors: dict[str, np.ndarray] = {}
    for name, array in (("values", values_MVD), ("targets", targets_MN[:, None])):
        if array is not None:
            parts = to_tensors(np.ascontiguousarray(array, dtype=np.float32), chain)
            tensors |= {f"{name}/{part}": np.ascontiguousarray(t) for part, t in parts.items()}
    if words_MN is not None:
        tensors["words"] = np.ascontiguousarray(words_MN, dtype=shape.word_type[1])
    return save(tensors)


def decode(
    data: bytes, shape: PlaceShape, wire: tuple[str, ...] | Chain
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """What arrives of them: float32, and the words' numbers as integers of 64 bits."""
    chain, tensors = chain_of(wire), load(data)
    found: dict[str, np.ndarray] = {}
    sizes = (("values", shape.vectors, shape.width), ("targets", 1, shape.targets))
    for name, columns, wide in sizes:
        parts = {
            part.removeprefix(f"{name}/"): tensor
            for part, tensor in tensors.items()
            if part.startswith(f"{name}/")
        }
        if parts:
            records = len(parts["values"])
            found[name] = from_tensors(parts, chain, (records, columns, wide))
    words = tensors["words"].astype(np.int64) if "words" in tensors else None
    return found.get("values"), found["targets"][:, 0], words


@functools.cache
def encoded_sizes(
    wire: tuple[str, ...] | Chain, records: int, shape: PlaceShape, with_values: bool
) -> dict[str, int]:
    """The exact bytes of such a payload: `values` with their scales, `targets` with theirs and with
    their words, and `frame`, its header.
    """
    chain = chain_of(wire)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    columns = {"targets": (1, shape.targets)}
    if with_values:
        columns["values"] = (shape.vectors, shape.width)
    for name, (vectors, wide) in columns.items():
        parts = shapes_of(chain, (records, vectors, wide)).items()
        shapes |= {f"{name}/{part}": one for part, one in parts}
    if shape.words:
        shapes["words"] = (shape.word_type[0], (records, shape.targets))
    sizes = file_sizes(shapes)
    found = {
        whole: sum(nbytes for name, nbytes in sizes.items() if name.startswith(f"{whole}/"))
        for whole in ("values", "targets")
    }
    found["targets"] += sizes.get("words", 0)
    return {**found, "frame": sizes["frame"]}
