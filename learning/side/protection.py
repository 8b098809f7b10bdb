"""What a device does to what it sends, so that the server learns less from it, and takes off again
from what it gets: by a secret that the devices of one owner share and the server never has.

With x a text's vectors side by side, delta_y [C] its prediction difference, M [C, K] the codes
(orthonormal rows), g a secret function and e noise that belongs to the text,

    sent target = delta_y M - g(x) + e,        y_hat = y_b + (y_s + g(x)) M'

The codes hide which class is which. They do not hide which texts are of one class: with a constant
y_b the differences of a class are equal. What differs from text to text does: g, which the side
network learns along, because it is linear in the leading principal axes of *public* texts' vectors
(whitened; elsewhere a ridge regression would shrink it, which costs accuracy), and e, for a server
that knows of g and solves for both. `benchmarks/protection.py` measures what each hides and costs.

With vectors of unit length and differences of two distributions, which are at most sqrt(2) long,
two texts' uploads are at most 2 sqrt(V + 2) apart, the sensitivity of Gaussian noise that makes
each text's upload differentially private by itself (`learning.differential_privacy`).

A secret rotation of each vector hides what its numbers say from who knows the backbone alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Numbers = TypeVar("Numbers", np.ndarray, "Tensor")
LEAST = 1e-3
"""Length of an axis, over that of the longest, below which texts do not vary along it."""
LONGEST_DIFFERENCE = math.sqrt(2)
DECOY_SPREAD = 0.85
"""Deviation of decoys about their points, over that of a payload's texts: with less they are told
by lying near a line between two others, with more by lying far out.
"""
FILE = "device_secret.safetensors"
"""Beside the side network, in a run's folder: what devices have and the server has not."""


@dataclass(frozen=True)
class PublicAxes:
    """Principal axes of public texts' standardised vectors, side by side: mean and deviation of
    each backbone [F], and axes [F, k] of all backbones of a width, along which these have variance
    1. No secret.
    """

    mean: Mapping[str, np.ndarray]
    deviation: Mapping[str, np.ndarray]
    axes: Mapping[int, np.ndarray]

    def along(self, backbone: str, a_NVD: np.ndarray) -> np.ndarray:
        """Where vectors [n, V, d] of a backbone lie along the axes: [n, k]."""
        x_NF = a_NVD.reshape(len(a_NVD), -1)
        return (x_NF - self.mean[backbone]) / self.deviation[backbone] @ self.axes[a_NVD.shape[-1]]


def public_axes(vectors: Mapping[str, np.ndarray], count: int) -> PublicAxes:
    """So many axes of public texts' vectors [n, V, d] by backbone; ValueError where the texts are
    too few for them.
    """
    mean, deviation, by_width = {}, {}, dict[int, list[np.ndarray]]()
    for name, a_NVD in sorted(vectors.items()):
        x_NF = a_NVD.reshape(len(a_NVD), -1).astype(np.float64)
        mean[name] = x_NF.mean(axis=0)
        deviation[name] = np.maximum(x_NF.std(axis=0), 1e-3 * np.abs(x_NF).mean() + 1e-12)
        by_width.setdefault(a_NVD.shape[-1], []).append((x_NF - mean[name]) / deviation[name])
    axes = {}
    for width, parts in by_width.items():
        x_NF = np.concatenate(parts)
        if min(len(part) for part in parts) <= count or x_NF.shape[1] < count:
            raise ValueError(
                f"method.protection.axes: {count} axes need more than {count} public texts and "
                f"numbers a text; there are {min(len(part) for part in parts)} and {x_NF.shape[1]}"
            )
        _, lengths_K, axes_KF = np.linalg.svd(x_NF, full_matrices=False)
        if (rank := int((lengths_K > LEAST * lengths_K[0]).sum())) < count:
            raise ValueError(
                f"the public texts vary along {rank} axes only, and {count} are wanted: say fewer "
                "`axes`, or give more and other public texts"
            )
        axes[width] = axes_KF[:count].T * (np.sqrt(len(x_NF)) / lengths_K[:count])
    return PublicAxes(mean, deviation, axes)


@dataclass(frozen=True)
class Secret:
    """What devices of one owner share: codes [C, K]; by backbone the weights [F, K] and constant
    [K] of the offset g (none: no offset); by width rotations [V, d, d] (none: no rotation); whether
    vectors are brought to unit length, which noise of a known privacy needs; codes of classes that
    are none, [D, K], for decoys.
    """

    codes: np.ndarray
    offsets: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rotations: Mapping[int, np.ndarray]
    is_unit: bool = False
    decoys: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))

    def offset(self, backbone: str, a_NVD: np.ndarray) -> np.ndarray:
        """g of texts' vectors [n, V, d] as the backbone gives them: [n, K]."""
        if backbone not in self.offsets:
            return np.zeros((len(a_NVD), self.codes.shape[1]), dtype=np.float32)
        weights_FK, constant_K = self.offsets[backbone]
        return a_NVD.reshape(len(a_NVD), -1) @ weights_FK - constant_K

    def rotated(self, a_NVD: np.ndarray) -> np.ndarray:
        """Vectors [n, V, d] as they are sent, but for noise."""
        if self.is_unit:
            a_NVD = a_NVD / np.maximum(np.linalg.norm(a_NVD, axis=-1, keepdims=True), 1e-12)
        rotations_VDD = self.rotations.get(a_NVD.shape[-1])
        if rotations_VDD is None:
            return a_NVD
        return np.einsum("nvd,vde->nve", a_NVD, rotations_VDD, optimize=True)

    def turned_back(self, sent_NVD: np.ndarray) -> np.ndarray:
        """Sent vectors [n, V, d] as the backbone gave them, but for their length."""
        rotations_VDD = self.rotations.get(sent_NVD.shape[-1])
        if rotations_VDD is None:
            return sent_NVD
        return np.einsum("nve,vde->nvd", sent_NVD, rotations_VDD, optimize=True)

    def save(self, path: Path) -> None:
        """A safetensors file of it."""
        from safetensors.numpy import save_file

        tensors = {"codes": self.codes}
        for name, (weights, constant) in self.offsets.items():
            tensors |= {f"weights of {name}": weights, f"constant of {name}": constant}
        tensors |= {f"rotations of {width}": r for width, r in self.rotations.items()}
        if self.is_unit:
            tensors["is unit"] = np.ones(1, dtype=np.float32)
        if len(self.decoys):
            tensors["codes of decoys"] = self.decoys
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Secret:
        """What `save` wrote."""
        from safetensors.numpy import load_file

        tensors = load_file(path)
        names = [n.removeprefix("weights of ") for n in tensors if n.startswith("weights of ")]
        offsets = {n: (tensors[f"weights of {n}"], tensors[f"constant of {n}"]) for n in names}
        widths = [n.removeprefix("rotations of ") for n in tensors if n.startswith("rotations of ")]
        rotations = {int(width): tensors[f"rotations of {width}"] for width in widths}
        decoys = tensors.get("codes of decoys", np.empty((0, 0), dtype=np.float32))
        return cls(tensors["codes"], offsets, rotations, "is unit" in tensors, decoys)


def draw_secret(
    rng: np.random.Generator,
    classes: int,
    length: int,
    offset: float,
    axes: PublicAxes | None,
    rotated: Mapping[int, int],
    is_unit: bool = False,
    none_classes: int = 0,
) -> Secret:
    """A secret by a generator that only devices have: codes of `length` numbers; an offset whose
    variance is so many times that of the codes of even classes; rotations for so many vectors of
    each width; codes of so many classes that are none.
    """
    every_CK = _orthonormal(rng, length)
    codes_CK, decoys_DK = np.split(every_CK[: classes + none_classes], [classes])
    offsets = {}
    if axes is not None and offset > 0:
        variance = offset * (1 - 1 / classes if classes > 1 else 1.0) / length
        drawn = {
            width: w_FK @ rng.normal(0, np.sqrt(variance / w_FK.shape[1]), (w_FK.shape[1], length))
            for width, w_FK in sorted(axes.axes.items())
        }
        for name, mean_F in axes.mean.items():
            (weights_FK,) = [w for w in drawn.values() if len(w) == len(mean_F)]
            weights_FK = weights_FK / axes.deviation[name][:, None]
            constant_K = mean_F @ weights_FK
            offsets[name] = weights_FK.astype(np.float32), constant_K.astype(np.float32)
    rotations = {
        width: np.stack([_orthonormal(rng, width) for _ in range(vectors)]).astype(np.float32)
        for width, vectors in sorted(rotated.items())
    }
    codes = codes_CK.astype(np.float32), decoys_DK.astype(np.float32)
    return Secret(codes[0], offsets, rotations, is_unit, codes[1])


def to_send(
    secret: Secret, backbone: str, a_NVD: np.ndarray, targets_NC: np.ndarray, noise_NK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, V, d] and differences [n, C], or [n, C + D] of decoys, too, as a device sends
    them: [n, V, d], [n, K].
    """
    codes = secret.codes
    if len(secret.decoys):
        codes = np.concatenate([codes, secret.decoys])
    sent_NK = targets_NC @ codes[: targets_NC.shape[1]] - secret.offset(backbone, a_NVD) + noise_NK
    return secret.rotated(a_NVD), sent_NK.astype(np.float32)


def decoy_shares(texts: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What decoys are made of: the shares [count, n] that a payload's texts have in a point between
    two of them, and in a decoy, which lies about that point as the texts lie about their mean.

    A decoy on the line itself would be told by lying there, and one that is moved in each number
    alone by not varying as texts do (`sim.privacy.decoys` measures what is told all the same).
    """
    first = rng.integers(texts, size=count)
    second = (first + rng.integers(1, texts, size=count)) % texts  # another one
    share_M, every = rng.random(count), np.arange(count)
    between_MN = np.zeros((count, texts))
    between_MN[every, first], between_MN[every, second] = share_M, 1 - share_M
    z_MN = DECOY_SPREAD * rng.standard_normal((count, texts)) / math.sqrt(texts)
    return between_MN, between_MN + z_MN - z_MN.mean(axis=1, keepdims=True)


def sensitivity(vectors: int) -> float:
    """How far apart two texts' uploads are at most, of so many vectors of unit length."""
    return 2 * math.sqrt(vectors + LONGEST_DIFFERENCE**2)


def bounded(targets_NK: np.ndarray) -> np.ndarray:
    """Differences, none longer than two distributions' can be."""
    lengths_N1 = np.linalg.norm(targets_NK, axis=1, keepdims=True)
    return targets_NK / np.maximum(lengths_N1 / LONGEST_DIFFERENCE, 1.0)


def to_classes(codes_CK: Numbers, y_s_NK: Numbers, offset_NK: Numbers) -> Numbers:
    """What a side network says, as differences of the classes [n, C]: for devices alone. Arrays, or
    tensors.
    """
    return (y_s_NK + offset_NK) @ codes_CK.T


def _orthonormal(rng: np.random.Generator, size: int) -> np.ndarray:
    """A rotation or reflection, evenly drawn (Stewart 1980): [size, size]."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))
