"""A decoder that says what it has learned: adapters of side-tuning plugged into `model.generate`,
and greedy replies of any trained state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from learning.backbones.catalogue import BackboneSpec
from learning.backbones.layers import entering, stack
from learning.next_token.side import NextTokenSide

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_moves(
    moves: Mapping[str, Tensor],
    specs: Mapping[str, BackboneSpec],
    layers: Mapping[str, Sequence[int]],
    path: Path,
) -> None:
    """One safetensors file of all backbones' moves; what else a reader needs is in its metadata."""
    note = {
        name: {"source": spec.source, "layers": spec.layers, "taps": list(layers[name])}
        for name, spec in sorted(specs.items())
    }
    path.parent.mkdir(exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in moves.items()}
    save_file(tensors, path, {"backbones": json.dumps(note, sort_keys=True)})


class SideTuned:
    """The moves of one backbone, to be put beside transformers' own language model.

        model = AutoModelForCausalLM.from_pretrained(folder)
        SideTuned.from_pretrained("runs/dialogue/model/moves.safetensors", "smollm2").attach(model)
        model.generate(...)

    `layers` are the sampled ones, 0 the embedding; the last is the model's output.
    """

    def __init__(self, side: NextTokenSide, backbone: str, layers: Sequence[int]) -> None:
        self.side, self.backbone, self.layers = side, backbone, list(layers)
        self._seen: dict[int, Tensor] = {}

    @classmethod
    def from_pretrained(cls, path: Path | str, backbone: str) -> SideTuned:
        """Of a backbone of the run by its name there; KeyError for one that it has not."""
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # it is no dictionary
            tensors = {name: file.get_tensor(name) for name in names}
            note = json.loads(file.metadata()["backbones"])
        if backbone not in note:
            raise KeyError(f"{path} has moves of {', '.join(sorted(note))}, and none of {backbone}")
        return cls(NextTokenSide.of(tensors), backbone, note[backbone]["taps"])

    def attach(self, model: PreTrainedModel) -> PreTrainedModel:
        """Let this model's head read moved states, in `generate`, too; gives the model. Its layers
        must be as many as those that the moves were solved for.
        """
        layers = stack(model)  # the first list of modules in it
        if max(self.layers) != len(layers):
            raise ValueError(
                f"these moves are for {max(self.layers)} layers, and the model has {len(layers)}: "
                f"load it with num_hidden_layers={max(self.layers)}"
            )
        for number, layer in enumerate(layers):
            if number in self.layers:
                layer.register_forward_pre_hook(self._noting(number), with_kwargs=True)
        model.get_output_embeddings().register_forward_pre_hook(self._moving)
        return model

    def _noting(self, number: int) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._seen[number] = entering(args, kwargs)

        return note

    def _moving(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        last = args[0]
        places = last.shape[-2]  # generation asks for the last ones alone
        seen = [
            last if layer == max(self.layers) else self._seen[layer][..., -places:, :]
            for layer in self.layers
        ]
        x = torch.cat(seen, dim=-1).half().float()  # as devices and server have them
        flat = last.reshape(-1, last.shape[-1]).float()
        moved = self.side.to(last.device).moved(self.backbone, x.reshape(-1, x.shape[-1]), flat)
        return (moved.view(last.shape).to(last.dtype),)
