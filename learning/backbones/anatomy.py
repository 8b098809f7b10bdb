"""How a model is put together: which modules come before its layers, beside them and after them,
and where a layer ends.

No architecture is known by name. Two tokens run once through the same model without numbers; what
depends on which weights is read off its graph, and what runs in which order is noted. So whatever
transformers can load is taken apart alike.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inputs.files import first_line, is_ours
from learning.backbones.catalogue import BackboneError
from learning.backbones.layers import entering, leaving, stack
from learning.cost.meter import CostMeter
from learning.cost.weightless import weightless_like

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Anatomy:
    """Paths of modules in the bare model.

    `layers` is the list of layers. `embeds` are modules on which the first hidden states depend,
    `after` those between the last layer's output and the model's, `beside` those that every layer
    uses (tables of relative positions); `between` are weights of none of these, `handed_on` those
    of the first layer that reach others by another way than hidden states. `ends` has for each
    layer the last module with a matrix that gives hidden states, and their width: the end of its
    feed-forward block, where it has one. `mixers` has the last such module before that block, of
    the layers that have one: the end of attention, or of what stands in its place. `returns` says
    how many values a layer returns in a tuple, 0 for hidden states alone. `repeats` is true where
    the layers share their weights.
    """

    layers: str
    embeds: tuple[str, ...]
    after: tuple[str, ...]
    beside: tuple[str, ...]
    between: tuple[str, ...]
    handed_on: tuple[str, ...]
    ends: tuple[tuple[str, int], ...]
    mixers: tuple[tuple[str, int], ...]
    returns: int
    repeats: bool


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a model of transformers, by its configuration; BackboneError for one without a
    list of layers, and for one that this cannot be told of.
    """
    try:
        return _of_configuration(
            type(model.config).from_dict, model.config.to_json_string(use_diff=False)
        )
    except Exception as error:
        if is_ours(error) or isinstance(error, MemoryError):
            raise
        raise BackboneError(
            f"a {model.config.model_type} model cannot be taken apart: {first_line(error)}"
        ) from error


@functools.lru_cache(maxsize=64)
def _of_configuration(from_dict: Callable[..., PreTrainedConfig], text: str) -> Anatomy:
    model = weightless_like(from_dict(json.loads(text)))
    seen = _watch(model)
    layers = _path(model)
    weights = dict(model.named_parameters())
    named = list(model.named_parameters(remove_duplicate=False))  # T5's words are in two places

    def reached(tensors: Iterable[Any]) -> set[str]:
        sources = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
        if not sources:
            return set()
        ones = [torch.ones_like(t) for t in sources]
        found = torch.autograd.grad(
            sources, list(weights.values()), ones, retain_graph=True, allow_unused=True
        )
        return {name for name, gradient in zip(weights, found, strict=True) if gradient is not None}

    inside = {name for name in weights if name.startswith(f"{layers}.")}
    first = seen.entered[0]
    second = seen.entered[min(1, len(seen.entered) - 1)]
    end = seen.output
    embeds, ran_first = reached([first[0]]), reached([seen.left[0]])
    ran_all, used = reached([seen.left[-1]]), reached([end])
    beside = ran_first - embeds - inside
    return Anatomy(
        layers,
        _outermost(
            (n for n, p in named if any(p is weights[name] for name in embeds - inside)), layers
        ),
        _outermost(used - ran_all - inside, layers),
        _outermost(beside, layers),
        tuple(sorted(ran_all - embeds - inside - beside)),
        tuple(sorted(reached(second[1:]) & inside)),
        tuple(seen.ends[i] for i in sorted(seen.ends)),
        tuple(_mixers(seen)),
        seen.returns,
        len(seen.entered) != len(stack(model)),
    )


@dataclass
class _Seen:
    """What one pass showed: the hidden states that entered each call of a layer with its other
    arguments, what left it; of each layer the modules with a matrix as they ran, and whether each
    gave hidden states.
    """

    entered: list[list[Any]]
    left: list[Tensor]
    ends: dict[int, tuple[str, int]]
    ran: dict[int, list[tuple[str, bool]]]
    output: Tensor | None = None
    returns: int = 0


def _watch(model: PreTrainedModel) -> _Seen:
    seen, width = _Seen([], [], {}, {}), model.config.hidden_size

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = entering(args, kwargs)
        others = [value for value in _flat([*args, *kwargs.values()]) if value is not hidden]
        seen.entered.append([hidden, *others])

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        seen.left.append(leaving(output))
        seen.returns = len(output) if isinstance(output, tuple) else 0

    def note(layer: int, name: str) -> Any:
        def end(_: nn.Module, __: Any, output: Any) -> None:
            is_hidden = isinstance(output, Tensor) and output.shape[-1] == width
            seen.ran.setdefault(layer, []).append((name, is_hidden))
            if is_hidden:
                seen.ends[layer] = (name, width)

        return end

    where = _path(model)
    for index, layer in enumerate(stack(model)):
        for name, module in layer.named_modules():
            if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                module.register_forward_hook(note(index, f"{where}.{index}.{name}"))
        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(leave)
    ids_BT = torch.full((1, 2), 2, device="meta")
    optional = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.device("meta"), torch.enable_grad(), CostMeter():
        seen.output = model(
            input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), **optional
        ).last_hidden_state
    return seen


def _mixers(seen: _Seen) -> Iterator[tuple[str, int]]:
    """Of each layer the last module that gave hidden states outside the block in which it ends:
    the largest module around its end that does not hold what ran first.
    """
    for layer, (end, width) in sorted(seen.ends.items()):
        (first, _), parts = seen.ran[layer][0], end.split(".")
        around = (".".join(parts[: i + 1]) for i in range(len(parts)))
        block = next((path for path in around if not _is_in(first, path)), None)
        before = [n for n, is_hidden in seen.ran[layer] if is_hidden and not _is_in(n, block or "")]
        if block and before:
            yield before[-1], width


def _is_in(name: str, path: str) -> bool:
    return f"{name}.".startswith(f"{path}.")


def _path(model: PreTrainedModel) -> str:
    layers = stack(model)
    return next(name for name, module in model.named_modules() if module is layers)


def _flat(values: Iterable[Any]) -> list[Any]:
    return [
        one
        for value in values
        for one in (_flat(value) if isinstance(value, (list, tuple)) else [value])
    ]


def _outermost(names: Iterable[str], layers: str) -> tuple[str, ...]:
    """Of parameters, the largest modules that hold them and not the layers."""
    above = layers.split(".")
    return tuple(sorted({_below(name.split("."), above) for name in names}))


def _below(parts: Sequence[str], above: Sequence[str]) -> str:
    depth = next((i for i, part in enumerate(parts) if i >= len(above) or part != above[i]), 0)
    return ".".join(parts[: depth + 1])


def divisible(model: PreTrainedModel, name: str) -> Anatomy:
    """The anatomy of a model that can be cut between its layers; BackboneError, saying why, for any
    other.
    """
    found = anatomy(model)
    where = f"backbone {name!r} ({model.config.model_type})"
    if found.repeats:
        raise BackboneError(
            f"{where}: its layers share their weights, so they cannot be on two sides of a cut"
        )
    if found.between:
        raise BackboneError(
            f"{where}: it has weights between its layers ({found.between[0]}), so it cannot be cut "
            "there"
        )
    return found
