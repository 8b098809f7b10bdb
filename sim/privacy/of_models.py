"""Attacks on what a run has trained, by who holds it: the server, and whom it is delivered to."""

from __future__ import annotations

from typing import Any

import numpy as np

from learning.attacks.extraction import extraction
from learning.attacks.membership import by_loss
from learning.attacks.outcome import AttackOutcome
from sim.methods.federated_peft.learner import FederatedLearner
from sim.methods.side_tuning.centralised import Centralised
from sim.methods.side_tuning.shared import SideTuning
from sim.privacy.measures import PrivacyError
from sim.privacy.uploads import Uploads

NOBODY = np.empty(0, dtype=np.int64)
MOST_TEXTS = 1000
"""Members a backbone, whose losses are looked at."""


def members(uploads: Uploads) -> list[AttackOutcome]:
    """Which texts have gone into the model: those of a smaller loss than texts that have not, held
    by somebody who has the trained model (with the devices' secret, where there is one) and guesses
    texts with their labels.

    PrivacyError for ratings, or a method that trains no model for all.
    """
    sim, rng = uploads.sim, np.random.default_rng(0)
    if sim.task.has_ratings:
        raise PrivacyError("labels are ratings here: attacks on classes do not apply")
    inside: list[np.ndarray] = []
    outside: list[np.ndarray] = []
    for name in _backbones(uploads):
        trained = rng.permutation(uploads.trained.get(name, NOBODY))[:MOST_TEXTS]
        if len(trained):
            inside.append(_losses(uploads, name, np.sort(trained)))
            outside.append(_losses(uploads, name, sim.task.test))
    if not inside or not len(sim.task.test):
        raise PrivacyError("no texts to tell members from")
    return by_loss(np.concatenate(inside), np.stack(outside, axis=1), rng)


def _is_central(uploads: Uploads) -> bool:
    return isinstance(uploads.sim.method, Centralised)


def _backbones(uploads: Uploads) -> list[str]:
    """Those that something was trained for: the server's own, or all of the fleet."""
    method: Any = uploads.sim.method
    return [method.backbone] if _is_central(uploads) else list(uploads.sim.costing.learned)


def _losses(uploads: Uploads, backbone: str, samples: np.ndarray) -> np.ndarray:
    """Of the trained model on texts, [n]: squared error or cross-entropy, as it was trained; of
    responses the mean of their tokens'.
    """
    from scipy.special import log_softmax

    sim = uploads.sim
    labels_N, learner = sim.task.labels[samples], _learner_of(uploads, backbone)
    every_N = np.arange(len(samples))
    if isinstance(sim.method, SideTuning):
        said_NC = learner.tuning.value.predict(backbone, learner.held_out_of(backbone, samples))
        if sim.method.config.loss == "squared-error":
            said_NC = said_NC.copy()
            said_NC[every_N, labels_N] -= 1
            return (said_NC**2).sum(axis=1)
    else:
        from learning.federated.language_model import score_texts
        from learning.federated.local_training import predict

        state = learner.part_of(backbone, learner.state.value)
        tokens = sim.task.tokens(sim.costing.learned[backbone], samples)
        with learner.lent(backbone) as model:
            if sim.task.has_responses:
                nll_N, _, tokens_N = score_texts(model, state, tokens).T
                return nll_N / tokens_N
            said_NC = predict(model, state, tokens)
    return -log_softmax(said_NC, axis=1)[every_N, labels_N]


def _learner_of(uploads: Uploads, backbone: str) -> Any:
    learner: Any = uploads.sim.method.learner
    if isinstance(uploads.sim.method, SideTuning):
        return learner.of(backbone)
    if not isinstance(learner, FederatedLearner) or backbone not in learner.models:
        raise PrivacyError(f"{uploads.run.method} leaves no one model to look at")
    return learner


def stolen(uploads: Uploads) -> list[AttackOutcome]:
    """What the server's side network is worth without the devices' secret: how many texts' classes
    are told by what it says of texts that it was not trained on.

    PrivacyError for another method.
    """
    import torch

    sim = uploads.sim
    if not isinstance(sim.method, SideTuning) or sim.task.has_ratings:
        raise PrivacyError(f"{uploads.run.method} trains no side network for classes")
    said, truth, texts = [], [], []
    for name in _backbones(uploads):
        learner: Any = _learner_of(uploads, name)
        held = learner.held_out_of(name, sim.task.test)
        texts.append(np.arange(len(sim.task.test)))
        with torch.inference_mode():
            out = learner.tuning.value.averaged(torch.from_numpy(held.values), name)
        said.append(out.cpu().numpy())
        truth.append(held.labels)
    rng = np.random.default_rng(0)
    outputs, labels = np.concatenate(said), np.concatenate(truth)
    of_texts = np.concatenate(texts)  # which every backbone reads
    return extraction(outputs, labels, sim.task.classes, rng, texts_N=of_texts)
