"""Where a model of transformers has its layers and positions, and what goes in and out, whatever the architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from learning.catalogue import BackboneError


def stack(model: nn.Module) -> nn.ModuleList:
    """The list of a model's layers: the first list of modules in it (of ALBERT, whose layers share weights, one entry).

    Raises BackboneError for a model without one.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise BackboneError(f"a {model.config.model_type} model has no list of layers")


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states [B, T, D] among the arguments of a layer."""
    return args[0] if args else kwargs["hidden_states"]


def leaving(output: Any) -> Tensor:
    """The hidden states [B, T, D] in what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


def hidden_states(model: nn.Module, **inputs: Any) -> list[Tensor]:
    """What enters each layer, and last the model's output: [B, T, D], one more than layers, all of one width.

    These are transformers' `hidden_states` where they have this meaning (Mamba's begin after the first layer). So the last
    one comes after a final norm, where there is one, and those before do not. Where a projection to another width follows
    the layers (OPT-350M), the last one is the last layer's own output.
    """
    states: list[Tensor] = []
    last: list[Tensor] = []
    layers = stack(model)

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states.append(entering(args, kwargs))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, __, output: last.append(leaving(output))))
    try:
        output = model(**inputs).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return [*states, output if output.shape[-1] == last[-1].shape[-1] else last[-1]]


_TABLE = re.compile(r"wpe|pos_encoding|(char_)?(embed_)?positions?(_embeddings)?")


def positions_of(model: nn.Module) -> int | None:
    """The longest text, in tokens, that a model has positions for; None without a table of absolute positions.

    Such a table is an embedding, or computed rows, called by its positions. OPT and BART leave rows free before its first,
    RoBERTa and its relatives all rows up to the padding's.
    """
    lengths = [rows.shape[0] for name, rows in model.named_buffers() if _is_table(name) and rows.dim() == 2]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _is_table(name):
            free = getattr(module, "offset", None) or (0 if module.padding_idx is None else module.padding_idx + 1)
            lengths.append(module.num_embeddings - free)
    return min(lengths, default=None)


def _is_table(name: str) -> bool:
    return _TABLE.fullmatch(name.rpartition(".")[2]) is not None
