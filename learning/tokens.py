"""How texts become a backbone's tokens: by its own tokenizer, or by hashing words where it has none. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from learning.catalogue import BackboneSpec, config_of, directory


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of each text, and the segment (0 or 1) of each token where texts come in pairs; int32 arrays."""

    ids: list[np.ndarray]
    segments: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> np.ndarray:
        """Tokens of each text, shape [n]."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)


def tokenise(
    spec: BackboneSpec, texts: Sequence[str], second_texts: Sequence[str] | None = None, max_tokens: int = 64
) -> Tokens:
    """Encode texts (or pairs) with the backbone's own tokenizer, cut at `max_tokens`."""
    if spec.kind in ("random", "shape"):
        return _hashed_words(spec, texts, second_texts, max_tokens)
    file = directory(spec) / "tokenizer.json"
    pairs = list(texts) if second_texts is None else list(zip(texts, second_texts, strict=True))
    if not file.is_file():
        return _slow_tokens(spec, texts, second_texts, max_tokens)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    encoded = tokenizer.encode_batch(pairs)
    ids = [np.array(e.ids or [0], dtype=np.int32) for e in encoded]
    return Tokens(ids, None if second_texts is None else [np.array(e.type_ids or [0], dtype=np.int32) for e in encoded])


def _slow_tokens(spec, texts, second_texts, max_tokens) -> Tokens:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory(spec), local_files_only=True)
    pair = list(second_texts) if second_texts is not None else None
    encoded = tokenizer(list(texts), pair, truncation=True, max_length=max_tokens)
    segments = encoded.get("token_type_ids") if pair is not None else None
    return Tokens(
        [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]],
        None if segments is None else [np.array(ids, dtype=np.int32) for ids in segments],
    )


def _hashed_words(spec, texts, second_texts, max_tokens) -> Tokens:
    """A random model has no vocabulary: every word becomes a fixed id by its hash; ids 0 and 1 pad and separate."""
    vocabulary = int(config_of(spec)["vocab_size"])

    def word_id(word: str) -> int:
        return 2 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) % (vocabulary - 2)

    ids, segments = [], []
    for index, text in enumerate(texts):
        first = [1, *map(word_id, text.lower().split())]
        other = [1, *map(word_id, second_texts[index].lower().split())] if second_texts is not None else []
        ids.append(np.array((first + other)[:max_tokens], dtype=np.int32))
        segments.append(np.array(([0] * len(first) + [1] * len(other))[:max_tokens], dtype=np.int32))
    return Tokens(ids, None if second_texts is None else segments)
