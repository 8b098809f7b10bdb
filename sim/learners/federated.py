"""The learning behind the federated baselines' clock: one trainable state, trained on devices, averaged by the server."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.catalogue import BackboneError
from learning.local_training import LocalTraining
from learning.tokens import Tokens
from sim.learners.null import NullLearner
from sim.learners.side_tuning import SideTuningLearner

if TYPE_CHECKING:
    from torch import Tensor

    from sim.simulation import Simulation


class FederatedLearner(NullLearner):
    """Real local training of real backbones. `state` is the server's: that of the deepest backbone of the fleet.

    A shallower backbone of the same family trains and sends the first part of it. Raises BackboneError for a fleet whose
    backbones are not cuts of one model: their states cannot be averaged.
    """

    work = SideTuningLearner.work

    def __init__(
        self,
        sim: Simulation,
        peft: str,
        readout: str,
        rank: int,
        alpha: float,
        bottleneck: int,
        head: str = "linear",
        target_modules: Sequence[str] | str | None = None,
    ) -> None:
        from learning.trainable import TrainableClassifier

        self.sim = sim
        seed = sim.streams.seed64("server/model") % 2**31
        self.models = {
            name: TrainableClassifier(
                *(spec, peft, sim.task.classes, readout, rank, alpha, bottleneck, seed),
                head=head,
                target_modules=target_modules,
            )
            for name, spec in sim.costing.learned.items()
        }
        deepest = max(self.models, key=lambda name: len(self.models[name].trainable()))
        self.state: dict[str, Tensor] = self.models[deepest].trainable()
        self._require_one_family(deepest)
        self._tokens: dict[str, Tokens] = {}
        self._row: dict[str, dict[int, int]] = {}
        for name, spec in sim.costing.learned.items():
            mine = [d.samples for d in sim.devices if d.backbone == name]
            samples = np.unique(np.concatenate([*mine, sim.task.test]))
            self._tokens[name] = sim.task.tokens(spec, samples)
            self._row[name] = {int(sample): row for row, sample in enumerate(samples)}

    def _require_one_family(self, deepest: str) -> None:
        for name, model in self.models.items():
            if any(n not in self.state or self.state[n].shape != t.shape for n, t in model.trainable().items()):
                raise BackboneError(
                    f"{name} is not a cut of {deepest}: this method averages what devices train, so its fleet needs "
                    "backbones of one family (Fed MobiLLM takes any)"
                )

    def tokens(self, backbone: str, samples: np.ndarray) -> Tokens:
        """The samples as the backbone's tokens."""
        rows, whole = [self._row[backbone][int(sample)] for sample in samples], self._tokens[backbone]
        segments = None if whole.segments is None else [whole.segments[row] for row in rows]
        return Tokens([whole.ids[row] for row in rows], segments)

    def part_of(self, backbone: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of the server's state a backbone has."""
        from learning.aggregation import restrict

        return restrict(state, self.models[backbone].trainable_parameters())

    def train(
        self, backbone: str, samples: np.ndarray, state: Mapping[str, Tensor], settings: LocalTraining, seed: int
    ) -> dict[str, Tensor]:
        """What a device makes of the state it received, from its own texts."""
        from learning.local_training import train

        labels = self.sim.task.labels[samples]
        own = self.part_of(backbone, state)
        return train(self.models[backbone], own, self.tokens(backbone, samples), labels, settings, seed).state

    def packed(self, state: Mapping[str, Tensor]) -> bytes:
        """The state as bytes on the wire."""
        from learning.state_codec import pack

        return pack(state)

    def unpacked(self, backbone: str, data: bytes) -> dict[str, Tensor]:
        """The state of a backbone from its bytes."""
        from learning.state_codec import unpack

        return unpack(data, self.models[backbone].trainable_parameters())

    def become(self, state: dict[str, Tensor]) -> None:
        """The server's next state; one that is not finite ends the run."""
        from learning.aggregation import is_finite

        self.state = state
        if not is_finite(state):
            self.diverged = "weights"

    def evaluate(self) -> dict[str, float | None]:
        """Held-out accuracy of every backbone with its part of the server's state."""
        from learning.local_training import evaluate

        test, labels = self.sim.task.test, self.sim.task.labels[self.sim.task.test]
        return {
            name: evaluate(model, self.part_of(name, self.state), self.tokens(name, test), labels)
            for name, model in self.models.items()
        }

    def digest(self) -> str:
        """A digest of the server's state."""
        digest = hashlib.sha256()
        for name, tensor in self.state.items():
            digest.update(name.encode() + tensor.detach().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """model/state.safetensors: the trained part, by the names of `learning.trainable`."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        save_file(
            {name: tensor.detach().contiguous().clone() for name, tensor in self.state.items()},
            folder / "state.safetensors",
        )


class FedAvgLearner(FederatedLearner):
    """The server's step of FedAvg and its relatives: a mean of deltas and a server optimiser."""

    def __init__(self, sim: Simulation, server_optimiser: Any, *args: Any) -> None:
        super().__init__(sim, *args)
        self._optimiser, self._moments = server_optimiser, None

    def aggregate(
        self,
        backbones: Sequence[str],
        received: Mapping[str, Tensor],
        states: Sequence[bytes],
        weights: Sequence[float],
    ) -> list[int]:
        """One step of the server on the mean delta of what came; returns the places of what is not finite, left out."""
        from learning.aggregation import difference, server_step, weighted_mean

        sent = [self.unpacked(backbone, data) for backbone, data in zip(backbones, states, strict=True)]
        kept, left_out = sorted_out(sent)
        if kept:
            delta = weighted_mean([difference(sent[k], received) for k in kept], [weights[k] for k in kept])
            state, self._moments = server_step(self._optimiser, self.state, delta, self._moments)
            self.become(state)
        return left_out


class FedAsyncLearner(FederatedLearner):
    """The server's step of FedAsync, on models that devices send, and of FedBuff, on what they changed."""

    def __init__(self, sim: Simulation, config: Any, *args: Any) -> None:
        super().__init__(sim, *args)
        self._config, self._moments = config, None

    def train_delta(
        self, backbone: str, samples: np.ndarray, state: Mapping[str, Tensor], *how: Any
    ) -> dict[str, Tensor]:
        """What a device's training changed."""
        from learning.aggregation import difference

        return difference(self.train(backbone, samples, state, *how), state)

    def apply(self, backbones: Sequence[str], answers: Sequence[bytes], stalenesses: Sequence[int]) -> list[int]:
        """Mix one model in, or step on a buffer of changes; the result is the next version. What is not finite is left
        out: returns its places.
        """
        from learning.aggregation import fed_async, fed_buff, server_step

        sent = [self.unpacked(backbone, data) for backbone, data in zip(backbones, answers, strict=True)]
        kept, left_out = sorted_out(sent)
        if kept and self._config.kind == "fedasync":
            mixing = self._config.mixing * self._config.staleness.weight(stalenesses[0])
            self.become(fed_async(self.state, sent[0], mixing))
        elif kept:
            delta = fed_buff([sent[k] for k in kept], [stalenesses[k] for k in kept])
            state, self._moments = server_step(self._config.server_optimiser, self.state, delta, self._moments)
            self.become(state)
        return left_out


def sorted_out(states: Sequence[Mapping[str, Tensor]]) -> tuple[list[int], list[int]]:
    """The places of the finite states, and of the others, which shall go into no mean."""
    from learning.aggregation import is_finite

    finite = [is_finite(state) for state in states]
    return [k for k, good in enumerate(finite) if good], [k for k, good in enumerate(finite) if not good]
