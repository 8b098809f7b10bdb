"""Local training of several devices as one computation: what `local_training.train` does for each
of them, alike to the rounding of sums.

Devices of a round share the frozen backbone, so their batches go through it as one. What each
trains for itself are linear maps (LoRA's two, an adapter's, the head's): those of K devices are one
batched product of rows [K, n, in] with weights [K, out, in]. On an accelerator, which a single
device's small batch leaves idle between kernels, that is a step for all in little more than the
time of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from learning.backbones.tokens import Tokens
from learning.federated.dropout import dropping_out
from learning.federated.local_training import (
    LocalResult,
    LocalTraining,
    batches_of,
    inputs,
    new_optimiser,
)
from learning.federated.losses import loss_of, targets_of
from learning.federated.split import _replaced
from learning.federated.stackable import Holding, can_be_stacked, trained_maps
from learning.federated.trainable import TrainableClassifier


def train_together(
    model: TrainableClassifier, devices: Sequence[Holding], settings: LocalTraining
) -> list[LocalResult]:
    """Train every device's state on its own texts, shuffled by its own seed; all at once, as far as
    each has steps to do.

    Memory is that of one batch of all devices' batches. What is dropped out is drawn by the seeds
    of all: other masks than each alone would draw, and as random. Raises ValueError for a model
    that `can_be_stacked` denies, and where a device has nothing to train on.
    """
    if not can_be_stacked(model):
        raise ValueError(
            f"what {model.kind} trains of {model.spec.name!r} is not linear maps alone that read "
            "text after text"
        )
    if any(len(device.tokens) == 0 for device in devices):
        raise ValueError("a device without texts has nothing to train on")
    torch.set_num_threads(1)  # the same bits in every worker
    todo = [batches_of(len(device.tokens), settings, device.seed) for device in devices]
    order = sorted(range(len(devices)), key=lambda k: -len(todo[k]))  # those at work come first
    stack = _Stack(model, [devices[k].state for k in order])
    optimiser = new_optimiser(list(stack.parameters.values()), settings, matrix=3)
    losses: list[list[Tensor]] = [[] for _ in devices]
    results: dict[int, LocalResult] = {}
    with dropping_out(stack.model, settings.dropout, _seed_of(devices)):
        for number in range(max(map(len, todo))):
            working = [k for k in order if number < len(todo[k])]
            chosen = [todo[k][number] for k in working]
            losses_K = stack.losses([devices[k] for k in working], chosen)
            optimiser.zero_grad(set_to_none=True)
            losses_K.sum().backward()
            if settings.proximal_mu:
                stack.pull_back(settings.proximal_mu)
            stack.step(optimiser, [settings.share_of_rate(number, len(todo[k])) for k in working])
            for place, k in enumerate(working):
                losses[k].append(losses_K.detach()[place] * len(chosen[place]))
            ending = [place for place, k in enumerate(working) if number + 1 == len(todo[k])]
            for place, state in zip(ending, stack.states(ending), strict=True):
                k = working[place]
                texts = sum(map(len, todo[k]))
                summed = float(torch.stack(losses[k]).sum())
                results[k] = LocalResult(state, summed / texts, len(todo[k]))
    return [results[k] for k in range(len(devices))]


class _Stack:
    """A classifier whose trained maps are those of several devices; the rest of it is shared."""

    def __init__(self, model: TrainableClassifier, states: Sequence[Mapping[str, Tensor]]) -> None:
        self.host, self._working = model.host, [len(states)]
        self.received = {
            name: torch.stack([state[name] for state in states]).to(model.device)
            for name in model.trainable_parameters()
        }
        self.parameters = {n: nn.Parameter(t.clone()) for n, t in self.received.items()}
        maps = trained_maps(model)
        stand_ins = {
            path: _StackedLinear(
                self.parameters[f"{path}.weight"],
                self.parameters.get(f"{path}.bias"),
                self._working,
            )
            for path in maps
        }
        self.model = _replaced(model, stand_ins)

    def losses(self, devices: Sequence[Holding], chosen: Sequence[np.ndarray]) -> Tensor:
        """The mean loss [K] of what the chosen texts of the first K devices have the model say; a
        batch that is shorter than the longest repeats a text, which counts nothing.
        """
        self._working[0], rows = len(devices), max(map(len, chosen))
        all_rows = [np.resize(c, rows) for c in chosen]
        texts = [device.tokens for device in devices]
        labels = np.stack([d.labels[c] for d, c in zip(devices, all_rows, strict=True)])
        is_own_KB = np.arange(rows) < np.array([[len(c)] for c in chosen])
        batch = inputs(*_joined(texts, all_rows))
        with self.host.products():
            logits = self.model(*batch).float()
        targets_M = self.model.targets(*batch, targets_of(labels.reshape(-1))).to(logits.device)
        losses_M = loss_of(logits, targets_M, reduction="none")
        del logits  # of a whole vocabulary: their gradient needs the room
        text_M = self.model.texts_of(*batch)
        counts_M = torch.from_numpy(is_own_KB.reshape(-1)).float()[text_M]
        device_M = (text_M // rows).to(losses_M.device)
        told_K = torch.zeros(len(devices)).index_add_(0, text_M // rows, counts_M)
        share_M = counts_M / told_K[text_M // rows]
        none_K = losses_M.new_zeros(len(devices))
        return none_K.index_add(0, device_M, losses_M * share_M.to(losses_M.device))

    def pull_back(self, mu: float) -> None:
        """Add the gradient of FedProx's mu / 2 |w - w_received|^2."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, "the loss depends on every trainable tensor"
            parameter.grad.add_(parameter.detach() - self.received[name], alpha=mu)

    def step(self, optimiser: torch.optim.Optimizer, shares: Sequence[float]) -> None:
        """A step in which each of the first K devices goes so large a share of the way: steps of
        SGD and AdamW are in proportion to the learning rate, which devices of unlike length have
        decayed unlike.
        """
        if all(share == 1 for share in shares):
            optimiser.step()
            return
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        optimiser.step()
        share_K = next(iter(before.values())).new_tensor(shares)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                here, there = before[name][: len(shares)], parameter[: len(shares)]
                there.copy_(torch.lerp(here, there, share_K.view(-1, *[1] * (here.dim() - 1))))

    def states(self, places: Sequence[int]) -> list[dict[str, Tensor]]:
        """Copies of these devices' present states, in the CPU's memory."""
        if not places:
            return []
        here = {n: p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}
        return [{name: tensor[place].clone() for name, tensor in here.items()} for place in places]


class _StackedLinear(nn.Module):
    """Linear maps of K devices, on rows of which each device has as many: [K n, ..., in]."""

    def __init__(self, weight_KOI: Tensor, bias_KO: Tensor | None, working: list[int]) -> None:
        super().__init__()
        self.weight, self.bias, self._working = weight_KOI, bias_KO, working

    def forward(self, x: Tensor) -> Tensor:
        """[K n, ..., in] to [K n, ..., out]."""
        k = self._working[0]
        rows_KNI = x.reshape(k, -1, x.shape[-1])
        out_KNO = rows_KNI @ self.weight[:k].transpose(1, 2)
        if self.bias is not None:
            out_KNO = out_KNO + self.bias[:k, None]
        return out_KNO.reshape(*x.shape[:-1], -1)


def _seed_of(devices: Sequence[Holding]) -> int:
    """A seed for what they draw as one."""
    mixed = np.random.SeedSequence([device.seed for device in devices]).generate_state(2)
    return int(mixed[0]) << 31 | int(mixed[1]) >> 1


def _joined(texts: Sequence[Tokens], rows: Sequence[np.ndarray]) -> tuple[Tokens, range]:
    """The chosen rows of all devices, one after another."""
    ids = [t.ids[i] for t, chosen in zip(texts, rows, strict=True) for i in chosen]
    segments = None
    if texts[0].segments is not None:
        pairs = zip(texts, rows, strict=True)
        segments = [t.segments[i] for t, chosen in pairs for i in chosen]  # type: ignore[index]
    return Tokens(ids, segments), range(len(ids))
