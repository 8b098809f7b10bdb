"""Split learning: one classifier cut into parts that pass hidden states forward and gradients back, with no clock.

SplitFed (arXiv 2004.12088; two transfers a batch, and the labels go up):

    client, server = splitfed(classifier, layers=2)         # embeddings and 2 layers | the other layers, readout, head
    sent = forward(client, client_state, ids_BT, mask_BT)   # up: sent.output and the labels
    loss, grads, back = learn(server, server_state, sent.output, mask_BT, labels_B)         # down: back
    client_grads, _ = sent.backward(back)

FedBert (ACM TIST 13(4), 2022; four transfers, labels stay on the device):

    embedding, body, end = fedbert(classifier)              # the client has the first and the last, the server the body
    e = forward(embedding, state, ids_BT, mask_BT)          # up: e.output
    b = forward(body, body_state, e.output, mask_BT)        # down: b.output
    loss, end_grads, back = learn(end, state, b.output, mask_BT, labels_B)                  # up: back
    body_grads, back = b.backward(back)                     # down: back
    embedding_grads, _ = e.backward(back)

A part knows its trainable tensors by the names that the whole classifier has for them, so the states of all parts together
are a state of the classifier. What is received may have crossed a lossy wire: gradients are those at the received values.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from learning.backbone import _read
from learning.trainable import TrainableClassifier

State = Mapping[str, Tensor]

# where an architecture has its layers, what comes before them, and what comes after
_PLACES = {
    "bert": ("encoder.layer", ("embeddings",), ()),
    "roberta": ("encoder.layer", ("embeddings",), ()),
    "distilbert": ("transformer.layer", ("embeddings",), ()),
    "llama": ("layers", ("embed_tokens",), ("norm",)),
    "opt": (
        "decoder.layers",
        ("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in"),
        ("decoder.final_layer_norm", "decoder.project_out"),
    ),
}


# --- the cut ---------------------------------------------------------------------------------------------------------


class Part(nn.Module):
    """A piece of a classifier: the embeddings or not, some layers, the end (final norm) or not, readout and head or not.

    It shares the classifier's weights; `names` are its trainable tensors, `trainable()` a copy of them. A part runs on the
    thread that owns the classifier: states are swapped in while it runs.
    """

    def __init__(self, classifier: TrainableClassifier, layers: range | None, embeds: bool, head: bool) -> None:
        super().__init__()
        self.embeds, self.readout = embeds, classifier.readout
        self.backbone = None if layers is None else _piece(classifier.backbone, layers, embeds)
        self.head = classifier.head if head else None
        own = dict(self.named_parameters())
        self.names = tuple(name for name in classifier.trainable_parameters() if name in own)

    def forward(self, x: Tensor, mask_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """From token ids [B, T] (a part with embeddings) or hidden states [B, T, D] to hidden states or logits [B, C]."""
        if self.backbone is not None:
            inputs = {"input_ids" if self.embeds else "inputs_embeds": x, "attention_mask": mask_BT}
            if self.embeds and segments_BT is not None and getattr(self.backbone.config, "type_vocab_size", 1) > 1:
                inputs["token_type_ids"] = segments_BT
            if hasattr(self.backbone.config, "use_cache"):
                inputs["use_cache"] = False
            x = self.backbone(**inputs).last_hidden_state
        return x if self.head is None else self.head(_read(x, mask_BT, self.readout))

    def trainable(self) -> dict[str, Tensor]:
        """A copy of this part's trainable tensors, under the classifier's names."""
        return self.of({name: parameter.detach().clone() for name, parameter in self.named_parameters()})

    def of(self, state: State) -> dict[str, Tensor]:
        """This part's share of a state."""
        return {name: state[name] for name in self.names}


def splitfed(classifier: TrainableClassifier, layers: int) -> tuple[Part, Part]:
    """Client (embeddings and the first `layers` layers) and server (the rest, readout, head); 0 to all layers.

    Raises ValueError for more layers than there are, and for an architecture whose layers this file does not know.
    """
    depth = _depth(classifier.backbone)
    if not 0 <= layers <= depth:
        raise ValueError(f"a model of {depth} layers can be cut after 0 to {depth} of them, not after {layers}")
    client = Part(classifier, range(layers), embeds=True, head=False)
    return client, Part(classifier, range(layers, depth), embeds=False, head=True)


def fedbert(classifier: TrainableClassifier) -> tuple[Part, Part, Part]:
    """Embeddings, body (every layer and the final norm), and readout with head; the client has the first and the last."""
    depth = _depth(classifier.backbone)
    return (
        Part(classifier, range(0), embeds=True, head=False),
        Part(classifier, range(depth), embeds=False, head=False),
        Part(classifier, None, embeds=False, head=True),
    )


# --- what a part does ------------------------------------------------------------------------------------------------


@dataclass
class Pass:
    """A forward pass that waits for its gradient: `output` is what crosses the wire, the rest is kept where it ran."""

    output: Tensor
    _attached: Tensor | None
    _leaves: dict[str, Tensor]
    _received: Tensor | None

    def backward(self, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of the part's trainable tensors, and of what it had received (None if those were token ids).

        Once: afterwards the pass holds nothing but its output.
        """
        attached, leaves, received = self._attached, self._leaves, self._received
        self._attached, self._leaves, self._received = None, {}, None
        sources = [*leaves.values(), *([] if received is None else [received])]
        if not sources:
            return {}, None
        gradients = torch.autograd.grad(attached, sources, gradient, materialize_grads=True)
        return (
            dict(zip(leaves, gradients[: len(leaves)], strict=True)),
            None if received is None else gradients[-1],
        )


def forward(part: Part, state: State, x: Tensor, mask_BT: Tensor, segments_BT: Tensor | None = None) -> Pass:
    """Run a part with the trainable tensors of `state` (which may hold more) on ids [B, T] or received states [B, T, D]."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in part.of(state).items()}
    received = x.detach().requires_grad_() if x.is_floating_point() else None
    with torch.enable_grad():
        attached = functional_call(part, leaves, (x if received is None else received, mask_BT, segments_BT))
    return Pass(attached.detach(), attached, leaves, received)


def learn(
    part: Part, state: State, x: Tensor, mask_BT: Tensor, labels_B: Tensor
) -> tuple[float, dict[str, Tensor], Tensor | None]:
    """The part with the head: mean cross-entropy, gradients of its trainable tensors, and of what it had received."""
    ran = forward(part, state, x, mask_BT)
    logits_BC = ran.output.requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(logits_BC, labels_B)
    (gradient_BC,) = torch.autograd.grad(loss, logits_BC)
    return (float(loss.detach()), *ran.backward(gradient_BC))


def pack(h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The rows of real tokens alone [N, D]: padding need not cross the wire, since nothing reads it."""
    return h_BTD[mask_BT.bool()]


def unpack(rows_ND: Tensor, mask_BT: Tensor) -> Tensor:
    """The inverse of `pack`, with zeros where there is no token: [B, T, D]."""
    h_BTD = rows_ND.new_zeros(*mask_BT.shape, rows_ND.shape[-1])
    h_BTD[mask_BT.bool()] = rows_ND
    return h_BTD


# --- one step of an optimiser on a state -----------------------------------------------------------------------------


def sgd_step(state: State, gradients: State, learning_rate: float) -> dict[str, Tensor]:
    """theta - lr g for the tensors that have a gradient; the others as they are. New tensors, old ones untouched."""
    return {n: t - learning_rate * gradients[n] if n in gradients else t for n, t in state.items()}


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) as a pure function of state, gradients and moments, so that a step can be replayed."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def step(self, state: State, gradients: State, moments: Moments | None = None) -> tuple[dict[str, Tensor], Moments]:
        """The state and the moments after one step; pass the moments on to the next, None before the first."""
        moments = moments or Moments(0, {}, {})
        steps, (b1, b2) = moments.steps + 1, self.betas
        fresh, first, second = dict(state), dict(moments.first), dict(moments.second)
        for name, g in gradients.items():
            first[name] = b1 * first.get(name, torch.zeros_like(g)) + (1 - b1) * g
            second[name] = b2 * second.get(name, torch.zeros_like(g)) + (1 - b2) * g * g
            direction = (first[name] / (1 - b1**steps)) / ((second[name] / (1 - b2**steps)).sqrt() + self.eps)
            fresh[name] = state[name] * (1 - self.learning_rate * self.weight_decay) - self.learning_rate * direction
        return fresh, Moments(steps, first, second)


@dataclass(frozen=True)
class Moments:
    """What AdamW remembers: the number of steps and the running first and second moments of each tensor."""

    steps: int
    first: dict[str, Tensor]
    second: dict[str, Tensor]


# --- how a backbone is taken apart -----------------------------------------------------------------------------------


class _Passing(nn.Module):
    """Stands where a part lacks something: hands its first argument on."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


class _NoEmbeddings(nn.Module):
    """Stands for embeddings: hands on the hidden states that arrive in their place."""

    def forward(self, input_ids: None = None, inputs_embeds: Tensor | None = None, *_: object, **__: object) -> Tensor:
        return inputs_embeds


class _NoPositions(nn.Module):
    """Stands for OPT's position embeddings, which are added to what arrives."""

    def forward(self, mask_BT: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros((), device=mask_BT.device)


def _piece(backbone: nn.Module, layers: range, embeds: bool) -> nn.Module:
    """A backbone with only these layers, sharing the weights; the last piece keeps what comes after the layers."""
    place, before, after = _place(backbone)
    absent = [f"{place}.{i}" for i in range(_depth(backbone)) if i not in layers]
    stand_ins: dict[str, nn.Module] = {path: _Passing() for path in absent}
    if not embeds:
        for path in before:
            stand_ins[path] = {"embeddings": _NoEmbeddings, "decoder.embed_positions": _NoPositions}.get(
                path, _Passing
            )()
    if embeds:  # the piece with the embeddings is never the last
        stand_ins |= {path: _Passing() for path in after}
    return _replaced(backbone, stand_ins)


def _replaced(module: nn.Module, stand_ins: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the module tree down to the replaced modules; everything beside them is shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, child in module._modules.items():
        inner = {path[len(name) + 1 :]: new for path, new in stand_ins.items() if path.startswith(name + ".")}
        if name in stand_ins and child is not None:
            twin._modules[name] = stand_ins[name]
        elif inner:
            twin._modules[name] = _replaced(child, inner)
    return twin


def _place(backbone: nn.Module) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    kind = backbone.config.model_type
    if kind not in _PLACES:
        raise ValueError(f"a {kind} model cannot be cut; these can: {', '.join(_PLACES)}")
    return _PLACES[kind]


def _depth(backbone: nn.Module) -> int:
    return len(backbone.get_submodule(_place(backbone)[0]))
