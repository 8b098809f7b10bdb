"""Which class of transformers a configuration is built with: the bare model without a head; T5's
encoder without decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learning.backbones.catalogue import BackboneError, of_two_parts


def hf_config(config: Mapping[str, Any]) -> Any:
    """The configuration object of a dictionary such as config.json holds.

    Raises BackboneError for a model type that the installed transformers does not know, and
    whatever transformers raises for values that do not fit together.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__
    from transformers.utils import logging

    logging.set_verbosity_error()
    fields = {key: value for key, value in config.items() if key != "model_type"}
    if config.get("model_type") not in CONFIG_MAPPING:
        raise BackboneError(
            f"transformers {__version__} has no model_type {config.get('model_type')!r:.40} "
            "(code that a model brings is never run)"
        )
    return AutoConfig.for_model(config["model_type"], **fields)


def bare_model(config: Any) -> Any:
    """The automatic class (with `from_config` and `from_pretrained`) of a configuration object.

    Raises BackboneError for an encoder-decoder whose encoder transformers cannot load alone.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    if (
        type(config) in AutoModelForTextEncoding._model_mapping
    ):  # of T5, the encoder; of all others AutoModel's own
        return AutoModelForTextEncoding
    if not config.is_encoder_decoder:
        return AutoModel
    raise of_two_parts(config.model_type)


def has_segments(config: Any) -> bool:
    """Whether a model tells the two texts of a pair apart by an embedding of their own."""
    kinds = getattr(config, "type_vocab_size", None)
    return isinstance(kinds, int) and kinds > 1
