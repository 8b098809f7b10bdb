"""What a batch is learned by, as it goes up beside its vectors: a label of each text, or the end of
each text that is to be said.

A response ends its text, so the server needs no more to know which tokens are to be said than each
text's length and how many of its last tokens they are; the tokens themselves are what the model's
vocabulary is held against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from learning.backbones.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor


class Targets(NamedTuple):
    """What the outputs for a batch are held against, and, of responses, the segments [B, T] that
    tell where they are; in how many bytes all that came.
    """

    wanted: Tensor
    segments_BT: Tensor | None
    nbytes: int


def packed_said(tokens: Tokens) -> bytes:
    """How many tokens at the end of each text are to be said, and these, text after text."""
    ends = [ids[len(ids) - n :] for ids, n in zip(tokens.ids, tokens.said_lengths(), strict=True)]
    for number, end in enumerate(ends):
        assert tokens.said(number)[len(tokens.ids[number]) - len(end) :].all(), "they are the last"
    counts = np.array([len(end) for end in ends])
    return counts.astype("<i4").tobytes() + np.concatenate(ends).astype("<i4").tobytes()


def unpacked_said(data: bytes, mask_BT: Tensor) -> Targets:
    """The inverse, of texts with this mask of real tokens."""
    import torch

    batch, longest = mask_BT.shape
    counts = torch.from_numpy(np.frombuffer(data, "<i4", batch).copy())
    said = np.frombuffer(data, "<i4", int(counts.sum()), offset=4 * batch)
    begins_B = mask_BT.sum(dim=1) - counts
    segments_BT = (torch.arange(longest) >= begins_B[:, None]) * mask_BT
    wanted_M = torch.from_numpy(said.astype(np.int64))
    return Targets(wanted_M, segments_BT, 4 * (batch + len(said)))


def unpacked_labels(data: bytes, label_format: str, batch: int) -> Targets:
    """Labels, each as long as a number of a class."""
    from learning.federated.losses import targets_of

    labels = np.frombuffer(data, label_format, batch)
    return Targets(targets_of(labels), None, labels.nbytes)
