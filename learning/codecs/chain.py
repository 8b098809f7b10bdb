"""What a scenario may say of how vectors are sent: one number format, and what stands around it.

    wire: int8                   # a number format
    wire: [pca-64, int8]         # 64 coordinates of each vector, along axes of public texts
    wire: [top-0.1, float16]     # the largest tenth of its numbers
    wire: [int4, zstd]           # entropy coded

The order is that of computing: project, keep the largest, round, code. No torch.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

NUMBERS = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "int4": 0.5,
    "int8-channel": 1.0,
    "int4-channel": 0.5,
}
"""Bytes of a number. Those of int8 and int4 have a float16 scale for each vector, or for each
channel of a payload's vectors of a layer."""
PROJECTIONS = ("pca", "random")
CODERS = ("zstd",)
SCALE_BYTES = 2
ROUNDING_FLOP, PICKING_FLOP, CODING_FLOP = 4.0, 8.0, 5.0
"""Operations of a number that is rounded by a scale (size, compare, divide, round) or looked at for
the largest, and of a byte that is coded: 560 MB/s of int8 activations on a core of about 3 GHz."""

_SAYS = (
    "a wire is one number format ("
    + ", ".join(NUMBERS)
    + ") or a list with one: before it pca-K or random-K, then top-K (numbers, or a share below 1);"
    " after it zstd"
)


class CodecError(ValueError):
    """No way of sending vectors; the message says what one is."""


@dataclass(frozen=True)
class Chain:
    """How vectors are sent: `projection` ("pca" or "random") to so many `coordinates`, the largest
    `top` (a number or a share) of each, a `number` format, a `coder`.
    """

    number: str
    projection: str | None = None
    coordinates: int = 0
    top: int | float | None = None
    coder: str | None = None

    def __str__(self) -> str:
        """As `chain_of` reads it, with commas between."""
        projection = f"{self.projection}-{self.coordinates}" if self.projection else None
        top = f"top-{self.top}" if self.top else None
        return ",".join(part for part in (projection, top, self.number, self.coder) if part)

    @property
    def bits(self) -> int:
        """Of a number."""
        return round(8 * NUMBERS[self.number])

    @property
    def is_scaled(self) -> bool:
        """Whether numbers are rounded by a scale."""
        return self.number.startswith("int")

    @property
    def by_channel(self) -> bool:
        """Whether a scale is a channel's, not a vector's."""
        return self.number.endswith("-channel")

    @property
    def is_plain(self) -> bool:
        """Whether it is a number format and nothing else."""
        return self == Chain(self.number)

    @property
    def without_coder(self) -> Chain:
        """The same before entropy coding: its sizes follow from shapes alone."""
        return replace(self, coder=None)

    def width(self, width: int) -> int:
        """Of a vector as it is sent. CodecError for more coordinates than it has numbers."""
        if self.projection is None:
            return width
        if self.coordinates > width:
            raise CodecError(
                f"{self.projection}-{self.coordinates}: vectors of {width} numbers have not so "
                f"many coordinates: say at most {width}"
            )
        return self.coordinates

    def kept(self, width: int) -> int:
        """How many numbers of a vector of this width (as it is sent) go. CodecError for more than
        it has.
        """
        if self.top is None:
            return width
        if isinstance(self.top, float):
            return max(1, round(self.top * width))
        if self.top > width:
            raise CodecError(
                f"top-{self.top}: of {width:,} numbers there are not so many: say at most {width}, "
                "or a share below 1, as top-0.1"
            )
        return self.top

    def vector_bytes(self, width: int) -> int:
        """Of one vector of so many numbers, before projecting and coding, without frame and scales
        of channels.
        """
        sent = self.width(width)
        kept = self.kept(sent)
        scale = SCALE_BYTES if self.is_scaled and not self.by_channel else 0
        places = 0 if self.top is None else place_bytes(kept, sent)
        return math.ceil(NUMBERS[self.number] * kept) + scale + places

    def encoding_flop(self, width: int) -> float:
        """Operations for one vector of so many numbers, its projection left out."""
        sent = self.width(width)
        flop = 0.0 if self.top is None else PICKING_FLOP * sent
        flop += ROUNDING_FLOP * self.kept(sent) if self.is_scaled else 0.0
        return flop + (CODING_FLOP * self.vector_bytes(width) if self.coder else 0.0)

    def projecting_flop(self, width: int) -> float:
        """Operations for one vector."""
        return 2.0 * width * self.coordinates if self.projection else 0.0


def place_bytes(kept: int, width: int) -> int:
    """Of where the kept numbers of a vector stand: two bytes each, or a bit for each place,
    whichever are fewer.
    """
    bits = math.ceil(width / 8)
    return min(bits, 2 * kept) if width <= 2**16 else bits


@functools.lru_cache(256)
def _parsed(words: tuple[str, ...]) -> Chain:
    found: dict[str, Any] = {}
    stages = ["projection", "top", "number", "coder"]
    for word in words:
        stage, values = _stage(word)
        if stage in found:
            raise CodecError(f"{word!r} is a second {stage}: {_SAYS}")
        if stages.index(stage) < max((stages.index(s) for s in found if s in stages), default=0):
            raise CodecError(f"{word!r} comes too late: {_SAYS}")
        found |= values
    if "number" not in found:
        raise CodecError(f"there is no number format: {_SAYS}")
    chain = Chain(**found)
    if chain.top is not None and chain.by_channel:
        raise CodecError(
            f"top-{chain.top} keeps other channels of each vector, so that {chain.number} has no "
            f"scale for them: say {chain.number.removesuffix('-channel')}"
        )
    return chain


def _stage(word: str) -> tuple[str, dict[str, Any]]:
    if word in NUMBERS:
        return "number", {"number": word}
    if word in CODERS:
        return "coder", {"coder": word}
    name, _, size = word.partition("-")
    is_count = re.fullmatch("[0-9]{1,18}", size) is not None and int(size) > 0
    if name in PROJECTIONS and is_count:
        return "projection", {"projection": name, "coordinates": int(size)}
    if name == "top":
        if is_count:
            return "top", {"top": int(size)}
        if re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", size) and 0 < float(size) < 1:
            return "top", {"top": float(size)}
    known = {name: name for name in (*NUMBERS, *CODERS)} | {
        n: f"{n}-K" for n in (*PROJECTIONS, "top")
    }
    near = difflib.get_close_matches(word, known) or difflib.get_close_matches(name, known)
    meant = known[near[0]].replace("K", size or "K") if near else word
    hint = f" (did you mean {meant}?)" if meant != word else ""
    raise CodecError(f"{word!r} is no part of a wire{hint}: {_SAYS}")


def chain_of(wire: str | Sequence[str] | Chain) -> Chain:
    """What a scenario says, as a `Chain`; CodecError for what is none.

    chain_of(["pca-64", "int8", "zstd"]).vector_bytes(384)   # 66
    """
    if isinstance(wire, Chain):
        return wire
    return _parsed(tuple(wire.split(",")) if isinstance(wire, str) else tuple(wire))


def _listed(given: Any) -> Any:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in given):
        raise CodecError(f"{given!r} is no wire: {_SAYS}")
    return given


def _checked(words: tuple[str, ...]) -> tuple[str, ...]:
    chain_of(words)
    return words


Wire = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed),
    AfterValidator(_checked),
    PlainSerializer(lambda words: words[0] if len(words) == 1 else [*words]),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""What a scenario may say; a default is given as a tuple."""
