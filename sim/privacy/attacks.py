"""Attacks on what the server of a run has seen, each a function of its uploads (`uploads_of`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learning.attacks import label_recovery
from learning.attacks.bags import judged_tokens
from learning.attacks.outcome import AttackOutcome
from learning.attacks.text_recovery import Inverter, identify
from learning.side.prediction_difference import VERBALISERS, backbone_prediction
from sim.privacy.uploads import PrivacyError, Uploads

PUBLIC, ATTACKED = 600, 200
"""Texts that the attacker has, and those whose tokens are guessed, a backbone."""


def labels(uploads: Uploads) -> list[AttackOutcome]:
    """Recovery of labels from what goes along with activations: by the largest component, by what a
    server that knows the backbone computes itself, by which are alike, and from a few known labels;
    from the uploaded activations alone, too, which need no difference at all.

    PrivacyError for ratings, or a method that uploads no differences.
    """
    if uploads.sim.task.has_ratings:
        raise PrivacyError("labels are ratings here: attacks on classes do not apply")
    rng, parts = np.random.default_rng(0), uploads.vectors()
    classes = uploads.sim.task.classes
    truth_N = np.concatenate([uploads.labels[part.samples] for part in parts.values()])
    targets_NK = np.concatenate([part.targets for part in parts.values()])
    found = []
    if targets_NK.shape[1] == classes:
        found += [label_recovery.by_largest(targets_NK, truth_N)]
        if (y_b_NC := _known_predictions(uploads)) is not None:
            found += [label_recovery.by_backbone_knowledge(targets_NK, y_b_NC, truth_N)]
    found += label_recovery.by_clustering(targets_NK, truth_N, classes, rng)
    widest = max(parts.values(), key=lambda part: len(part.samples))
    found += label_recovery.by_known_labels(
        widest.vectors, uploads.labels[widest.samples], np.random.default_rng(0)
    )
    return found


def _known_predictions(uploads: Uploads) -> np.ndarray | None:
    """The backbones' own predictions as a server that knows them computes them from what is
    uploaded; None where that needs more than the last uploaded layer.
    """
    config, learner = uploads.sim.scenario.method, uploads.sim.method.learner
    kind = config.backbone_prediction
    if kind in VERBALISERS or kind == "own-head":
        return None
    found = []
    for name, part in uploads.vectors().items():
        found.append(
            backbone_prediction(
                kind,
                part.vectors[:, -1],
                uploads.sim.task.classes,
                learner._classes.get(name),
                learner._head_stream(name),
                learner._heads.get(name),
            )
        )
    return np.concatenate(found)


def texts(uploads: Uploads, public: int = PUBLIC, attacked: int = ATTACKED) -> list[AttackOutcome]:
    """Recovery of texts from activations by an attacker who has so many other texts of the kind and
    runs the backbone on them: which tokens stand in a text, of each uploaded layer and of all
    together, and which of the public texts and its own an upload is.

    PrivacyError for data known by size alone, or a method that uploads no activations.
    """
    task, found = uploads.sim.task, list[AttackOutcome]()
    if task.texts is None:
        raise PrivacyError("the data are known by their size alone: there are no texts to recover")
    for name, part in uploads.vectors().items():
        rng = np.random.default_rng(0)
        spec = uploads.sim.costing.learned[name]
        mine = rng.permutation(len(part.samples))[:attacked]
        others = np.setdiff1d(np.arange(len(task.labels)), np.concatenate(task.parts))
        known = rng.permutation(others)[:public]
        if len(known) < 50:
            raise PrivacyError(f"{len(known)} texts are on no device: an attacker needs 50 or more")
        theirs = _computed(uploads, name, known)[:, list(part.layers)]
        known_ids = task.tokens(spec, known).ids
        own_ids = task.tokens(spec, part.samples[mine]).ids
        marks = _marks(own_ids)
        for what, places in [
            *((f"layer {layer}", [place]) for place, layer in enumerate(part.layers)),
            ("all layers", list(range(len(part.layers)))),
        ]:
            inverter = Inverter.fit(theirs[:, places], known_ids, marks)
            guesses = inverter.guess(part.vectors[mine][:, places])
            attack = f"tokens of {name}, {what}"
            found += judged_tokens(attack, guesses, own_ids, inverter.words_V, rng, marks)
        own = _computed(uploads, name, part.samples[mine])[:, list(part.layers)]
        candidates = np.concatenate([own, theirs])
        found += [
            _renamed(outcome, f"{outcome.attack}, {name}")
            for outcome in identify(part.vectors[mine], candidates, np.arange(len(mine)))
        ]
    return found


def _renamed(outcome: AttackOutcome, attack: str) -> AttackOutcome:
    from dataclasses import replace

    return replace(outcome, attack=attack)


def _marks(ids: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Tokens that every text has, which say nothing of it."""
    common = set(ids[0].tolist()).intersection(*(one.tolist() for one in ids))
    return tuple(sorted(common))


def _computed(uploads: Uploads, backbone: str, samples: np.ndarray) -> np.ndarray:
    """All layers' vectors of texts, as whoever has the backbone computes them: [n, layers + 1, d]."""
    from learning.side.activation_store import ActivationStore
    from learning.side.readouts import pooled_activations

    sim = uploads.sim
    spec = sim.costing.learned[backbone]
    read = pooled_activations(
        spec,
        sim.task.tokens(spec, samples),
        sim.scenario.method.readout,
        ActivationStore(sim.store_folder),
        lambda compute, pieces: (compute(*piece) for piece in pieces),
    )
    return read.take()
