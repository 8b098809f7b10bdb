"""What it costs to say a token of the whole vocabulary: the product with the output embedding, and
the logits, which for a small decoder weigh more than all its layers.

With M tokens to be said, width D and V words: a product is 2 M D V FLOP and reads V D numbers; the
logits and what the loss keeps of them are M V numbers of float32 each (tests hold this against
counted passes). A backbone's own counts end at its last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learning.backbones.catalogue import depth_of, width_of
from learning.cost.costs import Cost

_LOGIT_BYTES = 4


@dataclass(frozen=True)
class Vocabulary:
    """The width of what is read, and how many words there are."""

    width: int
    words: int

    def forward(self, tokens: int, bytes_per_number: float = 4) -> Cost:
        """Logits after so many places, and which is the largest; no loss."""
        flop = 2.0 * tokens * self.width * self.words
        moved = bytes_per_number * self.width * self.words
        return Cost(flop, moved, _LOGIT_BYTES * tokens * self.words)

    def gradient(self, tokens: int, bytes_per_number: float = 4) -> Cost:
        """Logits, their loss, and its gradient for the states that were read: two products; at the
        peak logits, their log-probabilities and a gradient.
        """
        flop = 4.0 * tokens * self.width * self.words
        moved = 2.0 * bytes_per_number * self.width * self.words
        return Cost(flop, moved, 3 * _LOGIT_BYTES * tokens * self.words)

    def training(self, tokens: int, is_trained: bool) -> Cost:
        """The same with the output embedding trained, which is a third product."""
        cost = self.gradient(tokens)
        if not is_trained:
            return cost
        return cost + Cost(2.0 * tokens * self.width * self.words, 4.0 * self.width * self.words)


def vocabulary_of(config: Mapping[str, Any]) -> Vocabulary:
    """Of a configuration such as config.json holds."""
    width = config.get("word_embed_proj_dim") or width_of(config)
    return Vocabulary(int(width), int(config["vocab_size"]))


def kv_cache_bytes(config: Mapping[str, Any], tokens: int, bytes_per_number: float = 4) -> int:
    """Keys and values of so many tokens in every layer, by the key-value heads that there are
    (fewer than the query heads where these share them).
    """
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    shared = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or width_of(config) // heads)
    return round(2 * depth_of(config) * shared * head * tokens * bytes_per_number)
