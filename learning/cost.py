"""What a piece of work costs, in FLOP and bytes. Plain numbers, no torch: a dry run answers at once.

A transformer's forward pass is a polynomial in the sequence length, so its cost at any (batch, tokens) follows from a few
coefficients. `learning.count` obtains them by running the real architecture on fake tensors; this file evaluates them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOP executed, bytes of weights and other state read or written once, and bytes of activations alive at the worst
    instant. The traffic of activations between operators is not in `bytes_moved`: a device's measured rate holds it."""

    flop: float = 0.0
    bytes_moved: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Two pieces of work, one after the other."""
        return Cost(
            self.flop + other.flop, self.bytes_moved + other.bytes_moved, max(self.peak_bytes, other.peak_bytes)
        )


@dataclass(frozen=True)
class Architecture:
    """The shape of one backbone and the counted coefficients of its forward pass in float32.

    `flop_per_sequence` = (constant, per token, per token^2). `weight_bytes_read` is what a batch reads once, however many
    sequences it has (the embedding table is gathered from, not read).
    The peak of live activations is the larger of two regimes, each linear in the batch: feed-forward (linear in tokens) and
    attention (quadratic): `peak_feed_forward`, `peak_attention` = (constant, per token, per token^2) bytes a sequence.
    """

    layers: int
    hidden_size: int
    parameters: int
    flop_per_sequence: tuple[float, float, float]
    weight_bytes_read: float
    peak_feed_forward: tuple[float, float, float]
    peak_attention: tuple[float, float, float]

    def weight_bytes(self, bytes_per_number: float = 4) -> int:
        """Bytes of the weights when each number takes `bytes_per_number` bytes."""
        return round(self.parameters * bytes_per_number)

    def forward(self, batch: int, tokens: int, bytes_per_number: float = 4) -> Cost:
        """The cost of one forward pass over `batch` sequences padded to `tokens`, with numbers of the given width."""
        width = bytes_per_number / 4
        peak = max(_polynomial(self.peak_feed_forward, tokens), _polynomial(self.peak_attention, tokens))
        flop = batch * _polynomial(self.flop_per_sequence, tokens)
        return Cost(flop, width * self.weight_bytes_read, round(width * batch * peak))


def _polynomial(coefficients: tuple[float, float, float], tokens: int) -> float:
    constant, linear, quadratic = coefficients
    return constant + linear * tokens + quadratic * tokens * tokens


BYTES_PER_NUMBER = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
