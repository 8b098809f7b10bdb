"""What a frozen decoder holds at each place that a token of a response follows: the sampled layers'
states, and the last one, which its head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learning.backbones.backbone import Backbone, pad
from learning.backbones.batches import batches
from learning.backbones.tokens import Tokens
from learning.next_token.choices import Positions, chosen_places


@dataclass(frozen=True)
class TokenStates:
    """Of M places, text after text: values [M, V, D] (the sampled layers', float16 in memory), last
    [M, D] float32, said [M] (the token that follows), ends [n] (where each text's places end).
    """

    values: np.ndarray
    last: np.ndarray
    said: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.said)

    def of(self, texts: Sequence[int] | np.ndarray) -> TokenStates:
        """Those of some texts, in this order."""
        starts = np.concatenate([[0], self.ends[:-1]])
        places = np.concatenate(
            [np.arange(starts[i], self.ends[i]) for i in texts] or [np.zeros(0, dtype=np.int64)]
        ).astype(np.int64)
        ends = np.cumsum([self.ends[i] - starts[i] for i in texts])
        return TokenStates(self.values[places], self.last[places], self.said[places], ends)

    def at(self, positions: Positions, draws: Sequence[np.random.Generator]) -> TokenStates:
        """Those at some places of each text; `draws` has a generator for each, at the start of
        what it draws.
        """
        starts = np.concatenate([[0], self.ends[:-1]])
        chosen = [
            start + chosen_places(int(end - start), positions, draw)
            for start, end, draw in zip(starts, self.ends, draws, strict=True)
        ]
        places = np.concatenate(chosen or [np.zeros(0, dtype=np.int64)])
        ends = np.cumsum([len(of_text) for of_text in chosen])
        return TokenStates(self.values[places], self.last[places], self.said[places], ends)


def token_states(
    backbone: Backbone,
    tokens: Tokens,
    layers: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> TokenStates:
    """Read texts; layer 0 is the embedding, the last the model's output. A text is always read in
    the same shape, so its states are the same bits whatever else is read. `progress` is called with
    the texts done.
    """
    import torch

    counts, lengths = tokens.said_lengths(), tokens.lengths()
    ends = np.cumsum(counts)
    width, total = backbone.hidden_size, int(counts.sum())
    values = np.empty((total, len(layers), width), dtype=np.float16)
    last = np.empty((total, width), dtype=np.float32)
    said = np.empty(total, dtype=np.int64)
    done = 0
    for length, chosen in batches(backbone.padded_lengths(lengths), backbone.rows):
        filled = np.resize(chosen, backbone.rows(length))
        states = backbone.states(*pad([tokens.ids[i] for i in filled], length))
        with torch.inference_mode():
            for row, text in enumerate(chosen):
                before = np.flatnonzero(tokens.said(text)) - 1
                place = slice(ends[text] - counts[text], ends[text])
                for number, layer in enumerate(layers):
                    values[place, number] = states[layer][row, before].cpu().half().numpy()
                last[place] = states[-1][row, before].cpu().float().numpy()
                said[place] = tokens.ids[text][before + 1]
        done += len(chosen)
        progress(done)
    if not np.isfinite(last).all():
        raise ValueError(f"backbone {backbone.spec.name!r} turns a text into NaN or infinity")
    return TokenStates(values, last, said, ends)
