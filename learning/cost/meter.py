"""Counting what work costs while it runs, operator by operator: FLOP, memory traffic and live
memory, with numbers or without.

On `meta` tensors, which have a shape and no numbers, anything can be counted that a machine could
never hold: a batch of a million texts, a model of a trillion weights. What an operator makes of
shapes it has met before is looked up.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
# transformers asks whether a mask is empty, to leave it out; no number answers, so the answer is
# no, and costs nothing
_QUESTIONS = (_ATEN.all.default, _ATEN.any.default)
_made: dict[
    Hashable, Any
] = {}  # what operators make of shapes: the shape, stride and type of each output


class CostMeter(TorchDispatchMode):
    """Counts FLOP of products, bytes read and written by every operator, and the largest sum of
    bytes of live new storages.

    FLOP are those of torch's own formulas for products and convolutions (two a multiplication and
    addition); what works element by element counts as traffic alone. `operators` is how many ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.bytes_moved = self.live_bytes = self.peak_bytes = self.operators = 0
        self._seen: set[int] = set()

    def ignore(self, tensors: Sequence[torch.Tensor]) -> None:
        """Storages that exist before the work begins (weights, inputs) are not the work's
        activations.
        """
        self._kept = [tensor.untyped_storage() for tensor in tensors]
        self._seen.update(storage._cdata for storage in self._kept)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled here, and the guard against it costs as much as the operators
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, traits = kwargs or {}, _traits(func)
        inputs = [*_tensors(args), *_tensors(kwargs.values())]
        if func is _ATEN._local_scalar_dense.default and inputs[0].is_meta:
            return False if inputs[0].dtype is torch.bool else 0
        out = (
            _looked_up(func, args, kwargs, inputs) if traits.is_function else func(*args, **kwargs)
        )
        if traits.is_question:
            return out
        self.operators += 1
        outputs = [*_tensors((out,))]
        if traits.gathers:
            self.bytes_moved += 2 * sum(map(_nbytes, outputs))
        elif traits.moves:
            self.bytes_moved += sum(map(_nbytes, inputs)) + sum(map(_nbytes, outputs))
        if traits.flop:
            self.flop += traits.flop(*args, **kwargs, out_val=out)
        for tensor in outputs:
            self._track(tensor.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        nbytes = storage.nbytes()
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key, nbytes)

    def _free(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= nbytes


@contextmanager
def saving(known: Sequence[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of each new storage that the passes within keep for their way back; those of `known`
    are not new.
    """
    old = {tensor.untyped_storage()._cdata for tensor in known}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in old:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@dataclass(frozen=True)
class _Traits:
    """Of an operator: whether it makes new storages out of its arguments alone, what it moves, what
    it computes.
    """

    is_function: bool
    is_question: bool
    gathers: bool  # rows; it does not read the whole table
    moves: bool
    flop: Callable[..., int] | None


@functools.cache
def _traits(func: Any) -> _Traits:
    is_view = func.is_view or func is _ATEN._unsafe_view.default
    gathers = func is _ATEN.embedding.default
    return _Traits(
        not (is_view or func._schema.is_mutable),
        func in _QUESTIONS,
        gathers,
        func.namespace == "aten" and not is_view,
        flop_registry.get(func._overloadpacket),
    )


def _looked_up(
    func: Any, args: Any, kwargs: Mapping[str, Any], inputs: Sequence[torch.Tensor]
) -> Any:
    """What the function returns; of `meta` tensors alone, from what it returned for such shapes
    before.
    """
    if not all(tensor.is_meta for tensor in inputs):
        return func(*args, **kwargs)
    try:
        key = (
            func,
            *map(_frozen, args),
            *((name, _frozen(value)) for name, value in kwargs.items()),
        )
        known = _made.get(key)
    except TypeError:  # an argument that cannot be a key
        return func(*args, **kwargs)
    if known is not None:
        return _fresh(known)
    out = func(*args, **kwargs)
    outputs = [*_tensors((out,))]
    own = {tensor.untyped_storage()._cdata for tensor in inputs}
    if all(tensor.is_meta and tensor.untyped_storage()._cdata not in own for tensor in outputs):
        _made[key] = _shapes(out)
    return out


def _frozen(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    return (type(value), value)  # 1, 1.0 and True are three things to an operator


def _shapes(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return (out.shape, out.stride(), out.dtype)
    return [_shapes(one) for one in out] if isinstance(out, (list, tuple)) else out


def _fresh(shapes: Any) -> Any:
    if isinstance(shapes, tuple):
        return torch.empty_strided(shapes[0], shapes[1], dtype=shapes[2], device="meta")
    return [_fresh(one) for one in shapes] if isinstance(shapes, list) else shapes


# --- from readings to coefficients
# -----------------------------------------------------------------------------------

# tokens at which coefficients are fitted
TINY = (4, 8, 12)
SHORT = (32, 48, 64)
LONG = (1024, 1280, 1536)
# so many texts that what does not grow with the batch is lost in rounding
_MANY = 2**20


@dataclass(frozen=True)
class Reading:
    """What a meter showed after a piece of work, and the bytes saved for a backward pass."""

    flop: int
    bytes_moved: int
    peak_bytes: int
    operators: int
    saved_bytes: int = 0


Run = Callable[[int, int], Sequence[Reading]]


def coefficients(run: Run, roomy: Run, longest: int | None) -> list[dict[str, Any]]:
    """Fit what costs a text of n tokens, for each piece of work that `run(batch, tokens)` measures.

    FLOP and saved bytes are polynomials of n: (constant, linear, quadratic). The peak has a
    feed-forward regime (short texts) and an attention regime; the latter is read far beyond the
    lengths in use, where it is alone, by `roomy`, which measures a model with positions for them;
    `longest` is the longest text that `run` has positions for, None where it takes any.
    Where the operators grow in number with the text (a recurrence), there is one regime.
    `flop_per_batch` and `bytes_moved` are what a batch costs once, however many texts it has.
    """
    few = SHORT if longest is None else tuple(min(n, longest * n // SHORT[-1]) for n in SHORT)
    short = [run(_MANY, n) for n in few]
    is_recurrent = short[0][0].operators != short[1][0].operators
    far = few if is_recurrent else LONG
    long = short if is_recurrent else [roomy(_MANY, n) for n in far]
    one, two = run(1, TINY[0]), run(2, TINY[0])
    made = []
    for i in range(len(one)):
        once = 2 * one[i].flop - two[i].flop
        made.append(
            {
                "flop": quadratic(few, [round((at[i].flop - once) / _MANY) for at in short]),
                "saved": quadratic(few, [round(at[i].saved_bytes / _MANY) for at in short]),
                "peak_feed_forward": quadratic(
                    few, [round(at[i].peak_bytes / _MANY) for at in short]
                ),
                "peak_attention": quadratic(far, [round(at[i].peak_bytes / _MANY) for at in long]),
                "bytes_moved": float(2 * one[i].bytes_moved - two[i].bytes_moved),
                "flop_per_batch": float(once),
            }
        )
    return made


def quadratic(lengths: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Coefficients (constant, linear, quadratic) through three points, by divided differences
    (exact for integers).
    """
    (x0, x1, x2), (y0, y1, y2) = lengths, map(float, values)
    slope = (y1 - y0) / (x1 - x0)
    second = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
    linear = slope - second * (x0 + x1)
    return (y0 - linear * x0 - second * x0 * x0, linear, second)
