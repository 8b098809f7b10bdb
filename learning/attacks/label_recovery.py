"""Labels out of what was uploaded: from prediction differences alone, from what the server can
compute itself, from which differences or activations are alike, and from a few labels known before.

    outcomes = [by_largest(deltas_NC, labels_N), *by_clustering(deltas_NC, labels_N, 6, rng)]

delta_y = one_hot(y) - y_b has its one positive component at y, so its largest is the label
(docs/pae_mobillm.md); the sign of the last layer's gradient, which is the same difference, gives
labels away in iDLG (Zhao et al., arXiv 2001.02610). Codes of labels in a space of their own hide
the names of the classes, not that equal labels have equal codes: so grouping and naming are judged
apart. A server that holds a few labelled texts needs no codes at all (Fu et al., Label Inference
Attacks Against Vertical Federated Learning, USENIX Security 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from learning.attacks.outcome import AttackOutcome, interval, majority, of_share, resampled
from learning.attacks.standards import standardised, unit

KNOWN = (1, 10)
"""Labels a class that the server knows."""


def by_largest(
    deltas_NC: np.ndarray, labels_N: np.ndarray, texts_N: np.ndarray | None = None
) -> AttackOutcome:
    """The largest component of a difference [n, classes] is the label; `texts_N` as of `of_share`.

    Raises ValueError where differences are not as long as there are classes.
    """
    _require_components(deltas_NC, labels_N)
    hits_N = deltas_NC.argmax(axis=1) == labels_N
    return of_share("largest component", "labels", hits_N, majority(labels_N), texts_N)


def by_sign(deltas_NC: np.ndarray, labels_N: np.ndarray) -> AttackOutcome:
    """The only positive component of a difference [n, classes] is the label; where there is none,
    or another one, the text counts as missed. ValueError as `by_largest`.
    """
    _require_components(deltas_NC, labels_N)
    is_positive_NC = deltas_NC > 0
    hits_N = (is_positive_NC.sum(axis=1) == 1) & (is_positive_NC.argmax(axis=1) == labels_N)
    return of_share("only positive component", "labels", hits_N, majority(labels_N))


def by_backbone_knowledge(
    deltas_NC: np.ndarray, y_b_NC: np.ndarray, labels_N: np.ndarray
) -> AttackOutcome:
    """Where the server can compute the backbone's own prediction y_b [n, classes], delta_y + y_b is
    the one-hot label itself. ValueError as `by_largest`.
    """
    _require_components(deltas_NC, labels_N)
    hits_N = (deltas_NC + y_b_NC).argmax(axis=1) == labels_N
    return of_share("difference plus known y_b", "labels", hits_N, majority(labels_N))


def by_clustering(
    values: np.ndarray,
    labels_N: np.ndarray,
    classes: int,
    rng: np.random.Generator,
    known_a_class: Sequence[int] = KNOWN,
    priors_C: np.ndarray | None = None,
    others: np.ndarray | None = None,
    more_groups: int = 0,
    counted: np.ndarray | None = None,
    texts_N: np.ndarray | None = None,
) -> list[AttackOutcome]:
    """Texts whose values are alike have one label: groups first, then names for them.

    `values` [n, ...] are differences, label codes of any length or activations. Groups are equal
    values, if there are no more of these than classes, else k-means (`groups_of`). The outcomes:
    the adjusted Rand index of the groups (chance 0); names by the groups' sizes, no label being
    known, against the shares of the classes `priors_C` [classes] (those of these very labels where
    none are given, which knows the most), on the average over resampled texts, as one naming is
    right or wrong for whole classes; and names by a vote of so many known labels a class, of
    the nearest known text in groups without one, judged on the other texts.

    `others` [m, ...] are values of records that are no texts: they are grouped along, into so many
    groups more, and count in the groups' sizes, but for those that `counted` [n + m] has as no
    texts. Of a text that has several values `texts_N` [n] says which it is: it is known or drawn as
    a whole.
    """
    mixed = values if others is None or not len(others) else np.concatenate([values, others])
    groups_M = groups_of(mixed, classes + more_groups, rng)
    counted = np.ones(len(mixed), dtype=bool) if counted is None else counted
    groups_N = groups_M[: len(values)]
    sizes_G = np.bincount(groups_M[counted], minlength=groups_M.max() + 1) / max(1, counted.sum())
    flat_NK = values.reshape(len(values), -1)
    if priors_C is None:
        priors_C = np.bincount(labels_N, minlength=classes) / len(labels_N)
    rows_of = _rows_of(len(labels_N) if texts_N is None else texts_N)
    n = len(rows_of)
    grouped = judged_groups("clustering", groups_N, labels_N, rng)

    def name_by_size(texts: np.ndarray) -> float:
        rows = rows_of[texts].ravel()
        sizes = None if mixed is values else sizes_G
        return _named_by_size(groups_N[rows], labels_N[rows], priors_C, rng, sizes)

    named = resampled(name_by_size, rng, np.arange(n))
    chance = majority(labels_N)
    outcomes = [
        grouped,
        AttackOutcome(
            "clustering, named by size", "labels", float(named.mean()), *interval(named), chance, n
        ),
    ]
    for known in known_a_class:
        is_known_N = drawn(labels_N, known, rng, texts_N)
        guess_N = _named_by_known(flat_NK, groups_N, labels_N, is_known_N)
        attack = f"clustering, named by {known} known a class"
        judged = _judged(attack, guess_N, labels_N, ~is_known_N, texts_N)
        outcomes.append(replace(judged, known=known))
    return outcomes


def by_sentences(
    values: np.ndarray, zero_shot_NC: np.ndarray, labels_N: np.ndarray, rng: np.random.Generator
) -> list[AttackOutcome]:
    """Without any known label, by a server that knows the backbone and a sentence about each class:
    what it predicts zero-shot from the uploaded vectors [n, classes], alone; and as names for the
    groups of `by_clustering`, each named so that most of its texts agree, which needs no more than
    differences that are alike.
    """
    from scipy.optimize import linear_sum_assignment

    classes = zero_shot_NC.shape[1]
    groups_N, guess_N = groups_of(values, classes, rng), zero_shot_NC.argmax(axis=1)
    agreed_GC = np.zeros((groups_N.max() + 1, classes))
    np.add.at(agreed_GC, (groups_N, guess_N), 1)
    groups, names = linear_sum_assignment(-agreed_GC)
    name_G = np.full(len(agreed_GC), -1)
    name_G[groups] = names
    every_N = np.ones(len(labels_N), dtype=bool)
    return [
        _judged("zero-shot, by sentences about the classes", guess_N, labels_N, every_N),
        _judged("clustering, named zero-shot", name_G[groups_N], labels_N, every_N),
    ]


def by_known_labels(
    features: np.ndarray,
    labels_N: np.ndarray,
    rng: np.random.Generator,
    known_a_class: Sequence[int] = KNOWN,
    texts_N: np.ndarray | None = None,
) -> list[AttackOutcome]:
    """A classifier of uploaded activations or differences [n, ...], learned from so many texts a
    class whose labels the server knows: logistic regression, and the nearest known text by cosine;
    `texts_N` as of `by_clustering`.

    Judged on the other texts; with no known label there is nothing to learn from (`by_clustering`).
    """
    x_NF = standardised(features.reshape(len(features), -1))
    outcomes = []
    for known in known_a_class:
        is_known_N = drawn(labels_N, known, rng, texts_N)
        for name, guess in (("logistic regression", _logistic), ("nearest text", _nearest)):
            guess_N = guess(x_NF[is_known_N], labels_N[is_known_N], x_NF)
            attack = f"{name}, {known} known a class"
            judged = _judged(attack, guess_N, labels_N, ~is_known_N, texts_N)
            outcomes.append(replace(judged, known=known))
    return outcomes


def groups_of(values: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """The group of each text, [n] from 0 on: those of equal values [n, ...] where these are no more
    than classes (a constant y_b leaves one difference a class), else k-means with ten starts.
    """
    flat_NK = np.ascontiguousarray(values.reshape(len(values), -1))
    different, same_N = np.unique(flat_NK, axis=0, return_inverse=True)
    if len(different) <= classes:
        return same_N.reshape(-1)
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    seed = int(rng.integers(1 << 31))
    with threadpool_limits(1):  # threads would add in another order each time
        return KMeans(classes, n_init=10, random_state=seed).fit_predict(standardised(flat_NK))


def judged_groups(
    attack: str, groups_N: np.ndarray, labels_N: np.ndarray, rng: np.random.Generator
) -> AttackOutcome:
    """The adjusted Rand index of groups with labels, bootstrapped over texts; chance is 0."""
    n, every = len(labels_N), np.arange(len(labels_N))
    drawn_again = resampled(
        lambda rows: adjusted_rand(groups_N, labels_N, np.bincount(rows, minlength=n)), rng, every
    )
    index, what = adjusted_rand(groups_N, labels_N), "grouping (adjusted Rand index)"
    return AttackOutcome(attack, what, index, *interval(drawn_again), 0.0, n)


def adjusted_rand(
    groups_N: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None
) -> float:
    """How far pairs of texts are together or apart in both, 1 at best and 0 on the average by
    chance (Hubert & Arabie, Journal of Classification 2, 1985).

    Weights count a text several times, as a bootstrap does; a text is no pair with itself.
    """
    w_N = np.ones(len(labels_N)) if weights_N is None else weights_N.astype(np.float64)
    cells_N = groups_N.astype(np.int64) * (int(labels_N.max()) + 1) + labels_N

    def pairs(of_N: np.ndarray) -> float:
        sums, squares = np.bincount(of_N, w_N), np.bincount(of_N, w_N**2)
        return float((sums**2 - squares).sum()) / 2

    both, grouped, labelled = pairs(cells_N), pairs(groups_N), pairs(labels_N)
    every = pairs(np.zeros(len(w_N), dtype=np.int64))
    expected = grouped * labelled / every if every else 0.0
    most = (grouped + labelled) / 2
    return (both - expected) / (most - expected) if most != expected else 1.0


def drawn(
    labels_N: np.ndarray,
    a_class: int,
    rng: np.random.Generator,
    texts_N: np.ndarray | None = None,
) -> np.ndarray:
    """Which texts' labels are known, bool [n]: so many of each class, but of a small class one, or
    half of it, so that some are left to be judged on; every row of a text together.

    Raises ValueError where that is no text, or every one.
    """
    if texts_N is not None:
        _, first, rows = np.unique(texts_N, return_index=True, return_inverse=True)
        return drawn(labels_N[first], a_class, rng)[rows]
    is_known_N = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        of_class = rng.permutation(np.flatnonzero(labels_N == label))
        is_known_N[of_class[: min(a_class, max(1, len(of_class) // 2))]] = True
    if a_class < 1 or is_known_N.all():
        raise ValueError(
            f"{a_class} known labels a class are {is_known_N.sum()} of {len(labels_N)} texts: "
            "an attack by known labels needs some, and others to be judged on"
        )
    return is_known_N


def _require_components(deltas_NC: np.ndarray, labels_N: np.ndarray) -> None:
    if deltas_NC.ndim != 2 or deltas_NC.shape[1] <= labels_N.max():
        raise ValueError(
            f"differences of shape {deltas_NC.shape} have no component for each of "
            f"{labels_N.max() + 1} classes: try by_clustering or by_known_labels"
        )


def _rows_of(texts: int | np.ndarray) -> np.ndarray:
    """The rows of each text [texts, rows], of which all have as many."""
    if isinstance(texts, int):
        return np.arange(texts)[:, None]
    return np.argsort(texts, kind="stable").reshape(len(np.unique(texts)), -1)


def _judged(
    attack: str,
    guess_N: np.ndarray,
    labels_N: np.ndarray,
    is_judged_N: np.ndarray,
    texts_N: np.ndarray | None = None,
) -> AttackOutcome:
    labels_N, texts_N = labels_N[is_judged_N], None if texts_N is None else texts_N[is_judged_N]
    hits_N = guess_N[is_judged_N] == labels_N
    return of_share(attack, "labels", hits_N, majority(labels_N), texts_N)


def _named_by_size(
    groups_N: np.ndarray,
    labels_N: np.ndarray,
    priors_C: np.ndarray,
    rng: np.random.Generator,
    sizes_G: np.ndarray | None = None,
) -> float:
    """The share of texts that is named right if groups get the names of classes as large as they
    are, with the least sum of squared differences in size; where two do as well, one at random.
    """
    from scipy.optimize import linear_sum_assignment

    if sizes_G is None:
        sizes_G = np.bincount(groups_N) / len(groups_N)
    priors_C = priors_C + rng.normal(0, 1e-9, len(priors_C))
    groups, names = linear_sum_assignment((sizes_G[:, None] - priors_C) ** 2)
    name_G = np.full(len(sizes_G), -1)
    name_G[groups] = names
    return float((name_G[groups_N] == labels_N).mean())


def _named_by_known(
    flat_NK: np.ndarray, groups_N: np.ndarray, labels_N: np.ndarray, is_known_N: np.ndarray
) -> np.ndarray:
    x_NK = standardised(flat_NK)
    guess_N = _nearest(x_NK[is_known_N], labels_N[is_known_N], x_NK)
    for group in np.unique(groups_N[is_known_N]):
        in_group_N = groups_N == group
        guess_N[in_group_N] = np.bincount(labels_N[in_group_N & is_known_N]).argmax()
    return guess_N


def _logistic(known_KF: np.ndarray, labels_K: np.ndarray, x_NF: np.ndarray) -> np.ndarray:
    if len(np.unique(labels_K)) == 1:
        return np.full(len(x_NF), labels_K[0])
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(known_KF, labels_K).predict(x_NF)


def _nearest(known_KF: np.ndarray, labels_K: np.ndarray, x_NF: np.ndarray) -> np.ndarray:
    return labels_K[(unit(x_NF) @ unit(known_KF).T).argmax(axis=1)]
