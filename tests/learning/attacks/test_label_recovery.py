"""Labels from differences, against what must come out: all of them, or no more than by guessing."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import adjusted_rand_score

from learning.attacks.extraction import extraction
from learning.attacks.label_recovery import (
    adjusted_rand,
    by_backbone_knowledge,
    by_clustering,
    by_known_labels,
    by_largest,
    by_sign,
    drawn,
)
from learning.attacks.outcome import of_mean, of_share
from learning.side.prediction_difference import difference

CLASSES = 4


def labels_of(seed, n=200):
    return np.random.default_rng(seed).choice(CLASSES, n, p=[0.4, 0.3, 0.2, 0.1])


def constant(labels):
    return difference(labels, np.full((len(labels), CLASSES), 1 / CLASSES, dtype=np.float32))


@pytest.mark.parametrize("attack", [by_largest, by_sign])
def test_a_constant_prediction_hides_no_label(attack):
    labels = labels_of(0)
    found = attack(constant(labels), labels)
    assert found.success == 1.0 and found.above_chance and found.n == 200
    assert found.chance == pytest.approx(np.bincount(labels).max() / 200)


def test_a_prediction_that_is_certain_hides_the_label_from_who_cannot_compute_it():
    """Where y_b is one-hot and right, nothing is left: no component is positive."""
    labels = labels_of(1)
    y_b = np.eye(CLASSES, dtype=np.float32)[labels]
    assert by_sign(difference(labels, y_b), labels).success == 0.0
    assert by_backbone_knowledge(difference(labels, y_b), y_b, labels).success == 1.0
    wrong = np.eye(CLASSES, dtype=np.float32)[(labels + 1) % CLASSES]
    assert by_largest(difference(labels, wrong), labels).success == 1.0


def test_equal_differences_of_a_class_are_grouped_exactly_and_named_by_one_label():
    labels = np.repeat(np.arange(CLASSES), [110, 60, 25, 5])
    codes = np.random.default_rng(3).normal(size=(CLASSES, 11))  # a space of their own
    grouping, by_size, one, ten = by_clustering(
        codes[labels], labels, CLASSES, np.random.default_rng(0)
    )
    assert grouping.success == grouping.low == 1.0 and grouping.chance == 0.0
    assert one.success == ten.success == 1.0
    assert (one.n, ten.n) == (200 - 4, 200 - 30 - 2)  # half of the five of the smallest
    assert by_size.success > 0.99 and by_size.above_chance  # classes of unlike sizes


def test_groups_of_one_size_have_no_names_by_size():
    labels = np.arange(200) % 2
    found = by_clustering(np.eye(2)[labels], labels, 2, np.random.default_rng(0), ())
    assert found[0].success == 1.0 and not found[1].above_chance
    assert abs(found[1].success - 0.5) < 0.1 and found[1].low == 0.0 and found[1].high == 1.0


def test_codes_that_are_drawn_for_each_text_tell_nothing():
    """Of 40 outcomes two at most lie above chance: intervals miss upwards once in 40 times, and
    chance is the share of the commonest class, the most that is reached without knowledge.
    """
    outcomes = []
    for seed in range(8):
        rng, labels = np.random.default_rng(100 + seed), labels_of(seed)
        values = rng.normal(size=(200, 6))
        outcomes += by_clustering(values, labels, CLASSES, rng, (1,), priors_C=np.full(4, 0.25))
        outcomes += by_known_labels(values, labels, rng, (10,))
    assert sum(found.above_chance for found in outcomes) <= 2
    grouping = [found for found in outcomes if found.chance == 0.0]
    assert all(found.low <= 0 <= found.high for found in grouping) and len(grouping) == 8


def test_activations_that_know_the_class_are_read_with_a_few_labels():
    rng, labels = np.random.default_rng(0), labels_of(5)
    around = rng.normal(size=(CLASSES, 3, 8))
    values = around[labels] + 0.3 * rng.normal(size=(200, 3, 8))
    found = by_known_labels(values, labels, rng, (1, 10))
    assert [one.attack.partition(",")[0] for one in found] == [
        "logistic regression",
        "nearest text",
    ] * 2
    assert all(one.success > 0.95 for one in found)
    assert by_clustering(values, labels, CLASSES, rng)[0].success > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_the_index_is_hubert_and_arabies(seed):
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, 3, 40), rng.integers(0, 5, 40)
    assert adjusted_rand(groups, labels) == pytest.approx(adjusted_rand_score(labels, groups))
    times = rng.integers(0, 3, 40)
    times[0] = 1
    once = times == 1  # of those drawn once alone, weights change nothing
    assert adjusted_rand(groups, labels, once) == pytest.approx(
        adjusted_rand_score(labels[once], groups[once])
    )


def test_the_same_seed_gives_the_same_and_odd_shapes_are_refused():
    values, labels = np.random.default_rng(0).normal(size=(60, 5)), labels_of(0, 60)
    once, again = (
        by_clustering(values, labels, CLASSES, np.random.default_rng(7)) for _ in range(2)
    )
    assert once == again
    with pytest.raises(ValueError, match="by_clustering"):
        by_largest(values[:, :3], labels)
    with pytest.raises(ValueError, match="needs some"):
        by_known_labels(values, labels, np.random.default_rng(0), (0,))
    with pytest.raises(ValueError, match="needs some"):
        by_known_labels(values[:4], np.arange(4), np.random.default_rng(0), (60,))


@pytest.mark.parametrize(("n", "share"), [(20, 0.5), (50, 0.9), (300, 0.02)])
def test_wilsons_interval_covers(n, share):
    """The exact probability, over the binomial, that the interval holds the true share: 95 % but
    for its known ripple.
    """
    covered = 0.0
    for hits in range(n + 1):
        found = of_share("any", "labels", np.arange(n) < hits, 0.5)
        covered += binom.pmf(hits, n, share) * (found.low <= share <= found.high)
    assert 0.92 < covered < 0.99


def test_a_bootstrap_of_means_is_as_wide_as_theory_says():
    rng = np.random.default_rng(0)
    found = of_mean("any", "F1", rng.normal(0.5, 0.1, 400), 0.0, rng)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    with pytest.raises(ValueError, match="no text"):
        of_mean("any", "F1", np.array([]), 0.0, rng)
    with pytest.raises(ValueError, match="no text"):
        of_share("any", "labels", np.array([], dtype=bool), 0.0)


def test_a_text_that_is_judged_under_several_models_is_one_text():
    hits_N, texts_N = np.arange(40) % 4 > 0, np.arange(40)
    once = of_share("any", "labels", hits_N, 0.5)
    twice = of_share("any", "labels", np.tile(hits_N, 3), 0.5, np.tile(texts_N, 3))
    assert (twice.success, twice.low, twice.high, twice.n) == pytest.approx(
        (once.success, once.low, once.high, 40)
    )
    labels_N = np.arange(40) % 4
    is_known_N = drawn(np.tile(labels_N, 3), 2, np.random.default_rng(0), np.tile(texts_N, 3))
    known = is_known_N.reshape(3, 40)
    assert (known == known[0]).all() and known[0].sum() == 8


def test_stolen_outputs_of_several_backbones_are_no_more_texts():
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 3, 60)
    outputs_NK = np.eye(3)[labels_N] + rng.normal(size=(60, 3))
    once = extraction(outputs_NK, labels_N, 3, np.random.default_rng(1))
    args = np.tile(outputs_NK, (2, 1)), np.tile(labels_N, 2), 3, np.random.default_rng(1)
    twice = extraction(*args, texts_N=np.tile(np.arange(60), 2))
    assert [one.n for one in twice] == [one.n for one in once]
    assert twice[0].high - twice[0].low == pytest.approx(once[0].high - once[0].low)


def test_what_counts_as_no_text_is_in_no_size():
    """Groups of 30, 20 and 10 texts, and as many records of no text as even them out: named by
    their sizes they are named wrong, and right by who leaves those out.
    """
    labels_N = np.repeat([0, 1, 2], [30, 20, 10])
    others = np.repeat(np.eye(3)[[1, 2]], [15, 35], axis=0)
    counted = np.arange(110) < 60
    how = (np.eye(3)[labels_N], labels_N, 3, np.random.default_rng(0), ())
    _, mixed = by_clustering(*how, others=others)
    _, told = by_clustering(*how, others=others, counted=counted)
    assert mixed.success < 0.5 and told.success > 0.9
