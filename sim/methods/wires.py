"""Whether what a method sends is as long as its wire takes for granted."""

from __future__ import annotations

from learning.codecs.chain import Chain, CodecError


def sent_width(chain: Chain, width: int) -> int:
    """How many numbers of a vector of so many there are as it is sent. ValueError for a wire that
    such vectors have not.
    """
    try:
        sent = chain.width(width)
        chain.kept(sent)
    except CodecError as error:
        raise ValueError(f"method.wire: {error}") from error
    return sent
