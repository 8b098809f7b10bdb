"""Prediction with what a run learned: a frozen backbone, the trained side network beside it, and
nothing else.

    predictor = SidePredictor.load("runs/quickstart", "minilm-l2")
    labels, scores = predictor.predict(["Who wrote Hamlet ?", "How far is the moon ?"])

The prediction is composed as in training: y_b + y_s with a squared-error side network, log y_b +
y_s with a cross-entropy one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from learning.backbones import catalogue
from learning.backbones.catalogue import BackboneSpec
from learning.backbones.language_head import WordHead
from learning.backbones.prompts import first_tokens, prompts
from learning.backbones.tokens import tokenise
from learning.codecs.chain import chain_of
from learning.codecs.numbers import arrived
from learning.codecs.projection import FILE as PROJECTION_FILE
from learning.codecs.projection import Projection
from learning.side.network import SideNetwork, load_side_network
from learning.side.prediction_difference import (
    SAID_FIRST,
    VERBALISERS,
    backbone_prediction,
)
from learning.side.protection import FILE as SECRET_FILE
from learning.side.protection import Secret, to_classes
from learning.side.readouts import compute


class InferenceError(ValueError):
    """The side network cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class SidePredictor:
    """One backbone of a run with its trained side network; `SidePredictor.load` makes it.

    `notes` is the metadata of the side network's file: what was tapped, read out, predicted and
    named in training.
    """

    spec: BackboneSpec
    network: SideNetwork
    notes: Mapping[str, Any]
    secret: Secret | None = None
    """What devices have and the server has not, where what they sent was protected."""
    projection: Projection | None = None
    """Along which axes vectors are read, where they are not as the backbone gives them."""

    @classmethod
    def load(
        cls,
        run_dir_or_file: Path | str,
        backbone: str,
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> SidePredictor:
        """The side network of a run directory (or of a `side_network.safetensors`) for one of the
        run's backbones.

        `backbone` is the name that the scenario gave it; where it lies is recorded in the file,
        unless `own` says otherwise: definitions as in a scenario, e.g. {"my-model": {"path":
        "elsewhere/my-model"}}. InferenceError for a missing or damaged file, for a backbone that
        the run did not have, or whose weights are not those of the run; BackboneError or
        AssetMissing where the backbone cannot be had here.
        """
        file = Path(run_dir_or_file)
        if file.is_dir():
            file = file / "model" / "side_network.safetensors"
        if not file.is_file():
            raise InferenceError(
                f"no side network in {file}: a finished run that was not --dry leaves one there"
            )
        try:
            network, texts = load_side_network(file)
            notes = {**texts, **{key: json.loads(texts[key]) for key in _JSON}}
            notes |= {key: json.loads(texts.get(key, "[]")) for key in _LATER_JSON}
        except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise InferenceError(
                f"{file} is not a side network of a run, or it is damaged ({error})"
            ) from error
        if backbone not in notes["backbones"]:
            there = ", ".join(sorted(notes["backbones"]))
            raise InferenceError(
                f"{file} was not trained with a backbone called {backbone!r}; it was with: {there}"
            )
        recorded = dict(notes["backbones"][backbone])
        expected = recorded.pop("content")
        spec = (
            catalogue.find(backbone, own) if own and backbone in own else BackboneSpec(**recorded)
        )
        if _content(spec) != expected:
            raise InferenceError(
                f"backbone {backbone!r}: the weights or the depth found here are not those that "
                f"{file} was trained with; "
                f"give the right ones as own={{{backbone!r}: {{'path': ...}}}}"
            )
        return cls(
            spec, network, notes, _secret_beside(file, notes), _projection_beside(file, notes)
        )

    @property
    def class_names(self) -> list[str]:
        """The names that `predict` chooses from, in the order of its scores' columns."""
        return self.notes["class_names"]

    def predict(
        self, texts: Sequence[str], second_texts: Sequence[str] | None = None
    ) -> tuple[list[str], np.ndarray]:
        """The best class name of each text (or pair) and all scores, float32 [n, classes]; the
        highest wins.

        Squared error: scores are y_b + y_s and approach one-hot; cross-entropy: unnormalised
        log-probabilities. Computed with one torch thread, as in training. InferenceError if texts
        come singly where training had pairs, or the reverse.
        """
        if (second_texts is not None) != self.notes["pairs"]:
            kind = (
                "pairs: give second_texts"
                if self.notes["pairs"]
                else "single texts: leave second_texts out"
            )
            raise InferenceError(f"this side network was trained on {kind}")
        if not len(texts):
            return [], np.zeros((0, len(self.class_names)), dtype=np.float32)
        pooled = self._pooled(texts, second_texts)
        y_b = torch.from_numpy(self._own_prediction(pooled[:, -1], texts, second_texts))
        with torch.inference_mode():
            values = pooled[:, self.notes["vectors"][self.spec.name]]
            if self.projection is not None:
                values = self.projection.apply(self.spec.name, values)
            sent = values if self.secret is None else self.secret.rotated(values)
            if wire := self.notes.get("wire"):
                sent = arrived(sent, chain_of(wire))
            y_s = self.network(torch.from_numpy(sent), self.spec.name)
            if self.secret is not None:
                offset = self.secret.offset(self.spec.name, values)
                if self.notes["loss"] == "squared-error":  # of labels there are no codes
                    y_s = torch.from_numpy(to_classes(self.secret.codes, y_s.numpy(), offset))
            scores = compose(y_b, y_s, self.notes["loss"]).numpy()
        return [self.class_names[c] for c in scores.argmax(axis=1)], scores

    def _pooled(
        self,
        texts: Sequence[str],
        second_texts: Sequence[str] | None = None,
        readout: str | None = None,
    ) -> np.ndarray:
        most, template = int(self.notes["max_tokens"]), self.notes.get("template")
        tokens = (
            prompts(self.spec, template, texts, second_texts, most)
            if template
            else tokenise(self.spec, texts, second_texts, most)
        )
        return compute(self.spec, tokens, readout or self.notes["readout"])

    def _own_prediction(
        self, last_layer_ND: np.ndarray, texts: Sequence[str], second_texts: Sequence[str] | None
    ) -> np.ndarray:
        kind, said = self.notes["backbone_prediction"], self.notes["class_words"]
        classes = rng = head = logits = None
        if kind in VERBALISERS:
            words = dict(zip(self.class_names, self.notes["label_words"], strict=True))
            says = WordHead(self.spec, first_tokens(self.spec, self.notes["template"], words))
            logits = says(self._pooled(texts, second_texts, "last")[:, -1])
            if said:
                both = said if second_texts is not None else None
                classes = says(self._pooled(said, both, "last")[:, -1])
        elif kind in SAID_FIRST:
            most = int(self.notes["max_tokens"])
            tokens = tokenise(self.spec, said or self.class_names, None, most)
            classes = compute(self.spec, tokens, self.notes["readout"])[:, -1]
        if kind == "public-head":
            head = np.array(self.notes["fitted"][self.spec.name], dtype=np.float32)
        if kind == "own-head":
            raise InferenceError(
                "this run's devices predict with a head each of its own, which never leaves its "
                "device: there is none here to predict with"
            )
        if kind == "random-head":
            rng = np.random.Generator(np.random.PCG64())
            rng.bit_generator.state = self.notes["heads"][self.spec.name]
        return backbone_prediction(
            kind, last_layer_ND, len(self.class_names), classes, rng, head, logits_NC=logits
        )


def _secret_beside(file: Path, notes: Mapping[str, Any]) -> Secret | None:
    why = (
        "{file} was trained on protected uploads: without the devices' secret, {path}, what it "
        "says cannot be read"
    )
    path = _beside(file, SECRET_FILE, notes, "is_protected", why)
    return None if path is None else Secret.load(path)


def _projection_beside(file: Path, notes: Mapping[str, Any]) -> Projection | None:
    why = "{file} reads vectors along axes of their own: without these, {path}, it cannot predict"
    path = _beside(file, PROJECTION_FILE, notes, "is_projected", why)
    return None if path is None else Projection.load(path)


def _beside(file: Path, name: str, notes: Mapping[str, Any], flag: str, why: str) -> Path | None:
    """The file of that name beside a side network whose notes say so; None where they do not."""
    if not int(notes.get(flag, 0)):
        return None
    path = file.with_name(name)
    if not path.is_file():
        raise InferenceError(why.format(file=file, path=path))
    return path


_JSON = ("vectors", "class_names", "backbones", "heads", "pairs")
_LATER_JSON = ("fitted", "class_words", "label_words")  # which files of earlier versions lack


def notes_for(
    specs: Mapping[str, BackboneSpec],
    vectors: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    *,
    pairs: bool,
    heads: Mapping[str, np.random.Generator],
    fitted: Mapping[str, np.ndarray] = {},
    class_words: Sequence[str] = (),
    label_words: Sequence[str] = (),
    **plain: str,
) -> dict[str, str]:
    """The metadata that a side network must carry to be used by `SidePredictor`.

    `heads`: for random-head predictions, each backbone's generator before its first draw (PCG64),
    else empty. `fitted`: each backbone's public head, else empty. `class_words`: what is said of
    the classes, which a text is compared with or a verbaliser calibrated by, else empty.
    `label_words`: what a verbaliser says for each class, else empty. `plain`: readout,
    backbone_prediction, loss, max_tokens, template, and whatever else shall be kept.
    """
    backbones = {
        name: {
            "name": name,
            "kind": spec.kind,
            "source": str(Path(spec.source).expanduser().resolve())
            if spec.kind == "path"
            else spec.source,
            "layers": spec.layers,
            "config": None if spec.config is None else dict(spec.config),
            "seed": spec.seed,
            "content": _content(spec),
        }
        for name, spec in specs.items()
    }
    structured = {
        "vectors": {name: list(layers) for name, layers in vectors.items()},
        "class_names": list(class_names),
        "backbones": backbones,
        "heads": {name: rng.bit_generator.state for name, rng in heads.items()},
        "pairs": pairs,
        "fitted": {name: head.tolist() for name, head in fitted.items()},
        "class_words": list(class_words),
        "label_words": list(label_words),
    }
    return plain | {key: json.dumps(value) for key, value in structured.items()}


def compose(y_b_BC: torch.Tensor, y_s_BC: torch.Tensor, loss: str) -> torch.Tensor:
    """The final prediction [B, C] from the backbone's and the side network's: as
    `SideNetworkTrainer.evaluate` composes it.
    """
    return (
        y_b_BC + y_s_BC if loss == "squared-error" else torch.log(y_b_BC.clamp_min(1e-6)) + y_s_BC
    )


def _content(spec: BackboneSpec) -> str:
    """A digest of weights and depth alone: the same wherever the model's directory lies and however
    it is named.
    """
    if spec.kind == "random":
        return catalogue.fingerprint(spec)
    digest = hashlib.blake2b(
        str(catalogue.depth_of(catalogue.config_of(spec))).encode(), digest_size=16
    )
    for file in catalogue.weight_files(spec):
        digest.update(catalogue.sha256_of(file))
    return digest.hexdigest()
