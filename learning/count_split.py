"""What the parts of a split model cost: forward and backward of each, counted on fake tensors, and looked up.

`part_architecture` answers from the user's cache, else counts; only counting imports torch. A part is told by what it has:
embeddings or not, so many layers (None: not even what follows the layers), the readout and head or not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learning import assets
from learning.catalogue import BackboneSpec, config_of, cut, depth_of
from learning.cost import OPTIMISER_NUMBERS, Cost, _polynomial
from learning.count_training import _LONG, _SHORT, _TINY, _build, _extrapolate, _size


@dataclass(frozen=True)
class PassCounts:
    """Counted coefficients of one pass in float32: (constant, per token, per token^2) a sequence, and bytes a batch.

    The peaks are the two regimes of the largest sum of live activations and gradients, as in `learning.cost.Architecture`.
    """

    flop: tuple[float, float, float]
    peak_feed_forward: tuple[float, float, float]
    peak_attention: tuple[float, float, float]
    bytes_moved: float

    def cost(self, batch: int, tokens: int) -> Cost:
        """The pass over `batch` sequences padded to `tokens`."""
        peak = max(_polynomial(self.peak_feed_forward, tokens), _polynomial(self.peak_attention, tokens))
        return Cost(batch * _polynomial(self.flop, tokens), self.bytes_moved, round(batch * peak))


@dataclass(frozen=True)
class PartArchitecture:
    """One part of a split model: its numbers, those of them it trains, the width of what it hands on, and its two passes.

    The peak of the forward pass holds what is kept for the backward pass, that of the backward pass all that lives in it.
    """

    parameters: int
    trainable: int
    width: int
    ahead: PassCounts
    back: PassCounts

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the trained numbers in float32."""
        return 4 * self.trainable

    def kept_bytes(self, optimiser: str = "adamw") -> int:
        """Bytes of all weights and of what the optimiser keeps, in float32."""
        return 4 * self.parameters + OPTIMISER_NUMBERS[optimiser] * self.trainable_bytes

    def forward(self, batch: int, tokens: int) -> Cost:
        """A forward pass that waits for its gradient."""
        return self.ahead.cost(batch, tokens)

    def backward(self, batch: int, tokens: int, optimiser: str = "adamw") -> Cost:
        """The backward pass and the optimiser's traffic (see `learning.cost.TrainingArchitecture.step`)."""
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
) -> PartArchitecture:
    """The counted cost of a part of the backbone trained by `kind`; ValueError for more layers than the backbone has."""
    config, size = config_of(spec), _size(kind, rank, bottleneck)
    if layers is not None and not 0 <= layers <= depth_of(config):
        raise ValueError(f"a part of {spec.name} has 0 to {depth_of(config)} layers, not {layers}")
    # cuts of one model share parts
    what = [cut(config, 1), layers, embeds, head, kind, size, classes if head else 0]
    key = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()
    cached = assets.cache_dir() / "costs" / f"part-{key}.json"
    if not cached.is_file():
        counted = dataclasses.asdict(count_part(config, layers, embeds, head, kind, size, classes))
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_suffix(".tmp")
        fresh.write_text(json.dumps(counted))
        fresh.replace(cached)
    return _from_json(json.loads(cached.read_text()))


def _from_json(fields: dict[str, Any]) -> PartArchitecture:
    for name in ("ahead", "back"):
        fields[name] = PassCounts(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields[name].items()})
    return PartArchitecture(**fields)


# --- counting --------------------------------------------------------------------------------------------------------


def count_part(
    config: Mapping[str, Any], layers: int | None, embeds: bool, head: bool, kind: str, size: int, classes: int
) -> PartArchitecture:
    """Count the coefficients of `PartArchitecture`; more than three layers follow from two and three."""
    if layers is None or layers <= 3:
        return _count(config, layers, embeds, head, kind, size, classes)
    two, three = (_count(config, n, embeds, head, kind, size, classes) for n in (2, 3))
    return _extrapolate(two, three, layers - 2)


def _count(
    config: Mapping[str, Any], layers: int | None, embeds: bool, head: bool, kind: str, size: int, classes: int
) -> PartArchitecture:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from learning.count import _quadratic
    from learning.split import Part

    shallow = cut(config, max(1, layers or 0))

    def part_of(config: Mapping[str, Any]) -> tuple[Any, int]:
        model = _build(config, kind, size, dropout=0.0)
        model.head = torch.nn.Linear(model.head.in_features, classes)
        # the width that reaches the head is another than the layers' own in OPT-350M, which narrows at both ends
        entering = model.head.in_features if layers is None else model.backbone.config.hidden_size
        return Part(model, None if layers is None else range(layers), embeds, head), entering

    many = 2**20  # see learning.count_training._step_counts
    with FakeTensorMode():
        (part, entering), (roomy, _) = part_of(shallow), part_of({**shallow, "max_position_embeddings": 2 * _LONG[-1]})
        flop = [_flop(part, entering, n) for n in _TINY]
        short = [_memory(part, entering, many, n) for n in _SHORT]
        long = [_memory(roomy, entering, many, n) for n in _LONG]
        one, two = (_memory(part, entering, n, _TINY[0]) for n in (1, 2))
        passes = [
            PassCounts(
                _quadratic(_TINY, [float(count[i]) for count in flop]),
                _quadratic(_SHORT, [float(round(peak[i] / many)) for peak, _ in short]),
                _quadratic(_LONG, [float(round(peak[i] / many)) for peak, _ in long]),
                float(2 * one[1][i] - two[1][i]),  # what two sequences move beyond one is the sequence's own
            )
            for i in (0, 1)
        ]
        own, width = dict(part.named_parameters()), _run(part, entering, 1, 4).output.shape[-1]
    numbers = {name: parameter.numel() for name, parameter in own.items()}
    return PartArchitecture(sum(numbers.values()), sum(numbers[name] for name in part.names), width, *passes)


def _inputs(part: Any, entering: int, batch: int, tokens: int) -> tuple[Any, Any]:
    import torch

    mask_BT = torch.ones(batch, tokens, dtype=torch.long)
    return (torch.zeros_like(mask_BT) if part.embeds else torch.zeros(batch, tokens, entering)), mask_BT


def _run(part: Any, entering: int, batch: int, tokens: int) -> Any:
    from learning.split import forward

    return forward(part, dict(part.named_parameters()), *_inputs(part, entering, batch, tokens))


def _flop(part: Any, entering: int, tokens: int) -> tuple[int, int]:
    """FLOP of the forward and of the backward pass of one sequence."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as ahead:
        ran = _run(part, entering, 1, tokens)
    with FlopCounterMode(display=False) as back:
        ran.backward(torch.ones_like(ran.output))
    return ahead.get_total_flops(), back.get_total_flops()


def _memory(part: Any, entering: int, batch: int, tokens: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Peak of live bytes until the end of each pass, and bytes moved between operators in each pass."""
    import torch

    from learning.count import MemoryCounter
    from learning.split import forward

    inputs, memory, state = _inputs(part, entering, batch, tokens), MemoryCounter(), dict(part.named_parameters())
    memory.ignore([*inputs, *part.parameters(), *part.buffers()])
    with memory:
        ran = forward(part, state, *inputs)
        peak, moved = memory.peak_bytes, memory.bytes_moved
        gradients = ran.backward(torch.ones_like(ran.output))
    del gradients
    return (peak, memory.peak_bytes), (moved, memory.bytes_moved - moved)
