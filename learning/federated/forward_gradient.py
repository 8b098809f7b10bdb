"""Learning from forward passes alone: FwdLLM, FedMeZO and Spry, as functions of states, seeds and
losses. No clock.

A state is a dict of named tensors theta; a loss is a function of a state (`batch_loss` makes one
from a classifier and a batch). With a direction v drawn from N(0, I), the derivative s of the loss
along v gives s v, whose mean is the gradient:

    s = (L(theta + h v) - L(theta - h v)) / 2h     two forward passes (FwdLLM, h = 0.01; SPSA in
                                                   FedMeZO, h = 1e-3)
    s = <grad L(theta), v>                         one forward pass that carries derivatives (Spry)

A direction follows from its seed, so (seed, s) stands for s v wherever the seeds are shared: 12
bytes for any model. Nothing here imports torch before it computes with it. Sources: FwdLLM (USENIX
ATC 2024) and its repository at commit 36ecdbc; FedMeZO (alibaba/FederatedScope, branch FedMeZO)
after MeZO (arXiv 2305.17333) and SPSA (Spall 1992); Spry (NeurIPS 2024) and its repository at
commit f85533c.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from learning.federated.aggregation import (
    ServerMoments,
    ServerOptimiser,
    model_delta,
    server_step,
    weighted_mean,
)
from learning.federated.seeds import derived_seed

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State
    from learning.federated.trainable import TrainableClassifier

    Loss = Callable[[State], Tensor]


def batch_loss(
    model: TrainableClassifier,
    ids_BT: Tensor,
    mask_BT: Tensor,
    labels_B: Tensor,
    segments_BT: Tensor | None = None,
) -> Loss:
    """Mean cross-entropy of a batch as a function of the trainable tensors, or of some of them; the
    model stays as it is.
    """

    from torch.func import functional_call

    from learning.federated.losses import loss_of

    def loss(state: State) -> Tensor:
        own = {name: tensor.to(model.device) for name, tensor in state.items()}
        logits_BC = functional_call(model, own, (ids_BT, mask_BT, segments_BT), tie_weights=False)
        wanted_B = model.targets(ids_BT, mask_BT, segments_BT, labels_B)
        return loss_of(logits_BC, wanted_B.to(logits_BC.device))

    return loss


# --- directions and derivatives
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A direction, by its seed, and the derivative of the loss along it. `derivative` is a float32
    number, as on the wire.
    """

    seed: int
    derivative: float


def direction(like: State, seed: int) -> dict[str, Tensor]:
    """v from N(0, I) for every tensor of a state; drawn in the order of the names, so equal for any
    order of the dict.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(like[name].shape, generator=generator) for name in sorted(like)}


def central_difference(loss: Loss, state: State, v: State, h: float) -> float:
    """(L(theta + h v) - L(theta - h v)) / 2h, rounded to float32; nothing is moved in place, so no
    rounding stays behind.
    """
    import torch

    with torch.no_grad():
        ahead, behind = (loss(moved(state, v, shift)) for shift in (h, -h))
    return float(np.float32((float(ahead) - float(behind)) / (2 * h)))


def directional_derivative(loss: Loss, state: State, v: State) -> tuple[float, float]:
    """The loss and <grad L, v> in one pass, by forward-mode differentiation with respect to the
    tensors of `state`.
    """
    import torch

    along = {name: v[name] for name in state}
    # no_grad is of no effect on forward mode; it keeps other tensors of the model out of a graph
    with torch.no_grad():
        value, slope = torch.func.jvp(loss, (dict(state),), (along,))[:2]
    return float(value), float(slope)


def moved(state: State, v: State, by: float) -> dict[str, Tensor]:
    """theta + by v."""
    return {name: tensor + by * v[name] for name, tensor in state.items()}


def gradient_of(probes: Sequence[Probe], like: State) -> dict[str, Tensor]:
    """The mean of s v over probes."""
    total = {name: tensor.detach() * 0 for name, tensor in like.items()}
    for probe in probes:
        total = moved(total, direction(like, probe.seed), probe.derivative)
    return {name: tensor / len(probes) for name, tensor in total.items()}


def encode_probes(probes: Sequence[Probe]) -> bytes:
    """12 bytes a probe: the seed as int64 and the derivative as float32."""
    return np.array([(p.seed, p.derivative) for p in probes], dtype=_PROBE).tobytes()


def decode_probes(data: bytes) -> list[Probe]:
    """The probes of a payload, to the bit."""
    return [
        Probe(int(p["seed"]), float(p["derivative"])) for p in np.frombuffer(data, dtype=_PROBE)
    ]


_PROBE = np.dtype([("seed", "<i8"), ("derivative", "<f4")])
PROBE_BYTES = _PROBE.itemsize
SEED_BYTES = _PROBE["seed"].itemsize


# --- FwdLLM
# ------------------------------------------------------------------------------------------


def candidate(like: State, pool: int, numbers: Mapping[str, int]) -> dict[str, Tensor]:
    """A direction: of each tensor the candidate of this number of the pool of this seed, drawn from
    N(0, I). Each follows from (pool, number, name) alone.
    """
    return {name: _drawn(like[name], pool, numbers[name], name) for name in like}


def _drawn(like: Tensor, pool: int, number: int, name: str) -> Tensor:
    import torch

    seed = derived_seed(pool, f"{number}/{name}")
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def nearest_candidates(
    last_gradient: State, pool: int, number: int, candidates: int = 10
) -> dict[str, list[int]]:
    """FwdLLM's filter, tensor by tensor: of `candidates` times `number` directions those `number`
    whose cosine with the last global gradient is highest, the nearest first (of equals the earlier
    one).

    So one direction is put together of tensors of several candidates.
    """
    import torch

    chosen = {}
    for name, gradient in last_gradient.items():
        goal_P, cosines = gradient.flatten(), []
        chunk = max(1, _CHUNK // goal_P.numel())  # a square head's pool would fill the memory
        for start in range(0, candidates * number, chunk):
            numbers = range(start, min(start + chunk, candidates * number))
            pool_NP = torch.stack([_drawn(goal_P, pool, one, name) for one in numbers])
            # in proportion to the cosine; torch.cosine_similarity takes sixty times as long
            cosines.append((pool_NP @ goal_P) / pool_NP.norm(dim=1))
        order = torch.cat(cosines).argsort(descending=True, stable=True)
        chosen[name] = order[:number].tolist()
    return chosen


_CHUNK = 2**22  # numbers


def slopes_along(
    losses: Sequence[Loss], state: State, directions: Sequence[State], h: float = 0.01
) -> np.ndarray:
    """The derivative of the mean loss along each direction, in float32: two forward passes a loss
    and direction.
    """
    slopes = [[central_difference(loss, state, v, h) for loss in losses] for v in directions]
    return np.array(slopes, dtype=np.float32).mean(axis=1, dtype=np.float32)


def fwdllm_gradient(
    slopes: Sequence[float] | np.ndarray, directions: Sequence[State]
) -> dict[str, Tensor]:
    """The mean of s v: what a device uploads, or what a server makes itself that knows the
    directions.
    """
    total = {name: tensor * 0 for name, tensor in directions[0].items()}
    for slope, v in zip(slopes, directions, strict=True):
        total = moved(total, v, float(slope))
    return {name: tensor / len(directions) for name, tensor in total.items()}


def half_mean_variance(gradients: Sequence[Tensor]) -> float:
    """How much the means of the two halves of the received gradients of one watched tensor differ.

    The unbiased variance of the two half-means, |a - b|^2 / 2 an entry, averaged over the entries.
    With an odd number the first half is the smaller. Infinite for fewer than two gradients.
    """
    import torch

    if len(gradients) < 2:
        return math.inf
    stacked, half = torch.stack(list(gradients)), len(gradients) // 2
    return float(((stacked[:half].mean(dim=0) - stacked[half:].mean(dim=0)) ** 2 / 2).mean())


def needs_more(gradients: Sequence[State], watched: str, threshold: float) -> bool:
    """Whether FwdLLM's server asks for more perturbations before it steps: the halves disagree by
    more than `threshold`.
    """
    return half_mean_variance([gradient[watched] for gradient in gradients]) > threshold


def fwdllm_step(
    state: State, gradients: Sequence[State], learning_rate: float
) -> tuple[dict[str, Tensor], State]:
    """theta - lr sum(g) / N, and sum(g) / N itself: the last global gradient of the next round's
    candidates.
    """
    mean = weighted_mean(gradients, [1.0] * len(gradients))
    return moved(state, mean, -learning_rate), mean


def warm_up_then_linear(step: int, peak: float, warm_up: int, total: int) -> float:
    """The learning rate of step 0, 1, ...: up to `peak` in `warm_up` steps, then down in a line to
    0 at `total`.
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * max(0.0, (total - step) / max(1, total - warm_up))


# --- FedMeZO
# ------------------------------------------------------------------------------------------


def mezo_steps(
    losses: Sequence[Loss], state: State, seed: int, learning_rate: float, eps: float = 1e-3
) -> tuple[dict[str, Tensor], list[Probe]]:
    """Local SPSA steps, one a loss: theta - lr s v, with the direction of step k seeded by (seed,
    k).

    Returns the state and the probes, from which `replay` makes the same state to the bit.
    """
    probes: list[Probe] = []
    state = dict(state)
    for step, loss in enumerate(losses):
        at = derived_seed(seed, step)
        v = direction(state, at)
        probes.append(Probe(at, central_difference(loss, state, v, eps)))
        state = moved(state, v, -learning_rate * probes[-1].derivative)
    return state, probes


def replay(state: State, probes: Sequence[Probe], learning_rate: float) -> dict[str, Tensor]:
    """The state after the local steps that the probes stand for: a server needs their seeds and
    scalars only.
    """
    state = dict(state)
    for probe in probes:
        state = moved(state, direction(state, probe.seed), -learning_rate * probe.derivative)
    return state


# --- Spry
# ------------------------------------------------------------------------------------------


def assign_tensors(
    names: Sequence[str], clients: int, each: int = 2, shared: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """Which trainable tensors each sampled client trains: `each` at a time, round-robin, in the
    order of `names`.

    With fewer clients than portions the round goes on, so a client gets several; with more, it
    begins again, so several clients train the same portion. `shared` tensors (the head, in the
    published settings) go to every client besides.
    """
    dealt = [name for name in names if name not in set(shared)]
    portions = [tuple(dealt[i : i + each]) for i in range(0, len(dealt), each)]
    hands: list[tuple[str, ...]] = [()] * clients
    for turn in range(max(len(portions), clients) if portions else 0):
        hands[turn % clients] += portions[turn % len(portions)]
    return [hand + tuple(shared) for hand in hands]


@dataclass(frozen=True)
class SpryResult:
    """What a Spry client returns: its assigned tensors after training; and the probes of a server
    that shares its seeds.
    """

    state: dict[str, Tensor]
    probes: list[list[Probe]]
    losses: list[float]


def spry_steps(
    losses: Sequence[Loss],
    state: State,
    assigned: Sequence[str],
    seed: int,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    perturbations: int = 1,
) -> SpryResult:
    """Local training of the assigned tensors, one AdamW step a loss with the gradient mean(s v)
    over the perturbations.

    The other tensors of `state` stay as they are and carry no derivative.
    """
    import torch

    own = {name: state[name].detach().clone() for name in assigned}
    fixed = {name: tensor for name, tensor in state.items() if name not in own}
    optimiser = torch.optim.AdamW(
        own.values(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    result = SpryResult(own, [], [])
    for step, loss in enumerate(losses):
        result.probes.append([])
        for k in range(perturbations):
            at = derived_seed(seed, step * perturbations + k)
            of_own = functools.partial(_with_fixed, loss, fixed)
            value, slope = directional_derivative(of_own, own, direction(own, at))
            result.probes[-1].append(Probe(at, float(np.float32(slope))))
        result.losses.append(value)
        for name, gradient in gradient_of(result.probes[-1], own).items():
            own[name].grad = gradient
        optimiser.step()
    for tensor in own.values():
        tensor.grad = None
    return result


def _with_fixed(loss: Loss, fixed: State, part: State) -> Tensor:
    return loss({**fixed, **part})


def spry_server_step(
    settings: ServerOptimiser,
    state: State,
    returned: Sequence[State],
    weights: Sequence[float],
    moments: ServerMoments | None = None,
    v_start: float = 0.0,
) -> tuple[dict[str, Tensor], ServerMoments]:
    """The weighted mean of each tensor over the clients that trained it, then one step of the
    server optimiser (fedyogi) towards it, whose v starts from `v_start`.

    A tensor that nobody returned stays as it is. Spry's code takes Flower's FedYogi, which weighs
    by examples and starts from 0, not from tau^2 as Reddi et al. do.
    """
    mean = weighted_mean(returned, weights)
    moments = moments or ServerMoments({}, {name: t * 0 + v_start for name, t in state.items()})
    return server_step(settings, state, model_delta(mean, state), moments)
