"""Texts as bytes on the wire: what a device sends when it keeps nothing to itself."""

from __future__ import annotations

import struct

import numpy as np

from learning.data.texts import TextDataset
from learning.metrics import is_rating

# class number, bytes of the text, bytes of its second part (0 for single texts)
_FRAME = struct.Struct("<HII")
_RATED = struct.Struct("<eII")  # as long, with a rating in half precision
LABEL_BYTES = 2


def encode_texts(texts: TextDataset, samples: np.ndarray) -> bytes:
    """The samples' texts in UTF-8, each after 10 bytes: its label and its lengths."""
    parts: list[bytes] = []
    pack = _RATED.pack if is_rating(texts.labels) else _FRAME.pack
    for sample in samples:
        first = texts.texts[sample].encode()
        second = texts.second_texts[sample].encode() if texts.second_texts is not None else b""
        parts += [pack(texts.labels[sample], len(first), len(second)), first, second]
    return b"".join(parts)


def decode_texts(data: bytes) -> list[tuple[str, str, int]]:
    """(text, second text, class number) of each sample."""
    found, at = [], 0
    while at < len(data):
        label, first, second = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        found.append(
            (data[at : at + first].decode(), data[at + first : at + first + second].decode(), label)
        )
        at += first + second
    return found


def framing_nbytes(texts: int) -> int:
    """The bytes before so many texts: their labels and lengths."""
    return _FRAME.size * texts
