"""Labels and texts out of an uploaded gradient, or out of the difference that one step has made.

    gradient_of = EmbeddingGradients(model, mask_BT)
    label = label_of_one(uploaded["head.bias"])
    found = matched(uploaded, gradient_of, labels_B, (1, 12, 384), table_VD, rng)

What is closed form comes first. The last layer's gradient is the mean of (probabilities - one_hot),
which names the label of a batch of one (iDLG; Zhao et al., arXiv 2001.02610) and counts those of
larger ones (Wainakh et al., User-Level Label Leakage, PoPETs 2022). A trained embedding table has a
gradient in the rows of the batch's tokens alone. A linear map's gradient is a sum of outer products
with its inputs, so these lie in its row space, and each token of the vocabulary can be asked
whether it does (DAGER; Petrov et al., NeurIPS 2024). Where none of this is uploaded, embeddings are
optimised until they give the same gradient (DLG; Zhu et al., NeurIPS 2019; TAG; Deng et al.,
Findings of EMNLP 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.attacks.outcome import AttackOutcome, of_mean
from learning.backbones.backbone import _read

if TYPE_CHECKING:
    from learning.federated.trainable import TrainableClassifier

GradientOf = Callable[[Tensor, Tensor], list[Tensor]]
"""Embeddings [B, T, D] and labels [B] to the gradients that a device would upload, with a graph."""


def gradients_of_step(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], learning_rate: float
) -> dict[str, Tensor]:
    """The gradients by which one step of plain SGD took one state to the other. (One of Adam's
    tells their signs alone.)
    """
    return {name: (before[name] - after[name]) / learning_rate for name in before}


# --- labels


def label_of_one(bias_gradient_C: Tensor) -> int:
    """The label of a batch of one text by the gradient of the classifier's bias [classes]: its one
    negative component, exactly.
    """
    return int(bias_gradient_C.argmin())


def label_of_one_by_weights(weight_gradient_CD: Tensor) -> int:
    """The same without a bias: the gradient's rows [classes, hidden] are multiples of one vector,
    and the label's alone points the other way than all others (iDLG, equation 5).
    """
    products_CC = weight_gradient_CD @ weight_gradient_CD.T
    return int((products_CC.sum(dim=1) - products_CC.diagonal()).argmin())


def label_counts(
    bias_gradient_C: Tensor, batch: int, mean_prediction_C: Tensor | None = None
) -> np.ndarray:
    """How often each label stands in a batch of so many texts, whole numbers [classes].

    The gradient is mean prediction less share of labels, so counts are batch x (prediction -
    gradient), rounded to the batch's size by largest remainders. They are exact where the mean
    prediction, which a server can estimate on public texts (default: uniform, as of a new head), is
    known within half a text.
    """
    g_C = bias_gradient_C.detach().double().cpu().numpy()
    uniform_C = np.full(len(g_C), 1 / len(g_C))
    p_C = uniform_C if mean_prediction_C is None else mean_prediction_C.double().cpu().numpy()
    wanted_C = np.maximum(batch * (p_C - g_C), 0.0)
    wanted_C *= batch / max(wanted_C.sum(), 1e-12)
    counts_C = np.floor(wanted_C).astype(np.int64)
    missing = batch - int(counts_C.sum())
    counts_C[np.argsort(counts_C - wanted_C, kind="stable")[:missing]] += 1
    return counts_C


def judged_labels(
    attack: str, guesses_KC: np.ndarray, counts_KC: np.ndarray, rng: np.random.Generator
) -> AttackOutcome:
    """The share of each batch's labels that is counted right, the mean over batches [k, classes],
    with a bootstrap over batches; chance is to name the commonest class every time.
    """
    sizes_K = counts_KC.sum(axis=1)
    right_K = np.minimum(guesses_KC, counts_KC).sum(axis=1) / sizes_K
    chance = float((counts_KC / sizes_K[:, None]).mean(axis=0).max())
    return of_mean(attack, "labels of a batch", right_K, chance, rng)


# --- tokens in closed form


def tokens_of_table(table_gradient_VD: Tensor) -> np.ndarray:
    """The token ids of a batch by the gradient of a trained embedding table [V, hidden]: the rows
    that are not all zero. (Where the table is the output's, too, no row is zero.)
    """
    return torch.nonzero(table_gradient_VD.abs().amax(dim=1)).flatten().cpu().numpy()


def tokens_in_span(
    weight_gradient_OD: Tensor,
    embeddings: Callable[[Tensor], Tensor],
    ids_V: np.ndarray,
    length: int,
    tolerance: float = 1e-5,
    at_once: int = 1024,
) -> list[np.ndarray]:
    """For each of the first `length` positions the token ids whose layer 0 lies in the row space of
    a gradient [out, hidden] of a linear map that reads layer 0, such as the first query.

    `embeddings` maps ids [B, T] to layer 0 [B, T, hidden]; a token fits if less than `tolerance` of
    its embedding is outside of the space: 1e-5 is for float32, 1e-2 for float16. Of a batch of one
    text this gives order, too; of more, what stands at each place in any of them. LoRA's A tells
    once its B is no longer zero, of as many tokens as its rank. Nothing is told where the batch has
    as many tokens as there are axes.
    """
    _, s_K, rows_KD = torch.linalg.svd(weight_gradient_OD.detach().double(), full_matrices=False)
    rows_KD = rows_KD[s_K > 0.1 * tolerance * s_K[0]]
    found: list[list[np.ndarray]] = [[] for _ in range(length)]
    for start in range(0, len(ids_V), at_once):
        some_V = ids_V[start : start + at_once]
        ids_BT = torch.from_numpy(some_V).long()[:, None].expand(-1, length)
        with torch.inference_mode():
            e_BTD = embeddings(ids_BT).double()
            outside_BTD = e_BTD - e_BTD @ rows_KD.T @ rows_KD
            fits_BT = outside_BTD.norm(dim=-1) < tolerance * e_BTD.norm(dim=-1)
        for place, fits_B in enumerate(fits_BT.T.cpu().numpy()):
            found[place].append(some_V[fits_B])
    return [np.concatenate(parts) for parts in found]


# --- tokens by matching gradients


class EmbeddingGradients:
    """What a device would upload, as a function of the embeddings that it reads: gradients of the
    mean cross-entropy by all that a classifier trains but its table of tokens.

    names: of these tensors, in order. Texts are as long as the mask [B, T] says.
    """

    def __init__(self, model: TrainableClassifier, mask_BT: Tensor) -> None:
        self.model, self.mask_BT = model, mask_BT
        table = model.backbone.get_input_embeddings().weight
        trained = model.trainable_parameters().items()
        self._trained = {name: tensor for name, tensor in trained if tensor is not table}
        self.names = tuple(self._trained)

    def __call__(self, embeddings_BTD: Tensor, labels_B: Tensor) -> list[Tensor]:
        """The gradients, each with a graph back to the embeddings."""
        model = self.model
        h_BTD = model.backbone(
            inputs_embeds=embeddings_BTD, attention_mask=self.mask_BT
        ).last_hidden_state
        logits_BC = model.head(_read(h_BTD, self.mask_BT, model.readout))
        loss = F.cross_entropy(logits_BC, labels_B)
        return list(torch.autograd.grad(loss, list(self._trained.values()), create_graph=True))


class MatchedTexts(NamedTuple):
    """The token ids [B, T] nearest to the embeddings that were found, and the objective there."""

    ids_BT: np.ndarray
    objective: float


def matched(
    uploaded: Sequence[Tensor],
    gradient_of: GradientOf,
    labels_B: Tensor,
    shape_BTD: tuple[int, int, int],
    table_VD: Tensor,
    rng: np.random.Generator,
    steps: int = 300,
    learning_rate: float = 0.3,
    objective: str = "relative",
) -> MatchedTexts:
    """Texts of known labels and lengths whose gradients are like the uploaded ones.

    Starts at random embeddings of the table's own mean and deviation and minimises an objective of
    `OBJECTIVES` by Adam with a rate of `learning_rate` times the table's deviation, falling to
    zero; then each place gets the nearest row of the table [V, hidden]. Raises ValueError for
    another objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    table_VD = table_VD.detach()
    uploaded = [tensor.detach() for tensor in uploaded]
    spread = float(table_VD.std())
    noise_BTD = torch.from_numpy(rng.normal(0, spread, shape_BTD)).to(table_VD)
    x_BTD = (table_VD.mean(dim=0) + noise_BTD).requires_grad_()
    optimiser = torch.optim.Adam([x_BTD])
    best, found_BTD = float("inf"), x_BTD.detach().clone()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate * spread * (1 - step / steps)
        loss = OBJECTIVES[objective](gradient_of(x_BTD, labels_B), uploaded)
        if float(loss.detach()) < best:
            best, found_BTD = float(loss.detach()), x_BTD.detach().clone()
        (x_BTD.grad,) = torch.autograd.grad(loss, [x_BTD])
        optimiser.step()
    nearest_N = torch.cdist(found_BTD.flatten(0, 1), table_VD).argmin(dim=1)
    return MatchedTexts(nearest_N.reshape(shape_BTD[:2]).cpu().numpy(), best)


def _dlg(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Squared differences, relative to the uploaded squares."""
    apart = torch.stack([((a - b) ** 2).sum() for a, b in zip(ours, theirs, strict=True)]).sum()
    return apart / torch.stack([(b**2).sum() for b in theirs]).sum()


def _tag(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """DLG's, and half as much of the absolute differences, relative to the uploaded ones."""
    apart = torch.stack([(a - b).abs().sum() for a, b in zip(ours, theirs, strict=True)]).sum()
    return _dlg(ours, theirs) + 0.5 * apart / torch.stack([b.abs().sum() for b in theirs]).sum()


def _relative(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The length of each tensor's difference over that of the uploaded one, the mean over tensors:
    so the last layer, whose gradient is the longest, does not stand for all.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if bool((b != 0).any())]
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).mean()


OBJECTIVES: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "dlg": _dlg,
    "tag": _tag,
    "relative": _relative,
}
"""DLG's and TAG's distances between gradients, and one of ours, by which more is found."""
