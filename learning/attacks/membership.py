"""Was this text trained on? Inferred from its loss under what was trained, such as a side network.

    outcomes = by_loss(member_losses_N, other_losses_M, rng)
    auc = outcomes[0]

Members have smaller losses than other texts as far as training over-fits (Yeom et al., CSF 2018).
A text's loss also says how hard it is: so the mean loss under models trained without it is taken
off (difficulty calibration; Watson et al., ICLR 2022), or its place among such losses is asked for
(LiRA offline; Carlini et al., S&P 2022). Judged as TensorFlow Privacy does, by the area under the
ROC curve and the attacker's advantage max |TPR - FPR|, and as Carlini et al. ask, by the share of
members that are found at few false alarms. Losses are of any kind, one a text.
"""

from __future__ import annotations

import numpy as np

from learning.attacks.outcome import AttackOutcome, interval, resampled

ALARMS = (0.01, 0.1)
"""False-positive rates at which the true-positive rate is reported."""
FEW_MODELS = 64
"""With fewer reference models than these, one deviation serves all texts (Carlini et al. 2022)."""


def by_loss(
    members_N: np.ndarray, others_M: np.ndarray, rng: np.random.Generator
) -> list[AttackOutcome]:
    """A text with a small loss was trained on: losses of members [n] and of other texts [m], or [m,
    models] of the same texts under several.

    First the measures of `judged_scores`, then what one threshold gets that the attacker may well
    know, the members' mean loss: TPR - FPR, 0 by chance (Yeom et al. 2018).
    """
    outcomes = judged_scores("loss", -members_N, -others_M, rng)
    at = members_N.mean()
    gain = _advantage_at(-at, -members_N, -others_M)
    drawn = resampled(lambda a, b: _advantage_at(a.mean(), a, b), rng, -members_N, -others_M)
    n, what = len(members_N) + len(others_M), "TPR - FPR at the members' mean"
    return [*outcomes, AttackOutcome("loss", what, gain, *interval(drawn), 0.0, n)]


def by_calibrated_loss(
    members_N: np.ndarray,
    others_M: np.ndarray,
    members_RN: np.ndarray,
    others_RM: np.ndarray,
    rng: np.random.Generator,
) -> list[AttackOutcome]:
    """A text with a smaller loss than models have that were trained without it was trained on.

    Losses of members [n] and of other texts [m], and the same texts' losses under reference models
    [r, n] and [r, m]; the score is the mean over these less the loss (Watson et al. 2022, equation
    1). ValueError where references are of other texts.
    """
    _require_same_texts(members_N, others_M, members_RN, others_RM)
    scores = members_RN.mean(axis=0) - members_N, others_RM.mean(axis=0) - others_M
    return judged_scores(f"loss calibrated by {len(members_RN)}", *scores, rng)


def by_likelihood(
    members_N: np.ndarray,
    others_M: np.ndarray,
    members_RN: np.ndarray,
    others_RM: np.ndarray,
    rng: np.random.Generator,
) -> list[AttackOutcome]:
    """LiRA offline: how unlikely so small a loss is among models that were trained without the
    text, whose losses are taken as normal.

    As `by_calibrated_loss`, over each text's own deviation where there are `FEW_MODELS` or more
    reference models, else over that of all texts (which then ranks as `by_calibrated_loss` does).
    Give `logits` of cross-entropies, which are more nearly normal, with their sign turned.
    """
    _require_same_texts(members_N, others_M, members_RN, others_RM)
    models = len(members_RN)
    both_RK = np.concatenate([members_RN, others_RM], axis=1)
    mean_K, own_K = both_RK.mean(axis=0), both_RK.std(axis=0)
    spread = own_K if models >= FEW_MODELS else np.sqrt((own_K**2).mean())
    scores_K = (mean_K - np.concatenate([members_N, others_M])) / np.maximum(spread, 1e-12)
    n = len(members_N)
    return judged_scores(f"likelihood under {models} models", scores_K[:n], scores_K[n:], rng)


def logits(cross_entropies: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of the probability p = exp(-loss) of the true class, natural logarithm
    (Carlini et al. 2022, section IV-D).
    """
    losses = np.maximum(cross_entropies.astype(np.float64), 1e-12)
    return -np.log(np.expm1(np.minimum(losses, 700.0)))


# --- measures of scores, the higher the likelier a member


def judged_scores(
    attack: str, members_N: np.ndarray, others_M: np.ndarray, rng: np.random.Generator
) -> list[AttackOutcome]:
    """The area under the ROC curve, the true-positive rates at `ALARMS`, and the largest advantage,
    of scores of members [n] and of other texts [m], or [m, models].

    Intervals are bootstrapped over texts; that of the advantage, which picks the best of all
    thresholds and so is above 0 by chance, is Kolmogorov and Smirnov's band, which holds 0 in 95 %
    of cases where members and others are alike. Raises ValueError where either is missing.
    """
    n, m = len(members_N), len(others_M)
    if not n or not m:
        raise ValueError(f"{attack}: {n} members and {m} other texts cannot be told apart")
    area = auc(members_N, others_M)
    found = [
        AttackOutcome(
            *(attack, "AUC", area, *interval(resampled(auc, rng, members_N, others_M)), 0.5, n + m)
        )
    ]
    for alarms in ALARMS:
        rate = tpr_at(alarms, members_N, others_M)
        drawn = resampled(lambda a, b, at=alarms: tpr_at(at, a, b), rng, members_N, others_M)
        by_chance = (int(alarms * others_M.size) + 1) / (others_M.size + 1)
        what = f"TPR at {alarms:.0%} FPR"
        found.append(AttackOutcome(attack, what, rate, *interval(drawn), by_chance, n + m))
    gain, band = advantage(members_N, others_M), 1.358 * np.sqrt(1 / n + 1 / m)
    low, high = max(0.0, gain - band), min(1.0, gain + band)
    return [*found, AttackOutcome(attack, "advantage", gain, float(low), float(high), 0.0, n + m)]


def auc(members_N: np.ndarray, others_M: np.ndarray) -> float:
    """The probability that a member's score is above another text's, ties counting half: the area
    under the ROC curve (Mann & Whitney 1947).
    """
    from scipy.stats import rankdata

    n, m = members_N.size, others_M.size
    ranks = rankdata(np.concatenate([members_N.ravel(), others_M.ravel()]))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def tpr_at(alarms: float, members_N: np.ndarray, others_M: np.ndarray) -> float:
    """The share of members above the threshold that at most a share `alarms` of others is above."""
    allowed = int(alarms * others_M.size)
    threshold = np.sort(others_M, axis=None)[::-1][min(allowed, others_M.size - 1)]
    return float((members_N > threshold).mean())


def advantage(members_N: np.ndarray, others_M: np.ndarray) -> float:
    """max |TPR - FPR| over all thresholds, as TensorFlow Privacy defines the attacker's advantage
    (Yeom et al. 2018, definition 4, at the best threshold).
    """
    both = (members_N.ravel(), others_M.ravel())
    every = np.concatenate(both)
    tpr, fpr = (
        1 - np.searchsorted(np.sort(scores), every, side="left") / len(scores) for scores in both
    )
    return float(np.abs(tpr - fpr).max())


def _advantage_at(threshold: float, members_N: np.ndarray, others_M: np.ndarray) -> float:
    return float((members_N >= threshold).mean() - (others_M >= threshold).mean())


def _require_same_texts(
    members_N: np.ndarray, others_M: np.ndarray, members_RN: np.ndarray, others_RM: np.ndarray
) -> None:
    shapes = members_RN.shape[1:], others_RM.shape[1:], len(members_RN)
    if shapes != (members_N.shape, others_M.shape, len(others_RM)):
        raise ValueError(
            f"reference losses of shape {members_RN.shape} and {others_RM.shape} are not of "
            f"{len(members_N)} members and {len(others_M)} other texts under the same models"
        )
