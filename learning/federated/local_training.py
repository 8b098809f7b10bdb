"""What a device of an on-device baseline does with its own texts: a few epochs of gradient descent
on the trainable part.

Training is a pure function of (backbone, state, texts, settings, seed): the same bits every time,
in one torch thread. The settings can be read without importing torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from learning.backbones.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.trainable import TrainableClassifier

Share: TypeAlias = tuple[int, int]
"""(k, n): of batches in order, every nth from the kth on."""
WHOLE: Share = (0, 1)


@dataclass(frozen=True)
class LocalTraining:
    """How a device trains in one round; the defaults are FedPETuning's (Zhang et al., Findings of
    ACL 2023) for LoRA.

    `momentum` is that of sgd (v = momentum v + g, w -= rate v). With the `linear` schedule step t
    of T makes 1 - t / T of the learning rate, t from 0, anew in each round; `constant` all of it.
    `weight_decay` is decoupled for adamw and spares biases and norms (tensors of one dimension);
    `proximal_mu` is FedProx's mu (Li et al., MLSys 2020): it adds mu / 2 |w - w_received|^2 to the
    loss. `dropout` is the rate of everything that the architecture drops out, and of the head's
    inputs; 0 for none.
    """

    __pydantic_config__ = {"extra": "forbid"}

    epochs: int = 1
    batch: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    optimiser: Literal["adamw", "sgd"] = "adamw"
    proximal_mu: float = 0.0
    momentum: float = 0.0
    schedule: Literal["linear", "constant"] = "linear"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """What float32 does not hold is infinite there, and what trains by it diverges: some of
        PyTorch's steps would raise instead.
        """
        for name in ("learning_rate", "weight_decay", "proximal_mu"):
            if getattr(self, name) > float(np.finfo(np.float32).max):
                object.__setattr__(self, name, math.inf)

    @property
    def charged_as(self) -> str:
        """The entry of `learning.cost.costs.OPTIMISER_NUMBERS` that the optimiser's state has."""
        return charged_as(self.optimiser, self.momentum)

    def share_of_rate(self, step: int, steps: int) -> float:
        """What share of the learning rate step `step` of `steps` makes, counted from 0."""
        return 1 - step / steps if self.schedule == "linear" else 1.0


def charged_as(optimiser: str, momentum: float) -> str:
    """The entry of `learning.cost.costs.OPTIMISER_NUMBERS` of an optimiser."""
    return "momentum" if optimiser == "sgd" and momentum else optimiser


class LocalResult(NamedTuple):
    """The new state, the mean cross-entropy per text before each step (with what was dropped out),
    and the number of steps.
    """

    state: dict[str, Tensor]
    mean_loss: float
    steps: int


def train(
    model: TrainableClassifier,
    state: Mapping[str, Tensor],
    tokens: Tokens,
    labels: np.ndarray,
    settings: LocalTraining,
    seed: int,
    correction: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train `state` on `tokens` with class numbers `labels` [n]; the texts are shuffled anew by
    `seed` every epoch, and what is dropped out is drawn by it.

    `correction` is added to every gradient (SCAFFOLD's control variates, Karimireddy et al., ICML
    2020). `state` is left as it is; the model keeps no trace but the tensors that the next
    `load_trainable` overwrites. Raises ValueError where there is nothing to train on or the
    optimiser is unknown.
    """
    import torch

    from learning.federated.dropout import dropping_out
    from learning.federated.losses import loss_of, targets_of

    if len(tokens) == 0:
        raise ValueError("a device without texts has nothing to train on")
    torch.set_num_threads(1)  # the same bits in every worker
    state = {name: tensor.to(model.device) for name, tensor in state.items()}
    model.load_trainable(state)
    parameters = model.trainable_parameters()
    optimiser = new_optimiser(list(parameters.values()), settings)
    targets = targets_of(np.asarray(labels))
    correction = {name: tensor.to(model.device) for name, tensor in (correction or {}).items()}
    losses: list[tuple[Tensor, int]] = []  # read at the end: an accelerator need not wait for us
    todo = batches_of(len(tokens), settings, seed)
    with dropping_out(model, settings.dropout, seed):
        for number, (rows, batch) in enumerate(_padded_once(tokens, todo)):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * settings.share_of_rate(number, len(todo))
            with model.host.products():
                logits = model(*batch)
            wanted = model.targets(*batch, targets[rows])
            loss = loss_of(logits.float(), wanted.to(logits.device))
            del logits  # of a whole vocabulary: their gradient needs the room
            _forget_gradients(parameters)
            loss.backward()
            if settings.proximal_mu:
                for name, parameter in parameters.items():  # of mu / 2 |w - w_received|^2
                    _add_gradient(parameter, parameter.detach() - state[name], settings.proximal_mu)
            for name, added in correction.items():
                _add_gradient(parameters[name], added)
            optimiser.step()
            losses.append((loss.detach(), len(rows)))
    _forget_gradients(parameters)
    summed = math.fsum(float(loss) * texts for loss, texts in losses)
    mean_loss = summed / max(1, settings.epochs * len(tokens))
    return LocalResult(model.trainable(), mean_loss, len(losses))


def batches_of(texts: int, settings: LocalTraining, seed: int) -> list[np.ndarray]:
    """The places of the texts in every step's batch, epoch after epoch."""
    rng = np.random.default_rng(seed)
    return [
        chosen
        for _ in range(settings.epochs)
        for chosen in _batches(rng.permutation(texts), settings.batch)
    ]


def predict(
    model: TrainableClassifier,
    state: Mapping[str, Tensor],
    tokens: Tokens,
    batch: int = 64,
    share: Share = WHOLE,
) -> np.ndarray:
    """Logits of every text, float32 [n, classes], computed in length-sorted batches; larger ones
    than `batch` on an accelerator. Of a share of the batches, 0 for the texts of the others.
    """
    import torch

    torch.set_num_threads(1)
    model.load_trainable(state)
    logits = np.zeros((len(tokens), model.classes), dtype=np.float32)
    longest = int(tokens.lengths().max(initial=1))
    batch = max(batch, model.host.rows(longest, model.head.in_features))
    with torch.inference_mode(), model.host.products():
        todo = _batches(np.argsort(tokens.lengths(), kind="stable"), batch)
        for chosen in itertools.islice(todo, share[0], None, share[1]):
            logits[chosen] = model(*inputs(tokens, chosen)).float().cpu().numpy()
    return logits


def _padded_once(
    tokens: Tokens, todo: Sequence[np.ndarray]
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]]:
    """The rows of each batch, and what `inputs` makes of them, cut out of all texts padded as one;
    batch by batch where the padding would weigh more than the texts are worth.
    """
    import torch

    lengths = tokens.lengths()
    if len(tokens) * int(lengths.max()) > _PADDED_AT_ONCE:
        yield from ((torch.from_numpy(chosen), inputs(tokens, chosen)) for chosen in todo)
        return
    ids_NT, mask_NT, segments_NT = inputs(tokens, range(len(tokens)))
    for chosen in todo:
        rows, longest = torch.from_numpy(chosen), int(lengths[chosen].max())
        ids_BT = ids_NT[:, :longest].index_select(0, rows)
        mask_BT = mask_NT[:, :longest].index_select(0, rows)
        segments_BT = (
            None if segments_NT is None else segments_NT[:, :longest].index_select(0, rows)
        )
        yield rows, (ids_BT, mask_BT, segments_BT)


_PADDED_AT_ONCE = 1 << 21  # tokens, 32 MB with their mask


def inputs(
    tokens: Tokens, chosen: Sequence[int] | np.ndarray
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The chosen texts as a model takes them: ids [B, T], mask [B, T] and segments [B, T] (None for
    single texts).
    """
    from learning.backbones.backbone import pad

    ids_BT, mask_BT = pad([tokens.ids[i] for i in chosen])
    segments_BT = None if tokens.segments is None else pad([tokens.segments[i] for i in chosen])[0]
    return ids_BT, mask_BT, segments_BT


def _forget_gradients(parameters: Mapping[str, Tensor]) -> None:
    """What `optimiser.zero_grad` does, without the profiler's record of it."""
    for parameter in parameters.values():
        parameter.grad = None


def _add_gradient(parameter: Tensor, added: Tensor, times: float = 1.0) -> None:
    assert parameter.grad is not None, "the loss depends on every trainable tensor"
    parameter.grad.add_(added, alpha=times)


def _batches(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    return (order[start : start + batch] for start in range(0, len(order), batch))


def new_optimiser(parameters: list[Tensor], settings: LocalTraining, matrix: int = 2):
    """The optimiser of the settings; what has fewer dimensions than a `matrix` does not decay."""
    import torch

    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": 0.0}]
    if settings.weight_decay:
        matrices = [p for p in parameters if p.ndim >= matrix]
        others = [p for p in parameters if p.ndim < matrix]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, foreach=True
        )
    raise ValueError(f"optimiser {settings.optimiser!r} is not one of adamw, sgd")
