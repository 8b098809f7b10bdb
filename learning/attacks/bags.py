"""How many of a text's tokens a guess has found, whatever their order: precision, recall and F1 of
sets of token ids, as attacks on embeddings are judged (Song & Raghunathan, CCS 2020, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from learning.attacks.outcome import AttackOutcome, of_mean

MEASURES = ("precision", "recall", "F1")


def commonest(
    public_ids: Iterable[np.ndarray], ignore: Sequence[int] = (), at_least: int = 1
) -> np.ndarray:
    """The token ids that stand in `at_least` so many of these texts, those in most texts first; but
    for the ids to `ignore`, such as the marks around every text. Equals by their ids.
    """
    texts_with = Counter(token for ids in public_ids for token in bag(ids, ignore))
    ranked = sorted(texts_with.items(), key=lambda item: (-item[1], item[0]))
    return np.array([token for token, texts in ranked if texts >= at_least], dtype=np.int64)


def bag(ids: np.ndarray, ignore: Sequence[int] = ()) -> set[int]:
    """The different token ids of a text but those to `ignore`."""
    return set(np.asarray(ids).tolist()) - set(ignore)


def measured(guess: set[int], truth: set[int]) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean F1; 0 where nothing is guessed."""
    right = len(guess & truth)
    return (
        right / len(guess) if guess else 0.0,
        right / len(truth) if truth else 0.0,
        2 * right / (len(guess) + len(truth)) if right else 0.0,
    )


def blind_guess(public_ids: Sequence[np.ndarray], ignore: Sequence[int] = ()) -> np.ndarray:
    """What to guess of every text, whatever it be, by who has texts of the kind alone: as many of
    the `commonest` tokens as have the best mean F1 on those.
    """
    common = commonest(public_ids, ignore)
    bags = [truth for ids in public_ids if (truth := bag(ids, ignore))]
    if not bags:
        return common
    rank = {token: place for place, token in enumerate(common.tolist())}
    hits_NK = np.zeros((len(bags), len(common)))
    for row, truth in enumerate(bags):
        hits_NK[row, [rank[token] for token in truth]] = 1
    sizes_NK = np.arange(1, len(common) + 1) + np.array([[len(truth)] for truth in bags])
    f1_K = (2 * hits_NK.cumsum(axis=1) / sizes_NK).mean(axis=0)
    return common[: f1_K.argmax() + 1]


def judged_tokens(
    attack: str,
    guesses: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    blind: np.ndarray,
    rng: np.random.Generator,
    ignore: Sequence[int] = (),
) -> list[AttackOutcome]:
    """Precision, recall and F1 of each text's guessed token ids, the mean over texts, with a
    bootstrap over texts. Chance is to guess the same of every text (`blind_guess`).

    Texts without a token but those to `ignore` are left out.
    """
    pairs = [(bag(g, ignore), bag(t, ignore)) for g, t in zip(guesses, truths, strict=True)]
    pairs = [(guess, truth) for guess, truth in pairs if truth]
    found_N3 = np.array([measured(guess, truth) for guess, truth in pairs]).reshape(-1, 3)
    same = set(blind.tolist())
    by_chance_N3 = np.array([measured(same, truth) for _, truth in pairs]).reshape(-1, 3)
    return [
        of_mean(attack, f"tokens, {what}", found_N, by_chance_N.mean() if pairs else 0.0, rng)
        for what, found_N, by_chance_N in zip(MEASURES, found_N3.T, by_chance_N3.T, strict=True)
    ]
