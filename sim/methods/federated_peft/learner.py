"""The learning behind the federated baselines' clock: one trainable state, trained on devices,
averaged by the server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.backbones.catalogue import BackboneError
from learning.backbones.tokens import Tokens
from learning.federated.local_training import LocalTraining
from sim.kernel.learned import Learned
from sim.methods.real_learner import RealLearner

if TYPE_CHECKING:
    from torch import Tensor

    from sim.simulation import Simulation


class FederatedLearner(RealLearner):
    """Real local training of real backbones. `state` is the server's, as `Learned`: that of the
    deepest backbone of the fleet.

    A shallower backbone of the same family trains and sends the first part of it. Raises
    BackboneError for a fleet whose backbones are not cuts of one model: their states cannot be
    averaged.
    """

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
        from learning.federated.trainable import TrainableClassifier

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
        self.initial = self.models[deepest].trainable()
        self._require_one_family(deepest)
        self.state = Learned.given("server/model", self.initial)
        self._tokens: dict[str, Tokens] = {}
        self._row: dict[str, dict[int, int]] = {}
        for name, spec in sim.costing.learned.items():
            mine = [d.samples for d in sim.devices if d.backbone == name]
            samples = np.unique(np.concatenate([*mine, sim.task.test]))
            self._tokens[name] = sim.task.tokens(spec, samples)
            self._row[name] = {int(sample): row for row, sample in enumerate(samples)}

    def _require_one_family(self, deepest: str) -> None:
        for name, model in self.models.items():
            if any(
                n not in self.initial or self.initial[n].shape != t.shape
                for n, t in model.trainable().items()
            ):
                raise BackboneError(
                    f"{name} is not a cut of {deepest}: this method averages what devices train, "
                    "so its fleet needs "
                    "backbones of one family (Fed MobiLLM takes any)"
                )

    def tokens(self, backbone: str, samples: np.ndarray) -> Tokens:
        """The samples as the backbone's tokens."""
        rows, whole = (
            [self._row[backbone][int(sample)] for sample in samples],
            self._tokens[backbone],
        )
        segments = None if whole.segments is None else [whole.segments[row] for row in rows]
        return Tokens([whole.ids[row] for row in rows], segments)

    def part_of(self, backbone: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of the server's state a backbone has."""
        from learning.federated.aggregation import restrict

        return restrict(state, self.models[backbone].trainable_parameters())

    def train(
        self, backbone: str, samples: np.ndarray, state: Learned, settings: LocalTraining, seed: int
    ) -> Learned:
        """What a device makes of the state it received, from its own texts, as bytes."""
        return self.sim.host.learn(self._answer, backbone, samples, state, settings, seed)

    def _answer(self, *how: Any) -> bytes:
        return self.packed(self._trained(*how))

    def _trained(
        self,
        backbone: str,
        samples: np.ndarray,
        state: Mapping[str, Tensor],
        settings: LocalTraining,
        seed: int,
    ) -> dict[str, Tensor]:
        from learning.federated.local_training import train

        labels = self.sim.task.labels[samples]
        own = self.part_of(backbone, state)
        return train(
            self.models[backbone], own, self.tokens(backbone, samples), labels, settings, seed
        ).state

    def packed(self, state: Mapping[str, Tensor]) -> bytes:
        """The state as bytes on the wire."""
        from learning.federated.state_codec import pack

        return pack(state)

    def unpacked(self, backbone: str, data: bytes) -> dict[str, Tensor]:
        """The state of a backbone from its bytes."""
        from learning.federated.state_codec import unpack

        return unpack(data, self.models[backbone].trainable_parameters())

    def judged(self, verdict: Learned) -> Callable[[], list[int]]:
        """What an aggregation is joined with: the places of what it left out; a state that is not
        finite ends the run.
        """

        def joined() -> list[int]:
            left_out, is_finite = self.sim.host.know(verdict)
            if not is_finite:
                self.diverged = "weights"
            return left_out

        return joined

    def evaluate(self) -> dict[str, float | None]:
        """Held-out accuracy of every backbone with its part of the server's state."""
        return self.sim.host.look(self._scores_of, self.state)

    def _scores_of(self, state: Mapping[str, Tensor]) -> dict[Any, float]:
        from learning.federated.local_training import evaluate

        test, labels = self.sim.task.test, self.sim.task.labels[self.sim.task.test]
        return {
            name: evaluate(model, self.part_of(name, state), self.tokens(name, test), labels)
            for name, model in self.models.items()
        }

    def digest(self) -> str:
        """A digest of the server's state."""
        digest = hashlib.sha256()
        for name, tensor in self.state.value.items():
            digest.update(name.encode() + tensor.detach().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """model/state.safetensors: the trained part, by the names of
        `learning.federated.trainable`.
        """
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        save_file(
            {
                name: tensor.detach().contiguous().clone()
                for name, tensor in self.state.value.items()
            },
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
        received: Learned,
        states: Sequence[Learned],
        weights: Sequence[float],
    ) -> Callable[[], list[int]]:
        """One step of the server on the mean delta of what came; gives the places of what is not
        finite, left out.
        """
        now, how = (self.state, self._moments), (backbones, received, states, weights)
        self.state, self._moments, verdict = self.sim.host.learn(
            self._averaged, *now, *how, stored=(True, True, True)
        )
        return self.judged(verdict)

    def _averaged(self, state, moments, backbones, received, states, weights) -> tuple:
        from learning.federated.aggregation import difference, server_step, weighted_mean

        sent = [
            self.unpacked(backbone, data) for backbone, data in zip(backbones, states, strict=True)
        ]
        kept, left_out = sorted_out(sent)
        if kept:
            delta = weighted_mean(
                [difference(sent[k], received) for k in kept], [weights[k] for k in kept]
            )
            state, moments = server_step(self._optimiser, state, delta, moments)
        return state, moments, verdict_on(state, left_out)


class FedAsyncLearner(FederatedLearner):
    """The server's step of FedAsync, on models that devices send, and of FedBuff, on what they
    changed.
    """

    def __init__(self, sim: Simulation, config: Any, *args: Any) -> None:
        super().__init__(sim, *args)
        self._config, self._moments = config, None

    def train_delta(self, backbone: str, samples: np.ndarray, state: Learned, *how: Any) -> Learned:
        """What a device's training changed, as bytes."""
        return self.sim.host.learn(self._changed, backbone, samples, state, *how)

    def _changed(
        self, backbone: str, samples: np.ndarray, state: Mapping[str, Tensor], *how: Any
    ) -> bytes:
        from learning.federated.aggregation import difference

        return self.packed(difference(self._trained(backbone, samples, state, *how), state))

    def apply(
        self, backbones: Sequence[str], answers: Sequence[Learned], stalenesses: Sequence[int]
    ) -> Callable[[], list[int]]:
        """Mix one model in, or step on a buffer of changes; the result is the next version. What is
        not finite is left out: gives its places.
        """
        now, how = (self.state, self._moments), (backbones, answers, stalenesses)
        self.state, self._moments, verdict = self.sim.host.learn(
            self._mixed, *now, *how, stored=(True, True, True)
        )
        return self.judged(verdict)

    def _mixed(self, state, moments, backbones, answers, stalenesses) -> tuple:
        from learning.federated.aggregation import fed_async, fed_buff, server_step

        sent = [
            self.unpacked(backbone, data) for backbone, data in zip(backbones, answers, strict=True)
        ]
        kept, left_out = sorted_out(sent)
        if kept and self._config.kind == "fedasync":
            mixing = self._config.mixing * self._config.staleness.weight(stalenesses[0])
            state = fed_async(state, sent[0], mixing)
        elif kept:
            delta = fed_buff([sent[k] for k in kept], [stalenesses[k] for k in kept])
            state, moments = server_step(self._config.server_optimiser, state, delta, moments)
        return state, moments, verdict_on(state, left_out)


def sorted_out(states: Sequence[Mapping[str, Tensor]]) -> tuple[list[int], list[int]]:
    """The places of the finite states, and of the others, which shall go into no mean."""
    from learning.federated.aggregation import is_finite

    finite = [is_finite(state) for state in states]
    return [k for k, good in enumerate(finite) if good], [
        k for k, good in enumerate(finite) if not good
    ]


def verdict_on(state: Mapping[str, Tensor], left_out: list[int]) -> list:
    """What `judged` reads: which answers are not in the new state, and whether this is finite."""
    from learning.federated.aggregation import is_finite

    return [left_out, is_finite(state)]
