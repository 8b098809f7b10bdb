"""A language model's whole head as a module of its own: from last states to the logits of every
token of the vocabulary.

The numbers are those of the weights: the output embedding, or the input's where the two are tied,
which is then the very same tensor. What else the architecture does to its logits (a bias, a scale,
Gemma's soft cap) is done by transformers' own class around a stand-in for the model below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learning.backbones.catalogue import BackboneError, BackboneSpec, config_of
from learning.backbones.language_head import standing_in, stored, without_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VocabularyHead(nn.Module):
    """Last states [M, D] to logits [M, V] of the whole vocabulary, differentiable.

    `backbone` is the bare model of the same spec, whose input embedding is shared where the two are
    tied. Raises BackboneError or FileProblem where the weights have no output embedding, or one of
    another width than the last state.
    """

    def __init__(self, spec: BackboneSpec, backbone: PreTrainedModel) -> None:
        super().__init__()
        whole = without_numbers(spec)
        head, words = whole.get_output_embeddings(), whole.get_input_embeddings()
        if head is None:
            raise BackboneError(
                f"backbone {spec.name!r}: a {config_of(spec)['model_type']} model has no head that "
                "says the next token; take a decoder (smollm2, GPT-2, Llama, Qwen)"
            )
        width = head.weight.shape[1]
        if width != whole.config.hidden_size:
            raise BackboneError(
                f"backbone {spec.name!r}: its output embedding is {width} wide and its last state "
                f"{whole.config.hidden_size}, so no token can be read off that"
            )
        self.in_features, self.vocabulary = width, head.weight.shape[0]
        self.is_tied = head.weight is words.weight
        of_input = backbone.get_input_embeddings()
        linear = nn.Linear(width, self.vocabulary, head.bias is not None, device="meta")
        for name, parameter in _numbers(spec, whole, self.is_tied, of_input).items():
            setattr(linear, name, parameter)
        whole.set_output_embeddings(linear)
        self._below = standing_in()
        setattr(whole, whole.base_model_prefix, self._below)
        self.whole = whole

    @property
    def weight(self) -> nn.Parameter:
        """The output embedding [V, D]."""
        return next(self.whole.parameters())

    @property
    def linear(self) -> nn.Module:
        """The output embedding as a module, with its bias where it has one."""
        return next(m for m in self.whole.modules() if isinstance(m, nn.Linear))

    def forward(self, last_MD: Tensor) -> Tensor:
        """Logits [M, V] after tokens whose last states these are."""
        self._below.states = last_MD[None]
        ids = torch.zeros(1, len(last_MD), dtype=torch.long, device=last_MD.device)
        # a view, whose way back is one: `[0]` would put the gradient into a new tensor of zeros
        logits_MV = self.whole(input_ids=ids).logits.squeeze(0)
        self._below.states = None
        return logits_MV


def head_of(spec: BackboneSpec, backbone: PreTrainedModel) -> VocabularyHead:
    """The head of a model that has been placed, in the same memory and number format."""
    words: Any = backbone.get_input_embeddings()
    return VocabularyHead(spec, backbone).eval().to(words.weight)


def _numbers(
    spec: BackboneSpec, whole: Any, is_tied: bool, of_input: nn.Module
) -> dict[str, nn.Parameter]:
    """The head's parameters by name, none of them trained."""
    head = whole.get_output_embeddings()
    wanted = dict(head.named_parameters())
    found: dict[str, nn.Parameter] = {}
    if is_tied:
        found["weight"] = of_input.weight  # type: ignore[assignment]
        wanted.pop("weight")
    named = dict(whole.named_parameters(remove_duplicate=False))
    for key, value in wanted.items():
        if spec.kind == "random":
            draw = torch.Generator().manual_seed(spec.seed + 1)  # not the input embedding's stream
            deviation = getattr(whole.config, "initializer_range", 0.02)
            drawn = deviation * torch.randn(value.shape, generator=draw)
            numbers = drawn if key == "weight" else torch.zeros(value.shape)
        else:
            numbers = stored(spec, whole, [n for n, p in named.items() if p is value])
        if not torch.isfinite(numbers).all():
            raise BackboneError(f"backbone {spec.name!r}: NaN or infinity in its output embedding")
        found[key] = nn.Parameter(numbers, requires_grad=False)
    return found
