"""Count the FLOP, the memory traffic and the live memory of an architecture on fake tensors: no weights, no memory.

`python -m learning.count` recounts every architecture of the catalogue and rewrites `learning/costs.json`.

Attention is forced to the eager implementation: torch 2.13's FLOP counter sees nothing inside the fused CPU kernel
(pytorch/pytorch#195460).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from learning.cost import Architecture, Cost
from learning.huggingface import bare_model, hf_config


class MemoryCounter(TorchDispatchMode):
    """Counts bytes read and written by every operator, and the largest sum of bytes of live new storages."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_moved = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: set[int] = set()

    def ignore(self, tensors) -> None:
        """Storages that exist before the work begins (weights, inputs) are not the work's activations."""
        self._kept = [tensor.untyped_storage() for tensor in tensors]
        self._seen.update(storage._cdata for storage in self._kept)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is torch.ops.aten.embedding.default:  # gathers rows; it does not read the whole table
            self.bytes_moved += 2 * sum(t.numel() * t.element_size() for t in outputs)
        elif func.namespace == "aten" and not (func.is_view or func is torch.ops.aten._unsafe_view.default):
            self.bytes_moved += sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
        for tensor in outputs:
            self._track(tensor.untyped_storage())
        return out

    def _track(self, storage) -> None:
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


def build_fake(config: dict[str, Any]):
    """The bare model of a Hugging Face config dictionary, made under the current FakeTensorMode."""
    made = hf_config(config)
    return bare_model(made).from_config(made, attn_implementation="eager").eval()


def count_forward(config: dict[str, Any], batch: int, tokens: int) -> Cost:
    """Cost of one float32 inference forward pass of the architecture over `batch` x `tokens` (embeddings to last layer)."""
    with FakeTensorMode():
        return _measure(build_fake(config), batch, tokens)


def _measure(model, batch: int, tokens: int) -> Cost:
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    memory, flop = MemoryCounter(), FlopCounterMode(display=False)
    memory.ignore([ids, mask, *model.parameters(), *model.buffers()])
    with torch.no_grad(), flop, memory:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return Cost(float(flop.get_total_flops()), float(memory.bytes_moved), memory.peak_bytes)


def count_architecture(config: dict[str, Any]) -> Architecture:
    """Fit the coefficients of `Architecture` from counts at a few lengths; they are exact, not a regression.

    Short sequences lie in the feed-forward regime of the peak, long ones in the attention regime.
    """
    with FakeTensorMode():
        model = build_fake(config)
        longest = getattr(model.config, "max_position_embeddings", 512) - 2
        short, apart = (4, 8, 12), max(1, min(32, longest // 8))
        long = (longest - 2 * apart, longest - apart, longest)
        at = {n: _measure(model, 2, n) for n in (*short, *long)}
        one_more = _measure(model, 3, short[0])
        parameters = sum(p.numel() for p in model.parameters())
    # what three sequences move beyond two is the sequences' own; taken off, what a batch moves once is left
    return Architecture(
        layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        parameters=parameters,
        flop_per_sequence=_quadratic(short, [at[n].flop / 2 for n in short]),
        weight_bytes_read=3 * at[short[0]].bytes_moved - 2 * one_more.bytes_moved,
        peak_feed_forward=_quadratic(short, [at[n].peak_bytes / 2 for n in short]),
        peak_attention=_quadratic(long, [at[n].peak_bytes / 2 for n in long]),
    )


def _quadratic(lengths, values) -> tuple[float, float, float]:
    """Coefficients (constant, linear, quadratic) through three points, by divided differences (exact for integers)."""
    (x0, x1, x2), (y0, y1, y2) = lengths, values
    slope = (y1 - y0) / (x1 - x0)
    quadratic = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
    linear = slope - quadratic * (x0 + x1)
    return (y0 - linear * x0 - quadratic * x0 * x0, linear, quadratic)


def main() -> None:
    """Recount the catalogue, whole and at the depths in common use, into costs.json."""
    import dataclasses
    import json
    from pathlib import Path

    from learning.catalogue import config_of, cost_key, find, names

    cuts = {"minilm": (1, 2, 3, 4, 5), "smollm2": (4, 8, 12, 16, 24)}
    wanted = [*names(), *(f"{name}-l{k}" for name, depths in cuts.items() for k in depths)]
    counted = {}
    for name in wanted:
        config = config_of(find(name))
        counted[cost_key(config)] = {"name": name, **dataclasses.asdict(count_architecture(config))}
        print(name)
    (Path(__file__).parent / "costs.json").write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
