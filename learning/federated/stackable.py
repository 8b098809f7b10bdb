"""Which models' devices can train as one (`learning.federated.stacked`), and how many at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from learning.backbones.catalogue import config_of
from learning.backbones.tokens import Tokens
from learning.cost.costs import OPTIMISER_NUMBERS, TrainingArchitecture
from learning.cost.count_training import training_architecture
from learning.cost.vocabulary import Vocabulary, vocabulary_of
from learning.federated.language_model import TrainableLanguageModel
from learning.federated.local_training import LocalTraining
from learning.federated.trainable import TrainableClassifier


class Holding(NamedTuple):
    """What one device trains with: the state it received, its texts, class numbers [n], a seed."""

    state: Mapping[str, Tensor]
    tokens: Tokens
    labels: np.ndarray
    seed: int


def can_be_stacked(model: TrainableClassifier) -> bool:
    """Whether all that are trained are whole linear maps, as of `lora`, `adapter` and `head`, and
    what each of them reads is the texts' own, text after text.

    Not so are maps of a table that all texts share (DeBERTa's relative positions), of tokens that
    are sorted by where they go (experts), or of all texts' first tokens, then their second. Seen by
    reading two texts, and the first of them beside a third.
    """
    if model not in _stackable:
        _stackable[model] = _trains_maps_alone(model) and _reads_text_after_text(model)
    return _stackable[model]


_stackable: WeakKeyDictionary[TrainableClassifier, bool] = WeakKeyDictionary()


def trained_maps(model: TrainableClassifier) -> set[str]:
    """The paths of the modules that are trained."""
    return {name.rpartition(".")[0] for name in model.trainable_parameters()}


def _trains_maps_alone(model: TrainableClassifier) -> bool:
    linear = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if type(module) is nn.Linear
        for name in dict(module.named_parameters(recurse=False))
    }
    trained, maps = set(model.trainable_parameters()), trained_maps(model)
    return trained <= linear and all(n in trained for n in linear if n.rpartition(".")[0] in maps)


def _reads_text_after_text(model: TrainableClassifier) -> bool:
    one, other, third = (torch.arange(start, start + 4) for start in (5, 9, 13))
    before = _read_by(model, torch.stack([one, other]))
    after = _read_by(model, torch.stack([one, third]))
    return {*before} == {*after} == trained_maps(model) and all(
        len(before[path]) == len(after[path]) and all(map(_is_of_both, before[path], after[path]))
        for path in before
    )


def _read_by(model: TrainableClassifier, ids_BT: Tensor) -> dict[str, list[Tensor]]:
    """What each trained map reads of the texts, call by call."""
    seen: dict[str, list[Tensor]] = {}

    def noting(path: str) -> Any:
        def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.setdefault(path, []).append(arguments[0].detach().float())

        return note

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(noting(path))
        for path in trained_maps(model)
    ]
    try:
        with torch.inference_mode():
            model(ids_BT % model.backbone.config.vocab_size, torch.ones_like(ids_BT))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _is_of_both(one_and_other: Tensor, one_and_third: Tensor) -> bool:
    """Whether the first half of the rows is of the first text, and the rest of the second."""
    if one_and_other.shape != one_and_third.shape:
        return False
    x, y = (t.reshape(-1, t.shape[-1]) for t in (one_and_other, one_and_third))
    half, odd = divmod(len(x), 2)
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5}
    return (
        not odd
        and torch.allclose(x[:half], y[:half], **close)
        and not torch.allclose(x[half:], y[half:], **close)
    )


@dataclass(frozen=True)
class Room:
    """For how many devices at once there is memory: half of what the model's device has, by what
    `learning.cost` counts that a step keeps (tests hold that against steps that are taken).
    """

    memory_bytes: float
    counted: TrainingArchitecture | None = None
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(cls, model: TrainableClassifier, *sizes: Any) -> Room:
        """Of a model and what its trained part is counted by: as the last arguments of
        `learning.cost.count_training.training_architecture`.
        """
        memory_bytes = model.host.memory_bytes
        if memory_bytes == math.inf:
            return cls(memory_bytes)
        counted = training_architecture(model.spec, model.kind, max(model.classes, 1), *sizes)
        says = isinstance(model, TrainableLanguageModel)
        vocabulary = vocabulary_of(config_of(model.spec)) if says else None
        return cls(memory_bytes, counted, vocabulary)

    def groups(self, devices: Mapping[int, Holding], settings: LocalTraining) -> list[list[int]]:
        """The devices, as many in a group as there is memory for; those with most to do first, so
        that few wait for others of their group.
        """
        groups: list[list[int]] = []
        sizes = {k: _Size.of(device, settings) for k, device in devices.items()}
        whole = _Size()
        for k in sorted(devices, key=lambda k: (-sizes[k].steps, -sizes[k].tokens)):
            wider = whole.beside(sizes[k])
            if not groups or not self._holds(wider, settings):
                groups.append([])
                wider = sizes[k]
            groups[-1].append(k)
            whole = wider
        return groups

    def _holds(self, size: _Size, settings: LocalTraining) -> bool:
        if self.counted is None:
            return True
        rows = size.devices * size.rows
        step = self.counted.step(rows, size.tokens, settings.charged_as)
        states = 2 + OPTIMISER_NUMBERS[settings.charged_as]  # what came, what it is, moments
        held = step.peak_bytes + states * size.devices * self.counted.trainable_bytes
        if self.vocabulary is not None:
            held += self.vocabulary.training(rows * size.said, False).peak_bytes
        return held <= self.memory_bytes / 2


class _Size(NamedTuple):
    """Of a batch of several devices: how many texts each has in it, tokens of the longest text,
    tokens to be said of the one with most, steps of the device with most.
    """

    devices: int = 0
    rows: int = 0
    tokens: int = 0
    said: int = 0
    steps: int = 0

    @classmethod
    def of(cls, device: Holding, settings: LocalTraining) -> _Size:
        texts, tokens = len(device.tokens), device.tokens
        steps = settings.epochs * math.ceil(texts / settings.batch)
        longest, said = int(tokens.lengths().max()), int(tokens.said_lengths().max())
        return cls(1, min(texts, settings.batch), longest, said, steps)

    def beside(self, other: _Size) -> _Size:
        """Both in one batch."""
        return _Size(self.devices + other.devices, *map(max, self[1:], other[1:]))
