"""What the Fed MobiLLM server learns: keep uploaded records, train the shared side network on them,
evaluate it.

Every update is a pure function of the state before it, the records it is given and its step number,
so a sequence of calls replayed from the start gives the same bits; `saved` and `load` carry the
state over to another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.host_device import host_device
from learning.metrics import score
from learning.side.activations import decode
from learning.side.config import SideNetworkConfig, SideShape
from learning.side.network import SideNetwork, save_side_network
from learning.side.protection import to_classes


@dataclass(frozen=True)
class Training:
    """Optimiser settings of the side network (AdamW) and its loss."""

    __pydantic_config__ = {"extra": "forbid"}

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    loss: str = "squared-error"


@dataclass(frozen=True)
class HeldOut:
    """Held-out texts as one backbone sees them: vectors [n, V, d_m], its own prediction [n, C],
    labels [n]; where what devices send is protected, the secret offset [n, K] and codes [C, K].
    """

    values: np.ndarray
    prediction: np.ndarray
    labels: np.ndarray
    offset: np.ndarray | None = None
    codes: np.ndarray | None = None


class SideNetworkTrainer:
    """The server's cache of records and the side network trained on it."""

    def __init__(
        self,
        shape: SideShape,
        config: SideNetworkConfig,
        training: Training,
        held_out: Mapping[str, HeldOut],
        seed: int,
    ) -> None:
        self.training, self.seed, self.held_out = training, seed, held_out
        place = host_device().place_side_network
        self.network = place(SideNetwork(shape, config, seed))
        self.averaged = place(SideNetwork(shape, config, seed)).eval()
        self.averaged.skips = self.network.skips  # solved, so there is nothing to average
        self.optimiser = torch.optim.AdamW(
            _decay_groups(self.network, training.weight_decay),
            lr=training.learning_rate,
            fused=True,
        )
        self._trained: list[Tensor] = [
            *self.network.parameters()
        ]  # a step is short: looked up once
        self._means: list[Tensor] = [*self.averaged.parameters()]
        self.steps = 0
        self._records: list[tuple[str, Tensor, Tensor]] = []

    def observe(self, backbone: str, values: Tensor) -> None:
        """Let the statistics of `normalise: standard` take records [n, V, d_m] in."""
        self.network.observe(values, backbone)
        self.averaged.observe(values, backbone)

    def ingest(self, backbone: str, data: bytes) -> int:
        """Decode a payload into the cache; its records are numbered on from the last. Returns how
        many it held.
        """
        received = decode(data)
        values = torch.from_numpy(received.values)
        targets = torch.from_numpy(received.targets)
        self.observe(backbone, values)
        self._records += [
            (backbone, value, target) for value, target in zip(values, targets, strict=True)
        ]
        return len(received)

    def forget(self, records: Sequence[int]) -> None:
        """Drop the numbers of these records, which no later step may name."""
        for number in records:
            self._records[number] = (self._records[number][0], torch.empty(0), torch.empty(0))

    def step(self, records: Sequence[int]) -> float:
        """One AdamW update on the given numbers of ingested records; returns the loss per record
        before it.
        """
        return self.train([self._records[number] for number in sorted(records)])

    def train(self, records: Sequence[tuple[str, Tensor, Tensor]]) -> float:
        """One AdamW update on records (backbone, vectors [V, d_m], targets); returns the loss per
        record before it.
        """
        self.steps += 1
        masks = torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps) % 2**63)
        by_backbone: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for backbone, value, target in records:
            by_backbone.setdefault(backbone, []).append((value, target))
        parts = sorted(by_backbone.items())
        y_s_BC = self.network.training_forward(
            [(backbone, torch.stack([value for value, _ in mine])) for backbone, mine in parts],
            masks,
        )
        targets = torch.stack([target for _, mine in parts for _, target in mine])
        loss = self._loss(y_s_BC, targets.to(y_s_BC.device)) / len(records)
        for weight in self._trained:
            weight.grad = None
        loss.backward()
        self.optimiser.step()
        self._average()
        return float(loss.detach())

    def fit(self, records: Sequence[tuple[str, Tensor, Tensor]]) -> float:
        """Solve the skip for records (backbone, vectors [V, d_m], targets); returns its error per
        record.

        For cross-entropy the targets of a ridge regression are C times the prediction difference:
        what has to be added to log y_b, to first order and where y_b is 1/C.
        """
        by_backbone: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for backbone, value, target in records:
            by_backbone.setdefault(backbone, []).append((value, self._solved_for(target)))
        stacked = {
            name: (torch.stack([v for v, _ in mine]), torch.stack([t for _, t in mine]))
            for name, mine in by_backbone.items()
        }
        with torch.no_grad():
            return self.network.fit(stacked)

    def _solved_for(self, target: Tensor) -> Tensor:
        if self.training.loss == "squared-error":
            return target
        one_hot_C, y_b_C = target.chunk(2)
        if self.network.shape.skip == "logistic":
            return torch.cat([one_hot_C, _log(y_b_C)])
        return len(y_b_C) * (one_hot_C - y_b_C)

    def _loss(self, y_s_BC: Tensor, targets: Tensor) -> Tensor:
        if self.training.loss == "squared-error":
            return ((y_s_BC - targets) ** 2).sum()
        one_hot_BC, y_b_BC = targets.chunk(2, dim=1)  # cross-entropy needs the labels themselves
        return F.cross_entropy(_log(y_b_BC) + y_s_BC, one_hot_BC, reduction="sum")

    def _average(self) -> None:
        """Running mean of the weights, with a shorter memory at first so that the start is
        forgotten.
        """
        decay = min(self.network.config.averaging, (1 + self.steps) / (10 + self.steps))
        if not self.network.config.averaging:
            decay = 0.0
        with torch.no_grad():
            torch._foreach_lerp_(self._means, self._trained, 1 - decay)

    def evaluate(self, on: Mapping[str, HeldOut] | None = None) -> dict[str, float | None]:
        """Held-out accuracy of backbone + side network (the averaged weights) for each backbone, on
        other texts if they are given; None where what it predicts is not all finite.
        """
        found = {
            backbone: score("accuracy", self.predict(backbone, held), held.labels)
            for backbone, held in (self.held_out if on is None else on).items()
        }
        return {backbone: one and one["value"] for backbone, one in found.items()}

    def predict(self, backbone: str, held: HeldOut) -> np.ndarray:
        """What backbone + side network (the averaged weights) predict for texts, [n, C]."""
        with torch.inference_mode():
            y_s = self.averaged(torch.from_numpy(held.values), backbone).cpu()
            if held.codes is not None and held.offset is not None:
                codes, offset = torch.from_numpy(held.codes), torch.from_numpy(held.offset)
                y_s = to_classes(codes, y_s, offset)
            y_b = torch.from_numpy(held.prediction)
            predicted = y_b + y_s if self.training.loss == "squared-error" else _log(y_b) + y_s
        return predicted.numpy()

    def save_model(self, path: Path, **notes: str) -> None:
        """Write the averaged side network and its projections as safetensors (see
        `load_side_network`).
        """
        save_side_network(self.averaged, path, **notes)

    def saved(self) -> dict[str, Tensor]:
        """Everything but records that training goes on from: the live tensors (of an accelerator:
        copies), for whoever copies or writes them at once.
        """
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        for index, parameter in enumerate(self._parameters()):
            for name, value in self.optimiser.state[parameter].items():
                tensors[f"optimiser.{index}.{name}"] = value
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        return {**tensors, "steps": torch.tensor(self.steps)}

    def load(self, saved: Mapping[str, Tensor]) -> SideNetworkTrainer:
        """Take the state that `saved` gave, of equal shape and settings; returns itself."""
        self.network.load_state_dict(_under("network.", saved))
        self.averaged.load_state_dict(_under("averaged.", saved))
        for index, parameter in enumerate(self._parameters()):
            self.optimiser.state[parameter] = {
                k: v.to(parameter.device, copy=True)
                for k, v in _under(f"optimiser.{index}.", saved).items()
            }
        self.steps = int(saved["steps"])
        return self

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]


def _decay_groups(network: SideNetwork, weight_decay: float) -> list[dict]:
    """Weight decay for matrices; none for biases, gates and norms."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }


def _log(p: Tensor) -> Tensor:
    return torch.log(p.clamp_min(1e-6))
