"""Models on `meta`: every layer in place, no numbers in them, so that any architecture can be
counted in no memory.

Attention is the eager one: torch 2.13's FLOP formulas see nothing inside the fused CPU kernel
(pytorch/pytorch#195460). Which experts of a mixture take a token depends on numbers; here each gets
an equal share of the tokens, so that a token costs its active experts and a batch reads all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from inputs.files import is_ours
from learning.backbones.catalogue import BackboneError, cut, depth_of
from learning.backbones.huggingface import bare_model, hf_config
from learning.backbones.layers import stack
from learning.cost.costs import extrapolate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "dropout_rate",
    "attention_dropout",
    "activation_dropout",
)


def weightless(
    config: Mapping[str, Any], positions: int | None = None, dropout: float | None = None
) -> PreTrainedModel:
    """The bare model of a configuration, with a table of so many positions where it has one;
    `dropout` sets every rate.

    Raises BackboneError for a configuration that transformers refuses.
    """
    try:
        made = hf_config(config)
        if positions is not None and getattr(made, "max_position_embeddings", None):
            made.max_position_embeddings = positions
        for name in _DROPOUTS if dropout is not None else ():
            if hasattr(made, name):
                setattr(made, name, dropout)
        if dropout is not None and hasattr(made, "layerdrop"):
            made.layerdrop = 0.0
        return weightless_like(made)
    except Exception as error:
        if is_ours(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BackboneError(
            f"transformers refuses its configuration ({config['model_type']}): {reason}"
        ) from error


def weightless_like(made: Any) -> PreTrainedModel:
    """The bare model of a configuration object, in eval mode, in float32 whatever format its
    weights are published in.
    """
    with torch.device("meta"):
        model: PreTrainedModel = (
            bare_model(made)
            .from_config(made, attn_implementation="eager", dtype=torch.float32)
            .eval()
        )
    if model._can_set_experts_implementation():
        _register_equal_shares()
        model.set_experts_implementation("equal_shares")
    return model


def of_depth(config: Mapping[str, Any], count: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What `count` makes of a configuration, for a deep model from its cuts to 2 and 3 layers.

    Every layer beyond the second adds the same (a test holds this) where layers have the same
    tensors; where they do not, as in a model of attention here and recurrence there, the whole is
    counted.
    """
    depth = depth_of(config)
    if depth <= 3 or not alike(config):
        return count(config)
    two, three = (count(cut(config, layers)) for layers in (2, 3))
    return extrapolate(two, three, depth - 2)


def alike(config: Mapping[str, Any]) -> bool:
    """Whether every layer but the first has tensors of the same names and shapes."""
    shapes = [
        {name: p.shape for name, p in layer.named_parameters()}
        for layer in stack(weightless(config))
    ]
    return all(shape == shapes[-1] for shape in shapes[1:])


# --- experts
# ------------------------------------------------------------------------------------------


class Experts(Protocol):
    """What transformers' mixtures of experts have in common, beside `up_proj` and the like."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool

    def _apply_gate(self, u_ERF: Tensor) -> Tensor: ...

    def act_fn(self, u_ERF: Tensor) -> Tensor: ...

    def post_expert_norm(self, out_SD: Tensor) -> Tensor: ...


def _register_equal_shares() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register("equal_shares", _equal_shares)


def _equal_shares(self: Experts, h_ND: Tensor, index_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """transformers' mixture with S = N K rows dealt to the experts in equal shares, the last filled
    up.
    """
    rows, width = weights_NK.numel(), h_ND.shape[-1]
    share = -(-rows // self.num_experts)
    x_SD = h_ND[:, None].expand(-1, weights_NK.shape[-1], -1).reshape(rows, width)
    x_SD = nn.functional.pad(x_SD, (0, 0, 0, share * self.num_experts - rows))
    up = "gate_up_proj" if self.has_gate else "up_proj"
    u_ERF = _product(self, up, x_SD.view(self.num_experts, share, width))
    out_ERD = _product(
        self, "down_proj", self._apply_gate(u_ERF) if self.has_gate else self.act_fn(u_ERF)
    )
    out_SD = out_ERD.reshape(-1, width)[:rows]
    if self.has_post_expert_norm:
        out_SD = self.post_expert_norm(out_SD)
    return (out_SD * weights_NK.reshape(-1, 1)).view(*weights_NK.shape, width).sum(dim=1)


def _product(experts: Experts, name: str, x_ERI: Tensor) -> Tensor:
    weight = getattr(experts, name)
    out_ERO = torch.bmm(x_ERI, weight if experts.is_transposed else weight.transpose(1, 2))
    return out_ERO + getattr(experts, f"{name}_bias")[:, None] if experts.has_bias else out_ERO
