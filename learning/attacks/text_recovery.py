"""Texts out of their vectors: which tokens stand in them, and which of many candidates they are.

    inverter = Inverter.fit(public_ND, public_ids, ignore=(101, 102))
    guesses = inverter.guess(private_ND)
    blind = blind_guess(public_ids, (101, 102))
    outcomes = judged_tokens("inverter", guesses, private_ids, blind, rng, (101, 102))
    top1, top10 = identify(uploads_ND, candidates_MD, true_N)

Three attackers. One has public texts, runs the backbone on them and learns to read tokens off
vectors: a linear multi-label inverter, which finds half of the words or more in sentence embeddings
(Song & Raghunathan, CCS 2020, section 3.2). One has candidates and looks for the nearest vector.
One knows the embedding table: layer 0 averaged over tokens is a mixture of rows of it, and sparse
non-negative mixtures can be taken apart (matching pursuit; Pati, Rezaiifar & Krishnaprasad 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from learning.attacks.bags import bag, commonest, measured
from learning.attacks.outcome import AttackOutcome, of_share
from learning.attacks.standards import standards, unit
from learning.side.heads import leave_one_out

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 17))
"""On an estimate of 1 for a token that stands in a text and 0 for others."""


# --- by public texts: a linear inverter


@dataclass(frozen=True)
class Inverter:
    """Ridge regression of which tokens a text has on its standardised vector.

    words_V: the token ids that it knows, the commonest first; mean_D, spread_D: of the public
    vectors; weights_DV, base_V: estimate = (vector - mean) / spread @ weights + base; threshold:
    above it a token is guessed.
    """

    words_V: np.ndarray
    mean_D: np.ndarray
    spread_D: np.ndarray
    weights_DV: np.ndarray
    base_V: np.ndarray
    threshold: float

    @classmethod
    def fit(
        cls,
        public: np.ndarray,
        public_ids: Sequence[np.ndarray],
        ignore: Sequence[int] = (),
        words: int = 2000,
    ) -> Inverter:
        """Learned from public texts' vectors [n, ...] and token ids, for the `words` commonest
        tokens that two of them have.

        The penalty has the least squared error on public texts left out, in closed form
        (`learning.side.heads`); the threshold the best mean F1 on them. Raises ValueError where no
        token stands in two texts.
        """
        x_ND = public.reshape(len(public), -1).astype(np.float64)
        words_V = commonest(public_ids, ignore, at_least=2)[:words]
        if not len(words_V):
            raise ValueError("no token stands in two public texts: there is nothing to learn")
        y_NV = np.array([np.isin(words_V, ids) for ids in public_ids], dtype=np.float64)
        mean_D, spread_D = standards(x_ND)
        u_NK, s_K, v_KD = np.linalg.svd((x_ND - mean_D) / spread_D, full_matrices=False)
        scale = max(float((s_K**2).sum()) / x_ND.shape[1], 1e-12)
        k, left_NV = leave_one_out(u_NK, s_K**2, y_NV, scale)
        base_V = y_NV.mean(axis=0)
        projected_KV = u_NK.T @ (y_NV - base_V)
        weights_DV = v_KD.T @ ((s_K / (s_K**2 + k))[:, None] * projected_KV)
        truths = [bag(ids, ignore) for ids in public_ids]
        threshold = _best_threshold(left_NV, words_V, truths)
        return cls(words_V, mean_D, spread_D, weights_DV, base_V, threshold)

    @classmethod
    def best(
        cls,
        ways: Sequence[np.ndarray],
        public_ids: Sequence[np.ndarray],
        ignore: Sequence[int] = (),
        words: int = 2000,
    ) -> Inverter:
        """That of several versions of the public vectors [n, ...], such as with and without noise,
        which finds most (F1) in the last of them: it is what uploads are like. Each is learned from
        every other text, and judged on the rest. Raises as `fit`.
        """
        if len(ways) == 1:
            return cls.fit(ways[0], public_ids, ignore, words)
        truths = [bag(ids, ignore) for ids in public_ids[1::2]]

        def found(public: np.ndarray) -> float:
            guesses = cls.fit(public[::2], public_ids[::2], ignore, words).guess(ways[-1][1::2])
            return _mean_f1(guesses, truths)

        return cls.fit(max(ways, key=found), public_ids, ignore, words)

    def guess(self, vectors: np.ndarray) -> list[np.ndarray]:
        """The token ids that each text seems to have, of its vectors [n, ...]: one at least."""
        x_ND = vectors.reshape(len(vectors), -1).astype(np.float64)
        estimates_NV = (x_ND - self.mean_D) / self.spread_D @ self.weights_DV + self.base_V
        return _above(estimates_NV, self.words_V, self.threshold)


def _above(estimates_NV: np.ndarray, words_V: np.ndarray, threshold: float) -> list[np.ndarray]:
    is_guessed_NV = estimates_NV > threshold
    is_guessed_NV[np.arange(len(estimates_NV)), estimates_NV.argmax(axis=1)] = True
    return [words_V[row] for row in is_guessed_NV]


def _best_threshold(left_NV: np.ndarray, words_V: np.ndarray, truths: list[set[int]]) -> float:
    return max(THRESHOLDS, key=lambda at: _mean_f1(_above(left_NV, words_V, at), truths))


def _mean_f1(guesses: Sequence[np.ndarray], truths: Sequence[set[int]]) -> float:
    pairs = zip(guesses, truths, strict=True)
    return float(np.mean([measured(set(g.tolist()), truth)[2] for g, truth in pairs]))


def nearest_tokens(
    states_TD: np.ndarray, public_MD: np.ndarray, ids_M: np.ndarray, at_once: int = 4096
) -> np.ndarray:
    """The token ids [T] of the public tokens [M] whose states are most like (by the cosine of what
    is standardised by the public ones) the states [T, D] of a text's tokens at the same layer.
    """
    mean_D, spread_D = standards(public_MD.astype(np.float64))
    x_TD = unit((states_TD.astype(np.float64) - mean_D) / spread_D)
    best_T, found_T = np.full(len(x_TD), -np.inf), np.zeros(len(x_TD), dtype=np.int64)
    for start in range(0, len(public_MD), at_once):
        part = slice(start, start + at_once)
        likeness_TM = x_TD @ unit((public_MD[part] - mean_D) / spread_D).T
        nearest_T = likeness_TM.argmax(axis=1)
        likeness_T = likeness_TM[np.arange(len(x_TD)), nearest_T]
        found_T = np.where(likeness_T > best_T, ids_M[part][nearest_T], found_T)
        best_T = np.maximum(best_T, likeness_T)
    return found_T


# --- by candidates: the nearest vector


def identify(
    uploads: np.ndarray, candidates: np.ndarray, true_N: np.ndarray, top: Sequence[int] = (1, 10)
) -> list[AttackOutcome]:
    """How often an upload's own text is among the `top` nearest of the candidates.

    Uploads [n, ...] and candidates' vectors [m, ...], which the attacker computes, are compared by
    the cosine of what is standardised by the candidates; `true_N` [n] says which candidate each
    upload is. A tie counts against the attacker. Chance is top / m. Raises ValueError for vectors
    of unlike size.
    """
    x_ND, y_MD = (v.reshape(len(v), -1).astype(np.float64) for v in (uploads, candidates))
    if x_ND.shape[1] != y_MD.shape[1]:
        raise ValueError(f"uploads have {x_ND.shape[1]} numbers, candidates {y_MD.shape[1]}")
    mean_D, spread_D = standards(y_MD)
    x_ND, y_MD = (unit((v - mean_D) / spread_D) for v in (x_ND, y_MD))
    likeness_NM = x_ND @ y_MD.T
    own_N = likeness_NM[np.arange(len(x_ND)), true_N]
    place_N = (likeness_NM >= own_N[:, None]).sum(axis=1)
    m = len(y_MD)
    return [
        of_share(f"nearest of {m} candidates", f"text in top {k}", place_N <= k, min(1.0, k / m))
        for k in top
    ]


def turned_back(uploads_ND: np.ndarray, known: Sequence[int], vectors_KD: np.ndarray) -> np.ndarray:
    """Uploads [n, hidden] in the backbone's own axes again, by the rotation that best turns the
    uploads of `known` texts into the vectors [k, hidden] that these have (Schoenemann 1966).

    A rotation that devices share is no secret from who knows about as many texts as there are axes.
    """
    from scipy.linalg import orthogonal_procrustes

    x_ND, y_KD = uploads_ND.astype(np.float64), vectors_KD.astype(np.float64)
    turn_DD, _ = orthogonal_procrustes(x_ND[list(known)], y_KD)
    return x_ND @ turn_DD


def turned_by_axes(
    uploads_ND: np.ndarray, public_MD: np.ndarray, axes: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Uploads and public vectors along their own principal axes, [n, axes] and [m, axes], which a
    rotation leaves as they are; signs are those that make the third moments positive.

    An attack on an unknown rotation that needs no known text, but uploads like the public texts.
    """
    return _along_axes(uploads_ND, axes), _along_axes(public_MD, axes)


def _along_axes(x_ND: np.ndarray, axes: int) -> np.ndarray:
    x_ND = x_ND.astype(np.float64) - x_ND.mean(axis=0)
    along_NA = x_ND @ np.linalg.svd(x_ND, full_matrices=False)[2][:axes].T
    return along_NA * np.where((along_NA**3).sum(axis=0) < 0, -1.0, 1.0)


# --- by the embedding table: a mixture taken apart


def atoms(
    embeddings: Callable[[Tensor], Tensor], ids_V: np.ndarray, length: int, at_once: int = 256
) -> np.ndarray:
    """What each token adds to the mean of layer 0, [V, hidden]: its embedding, normalised as in the
    model, on the average over the first `length` positions.

    `embeddings` maps token ids [B, T] to layer 0 [B, T, hidden]; of a BERT it is
    `backbone.model.embeddings`. What is averaged away is how a token's norm depends on its place.
    """
    import torch

    parts = []
    for start in range(0, len(ids_V), at_once):
        ids_BT = torch.from_numpy(ids_V[start : start + at_once]).long()[:, None]
        with torch.inference_mode():
            parts.append(embeddings(ids_BT.expand(-1, length)).mean(dim=1).cpu().numpy())
    return np.concatenate(parts)


def taken_apart(
    vectors_ND: np.ndarray,
    atoms_VD: np.ndarray,
    ids_V: np.ndarray,
    marks: Sequence[int] = (),
    most: int = 40,
    tolerance: float = 0.02,
) -> list[np.ndarray]:
    """The token ids whose atoms [V, hidden] mix to each mean-pooled vector [n, hidden].

    Non-negative orthogonal matching pursuit: the atom that is most like what is left joins, all
    shares are solved anew, until what is left is below `tolerance` of the vector or `most` atoms
    have joined. A token's share is about 1/T each time that it stands there; atoms that make up for
    the places of tokens have much less, and are dropped: below half of what the `marks` have, ids
    that every text has once, or where shares fall to a third or less at once. As the shares sum to
    1, the mean atom is taken off both sides, and what atoms have in common does not drown them.
    """
    from scipy.optimize import nnls

    mean_D = atoms_VD.astype(np.float64).mean(axis=0)
    a_VD = atoms_VD - mean_D
    unit_VD = unit(a_VD)
    found = []
    for left_D in vectors_ND - mean_D:
        whole_D, share_C = left_D, np.empty(0)
        chosen: list[int] = []
        while len(chosen) < most and np.linalg.norm(left_D) > tolerance * np.linalg.norm(whole_D):
            likeness_V = unit_VD @ left_D
            likeness_V[chosen] = -np.inf
            if likeness_V.max() <= 0:
                break
            chosen.append(int(likeness_V.argmax()))
            share_C, _ = nnls(a_VD[chosen].T, whole_D)
            left_D = whole_D - share_C @ a_VD[chosen]
        ids_C = ids_V[np.array(chosen, dtype=np.int64)]
        found.append(ids_C[_is_large(share_C, np.isin(ids_C, marks))])
    return found


def _is_large(share_C: np.ndarray, is_mark_C: np.ndarray) -> np.ndarray:
    """Which shares are as large as those of marks, or lie above the widest relative gap, if that is
    wide.
    """
    if is_mark_C.any():
        return share_C >= 0.5 * share_C[is_mark_C].mean()
    falling_C = np.sort(share_C)[::-1]
    falls = falling_C[:-1] / np.maximum(falling_C[1:], 0.05 * falling_C[:1])
    if not len(falls) or falls.max() < 3:
        return share_C > 0
    return share_C >= falling_C[falls.argmax()]
