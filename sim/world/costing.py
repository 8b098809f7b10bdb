"""What the clock charges for: which architecture stands for each backbone, at which length, in
which precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from devices.fleet import Member
from devices.memory import find_shortage
from inputs.files import located
from learning.backbones import catalogue
from learning.backbones.catalogue import BackboneSpec
from learning.backbones.language_head import output_embedding
from learning.cost.costs import FORMATS, Architecture, Cost
from learning.cost.forward_pass import architecture
from sim.scenario.data import SizedData
from sim.scenario.own_code import MethodError
from sim.scenario.schema import Scenario
from sim.world.replies import peak_with_replies

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.kernel.method import Method


class DoesNotFit(ValueError):
    """A backbone needs more memory than its device has; the message says by how much and what would
    fit.
    """


@dataclass(frozen=True)
class FleetCosting:
    """The learning backbones of a fleet, and the architectures their work is charged as."""

    learned: dict[str, BackboneSpec]
    charged: dict[str, BackboneSpec]
    architectures: dict[str, Architecture]
    precision: dict[str, str]
    fixed_tokens: int | None
    remarks: tuple[str, ...] = ()
    vocabulary_numbers: Mapping[str, int] = field(default_factory=dict)
    """By backbone, those of an output embedding that is not the input's, where texts are said."""
    _passes: dict[tuple[str, str, int, int], Cost] = field(default_factory=dict, repr=False)

    @property
    def charged_as(self) -> str | None:
        """What is charged instead of what learns, for everyone who reads a result; None if nothing
        is.
        """
        names = sorted(
            {
                self.charged[b].name
                for b in self.learned
                if self.charged[b].name != self.learned[b].name
            }
        )
        if not names and self.fixed_tokens is None:
            return None
        length = f" at {self.fixed_tokens} tokens" if self.fixed_tokens else ""
        return (", ".join(names) or "its own backbones") + length

    def depths(self) -> dict[str, int]:
        """Layers of each backbone as charged."""
        return {name: a.layers for name, a in self.architectures.items()}

    def widths(self) -> dict[str, int]:
        """Hidden size of each backbone as charged."""
        return {name: a.hidden_size for name, a in self.architectures.items()}

    def forward(self, member: Member, lengths: np.ndarray) -> Cost:
        """One forward pass over texts of these lengths, padded to the longest."""
        tokens = self.fixed_tokens or max(lengths.tolist())  # of few: NumPy takes longer
        alike = member.group, member.backbone, len(lengths), tokens
        if (known := self._passes.get(alike)) is None:
            precision = self.precision[member.group]
            known = self.architectures[member.backbone].forward(len(lengths), tokens, precision)
            self._passes[alike] = known
        return known

    def next_word(self, member: Member, texts: int, words: int) -> Cost:
        """What so many words' logits cost after a forward pass over these texts."""
        precision = self.precision[member.group]
        return self.architectures[member.backbone].next_word(texts, words, precision)

    def weight_bytes(self, member: Member) -> int:
        """Bytes of the member's backbone in its memory, and of its vocabulary, where it is one more
        table; that is kept as tables are.
        """
        precision = self.precision[member.group]
        words = self.vocabulary_numbers.get(member.backbone, 0) * FORMATS[precision].other
        return self.architectures[member.backbone].weight_bytes(precision) + round(words)

    def shares(self, member: Member) -> tuple[float, float]:
        """Of a pass counted in float32, the shares that the bytes of its weights and of its
        activations have in the member's precision.
        """
        return self.architectures[member.backbone].shares(self.precision[member.group])


def own_backbones(scenario: Scenario, folder: Path) -> dict[str, dict[str, Any]]:
    """The scenario's own backbones; their directories are relative to `folder`, as its data are."""
    return {
        name: given
        if given["path"] is None
        else {**given, "path": str(located(given["path"], folder))}
        for name, given in scenario.own_backbones.items()
    }


def costing_for(scenario: Scenario, members: list[Member], folder: Path = Path()) -> FleetCosting:
    """Settle the costing of a fleet; BackboneError for a backbone that is not there, or has too few
    positions.
    """
    own = own_backbones(scenario, folder)
    names = sorted({member.backbone for member in members})
    learned = {name: catalogue.find(name, own) for name in names}
    charged = dict(learned)
    if scenario.cost_as:
        as_ = scenario.cost_as.backbone
        charged = {
            name: catalogue.find(as_ if isinstance(as_, str) else as_[name], own) for name in names
        }
    precision: dict[str, str] = {
        group.name or f"group-{i}": group.precision for i, group in enumerate(scenario.fleet)
    }
    architectures = {name: architecture(spec) for name, spec in charged.items()}
    fixed = scenario.cost_as.tokens if scenario.cost_as else None
    remarks = tuple(_beyond_positions(scenario, learned, charged, architectures))
    has_responses = scenario.task.kind == "language-modelling"
    words = {n: output_embedding(s).numbers for n, s in charged.items()} if has_responses else {}
    return FleetCosting(learned, charged, architectures, precision, fixed, remarks, words)


def _beyond_positions(
    scenario: Scenario,
    learned: dict[str, BackboneSpec],
    charged: dict[str, BackboneSpec],
    architectures: dict[str, Architecture],
) -> Iterator[str]:
    """Texts longer than what learns has positions for are an error; longer than what is charged or
    was meant, a remark.
    """
    data = scenario.task.dataset
    longest = data.tokens if isinstance(data, SizedData) else scenario.task.max_tokens
    tokens = (scenario.cost_as and scenario.cost_as.tokens) or longest
    for name, spec in learned.items():
        positions = architectures[name].positions
        stated = catalogue.config_of(spec).get("max_position_embeddings")
        if positions is not None and charged[name] == spec and longest > positions:
            raise catalogue.too_long(name, longest, positions)
        if positions is not None and tokens > positions:
            yield (
                f"{charged[name].name} has {positions} positions: at {tokens} tokens it is charged "
                "as if it had more"
            )
        if isinstance(stated, int) and longest > stated:
            yield (
                f"{name} was made for {stated} positions: texts of up to {longest} tokens go "
                "beyond what it has learned"
            )


def check_memory(method: Method, fleet: Sequence[Device], scenario: Scenario) -> None:
    """Refuse (DoesNotFit), or mark, devices on which the method's work does not fit, or a reply
    after it, where one is asked for; the method says what it needs.
    """
    needed = method.peak_bytes
    if scenario.task.device_replies:
        needed = functools.partial(peak_with_replies, method)
    for device in fleet:
        whole_bytes("delivery_bytes", method.delivery_bytes(device), device)
        try:
            _check_peak(device, needed, fleet)
        except DoesNotFit:
            if scenario.out_of_memory == "error":
                raise
            device.outcome = "oom"


def whole_bytes(part: str, nbytes: Any, device: Device) -> int:
    """What a part of a method gives for a device; MethodError where it is no number of bytes."""
    if not isinstance(nbytes, int | np.integer) or nbytes < 0:
        raise MethodError(f"`{part}` gives {nbytes!r} for {device.id}, and no number of bytes")
    return int(nbytes)


def _check_peak(
    device: Device, peak_bytes: Callable[[Device], int], fleet: Iterable[Device]
) -> None:
    """Raise DoesNotFit if a method needs more memory on the device than it has; names backbones of
    the fleet that would fit.

    `peak_bytes(device)` is all that a method holds at its peak, weights included (0 where nothing
    runs).
    """
    needed = whole_bytes("peak_bytes", peak_bytes(device), device)
    if needed <= device.memory_bytes:
        return
    others = {other.backbone: other for other in fleet if other.backbone != device.backbone}
    needs = [
        (device.backbone, needed),
        *((name, peak_bytes(other)) for name, other in sorted(others.items())),
    ]
    shortage = find_shortage(device.backbone, device.memory_bytes, needs)
    member = device.member
    raise DoesNotFit(f"{member.group} ({member.device}, {member.id}): with this method {shortage}")
