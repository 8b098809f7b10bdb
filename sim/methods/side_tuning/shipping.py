"""What a device is sent of the trained side network, and what it would cost to ask the server for
predictions instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import AfterValidator

from learning.codecs.chain import chain_of
from learning.side.config import Precision, SideShape
from sim.scenario.settings import Settings


class Shipping(Settings):
    """How the side network goes to the devices after training."""

    precision: Precision = "int8"
    """Number format of what is sent; int8 has a float32 scale a line of each matrix, and all else
    in float16.
    """


def _settled(given: bool | Shipping) -> bool | Shipping:
    return Shipping() if given is True else given


Ships = Annotated[bool | Shipping, AfterValidator(_settled)]
"""Whether and how: true is the usual way."""


def precision_of(ships: bool | Shipping) -> Precision:
    """At which the side network goes to a device, or would."""
    return (ships if isinstance(ships, Shipping) else Shipping()).precision


def prediction_bytes(shape: SideShape, width: int, wire: str | Sequence[str]) -> int:
    """Of one text that the server predicts: its vectors, of the backbone's width, go up as in
    training, `classes` numbers come down; frames, which many texts share, are left out, and so is
    what entropy coding saves.
    """
    chain = chain_of(wire)
    up = shape.vectors * chain.vector_bytes(width)
    return up + shape.classes * (4 if chain.number == "float32" else 2)


def at_server(bytes_a_text: Iterable[int], delivery_bytes: Iterable[int]) -> dict[str, float]:
    """Prediction at the server against delivery, by device: the mean bytes of a text, and after how
    many texts a device of the mean delivery would have sent as much.
    """
    texts, deliveries = list(bytes_a_text), list(delivery_bytes)
    mean = math.fsum(texts) / len(texts)
    return {
        "bytes_a_text": mean,
        "texts_to_break_even": math.fsum(deliveries) / len(deliveries) / mean,
    }
