"""What counting has found, in the user's cache: a file for each thing counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from inputs.files import first_line, is_ours
from learning import kept
from learning.backbones.catalogue import BackboneError

_COUNTERS = (
    "backbones/anatomy",
    "backbones/backbone",
    "backbones/catalogue",
    "backbones/huggingface",
    "backbones/language_head",
    "backbones/layers",
    "backbones/loading",
    *(f"federated/{name}" for name in ("aggregation", "dropout", "forward_gradient", "losses")),
    *(f"federated/{name}" for name in ("seeds", "split", "trainable")),
    *(
        f"cost/{name}"
        for name in ("costs", "count", "count_forward_only", "count_split", "count_training")
    ),
    *(f"cost/{name}" for name in ("meter", "weightless", "weightless_classifier")),
)


NAMELESS = "counted"  # what the model without numbers is called in whose stead one is counted


def counted(
    backbone: str, what: str, of: Any, count: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `count` gives, or gave before for the same `of`: numbers by name, as JSON keeps them.

    Raises BackboneError, naming the backbone and `what`, where counting fails.
    """
    file = kept.place("costs", what, of, _counter())
    if (found := kept.recall(file)) is not None:
        return found
    try:
        made = count()
    except BackboneError as error:
        raise BackboneError(
            str(error).replace(f"backbone {NAMELESS!r}", f"backbone {backbone!r}")
        ) from error
    except Exception as error:
        if is_ours(error) or isinstance(error, MemoryError):
            raise
        raise BackboneError(
            f"backbone {backbone!r}: what {what} costs cannot be counted: {first_line(error)}"
        ) from error
    kept.keep(file, made)
    return json.loads(json.dumps(made))


def cost_key(config: Mapping[str, Any]) -> str:
    """The name under which the shipped counts of a configuration are kept."""
    return hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16).hexdigest()


def _counter() -> str:
    return kept.finder(_COUNTERS, ("torch", "transformers", "peft"))
