"""A backbone's pooled activations for many texts: from the store, the rest computed now and
stored.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from learning.backbones.batches import pieces
from learning.backbones.catalogue import BackboneSpec, config_of, depth_of, fingerprint, width_of
from learning.backbones.tokens import Tokens
from learning.host_device import HostDevice, host_device
from learning.side.activation_store import ActivationStore

if TYPE_CHECKING:
    from learning.backbones.backbone import Backbone

Map = Callable[[Callable[..., np.ndarray], Iterable[tuple]], Iterator[np.ndarray]]


class Pooled:
    """Vectors [layers + 1, hidden] of each of n texts, float32: where they were computed, or mapped
    from the store, so that what is looked at takes memory.
    """

    def __init__(self, values: Sequence[np.ndarray]) -> None:
        self._values = values
        self.vectors, self.hidden = values[0].shape

    def __len__(self) -> int:
        return len(self._values)

    def take(
        self, rows: Sequence[int] | None = None, layers: Sequence[int] | slice = slice(None)
    ) -> np.ndarray:
        """A copy of these texts' vectors of these layers (0 is the embedding), [rows, layers,
        hidden]; all of them where none are named.
        """
        chosen = range(len(self)) if rows is None else rows
        out_NLD = np.empty((len(chosen), *self._values[0][layers].shape), dtype=np.float32)
        for place, row in enumerate(chosen):
            out_NLD[place] = self._values[row][layers]
        return out_NLD


def pooled_activations(
    spec: BackboneSpec,
    tokens: Tokens,
    readout: str,
    store: ActivationStore,
    spread: Map,
    progress: Callable[[int, int], None] = lambda done, total: None,
    deeper: Sequence[BackboneSpec] = (),
) -> Pooled:
    """The vectors of all tokens; `spread` maps a function over pieces of work, in order.

    `progress(done, total)` counts what has to be computed. What is computed is stored piece by
    piece, so an interrupted computation goes on where it stopped. What one of `deeper`, cuts of the
    same model that were read before, has of the same tokens is taken from there, with the same
    bits.
    """
    mark = fingerprint(spec)
    values, missing = store.load(mark, readout, tokens)
    for other in deeper:
        taken = _taken(spec, other, tokens.of(missing), readout, store)
        for index, value in zip(missing, taken, strict=True):
            values[index] = value
        missing = np.array([i for i in missing if values[i] is None], dtype=np.int64)
    host, width = host_device(), width_of(config_of(spec))
    shapes = (host.length_step, lambda length: host.rows(length, width), host.texts)
    chosen = [missing[part] for part in pieces(tokens.lengths()[missing], *shapes)]
    todo = [tokens.of(part) for part in chosen]
    progress(0, len(missing))
    done = 0
    for part, piece, computed in zip(
        chosen, todo, spread(compute, ((spec, piece, readout) for piece in todo)), strict=True
    ):
        store.save(mark, readout, piece, computed, spec.name)
        for row, index in enumerate(part):
            values[index] = computed[row]
        done += len(piece)
        progress(done, len(missing))
    if todo:
        store.hold_to_limit()
    return Pooled(cast(list[np.ndarray], values))  # none is missing any more


def _taken(
    spec: BackboneSpec, deeper: BackboneSpec, tokens: Tokens, readout: str, store: ActivationStore
) -> list[np.ndarray | None]:
    """What the store has of tokens, read by a deeper cut of the same model; stored as this one's,
    too.
    """
    values, missing = store.load(fingerprint(deeper), readout, tokens)
    there = np.setdiff1d(np.arange(len(tokens)), missing)
    if not len(there) or not loaded(spec).is_prefix:
        return [None] * len(tokens)
    states = depth_of(config_of(spec)) + 1
    values = [None if value is None else value[:states] for value in values]
    mine = np.stack([value for value in values if value is not None])
    store.save(fingerprint(spec), readout, tokens.of(there), mine, spec.name)
    return values


def compute(spec: BackboneSpec, tokens: Tokens, readout: str) -> np.ndarray:
    """The forward pass itself: a pure function of its arguments, for any worker."""
    return loaded(spec).readouts(tokens, readout)


_LOADING = (
    threading.Lock()
)  # transformers imports lazily and not safely from two threads; and one copy is enough


def loaded(spec: BackboneSpec) -> Backbone:
    """A backbone with its weights, once for all threads of a process."""
    import torch

    torch.set_num_threads(1)  # the same bits in every worker
    with _LOADING:
        return _loaded(spec, host_device())


@functools.lru_cache(maxsize=4)
def _loaded(spec: BackboneSpec, _: HostDevice) -> Backbone:
    from learning.backbones.backbone import Backbone

    return Backbone(spec)
