"""What passes without a backward pass cost: the forward pass of a classifier with its trainable
part, and the same with forward-mode derivatives, counted and looked up.

`forward_architecture` and `jvp_pass` answer from the user's cache, else count; only counting
imports torch. Derivatives are counted as PyTorch executes them: a product of which one factor alone
has a derivative is computed three times, once with a derivative of zeros, so a pass with
derivatives from the first layer on is three forward passes, not two. (Real tensors give the same
count, and take as much longer.)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learning.backbones.catalogue import (
    BackboneError,
    BackboneSpec,
    config_of,
    cut,
    depth_of,
    layer_of,
)
from learning.cost.cost_cache import counted
from learning.cost.count_split import PassCounts, passes
from learning.cost.count_training import Targets, peft_options


@dataclass(frozen=True)
class ForwardArchitecture:
    """A backbone with a trainable part and a head: how many numbers each trained tensor has, and
    its forward pass.

    `tensors` is in the fixed order of `learning.federated.trainable`.
    """

    tensors: dict[str, int]
    ahead: PassCounts

    def nbytes(self, names: Sequence[str] | None = None) -> int:
        """Bytes of these trained tensors, by default of all, in float32: what crosses the wire,
        before any codec.
        """
        return 4 * sum(
            self.tensors.values() if names is None else (self.tensors[name] for name in names)
        )


def forward_architecture(
    spec: BackboneSpec,
    kind: str,
    classes: int = 2,
    rank: int = 8,
    bottleneck: int = 16,
    head: str = "linear",
    target_modules: Targets = None,
    adapters: str = "houlsby",
) -> ForwardArchitecture:
    """The counted forward pass of the backbone with a trainable part of `kind` and a head; nothing
    is kept.
    """
    options = peft_options(kind, rank, bottleneck, target_modules, head, adapters)
    counter = _Counter(spec.name, config_of(spec), kind, classes, options)
    return ForwardArchitecture(counter.tensors(), counter.ahead(counter.config))


def lora_maps(
    spec: BackboneSpec, classes: int, rank: int, bottleneck: int, target_modules: Targets = None
) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear map that has LoRA."""
    options = peft_options("lora", rank, bottleneck, target_modules)
    tensors = _Counter(spec.name, config_of(spec), "lora", classes, options).tensors()
    return [
        (numbers // rank, tensors[name.replace(".lora_A.", ".lora_B.")] // rank)
        for name, numbers in tensors.items()
        if ".lora_A." in name
    ]


def jvp_pass(
    spec: BackboneSpec,
    kind: str,
    names: Sequence[str],
    classes: int = 2,
    rank: int = 8,
    bottleneck: int = 16,
    head: str = "linear",
    target_modules: Targets = None,
    adapters: str = "houlsby",
) -> PassCounts:
    """The counted forward pass that carries derivatives with respect to the named tensors.

    Derivatives begin in the first layer that has one of these; what the others add in later layers,
    where all is carried anyway, is left out (in LoRA below 1e-4 of a pass). The layers before cost
    a forward pass.
    """
    options = peft_options(kind, rank, bottleneck, target_modules, head, adapters)
    counter = _Counter(spec.name, config_of(spec), kind, classes, options)
    depth = depth_of(counter.config)
    below = [layer_of(name) for name in names if not name.startswith("head.")]
    if not below:  # the head's own derivatives are a product of [D] and [D, C]
        return counter.ahead(counter.config)
    first = min(0 if layer is None else layer for layer in below)
    # the head and the first of these layers, moved to the bottom of a model of the layers that
    # carry derivatives
    start = [
        re.sub(r"\.\d+\.", ".0.", name, count=1)
        for name in names
        if layer_of(name) in (None, first)
    ]
    carried = counter.ahead(cut(counter.config, depth - first), start)
    if first == 0:
        return carried
    two, three = (counter.ahead(cut(counter.config, layers)) for layers in (2, 3))
    constant, linear, square = (
        c + first * (b - a) for c, a, b in zip(carried.flop, two.flop, three.flop, strict=True)
    )
    return dataclasses.replace(
        carried,
        flop=(constant, linear, square),
        bytes_moved=carried.bytes_moved + first * (three.bytes_moved - two.bytes_moved),
        flop_per_batch=carried.flop_per_batch + first * (three.flop_per_batch - two.flop_per_batch),
    )


# --- counting
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counter:
    """Counts, or looks up, what concerns one backbone with one trainable part."""

    backbone: str
    config: Mapping[str, Any]
    kind: str
    classes: int
    options: Mapping[str, Any]

    def tensors(self) -> dict[str, int]:
        """How many numbers each trained tensor has."""

        def count() -> dict[str, int]:
            trained = self._model(self.config).trainable_parameters()
            return {name: parameter.numel() for name, parameter in trained.items()}

        return counted(self.backbone, "what is trained", [self.config, *self._how], count)

    def ahead(self, config: Mapping[str, Any], names: Sequence[str] = ()) -> PassCounts:
        """The pass of the backbone, or of a cut of it, with derivatives along the named tensors."""

        def count() -> dict[str, Any]:
            from learning.cost.weightless import of_depth

            try:
                return dataclasses.asdict(
                    of_depth(config, lambda cut_to: self._count(cut_to, names))
                )
            except RuntimeError as error:
                if not names:
                    raise
                raise BackboneError(
                    f"backbone {self.backbone!r} ({config['model_type']}): a step in it has no "
                    "forward-mode derivative, which "
                    "Spry needs; choose fwdllm or fedmezo"
                ) from error

        what = "a pass with derivatives" if names else "a pass"
        return passes(counted(self.backbone, what, [config, *self._how, sorted(names)], count))

    @property
    def _how(self) -> list[Any]:
        return [self.kind, self.classes, self.options]

    def _count(self, config: Mapping[str, Any], names: Sequence[str]) -> PassCounts:
        from learning.backbones.layers import positions_of
        from learning.cost.meter import LONG, coefficients

        model, roomy = self._model(config), self._model(config, 2 * LONG[-1])
        (made,) = coefficients(_run_on(model, names), _run_on(roomy, names), positions_of(model))
        return PassCounts(**{name: value for name, value in made.items() if name != "saved"})

    def _model(self, config: Mapping[str, Any], positions: int | None = None) -> Any:
        from learning.cost.weightless_classifier import weightless_classifier

        return weightless_classifier(
            config, self.kind, self.classes, positions=positions, **self.options
        )


def _run_on(model: Any, names: Sequence[str]) -> Any:
    """Measures one pass with derivatives along the named tensors."""
    import torch

    from learning.cost.meter import CostMeter, Reading
    from learning.federated.forward_gradient import batch_loss

    def run(batch: int, tokens: int) -> list[Reading]:
        with torch.device("meta"):
            ids_BT = torch.zeros(batch, tokens, dtype=torch.long)
            mask_BT = torch.ones_like(ids_BT)
            labels_B = torch.zeros(batch, dtype=torch.long)
            loss = batch_loss(model, ids_BT, mask_BT, labels_B)
            state = {
                name: parameter.detach() for name, parameter in model.trainable_parameters().items()
            }
            own = {name: state[name] for name in names}
            v = {name: torch.empty_like(tensor) for name, tensor in own.items()}
            meter = CostMeter()
            meter.ignore(
                [ids_BT, mask_BT, labels_B, *model.parameters(), *model.buffers(), *v.values()]
            )

            def one_pass() -> None:
                if own:
                    torch.func.jvp(lambda part: loss({**state, **part}), (own,), (v,))
                else:
                    loss(state)

            with torch.no_grad():
                if own:  # the first time torch derives an operator's rule, which is no pass's work
                    with CostMeter():
                        one_pass()
                with meter:
                    one_pass()
        return [Reading(meter.flop, meter.bytes_moved, meter.peak_bytes, meter.operators)]

    return run
