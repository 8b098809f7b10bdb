"""Dropout whose masks come from a generator of a pass's own, so that training stays a function of
its arguments: PyTorch's own draws from the one generator that all of a process share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# what mixtures of experts draw with in train mode, by their functions' names
_DRAWS = {"bernoulli", "exponential_", "normal_", "rand", "rand_like", "randn_like", "uniform_"}


@contextmanager
def dropping_out(model: nn.Module, rate: float, seed: int) -> Iterator[None]:
    """Train mode: everything that the model drops out, by a rate of its own that is not 0, is
    dropped out by `rate`, with masks of the seed's; afterwards it is in eval mode again.

    With a rate of 0 nothing is drawn or changed. On a CPU the masks are those of PyTorch's dropout
    after `torch.manual_seed(seed)`. Other threads draw and drop out as they would without.
    """
    if rate == 0:
        yield
        return
    device = next(model.parameters()).device
    masks = _Masks(rate, torch.Generator(device).manual_seed(seed))
    model.train()
    try:
        with masks:
            yield
    finally:
        model.eval()


class _Masks(TorchFunctionMode):
    """Stands in for PyTorch's dropout, and for its generator where a model draws anything else, in
    the thread that enters it.
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self._keep, self._generator = 1 - rate, generator

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.dropout:
            return self._dropout(*args, **kwargs)
        if function.__name__ in _DRAWS:
            kwargs.setdefault("generator", self._generator)
        return function(*args, **kwargs)

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return x
        mask = torch.empty_like(x).bernoulli_(self._keep, generator=self._generator)
        return x * mask.div_(self._keep)
