"""Which records of a run's payloads are no texts, as far as a server can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from learning.attacks.decoys import Imitated, by_place
from learning.attacks.membership import judged_scores
from learning.attacks.outcome import AttackOutcome
from learning.side.protection import decoy_shares
from sim.privacy.uploads import Vectors

Score = Callable[[np.ndarray], np.ndarray]
"""Of the records of a payload [n, V, d], how much each looks like a decoy."""


def told_apart(
    parts: Mapping[str, Vectors], public: Mapping[str, np.ndarray]
) -> tuple[list[AttackOutcome], np.ndarray]:
    """How well records that are no texts are told by where they lie and, where there are public
    vectors [n, V, d] of every backbone, by what decoys of those look like; and which records the
    server takes for texts by the last of these, bool: those of all texts, then those of all decoys.

    It knows how many decoys a payload has, which is a setting and no secret.
    """
    rng = np.random.default_rng(0)
    ways: dict[str, dict[str, Score]] = {
        "decoys, by where they lie": dict.fromkeys(parts, by_place)
    }
    if len(public) == len(parts):
        ways["decoys, by those of public texts"] = {
            name: _imitated(public[name], part, rng) for name, part in parts.items()
        }
    outcomes, seen = [], _Seen()
    for attack, scores_of in ways.items():
        seen = _Seen()
        for name, part in parts.items():
            seen.look(part, scores_of[name])
        scores = (np.concatenate(seen.decoys), np.concatenate(seen.texts))
        [area, *_] = judged_scores(attack, *scores, rng)
        outcomes.append(replace(area, what="decoys told, AUC"))
    return outcomes, np.concatenate([*seen.texts_taken, *seen.decoys_taken])


class _Seen:
    """By backbone, how much texts and decoys look like decoys, and what is taken for a text."""

    def __init__(self) -> None:
        self.texts, self.decoys = list[np.ndarray](), list[np.ndarray]()
        self.texts_taken, self.decoys_taken = list[np.ndarray](), list[np.ndarray]()

    def look(self, part: Vectors, scores_of: Score) -> None:
        """At the payloads of one backbone: of each, as many as there are texts in it."""
        n = len(part.samples)
        vectors = np.concatenate([part.vectors, part.decoys.vectors])
        payloads = np.concatenate([part.payloads, part.decoys.payloads])
        scores, taken = np.zeros(len(vectors)), np.zeros(len(vectors), dtype=bool)
        for number in np.unique(part.payloads):
            rows = np.flatnonzero(payloads == number)
            scores[rows] = scores_of(vectors[rows])
            least = np.argsort(scores[rows], kind="stable")[: np.count_nonzero(rows < n)]
            taken[rows[least]] = True
        self.texts.append(scores[:n])
        self.decoys.append(scores[n:])
        self.texts_taken.append(taken[:n])
        self.decoys_taken.append(taken[n:])


def _imitated(public: np.ndarray, part: Vectors, rng: np.random.Generator) -> Score:
    texts = np.bincount(part.payloads)
    decoys = np.bincount(part.decoys.payloads, minlength=len(texts))
    sizes = [*zip(texts.tolist(), decoys.tolist(), strict=True)]
    return Imitated.fit(public, *max(sizes, key=sizes.count), decoy_shares, rng).scores
