"""A backbone of the user's own reads one short text, by the code that a run uses, before anything
is built on it.

What passes is kept by content: weights, configuration, tokenizer, the versions of the libraries and
of our own code. So it takes seconds once, and afterwards the time to read the files, without torch.
What fails is not kept: a missing package may be installed by the next time.
"""

from __future__ import annotations

from pathlib import Path

from learning import kept
from learning.backbones.catalogue import (
    BackboneError,
    BackboneSpec,
    fingerprint,
    sha256_of,
    small_files,
    too_long,
)

_TEXT = "It is read once, to see that it can be."
_LONGEST = 512  # tokens of the longest text that is tried
_READERS = ("backbone", "batches", "catalogue", "huggingface", "layers", "loading", "tokens")
_TRIERS = tuple(f"backbones/{name}" for name in (*_READERS, "trial"))
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def has_passed(spec: BackboneSpec, tokens: int) -> bool:
    """Whether exactly this backbone has passed before, for texts of so many tokens."""
    found = kept.recall(_place(spec))
    return (
        isinstance(found, dict)
        and tokens <= (found["positions"] or tokens)
        and min(tokens, _LONGEST) <= found["tried"]
    )


def take(spec: BackboneSpec, tokens: int) -> None:
    """Load the backbone and let it read: two tokens, twice, and as long a text as the scenario
    allows.

    Raises BackboneError or FileProblem for weights that do not fit, a tokenizer that is missing,
    damaged or larger than the embedding, fewer positions than `tokens`, states that no side network
    fits beside, and numbers that are none or change.
    """
    import numpy as np

    from learning.backbones.backbone import Backbone
    from learning.backbones.tokens import Tokens, largest_id, tokenise

    ids = tokenise(spec, [_TEXT], max_tokens=tokens).ids[0]
    backbone = Backbone(spec)
    rows, largest = backbone.vocabulary, max(largest_id(spec), int(ids.max()))
    if rows is not None and largest >= rows:
        raise BackboneError(
            f"backbone {spec.name!r}: its tokenizer gives ids up to {largest}, but its embedding "
            f"has {rows} rows "
            "(it is another model's, or words were added to it alone)"
        )
    if backbone.positions is not None and tokens > backbone.positions:
        raise too_long(spec.name, tokens, backbone.positions)
    two = Tokens([np.resize(ids, 2)])
    first, again = (backbone.readouts(two) for _ in range(2))
    if not np.array_equal(first, again):
        raise BackboneError(
            f"backbone {spec.name!r} gives other numbers each time that it reads the same text"
        )
    tried = min(tokens, _LONGEST)
    backbone.read_alone(np.resize(ids, tried))
    kept.keep(_place(spec), {"positions": backbone.positions, "tried": tried})


def _place(spec: BackboneSpec) -> Path:
    files = (
        []
        if spec.kind == "random"
        else [[file.name, sha256_of(file).hex()] for file in small_files(spec)]
    )
    return kept.place(
        "trials", "trial", [fingerprint(spec), files], kept.finder(_TRIERS, _LIBRARIES)
    )
