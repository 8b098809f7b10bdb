"""Where a model of transformers has its layers, and what goes in and out of them, whatever the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def stack(model: nn.Module) -> nn.ModuleList:
    """The list of a model's layers: the first list of modules in it (of ALBERT, whose layers share weights, one entry).

    Raises ValueError for a model without one.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise ValueError(f"a {model.config.model_type} model has no list of layers")


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
