"""What is sent under protection, by hand and by theory."""

import numpy as np
import pytest
import torch

from learning.attacks.label_recovery import by_largest
from learning.attacks.mixture import solved_groups
from learning.side.prediction_difference import difference
from learning.side.protection import Secret, draw_secret, public_axes, to_classes, to_send
from learning.side.skip import Skip


def vectors(n: int, rng: np.random.Generator, v: int = 2, d: int = 6) -> np.ndarray:
    return rng.normal(3.0, [1, 2, 3, 4, 5, 6][:d], (n, v, d)).astype(np.float32)


def some_secret(rng, offset=4.0, rotate=True) -> tuple[Secret, np.ndarray]:
    a_NVD = vectors(300, rng)
    axes = public_axes({"one": a_NVD[:200]}, 5)
    return draw_secret(rng, 3, 4, offset, axes, {6: 2} if rotate else {}), a_NVD


def test_what_a_device_takes_off_it_adds_again():
    rng = np.random.default_rng(0)
    secret, a_NVD = some_secret(rng)
    delta_NC = rng.normal(size=(300, 3)).astype(np.float32)
    sent, targets_NK = to_send(secret, "one", a_NVD, delta_NC, np.zeros((300, 4)))
    back_NC = to_classes(secret.codes, targets_NK, secret.offset("one", a_NVD))
    assert np.allclose(back_NC, delta_NC, atol=1e-4)
    # a rotation keeps lengths, and no vector
    assert np.allclose(np.linalg.norm(sent, axis=-1), np.linalg.norm(a_NVD, axis=-1), rtol=1e-5)
    assert not np.isclose(sent, a_NVD).any(axis=-1).all()
    assert np.allclose(secret.codes @ secret.codes.T, np.eye(3), atol=1e-6)


def test_axes_of_public_texts_have_variance_1_and_need_enough_texts():
    rng = np.random.default_rng(1)
    a_NVD = vectors(200, rng)
    axes = public_axes({"one": a_NVD}, 5)
    along = axes.along("one", a_NVD)
    assert np.allclose(along.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(along.T @ along / 200, np.eye(5), atol=1e-5)
    with pytest.raises(ValueError, match="more than 5 public texts"):
        public_axes({"one": a_NVD[:5]}, 5)


def test_the_offset_has_the_variance_that_was_asked_for():
    rng = np.random.default_rng(2)
    a_NVD = vectors(4000, rng)
    drawn = [
        draw_secret(
            np.random.default_rng(seed), 3, 3, 9.0, public_axes({"one": a_NVD}, 8), {}
        ).offset("one", a_NVD)
        for seed in range(40)
    ]
    # 9 times (1 - 1/3) / 3, the variance of codes of even classes in each of their numbers
    assert np.mean([offset.var(axis=0).mean() for offset in drawn]) == pytest.approx(2.0, rel=0.2)


def test_codes_alone_cost_a_ridge_regression_nothing():
    rng = np.random.default_rng(3)
    x_NF = torch.from_numpy(rng.normal(size=(120, 20)).astype(np.float32))
    labels = rng.integers(0, 3, 120)
    delta = difference(labels, np.full((120, 3), 1 / 3, np.float32))
    secret = draw_secret(rng, 3, 7, 0.0, None, {})
    open_, coded = Skip(20, 3), Skip(20, 7)
    open_.fit(x_NF, torch.from_numpy(delta))
    coded.fit(x_NF, torch.from_numpy(delta @ secret.codes))
    said = to_classes(secret.codes, coded(x_NF).numpy(), np.zeros((120, 7), np.float32))
    assert np.allclose(said, open_(x_NF).numpy(), atol=1e-4)


def test_names_behind_codes_are_guessed_as_by_chance():
    rng = np.random.default_rng(4)
    labels = np.arange(600) % 4
    delta = difference(labels, np.full((600, 4), 1 / 4, np.float32))
    assert by_largest(delta, labels).success == 1.0
    right = [
        by_largest(delta @ draw_secret(rng, 4, 4, 0.0, None, {}).codes, labels).success
        for _ in range(300)
    ]
    error = 4 * np.std(right) / np.sqrt(300)
    assert abs(np.mean(right) - 1 / 4) < error < 0.1


def test_who_knows_of_the_offset_solves_for_it_and_noise_stops_him():
    rng = np.random.default_rng(5)
    a_NVD = vectors(900, rng)
    axes = public_axes({"one": a_NVD[600:]}, 6)
    labels = rng.integers(0, 3, 600)
    delta = difference(labels, np.full((600, 3), 1 / 3, np.float32))
    secret = draw_secret(rng, 3, 3, 10.0, axes, {})

    def right(noise: float) -> float:
        noise_NK = noise * rng.standard_normal((600, 3))
        _, sent = to_send(secret, "one", a_NVD[:600], delta, noise_NK)
        groups = solved_groups(sent, axes.along("one", a_NVD[:600]), 3, np.random.default_rng(0))
        return max(
            np.mean(np.array(order)[groups] == labels)
            for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        )

    assert right(0.0) == 1.0
    assert right(2.0) < 0.6


def test_a_secret_is_read_back_to_the_bit(tmp_path):
    secret, a_NVD = some_secret(np.random.default_rng(6))
    secret.save(tmp_path / "secret.safetensors")
    again = Secret.load(tmp_path / "secret.safetensors")
    assert np.array_equal(again.codes, secret.codes)
    assert np.array_equal(again.offset("one", a_NVD), secret.offset("one", a_NVD))
    assert np.array_equal(again.rotated(a_NVD), secret.rotated(a_NVD))


def test_public_texts_that_vary_along_few_axes_are_refused():
    few = np.repeat(vectors(10, np.random.default_rng(7)), 6, axis=0)
    with pytest.raises(ValueError, match="vary along 9 axes only, and 12 are wanted"):
        public_axes({"one": few}, 12)
