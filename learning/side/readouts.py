"""A backbone's pooled activations for many texts: from the store, the rest computed now and
stored.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from learning.backbones.catalogue import BackboneSpec, fingerprint
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
) -> Pooled:
    """The vectors of all tokens; `spread` maps a function over pieces of work, in order.

    `progress(done, total)` counts what has to be computed. What is computed is stored piece by
    piece, so an interrupted computation goes on where it stopped.
    """
    mark = fingerprint(spec)
    values, missing = store.load(mark, readout, tokens)
    missing = missing[np.argsort(tokens.lengths()[missing], kind="stable")]
    size = host_device().texts
    pieces = [_subset(tokens, missing[i : i + size]) for i in range(0, len(missing), size)]
    progress(0, len(missing))
    done = 0
    for piece, computed in zip(
        pieces, spread(compute, ((spec, piece, readout) for piece in pieces)), strict=True
    ):
        store.save(mark, readout, piece, computed, spec.name)
        for row, index in enumerate(missing[done : done + len(piece)]):
            values[index] = computed[row]
        done += len(piece)
        progress(done, len(missing))
    if pieces:
        store.hold_to_limit()
    return Pooled(cast(list[np.ndarray], values))  # none is missing any more


def compute(spec: BackboneSpec, tokens: Tokens, readout: str) -> np.ndarray:
    """The forward pass itself: a pure function of its arguments, for any worker."""
    import torch

    torch.set_num_threads(1)  # the same bits in every worker
    with _LOADING:
        backbone = _loaded(spec, host_device())
    return backbone.readouts(tokens, readout)


_LOADING = (
    threading.Lock()
)  # transformers imports lazily and not safely from two threads; and one copy is enough


@functools.lru_cache(maxsize=4)
def _loaded(spec: BackboneSpec, _: HostDevice) -> Backbone:
    from learning.backbones.backbone import Backbone

    return Backbone(spec)


def _subset(tokens: Tokens, indices: np.ndarray) -> Tokens:
    segments = None if tokens.segments is None else [tokens.segments[i] for i in indices]
    return Tokens([tokens.ids[i] for i in indices], segments)
