"""Where a model of transformers has its layers and positions, and what goes in and out, whatever
the architecture.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from learning.backbones.catalogue import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stack(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's layers: the first list of modules in it (of ALBERT, whose layers share
    weights, one entry).

    Raises BackboneError for a model without one.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise BackboneError(f"a {model.config.model_type} model has no list of layers")


def linear_maps(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """The weights of each linear map, and which of their two axes is the inputs'."""
    from transformers.pytorch_utils import Conv1D

    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield module.weight, 0 if isinstance(module, Conv1D) else 1  # GPT-2's lie across


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states [B, T, D] among the arguments of a layer."""
    return args[0] if args else kwargs["hidden_states"]


def leaving(output: Any) -> Tensor:
    """The hidden states [B, T, D] in what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


def hidden_states(model: PreTrainedModel, **inputs: Any) -> list[Tensor]:
    """What enters each layer, and last the model's output: [B, T, D], one more than layers, all of
    one width.

    These are transformers' `hidden_states` where they have this meaning (Mamba's begin after the
    first layer). So the last one comes after a final norm, where there is one, and those before do
    not. Where a projection to another width follows the layers (OPT-350M), the last one is the last
    layer's own output.
    """
    states, last, output = _passed(model, **inputs)
    return [*states, output if output.shape[-1] == last.shape[-1] else last]


def ends_with_its_layers(model: PreTrainedModel, **inputs: Any) -> bool:
    """Whether what the last layer gives is the model's output as it is, with no norm after it."""
    _, last, output = _passed(model, **inputs)
    return last.equal(output)


def _passed(model: PreTrainedModel, **inputs: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    """What enters each layer, what leaves the last, and the model's output."""
    _watch(model)
    _seen.entering, _seen.leaving = [], []
    try:
        output = model(**inputs).last_hidden_state
        return _seen.entering, _seen.leaving[-1], output
    finally:
        _seen.entering = _seen.leaving = None


_seen = threading.local()  # by the pass of this thread: workers share a model
_watching = threading.Lock()


def _watch(model: PreTrainedModel) -> None:
    """Let the layers tell what passes through them, for good: a hook may not come or go while
    another thread's pass runs.
    """
    with _watching:
        layers = stack(model)
        if not getattr(layers, "are_watched", False):
            for layer in layers:
                layer.register_forward_pre_hook(_note_entering, with_kwargs=True)
            layers[-1].register_forward_hook(_note_leaving)
            vars(layers)["are_watched"] = True


def _note_entering(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if getattr(_seen, "entering", None) is not None:
        _seen.entering.append(entering(args, kwargs))


def _note_leaving(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
    if getattr(_seen, "leaving", None) is not None:
        _seen.leaving.append(leaving(output))


_TABLE = re.compile(r"wpe|pos_encoding|(char_)?(embed_)?positions?(_embeddings)?")


def positions_of(model: nn.Module) -> int | None:
    """The longest text, in tokens, that a model has positions for; None without a table of absolute
    positions.

    Such a table is an embedding, or computed rows, called by its positions. OPT and BART leave rows
    free before its first, the RoBERTa family all rows up to the padding's.
    """
    lengths = [
        rows.shape[0] for name, rows in model.named_buffers() if _is_table(name) and rows.dim() == 2
    ]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _is_table(name):
            free = getattr(module, "offset", None) or (
                0 if module.padding_idx is None else module.padding_idx + 1
            )
            lengths.append(module.num_embeddings - free)
    return min(lengths, default=None)


def _is_table(name: str) -> bool:
    return _TABLE.fullmatch(name.rpartition(".")[2]) is not None
