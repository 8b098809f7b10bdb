"""The metrics of GLUE against values worked by hand, scipy, and scikit-learn where it is there."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from learning.metrics import (
    DEFAULTS,
    METRICS_OF_CLASSES,
    METRICS_OF_RATINGS,
    METRICS_OF_RESPONSES,
    f1,
    macro_f1,
    mcc,
    pearson,
    score,
    spearman,
    why_unfit,
)

# of Matthews' four cells: 5 true positives, 1 false positive, 2 false negatives, 4 true negatives
TRUE = np.array([1] * 5 + [0] + [1] * 2 + [0] * 4)
PREDICTED = np.array([1] * 5 + [1] + [0] * 2 + [0] * 4)


def test_two_classes_by_hand():
    assert f1(PREDICTED, TRUE) == pytest.approx(2 * 5 / (2 * 5 + 1 + 2))
    assert f1(1 - PREDICTED, 1 - TRUE) == pytest.approx(2 * 4 / (2 * 4 + 2 + 1))
    assert macro_f1(PREDICTED, TRUE) == pytest.approx((10 / 13 + 8 / 11) / 2)
    assert mcc(PREDICTED, TRUE) == pytest.approx((5 * 4 - 1 * 2) / math.sqrt(6 * 7 * 5 * 6))


def test_three_classes_by_hand():
    true, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    assert macro_f1(predicted, true) == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    # R_K: n = 6, right = 4, predicted 2, 3, 1 times, true 2 each
    expected = (6 * 4 - (2 * 2 + 3 * 2 + 1 * 2)) / math.sqrt((36 - 14) * (36 - 12))
    assert mcc(predicted, true) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_mcc_of_two_classes_is_their_correlation(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 2, (2, 40))
    assert mcc(predicted, true) == pytest.approx(stats.pearsonr(predicted, true)[0])


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_scipys(seed):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 6, 50) / 2 - 1e4  # with equals, far from zero
    predicted = (true + rng.normal(0, 1, 50)).astype(np.float32)
    assert pearson(predicted, true) == pytest.approx(stats.pearsonr(predicted, true)[0])
    assert spearman(predicted, true) == pytest.approx(stats.spearmanr(predicted, true)[0])


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_classes_are_scikit_learns(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 2 + seed, (2, 30))
    assert macro_f1(predicted, true) == pytest.approx(
        sklearn.f1_score(true, predicted, average="macro", zero_division=0)
    )
    assert mcc(predicted, true) == pytest.approx(sklearn.matthews_corrcoef(true, predicted))
    if seed == 0:
        assert f1(predicted, true) == pytest.approx(sklearn.f1_score(true, predicted))


@pytest.mark.parametrize("metric", METRICS_OF_CLASSES)
def test_one_class_alone_has_a_defined_value(metric):
    measure = METRICS_OF_CLASSES[metric]
    for predicted, true in itertools.product([np.zeros(4, int), np.array([0, 1, 0, 1])], repeat=2):
        assert 0 <= measure(predicted, true) <= 1
    guesses = measure(np.zeros(4, int), np.array([0, 1, 0, 1]))
    assert guesses == {"accuracy": 0.5, "f1": 0.0, "macro-f1": 1 / 3, "mcc": 0.0}[metric]


@pytest.mark.parametrize("metric", METRICS_OF_RATINGS)
def test_ratings_all_alike_correlate_with_nothing(metric):
    measure, some = METRICS_OF_RATINGS[metric], np.array([1.0, 2.0, 4.0])
    for flat in (0.0, 0.1, -3e8):
        assert measure(np.full(3, flat, np.float32), some) == 0.0
        assert measure(some, np.full(3, flat)) == 0.0
    assert measure(some * 1e-30, some) == pytest.approx(1.0)
    assert measure(-some, some) == pytest.approx(-1.0)


def test_a_score_has_value_loss_and_what_each_class_gets():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], dtype=np.float32))
    found = score("accuracy", logits, np.array([0, 1]))
    assert found["value"] == 0.5 and found["by_class"] == [1.0, 0.0, None]
    assert found["loss"] == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert score("accuracy", logits + 1000, np.array([0, 1]))["loss"] == pytest.approx(
        found["loss"], rel=1e-3
    )
    one_hot = np.array([[0.5, 0.5, 0.0]])
    assert score("mcc", one_hot, np.array([2]), "squared-error")["loss"] == pytest.approx(1.5)


def test_a_score_of_ratings():
    found = score("pearson", np.array([[1.0], [2.0], [4.0]]), np.array([0.0, 2.0, 5.0]))
    assert found["loss"] == pytest.approx(2 / 3) and found["by_class"] == []
    assert found["value"] == pytest.approx(stats.pearsonr([1, 2, 4], [0, 2, 5])[0])


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_has_no_score(odd):
    assert score("accuracy", np.array([[odd, 1.0]]), np.array([0])) is None
    assert score("pearson", np.array([[odd], [1.0]]), np.array([0.0, 1.0])) is None


def test_what_does_not_fit_the_task():
    known = (*METRICS_OF_CLASSES, *METRICS_OF_RATINGS, *METRICS_OF_RESPONSES)
    fits = {kind: [m for m in known if not why_unfit(m, kind, 6)] for kind in DEFAULTS}
    assert fits["classification"] == ["accuracy", "macro-f1", "mcc"]
    assert fits["regression"] == ["pearson", "spearman"]
    assert fits["language-modelling"] == ["perplexity", "next-token-accuracy"]
    assert not why_unfit("f1", "classification", 2)
    assert "macro-f1" in why_unfit("f1", "classification", 6)
    assert "accuracy" in why_unfit("pearson", "classification")
    assert all(metric in fits[kind] for kind, metric in DEFAULTS.items())


def test_several_models_have_their_mean_score():
    rng = np.random.default_rng(0)
    predictions_KNC, labels_N = rng.normal(size=(3, 20, 4)), rng.integers(0, 3, 20)
    each = [score("macro-f1", one_NC, labels_N) for one_NC in predictions_KNC]
    found = score("macro-f1", predictions_KNC, labels_N)
    for key in ("value", "loss"):
        assert found[key] == pytest.approx(np.mean([one[key] for one in each]))
    assert found["by_class"][3] is None  # of which there is no text
    expected = np.mean([one["by_class"][:3] for one in each], axis=0)
    assert found["by_class"][:3] == pytest.approx(expected.tolist())
    predictions_KNC[1, 2, 3] = math.nan
    assert score("macro-f1", predictions_KNC, labels_N) is None
