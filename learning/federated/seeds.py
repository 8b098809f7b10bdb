"""Seeds that follow from others: of a direction, of what a pass drops out."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, what: int | str) -> int:
    """The seed (63 bits) of one thing, such as a step or a candidate, by a fixed hash of (seed,
    what).
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=8).digest()) >> 1
