"""What a piece of work costs, in FLOP and bytes. Plain numbers, no torch: a dry run answers at
once.

A transformer's forward pass is a polynomial in the sequence length, so its cost at any (batch,
tokens) follows from a few coefficients. `learning.cost.count` obtains them by running the real
architecture without numbers; this file evaluates them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOP executed, bytes of weights and other state read or written once, and bytes of
    activations alive at the worst instant. The traffic of activations between operators is not in
    `bytes_moved`: a device's measured rate holds it.
    """

    flop: float = 0.0
    bytes_moved: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Two pieces of work, one after the other."""
        return Cost(
            self.flop + other.flop,
            self.bytes_moved + other.bytes_moved,
            max(self.peak_bytes, other.peak_bytes),
        )


@dataclass(frozen=True)
class Format:
    """How a device holds a frozen backbone, in bytes: each weight of a linear map, the scale of
    each of its outputs, every other number (tables, norms, biases) and activations.
    """

    weight: float
    other: float
    scale: float = 0


# int8 is that of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) as bitsandbytes stores it
FORMATS = {
    "float32": Format(4, 4),
    "float16": Format(2, 2),
    "bfloat16": Format(2, 2),
    "int8": Format(1, 2, scale=4),
}


@dataclass(frozen=True)
class Architecture:
    """The shape of one backbone and the counted coefficients of its forward pass in float32.

    `flop_per_sequence` = (constant, per token, per token^2). `weight_bytes_read` is what a batch
    reads once, however many sequences it has (the embedding table is gathered from, not read). The
    peak of live activations is the larger of two regimes, each linear in the batch: feed-forward
    (linear in tokens) and attention (quadratic): `peak_feed_forward`, `peak_attention` = (constant,
    per token, per token^2) bytes a sequence. `flop_per_batch` is what a batch computes once
    (DeBERTa's relative positions), in most architectures nothing. `positions` is the longest text
    in tokens, None where there is no table of absolute positions. Of the `parameters`, the weights
    of linear maps, which give so many `linear_outputs`, and `tables` that rows are taken out of.
    """

    layers: int
    hidden_size: int
    parameters: int
    flop_per_sequence: tuple[float, float, float]
    weight_bytes_read: float
    peak_feed_forward: tuple[float, float, float]
    peak_attention: tuple[float, float, float]
    flop_per_batch: float = 0.0
    positions: int | None = None
    linear_weights: int = 0
    linear_outputs: int = 0
    tables: int = 0

    def weight_bytes(self, precision: str = "float32") -> int:
        """Bytes of the weights in one of `FORMATS`."""
        return round(self._held(self.parameters, FORMATS[precision]))

    def _held(self, numbers: int, form: Format) -> float:
        """Bytes of so many numbers, all linear maps' among them."""
        linear = self.linear_weights * form.weight + self.linear_outputs * form.scale
        return linear + (numbers - self.linear_weights) * form.other

    def shares(self, precision: str) -> tuple[float, float]:
        """Of a pass in float32, the shares that the bytes of the weights it reads and of its
        activations have in one of `FORMATS`.
        """
        form, read = FORMATS[precision], self.parameters - self.tables
        return self._held(read, form) / (4 * read), form.other / 4

    def forward(self, batch: int, tokens: int, precision: str = "float32") -> Cost:
        """The cost of one forward pass over `batch` sequences padded to `tokens`, in one of
        `FORMATS`.
        """
        read, alive = self.shares(precision)
        peak = max(
            _polynomial(self.peak_feed_forward, tokens), _polynomial(self.peak_attention, tokens)
        )
        flop = batch * _polynomial(self.flop_per_sequence, tokens) + self.flop_per_batch
        return Cost(flop, read * self.weight_bytes_read, round(alive * batch * peak))

    def next_word(self, batch: int, words: int, precision: str = "float32") -> Cost:
        """The logits of so many words after each of `batch` texts, from their last tokens' states:
        2 D FLOP a word and text. The rest of the vocabulary is neither computed nor read; its table
        is no linear map.
        """
        rows = words * self.hidden_size
        return Cost(2.0 * batch * rows, FORMATS[precision].other * rows, round(4 * batch * words))


def _polynomial(coefficients: tuple[float, float, float], tokens: int) -> float:
    constant, linear, quadratic = coefficients
    return constant + linear * tokens + quadratic * tokens * tokens


# --- training
# ------------------------------------------------------------------------------------------

# numbers kept for each trained one: the velocity of SGD with momentum, AdamW's two moments
OPTIMISER_NUMBERS = {"sgd": 0, "momentum": 1, "adamw": 2}


@dataclass(frozen=True)
class StepCounts:
    """Counted coefficients of one forward and backward pass in float32: (constant, per token, per
    token^2) a sequence.

    `saved` is what the forward pass keeps for the backward pass, in bytes; `peak_feed_forward` and
    `peak_attention` are the two regimes of the largest sum of live activations and gradients, as in
    `Architecture`. `bytes_moved` is what a step reads and writes once, however many sequences it
    has: weights (twice, or three times) and their gradients. `flop_per_batch` is what it computes
    once, as in `Architecture`.
    """

    flop: tuple[float, float, float]
    saved: tuple[float, float, float]
    peak_feed_forward: tuple[float, float, float]
    peak_attention: tuple[float, float, float]
    bytes_moved: float
    flop_per_batch: float = 0.0


class Trained:
    """What a whole model and a part of one have in common: weights, of which some are trained."""

    parameters: int
    trainable: int

    def with_numbers(self, more: int, is_trained: bool) -> Self:
        """The same with so many more numbers: a vocabulary, whose passes are charged by its own
        formula.
        """
        whole: Any = self  # of a class that is a dataclass
        trainable = self.trainable + more * is_trained
        return dataclasses.replace(whole, parameters=self.parameters + more, trainable=trainable)


@dataclass(frozen=True)
class TrainingArchitecture(Trained):
    """What it takes to train one backbone by gradients: a kind of
    `learning.federated.trainable.KINDS`, with a linear head.

    `parameters` counts the weights that a forward pass uses, new ones and head included, of which
    `trainable` are trained. `checkpointed` keeps the inputs of each layer only and computes the
    rest again during the backward pass.
    """

    kind: str
    parameters: int
    trainable: int
    head_inputs: int
    plain: StepCounts
    checkpointed: StepCounts

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the trained numbers in float32: what a round sends each way, before any
        codec.
        """
        return 4 * self.trainable

    def weight_bytes(self, bytes_per_number: float = 4) -> int:
        """Bytes of all weights when each frozen number takes `bytes_per_number` bytes and each
        trained one takes 4.
        """
        return round((self.parameters - self.trainable) * bytes_per_number) + self.trainable_bytes

    def optimiser_bytes(self, optimiser: str = "adamw") -> int:
        """Bytes that the optimiser, one of `OPTIMISER_NUMBERS`, keeps between steps, in float32."""
        return 4 * OPTIMISER_NUMBERS[optimiser] * self.trainable

    def saved_bytes(
        self, batch: int, tokens: int, checkpointing: bool = False, bytes_per_number: float = 4
    ) -> int:
        """Bytes kept from the forward pass for the backward pass."""
        counts = self.checkpointed if checkpointing else self.plain
        return round(bytes_per_number / 4 * batch * _polynomial(counts.saved, tokens))

    def step(
        self,
        batch: int,
        tokens: int,
        optimiser: str = "adamw",
        checkpointing: bool = False,
        bytes_per_number: float = 4,
    ) -> Cost:
        """The cost of one step over `batch` sequences padded to `tokens`: forward, backward and the
        optimiser's traffic.

        The peak holds activations and gradients, but neither weights nor the optimiser's state.
        Gradients grow while activations are freed, so it is the larger of the activations' peak and
        all gradients. The optimiser reads the numbers, their gradients and its own, and writes all
        but the gradients; its few FLOP a number are left out.
        """
        counts = self.checkpointed if checkpointing else self.plain
        width = bytes_per_number / 4
        peak = max(
            _polynomial(counts.peak_feed_forward, tokens),
            _polynomial(counts.peak_attention, tokens),
        )
        kept = OPTIMISER_NUMBERS[optimiser]
        return Cost(
            batch * _polynomial(counts.flop, tokens) + counts.flop_per_batch,
            width * counts.bytes_moved + (3 + 2 * kept) * self.trainable_bytes,
            max(round(width * batch * peak), self.trainable_bytes),
        )


def extrapolate(two: Any, three: Any, steps: float) -> Any:
    """Every number of `two` plus `steps` times what it grows by from `two` to `three`; whole
    numbers stay whole.
    """
    if dataclasses.is_dataclass(two) and not isinstance(two, type):
        fields = [field.name for field in dataclasses.fields(two)]
        return type(two)(
            **{f: extrapolate(getattr(two, f), getattr(three, f), steps) for f in fields}
        )
    if isinstance(two, tuple):
        return tuple(extrapolate(a, b, steps) for a, b in zip(two, three, strict=True))
    if isinstance(two, str):
        return two
    return (
        round(two + steps * (three - two)) if isinstance(two, int) else two + steps * (three - two)
    )
