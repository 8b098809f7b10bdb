"""What the server of a finished run was sent, number by number.

A run keeps no payloads: they are large, and follow from its scenario and seed. So the run is
simulated again and its payloads are kept; its digest tells whether it is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sim.kernel.device import Payload
from sim.kernel.learned import with_values
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.reference_learners import SeparateLearner, ServerLearner
from sim.results.run import Run, open_run
from sim.scenario.file import digest, resolved
from sim.scenario.named_files import digests
from sim.scenario.schema import Scenario
from sim.simulation import RunCallbacks, Simulation, building


class PrivacyError(ValueError):
    """A run cannot be looked at as asked; the message says why."""


@dataclass(frozen=True)
class Vectors:
    """What devices of one backbone sent, each text once: sample numbers [n], vectors [n, V, d] of
    `layers` and targets [n, K] as they arrived.
    """

    samples: np.ndarray
    layers: tuple[int, ...]
    vectors: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Uploads:
    """A run that was simulated again, and all payloads that its devices made.

    `is_same`: whether it came to the same digest.
    """

    run: Run
    sim: Simulation
    payloads: list[Payload]
    is_same: bool

    @property
    def labels(self) -> np.ndarray:
        """The truth, by sample number: no server has it; attacks are judged by it."""
        return self.sim.task.labels

    @property
    def sends_labels(self) -> bool:
        """Whether labels go along with activations as they are."""
        config: Any = self.sim.scenario.method
        return config.loss == "cross-entropy"

    def learner_of(self, backbone: str) -> SideTuningLearner:
        """What learned from this backbone's records."""
        learner: Any = self.sim.method.learner
        return learner.of(backbone)

    def vectors(self) -> dict[str, Vectors]:
        """By backbone, what single vectors and targets were uploaded; PrivacyError for a method
        that uploads something else.
        """
        from learning.side.activations import decode

        learner = self.sim.method.learner
        sends_vectors = isinstance(learner, SideTuningLearner | SeparateLearner)
        if not sends_vectors or isinstance(learner, ServerLearner):
            raise PrivacyError(f"{self.run.method} uploads no activations with differences")
        parts: dict[str, list[Any]] = {}
        for payload in self.payloads:
            data = with_values(payload.data)
            if not isinstance(data, bytes) or not data:
                continue
            try:
                name = payload.sender.backbone
                batch = decode(data, learner.of(name).shape.backbone_widths[name])
                parts.setdefault(name, []).append(batch)
            except KeyError:
                raise PrivacyError(f"{self.run.method} uploads matrices here") from None
        found = {}
        for name, received in sorted(parts.items()):
            samples = np.concatenate([part.samples for part in received])
            _, first = np.unique(samples, return_index=True)  # who sends a text again adds nothing
            found[name] = Vectors(
                samples[first],
                tuple(learner.of(name).vectors[name]),
                np.concatenate([part.values for part in received])[first],
                np.concatenate([part.targets for part in received])[first],
            )
        return found


def scenario_of(run: Run) -> Scenario:
    """The scenario that a run was made from, as its manifest has it. PrivacyError where this
    version does not know it.
    """
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
        kind = "dry" if run.manifest.get("dry") else run.manifest.get("status")
        raise PrivacyError(f"{run.path} is a {kind} run: only a finished one has sent everything")
    scenario = scenario_of(run)
    now, then = digests(scenario, folder, None), run.manifest.get("inputs", {})
    if changed := sorted(name for name in then if now.get(name) != then[name]):
        raise PrivacyError(
            f"{changed[0]} is not what it was when {run.path} was made (or is not in {folder}): "
            "name the folder with the scenario's files by --folder, or run the scenario again"
        )
    made: list[Payload] = []
    with building(scenario):
        sim = Simulation(scenario, folder, callbacks=callbacks)
    for device in sim.devices:
        vars(device)["payload"] = _keeping(device.payload, made)
    sim.run()
    mark = sim.recorder.digest(digest(resolved(scenario)), sim.method.learner.digest())
    return Uploads(run, sim, made, mark == run.summary.get("digest"))


def _keeping(make: Callable[..., Payload], made: list[Payload]) -> Callable[..., Payload]:
    def kept(*what: Any) -> Payload:
        made.append(make(*what))
        return made[-1]

    return kept
