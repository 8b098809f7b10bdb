"""What protections of prediction differences hide, and what they cost.

    python benchmarks/protection.py --out benchmarks/results/protection.json

Off the clock: all layers' vectors of one backbone (mean over tokens), the ridge skip of the side
network solved for what devices would send (`learning.side.protection`), judged on other texts. For
each protection, over seeds of texts and secret:

    accuracy    of what devices decode
    alike       groups of differences by k-means: adjusted Rand index with the labels
    learned     the same of what the server's own regression says of the uploads
    solved      the same where the server, which made the public axes, solves for the secret offset

Codes of several words a class are drawn for each text. 1,000 public texts make the axes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from attacks import MOST_TOKENS

from learning.attacks.label_recovery import adjusted_rand, groups_of
from learning.attacks.mixture import solved_groups
from learning.backbones import assets, catalogue
from learning.backbones.tokens import tokenise
from learning.data import texts
from learning.side.activation_store import ActivationStore
from learning.side.prediction_difference import difference
from learning.side.protection import draw_secret, public_axes, to_classes
from learning.side.readouts import pooled_activations
from learning.side.skip import Skip

WAYS: dict[str, dict] = {
    "open": {},
    **{f"noise {s}": {"noise": s} for s in (0.25, 0.5, 0.75, 1.0)},
    **{f"{n} words a class": {"words": n} for n in (2, 4)},
    **{
        f"offset 10 on {k} axes, noise {s}": {"offset": 10.0, "axes": k, "noise": s}
        for k in (64, 128, 256)
        for s in (0.0, 0.1, 0.2, 0.35)
    },
}


def read(name: str, backbone: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A draw of so many texts: vectors [n, layers + 1, D], labels [n]."""
    data, spec = texts.load(name), catalogue.find(backbone)
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    store = ActivationStore(assets.cache_dir() / "activations")
    tokens = tokenise(spec, [data.texts[i] for i in chosen], max_tokens=MOST_TOKENS)
    read_out = pooled_activations(
        spec, tokens, "mean", store, lambda compute, pieces: (compute(*p) for p in pieces)
    )
    return read_out.take(), np.asarray(data.labels)[chosen]


def measured(
    a_NVD: np.ndarray, labels_N: np.ndarray, train: int, public: int, seed: int, way: dict
) -> dict[str, float]:
    """One protection: the first texts train, the last are public, those between judge."""
    rng, classes = np.random.default_rng(seed), int(labels_N.max()) + 1
    known = None
    if way.get("offset"):
        known = public_axes({"one": a_NVD[-public:]}, way["axes"])
    words = way.get("words", 1)
    secret = draw_secret(rng, classes * words, classes * words, way.get("offset", 0.0), known, {})
    offset_NK = secret.offset("one", a_NVD)
    delta_NC = difference(labels_N, np.full((len(labels_N), classes), 1 / classes, np.float32))
    word_N = rng.integers(0, words, len(labels_N))
    spread_NC = np.zeros((len(labels_N), classes * words), np.float32)
    for place in range(words):  # class c has the words c, c + C, ...
        is_word_N = word_N == place
        spread_NC[is_word_N, place * classes : (place + 1) * classes] = delta_NC[is_word_N]
    noise_NK = way.get("noise", 0.0) * rng.standard_normal(offset_NK.shape)
    sent_NK = (spread_NC @ secret.codes - offset_NK + noise_NK).astype(np.float32)[:train]
    mean, spread = a_NVD[:train].mean(axis=0), a_NVD[:train].std(axis=0) + 1e-6
    x_NF = torch.from_numpy(((a_NVD - mean) / spread).reshape(len(a_NVD), -1))
    skip = Skip(x_NF.shape[1], sent_NK.shape[1])
    skip.fit(x_NF[:train], torch.from_numpy(sent_NK))
    said_NK = skip(x_NF).numpy()
    judged = slice(train, len(a_NVD) - public)
    scores_NC = to_classes(secret.codes, said_NK[judged], offset_NK[judged])
    scores_NC = scores_NC.reshape(-1, words, classes).sum(axis=1)
    mine_N = labels_N[:train]

    def alike(values_NK: np.ndarray) -> float:
        groups = groups_of(values_NK, classes * words, np.random.default_rng(0))
        return adjusted_rand(groups, mine_N)

    found = {
        "accuracy": float((scores_NC.argmax(axis=1) == labels_N[judged]).mean()),
        "alike": alike(sent_NK),
        "learned": alike(said_NK[:train]),
    }
    if known is not None:
        along_NA = known.along("one", a_NVD[:train])
        groups_N = solved_groups(sent_NK, along_NA, classes, np.random.default_rng(0))
        found["solved"] = adjusted_rand(groups_N, mine_N)
    return found


def main(arguments: Sequence[str] | None = None) -> dict:
    """Measure, print and return the figures: of each way the mean over seeds, and each seed's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--data", default="trec-questions")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--judge", type=int, default=1000)
    parser.add_argument("--public", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    figures: dict[str, dict] = {"asked": vars(given) | {"out": None}, "ways": {}}
    for seed in range(given.seeds):
        count = given.train + given.judge + given.public
        a_NVD, labels_N = read(given.data, given.backbone, count, seed)
        for name, way in WAYS.items():
            found = measured(a_NVD, labels_N, given.train, given.public, seed, way)
            figures["ways"].setdefault(name, []).append(found)
    for name, each in figures["ways"].items():
        mean = {key: round(float(np.mean([one[key] for one in each])), 3) for key in each[0]}
        print(f"{name:36}", *(f"{key} {value:6.3f}" for key, value in mean.items()))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
