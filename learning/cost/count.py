"""Count the FLOP, the memory traffic and the live memory of an architecture's forward pass, without
weights or memory.

`python -m learning.cost.count` recounts every architecture of the catalogue and rewrites
`learning/cost/costs.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from learning.backbones.layers import linear_maps, positions_of
from learning.cost.costs import Architecture, Cost
from learning.cost.meter import TINY, CostMeter, quadratic
from learning.cost.weightless import weightless

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_forward(config: Mapping[str, Any], batch: int, tokens: int) -> Cost:
    """Cost of one float32 inference forward pass of the architecture over `batch` x `tokens`
    (embeddings to last layer).
    """
    meter = measure(weightless(config), batch, tokens)
    return Cost(float(meter.flop), float(meter.bytes_moved), meter.peak_bytes)


def measure(model: PreTrainedModel, batch: int, tokens: int) -> CostMeter:
    """A meter after one forward pass."""
    ids_BT = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    mask_BT, meter = torch.ones_like(ids_BT), CostMeter()
    meter.ignore([ids_BT, mask_BT, *model.parameters(), *model.buffers()])
    optional = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad(), torch.device("meta"), meter:
        model(input_ids=ids_BT, attention_mask=mask_BT, **optional)
    return meter


def count_architecture(config: Mapping[str, Any]) -> Architecture:
    """Fit the coefficients of `Architecture` from counts at a few lengths; they are exact, not a
    regression.

    Short sequences lie in the feed-forward regime of the peak, long ones in the attention regime;
    where the operators grow in number with the sequence (a recurrence), there is one regime.
    """
    model = weightless(config)
    longest = (getattr(model.config, "max_position_embeddings", None) or 512) - 2
    apart = max(1, min(32, longest // 8))
    at = {n: measure(model, 2, n) for n in TINY}
    is_recurrent = at[TINY[0]].operators != at[TINY[1]].operators
    long = TINY if is_recurrent else (longest - 2 * apart, longest - apart, longest)
    at |= {n: measure(model, 2, n) for n in long if n not in at}
    # what three sequences cost beyond two is the sequences' own; taken off, what a batch costs once
    # is left
    one_more = measure(model, 3, TINY[0])
    flop_per_batch = 3 * at[TINY[0]].flop - 2 * one_more.flop
    linear = [(weight.numel(), weight.shape[1 - axis]) for weight, axis in linear_maps(model)]
    return Architecture(
        layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        parameters=sum(p.numel() for p in model.parameters()),
        flop_per_sequence=quadratic(TINY, [(at[n].flop - flop_per_batch) / 2 for n in TINY]),
        weight_bytes_read=float(3 * at[TINY[0]].bytes_moved - 2 * one_more.bytes_moved),
        peak_feed_forward=quadratic(TINY, [at[n].peak_bytes / 2 for n in TINY]),
        peak_attention=quadratic(long, [at[n].peak_bytes / 2 for n in long]),
        flop_per_batch=float(flop_per_batch),
        positions=positions_of(model),
        linear_weights=sum(numbers for numbers, _ in linear),
        linear_outputs=sum(outputs for _, outputs in linear),
        tables=sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Embedding)),
    )


def main() -> None:
    """Recount the catalogue, whole and at the depths in common use, into costs.json."""
    import dataclasses
    import json
    from pathlib import Path

    from learning.backbones.catalogue import config_of, find, names
    from learning.cost.cost_cache import cost_key

    cuts = {"minilm": (1, 2, 3, 4, 5), "smollm2": (4, 8, 12, 16, 24)}
    wanted = [*names(), *(f"{name}-l{k}" for name, depths in cuts.items() for k in depths)]
    counted = {}
    for name in wanted:
        config = config_of(find(name))
        counted[cost_key(config)] = {"name": name, **dataclasses.asdict(count_architecture(config))}
        print(name)
    (Path(__file__).parent / "costs.json").write_text(
        json.dumps(counted, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
