"""Differential privacy: noise and epsilon against formulas, clipping and noise against numpy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from learning.differential_privacy import clipped, epsilon_of, noise_for, with_noise
from learning.side.protection import bounded, sensitivity


def delta_of(epsilon: float, noise: float) -> float:
    """Of one Gaussian release at sensitivity 1 (Balle & Wang, ICML 2018, theorem 8), exactly."""
    a, b = 1 / (2 * noise), epsilon * noise
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_noise_is_enough_and_not_far_more_than_that(epsilon):
    noise = noise_for(epsilon, 1e-5)
    assert delta_of(epsilon, noise) <= 1e-5
    assert delta_of(epsilon, 0.75 * noise) > 1e-5


def test_epsilon_falls_with_noise_and_rises_with_rounds_and_shares():
    # without sampling so many releases are one of so much less noise, exactly; Renyi's way to
    # epsilon is a little above that
    ten = epsilon_of(4.0, 1.0, 10, 1e-5)
    assert delta_of(ten, 4.0 / math.sqrt(10)) <= 1e-5 < delta_of(0.8 * ten, 4.0 / math.sqrt(10))
    assert epsilon_of(2.0, 0.1, 100, 1e-5) < epsilon_of(1.0, 0.1, 100, 1e-5)
    assert epsilon_of(1.0, 0.1, 400, 1e-5) > epsilon_of(1.0, 0.1, 100, 1e-5)
    assert epsilon_of(1.0, 1.0, 100, 1e-5) > epsilon_of(1.0, 0.1, 100, 1e-5)
    assert epsilon_of(1.0, 0.1, 0, 1e-5) == 0 and epsilon_of(0.0, 0.1, 3, 1e-5) == math.inf


def test_one_release_is_counted_the_same_both_ways():
    assert epsilon_of(noise_for(4.0, 1e-6), 1.0, 1, 1e-6) == pytest.approx(4.0, abs=0.05)


def test_clipping_shortens_all_tensors_together_and_only_what_is_too_long():
    change = {"a": torch.full((3, 4), 2.0), "b": torch.full((4,), -2.0)}  # 8 long
    short = clipped(change, 2.0)
    assert torch.allclose(short["a"], torch.full((3, 4), 0.5)) and short["b"][0] == -0.5
    assert all(torch.equal(t, change[n]) for n, t in clipped(change, 8.1).items())


def test_noise_has_its_deviation_and_follows_from_the_seed():
    zero = {"a": torch.zeros(300, 100), "b": torch.zeros(10)}
    noisy = with_noise(zero, 0.3, 7)
    assert float(noisy["a"].std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noisy["a"].mean())) < 0.01
    assert torch.equal(with_noise(zero, 0.3, 7)["b"], noisy["b"])
    assert not torch.equal(with_noise(zero, 0.3, 8)["b"], noisy["b"])


def test_two_uploads_are_no_further_apart_than_the_sensitivity():
    rng = np.random.default_rng(0)
    vectors_NVD = rng.standard_normal((500, 3, 8))
    vectors_NVD /= np.linalg.norm(vectors_NVD, axis=-1, keepdims=True)
    vectors_NVD[1] = -vectors_NVD[0]
    targets_NK = bounded(3 * rng.standard_normal((500, 4)))
    targets_NK[1] = -targets_NK[0]
    both_NF = np.concatenate([vectors_NVD.reshape(500, -1), targets_NK], axis=1)
    apart_NN = np.linalg.norm(both_NF[:, None] - both_NF[None], axis=-1)
    assert apart_NN.max() <= sensitivity(3) + 1e-9
    one_hot = np.eye(4)[0] - np.eye(4)[1]  # the longest difference of two distributions
    assert np.array_equal(bounded(one_hot[None]), one_hot[None])
    both = np.concatenate([vectors_NVD[:2].reshape(2, -1), [one_hot, -one_hot]], axis=1)
    assert np.linalg.norm(both[0] - both[1]) == pytest.approx(sensitivity(3))
