"""What the parts of a split model cost: forward and backward of each, counted, and looked up.

`part_architecture` answers from the user's cache, else counts; only counting imports torch. A part
is told by what it has: embeddings or not, so many layers (None: not even what follows the layers),
the readout and head or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from learning.backbones.catalogue import BackboneSpec, config_of, cut, depth_of
from learning.cost.cost_cache import counted
from learning.cost.costs import OPTIMISER_NUMBERS, Cost, Trained, _polynomial
from learning.cost.count_training import Targets, peft_options


@dataclass(frozen=True)
class PassCounts:
    """Counted coefficients of one pass in float32: (constant, per token, per token^2) a sequence;
    bytes and FLOP a batch.

    The peaks are the two regimes of the largest sum of live activations and gradients, as in
    `learning.cost.costs.Architecture`.
    """

    flop: tuple[float, float, float]
    peak_feed_forward: tuple[float, float, float]
    peak_attention: tuple[float, float, float]
    bytes_moved: float
    flop_per_batch: float = 0.0

    def cost(self, batch: int, tokens: int) -> Cost:
        """The pass over `batch` sequences padded to `tokens`."""
        peak = max(
            _polynomial(self.peak_feed_forward, tokens), _polynomial(self.peak_attention, tokens)
        )
        flop = batch * _polynomial(self.flop, tokens) + self.flop_per_batch
        return Cost(flop, self.bytes_moved, round(batch * peak))


@dataclass(frozen=True)
class PartArchitecture(Trained):
    """One part of a split model: its numbers, those of them it trains, the width of what it hands
    on, its two passes, and what the first keeps for the second: bytes a text, (constant, per token,
    per token^2).

    The peak of the forward pass holds what is kept for the backward pass, that of the backward pass
    all that lives in it.
    """

    parameters: int
    trainable: int
    width: int
    ahead: PassCounts
    back: PassCounts
    saved: tuple[float, float, float]

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the trained numbers in float32."""
        return 4 * self.trainable

    def kept_bytes(self, optimiser: str = "adamw") -> int:
        """Bytes of all weights and of what the optimiser keeps, in float32."""
        return 4 * self.parameters + OPTIMISER_NUMBERS[optimiser] * self.trainable_bytes

    def saved_bytes(self, batch: int, tokens: int) -> int:
        """Bytes kept from the forward pass for the backward pass."""
        return round(batch * _polynomial(self.saved, tokens))

    def forward(self, batch: int, tokens: int) -> Cost:
        """A forward pass that waits for its gradient."""
        return self.ahead.cost(batch, tokens)

    def backward(self, batch: int, tokens: int, optimiser: str = "adamw") -> Cost:
        """The backward pass and the optimiser's traffic (see
        `learning.cost.costs.TrainingArchitecture.step`).
        """
        cost, kept = self.back.cost(batch, tokens), OPTIMISER_NUMBERS[optimiser]
        moved = cost.bytes_moved + (3 + 2 * kept) * self.trainable_bytes
        return Cost(cost.flop, moved, max(cost.peak_bytes, self.trainable_bytes))


def part_architecture(
    spec: BackboneSpec,
    layers: int | None,
    embeds: bool = False,
    head: bool = False,
    kind: str = "full",
    classes: int = 2,
    rank: int = 8,
    bottleneck: int = 16,
    head_kind: str = "linear",
    target_modules: Targets = None,
    adapters: str = "houlsby",
) -> PartArchitecture:
    """The counted cost of a part of the backbone trained by `kind`: its first layers with
    embeddings, else its last ones; where it has the `head`, one of that kind to so many classes
    (0: none, where words are said).

    Raises ValueError for more layers than the backbone has, and BackboneError for an architecture
    that cannot be split.
    """
    config = config_of(spec)
    its_head = head_kind if head else "linear"  # of no other part's concern
    options = peft_options(kind, rank, bottleneck, target_modules, its_head, adapters)
    if layers is not None and not 0 <= layers <= depth_of(config):
        raise ValueError(f"a part of {spec.name} has 0 to {depth_of(config)} layers, not {layers}")
    is_cut = layers is not None and 0 < layers < depth_of(config)
    if embeds or layers is None:  # equal in all cuts of a model
        config = cut(config, max(1, layers or 0))

    def count() -> dict[str, Any]:
        return dataclasses.asdict(
            count_part(config, layers, embeds, head, kind, classes, is_cut, options)
        )

    of = [config, layers, embeds, head, kind, options, classes if head else 0, is_cut]
    return _from_json(counted(spec.name, "a part of a split model", of, count))


def _from_json(fields: dict[str, Any]) -> PartArchitecture:
    both = {name: passes(fields[name]) for name in ("ahead", "back")}
    return PartArchitecture(**{**fields, **both, "saved": tuple(fields["saved"])})


def passes(fields: Mapping[str, Any]) -> PassCounts:
    """`PassCounts` from their JSON form (lists become tuples)."""
    counted: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return PassCounts(**counted)


# --- counting
# ------------------------------------------------------------------------------------------


def count_part(
    config: Mapping[str, Any],
    layers: int | None,
    embeds: bool,
    head: bool,
    kind: str,
    classes: int,
    is_cut: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> PartArchitecture:
    """Count the coefficients of `PartArchitecture`; `options` are those of `peft_options`.

    `is_cut` says that other layers are in another part: BackboneError where both would train the
    same tensors.
    """
    from learning.cost.weightless import alike, of_depth

    if layers is None:
        return _count(config, None, embeds, head, kind, classes, options)
    depth = depth_of(config)

    def count(shallow: Mapping[str, Any]) -> PartArchitecture:
        place = (
            range(depth - layers, depth)
            if shallow is config
            else range(min(layers, depth_of(shallow)))
        )
        return _count(shallow, place, embeds, head, kind, classes, options, is_cut)

    return of_depth(cut(config, max(1, layers)), count) if alike(config) else count(config)


def _count(
    config: Mapping[str, Any],
    place: range | None,
    embeds: bool,
    head: bool,
    kind: str,
    classes: int,
    options: Mapping[str, Any],
    is_cut: bool = False,
) -> PartArchitecture:
    from learning.backbones.layers import positions_of
    from learning.cost.meter import LONG, coefficients
    from learning.cost.weightless_classifier import weightless_classifier
    from learning.federated.split import Part, require_apart

    def made(positions: int | None) -> tuple[Any, int]:
        model = weightless_classifier(config, kind, classes, positions=positions, **options)
        # the width that reaches the head is another than the layers' own in OPT-350M, which narrows
        # at both ends
        entering = model.head.in_features if place is None else model.backbone.config.hidden_size
        part = Part(model, place, embeds, head)
        if is_cut:
            require_apart(part, model)
        return part, entering

    (part, entering), roomy = made(None), made(2 * LONG[-1])
    ahead, back = coefficients(_run_on(part, entering), _run_on(*roomy), positions_of(part))
    own = {name: parameter.numel() for name, parameter in part.named_parameters()}
    return PartArchitecture(
        sum(own.values()),
        sum(own[name] for name in part.names),
        _width(part, entering),
        PassCounts(**{name: value for name, value in ahead.items() if name != "saved"}),
        PassCounts(**{name: value for name, value in back.items() if name != "saved"}),
        ahead["saved"],
    )


def _inputs(part: Any, entering: int, batch: int, tokens: int) -> tuple[Any, Any]:
    import torch

    mask_BT = torch.ones(batch, tokens, dtype=torch.long, device="meta")
    return (
        torch.zeros_like(mask_BT)
        if part.embeds
        else torch.zeros(batch, tokens, entering, device="meta")
    ), mask_BT


def _width(part: Any, entering: int) -> int:
    """Of what the part hands on."""
    from learning.cost.meter import CostMeter
    from learning.federated.split import forward

    with CostMeter():
        return forward(
            part, dict(part.named_parameters()), *_inputs(part, entering, 1, 4)
        ).output.shape[-1]


def _run_on(part: Any, entering: int) -> Callable[[int, int], Any]:
    """Measures the forward and the backward pass; the peak of the latter is that of both."""
    import torch

    from learning.cost.meter import CostMeter, Reading, saving
    from learning.federated.split import forward

    state = dict(part.named_parameters())

    def run(batch: int, tokens: int) -> list[Reading]:
        inputs, meter = _inputs(part, entering, batch, tokens), CostMeter()
        known = [*inputs, *part.parameters(), *part.buffers()]
        meter.ignore(known)
        with torch.device("meta"), meter:
            with saving(known) as saved:
                ran = forward(part, state, *inputs)
            read = (meter.flop, meter.bytes_moved, meter.peak_bytes, meter.operators)
            ahead = Reading(*read, sum(saved.values()))
            gradients = ran.backward(torch.ones_like(ran.output))
        del gradients
        flop = meter.flop - ahead.flop
        moved = meter.bytes_moved - ahead.bytes_moved
        return [ahead, Reading(flop, moved, meter.peak_bytes, meter.operators - ahead.operators)]

    return run
