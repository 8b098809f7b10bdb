"""What a frozen decoder holds at each place that a token of a response follows: the sampled layers'
states, and the last one, which its head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learning.backbones.backbone import Backbone, pad
from learning.backbones.batches import batches, pieces
from learning.backbones.catalogue import BackboneSpec, config_of, depth_of, fingerprint, width_of
from learning.backbones.tokens import Tokens
from learning.host_device import host_device
from learning.next_token.choices import Positions, chosen_places
from learning.side.activation_store import ActivationStore
from learning.side.readouts import Map, loaded


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
        return self._places(places, ends)

    def _places(self, places: np.ndarray, ends: np.ndarray) -> TokenStates:
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
        return self._places(places, ends)


def token_states(
    backbone: Backbone,
    tokens: Tokens,
    layers: Sequence[int],
) -> TokenStates:
    """Read texts; layer 0 is the embedding, the last the model's output. A text is always read in
    the same shape, so its states are the same bits whatever else is read.
    """
    import torch

    counts, lengths = tokens.said_lengths(), tokens.lengths()
    ends = np.cumsum(counts)
    width, total = backbone.hidden_size, int(counts.sum())
    values = np.empty((total, len(layers), width), dtype=np.float16)
    last = np.empty((total, width), dtype=np.float32)
    said = np.empty(total, dtype=np.int64)
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
    if not np.isfinite(last).all():
        raise ValueError(f"backbone {backbone.spec.name!r} turns a text into NaN or infinity")
    return TokenStates(values, last, said, ends)


def stored_states(
    spec: BackboneSpec,
    tokens: Tokens,
    layers: Sequence[int],
    store: ActivationStore,
    spread: Map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenStates:
    """The same, the last layer among `layers`: from the store, the rest computed now and stored,
    piece by piece; `spread` maps a function over pieces of work, in order. `progress(done, total)`
    counts what texts have to be read.
    """
    assert layers[-1] == depth_of(config_of(spec)), "what the head reads is the last state"
    mark, kind = fingerprint(spec), f"tokens-{'-'.join(map(str, layers))}"
    before = [np.flatnonzero(tokens.said(text)) - 1 for text in range(len(tokens))]
    counts = np.array([len(of_text) for of_text in before], dtype=np.int64)
    text_M, ends = np.repeat(np.arange(len(tokens)), counts), np.cumsum(counts)
    found, missing = store.load(mark, kind, _by_place(tokens, before))
    host, width = host_device(), width_of(config_of(spec))
    unread = np.unique(text_M[missing])
    shapes = (host.length_step, lambda length: host.rows(length, width), host.texts)
    chosen = [unread[part] for part in pieces(tokens.lengths()[unread], *shapes)]
    progress(0, len(unread))
    done = 0
    work = ((spec, tokens.of(part), layers) for part in chosen)
    for part, x_MVD in zip(chosen, spread(computed, work), strict=True):
        own = _by_place(tokens.of(part), [before[text] for text in part])
        store.save(mark, kind, own, x_MVD, spec.name)
        places = np.concatenate([np.arange(ends[i] - counts[i], ends[i]) for i in part])
        for place, x_VD in zip(places, x_MVD, strict=True):
            found[place] = x_VD
        done += len(part)
        progress(done, len(unread))
    if chosen:
        store.hold_to_limit()
    values = np.empty((len(found), len(layers), width), dtype=np.float16)
    last = np.empty((len(found), width), dtype=np.float32)
    for place, stored in enumerate(found):
        assert stored is not None, "none is missing any more"
        values[place], last[place] = stored, stored[-1]
    said = np.concatenate([tokens.ids[i][of_text + 1] for i, of_text in enumerate(before)])
    return TokenStates(values, last, said.astype(np.int64), ends)


def computed(spec: BackboneSpec, tokens: Tokens, layers: Sequence[int]) -> np.ndarray:
    """The forward pass itself, a pure function: float32 [M, V, D], of the last layer exactly, of
    the others in half precision.
    """
    states = token_states(loaded(spec), tokens, layers)
    x_MVD = states.values.astype(np.float32)
    x_MVD[:, -1] = states.last
    return x_MVD


def _by_place(tokens: Tokens, before: Sequence[np.ndarray]) -> Tokens:
    """What the store knows places by: their text's tokens, and where they stand."""
    return Tokens(
        [
            np.append(ids, place).astype(np.int32)
            for ids, of_text in zip(tokens.ids, before, strict=True)
            for place in of_text
        ]
    )
