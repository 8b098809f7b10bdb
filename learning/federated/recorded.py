"""A function of a state, recorded once: what the state does not reach (frozen layers below the
first trained tensor, masks, positions) is computed then and recalled in every later call, and of
the rest the bare operations are run. The bits are those of the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

State = Mapping[str, Tensor]


class CannotRecord(Exception):
    """What the function does follows from numbers of the state, or changes something in place."""


class Recorded:
    """`function(state)`, without a graph, for states of the names and shapes of the first.

    Raises CannotRecord.
    """

    def __init__(self, function: Callable[[State], Tensor], state: State) -> None:
        recorder = _Recorder(state)
        with torch.no_grad(), recorder:
            output = function(state)
        self.steps = recorder.steps
        self._output = recorder.places[id(output)]

    def __call__(self, state: State) -> Tensor:
        """The output for a state."""
        tensors = list(state.values())

        def filled(x: object) -> object:
            return tensors[x.number] if isinstance(x, _Place) else x

        with torch.no_grad():
            for operation, args, kwargs in self.steps:
                args = [[*map(filled, x)] if isinstance(x, list) else filled(x) for x in args]
                tensors += tree_leaves(operation(*args, **kwargs))
        return tensors[self._output]

    def nbytes(self, model: nn.Module) -> int:
        """Memory of what is recalled, beside the model's weights."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        tensors = [
            t for _, args, _ in self.steps for t in tree_leaves(args) if isinstance(t, Tensor)
        ]
        kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(nbytes for place, nbytes in kept.items() if place not in weights)


class _Place:
    """Stands in a record for a tensor that follows from the state."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Recorder(TorchDispatchMode):
    """Notes the operations that the tensors of a state reach."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._tensors = list(state.values())  # all kept, so that an id is that of one of them
        self.places = {id(tensor): place for place, tensor in enumerate(self._tensors)}
        self.steps: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; note it where it takes what follows from the state."""
        kwargs = kwargs or {}
        output = operation(*args, **kwargs)
        given = tree_map(self._placed, list(args))
        by_name = any(id(leaf) in self.places for leaf in tree_leaves(kwargs))
        if not by_name and not any(isinstance(leaf, _Place) for leaf in tree_leaves(given)):
            return output
        unlike = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if by_name or operation._schema.is_mutable or unlike & {*operation.tags}:
            raise CannotRecord(str(operation))
        self.steps.append((operation, given, kwargs))
        for tensor in tree_leaves(output):
            self.places[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
        return output

    def _placed(self, x: object) -> object:
        return _Place(self.places[id(x)]) if id(x) in self.places else x
