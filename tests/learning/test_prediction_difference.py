"""The prediction difference: what it is, that it hides nothing by itself, and the backbone's own
predictions.
"""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from learning.side.prediction_difference import (
    PREDICTIONS,
    VERBALISERS,
    backbone_prediction,
    difference,
    shares,
)


@given(st.integers(2, 20), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_sums_to_zero_restores_one_hot_and_gives_the_label_away(classes, count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    y_b = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    delta = difference(labels, y_b)
    assert np.allclose(delta.sum(axis=1), 0, atol=1e-6)
    assert np.allclose(delta + y_b, np.eye(classes)[labels], atol=1e-6)
    # its one positive component is the true class: against a server that looks, the difference
    # hides no label
    sure = y_b[np.arange(count), labels] < 1 - 1e-6
    assert np.array_equal(delta.argmax(axis=1)[sure], labels[sure])


def test_the_prediction_is_left_alone():
    y_b = np.full((3, 4), 0.25, np.float32)
    difference(np.array([0, 1, 2]), y_b)
    assert np.all(y_b == 0.25)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_are_probabilities(kind):
    rng = np.random.default_rng(0)
    texts, classes, head = (rng.normal(size=(n, 16)).astype(np.float32) for n in (7, 5, 17))
    if kind in VERBALISERS:  # what stands for the classes are logits, too
        classes = classes[:, :5]
    logits = rng.normal(size=(7, 5)).astype(np.float32)
    y_b = backbone_prediction(kind, texts, 5, classes, rng, head[:, :5], logits_NC=logits)
    assert y_b.shape == (7, 5) and y_b.dtype == np.float32
    assert np.allclose(y_b.sum(axis=1), 1, atol=1e-6) and (y_b >= 0).all()
    assert np.all(y_b == np.float32(0.2)) == (kind == "uniform")


def test_label_names_is_the_softmax_of_cosines_over_temperature():
    rng = np.random.default_rng(1)
    texts, names = (
        rng.normal(size=(6, 8)).astype(np.float32),
        rng.normal(size=(3, 8)).astype(np.float32),
    )
    cosines = np.array(
        [[t @ n / np.linalg.norm(t) / np.linalg.norm(n) for n in names] for t in texts]
    )
    got = backbone_prediction("label-names", texts, 3, names, temperature=0.1)
    assert np.allclose(got, scipy.special.softmax(cosines / 0.1, axis=1), atol=1e-6)
    assert np.array_equal(
        backbone_prediction("label-names", names, 3, names).argmax(axis=1), np.arange(3)
    )
    assert np.isfinite(
        backbone_prediction("label-names", np.zeros((2, 8), np.float32), 3, names)
    ).all()


def test_a_random_head_is_one_linear_map_for_all_texts():
    texts = np.random.default_rng(2).normal(size=(40, 8)).astype(np.float32)
    y_b = [
        backbone_prediction("random-head", t, 3, rng=np.random.default_rng(9))
        for t in (texts, texts[:5])
    ]
    assert np.allclose(y_b[0][:5], y_b[1], atol=1e-7)
    logits = np.log(y_b[0]) - np.log(y_b[0]).mean(
        axis=1, keepdims=True
    )  # softmax fixes logits up to a constant a text
    head, residual, _, _ = np.linalg.lstsq(texts, logits, rcond=None)
    assert residual.max() < 1e-8 and 0.005 < head.std() < 0.05


def test_what_least_squares_gives_becomes_shares():
    outputs = np.array([[0.5, 0.7, -0.2], [-1.0, -0.1, -3.0], [0.0, 1.0, 0.0]])
    expected = [[0.5 / 1.2, 0.7 / 1.2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]]
    assert np.allclose(shares(outputs), expected)


def test_heads_of_several_devices_predict_at_once():
    rng = np.random.default_rng(3)
    texts, heads = rng.normal(size=(4, 8)), rng.normal(size=(2, 9, 3))
    both = backbone_prediction("own-head", texts, 3, head=heads)
    assert both.shape == (2, 4, 3)
    for head, got in zip(heads, both, strict=True):
        assert np.allclose(got, backbone_prediction("public-head", texts, 3, head=head))
    with pytest.raises(ValueError, match="public-head needs the head"):
        backbone_prediction("public-head", texts, 3)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'magic' is not one of uniform, label-names, class-texts"):
        backbone_prediction("magic", np.zeros((1, 2)), 2)
