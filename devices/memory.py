"""Does it fit? Memory that a method needs on a device, against what the device has. Plain numbers,
no allocation.

And does it still fit later on? Other apps take a share of the RAM that changes with time; work that
needs more than they leave is ended by the operating system at that moment.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from devices.load import Spells


def needed_bytes(weights_bytes: int, kept_bytes: int, peak_activation_bytes: int) -> int:
    """Peak memory of a device: weights + what the method keeps + peak of the activations alive at
    once.

    `kept_bytes` is whatever outlives one forward pass: gradients, optimiser state, perturbations,
    cached activations.
    """
    parts = {
        "weights": weights_bytes,
        "kept": kept_bytes,
        "peak activations": peak_activation_bytes,
    }
    for name, value in parts.items():
        if value < 0:
            raise ValueError(f"{name} cannot take {value} bytes")
    return weights_bytes + kept_bytes + peak_activation_bytes


def shortage_bytes(memory_bytes: int, needed: int) -> int:
    """Bytes that are missing; 0 when it fits (exactly full fits)."""
    return max(0, needed - memory_bytes)


@dataclass(frozen=True)
class Shortage:
    """A backbone that does not fit, by how much, and which ones would fit (largest first)."""

    backbone: str
    needed_bytes: int
    memory_bytes: int
    fitting: tuple[str, ...]

    @property
    def short_bytes(self) -> int:
        return shortage_bytes(self.memory_bytes, self.needed_bytes)

    def __str__(self) -> str:
        would = (
            f"would fit: {', '.join(self.fitting)}"
            if self.fitting
            else "no backbone of the list fits"
        )
        return (
            f"{self.backbone} needs {_readable(self.needed_bytes)} but the device has "
            f"{_readable(self.memory_bytes)}: "
            f"{_readable(self.short_bytes)} short; {would}"
        )


def find_shortage(
    backbone: str, memory_bytes: int, candidates: Iterable[tuple[str, int]]
) -> Shortage | None:
    """None if `backbone` fits in `memory_bytes`, else by how much it does not and what would.

    `candidates` are pairs (backbone name, needed bytes) that include `backbone` itself. Raises
    `ValueError` if not.
    """
    needed = dict(candidates)
    if backbone not in needed:
        raise ValueError(f"no memory need given for {backbone!r}; known: {', '.join(needed)}")
    if shortage_bytes(memory_bytes, needed[backbone]) == 0:
        return None
    fitting = sorted(
        (name for name, need in needed.items() if need <= memory_bytes),
        key=lambda n: (-needed[n], n),
    )
    return Shortage(backbone, needed[backbone], memory_bytes, tuple(fitting))


def pressure(
    rng: np.random.Generator, every_s: float = 300.0, share: tuple[float, float] = (0.3, 0.6)
) -> Spells:
    """The share of RAM that everything else holds: uniform within `share`, anew after exponential
    times of mean `every_s`.

    Both defaults are estimated, as no measured distribution was found: sweep them.
    """

    def draw() -> tuple[float, float]:
        seconds, uniform = rng.exponential(every_s), rng.random()
        return float(seconds), share[0] + (share[1] - share[0]) * uniform

    return Spells(draw)


def shortage_at_s(
    taken: Spells, memory_bytes: float, needed: float, start_s: float, end_s: float
) -> float:
    """The first moment from `start_s` until just before `end_s` at which less than `needed` is
    free; infinite if none.
    """
    time_s = start_s
    for share, until_s in taken.from_(start_s):
        if needed > memory_bytes * (1 - share):
            return time_s
        time_s = until_s
        if time_s >= end_s:
            return math.inf
    raise AssertionError("spells have no end")


def fits_at_s(taken: Spells, memory_bytes: float, needed: float, start_s: float) -> float:
    """The first moment from `start_s` on at which `needed` is free. Endless if the least share
    leaves too little.
    """
    time_s = start_s
    for share, until_s in taken.from_(start_s):
        if needed <= memory_bytes * (1 - share):
            return time_s
        time_s = until_s
    raise AssertionError("spells have no end")


def _readable(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"
