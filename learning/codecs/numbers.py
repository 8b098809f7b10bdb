"""Vectors as tensors that are sent, and back: the largest numbers of each, a number format, entropy
coding. Real bytes; how many follows from the shapes, but for what is entropy coded.

`int8` and `int4` round symmetrically: a vector x (or a channel of several) has the scale

    scale = max|x| / q,  sent = round(x / scale),
    q = 127 (8 bits) or 7 (4 bits, two numbers a byte)

and comes back with an error of at most half a scale. Entropy coding is Zstandard (RFC 8878) on the
bytes of the numbers, those of equal significance together.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from learning.codecs.chain import Chain, chain_of, place_bytes

ZSTD_LEVEL = 3
_LARGEST = {8: 127, 4: 7}
_ORDER = ("places", "scale", "values")
_TYPES = {"F32": "<f4", "F16": "<f2", "U16": "<u2", "I8": "i1", "U8": "u1"}
_LARGEST_BFLOAT16 = np.uint32(0x7F7F0000).view(np.float32)
_DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),  # numpy has none: the upper half of float32's bits
}


def to_tensors(
    values: np.ndarray, chain: Chain, across: int = 0, scales: type[np.floating] = np.float16
) -> dict[str, np.ndarray]:
    """What is sent of vectors [..., D], already projected: `values`, and where the chain has them
    their `scale` (of a channel: along the axis `across`), in this format, and `places`.

    Beyond a format's range numbers saturate. Where any is not finite all that are sent come back as
    NaN: no format but float32 could say which, and what is not sent would hide it. The places are
    uint16 [..., K], or bits packed into uint8 [..., ceil(D / 8)].
    """
    tensors: dict[str, np.ndarray] = {}
    if not np.isfinite(values).all():
        values = np.full_like(values, np.nan)
    if chain.top is not None:
        width = values.shape[-1]
        kept = chain.kept(width)
        places = largest_places(values, kept)
        values = np.take_along_axis(values, places, axis=-1)
        tensors["places"] = _packed_places(places, width)
    if chain.is_scaled:
        axis = across if chain.by_channel else -1
        values, tensors["scale"] = quantise(values, chain.bits, axis, scales)
        values = pack_nibbles(values) if chain.bits == 4 else values
    elif chain.number == "bfloat16":
        values = _to_bfloat16(values)
    else:
        number = _DTYPES[chain.number]
        limit = np.finfo(number).max  # saturates instead of infinity
        values = np.clip(values, -limit, limit).astype(number)
    if chain.coder:
        values = np.frombuffer(_coded(values), dtype=np.uint8)
    return {**tensors, "values": values}


def from_tensors(
    tensors: Mapping[str, np.ndarray], chain: Chain, shape: tuple[int, ...]
) -> np.ndarray:
    """Vectors of this shape [..., D] as float32; what was not sent is zero, and what precision lost
    stays lost.
    """
    width = shape[-1]
    kept = chain.kept(width)
    values = tensors["values"]
    if chain.coder:
        sent = (*shape[:-1], math.ceil(kept / 2) if chain.bits == 4 else kept)
        values = _uncoded(values, _stored(chain), sent)
    if chain.is_scaled:
        if chain.bits == 4:
            values = unpack_nibbles(values, kept)
        values = values.astype(np.float32) * tensors["scale"].astype(np.float32)
    elif chain.number == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    else:
        values = values.astype(np.float32)
    if chain.top is None:
        return values
    found = np.zeros(shape, dtype=np.float32)
    np.put_along_axis(found, _unpacked_places(tensors["places"], kept, width), values, axis=-1)
    return found


def shapes_of(
    chain: Chain,
    shape: tuple[int, ...],
    across: int = 0,
    scales: type[np.floating] = np.float16,
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type (as safetensors calls it) and shape of each tensor that `to_tensors` makes of vectors of
    this shape, before any entropy coding.
    """
    *outer, width = shape
    kept = chain.kept(width)
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "U16"}
    kind = kinds.get(chain.number, "I8" if chain.bits == 8 else "U8")
    numbers = math.ceil(kept / 2) if chain.bits == 4 else kept
    found = {"values": (kind, (*outer, numbers))}
    if chain.is_scaled:
        lines = [*outer, kept if chain.by_channel else 1]
        if chain.by_channel:
            lines[across] = 1
        found["scale"] = ("F16" if scales is np.float16 else "F32", tuple(lines))
    if chain.top is not None:
        bits = math.ceil(width / 8)
        are_bits = place_bytes(kept, width) == bits
        found["places"] = ("U8", (*outer, bits)) if are_bits else ("U16", (*outer, kept))
    return found


def nbytes(chain: Chain, shape: tuple[int, ...]) -> int:
    """How many bytes `to_bytes` makes of vectors of this shape."""
    shapes = shapes_of(chain, shape, scales=np.float32)
    return sum(np.dtype(_TYPES[kind]).itemsize * math.prod(of) for kind, of in shapes.values())


def to_bytes(values: np.ndarray, chain: Chain) -> bytes:
    """Vectors [..., D] as bytes without a header, for who knows the chain and the shape. Scales are
    float32: gradients and changes of models may be smaller than half precision goes.
    """
    tensors = to_tensors(values, chain, scales=np.float32)
    parts = [np.ascontiguousarray(tensors[name]) for name in _ORDER if name in tensors]
    return b"".join(part.tobytes() for part in parts)


def from_bytes(data: bytes, chain: Chain, shape: tuple[int, ...]) -> np.ndarray:
    """The vectors that were sent, float32 of this shape. ValueError for bytes of another size."""
    if len(data) != nbytes(chain, shape):
        raise ValueError(f"{len(data)} bytes are not {math.prod(shape)} numbers as {chain}")
    tensors, at = {}, 0
    shapes = shapes_of(chain, shape, scales=np.float32)
    for name in _ORDER:
        if name in shapes:
            kind, of = shapes[name]
            tensors[name] = np.frombuffer(data, _TYPES[kind], math.prod(of), at).reshape(of)
            at += tensors[name].nbytes
    return from_tensors(tensors, chain, shape)


def noted(chain: Chain, shape: tuple[int, ...]) -> dict[str, str]:
    """What the receiver must know beside the tensors, as safetensors' metadata; nothing of a plain
    number format that the tensors show by themselves.
    """
    if chain.is_plain and chain.number != "bfloat16":
        return {}
    sent = dataclasses.replace(chain, projection=None, coordinates=0)
    # one entry: safetensors writes several in another order each time
    return {"wire": f"{sent} of {'x'.join(map(str, shape))}"}


def read_note(data: bytes) -> tuple[Chain, tuple[int, ...]] | None:
    """What `noted` said, of a safetensors file's bytes; None where it said nothing."""
    length = int.from_bytes(data[:8], "little")
    note = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if "wire" not in note:
        return None
    wire, _, shape = note["wire"].partition(" of ")
    return chain_of(wire), tuple(map(int, shape.split("x")))


# --- the largest


def largest_places(values: np.ndarray, kept: int) -> np.ndarray:
    """Where the numbers of largest size stand in each vector, rising: [..., kept]; of equals the
    first.
    """
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")[..., :kept]
    return np.sort(order, axis=-1)


def arrived(values: np.ndarray, chain: Chain) -> np.ndarray:
    """Vectors [n, ..., D] as who learns from them gets them: a device predicts from such, too, as
    what rounding makes of a number that hardly varies is another number to what was learned. Half
    precision is exact enough for statistics (`learning.side.network`), and left as it is.
    """
    if chain.number in ("float32", "float16") and chain.top is None:
        return values
    whole = chain.without_coder
    return from_tensors(to_tensors(values, whole), whole, values.shape)


def _packed_places(places: np.ndarray, width: int) -> np.ndarray:
    kept = places.shape[-1]
    if place_bytes(kept, width) < math.ceil(width / 8):
        return places.astype(np.uint16)
    there = np.zeros((*places.shape[:-1], width), dtype=bool)
    np.put_along_axis(there, places, True, axis=-1)
    return np.packbits(there, axis=-1)


def _unpacked_places(packed: np.ndarray, kept: int, width: int) -> np.ndarray:
    if packed.dtype == np.uint16:
        return packed.astype(np.int64)
    there = np.unpackbits(packed, axis=-1, count=width)
    return np.argsort(1 - there, axis=-1, kind="stable")[..., :kept]


# --- number formats


def quantise(
    values: np.ndarray, bits: int, axis: int = -1, scales: type[np.floating] = np.float16
) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 of the same shape in -q to q, and a scale for each line along an axis.

    integer x scale differs from the value by at most scale / 2: half precision may round a scale
    down by 2^-11 of it, which clips the largest number by far less than that. A scale is at least
    the smallest normal number of its format (6.1e-5 in half precision) and at most its largest
    (65504), beyond which values saturate; that of a NaN is NaN.
    """
    largest, format_ = _LARGEST[bits], np.finfo(scales)
    wanted = np.abs(values).max(axis=axis, keepdims=True) / largest
    scale = np.clip(wanted, float(format_.tiny), format_.max).astype(scales)
    rounded = np.clip(np.rint(values / scale.astype(np.float32)), -largest, largest)
    return np.nan_to_num(rounded).astype(np.int8), scale


def pack_nibbles(rounded: np.ndarray) -> np.ndarray:
    """Two numbers a byte, uint8 [..., ceil(D / 2)]; each in -7..7, sent plus 8, the first in the
    low half.
    """
    nibbles = (rounded + 8).astype(np.uint8)
    if nibbles.shape[-1] % 2:
        nibbles = np.concatenate([nibbles, np.full_like(nibbles[..., :1], 8)], axis=-1)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def unpack_nibbles(packed: np.ndarray, hidden: int) -> np.ndarray:
    """The inverse of `pack_nibbles`: int8 [..., hidden]."""
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return both[..., :hidden].astype(np.int8) - 8


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32's bits, rounded to the nearest, ties to even."""
    limited = np.clip(values, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16).astype(np.float32)
    bits = np.ascontiguousarray(limited).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


# --- entropy coding


def _stored(chain: Chain) -> np.dtype:
    if chain.is_scaled:
        return np.dtype(np.int8 if chain.bits == 8 else np.uint8)
    return _DTYPES[chain.number]


def _coded(values: np.ndarray) -> bytes:
    planes = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T
    codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
    return codec.compress(np.ascontiguousarray(planes), asbytes=True)


def _uncoded(data: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    codec = pa.Codec("zstd")
    whole = codec.decompress(np.ascontiguousarray(data), decompressed_size=size, asbytes=True)
    planes = np.frombuffer(whole, dtype=np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape)
