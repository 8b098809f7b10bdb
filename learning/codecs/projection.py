"""Vectors as fewer coordinates: along the leading principal axes of public texts' vectors, or along
random ones that follow from a seed.

A vector x [D] is sent, and stays, y = x P, with orthonormal columns P [D, K]; the side network
reads y, so that it is as much narrower, and so is what devices are sent of it. By the Eckart-Young
theorem no other K coordinates of the public vectors, less their mean, leave less of them out than
the principal ones; random ones keep distances in expectation up to sqrt(K / D) (Johnson and
Lindenstrauss 1984) and need nothing sent but a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learning.codecs.chain import Chain

AXIS_BYTES = 2
"""Of a number of a principal axis, on its way to a device."""
FILE = "projections.safetensors"
"""Beside the side network, in a run's folder."""


@dataclass(frozen=True)
class Projection:
    """By backbone the axes of each of its vectors [V, D, K], and where the public vectors' mean is
    known what that is, [V, D]. No secret.
    """

    axes: Mapping[str, np.ndarray]
    means: Mapping[str, np.ndarray]

    def apply(self, backbone: str, x_NVD: np.ndarray) -> np.ndarray:
        """Vectors [n, V, D] as they are sent, [n, V, K]."""
        return np.einsum("nvd,vdk->nvk", x_NVD, self.axes[backbone], optimize=True)

    def back(self, backbone: str, y_NVK: np.ndarray) -> np.ndarray:
        """What who knows axes and means makes of what is sent: [n, V, D]."""
        x_NVD = np.einsum("nvk,vdk->nvd", y_NVK, self.axes[backbone], optimize=True)
        if backbone not in self.means:
            return x_NVD
        mean_VD, p_VDK = self.means[backbone], self.axes[backbone]
        along_VK = np.einsum("vd,vdk->vk", mean_VD, p_VDK)
        return x_NVD + mean_VD - np.einsum("vk,vdk->vd", along_VK, p_VDK)

    def save(self, path: Path) -> None:
        """A safetensors file of the axes."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(axes) for name, axes in self.axes.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Projection:
        """What `save` wrote; the means are not needed to predict."""
        from safetensors.numpy import load_file

        return cls(load_file(path), {})


def principal(chain: Chain, public: Mapping[str, np.ndarray]) -> Projection:
    """Along the leading principal axes of public texts' vectors [n, V, D] by backbone, as float16
    brings them to the devices; ValueError where the texts are too few for so many.
    """
    axes, means = {}, {}
    for name, x_NVD in public.items():
        if len(x_NVD) <= chain.coordinates:
            raise ValueError(
                f"pca-{chain.coordinates} needs more than {chain.coordinates} public texts "
                f"(`task.public`); there are {len(x_NVD)}"
            )
        x_VND = x_NVD.astype(np.float64).transpose(1, 0, 2)
        mean_V1D = x_VND.mean(axis=1, keepdims=True)
        covariance_VDD = (x_VND - mean_V1D).transpose(0, 2, 1) @ (x_VND - mean_V1D)
        _, vectors_VDD = np.linalg.eigh(covariance_VDD)  # rising
        leading_VDK = vectors_VDD[..., ::-1][..., : chain.coordinates]
        largest_V1K = np.take_along_axis(
            leading_VDK, np.abs(leading_VDK).argmax(axis=1, keepdims=True), axis=1
        )
        leading_VDK = leading_VDK * np.sign(largest_V1K)  # which LAPACK leaves open
        axes[name] = leading_VDK.astype(np.float16).astype(np.float32)
        means[name] = mean_V1D[:, 0].astype(np.float32)
    return Projection(axes, means)


def random(
    chain: Chain, widths: Mapping[str, int], vectors: int, rng: np.random.Generator
) -> Projection:
    """Along random orthonormal axes, the same for all vectors of all backbones of a width."""
    drawn: dict[int, np.ndarray] = {}
    for width in sorted({*widths.values()}):
        q_DK, r_KK = np.linalg.qr(rng.standard_normal((width, chain.coordinates)))
        drawn[width] = (q_DK * np.sign(np.diag(r_KK))).astype(np.float32)
    return Projection(
        {name: np.repeat(drawn[width][None], vectors, axis=0) for name, width in widths.items()}, {}
    )
