"""Membership inference against values by hand, closed forms of normal losses, and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, norm
from sklearn.metrics import roc_auc_score, roc_curve

from learning.attacks.membership import (
    advantage,
    auc,
    by_calibrated_loss,
    by_likelihood,
    by_loss,
    logits,
    tpr_at,
)


def test_a_worked_example():
    """Scores of members 4, 3, 1 and of others 3, 2, 0, 0. Of 12 pairs the member is above in 4 + 3
    + 2 and even in one: AUC 9.5 / 12. At thresholds 4, 3, 2, 1, 0 TPR is 1/3, 2/3, 2/3, 1, 1 and
    FPR 0, 1/4, 1/2, 1/2, 1: the advantage is 1 - 1/2. Above 3, with no false alarm, is one member;
    above 2, with one of four, are two.
    """
    members, others = np.array([4.0, 3.0, 1.0]), np.array([3.0, 2.0, 0.0, 0.0])
    assert auc(members, others) == pytest.approx(9.5 / 12)
    assert advantage(members, others) == pytest.approx(1 / 2)
    assert tpr_at(0.1, members, others) == pytest.approx(1 / 3)
    assert tpr_at(0.25, members, others) == pytest.approx(2 / 3)
    found = {one.what: one.success for one in by_loss(-members, -others, np.random.default_rng(0))}
    # the members' mean is 8/3: two of three members and one of four others are above
    assert found["TPR - FPR at the members' mean"] == pytest.approx(2 / 3 - 1 / 4)


@pytest.mark.parametrize("seed", range(3))
def test_areas_and_advantages_are_those_of_the_roc_curve(seed):
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 9, 40) + 1.0, rng.integers(0, 9, 60) * 1.0
    is_member, scores = np.arange(100) < 40, np.concatenate([members, others])
    assert auc(members, others) == pytest.approx(roc_auc_score(is_member, scores))
    fpr, tpr, _ = roc_curve(is_member, scores)
    assert advantage(members, others) == pytest.approx(np.abs(tpr - fpr).max())  # as in TF Privacy
    assert advantage(members, others) == pytest.approx(ks_2samp(members, others).statistic)


def test_normal_losses_have_their_closed_forms():
    """Members' losses N(-d, 1) and others' N(0, 1): AUC is Phi(d / sqrt 2), the advantage 2 Phi(d /
    2) - 1, the true-positive rate at a false-positive rate a is Phi(Phi^-1(a) + d).
    """
    rng, d = np.random.default_rng(0), 1.0
    found = by_loss(rng.normal(-d, 1, 2000), rng.normal(0, 1, 2000), rng)
    expected = [
        norm.cdf(d / np.sqrt(2)),
        norm.cdf(norm.ppf(0.01) + d),
        norm.cdf(norm.ppf(0.1) + d),
        2 * norm.cdf(d / 2) - 1,
        0.5 - norm.cdf(-d),
    ]
    for one, value in zip(found, expected, strict=True):
        assert abs(one.success - value) < one.high - one.low  # four deviations
        assert one.above_chance and one.n == 4000


def test_texts_that_are_alike_are_not_told_apart():
    """Eight times five intervals: three may lie above chance by chance (2.5 % each, binomial)."""
    above = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = by_loss(rng.exponential(size=150), rng.exponential(size=120), rng)
        assert found[1].chance == pytest.approx(2 / 121) and found[2].chance == 13 / 121
        above += sum(one.above_chance for one in found)
        assert found[0].low < 0.5 + 0.05 and found[0].high > 0.5 - 0.05
    assert above <= 3


def test_calibration_takes_off_how_hard_texts_are():
    """Losses vary by 3 among texts and are 0.5 smaller for members, reference models err by 0.3:
    calibrated by 8 of them AUC is Phi(0.5 / sqrt(2 x 0.09 (1 + 1/8))).
    """
    rng, n = np.random.default_rng(0), 800
    hard = rng.normal(5, 3, 2 * n)
    references = hard + rng.normal(0, 0.3, (8, 2 * n))
    losses = hard + rng.normal(0, 0.3, 2 * n) - 0.5 * (np.arange(2 * n) < n)
    given = losses[:n], losses[n:], references[:, :n], references[:, n:]
    plain = by_loss(*given[:2], rng)[0]
    calibrated, likelihood = (f(*given, rng)[0] for f in (by_calibrated_loss, by_likelihood))
    expected = norm.cdf(0.5 / np.sqrt(2 * 0.3**2 * (1 + 1 / 8)))
    assert abs(calibrated.success - expected) < 0.75 * (calibrated.high - calibrated.low)
    assert likelihood.success == pytest.approx(calibrated.success)  # few models: the same order
    assert plain.high < calibrated.low
    with pytest.raises(ValueError, match="same models"):
        by_likelihood(*given[:2], references[:, :n], references[:4, n:], rng)


def test_many_reference_models_tell_which_texts_are_steady():
    """Half of the texts' losses vary by 0.05 from model to model, the others' by 2."""
    rng, n = np.random.default_rng(0), 400
    spread = np.where(np.arange(2 * n) % 2, 0.05, 2.0)
    references = rng.normal(3, spread, (64, 2 * n))
    losses = rng.normal(3, spread) - 0.3 * (np.arange(2 * n) < n)
    given = losses[:n], losses[n:], references[:, :n], references[:, n:]
    likelihood, calibrated = (f(*given, rng) for f in (by_likelihood, by_calibrated_loss))
    assert likelihood[0].low > calibrated[0].high


def test_logits_of_cross_entropies():
    p = np.array([0.5, 0.9, 1e-6])
    assert logits(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(logits(np.array([0.0, 1e9]))).all()


def test_the_same_seed_gives_the_same_and_nobody_is_told_from_nobody():
    given = np.arange(9.0), np.arange(7.0) + 2
    once, again = (by_loss(*given, np.random.default_rng(1)) for _ in range(2))
    assert once == again
    with pytest.raises(ValueError, match="0 other"):
        by_loss(given[0], np.array([]), np.random.default_rng(0))


def test_a_text_under_several_models_is_drawn_as_one():
    rng = np.random.default_rng(0)
    members_N, others_M = rng.normal(-0.3, 1, 150), rng.normal(size=100)
    once = by_loss(members_N, others_M, np.random.default_rng(0))
    four = by_loss(members_N, np.tile(others_M[:, None], 4), np.random.default_rng(0))
    for one, same in zip(once, four, strict=True):
        assert (same.success, same.n) == (pytest.approx(one.success, abs=0.01), one.n)
        assert same.high - same.low == pytest.approx(one.high - one.low, rel=0.15)
