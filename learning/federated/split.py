"""Split learning: one classifier cut into parts that pass hidden states forward and gradients back,
with no clock.

SplitFed (arXiv 2004.12088; two transfers a batch, and the labels go up):

    # embeddings and 2 layers | the other layers, readout, head
    client, server = splitfed(classifier, layers=2)
    sent = forward(client, client_state, ids_BT, mask_BT)   # up: sent.output and the labels
    # down: back
    loss, grads, back = learn(server, server_state, sent.output, mask_BT, targets)
    client_grads, _ = sent.backward(back)

FedBert (ACM TIST 13(4), 2022; four transfers, labels stay on the device):

    # the client has the first and the last, the server the body
    embedding, body, end = fedbert(classifier)
    e = forward(embedding, state, ids_BT, mask_BT)          # up: e.output
    b = forward(body, body_state, e.output, mask_BT)        # down: b.output
    # up: back
    loss, end_grads, back = learn(end, state, b.output, mask_BT, targets)
    body_grads, back = b.backward(back)                     # down: back
    embedding_grads, _ = e.backward(back)

A part knows its trainable tensors by the names that the whole classifier has for them, so the
states of all parts together are a state of the classifier. What is received may have crossed a
lossy wire: gradients are those at the received values. A language model's last part has its
vocabulary, and is told by the segments of tokens which are to be said.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learning.backbones.anatomy import Anatomy, divisible
from learning.backbones.catalogue import BackboneError
from learning.backbones.language_head import tied
from learning.backbones.layers import entering, stack
from learning.federated.dropout import dropping_out
from learning.federated.losses import loss_of
from learning.federated.trainable import TrainableClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from learning.federated.aggregation import State

Tree = TypeVar("Tree", bound=nn.Module)
Dropout = tuple[float, int]  # the rate of a pass, and the seed of its masks

# --- the cut
# ------------------------------------------------------------------------------------------


class Part(nn.Module):
    """A piece of a classifier: the embeddings or not, some layers, the end (final norm) or not,
    readout and head or not.

    It shares the classifier's weights; `names` are its trainable tensors, `trainable()` a copy of
    them; `shared` are those of them that layers of another part would need too. A vocabulary that
    is tied to the embeddings has their name in every part. A part runs on the thread that owns the
    classifier: states are swapped in while it runs. Raises BackboneError for a model that cannot be
    cut between its layers.
    """

    def __init__(
        self, classifier: TrainableClassifier, layers: range | None, embeds: bool, head: bool
    ) -> None:
        super().__init__()
        self.embeds, self.embeds_segments = embeds, classifier.embeds_segments
        self.device = classifier.device
        self._received: list[Tensor] = []
        of = classifier.backbone, classifier.spec.name
        self.backbone = None if layers is None else _piece(*of, layers, embeds, self._received)
        self.head = classifier.head if head else None
        self.dropout = classifier.dropout
        self._read_off = classifier.read_off  # by the head and the dropout above
        mine = {id(parameter): name for name, parameter in self.named_parameters()}
        trained = classifier.trainable_parameters().items()
        self._own_names = {name: mine[id(p)] for name, p in trained if id(p) in mine}
        names = list(self._own_names)
        built = None if layers is None else divisible(*of)
        beside = (
            ()
            if built is None
            else (*built.beside, *(path.rpartition(".")[0] for path in built.handed_on))
        )
        shared = [n for n in names if n.startswith(tuple(f"backbone.{path}." for path in beside))]
        self.names = tuple(
            name for name in names if layers or name not in shared
        )  # without layers it uses none
        self.shared = tuple(shared) if layers else ()

    def forward(self, x: Tensor, mask_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """From token ids [B, T] (a part with embeddings) or hidden states [B, T, D] to hidden
        states or logits.
        """
        if self.backbone is not None:
            entry = "input_ids" if self.embeds else "inputs_embeds"
            inputs: dict[str, Tensor | bool] = {entry: x, "attention_mask": mask_BT}
            if self.embeds and segments_BT is not None and self.embeds_segments:
                inputs["token_type_ids"] = segments_BT
            if hasattr(self.backbone.config, "use_cache"):
                inputs["use_cache"] = False
            self._received[:] = [x]
            x = self.backbone(**inputs).last_hidden_state
            self._received.clear()
        if self.head is None:
            return x
        return self._read_off(x, mask_BT, segments_BT)

    def trainable(self) -> dict[str, Tensor]:
        """A copy of this part's trainable tensors, under the classifier's names."""
        own = {n: self.get_parameter(self._own_names[n]) for n in self.names}
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in own.items()}

    def run(self, state: State, *inputs: Tensor | None) -> Tensor:
        """What it makes of its inputs with these trainable tensors."""
        return functional_call(self, {self._own_names[n]: t for n, t in state.items()}, inputs)

    def of(self, state: State) -> dict[str, Tensor]:
        """This part's share of a state."""
        return {name: state[name] for name in self.names}


def splitfed(classifier: TrainableClassifier, layers: int) -> tuple[Part, Part]:
    """Client (embeddings and the first `layers` layers) and server (the rest, readout, head); 0 to
    all layers.

    Raises ValueError for more layers than there are, and BackboneError for a model that cannot be
    cut there, or of which both sides would train the same tensor.
    """
    depth = len(stack(classifier.backbone))
    if not 0 <= layers <= depth:
        raise ValueError(
            f"a model of {depth} layers can be cut after 0 to {depth} of them, not after {layers}"
        )
    client = Part(classifier, range(layers), embeds=True, head=False)
    server = Part(classifier, range(layers, depth), embeds=False, head=True)
    if 0 < layers < depth:
        require_apart(client, classifier)
    if any(name in server.names for name in client.names):  # else refused above, or nowhere used
        raise tied(classifier.spec, classifier.kind)
    return client, server


def require_apart(part: Part, classifier: TrainableClassifier) -> None:
    """BackboneError for a part of some layers that trains what the others need as well."""
    if part.shared:
        raise BackboneError(
            f"backbone {classifier.spec.name!r} ({classifier.backbone.config.model_type}): "
            f"{classifier.kind} training cannot "
            f"be split, for layers on both sides use {part.shared[0].removeprefix('backbone.')}; "
            "choose lora or adapter"
        )


def fedbert(classifier: TrainableClassifier) -> tuple[Part, Part, Part]:
    """Embeddings, body (every layer and the final norm), and readout with head; the client has the
    first and the last.
    """
    depth = len(stack(classifier.backbone))
    return (
        Part(classifier, range(0), embeds=True, head=False),
        Part(classifier, range(depth), embeds=False, head=False),
        Part(classifier, None, embeds=False, head=True),
    )


# --- what a part does
# ------------------------------------------------------------------------------------------


@dataclass
class Pass:
    """A forward pass that waits for its gradient: `output` is what crosses the wire, the rest is
    kept where it ran.
    """

    output: Tensor
    _attached: Tensor | None
    _leaves: dict[str, Tensor]
    _received: Tensor | None

    def backward(self, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of the part's trainable tensors, and of what it had received (None if those
        were token ids).

        Once: afterwards the pass holds nothing but its output.
        """
        attached, leaves, received = self._attached, self._leaves, self._received
        self._attached, self._leaves, self._received = None, {}, None
        sources = [*leaves.values(), *([] if received is None else [received])]
        if attached is None or not sources:
            return {}, None
        gradients = [
            _in_memory(one)
            for one in torch.autograd.grad(
                attached, sources, gradient.to(attached.device), materialize_grads=True
            )
        ]
        return (
            dict(zip(leaves, gradients[: len(leaves)], strict=True)),
            None if received is None else gradients[-1],
        )


def forward(
    part: Part,
    state: State,
    x: Tensor,
    mask_BT: Tensor,
    segments_BT: Tensor | None = None,
    dropout: Dropout = (0.0, 0),
) -> Pass:
    """Run a part with the trainable tensors of `state` (which may hold more) on ids [B, T] or
    received states [B, T, D]. What it gives lies in the CPU's memory.
    """
    return _pass(part, state, (x, mask_BT, segments_BT), dropout, lambda output: output)


def _pass(
    part: Part,
    state: State,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    dropout: Dropout,
    then: Callable[[Tensor], Tensor],
) -> Pass:
    """A pass whose output is what is `then` made of the part's, which nobody holds on to."""
    x, mask_BT, segments_BT = inputs
    x, mask_BT = x.detach().to(part.device), mask_BT.to(part.device)
    segments_BT = None if segments_BT is None else segments_BT.to(part.device)
    leaves = {
        name: tensor.detach().to(part.device).requires_grad_()
        for name, tensor in part.of(state).items()
    }
    received = x.requires_grad_() if x.is_floating_point() else None
    with torch.enable_grad(), dropping_out(part, *dropout):
        attached = then(part.run(leaves, x, mask_BT, segments_BT))
    return Pass(_in_memory(attached.detach()), attached, leaves, received)


def _in_memory(x: Tensor) -> Tensor:
    """In the CPU's memory; a tensor without numbers, of a pass that is counted, as it is."""
    return x if x.is_meta else x.cpu()


def learn(
    part: Part,
    state: State,
    x: Tensor,
    mask_BT: Tensor,
    targets: Tensor,
    dropout: Dropout = (0.0, 0),
    segments_BT: Tensor | None = None,
) -> tuple[float, dict[str, Tensor], Tensor | None]:
    """The part with the head: mean cross-entropy, gradients of its trainable tensors, and of what
    it had received. `targets` are labels [B], or the tokens [M] to be said, where the segments are.
    """

    def loss(logits: Tensor) -> Tensor:
        return loss_of(logits, targets.to(logits.device))

    ran = _pass(part, state, (x, mask_BT, segments_BT), dropout, loss)
    return (float(ran.output), *ran.backward(torch.ones_like(ran.output)))


def pack_rows(h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The rows of real tokens alone [N, D]: padding need not cross the wire, since nothing reads
    it.
    """
    return h_BTD[mask_BT.bool()]


def unpack_rows(rows_ND: Tensor, mask_BT: Tensor) -> Tensor:
    """The inverse of `pack`, with zeros where there is no token: [B, T, D]."""
    h_BTD = rows_ND.new_zeros(*mask_BT.shape, rows_ND.shape[-1])
    h_BTD[mask_BT.bool()] = rows_ND
    return h_BTD


# --- one step of an optimiser on a state
# -----------------------------------------------------------------------------


def sgd_step(state: State, gradients: State, learning_rate: float) -> dict[str, Tensor]:
    """theta - lr g for the tensors that have a gradient; the others as they are. New tensors, old
    ones untouched.
    """
    return {n: t - learning_rate * gradients[n] if n in gradients else t for n, t in state.items()}


class Optimiser(Protocol):
    """A pure function of state, gradients and moments, so that a step can be replayed."""

    def step(
        self, state: State, gradients: State, moments: Moments | None = None
    ) -> tuple[dict[str, Tensor], Moments]:
        """The state and the moments after one step; pass the moments on to the next, None before
        the first.
        """


def new_optimiser(
    kind: str, learning_rate: float, weight_decay: float = 0.0, momentum: float = 0.0
) -> Optimiser:
    """`adamw` or `sgd`."""
    if kind == "sgd":
        return Sgd(learning_rate, momentum, weight_decay)
    return AdamW(learning_rate, weight_decay=weight_decay)


@dataclass(frozen=True)
class Sgd:
    """v = momentum v + g + weight_decay theta, theta - lr v; without momentum nothing is kept."""

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def step(
        self, state: State, gradients: State, moments: Moments | None = None
    ) -> tuple[dict[str, Tensor], Moments]:
        """As `Optimiser.step`; the velocities are first moments."""
        moments = moments or Moments(0, {}, {})
        velocities = {name: g + self.weight_decay * state[name] for name, g in gradients.items()}
        if self.momentum:
            for name in velocities.keys() & moments.first.keys():
                velocities[name] = velocities[name] + self.momentum * moments.first[name]
        fresh = sgd_step(state, velocities, self.learning_rate)
        kept = {**moments.first, **velocities} if self.momentum else {}
        return fresh, Moments(moments.steps + 1, kept, {})


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) as a pure function of state, gradients and moments, so that
    a step can be replayed.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def step(
        self, state: State, gradients: State, moments: Moments | None = None
    ) -> tuple[dict[str, Tensor], Moments]:
        """The state and the moments after one step; pass the moments on to the next, None before
        the first.
        """
        moments = moments or Moments(0, {}, {})
        steps, (b1, b2) = moments.steps + 1, self.betas
        fresh = dict(state)
        first = dict(moments.first)
        second = dict(moments.second)
        for name, g in gradients.items():
            first[name] = b1 * first.get(name, torch.zeros_like(g)) + (1 - b1) * g
            second[name] = b2 * second.get(name, torch.zeros_like(g)) + (1 - b2) * g * g
            direction = (first[name] / (1 - b1**steps)) / (
                (second[name] / (1 - b2**steps)).sqrt() + self.eps
            )
            fresh[name] = (
                state[name] * (1 - self.learning_rate * self.weight_decay)
                - self.learning_rate * direction
            )
        return fresh, Moments(steps, first, second)


@dataclass(frozen=True)
class Moments:
    """What AdamW remembers: the number of steps and the running first and second moments of each
    tensor.
    """

    steps: int
    first: dict[str, Tensor]
    second: dict[str, Tensor]


# --- how a backbone is taken apart
# -----------------------------------------------------------------------------------


def _piece(
    backbone: PreTrainedModel, name: str, layers: range, embeds: bool, received: list[Tensor]
) -> PreTrainedModel:
    """A backbone with only these layers, sharing the weights, whose own forward pass runs: masks,
    positions and all.

    What is absent is stood in for. Without embeddings, whatever made the first hidden states gives
    those that were received, and they enter the first of the layers; without the last layers, what
    follows them hands on.
    """
    built, whole = divisible(backbone, name), list(stack(backbone))
    handed_on: list[Tensor] = []
    stand_ins = {
        f"{built.layers}.{i}": _absent(
            layer, built.returns, None if embeds else received, handed_on
        )
        for i, layer in enumerate(whole)
        if i not in layers
    }
    if embeds:  # the piece with the embeddings is never the last
        return _replaced(backbone, stand_ins | {path: _Passing() for path in built.after})
    stand_ins |= {path: _Received(received) for path in built.embeds}
    if layers:
        stand_ins[f"{built.layers}.{layers[0]}"] = _entered(whole[layers[0]], received)
    if built.handed_on and 0 not in layers:
        stand_ins[f"{built.layers}.0"] = _biased(whole[0], built, received, handed_on)
    return _replaced(backbone, stand_ins)


class _Passing(nn.Module):
    """Stands where a part lacks something: hands its first argument on."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


class _Received(nn.Module):
    """Stands for what makes hidden states: gives those that were received."""

    def __init__(self, received: list[Tensor]) -> None:
        super().__init__()
        self._received = received

    def forward(self, *_: object, **__: object) -> Tensor:
        return self._received[0]


def _absent(
    layer: nn.Module, returns: int, received: list[Tensor] | None, handed_on: Sequence[Tensor] = ()
) -> nn.Module:
    """Stands for a layer: has its attributes, no weights, and returns hidden states in the form
    that it would.

    They are those that were received where there are any, else those that enter. `handed_on`
    follows them.
    """

    def forward(*args: object, **kwargs: object) -> object:
        h_BTD = received[0] if received else entering(args, kwargs)
        return (h_BTD, *handed_on, *[None] * (returns - 1 - len(handed_on))) if returns else h_BTD

    return _acting(layer, forward, {})


def _acting(
    layer: nn.Module, forward: Callable[..., object], modules: Mapping[str, nn.Module | None]
) -> nn.Module:
    twin = copy.copy(layer)
    twin._modules = dict(modules)
    twin._parameters = {}
    twin._buffers = {}
    twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
    twin.forward = forward
    return twin


def _entered(layer: nn.Module, received: list[Tensor]) -> nn.Module:
    """A layer, sharing its weights, that what was received enters, whatever the model hands it."""

    def enter(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (
            ((received[0], *args[1:]), kwargs)
            if args
            else (args, {**kwargs, "hidden_states": received[0]})
        )

    twin = copy.copy(layer)
    twin._forward_pre_hooks = OrderedDict()
    twin._forward_pre_hooks_with_kwargs = OrderedDict()
    twin.register_forward_pre_hook(enter, with_kwargs=True)
    return twin


_T5_BIAS = "compute_bias"  # the method of T5's attention that makes it


def _biased(
    layer: nn.Module, built: Anatomy, received: list[Tensor], handed_on: list[Tensor]
) -> nn.Module:
    """Stands for T5's first layer, which makes the position bias of all: keeps what makes it, and
    hands it on.

    BackboneError for any other architecture whose layers hand more than hidden states to one
    another.
    """
    path, _, table = (
        built.handed_on[0]
        .removeprefix(f"{built.layers}.0.")
        .removesuffix(".weight")
        .rpartition(".")
    )
    attention = layer.get_submodule(path)
    if len(built.handed_on) > 1 or not hasattr(attention, _T5_BIAS):
        raise BackboneError(
            f"its layers hand one another more than hidden states ({table}), so it cannot be cut "
            "there"
        )
    maker = _acting(attention, attention.forward, {table: attention.get_submodule(table)})

    def forward(*_: object, **__: object) -> object:
        tokens, device = received[0].shape[1], received[0].device
        handed_on[:] = [getattr(maker, _T5_BIAS)(tokens, tokens, device=device)]
        return (received[0], *handed_on, *[None] * (built.returns - 2))

    inner: nn.Module = maker
    for name in reversed(path.split(".")):
        holder = nn.Module()
        holder.add_module(name, inner)
        inner = holder
    return _acting(layer, forward, inner._modules)


def _replaced(module: Tree, stand_ins: Mapping[str, nn.Module]) -> Tree:
    """A copy of the module tree down to the replaced modules; everything beside them is shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, child in module._modules.items():
        inner = {
            path[len(name) + 1 :]: new
            for path, new in stand_ins.items()
            if path.startswith(name + ".")
        }
        if name in stand_ins and child is not None:
            twin._modules[name] = stand_ins[name]
        elif inner and child is not None:
            twin._modules[name] = _replaced(child, inner)
    return twin
