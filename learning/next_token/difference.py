"""What a device says of the truth on a next-token task, and how it is predicted.

For a place whose last state is h, whose head gives p = softmax(E h), and after which the token y
comes, the prediction difference is delta = one_hot(y) - p: a number a word of the vocabulary. It
outweighs all activations, so it can be told shorter:

    whole     delta, V numbers
    top-K     its K largest entries and which they are; the others are -p, which the server knows
    gradient  g = E' delta = -dL/dh, D numbers: which way the last state should move

The server learns to predict g (of `whole` and `top-K` it takes E' delta itself, for E is public).
Along the mean curvature of the loss, H = E[E'(diag p - p p')E], which follows from the
backbone's own predictions and needs no truth, a predicted g becomes a move of the last state:
h_s = (H + k I)^-1 g_s, Newton's step, where a plain step along g would move h along the few axes
of which H has much, and hardly along all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.backbones.vocabulary_head import VocabularyHead
from learning.next_token.choices import Form

AT_ONCE = 512  # places whose logits are in memory at a time


def told(
    head: VocabularyHead, last_MD: Tensor, said_M: Tensor, form: Form
) -> tuple[Tensor, Tensor | None]:
    """What a device says of each place's difference, [M, N], and of which words that is [M, N],
    where it is of some.
    """
    if form.kind == "gradient":
        return negative_gradient(head, last_MD, said_M), None
    if form.kind == "whole":
        return whole(head, last_MD, said_M).cpu(), None
    none = (0, form.entries)
    numbers, words = [last_MD.new_zeros(none)], [said_M.new_zeros(none)]
    for h_BD, said_B in _pieces(last_MD, said_M):
        delta_BV = whole(head, h_BD, said_B)
        words_BN = delta_BV.abs().topk(form.entries, dim=1).indices
        numbers.append(delta_BV.gather(1, words_BN).cpu())
        words.append(words_BN.cpu())
    return torch.cat(numbers), torch.cat(words)


def gradient_of(
    head: VocabularyHead, last_MD: Tensor, numbers_MN: Tensor, words_MN: Tensor | None
) -> Tensor:
    """g [M, D] from the whole difference, or from some of its entries, at these last states. All
    entries that are not told are those of words that were not said: -p, by the head and the state.
    """
    found = [last_MD[:0]]
    for start in range(0, len(last_MD), AT_ONCE):
        place = slice(start, start + AT_ONCE)
        with torch.enable_grad():
            h_BD = last_MD[place].detach().requires_grad_()
            logits_BV = read(head, h_BD)
            delta_BV = numbers_MN[place].to(logits_BV)
            if words_MN is not None:
                others_BV = -logits_BV.detach().softmax(dim=1)
                words_BN = words_MN[place].to(logits_BV.device)
                delta_BV = others_BV.scatter(1, words_BN, delta_BV)
            found += torch.autograd.grad(logits_BV, h_BD, delta_BV)
    return torch.cat(found)


def negative_gradient(head: VocabularyHead, last_MD: Tensor, said_M: Tensor) -> Tensor:
    """g = -dL/dh [M, D] of the cross-entropy of each place's token, whatever the head does."""
    return torch.cat(
        [_gradient(head, h_BD, said_B) for h_BD, said_B in _pieces(last_MD, said_M)]
        or [last_MD[:0]]
    )


def _gradient(head: VocabularyHead, h_BD: Tensor, said_B: Tensor) -> Tensor:
    with torch.enable_grad():
        h_BD = h_BD.detach().requires_grad_()
        logits_BV = read(head, h_BD)
        loss = F.cross_entropy(logits_BV, said_B.to(logits_BV.device), reduction="sum")
        (found_BD,) = torch.autograd.grad(loss, h_BD)
    return -found_BD


def whole(head: VocabularyHead, last_MD: Tensor, said_M: Tensor) -> Tensor:
    """delta = one_hot(y) - p, [M, V], in the head's memory."""
    with torch.inference_mode():
        delta_MV = -read(head, last_MD).softmax(dim=1)
        delta_MV[torch.arange(len(said_M)), said_M.to(delta_MV.device)] += 1
    return delta_MV


def curvature(head: VocabularyHead, last_MD: Tensor) -> Tensor:
    """The mean of E'(diag p - p p')E over these places, float64 [D, D]."""
    weight_VD = head.weight.float()
    mass_V = torch.zeros(weight_VD.shape[0])
    moment_DD = torch.zeros(weight_VD.shape[1], weight_VD.shape[1], dtype=torch.float64)
    with torch.inference_mode():
        for h_BD, _ in _pieces(last_MD, last_MD):
            p_BV = read(head, h_BD).softmax(dim=1)
            mass_V += p_BV.sum(dim=0).cpu()
            mean_BD = (p_BV @ weight_VD).cpu().double()
            moment_DD += mean_BD.T @ mean_BD
        mass_V = mass_V.to(weight_VD.device)
        spread_DD = ((weight_VD.T * mass_V) @ weight_VD).cpu().double()
        return (spread_DD - moment_DD) / max(1, len(last_MD))


def losses(head: VocabularyHead, last_MD: Tensor, said_M: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of each place's token, float64 [M], and whether it is the likeliest."""
    nll, right = [], []
    with torch.inference_mode():
        for h_BD, said_B in _pieces(last_MD, said_M):
            logits_BV = read(head, h_BD)
            there_B = said_B.to(logits_BV.device)
            nll.append(F.cross_entropy(logits_BV, there_B, reduction="none").cpu().double())
            right.append((logits_BV.argmax(dim=1) == there_B).cpu())
    return torch.cat(nll), torch.cat(right)


def read(head: VocabularyHead, last_MD: Tensor) -> Tensor:
    """Logits [M, V] after these last states, float32, in the memory in which the head lies."""
    return head(last_MD.to(head.weight)).float()


def _pieces(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(first), AT_ONCE):
        yield first[start : start + AT_ONCE], second[start : start + AT_ONCE]
