"""What a frozen backbone predicts by itself, and what its difference to the truth gives away.

    python benchmarks/own_predictions.py --texts 300 --out found.json
    python benchmarks/own_predictions.py --backbone smollm2 --texts 150 --public 50

For each packaged data set: the accuracy of `backbone_prediction: class-texts` alone, by layer; its
squared error beside that of `uniform`; the layer and the temperature with the least error on the
*other* data sets; and, for each choice of y_b, how many labels whoever receives delta_y reads by
its largest component, and by adding the y_b that it can compute itself (`--public` texts make the
public head; each of `--devices` fits its own). Of a decoder, `by_temperature` has for each
temperature of its verbaliser what is left to learn, and what is read off when the difference is
sent as float16. Activations are kept in the store.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from learning.backbones import assets, catalogue
from learning.backbones.language_head import WordHead, require_language_model
from learning.backbones.prompts import first_tokens, prompts
from learning.backbones.tokens import Tokens, tokenise
from learning.data import texts
from learning.data.label_texts import shipped, shipped_template
from learning.side.activation_store import ActivationStore
from learning.side.heads import fit
from learning.side.prediction_difference import (
    PREDICTIONS,
    VERBALISERS,
    backbone_prediction,
    difference,
    verbalised,
)
from learning.side.readouts import pooled_activations

SETS = (
    "trec-questions",
    "trec-fine",
    "rotten-tomatoes",
    "sms-spam",
    "hutto-amazon",
    "hutto-tweets",
    "hutto-films",
    "hutto-editorials",
)
SOFTER = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # temperatures of a verbaliser
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Read:
    """Texts [n, layers + 1, D], sentences and names of classes [C, layers + 1, D], labels [n]; what
    a decoder says after each text [n, C] and after each sentence [C, C].
    """

    texts: np.ndarray
    sentences: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    says: np.ndarray | None = None
    neutral: np.ndarray | None = None

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.sentences)


def read(name: str, backbone: str, count: int, draw: int = 7) -> Read:
    """A draw of so many texts of a data set through a backbone."""
    data, spec = texts.load(name), catalogue.find(backbone)
    chosen = np.random.default_rng(draw).permutation(len(data))[:count]
    store = ActivationStore(assets.cache_dir() / "activations")

    def read_out(tokens: Tokens, readout: str) -> np.ndarray:
        return pooled_activations(
            spec, tokens, readout, store, lambda compute, pieces: (compute(*p) for p in pieces)
        ).take()

    def through(words: Sequence[str]) -> np.ndarray:
        return read_out(tokenise(spec, words, max_tokens=64), "mean")

    given = [data.texts[i] for i in chosen]
    said = [shipped(name)[c] for c in data.class_names]
    found = Read(through(given), through(said), through(data.class_names), data.labels[chosen])
    try:
        require_language_model(spec)
    except catalogue.BackboneError:  # an encoder
        return found
    template, words = shipped_template(name), shipped(name, "label_words")
    ids = first_tokens(spec, template, {c: words[c] for c in data.class_names})
    says, neutral = (
        WordHead(spec, ids)(read_out(prompts(spec, template, part, None, 64), "last")[:, -1])
        for part in (given, said)
    )
    return replace(found, says=says, neutral=neutral)


def squared(labels: np.ndarray, y_b: np.ndarray) -> float:
    """The mean squared length of delta_y."""
    return float((difference(labels, y_b) ** 2).sum(axis=1).mean())


def by_layer(found: Read, layer: int, temperature: float) -> tuple[float, float]:
    """Accuracy of class-texts at a layer, and its error relative to that of `uniform`."""
    y_b = backbone_prediction(
        "class-texts",
        found.texts[:, layer],
        found.classes,
        found.sentences[:, layer],
        temperature=temperature,
    )
    error = squared(found.labels, y_b) / (1 - 1 / found.classes)
    return float((y_b.argmax(axis=1) == found.labels).mean()), error


def chosen_on_others(found: dict[str, Read], left_out: str) -> tuple[int, float]:
    """The layer and the temperature with the least mean relative error on data sets of other
    texts.
    """
    others = [one for name, one in found.items() if name.split("-")[0] != left_out.split("-")[0]]
    others = others or list(found.values())
    pairs = [(layer, t) for layer in range(others[0].texts.shape[1]) for t in TEMPERATURES]
    return min(pairs, key=lambda pair: sum(by_layer(one, *pair)[1] for one in others))


def own_predictions(found: Read, public: int, devices: int) -> dict[str, tuple[np.ndarray, bool]]:
    """Each choice's y_b of the texts that are not public, and whether the server can compute it."""
    x, labels, classes = found.texts[:, -1], found.labels, found.classes
    private, head = slice(public, None), fit(x[:public], labels[:public], classes)
    parts = np.array_split(np.arange(public, len(x)), devices)
    own = np.concatenate([fit(x[part], labels[part], classes).left_out for part in parts])
    given = {
        "label-names": (found.names[:, -1], None),
        "class-texts": (found.sentences[:, -1], None),
        "public-head": (None, head.weights),
    }
    made = {}
    for kind in PREDICTIONS:
        if kind == "own-head":
            made[kind] = own, False
            continue
        said, weights = given.get(kind, (found.neutral, None))
        if kind in VERBALISERS and found.says is None:
            continue
        says = found.says if found.says is None else found.says[private]
        rng = np.random.default_rng(0)
        y_b = backbone_prediction(kind, x[private], classes, said, rng, weights, logits_NC=says)
        made[kind] = y_b, True
    return made


def leaks(found: Read, public: int, devices: int) -> dict[str, dict[str, float | None]]:
    """For each choice: accuracy of y_b, squared length of delta_y, and the share of labels read."""
    table = {}
    labels = found.labels[public:]
    for kind, (y_b, is_known) in own_predictions(found, public, devices).items():
        delta_y = difference(labels, y_b)
        read_off = (delta_y.argmax(axis=1) == labels).mean()
        restored = ((delta_y + y_b).argmax(axis=1) == labels).mean() if is_known else None
        table[kind] = {
            "accuracy": float((y_b.argmax(axis=1) == labels).mean()),
            "squared": squared(labels, y_b),
            "read_by_argmax": float(read_off),
            "restored_with_y_b": None if restored is None else float(restored),
        }
    return table


def by_temperature(found: Read) -> dict[str, dict[str, float]]:
    """For each temperature of a calibrated verbaliser: squared length of delta_y, and the share of
    labels that its largest component gives as it arrives in float16, where it is not all zero.
    """
    table = {}
    for temperature in SOFTER if found.says is not None else ():
        delta_y = difference(found.labels, verbalised(found.says, found.neutral, temperature))
        sent = delta_y.astype(np.float16)
        is_read = (sent.argmax(axis=1) == found.labels) & (np.abs(sent).max(axis=1) > 0)
        table[str(temperature)] = {
            "squared": float((delta_y**2).sum(axis=1).mean()),
            "below_a_tenth": float((np.abs(delta_y).max(axis=1) < 0.1).mean()),
            "read_by_argmax": float(is_read.mean()),
        }
    return table


def main(arguments: Sequence[str] | None = None) -> dict:
    """Measure, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--data", default=",".join(SETS))
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--public", type=int, default=100)
    parser.add_argument("--devices", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    found = {name: read(name, given.backbone, given.texts) for name in given.data.split(",")}
    figures = {}
    for name, one in found.items():
        layer, temperature = chosen_on_others(found, name)
        accuracy, relative = by_layer(one, layer, temperature)
        figures[name] = {
            "majority": float(np.bincount(one.labels).max() / len(one.labels)),
            "uniform_squared": 1 - 1 / one.classes,
            "by_layer": [by_layer(one, k, temperature)[0] for k in range(one.texts.shape[1])],
            "chosen_on_others": {"layer": layer, "temperature": temperature},
            "accuracy": accuracy,
            "relative_error": relative,
            "choices": leaks(one, given.public, given.devices),
            "by_temperature": by_temperature(one),
        }
        print(name, json.dumps(figures[name]))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
