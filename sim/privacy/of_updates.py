"""Attacks on what federated baselines send: how training on a device has moved the server's model.

A device's local training is many steps on all its texts, by AdamW as a rule, so that no single
gradient is known. What is closed form is left: the head's bias moves towards the labels that a
device has, and a trained table of embeddings moves in the rows of the tokens that it has read.
Matching gradients (DLG) needs a step on a few texts (`learning.attacks.gradient_inversion`,
`benchmarks/attacks.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.attacks.bags import blind_guess, judged_tokens
from learning.attacks.gradient_inversion import judged_labels, label_counts
from learning.attacks.outcome import AttackOutcome
from sim.kernel.learned import with_values
from sim.methods.federated_peft.fed_async import local_delta
from sim.methods.federated_peft.shared import FederatedPeft
from sim.privacy.measures import PrivacyError
from sim.privacy.uploads import Uploads

if TYPE_CHECKING:
    from torch import Tensor

MOVED = 10.0
"""A row that moved so many times as far as the median one was read; weight decay moves all."""


def changes(uploads: Uploads) -> Iterator[tuple[np.ndarray, str, Mapping[str, Tensor]]]:
    """Of each answer that is kept its device's texts, its backbone, and how far it has moved the
    part of the model that it was asked with.

    PrivacyError for a method whose devices do not train and send a part of the server's model.
    """
    method: Any = uploads.sim.method
    if not isinstance(method, FederatedPeft) or not uploads.answered:
        raise PrivacyError(f"{uploads.run.method} sends no trained part of a model")
    learner = method.learner
    for payload, before in uploads.answered:
        model, sent = method.model_of(payload.sender), with_values(payload.data)
        asked: Any = with_values(before)
        if not isinstance(sent, bytes) or not isinstance(asked, Mapping):
            raise PrivacyError(f"what {uploads.run.method} sends is no part of one model")
        [after, *_] = learner.received(asked, model, sent)
        own = learner.part_of(model, asked)
        is_change = method.client_update is local_delta or method.sends_coded
        moved = after if is_change else {name: after[name] - own[name] for name in after}
        yield payload.samples, payload.sender.backbone, moved


def labels(uploads: Uploads) -> list[AttackOutcome]:
    """How many of each label a device has, by how its training has moved the head's bias: the
    label that moved it furthest up is the most frequent.
    """
    task = uploads.sim.task
    guesses, truths = [], []
    for samples, _, moved in changes(uploads):
        biases = [
            t for n, t in moved.items() if n.startswith("head.") and t.shape == (task.classes,)
        ]
        if not biases:
            raise PrivacyError("no bias of a head is trained, by which labels could be counted")
        down_C = -biases[-1].double()
        largest = float(down_C.abs().max()) or 1.0
        guesses.append(label_counts(down_C / (largest * task.classes), len(samples)))
        truths.append(np.bincount(task.labels[samples], minlength=task.classes))
    rng = np.random.default_rng(0)
    attack = "counting by how the head's bias moved"
    return [judged_labels(attack, np.array(guesses), np.array(truths), rng)]


def texts(uploads: Uploads) -> list[AttackOutcome]:
    """Which tokens a device's texts have, by which rows of a trained table of embeddings moved."""
    learner: Any = uploads.sim.method.learner
    task, spec = uploads.sim.task, uploads.sim.costing.learned
    guesses, truths, name = [], [], ""
    for samples, name, moved in changes(uploads):
        tables = [t for n, t in moved.items() if n.endswith("word_embeddings.weight")]
        tables += [t for n, t in moved.items() if n.endswith(("embed_tokens.weight", "wte.weight"))]
        if not tables:
            raise PrivacyError(
                "no table of embeddings is trained, and of a whole local training no other way to "
                "the texts is known here"
            )
        distance_V = tables[0].abs().amax(dim=1).cpu().numpy()
        guesses.append(np.flatnonzero(distance_V > MOVED * np.median(distance_V)))
        truths.append(np.concatenate(learner.tokens(name, samples).ids))
    others = np.setdiff1d(np.arange(len(task.labels)), np.concatenate(task.parts))
    ids = task.tokens(spec[name], others).ids
    size = max(1, len(task.labels[np.concatenate(task.parts)]) // len(task.parts))
    # as many texts together as a device has, on the average
    alike = [ids[at : at + size] for at in range(0, max(1, len(ids) - size + 1), size)]
    blind = blind_guess([np.concatenate(several) for several in alike if several])
    attack = "rows of the table of embeddings that moved"
    return judged_tokens(attack, guesses, truths, blind, np.random.default_rng(0))
