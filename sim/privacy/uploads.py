"""What the server of a finished run was sent, number by number.

A run keeps no payloads: they are large, and follow from its scenario and seed. So the run is
simulated again and its payloads are kept; its digest tells whether it is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from learning.backbones import catalogue
from learning.side import activations, full_activations
from sim.kernel.device import Device, Payload
from sim.kernel.learned import with_values
from sim.kernel.ledger import DATA_KINDS, PER_TEXT_KINDS
from sim.kernel.work import Steps
from sim.methods.side_tuning.centralised import Centralised
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.matrix_learner import MatrixLearner
from sim.methods.side_tuning.next_token import NextTokenSideTuning
from sim.methods.side_tuning.shared import SideTuning
from sim.methods.split.shared import SplitTraining
from sim.privacy.measures import PrivacyError
from sim.results.run import Run, open_run
from sim.scenario.file import digest, resolved
from sim.scenario.named_files import digests
from sim.scenario.registry import known, method_of
from sim.scenario.schema import Scenario
from sim.simulation import RunCallbacks, Simulation, building

MOST_ANSWERS, FEW_ANSWERS = 60, 6
"""Answers that are kept of methods which train on devices: of a part of a model, and of all."""


@dataclass(frozen=True)
class Vectors:
    """What devices of one backbone sent, each text once: sample numbers [n], vectors [n, V, d] of
    `layers` and targets [n, K] as they arrived, and the numbers of their payloads [n]; the same of
    decoys, which the simulation marks and no real server knows.
    """

    samples: np.ndarray
    layers: tuple[int, ...]
    vectors: np.ndarray
    targets: np.ndarray
    payloads: np.ndarray
    decoys: Decoys


class Decoys(NamedTuple):
    """Vectors [m, V, d], targets [m, K] and payloads [m] of records that are no texts."""

    vectors: np.ndarray
    targets: np.ndarray
    payloads: np.ndarray


@dataclass(frozen=True)
class Uploads:
    """A run that was simulated again, and all payloads of its devices that arrived whole.

    `is_same`: whether it came to the same digest.
    """

    run: Run
    sim: Simulation
    payloads: list[Payload]
    is_same: bool
    answered: list[tuple[Payload, object]]
    """Of methods that train on devices the first answers, each with the model that it answers."""
    trained: Mapping[str, np.ndarray]
    """By backbone the sample numbers of what has gone into the model, rising."""
    sent: Mapping[str, np.ndarray]
    """By kind (text, token ids, label) those of which it has arrived as it is, rising."""

    @property
    def labels(self) -> np.ndarray:
        """The truth, by sample number: no server has it; attacks are judged by it."""
        return self.sim.task.labels

    @property
    def sends_labels(self) -> bool:
        """Whether labels go along with activations as they are."""
        config: Any = self.sim.scenario.method
        return config.loss == "cross-entropy"

    def depth_of(self, backbone: str) -> int:
        """How many layers it has."""
        return catalogue.depth_of(catalogue.config_of(self.sim.costing.learned[backbone]))

    def learner_of(self, backbone: str) -> SideTuningLearner:
        """What learned from this backbone's records."""
        learner: Any = self.sim.method.learner
        return learner.of(backbone)

    def vectors(self) -> dict[str, Vectors]:
        """By backbone, what single vectors and targets arrived; what is not finite is left out.

        PrivacyError for a method that uploads something else, or where nothing arrived.
        """
        refuse_others(self.sim.scenario)
        parts: dict[str, dict[bytes, Any]] = {}  # who sends a payload again adds nothing
        for payload in self.payloads:
            if isinstance(data := with_values(payload.data), bytes) and data:
                name = payload.sender.backbone
                mine = parts.setdefault(name, {})
                if data not in mine:
                    mine[data] = self._decoded(name, data)
        found = {}
        for name, several in sorted(parts.items()):
            received = list(several.values())
            samples = np.concatenate([part.samples for part in received])
            values = np.concatenate([part.values for part in received])
            targets = np.concatenate([part.targets for part in received])
            numbers = np.repeat(np.arange(len(received)), [len(part) for part in received])
            _, first = np.unique(samples, return_index=True)
            first = first[samples[first] >= 0]
            is_finite = np.isfinite(values).all(axis=(1, 2)) & np.isfinite(targets).all(axis=1)
            kept, others = first[is_finite[first]], (samples < 0) & is_finite
            if len(kept):
                layers = tuple(self.learner_of(name).vectors[name])
                rows = (samples[kept], layers, values[kept], targets[kept], numbers[kept])
                decoys = Decoys(values[others], targets[others], numbers[others])
                found[name] = Vectors(*rows, decoys)
        if not found:
            raise PrivacyError("nothing usable arrived at the server: there is nothing to attack")
        return found

    def _decoded(self, backbone: str, data: bytes) -> activations.Activations:
        """A payload's records; of whole matrices, a vector a text and layer."""
        learner = self.learner_of(backbone)
        width = learner.shape.backbone_widths[backbone]
        if not isinstance(learner, MatrixLearner):
            return activations.decode(data, width)
        whole = full_activations.decode(data, width, learner.config.wire)
        values = full_activations.pooled(whole, learner.config.readout)
        return activations.Activations(values, whole.targets, whole.samples)


def refuse_others(scenario: Scenario) -> None:
    """PrivacyError for a method that does not upload single vectors with what goes along."""
    method: Any = scenario.method
    of = method_of(method)
    if getattr(of, "keeps_on_device", None) == PER_TEXT_KINDS:
        raise PrivacyError(
            f"{method.kind} sends nothing of a single text, but numbers, or seeds and derivatives, "
            "of several together, on which no attack is tried here"
        )
    if issubclass(of, NextTokenSideTuning):
        raise PrivacyError(
            f"{method.kind} uploads states and differences, from which whoever has the model's "
            "head reads every token that was said (docs/language_models.md, what it gives away); "
            "no attack on them is built here"
        )
    if not issubclass(of, SideTuning) or issubclass(of, Centralised):
        raise PrivacyError(f"{method.kind} uploads no vectors of texts with differences or labels")


def require_server(scenario: Scenario) -> None:
    """PrivacyError for a method that sends nothing to a server."""
    method: Any = scenario.method
    if method_of(method).__module__.startswith("sim.methods.on_device."):
        raise PrivacyError(f"{method.kind} sends nothing to a server: there is nothing to attack")


def scenario_of(run: Run) -> Scenario:
    """The scenario that a run was made from, as its manifest has it. PrivacyError where this
    version does not know it, or where it names code of one's own, which is not run.
    """
    kind = run.method
    if kind not in known():
        raise PrivacyError(
            f"{run.path} is a run of {kind}, code of one's own, which this command does not run"
        )
    try:
        return Scenario.model_validate(run.manifest["scenario"])
    except ValidationError as error:
        raise PrivacyError(
            f"{run.path} was made from a scenario that is none here ({error.errors()[0]['msg']}): "
            "run it again with this version"
        ) from error


def uploads_of(
    run: Run | Path | str,
    folder: Path = Path(),
    callbacks: RunCallbacks | None = None,
) -> Uploads:
    """Simulate a run again and keep what its devices upload.

    `folder` is where the scenario's own files are, if it names any. Raises RunError for what is no
    run, PrivacyError for a dry or unfinished one, or where files are not those of the run.

        uploads = uploads_of("runs/quickstart")
        uploads.vectors()["minilm"].targets
    """
    run = run if isinstance(run, Run) else open_run(run)
    if run.manifest.get("dry") or run.manifest.get("status") != "finished":
        if run.manifest.get("dry"):
            raise PrivacyError(f"{run.path} was dry: it sent nothing that could be attacked")
        how = run.manifest.get("status")
        raise PrivacyError(f"{run.path} is {how}: only a finished run has sent everything")
    scenario = scenario_of(run)
    now, then = digests(scenario, folder, None), run.manifest.get("inputs", {})
    if changed := sorted(name for name in then if now.get(name) != then[name]):
        raise PrivacyError(
            f"{changed[0]} is not what it was when {run.path} was made (or is not in {folder}): "
            "name the folder with the scenario's files by --folder, or run the scenario again"
        )
    landed: list[Payload] = []
    answered: list[tuple[Payload, object]] = []
    trained: dict[str, set[int]] = {}
    sent: dict[str, set[int]] = {}
    with building(scenario):
        sim = Simulation(scenario, folder, callbacks=callbacks)
    trains_all = getattr(scenario.method, "trains", None) == "full"
    most = FEW_ANSWERS if trains_all else MOST_ANSWERS
    for device in sim.devices:
        vars(device)["upload"] = _keeping(device, sim.method, landed, answered, most, sent)
    _note_trained(sim, trained)
    sim.run()
    mark = sim.recorder.digest(digest(resolved(scenario)), sim.method.learner.digest())
    is_same = mark == run.summary.get("digest")
    return Uploads(run, sim, landed, is_same, answered, _rising(trained), _rising(sent))


def _rising(samples: Mapping[str, set[int]]) -> dict[str, np.ndarray]:
    return {name: np.array(sorted(mine), dtype=np.int64) for name, mine in samples.items()}


def _note_trained(sim: Simulation, trained: dict[str, set[int]]) -> None:
    """Note the texts of what the server takes in: records that are kept, answers that count."""

    def note(backbone: str, samples: np.ndarray) -> None:
        trained.setdefault(backbone, set()).update(samples.tolist())

    if isinstance(sim.method, SideTuning):
        keep = sim.method.keep

        def kept(sender: Device | None, backbone: str, data: Any, samples: np.ndarray) -> bool:
            if is_kept := keep(sender, backbone, data, samples):
                note(backbone, samples)
            return is_kept

        vars(sim.method)["keep"] = kept
        return
    counted = sim.server.counted

    def counting(answers: Sequence[Payload], left_out: Collection[int]) -> list[Payload]:
        found = counted(answers, left_out)
        for payload in found:
            note(payload.sender.backbone, payload.samples)
        return found

    vars(sim.server)["counted"] = counting


def _keeping(
    device: Device,
    method: object,
    landed: list[Payload],
    answered: list[tuple[Payload, object]],
    most: int,
    sent: dict[str, set[int]],
) -> Callable[[Payload], Steps[None]]:
    """The device's uploading, which keeps what has arrived whole: of side-tuning all, of split
    learning the states of the device's first round, of methods that ask devices the first answers,
    as models weigh much. It notes whose labels or texts have arrived as they are.
    """
    upload = device.upload
    first_rounds: set[int] = set()

    def kept(payload: Payload) -> Steps[None]:
        task = device.task
        yield from upload(payload)
        for kind in DATA_KINDS & payload.contents.kinds:
            sent.setdefault(kind, set()).update(payload.samples.tolist())
        if isinstance(method, SplitTraining) and "activation" in payload.contents.kinds:
            first_rounds.add(payload.version)
            is_kept = payload.version == min(first_rounds)
        else:
            is_kept = isinstance(method, SideTuning)
        if is_kept:
            landed.append(payload)
        elif task is not None and len(answered) < most:
            answered.append((payload, task.model))

    return kept
