"""Every token's hidden state of the sampled layers: what MobiLLM, and PAE MobiLLM without its
one-token shortcut, upload.

MobiLLM (arXiv 2502.20421) sends the whole matrix of a layer at a low bit width; its bit widths and
its quantiser are not published, so plain symmetric rounding stands for them: each token's vector of
each layer x has its own scale,

    scale = max|x| / q,  sent = round(x / scale),
    q = 127 (8 bits) or 7 (4 bits, two numbers a byte)

and comes back with an error of at most half a scale. Texts of a batch are laid end to end: padding
is not sent. As in `learning.side.activations` the bytes are a safetensors file, and their number
follows from the shapes alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

if TYPE_CHECKING:
    from learning.backbones.backbone import Backbone
    from learning.backbones.tokens import Tokens

BITS = (32, 16, 8, 4)
_LARGEST = {8: 127, 4: 7}
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class FullActivations:
    """A batch of n texts with N tokens in all: values float32 [layers, N, hidden], lengths [n] that
    add up to N, targets float32 [n, classes] (prediction differences, or one-hot labels for
    MobiLLM), sample numbers [n].
    """

    values: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    samples: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)


def full_states(
    backbone: Backbone, tokens: Tokens, layers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The hidden states of a batch at the sampled layers (0 is the embedding output), one forward
    pass.

    Returns values float32 [len(layers), N, hidden], the real tokens of all texts end to end, and
    lengths int64 [n].
    """
    import torch

    from learning.federated.local_training import inputs

    ids_BT, mask_BT, segments_BT = inputs(tokens, range(len(tokens)))
    states = backbone.states(ids_BT, mask_BT, segments_BT)
    kept = torch.stack([states[layer][mask_BT.bool()] for layer in layers])
    return kept.float().cpu().numpy(), tokens.lengths()


def pooled(activations: FullActivations, readout: str) -> np.ndarray:
    """One vector a text and layer, float32 [n, layers, hidden]: what `Backbone.readouts` gives,
    from the server's side.

    `readout` is "first", "last" or "mean" over the text's tokens; ValueError for any other.
    """
    ends = np.cumsum(activations.lengths)
    starts = ends - activations.lengths
    values_LND = activations.values
    if readout == "first":
        out_LND = values_LND[:, starts]
    elif readout == "last":
        out_LND = values_LND[:, ends - 1]
    elif readout == "mean":
        sums_LND = np.stack(
            [values_LND[:, a:b].sum(axis=1) for a, b in zip(starts, ends, strict=True)], axis=1
        )
        out_LND = sums_LND / activations.lengths[:, None].astype(np.float32)
    else:
        raise ValueError(f"readout {readout!r} is not one of first, last, mean")
    return np.ascontiguousarray(out_LND.transpose(1, 0, 2))


# --- the wire
# ------------------------------------------------------------------------------------------


def encode(activations: FullActivations, bits: int = 8) -> bytes:
    """The bytes that cross the link: values in 32 or 16 bits, or in 8 or 4 with a float16 scale for
    each token and layer.

    Targets go as float16, as float32 with 32 bits. ValueError for other numbers of bits.
    """
    number = np.float32 if bits == 32 else np.float16
    limit = np.finfo(number).max  # what is beyond half precision saturates instead of infinity
    tensors = {
        "lengths": activations.lengths.astype(np.int32),
        "samples": activations.samples.astype(np.int32),
        "targets": np.clip(activations.targets, -limit, limit).astype(number),
    }
    if bits in _LARGEST:
        rounded, tensors["scale"] = quantise(activations.values, bits)
        tensors["values"] = pack_nibbles(rounded) if bits == 4 else rounded
    elif bits in BITS:
        tensors["values"] = np.clip(activations.values, -limit, limit).astype(number)
    else:
        raise ValueError(f"{bits} bits: choose one of {', '.join(map(str, BITS))}")
    # safetensors writes an array's memory as it lies, whatever its strides
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def decode(data: bytes, hidden: int) -> FullActivations:
    """The records in a payload, as float32; `hidden` tells a 4-bit vector of odd width from one a
    number longer.
    """
    tensors = load(data)
    values = tensors["values"]
    if values.dtype == np.uint8:
        values = unpack_nibbles(values, hidden)
    values = values.astype(np.float32)
    if "scale" in tensors:
        values *= tensors["scale"].astype(np.float32)
    whole = {name: tensors[name].astype(np.int64) for name in ("lengths", "samples")}
    return FullActivations(values, targets=tensors["targets"].astype(np.float32), **whole)


def quantise(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 [..., D] in -q to q, and a float16 scale [..., 1] for each vector.

    integer x scale differs from the value by at most scale / 2: half precision may round a scale
    down by 2^-11 of it, which clips the largest number by far less than that. A scale is at least
    6.1e-5 (the smallest normal number) and at most 65504, beyond which values saturate.
    """
    largest = _LARGEST[bits]
    wanted = np.abs(values).max(axis=-1, keepdims=True) / largest
    scale = np.clip(wanted, _SMALLEST_SCALE, np.finfo(np.float16).max).astype(np.float16)
    return np.clip(np.rint(values / scale.astype(np.float32)), -largest, largest).astype(
        np.int8
    ), scale


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


def encoded_nbytes(
    bits: int, records: int, tokens: int, layers: int, hidden: int, classes: int
) -> int:
    """The exact size of such a payload, header included."""
    return sum(encoded_sizes(bits, records, tokens, layers, hidden, classes).values())


def encoded_sizes(
    bits: int, records: int, tokens: int, layers: int, hidden: int, classes: int
) -> dict[str, int]:
    """The exact bytes of each tensor of such a payload, and of its header (`frame`), without
    building it: `tokens` is the sum over its `records`.
    """
    number = "F32" if bits == 32 else "F16"
    shapes = {
        "lengths": ("I32", (records,)),
        "samples": ("I32", (records,)),
        "targets": (number, (records, classes)),
    }
    if bits in _LARGEST:
        shapes["scale"] = ("F16", (layers, tokens, 1))
    packed = math.ceil(hidden / 2) if bits == 4 else hidden
    shapes["values"] = ({32: "F32", 16: "F16", 8: "I8", 4: "U8"}[bits], (layers, tokens, packed))
    return _safetensors_sizes(shapes)


_NUMBER_BYTES = {
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "I8": 1,
    "U8": 1,
}  # in the order in which safetensors lays tensors out


def _safetensors_sizes(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Bytes of each tensor, in the order in which they lie, and of the frame before them: 8 bytes
    of header length, and the JSON header padded to a multiple of 8 (the safetensors format).
    """
    header, sizes, offset = {}, {}, 0
    order = list(_NUMBER_BYTES)
    for name, (dtype, shape) in sorted(
        shapes.items(), key=lambda item: (order.index(item[1][0]), item[0])
    ):
        sizes[name] = math.prod(shape) * _NUMBER_BYTES[dtype]
        end = offset + sizes[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return {**sizes, "frame": 8 + math.ceil(len(text) / 8) * 8}
