"""Heads in closed form, against the same least squares by other means."""

import numpy as np
import pytest

from learning.side.heads import SHRINKAGES, fit, fitting, head_bytes

CLASSES = 3


def some(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    vectors = rng.normal(size=(n, width)) + 2 * np.eye(width)[labels] + 5
    return vectors.astype(np.float32), labels


def ridge(x: np.ndarray, y: np.ndarray, k: float) -> np.ndarray:
    """[D + 1, C], by the normal equations with a column of ones that is not shrunk."""
    ones = np.hstack([x, np.ones((len(x), 1))]).astype(np.float64)
    shrunk = np.diag([k] * x.shape[1] + [0.0])
    return np.linalg.solve(ones.T @ ones + shrunk, ones.T @ y)


@pytest.mark.parametrize(("n", "width"), [(40, 6), (12, 30)])
def test_is_the_ridge_regression_that_predicts_left_out_texts_best(n, width):
    x, labels = some(n, width)
    y = np.eye(CLASSES)[labels]
    head = fit(x, labels, CLASSES)
    scale = ((x - x.mean(axis=0)) ** 2).sum() / width
    errors = {}
    for k in (shrinkage * float(scale) for shrinkage in SHRINKAGES):
        left_out = np.empty((n, CLASSES))
        for i in range(n):  # really without it
            rest = np.arange(n) != i
            left_out[i] = np.append(x[i], 1) @ ridge(x[rest], y[rest], k)
        errors[k] = ((y - left_out) ** 2).sum(), left_out
    k = min(errors, key=lambda one: errors[one][0])
    assert np.allclose(head.left_out, errors[k][1], atol=1e-4)
    assert np.allclose(head.weights, ridge(x, y, k), atol=1e-4)


def test_a_text_of_its_own_says_nothing_about_itself():
    """Labels that no vector tells of: fitted well, but left out no better than the classes'
    shares.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 100)).astype(np.float32)
    labels = rng.integers(0, 2, 60)
    head = fit(x, labels, 2)
    left_out = head.left_out.argmax(axis=1)
    assert np.mean(left_out == labels) < 0.65
    assert ((head.left_out - np.eye(2)[labels]) ** 2).sum(axis=1).mean() > 0.45


@pytest.mark.parametrize("n", [0, 1])
def test_of_one_text_nothing_is_known(n):
    head = fit(np.ones((n, 5), np.float32), np.zeros(n, np.int64), 4)
    assert np.allclose(head.left_out, 0.25) and head.left_out.shape == (n, 4)
    assert np.allclose(np.ones(5) @ head.weights[:-1] + head.weights[-1], 0.25)


def test_two_alike_texts_are_their_classes_share():
    head = fit(np.ones((2, 5), np.float32), np.array([0, 1]), 2)
    assert np.isfinite(head.weights).all()
    assert np.allclose(np.ones(5) @ head.weights[:-1] + head.weights[-1], 0.5)


def test_costs_grow_with_texts_and_are_sent_as_float32():
    assert head_bytes(384, 6) == 4 * 385 * 6
    few, many = fitting(10, 384, 6), fitting(100, 384, 6)
    assert few.flop > 6 * 10 * 384 * 10 and many.flop > 10 * few.flop
    assert many.peak_bytes >= 8 * 100 * 384
