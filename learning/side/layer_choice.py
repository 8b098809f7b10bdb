"""Which layers of a backbone are worth their bytes, and which layers of unlike backbones say the
same: both by a sample of texts.

*Worth* is what the layers' vectors know of the targets: the squared error, out of sample, of a
ridge regression on the vectors of all chosen layers side by side (`learning.side.heads`). Layers
are added one at a time, each time the one that leaves the least error, so that a layer which
repeats another is worth little. With Z_l the standardised vectors [N, D] of layer l, vectors side
by side have the Gram matrix sum_l Z_l Z_l' / D, which is all that the regression asks for.

*Likeness* is linear centred kernel alignment (Kornblith et al. 2019, section 3), for centred X and
Y of any widths

    CKA(X, Y) = <X X', Y Y'> / (||X X'|| ||Y Y'||),

which no rotation and no scale changes. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from learning.cost.costs import Cost
from learning.side.heads import SHRINKAGES, leave_one_out
from learning.side.taps import TapRule, average_interval


def choose(
    rule: TapRule,
    blocks: int,
    vectors: Mapping[str, np.ndarray],
    targets_NC: np.ndarray,
    with_embedding: bool = True,
) -> dict[str, tuple[int, ...]]:
    """So many layers of every backbone (1-based, rising), by its vectors [N, layers + 1, D_m] of
    the same N texts; the embedding, layer 0, is never chosen, and `with_embedding` says whether it
    is uploaded anyway.

    Where the rule aligns by likeness, the deepest backbone (the first of these by name) has the
    layers that the rule gives it, and all others those that are most like them, in their order.
    """

    def by_rule(name: str) -> tuple[int, ...]:
        if rule.by == "interval":
            return average_interval(vectors[name].shape[1] - 1, blocks)
        return most_worth(vectors[name], targets_NC, blocks, [0] if with_embedding else [])

    if rule.align == "position":
        return {name: by_rule(name) for name in vectors}
    first = max(sorted(vectors), key=lambda name: vectors[name].shape[1])
    layers = by_rule(first)
    leading = [_gram(vectors[first][:, layer]) for layer in layers]
    return {
        name: layers if name == first else most_alike(leading, own_NVD)
        for name, own_NVD in vectors.items()
    }


def most_worth(
    vectors_NVD: np.ndarray, targets_NC: np.ndarray, count: int, given: Sequence[int] = ()
) -> tuple[int, ...]:
    """So many layers from 1 on, beside the `given` ones, whose vectors together know most of the
    targets.
    """
    grams = [_gram(standardised(x_ND)) for x_ND in vectors_NVD.swapaxes(0, 1)]
    known_NN = sum((grams[layer] for layer in given), np.zeros_like(grams[0]))
    chosen: list[int] = []
    for _ in range(count):
        left = [layer for layer in range(1, len(grams)) if layer not in chosen]
        best = min(left, key=lambda layer: error(known_NN + grams[layer], targets_NC))
        known_NN = known_NN + grams[best]
        chosen.append(best)
    return tuple(sorted(chosen))


def error(gram_NN: np.ndarray, targets_NC: np.ndarray) -> float:
    """Mean squared error, out of sample, of ridge regression on centred vectors of this Gram
    matrix, at the best of `SHRINKAGES`.
    """
    squares_N, u_NN = np.linalg.eigh(gram_NN)
    squares_N = np.maximum(squares_N, 0.0)
    scale = max(float(squares_N.sum()) / len(gram_NN), 1e-12)
    _, left_NC = leave_one_out(u_NN, squares_N, targets_NC.astype(np.float64), scale)
    return float(((targets_NC - left_NC) ** 2).sum()) / len(targets_NC)


def most_alike(leading: Sequence[np.ndarray], vectors_NVD: np.ndarray) -> tuple[int, ...]:
    """As many layers from 1 on as there are leading Gram matrices, rising, whose likeness to them,
    one to one, is the greatest in sum.
    """
    layers, blocks = vectors_NVD.shape[1] - 1, len(leading)
    own = [_gram(vectors_NVD[:, layer]) for layer in range(1, layers + 1)]
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by the last layer taken
    for k, gram_NN in enumerate(leading, 1):
        like = {layer: likeness(gram_NN, own[layer - 1]) for layer in range(1, layers + 1)}
        best = {
            layer: max(
                (
                    (total + like[layer], (*taken, layer))
                    for last, (total, taken) in best.items()
                    if last < layer
                ),
                key=lambda found: found[0],
            )
            for layer in range(k, layers - blocks + k + 1)
        }
    return max(best.values(), key=lambda found: found[0])[1]


def linear_cka(x_ND: np.ndarray, y_NE: np.ndarray) -> float:
    """Likeness of two sets of vectors of the same texts: 0 to 1, 1 of a rotated or scaled copy."""
    return likeness(_gram(x_ND), _gram(y_NE))


def likeness(gram_NN: np.ndarray, other_NN: np.ndarray) -> float:
    """Linear CKA by the Gram matrices of centred vectors; 0 where one does not vary."""
    norms = float(np.linalg.norm(gram_NN) * np.linalg.norm(other_NN))
    return float(np.vdot(gram_NN, other_NN)) / norms if norms > 0 else 0.0


def standardised(x_ND: np.ndarray) -> np.ndarray:
    """Every number less its mean and over its deviation, as the side network takes them in."""
    x_ND = x_ND.astype(np.float64)
    mean_D, deviation_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    floor = 1e-3 * np.sqrt((x_ND**2).mean()) + 1e-12
    return (x_ND - mean_D) / np.maximum(deviation_D, floor)


def _gram(x_ND: np.ndarray) -> np.ndarray:
    """Of centred vectors, over their width."""
    z_ND = x_ND.astype(np.float64)
    z_ND = z_ND - z_ND.mean(axis=0)
    return z_ND @ z_ND.T / z_ND.shape[1]


def choosing(
    rule: TapRule,
    blocks: int,
    depths: Mapping[str, int],
    widths: Mapping[str, int],
    texts: int,
    outputs: int,
) -> Cost:
    """What `choose` costs: Gram matrices of all layers, 2 N^2 D FLOP each; for every layer that is
    tried a symmetric eigendecomposition, 9 N^3 (Golub & Van Loan, section 8.3), and the predictions
    of all shrinkages; for every likeness a product of Gram matrices. All in float64.
    """
    first = max(sorted(depths), key=depths.__getitem__)
    tried = 9.0 * texts**3 + len(SHRINKAGES) * 2.0 * texts**2 * (outputs + 1)
    cost = Cost()
    for name, layers in depths.items():
        flop = 2.0 * (layers + 1) * texts**2 * widths[name]
        if rule.by == "importance" and (rule.align == "position" or name == first):
            flop += tried * sum(layers - done for done in range(blocks))
        if rule.align == "cka" and name != first:
            flop += 2.0 * blocks * layers * texts**2
        held = 8 * ((layers + 3) * texts**2 + texts * widths[name])
        cost += Cost(flop, 4.0 * texts * (layers + 1) * widths[name] + 2.0 * held, held)
    return cost
