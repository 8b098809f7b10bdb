"""Named random streams: what device 17 draws for its availability follows from (seed,
"availability", 17) alone.

A stream is named by its purpose and its entity, never by the order of creation. Adding a device or
a purpose leaves every other stream alone, and two methods in one comparison see the same arrivals,
the same outages, the same links.
"""

import functools
from array import array
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

FIRST_BLOCK, NOTHING_DRAWN = 8, array("d")


@dataclass(frozen=True)
class Streams:
    """All the randomness of one run, by name; raises ValueError unless the seed is an integer of at
    least 0.
    """

    seed: int

    def __post_init__(self) -> None:
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int | np.integer)
            or self.seed < 0
        ):
            raise ValueError(f"seed must be an integer of at least 0 (got {self.seed!r})")

    def rng(self, purpose: str, entity: str | int = "") -> np.random.Generator:
        """A fresh generator at the start of the stream of this name: two calls with one name give
        the same draws.

        So ask once and keep it. Each costs about 12 microseconds (measured): for a large fleet draw
        whole vectors from one stream. NumPy promises the bits of SeedSequence and PCG64 across
        versions, though not the method that turns them into, say, a normal draw; a run's manifest
        therefore records NumPy's version.
        """
        return np.random.Generator(np.random.PCG64(self._sequence(purpose, entity)))

    def seed64(self, purpose: str, entity: str | int = "") -> int:
        """A seed in [0, 2**64) of the same name, for `torch.Generator.manual_seed`.

        Torch's CPU generator starts from the low 32 bits alone (1 and 1 + 2**32 draw the same
        numbers, torch 2.13).
        """
        return int(self._sequence(purpose, entity).generate_state(1, np.uint64)[0])

    def _sequence(self, purpose: str, entity: str | int) -> np.random.SeedSequence:
        # blake2b because Python's hash() varies by process; the length keeps ("a:b", "c") and ("a",
        # "b:c") apart.
        name = f"{len(purpose)}:{purpose}:{entity}".encode()
        words = self._seed_words + blake2b(name, digest_size=16).digest()
        return np.random.SeedSequence(np.frombuffer(words, dtype="<u4"))

    @functools.cached_property
    def _seed_words(self) -> bytes:
        """The seed as `SeedSequence(seed, spawn_key=words)` takes it in before the words, at a
        third of the time.
        """
        n_words = max(4, -(-int(self.seed).bit_length() // 32))
        return int(self.seed).to_bytes(4 * n_words, "little")


class Normals:
    """Standard normal draws from a stream of this name, the same as from its generator one by one.

    It holds blocks of draws and makes them from the start of the stream when it needs more: a
    generator weighs a kilobyte, and few devices of a large fleet have drawn anything yet.
    """

    __slots__ = ("_drawn", "_entity", "_next", "_purpose", "_streams")

    def __init__(self, streams: Streams, purpose: str, entity: str | int = "") -> None:
        self._streams, self._purpose, self._entity = streams, purpose, entity
        self._drawn, self._next = NOTHING_DRAWN, 0

    def standard_normal(self) -> float:
        """The next draw."""
        if self._next == len(self._drawn):
            rng = self._streams.rng(self._purpose, self._entity)
            count = 2 * self._next or FIRST_BLOCK
            self._drawn = array("d", rng.standard_normal(count).tobytes())
        self._next += 1
        return self._drawn[self._next - 1]
