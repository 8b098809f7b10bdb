"""How a server makes one model of many: pure functions on states, which are dicts of named tensors.

A state may lack tensors that another has (a shallower cut of the same backbone): every mean is
taken over those that have the tensor, and a tensor that nobody sent stays as it is. Nothing here
imports torch before it computes with it.

A *delta* is a trained state less the state that its device received: a negative pseudo-gradient.
Symbols are the papers'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    State = Mapping[str, Tensor]  # what is trained: tensors by name


# --- means
# ------------------------------------------------------------------------------------------


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of each tensor over the states that have it, by their weights; summed in float64, in
    the given order.

    Raises ValueError for a tensor with a negative weight, or with none above zero.
    """
    import torch
    from torch._utils import _unflatten_dense_tensors

    mean = {}
    for names in _blocks(states):
        shares = _shares(states, weights, names[0])
        like = [states[shares[0][0]][name] for name in names]
        total = torch.zeros(sum(one.numel() for one in like), dtype=torch.float64)
        for k, share in shares:
            total.add_(_flat(states[k], names), alpha=share)
        parts = _unflatten_dense_tensors(total, like)
        for name, part, one in zip(names, parts, like, strict=True):
            mean[name] = part.to(one.dtype, copy=True)  # in memory of its own
    return {name: mean[name] for name in _names(states)}


def fed_avg(x: State, states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """FedAvg (McMahan et al., AISTATS 2017): the mean of what was sent; the rest of the server's
    `x` stays.

    Weights are the devices' numbers of texts; FedPETuning weighs all devices equally.
    """
    return {**x, **weighted_mean(states, weights)}


def model_delta(trained: State, received: State) -> dict[str, Tensor]:
    """The delta of every tensor of `trained`."""
    import torch

    names = list(trained)
    if not names:
        return {}
    new, old = [trained[name] for name in names], [received[name] for name in names]
    return dict(zip(names, torch._foreach_sub(new, old), strict=True))


def restrict(x: State, like: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of `x` that `like` has, in its order: what a shallower device downloads."""
    return {name: x[name] for name in like}


def is_finite(state: State) -> bool:
    """Whether every number of a state is finite; one that is not would take the whole mean
    along.
    """
    return all(_all_finite(_flat(state, names)) for names in _blocks([state]))


def _all_finite(numbers: Tensor) -> bool:
    """By the least and the greatest, of which NaN is either: several times faster than to look at
    each.
    """
    return not numbers.numel() or all(math.isfinite(end) for end in numbers.aminmax())


# --- server optimisers
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerOptimiser:
    """A step of the server on the mean delta (Reddi et al., ICLR 2021, algorithm 2; FedAvgM: Hsu et
    al. 2019).

    Defaults are theirs: beta1 0.9, beta2 0.99, tau 1e-3. The learning rate is theirs to tune (1
    makes fedavg a plain mean; fedadam and fedyogi want about 0.01, since they move every number by
    about the learning rate).
    """

    __pydantic_config__ = {"extra": "forbid"}

    kind: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    only_for = {  # who sets one of these for another kind is told that nothing reads it
        "beta1": ("fedavgm, fedadam and fedyogi", lambda settings: settings.kind != "fedavg"),
        **dict.fromkeys(
            ("beta2", "tau"), ("fedadam and fedyogi", lambda s: s.kind in ("fedadam", "fedyogi"))
        ),
    }


@dataclass(frozen=True)
class ServerMoments:
    """What the server optimiser remembers: m and v of each tensor; absent ones start at 0 and
    tau^2.
    """

    m: Mapping[str, Tensor] = field(default_factory=dict)
    v: Mapping[str, Tensor] = field(default_factory=dict)


def server_step(
    settings: ServerOptimiser, x: State, delta: State, moments: ServerMoments | None = None
) -> tuple[dict[str, Tensor], ServerMoments]:
    """The server's new model and moments after one mean delta; tensors without a delta stay, and so
    do their moments.

    fedavg: x + eta d. fedavgm: m = beta1 m + d, x + eta m. fedadam and fedyogi: m = beta1 m + (1 -
    beta1) d, then v = beta2 v + (1 - beta2) d^2, or v = v - (1 - beta2) d^2 sign(v - d^2), and x +
    eta m / (sqrt(v) + tau), without correction of the bias. Raises ValueError for an unknown kind.
    """
    kind = settings.kind
    eta = settings.learning_rate
    beta1 = settings.beta1
    beta2 = settings.beta2
    tau = settings.tau
    if kind not in ("fedavg", "fedavgm", "fedadam", "fedyogi"):
        raise ValueError(
            f"server optimiser {kind!r} is not one of fedavg, fedavgm, fedadam, fedyogi"
        )
    moments = moments or ServerMoments()
    new = dict(x)
    new_m = dict(moments.m)
    new_v = dict(moments.v)
    for name, d in delta.items():
        m = moments.m.get(name, d * 0)
        if kind == "fedavg":
            new[name] = x[name] + eta * d
            continue
        if kind == "fedavgm":
            new_m[name] = beta1 * m + d
            new[name] = x[name] + eta * new_m[name]
            continue
        v = moments.v.get(name, d * 0 + tau**2)
        new_m[name] = beta1 * m + (1 - beta1) * d
        if kind == "fedadam":
            new_v[name] = beta2 * v + (1 - beta2) * d**2
        else:
            new_v[name] = v - (1 - beta2) * d**2 * (v - d**2).sign()
        new[name] = x[name] + eta * new_m[name] / (new_v[name].sqrt() + tau)
    return new, ServerMoments(new_m, new_v)


# --- asynchronous
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staleness:
    """How much an update counts that was computed on a model `staleness` updates old (Xie et al.
    2019, section 5.2).

    constant: 1. polynomial: (1 + t)^-a. hinge: 1 up to b, then 1 / (a (t - b) + 1).
    """

    __pydantic_config__ = {"extra": "forbid"}

    kind: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: float = 0.5
    b: float = 4.0

    only_for = {
        "a": ("polynomial and hinge", lambda settings: settings.kind != "constant"),
        "b": ("hinge", lambda settings: settings.kind == "hinge"),
    }

    def weight(self, staleness: float) -> float:
        """A factor in (0, 1]; ValueError for an unknown kind or a negative staleness."""
        if staleness < 0:
            raise ValueError(f"an update cannot be {staleness} updates old")
        if self.kind == "constant":
            return 1.0
        if self.kind == "polynomial":
            return (1 + staleness) ** -self.a
        if self.kind == "hinge":
            return 1.0 if staleness <= self.b else 1 / (self.a * (staleness - self.b) + 1)
        raise ValueError(f"staleness {self.kind!r} is not one of constant, polynomial, hinge")


def fed_async(x: State, trained: State, mixing: float) -> dict[str, Tensor]:
    """FedAsync (Xie et al. 2019): (1 - a) x + a x_new on arrival; a = alpha *
    `Staleness.weight`.
    """
    return {
        **x,
        **{name: (1 - mixing) * x[name] + mixing * tensor for name, tensor in trained.items()},
    }


def fed_buff(deltas: Sequence[State], stalenesses: Sequence[int]) -> dict[str, Tensor]:
    """FedBuff (Nguyen et al., AISTATS 2022): the mean of K buffered deltas, each times 1 / sqrt(1 +
    staleness).

    The sum is divided by K (by those who have the tensor), not by the sum of the factors, so that
    an old buffer moves the model less. The result is a delta for `server_step`.
    """
    scaled = [
        {name: tensor / math.sqrt(1 + staleness) for name, tensor in delta.items()}
        for delta, staleness in zip(deltas, stalenesses, strict=True)
    ]
    return weighted_mean(scaled, [1.0] * len(scaled))


# --- LoRA of different ranks
# -----------------------------------------------------------------------------------------


def flex_lora(
    states: Sequence[State],
    weights: Sequence[float],
    scalings: Sequence[float],
    targets: Sequence[tuple[int, float]],
) -> list[dict[str, Tensor]]:
    """FlexLoRA (Bai et al., NeurIPS 2024): the mean dense update, cut to each target (rank,
    scaling) by an SVD.

    `scalings` are alpha / rank of each state, whose update of a matrix is scaling x B A. The mean
    of K such updates is itself a product of stacked factors, so the SVD is taken of a small core
    between two QR factors: exact, and cheap. A target gets B = U S / scaling and A = V^T, the best
    update of its rank. Other tensors are averaged as by `fed_avg`.
    """
    mean = weighted_mean(
        [{n: t for n, t in state.items() if ".lora_" not in n} for state in states], weights
    )
    factors = {}
    most = max((rank for rank, _ in targets), default=0)
    for a_name in (name for name in _names(states) if ".lora_A." in name):
        b_name = a_name.replace(".lora_A.", ".lora_B.")
        shares = _shares(states, weights, a_name)
        b_parts = [states[k][b_name].double() * (share * scalings[k]) for k, share in shares]
        factors[a_name], factors[b_name] = _best(
            b_parts, [states[k][a_name].double() for k, _ in shares], most
        )
    made = []
    for rank, scaling in targets:
        state = {}
        for name in _names(states):
            if name in mean:
                state[name] = mean[name].clone()
            elif ".lora_A." in name:
                state[name] = factors[name][:rank].float().contiguous()
            else:
                state[name] = (factors[name][:, :rank] / scaling).float().contiguous()
        made.append(state)
    return made


def cut_rank(state: State, rank: int, scaling: float, new_scaling: float) -> dict[str, Tensor]:
    """The first `rank` directions of every LoRA in a state, for a model whose scaling (alpha /
    rank) is another.

    Of what `flex_lora` made, whose directions come in the order of their strength, this is the best
    of that rank. Other tensors stay.
    """
    made = {}
    for name, tensor in state.items():
        if ".lora_A." in name:
            tensor = tensor[:rank].contiguous()
        elif ".lora_B." in name:
            tensor = (tensor[:, :rank] * (scaling / new_scaling)).contiguous()
        made[name] = tensor
    return made


def flex_lora_flop(
    ranks: Sequence[int], rank: int, inputs: int, outputs: int | None = None
) -> float:
    """The floating-point operations of `flex_lora` for one matrix of LoRA (square unless told
    otherwise), cut to one rank.

    Leading terms (Golub & Van Loan, Matrix Computations, sections 5.2 and 8.6): R being the sum of
    the ranks, 4 n R^2 for the thin QR factorisation of either side of n numbers, 2 R^3 for the
    core, 21 R^3 for its SVD, 2 n R rank for the product of either side after it.
    """
    both = inputs + (outputs or inputs)
    r = min(sum(ranks), inputs, outputs or inputs)
    return 4.0 * both * r**2 + 23.0 * r**3 + 2.0 * both * r * rank


def _best(b_parts: list[Tensor], a_parts: list[Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] with orthonormal rows and B [out, rank], whose product is the best of its rank
    for [B..] [A..].
    """
    import torch

    b_OR, a_RI = torch.cat(b_parts, dim=1), torch.cat(a_parts, dim=0)
    missing = max(
        0, rank - a_RI.shape[0]
    )  # rows beyond the sum's own rank: any directions, at zero strength
    a_RI = torch.cat([a_RI, torch.eye(missing, a_RI.shape[1], dtype=a_RI.dtype)])
    b_OR = torch.cat([b_OR, torch.zeros(b_OR.shape[0], missing, dtype=b_OR.dtype)], dim=1)
    q_b, r_b = torch.linalg.qr(b_OR)
    q_a, r_a = torch.linalg.qr(a_RI.T)
    u, s, v_t = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return v_t[:rank] @ q_a.T, (q_b @ u[:, :rank]) * s[:rank]


_BLOCK = 1 << 16  # numbers: many small tensors are one operation, a large one is enough for one


def _blocks(states: Sequence[State]) -> list[list[str]]:
    """Every name once, in blocks of tensors that the same states have, all of one type, as small
    ones can be computed with as one.
    """
    blocks: list[list[str]] = []
    last, room = None, 0
    for name in _names(states):
        holders = [k for k, state in enumerate(states) if name in state]
        tensor = states[holders[0]][name]
        kind = (holders, tensor.dtype)
        if kind != last or tensor.numel() > room:
            blocks.append([])
            last, room = kind, _BLOCK
        blocks[-1].append(name)
        room -= tensor.numel()
    return blocks


def _flat(state: State, names: Sequence[str]) -> Tensor:
    """The numbers of these tensors, one after another."""
    from torch._utils import _flatten_dense_tensors

    return _flatten_dense_tensors([state[name] for name in names])


def _shares(
    states: Sequence[State], weights: Sequence[float], name: str
) -> list[tuple[int, float]]:
    """Who has a tensor, and what share of its mean each holder makes up."""
    having = [(k, weight) for k, weight in enumerate(weights) if name in states[k]]
    total = math.fsum(weight for _, weight in having)
    if total <= 0 or min(weight for _, weight in having) < 0:
        raise ValueError(f"the weights of those who sent {name} must not be negative, nor all zero")
    return [(k, weight / total) for k, weight in having]


def _names(states: Sequence[State]) -> list[str]:
    """Every name once; shallower states hold the first names of deeper ones, so the order is the
    deepest's.
    """
    return list(dict.fromkeys(name for state in states for name in state))
