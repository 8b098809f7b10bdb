"""What the server holds, used by somebody without the devices' secret: how well a side network's
outputs, in whatever space they live, serve as predictions of classes.

    outcomes = extraction(outputs_NK, labels_N, classes, rng)
    print(best(outcomes))

A side network that was trained on codes of labels predicts codes. Whoever holds it can still take
it for a classifier: read outputs as classes, if they are as long as there are classes; find which
outputs are alike, and name these groups; or fit a small classifier to the outputs of a few labelled
texts, as in model extraction by a student (Tramer et al., USENIX Security 2016) and the model
completion attack of Fu et al. (USENIX Security 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from learning.attacks.label_recovery import KNOWN, by_clustering, by_known_labels, by_largest
from learning.attacks.outcome import AttackOutcome


def extraction(
    outputs_NK: np.ndarray,
    labels_N: np.ndarray,
    classes: int,
    rng: np.random.Generator,
    known_a_class: Sequence[int] = KNOWN,
    priors_C: np.ndarray | None = None,
    texts_N: np.ndarray | None = None,
) -> list[AttackOutcome]:
    """How many texts' classes are told by the server's outputs for them [n, any length], of texts
    that it was not trained on; the accuracy of what somebody makes of the stolen network.

    Directly by the largest output, where there is one a class; by grouping outputs and naming the
    groups by size (against `priors_C`) or by so many known labels a class; by a linear probe and by
    the nearest output of so many. Chance is the share of the commonest class; compare with the
    accuracy that devices have. Where there are several outputs of each text, as many of each,
    `texts_N` [n] says which are of one.
    """
    given = (outputs_NK, labels_N)
    direct = [by_largest(*given, texts_N)] if outputs_NK.shape[1] == classes else []
    grouped = by_clustering(*given, classes, rng, known_a_class, priors_C, texts_N=texts_N)
    learned = by_known_labels(*given, rng, known_a_class, texts_N)
    return [
        replace(one, attack=f"stolen outputs, {one.attack}", what="accuracy")
        for one in (*direct, *grouped, *learned)
        if one.what == "labels"
    ]


def best(outcomes: Sequence[AttackOutcome]) -> AttackOutcome:
    """The outcome whose interval begins highest above chance. Being the best of several it flatters
    the attacker a little.
    """
    return max(outcomes, key=lambda one: one.low - one.chance)
