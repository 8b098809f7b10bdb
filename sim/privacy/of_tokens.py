"""Attacks on texts whose every token's state is uploaded: whole matrices of side-tuning, and what
crosses the cut of split learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learning.attacks.bags import blind_guess, judged_tokens
from learning.attacks.outcome import AttackOutcome
from learning.attacks.text_recovery import identify, nearest_tokens
from learning.backbones.catalogue import config_of
from learning.backbones.tokens import Tokens
from learning.codecs.numbers import from_bytes, nbytes
from learning.side import full_activations
from learning.side.readouts import loaded
from sim.kernel.learned import with_values
from sim.methods.side_tuning.matrix_learner import MatrixLearner
from sim.methods.split.shared import SplitTraining
from sim.privacy.attacks import ATTACKED, PUBLIC, known_texts, marks_of, require_texts
from sim.privacy.measures import PrivacyError
from sim.privacy.uploads import Uploads


@dataclass(frozen=True)
class SentStates:
    """Of some texts' tokens, by layer: states [tokens, D] of each text."""

    samples: np.ndarray
    states: Mapping[int, Sequence[np.ndarray]]


def sends_tokens(uploads: Uploads) -> bool:
    """Whether every token's state is uploaded."""
    method = uploads.sim.method
    return isinstance(method, SplitTraining) or isinstance(method.learner, MatrixLearner)


def texts(
    uploads: Uploads,
    public: int = PUBLIC,
    attacked: int = ATTACKED,
) -> list[AttackOutcome]:
    """Which tokens stand in a text, token by token: that whose state is nearest among those of
    public texts, and of texts that have every word of the vocabulary, at the same layer; and which
    of the public texts and its own it is, by the mean over its tokens. Of split learning what
    devices sent in their first round, by an attacker who has the model as it was at the start (what
    is dropped out of it in training disturbs him).

    PrivacyError where no text is known, or too few are on no device.
    """
    require_texts(uploads)
    found: list[AttackOutcome] = []
    for name, sent in _sent(uploads).items():
        rng = np.random.default_rng(0)
        known = known_texts(uploads, rng, public)
        mine = rng.permutation(len(sent.samples))[:attacked]
        found += _of_backbone(uploads, name, sent, known, mine, rng)
    return found


def _of_backbone(
    uploads: Uploads,
    name: str,
    sent: SentStates,
    known: np.ndarray,
    mine: np.ndarray,
    rng: np.random.Generator,
) -> list[AttackOutcome]:
    found: list[AttackOutcome] = []
    spec, task = uploads.sim.costing.learned[name], uploads.sim.task
    theirs, own = task.tokens(spec, known), task.tokens(spec, sent.samples[mine])
    marks, layers = marks_of(own.ids), list(sent.states)
    blind = blind_guess(theirs.ids, marks)
    words = _every_word(int(config_of(spec)["vocab_size"]), theirs, rng)
    public, truth, every = (_states(uploads, name, t, layers) for t in (theirs, own, words))
    ids_M = np.concatenate([*theirs.ids, *words.ids])
    for layer in layers:
        mine_TD = [sent.states[layer][i] for i in mine]
        public_MD = np.concatenate([*public[layer], *every[layer]])
        guesses = [nearest_tokens(states_TD, public_MD, ids_M) for states_TD in mine_TD]
        attack = f"tokens of {name}, one by one, layer {layer}"
        found += judged_tokens(attack, guesses, own.ids, blind, rng, marks)
        candidates = np.stack([one.mean(axis=0) for one in (*truth[layer], *public[layer])])
        uploads_ND = np.stack([one.mean(axis=0) for one in mine_TD])
        found += [
            replace(outcome, attack=f"{outcome.attack}, {name}, layer {layer}")
            for outcome in identify(uploads_ND, candidates, np.arange(len(mine)))
        ]
    return found


def _every_word(vocabulary: int, like: Tokens, rng: np.random.Generator) -> Tokens:
    """Texts that have every word of the vocabulary once, in no order, as long as those of the kind
    are on the mean, and between the same first and last tokens, where all of these share them.
    """
    ends = [np.unique([ids[place] for ids in like.ids]) for place in (0, -1)]
    first, last = (shared if len(shared) == 1 else shared[:0] for shared in ends)
    length = max(1, round(float(like.lengths().mean())) - 2)
    words = rng.permutation(vocabulary)
    return Tokens(
        [
            np.concatenate([first, some, last]).astype(np.int32)
            for some in np.split(words, range(length, vocabulary, length))
        ]
    )


def _states(
    uploads: Uploads, name: str, tokens: Tokens, layers: Sequence[int]
) -> dict[int, list[np.ndarray]]:
    """By layer the states [T, D] of each text's tokens, as whoever has the backbone computes
    them.
    """
    backbone = loaded(uploads.sim.costing.learned[name])
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for start in range(0, len(tokens), 16):
        some = tokens.of(range(start, min(start + 16, len(tokens))))
        values_LND, lengths = full_activations.full_states(backbone, some, layers)
        for layer, values_ND in zip(layers, values_LND, strict=True):
            found[layer] += np.split(values_ND, np.cumsum(lengths)[:-1])
    return found


def _sent(uploads: Uploads) -> dict[str, SentStates]:
    """By backbone, each text once. PrivacyError where nothing arrived."""
    is_split = isinstance(uploads.sim.method, SplitTraining)
    found: dict[str, dict[int, dict[int, np.ndarray]]] = {}
    for name, samples, by_layer in (_split if is_split else _matrices)(uploads):
        texts = found.setdefault(name, {})
        for place, sample in enumerate(samples.tolist()):
            texts.setdefault(sample, {layer: of[place] for layer, of in by_layer.items()})
    if not found:
        raise PrivacyError("nothing usable arrived at the server: there is nothing to attack")
    sent = {}
    for name, texts in sorted(found.items()):
        samples = np.array(sorted(texts))
        layers = list(texts[int(samples[0])])
        states = {layer: [texts[int(sample)][layer] for sample in samples] for layer in layers}
        sent[name] = SentStates(samples, states)
    return sent


_OfPayload = tuple[str, np.ndarray, dict[int, list[np.ndarray]]]


def _matrices(uploads: Uploads) -> Iterator[_OfPayload]:
    for payload in uploads.payloads:
        if isinstance(data := with_values(payload.data), bytes) and data:
            name, learner = payload.sender.backbone, uploads.learner_of(payload.sender.backbone)
            config: Any = learner.config
            got = full_activations.decode(data, learner.shape.backbone_widths[name], config.wire)
            ends = np.cumsum(got.lengths)[:-1]
            layers = learner.vectors[name]
            yield (
                name,
                got.samples,
                {k: np.split(v, ends) for k, v in zip(layers, got.values, strict=True)},
            )


def _split(uploads: Uploads) -> Iterator[_OfPayload]:
    learner: Any = uploads.sim.method.learner
    for payload in uploads.payloads:
        name, count = payload.sender.backbone, len(payload.samples)
        data: Any = with_values(payload.data)
        lengths = np.frombuffer(data, "<i4", count)
        shape = (int(lengths.sum()), learner.width_of(name))
        vectors = from_bytes(data[len(data) - nbytes(learner.by, shape) :], learner.by, shape)
        (layer,) = (item.layers[0] for item, _ in payload.contents.items if item.layers)
        yield name, payload.samples, {layer: np.split(vectors, np.cumsum(lengths)[:-1])}
