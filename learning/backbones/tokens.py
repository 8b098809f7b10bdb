"""How texts become a backbone's tokens: by its own tokenizer, or by hashing words where it has
none. No torch.

A tokenizer.json is read by the `tokenizers` library. Any other is read once by transformers, which
needs torch, and kept as a tokenizer.json in the cache. transformers makes up an empty tokenizer
where files are missing; such a one is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inputs.files import MOST_BYTES, reading, regular_file
from learning import kept
from learning.backbones.catalogue import (
    BackboneError,
    BackboneSpec,
    config_of,
    directory,
    sha256_of,
    small_files,
)

_log = logging.getLogger(__name__)
_NO_TOKENIZER = {"config.json", "generation_config.json", "model.safetensors.index.json"}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of each text, and the segment (0 or 1) of each token where texts come in pairs, or
    as prompt and response; int32 arrays. `is_cut` says of each text whether it went on, where that
    is known.
    """

    ids: list[np.ndarray]
    segments: list[np.ndarray] | None = None
    is_cut: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, texts: Iterable[int] | np.ndarray) -> Tokens:
        """Those of some texts, in this order."""
        chosen = list(texts)
        segments = None if self.segments is None else [self.segments[i] for i in chosen]
        is_cut = None if self.is_cut is None else [self.is_cut[i] for i in chosen]
        return Tokens([self.ids[i] for i in chosen], segments, is_cut)

    def lengths(self) -> np.ndarray:
        """Tokens of each text, shape [n]."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def said(self, index: int) -> np.ndarray:
        """Of each token of a text whether it is to be said, bool [T]: those of its response, or all
        but the first, which nothing comes before.
        """
        said_T = np.ones(len(self.ids[index]), dtype=bool)
        if self.segments is not None:
            said_T = self.segments[index] == 1
        said_T[:1] = False
        return said_T

    def said_lengths(self) -> np.ndarray:
        """Tokens of each text that are to be said, shape [n]."""
        return np.array([self.said(i).sum() for i in range(len(self))], dtype=np.int64)


def tokenise(
    spec: BackboneSpec,
    texts: Sequence[str],
    second_texts: Sequence[str] | None = None,
    max_tokens: int = 64,
) -> Tokens:
    """Encode texts (or pairs) with the backbone's own tokenizer, cut at `max_tokens`.

    Raises BackboneError or FileProblem where there is no usable tokenizer, or where `max_tokens`
    leaves a text no room.
    """
    if spec.kind in ("random", "shape"):
        return _hashed_words(spec, texts, second_texts, max_tokens)
    tokenizer, are_pairs = tokenizer_of(spec), second_texts is not None
    around = tokenizer.num_special_tokens_to_add(are_pairs)
    if around >= max_tokens:
        raise BackboneError(
            f"max_tokens: {max_tokens} leaves no room for text beside the {around} tokens that "
            f"{spec.name} puts around it"
        )
    with reading(directory(spec), "a tokenizer of these texts"):
        ids, segments, is_cut = _encoded(tokenizer, texts, second_texts, max_tokens)
    if len(ids) > 1:  # one alone says little
        _warn_of_unknown(spec, tokenizer, ids, around)
    made = Tokens([_array(spec, i) for i in ids], None, is_cut)
    if are_pairs and segments:
        marked = [_array(spec, s) for s in segments]
        made = dataclasses.replace(made, segments=marked)
        kinds = max(s.max() for s in marked) + 1
        most = config_of(spec).get("type_vocab_size")
        if isinstance(most, int) and kinds > most > 1:
            raise BackboneError(
                f"backbone {spec.name!r}: its tokenizer marks {kinds} kinds of segments, its model "
                f"has {most}"
            )
    return made


def _encoded(
    tokenizer, texts, second_texts, max_tokens
) -> tuple[list[list[int]], list[list[int]] | None, list[bool]]:
    if not hasattr(tokenizer, "encode_batch"):  # one of transformers' own, in Python
        second = None if second_texts is None else list(second_texts)
        both, longer = (
            tokenizer(list(texts), second, truncation=True, max_length=most)
            for most in (max_tokens, max_tokens + 1)
        )
        is_cut = [len(ids) > max_tokens for ids in longer["input_ids"]]
        return both["input_ids"], both.get("token_type_ids"), is_cut
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    if getattr(tokenizer.model, "dropout", None):  # merges left out at random, for training
        tokenizer.model.dropout = None
    encoded = tokenizer.encode_batch_fast(  # without where in the text each token stands
        list(texts) if second_texts is None else list(zip(texts, second_texts, strict=True))
    )
    ids = [e.ids for e in encoded]
    is_cut = [
        len(i) == max_tokens and bool(e.overflowing) for i, e in zip(ids, encoded, strict=True)
    ]
    return ids, [e.type_ids for e in encoded], is_cut


def shortened(spec: BackboneSpec, texts: Sequence[str], most: int) -> list[str]:
    """Texts, cut where their first `most` tokens end; without special tokens."""
    if spec.kind in ("random", "shape"):
        return [
            text if len(words := text.split()) <= most else " ".join(words[:most]) for text in texts
        ]
    tokenizer = tokenizer_of(spec)
    with reading(directory(spec), "a tokenizer of these texts"):
        if not hasattr(tokenizer, "encode_batch"):  # one of transformers' own, in Python
            ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            return [
                text if len(one) <= most else tokenizer.decode(one[:most])
                for text, one in zip(texts, ids, strict=True)
            ]
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ends = [e.offsets[most - 1][1] if len(e.ids) > most else None for e in encoded]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def _warn_of_unknown(
    spec: BackboneSpec, tokenizer: Any, ids: Sequence[Sequence[int]], around: int
) -> None:
    model = getattr(tokenizer, "model", None)
    name = getattr(model, "unk_token", None)
    unknown = getattr(model, "unk_id", None)
    if name is not None:
        unknown = tokenizer.token_to_id(name)
    if unknown is not None and 2 * sum(i.count(unknown) for i in ids) > sum(
        len(i) - around for i in ids
    ):
        _log.warning(
            f"most words of the texts are unknown to the tokenizer of {spec.name}: is it the "
            "model's own?"
        )


def _array(spec: BackboneSpec, ids: list[int]) -> np.ndarray:
    whole = np.array(ids or [0], dtype=np.int64)
    if whole.max() >= 1 << 31:
        raise BackboneError(f"backbone {spec.name!r}: its tokenizer gives the id {whole.max()}")
    return whole.astype(np.int32)


# --- whose tokenizer
# ------------------------------------------------------------------------------------------


def tokenizer_of(spec: BackboneSpec) -> Any:
    """The backbone's `tokenizers.Tokenizer`, or one of transformers' Python ones for the few that
    have no other.
    """
    folder = directory(spec)
    file = folder / "tokenizer.json"
    if file.exists():
        found = regular_file(file, MOST_BYTES).stat()
        return _read(file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    files = [[file.name, sha256_of(file).hex()] for file in small_files(spec)]
    conversion = kept.place(
        "tokenizers",
        "tokenizer",
        files,
        kept.finder(("backbones/tokens",), ("transformers", "tokenizers")),
    )
    if (found := kept.recall(conversion)) is not None:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(found)
    made = _made_by_transformers(spec)
    fast = getattr(made, "backend_tokenizer", None)
    if fast is None:
        return made
    kept.keep(conversion, _with_words(fast, folder).to_str())
    return fast


@functools.lru_cache(maxsize=2)
def _read(file: Path, *as_it_was: int) -> Any:
    """A file is read once for the cuts of its model and for all portions of its texts."""
    from tokenizers import Tokenizer

    with reading(file, "a tokenizer"):
        return _with_words(Tokenizer.from_file(str(file)), file)


def largest_id(spec: BackboneSpec) -> int:
    """The largest id that the backbone's tokenizer knows."""
    if spec.kind == "random":
        return int(config_of(spec)["vocab_size"]) - 1
    return max(tokenizer_of(spec).get_vocab().values(), default=0)


def _made_by_transformers(spec: BackboneSpec) -> Any:
    folder = directory(spec)
    if {file.name for file in small_files(spec)} <= _NO_TOKENIZER:
        raise _no_tokenizer(spec, ["what one can be made of"])
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    with reading(folder, "a tokenizer"):
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    needed = [
        name for key, name in made.vocab_files_names.items() if key in ("vocab_file", "merges_file")
    ]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise _no_tokenizer(spec, missing)
    return made


def _no_tokenizer(spec: BackboneSpec, nor: Sequence[str]) -> BackboneError:
    return BackboneError(
        f"backbone {spec.name!r}: no tokenizer in {directory(spec).resolve()} (no tokenizer.json, "
        f"nor {' and '.join(nor)}): "
        "save the model's own there with save_pretrained"
    )


def _with_words(tokenizer: Any, where: Path) -> Any:
    special = sum(token.special for token in tokenizer.get_added_tokens_decoder().values())
    if tokenizer.get_vocab_size() - special < 2:
        raise BackboneError(
            f"{where}: a tokenizer without words: all that it knows are {special} special tokens"
        )
    return tokenizer


def _hashed_words(spec, texts, second_texts, max_tokens) -> Tokens:
    """A random model has no vocabulary: every word becomes a fixed id by its hash; ids 0 and 1 pad
    and separate.
    """
    vocabulary = int(config_of(spec)["vocab_size"])

    def word_id(word: str) -> int:
        return 2 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) % (
            vocabulary - 2
        )

    ids, segments, is_cut = [], [], []
    for index, text in enumerate(texts):
        first = [1, *map(word_id, text.lower().split())]
        other = (
            [1, *map(word_id, second_texts[index].lower().split())]
            if second_texts is not None
            else []
        )
        ids.append(np.array((first + other)[:max_tokens], dtype=np.int32))
        segments.append(
            np.array(([0] * len(first) + [1] * len(other))[:max_tokens], dtype=np.int32)
        )
        is_cut.append(len(first) + len(other) > max_tokens)
    return Tokens(ids, None if second_texts is None else segments, is_cut)
