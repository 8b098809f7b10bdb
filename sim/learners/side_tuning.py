"""The learning behind Fed MobiLLM's clock: activations of real backbones, and the side network trained on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning import catalogue, taps
from learning.cost import Cost
from learning.side_config import shape_for
from learning.tokens import tokenise
from sim.actors import Work
from sim.learners.null import NullLearner

if TYPE_CHECKING:
    from sim.journal import Journal
    from sim.simulation import Simulation


class SideTuningLearner(NullLearner):
    """Real activations of the packaged backbones, and a real side network trained on what was uploaded.

    A journal in the run directory remembers evaluations and the last checkpoint by the history that led to them, so that a
    resumed run replays its events and takes the learning from there instead of computing it again.

    `backbones` are those that the side network serves, by default all of the fleet; `journal` is the run's.
    """

    def __init__(
        self, config: Any, sim: Simulation, backbones: Iterable[str] | None = None, journal: Journal | None = None
    ) -> None:
        from learning.side_tuning import SideTuning, Training

        self.config, self.sim = config, sim
        specs = {name: sim.costing.learned[name] for name in backbones or sim.costing.learned}
        configs = {name: catalogue.config_of(spec) for name, spec in specs.items()}
        depths = {name: catalogue.depth_of(c) for name, c in configs.items()}
        widths = {name: catalogue.width_of(c) for name, c in configs.items()}
        sampled = taps.sample(depths, config.taps)
        self.shape = shape_for(config.side_network, len(next(iter(sampled.values()))), widths, sim.task.classes)
        first = [0] if self.shape.start == "embedding" else []
        self.vectors = {name: [*first, *layers] for name, layers in sampled.items()}
        self._prepare(specs)
        training = Training(config.learning_rate, config.weight_decay, config.loss)
        seed = sim.streams.seed64("server/side-network") % 2**31
        self.tuning = SideTuning(self.shape, config.side_network, training, self._held_out(), seed)
        self.journal = journal or sim.journal
        self._behind = self.journal.checkpoint_key is not None
        self._loss: float | None = None

    @property
    def predicts_untrained(self) -> bool:
        """Whether the backbones' own prediction, which an untrained side network leaves as it is, is one."""
        return self.config.backbone_prediction == "label-names"

    # --- what a device computes

    def _prepare(self, specs: dict[str, catalogue.BackboneSpec]) -> None:
        """All activations that this run can need, from the store or computed now in large length-sorted batches."""
        from learning.activation_store import ActivationStore
        from learning.readouts import pooled_activations

        task, store = self.sim.task, ActivationStore(self.sim.store_folder)
        self._row: dict[str, dict[int, int]] = {}
        self._readouts: dict[str, np.ndarray] = {}
        self._labels: dict[str, np.ndarray | None] = {}
        for name, spec in specs.items():
            samples = np.unique(np.concatenate([*self._parts_of(name), task.test]))
            tokens = task.tokens(spec, samples)
            report = functools.partial(self.sim.on_prepare, name)
            self._readouts[name] = pooled_activations(
                spec, tokens, self.config.readout, store, self.sim.host.map, report
            )
            self._row[name] = {int(sample): row for row, sample in enumerate(samples)}
            self._labels[name] = None
            if self.config.backbone_prediction == "label-names":
                names = tokenise(spec, task.class_names, max_tokens=task.max_tokens)
                self._labels[name] = pooled_activations(spec, names, self.config.readout, store, self.sim.host.map)[
                    :, -1
                ]

    def _parts_of(self, backbone: str) -> list[np.ndarray]:
        """The training texts that this backbone will see."""
        return [device.samples for device in self.sim.devices if device.backbone == backbone]

    def forward(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        """The sampled vectors of a batch, float32 [n, vectors, hidden]."""
        rows = [self._row[backbone][int(sample)] for sample in samples]
        return self._readouts[backbone][np.ix_(rows, self.vectors[backbone])]

    def _own_prediction(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        from learning.prediction_difference import backbone_prediction

        rows = [self._row[backbone][int(sample)] for sample in samples]
        return backbone_prediction(
            self.config.backbone_prediction,
            self._readouts[backbone][rows, -1],
            self.sim.task.classes,
            self._labels[backbone],
            self._head_stream(backbone),
        )

    def _head_stream(self, backbone: str) -> np.random.Generator:
        """Where a random head is drawn from: the same head for every device of a backbone, and again for inference."""
        return self.sim.streams.rng("backbone/head", backbone)

    def encode(self, backbone: str, samples: np.ndarray, activations: np.ndarray) -> bytes:
        """The payload's bytes: activations and prediction differences (for cross-entropy: labels and predictions).

        None at all where the activations are not finite: no number format could say so.
        """
        from learning.activations import Activations, encode
        from learning.prediction_difference import difference

        if not np.isfinite(activations).all():
            return b""
        labels, y_b = self.sim.task.labels[samples], self._own_prediction(backbone, samples)
        targets = difference(labels, y_b)
        if self.config.loss == "cross-entropy":
            targets = np.concatenate([targets + y_b, y_b], axis=1)
        return encode(Activations(activations, targets, samples), self.config.wire)

    # --- what the server computes

    def work(self, cost: Cost, name: str, *args: Any) -> Work:
        """A piece of work that takes time and computes `self.name(*args)`."""
        function: Callable[..., Any] = getattr(self, name)
        return Work(cost, functools.partial(function, *args))

    def ingest(self, backbone: str, data: bytes) -> bool:
        """Decode a payload into the server's records; False for one that holds nothing usable."""
        return bool(data) and self.tuning.ingest(backbone, data) > 0

    def forget(self, records: Sequence[int]) -> None:
        """Drop records that no later update will ask for."""
        self.tuning.forget(records)

    def step(self, records: Sequence[int]) -> float | None:
        """One update, or its place in the history while the journal's checkpoint is still ahead."""
        if not self._behind:
            self._loss = self.tuning.step(records)
            if not math.isfinite(self._loss):
                self.diverged = "loss"
            return self._loss
        self.tuning.note_step(records)
        return self.journal.loss(self._catch_up())

    def evaluate(self) -> dict[str, float | None]:
        """Accuracy by backbone on the held-out texts."""
        key = self._catch_up()
        if self._behind:
            return self.journal.recall(key)
        scores = self.tuning.evaluate()
        self.journal.remember(key, scores, self._loss, self.tuning.checkpoint)
        return scores

    def _catch_up(self) -> str:
        """The present history; where it is the checkpoint's, training really goes on from there."""
        key = self.tuning.key
        if self._behind and key == self.journal.checkpoint_key:
            self.tuning.restore(self.journal.checkpoint)
            self._behind = False
        return key

    def _held_out(self) -> dict[str, Any]:
        from learning.side_tuning import HeldOut

        test = self.sim.task.test
        labels = self.sim.task.labels[test]
        return {
            name: HeldOut(self.forward(name, test), self._own_prediction(name, test), labels) for name in self.vectors
        }

    def digest(self) -> str:
        """A digest of the shipped weights; CannotResume if the replay never came to the journal's checkpoint."""
        import hashlib

        if self._behind and self.sim.ended.reason != "interrupted":
            raise self.journal.astray()
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tuning.averaged.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """model/side_network.safetensors with what is needed to use it."""
        from learning.inference import notes_for

        folder.mkdir(exist_ok=True)
        heads = {}
        if self.config.backbone_prediction == "random-head":
            heads = {name: self._head_stream(name) for name in self.vectors}
        notes = notes_for(
            {name: self.sim.costing.learned[name] for name in self.vectors},
            self.vectors,
            self.sim.task.class_names,
            pairs=self.sim.task.texts.second_texts is not None,
            heads=heads,
            readout=self.config.readout,
            backbone_prediction=self.config.backbone_prediction,
            loss=self.config.loss,
            max_tokens=str(self.sim.task.max_tokens),
            seed=str(self.sim.scenario.seed),
        )
        self.tuning.save_model(folder / "side_network.safetensors", **notes)
