"""What of a text can be read off its uploaded vectors: by layer, readout, precision and noise.

    python benchmarks/attacks.py --out benchmarks/results/attacks.json

For each cell a linear inverter learns from public texts, perturbed as the uploads are, which tokens
a text has (precision, recall, F1 of private texts, each beside what the best guess gets that is the
same of every text), and each upload is looked for among candidates' clean vectors. Noise
is normal, its deviation relative to that of each number over the public texts. A rotation that the
attacker does not know is undone by principal axes, and by some texts known to him. Layer 0 with the
mean is also taken apart with the embedding table. Activations are kept in the store.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import ortho_group

from learning.attacks.bags import blind_guess, judged_tokens
from learning.attacks.outcome import AttackOutcome
from learning.attacks.text_recovery import (
    Inverter,
    atoms,
    identify,
    taken_apart,
    turned_back,
    turned_by_axes,
)
from learning.backbones import assets, catalogue
from learning.backbones.backbone import READOUTS, Backbone
from learning.backbones.tokens import tokenise
from learning.codecs.numbers import quantise
from learning.data import texts
from learning.side.activation_store import ActivationStore
from learning.side.readouts import pooled_activations

NOISES = (0.1, 0.3, 1.0, 3.0)
BITS = (8, 4)
KNOWN = (50, 200, 400)
MOST_TOKENS = 64
Perturb = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Uploaded:
    """Public texts, then private ones: token ids, and vectors [n, layers + 1, D] by readout."""

    ids: list[np.ndarray]
    vectors: dict[str, np.ndarray]
    public: int
    marks: tuple[int, ...]


def read(name: str, backbone: str, public: int, private: int, draw: int = 7) -> Uploaded:
    """A draw of so many different texts of a data set through a backbone; tokens that every text
    has are marks.
    """
    different = list(dict.fromkeys(texts.load(name).texts))
    chosen = np.random.default_rng(draw).permutation(len(different))[: public + private]
    spec, store = catalogue.find(backbone), ActivationStore(assets.cache_dir() / "activations")
    tokens = tokenise(spec, [different[i] for i in chosen], max_tokens=MOST_TOKENS)
    vectors = {
        readout: pooled_activations(
            spec, tokens, readout, store, lambda compute, pieces: (compute(*p) for p in pieces)
        ).take()
        for readout in READOUTS
    }
    marks = set.intersection(*(set(ids.tolist()) for ids in tokens.ids))
    return Uploaded(tokens.ids, vectors, public, tuple(sorted(marks)))


def told(outcomes: Sequence[AttackOutcome]) -> dict[str, list[float]]:
    """Of each measure the value, its interval and chance."""
    return {
        one.what.removeprefix("tokens, "): [
            round(float(number), 3) for number in (one.success, one.low, one.high, one.chance)
        ]
        for one in outcomes
    }


def cell(found: Uploaded, readout: str, layer: int, perturb: Perturb) -> dict[str, list[float]]:
    """What is read off one layer's vectors, perturbed."""
    public, clean_ND = found.public, found.vectors[readout][:, layer]
    sent_ND, rng = perturb(clean_ND), np.random.default_rng(0)
    inverter = Inverter.fit(sent_ND[:public], found.ids[:public], found.marks)
    blind = blind_guess(found.ids[:public], found.marks)
    guess = inverter.guess(sent_ND[public:])
    bags = judged_tokens("inverter", guess, found.ids[public:], blind, rng, found.marks)
    private = np.arange(public, len(clean_ND))
    named = identify(sent_ND[public:], clean_ND, private)
    return told([*bags, *named])


def as_it_is(vectors_ND: np.ndarray) -> np.ndarray:
    """Float32, without noise."""
    return vectors_ND


def in_bits(bits: int) -> Perturb:
    """Rounded to so many bits with a scale for each vector, as on the wire."""

    def rounded(vectors_ND: np.ndarray) -> np.ndarray:
        values, scale = quantise(vectors_ND, bits)
        return values * scale.astype(np.float32)

    return rounded


def with_noise(relative: float) -> Perturb:
    """With normal noise of so many deviations of each number."""

    def noisy(vectors_ND: np.ndarray) -> np.ndarray:
        rng, spread_D = np.random.default_rng(1), vectors_ND.std(axis=0)
        return vectors_ND + relative * spread_D * rng.normal(size=vectors_ND.shape)

    return noisy


def rotated(found: Uploaded, layer: int) -> dict[str, dict[str, list[float]]]:
    """Which candidate an upload is, under a rotation that the attacker does not know: half of the
    public texts and the private ones are uploaded, the other half and the private are candidates.
    """
    public, clean_ND = found.public, found.vectors["mean"][:, layer].astype(np.float64)
    private = np.arange(public, len(clean_ND))
    sent = np.concatenate([np.arange(public // 2), private])
    candidates = np.concatenate([np.arange(public // 2, public), private])
    turned_ND = clean_ND[sent] @ ortho_group.rvs(clean_ND.shape[1], random_state=1)
    own = slice(public // 2, None)  # the private ones
    true_N = np.arange(public - public // 2, len(candidates))
    sent_NA, candidates_MA = turned_by_axes(turned_ND, clean_ND[candidates])
    ways = {
        "as it is": identify(turned_ND[own], clean_ND[candidates], true_N),
        "principal axes": identify(sent_NA[own], candidates_MA, true_N),
    }
    for known in KNOWN:
        if known <= public // 2:
            back_ND = turned_back(turned_ND, range(known), clean_ND[:known])
            ways[f"{known} texts known"] = identify(back_ND[own], clean_ND[candidates], true_N)
    return {way: told(outcomes) for way, outcomes in ways.items()}


def by_table(found: Uploaded, backbone: str, most: int = 100) -> dict[str, list[float]]:
    """Layer 0's mean taken apart with the embedding table, over all tokens of all texts."""
    vocabulary, public = np.unique(np.concatenate(found.ids)), found.public
    model = Backbone(catalogue.find(backbone)).model
    length = int(np.median([len(ids) for ids in found.ids]))
    table_VD = atoms(model.embeddings, vocabulary, length)
    private = slice(public, public + most)
    guess = taken_apart(found.vectors["mean"][private, 0], table_VD, vocabulary, found.marks)
    blind = blind_guess(found.ids[:public], found.marks)
    rng = np.random.default_rng(0)
    return told(judged_tokens("table", guess, found.ids[private], blind, rng, found.marks))


def main(arguments: Sequence[str] | None = None) -> dict:
    """Measure, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--data", default="trec-questions")
    parser.add_argument("--public", type=int, default=1000)
    parser.add_argument("--private", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    found = read(given.data, given.backbone, given.public, given.private)
    layers = found.vectors["mean"].shape[1]
    ends = (0, layers // 2, layers - 1)
    asked = {
        f"{readout}, layer {layer}": (readout, layer, as_it_is)
        for readout in READOUTS
        for layer in range(layers)
    }
    asked |= {f"mean, layer {k}, int{b}": ("mean", k, in_bits(b)) for k in ends for b in BITS}
    asked |= {
        f"mean, layer {k}, noise {s}": ("mean", k, with_noise(s)) for k in ends for s in NOISES
    }
    figures: dict[str, dict] = {"data": vars(given) | {"out": None}, "cells": {}}
    for name, (readout, layer, perturb) in asked.items():
        figures["cells"][name] = cell(found, readout, layer, perturb)
        print(name, json.dumps(figures["cells"][name]), flush=True)
    figures["table"] = by_table(found, given.backbone)
    figures["rotated"] = {f"layer {layer}": rotated(found, layer) for layer in ends}
    print(json.dumps({key: figures[key] for key in ("table", "rotated")}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
