"""Every token's hidden state of the sampled layers: what MobiLLM, and PAE MobiLLM without its
one-token shortcut, upload.

MobiLLM (arXiv 2502.20421) sends the whole matrix of a layer at a low bit width; its bit widths and
its quantiser are not published, so plain symmetric rounding stands for them
(`learning.codecs.numbers`), each token's vector of each layer with its own scale. Texts of a batch
are laid end to end: padding is not sent. As in `learning.side.activations` the bytes are a
safetensors file, and their number follows from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from learning.codecs.chain import Chain, CodecError, chain_of
from learning.codecs.file_sizes import file_sizes
from learning.codecs.numbers import from_tensors, shapes_of, to_tensors

if TYPE_CHECKING:
    from learning.backbones.backbone import Backbone
    from learning.backbones.tokens import Tokens

ACROSS_TOKENS = -2
"""The axis along which a channel has one scale."""


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


def encode(activations: FullActivations, wire: str | Chain = "int8") -> bytes:
    """The bytes that cross the link: values in a number format, with a float16 scale for each token
    and layer (or each channel of a layer) where it has scales.

    Targets go as float16, as float32 with float32. CodecError for what is no plain number format.
    """
    chain = plain(wire)
    number = np.float32 if chain.number == "float32" else np.float16
    limit = np.finfo(number).max  # what is beyond half precision saturates instead of infinity
    tensors = {
        "lengths": activations.lengths.astype(np.int32),
        "samples": activations.samples.astype(np.int32),
        "targets": np.clip(activations.targets, -limit, limit).astype(number),
        **to_tensors(activations.values, chain, ACROSS_TOKENS),
    }
    # safetensors writes an array's memory as it lies, whatever its strides
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def decode(data: bytes, hidden: int, wire: str | Chain) -> FullActivations:
    """The records in a payload of vectors of so many numbers, as float32."""
    tensors = load(data)
    shape = (*tensors["values"].shape[:-1], hidden)
    values = from_tensors(tensors, plain(wire), shape)
    whole = {name: tensors[name].astype(np.int64) for name in ("lengths", "samples")}
    return FullActivations(values, targets=tensors["targets"].astype(np.float32), **whole)


def plain(wire: str | Sequence[str] | Chain) -> Chain:
    """A number format; CodecError for anything around it, which whole matrices have not."""
    chain = chain_of(wire)
    if not chain.is_plain:
        raise CodecError(f"whole matrices are sent in a number format alone: say {chain.number}")
    return chain


def encoded_nbytes(
    wire: str | Chain, records: int, tokens: int, layers: int, hidden: int, classes: int
) -> int:
    """The exact size of such a payload, header included."""
    return sum(encoded_sizes(wire, records, tokens, layers, hidden, classes).values())


def encoded_sizes(
    wire: str | Chain, records: int, tokens: int, layers: int, hidden: int, classes: int
) -> dict[str, int]:
    """The exact bytes of each tensor of such a payload, and of its header (`frame`), without
    building it: `tokens` is the sum over its `records`.
    """
    chain = plain(wire)
    number = "F32" if chain.number == "float32" else "F16"
    return file_sizes(
        {
            "lengths": ("I32", (records,)),
            "samples": ("I32", (records,)),
            "targets": (number, (records, classes)),
            **shapes_of(chain, (layers, tokens, hidden), ACROSS_TOKENS),
        }
    )
