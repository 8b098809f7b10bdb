"""What devices do to a batch before it is encoded, so that the server learns less from it."""

from __future__ import annotations

import math

import numpy as np

from learning.differential_privacy import noise_for
from learning.side.protection import Secret, bounded, decoy_shares, sensitivity, to_send
from sim.kernel.streams import Streams
from sim.methods.side_tuning.protection import Protection

DECOYS = -1
"""Sample numbers from here down are decoys'; in the field numbers would say nothing."""


class Protecting:
    """A method's protection with the secret that devices share. All that is random belongs to a
    text: whoever sends it twice sends the same.
    """

    def __init__(self, settings: Protection, secret: Secret, streams: Streams) -> None:
        self.settings, self.secret, self.streams = settings, secret, streams

    def vectors(
        self, backbone: str, a_NVD: np.ndarray, targets_NC: np.ndarray, samples_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors, differences and sample numbers as they are sent, after decoys' have been added:
        [n + decoys, V, d], [n + decoys, K], [n + decoys].
        """
        c = self.settings
        texts = self._texts(samples_N)
        if c.decoys:
            a_NVD, targets_NC, samples_N, texts = self._with_decoys(a_NVD, targets_NC, samples_N)
        enough = enough_noise(c, a_NVD.shape[1])
        if enough:
            targets_NC = bounded(targets_NC)
        noise_NK = np.zeros((len(texts), self.secret.codes.shape[1]), dtype=np.float32)
        more_NVD = np.zeros_like(a_NVD)
        is_noisy = bool(c.activation_noise or enough)
        for row, text in enumerate(texts if c.noise or is_noisy else ()):
            rng = self.streams.rng("owner/noise", text)
            noise_NK[row] = math.hypot(c.noise, enough) * rng.standard_normal(noise_NK.shape[1])
            if is_noisy:
                more_NVD[row] = vector_noise(c, a_NVD[row], enough) * rng.standard_normal(
                    a_NVD[row].shape
                )
        sent_NVD, targets_NK = to_send(self.secret, backbone, a_NVD, targets_NC, noise_NK)
        return (sent_NVD + more_NVD if is_noisy else sent_NVD), targets_NK, samples_N

    def matrices(
        self, a_LND: np.ndarray, lengths: np.ndarray, targets: np.ndarray, samples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every token's vectors [L, N, D] of texts of these lengths, rotated and with noise, and
        their differences [n, C] as codes [n, K].
        """
        c = self.settings
        noise_NK = np.zeros((len(samples), self.secret.codes.shape[1]), dtype=np.float32)
        more_LND, end = np.zeros_like(a_LND), 0
        for row, text in enumerate(self._texts(samples) if c.noise or c.activation_noise else ()):
            rng = self.streams.rng("owner/noise", text)
            noise_NK[row] = c.noise * rng.standard_normal(noise_NK.shape[1])
            start, end = end, end + int(lengths[row])
            own_LND = a_LND[:, start:end]
            deviation = vector_noise(c, own_LND)
            more_LND[:, start:end] = deviation * rng.standard_normal(own_LND.shape)
        sent_LND = self.secret.rotated(a_LND.transpose(1, 0, 2)).transpose(1, 0, 2)
        coded_NK = (targets @ self.secret.codes + noise_NK).astype(np.float32)
        return (sent_LND + more_LND if c.activation_noise else sent_LND), coded_NK

    def _texts(self, samples: np.ndarray) -> list[int | str]:
        return [int(sample) for sample in samples]

    def _with_decoys(
        self, a_NVD: np.ndarray, targets_NC: np.ndarray, samples_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int | str]]:
        """The same with records of no text among them (`decoy_shares`), each with the difference to
        a class that is none or, where there are no such, to one drawn by shares of the owner's.
        """
        n, classes = targets_NC.shape
        none = len(self.secret.decoys)
        count = self.settings.decoys_of(n)
        rng = self.streams.rng("owner/decoys", int(samples_N[0]))
        between_MN, about_MN = decoy_shares(n, count, rng)
        if none:
            drawn = classes + rng.integers(none, size=count)
        else:  # as many of each would leave the largest group the largest
            shares = self.streams.rng("owner/decoy-classes").dirichlet(np.ones(classes))
            drawn = rng.choice(classes, count, p=shares)
        y_b_NC = np.eye(classes)[targets_NC.argmax(axis=1)] - targets_NC
        wide_NC = np.pad(targets_NC, ((0, 0), (0, none)))
        decoys_MC = np.eye(classes + none)[drawn] - np.pad(between_MN @ y_b_NC, ((0, 0), (0, none)))
        about_MVD = np.tensordot(about_MN, a_NVD, axes=1)
        mixed = rng.permutation(n + count)  # nothing of where a record stands says what it is
        texts = [*self._texts(samples_N), *(f"{samples_N[0]}/{number}" for number in range(count))]
        return (
            np.concatenate([a_NVD, about_MVD])[mixed].astype(a_NVD.dtype),
            np.concatenate([wide_NC, decoys_MC])[mixed].astype(targets_NC.dtype),
            np.concatenate([samples_N, DECOYS - np.arange(count)])[mixed],
            [texts[place] for place in mixed],
        )


def enough_noise(settings: Protection, vectors: int) -> float:
    """Deviation of the noise on every number of a text of so many vectors, for differential
    privacy; 0 without.
    """
    if settings.epsilon is None:
        return 0.0
    return noise_for(settings.epsilon, settings.delta) * sensitivity(vectors)


def vector_noise(settings: Protection, vectors: np.ndarray, enough: float = 0.0) -> np.ndarray:
    """Deviation of the noise on each number of vectors [..., d], [..., 1]: no secret."""
    size = np.sqrt((vectors**2).mean(axis=-1, keepdims=True))
    if enough:  # vectors are brought to unit length
        size = np.full_like(size, 1 / math.sqrt(vectors.shape[-1]))
    return np.hypot(settings.activation_noise * size, enough)
