"""Projections: the principal axes are those of theory, random ones keep distances, and a file
brings them back.
"""

import numpy as np
import pytest

from learning.codecs.chain import chain_of
from learning.codecs.projection import Projection, principal, random

RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((12, 12)) * np.linspace(3, 0.1, 12)
PUBLIC = {"one": (RNG.standard_normal((200, 2, 12)) @ MIX.T + 5).astype(np.float32)}
FOUR = chain_of(["pca-4", "float32"])


def left_out(x_ND: np.ndarray, basis_DK: np.ndarray) -> float:
    centred = x_ND - x_ND.mean(axis=0)
    return float(((centred - centred @ basis_DK @ basis_DK.T) ** 2).sum())


def test_principal_axes_leave_out_what_the_smallest_singular_values_say():
    projection = principal(FOUR, PUBLIC)
    for place in range(2):
        x_ND = PUBLIC["one"][:, place].astype(np.float64)
        axes_DK = projection.axes["one"][place].astype(np.float64)
        lengths = np.linalg.svd(x_ND - x_ND.mean(axis=0), compute_uv=False)
        assert np.allclose(axes_DK.T @ axes_DK, np.eye(4), atol=2e-3)  # rounded to half precision
        assert left_out(x_ND, axes_DK) == pytest.approx((lengths[4:] ** 2).sum(), rel=2e-3)
        other, _ = np.linalg.qr(RNG.standard_normal((12, 4)))
        assert left_out(x_ND, axes_DK) < 0.8 * left_out(x_ND, other)


def test_what_is_sent_is_where_vectors_lie_along_the_axes_and_back():
    projection = principal(FOUR, PUBLIC)
    x_NVD = PUBLIC["one"][:5]
    sent = projection.apply("one", x_NVD)
    assert sent.shape == (5, 2, 4)
    assert np.allclose(sent[:, 1], x_NVD[:, 1] @ projection.axes["one"][1], atol=1e-5)
    back = projection.back("one", sent)
    axes_VDK, mean_VD = projection.axes["one"], PUBLIC["one"].mean(axis=0)
    for place in range(2):
        centred = x_NVD[:, place] - mean_VD[place]
        near = mean_VD[place] + centred @ axes_VDK[place] @ axes_VDK[place].T
        assert np.allclose(back[:, place], near, atol=1e-2)


def test_random_axes_are_orthonormal_alike_for_a_width_and_of_the_seed_alone():
    chain = chain_of(["random-5", "int8"])
    widths = {"a": 16, "b": 16, "c": 9}
    one, two = (random(chain, widths, 3, np.random.default_rng(seed)) for seed in (1, 1))
    for name, width in widths.items():
        axes_VDK = one.axes[name]
        assert axes_VDK.shape == (3, width, 5) and np.array_equal(axes_VDK, two.axes[name])
        assert np.allclose(axes_VDK[0].T @ axes_VDK[0], np.eye(5), atol=1e-6)
    assert np.array_equal(one.axes["a"], one.axes["b"])
    other = random(chain, widths, 3, np.random.default_rng(2))
    assert not np.allclose(one.axes["a"], other.axes["a"])


def test_random_axes_keep_squared_lengths_up_to_their_share():
    chain, x_ND = chain_of(["random-32", "float32"]), RNG.standard_normal((400, 1, 128))
    sent = random(chain, {"a": 128}, 1, np.random.default_rng(0)).apply("a", x_ND)
    share = (sent**2).sum() / (x_ND**2).sum()
    assert share == pytest.approx(32 / 128, rel=0.05)


def test_a_file_brings_the_axes_back(tmp_path):
    projection = principal(FOUR, PUBLIC)
    projection.save(tmp_path / "axes.safetensors")
    again = Projection.load(tmp_path / "axes.safetensors")
    x_NVD = PUBLIC["one"][:3]
    assert np.array_equal(again.apply("one", x_NVD), projection.apply("one", x_NVD))


def test_too_few_public_texts_are_refused():
    with pytest.raises(ValueError, match=r"pca-4 needs more than 4 public texts .*; there are 4"):
        principal(FOUR, {"one": PUBLIC["one"][:4]})
