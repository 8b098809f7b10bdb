"""The learning of devices that keep to themselves: a trained state each, and the mean of their
accuracies.

Nobody averages and nobody receives: a device that is not looked at changes no result, so only the
evaluated ones are trained for real. Time, joules and memory are charged for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.metrics import mean_score
from sim.kernel.learned import Learned, Taken
from sim.kernel.learner import Part, RealLearner
from sim.methods.federated_peft.learner import FederatedLearner
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.updates import with_differences

if TYPE_CHECKING:
    from torch import Tensor

    from learning.metrics import Score
    from learning.side.tuning import SideNetworkTrainer
    from sim.kernel.world import World


class OnDeviceStates:
    """What the local learners share: the devices looked at and their states, to be mixed into a
    learner.
    """

    has_one_model = False
    world: World
    evaluated: dict[str, str]
    states: dict[str, Learned]
    lost: set[str]  # whose model is no longer finite

    def _choose(self, most: int) -> None:
        """A seeded sample of the fleet, with at least one device of every backbone: device id ->
        backbone.
        """
        order = self.world.streams.rng("local/evaluated").permutation(len(self.world.devices))
        shuffled = [self.world.devices[i] for i in order]
        firsts = {d.backbone: d for d in reversed(shuffled)}.values()
        others = [d for d in shuffled if d not in firsts]
        chosen = [*firsts, *others][: max(most, len(firsts))]
        self.evaluated = {
            device.id: device.backbone for device in sorted(chosen, key=lambda d: d.id)
        }
        self.states, self.lost = {}, set()

    def keep(self, device_id: str, state: Any) -> bool:
        """A device has a new state (None: nobody looks at it); False where it is no longer
        finite.
        """
        from learning.federated.aggregation import is_finite

        if state is not None:
            self.states[device_id] = state
            if not self.world.host.compute_now(is_finite, state):
                if not self.lost:
                    self.world.remark(
                        "accuracy is the mean of the devices whose model is finite: one that "
                        "diverged is not in it"
                    )
                self.lost.add(device_id)
        return device_id not in self.lost

    def score(self, device_id: str, backbone: str, part: Part = "test") -> Score | None:
        """What a device's present state scores."""
        raise NotImplementedError

    def personal(self) -> dict[str, Score | None]:
        """What each evaluated device's own model scores on the test texts."""
        return {
            device_id: None if device_id in self.lost else self.score(device_id, backbone, "test")
            for device_id, backbone in self.evaluated.items()
        }

    def evaluate(self, part: Part = "test") -> dict[str, Score | None]:
        """The score of each backbone: the mean over its evaluated devices, each with its own
        present state.

        Devices whose model is not finite have none, and are not in the mean.
        """
        scores: dict[str, list[Score]] = {
            backbone: [] for backbone in sorted(self.evaluated.values())
        }
        for device_id, backbone in self.evaluated.items():
            score = None if device_id in self.lost else self.score(device_id, backbone, part)
            scores[backbone] += [] if score is None else [score]
        return {backbone: mean_score(mine) if mine else None for backbone, mine in scores.items()}

    def digest(self) -> str:
        """A digest of the evaluated devices' states."""
        from learning.federated.state_codec import digest

        return digest(self._named_states())

    def save(self, folder: Path) -> None:
        """model/states.safetensors: every evaluated device's tensors, as <device>/<name>."""
        from learning.federated.state_codec import write

        write(self._named_states(), folder / "states.safetensors")

    def _named_states(self) -> dict[str, Tensor]:
        return {
            f"{device}/{n}": t
            for device, state in sorted(self.states.items())
            for n, t in state.value.items()
        }


class LocalPeftLearner(OnDeviceStates, FederatedLearner):
    """Every device trains its own copy of the trainable part; backbones may be of any family, as
    nothing is averaged.
    """

    def __init__(self, world: World, evaluated: int, *args: Any) -> None:
        super().__init__(world, *args)
        self._choose(evaluated)
        self._initial = {
            name: Learned.given(f"initial/{name}", m.trainable()) for name, m in self.models.items()
        }
        self._scores: dict[tuple[Part, str], tuple[Learned, Score | None]] = {}

    def _require_one_family(self, deepest: str) -> None:
        pass

    def client(
        self,
        update: Callable[..., Any],
        backbone: str,
        samples: Any,
        *how: Any,
        results: int = 1,
    ) -> Learned | None:
        """Begin a client update of the device `how[0]` from its own last state, which stays there;
        None for a device that is not looked at.
        """
        device_id, *more = how
        if device_id not in self.evaluated or device_id in self.lost:
            return None
        last = self.states.get(device_id, self._initial[backbone])
        how = (update, backbone, samples, last, *more)
        return self.world.host.learn(
            self._updated,
            *how,
            side_by_side=self.runs_side_by_side,
            together=self._updated_together if self._is_plain else None,
        )

    def _on_its_way(self, made: Any) -> Any:
        return made  # nowhere

    def _before_and_after(self, backbone: str) -> Iterator[Mapping[str, Tensor]]:
        """Of the first device that is looked at and has a finite model."""
        initial = self._initial[backbone]
        yield initial.value
        mine = (d for d, name in self.evaluated.items() if name == backbone and d not in self.lost)
        yield self.states.get(next(mine, ""), initial).value

    def score(self, device_id: str, backbone: str, part: Part = "test") -> Score | None:
        """What a device's present state scores; a state is scored once on each part."""
        state = self.states.get(device_id, self._initial[backbone])
        known = part, device_id if device_id in self.states else backbone
        if known not in self._scores or self._scores[known][0] is not state:
            score = self.world.host.compute_now(self.score_of, backbone, state, part)
            self._scores[known] = state, score
        return self._scores[known][1]


class LadderLearner(OnDeviceStates, RealLearner):
    """Every device trains a side network of its own on its own activations."""

    def __init__(self, world: World, config: Any) -> None:
        self.config, self.world = config, world
        self._of = {
            name: SideTuningLearner(world, config, [name]) for name in world.costing.learned
        }
        self._choose(
            len(world.devices) if config.evaluated_devices is None else config.evaluated_devices
        )
        self._tunings: dict[
            str, Learned
        ] = {}  # only a device's own epochs, one after another, ever touch its own
        self._scores: dict[str, Learned] = {}

    def prepare(self) -> None:
        """The activations of every backbone, and what an untrained side network scores."""
        for learner in self._of.values():
            learner.prepare()
        self._initial = {
            name: self._scores_of(name, learner.tuning.value) for name, learner in self._of.items()
        }

    def _scores_of(self, backbone: str, tuning: SideNetworkTrainer) -> dict[Part, Score | None]:
        return {
            part: self._of[backbone].scores_of(tuning, part)[backbone]
            for part in self.world.task.parts_held_out
        }

    @property
    def predicts_untrained(self) -> bool:
        """As one of its learners."""
        return next(iter(self._of.values())).predicts_untrained

    def epoch(
        self,
        update: Callable[..., Any],
        backbone: str,
        samples: np.ndarray,
        device_id: str,
        number: int,
    ) -> tuple[Learned, Learned] | None:
        """Begin a client update, one pass over the device's texts: its averaged weights after it,
        and their held-out accuracy. `update(trainer, records, batch, rng)`.
        """
        if device_id not in self.evaluated or device_id in self.lost:
            return None
        who = (backbone, samples, device_id)
        before = Taken(self._tunings[device_id]) if number else None
        self._tunings[device_id], state, score = self.world.host.learn(
            self._trained,
            *(update, before, *who, number),
            stored=(True, True, True),
            revive=lambda saved: self._begin(*who).load(saved),
        )
        return state, score

    def _trained(
        self,
        update: Callable[..., Any],
        tuning: Any,
        backbone: str,
        samples: np.ndarray,
        device_id: str,
        number: int,
    ) -> tuple:
        tuning = tuning or self._begin(backbone, samples, device_id)
        rng = self.world.streams.rng("local/order", f"{device_id}/{number}")
        c = self.config
        tuning = update(tuning, len(samples), c.device_batch, rng, c.epochs, c.warm_up)
        state = {n: t.to("cpu", copy=True) for n, t in tuning.averaged.state_dict().items()}
        return tuning, state, self._scores_of(backbone, tuning)

    def _begin(self, backbone: str, samples: np.ndarray, device_id: str) -> SideNetworkTrainer:
        shared = self._of[backbone]
        tuning = shared.fresh(self.world.streams.seed64("local/side-network", device_id) % 2**31)
        activations = shared.forward(backbone, samples)
        tuning.ingest(backbone, shared.encode(with_differences, backbone, samples, activations))
        return tuning

    def keep(self, device_id: str, state: Any) -> bool:
        """A device has ended an epoch, which gave state and score (None: nobody looks at it); False
        where its side network is no longer finite.
        """
        if state is not None:
            state, self._scores[device_id] = state
        return super().keep(device_id, state)

    def score(self, device_id: str, backbone: str, part: Part = "test") -> Score | None:
        """What a device scores with its side network after its last epoch."""
        if device_id not in self._scores:
            return self._initial[backbone][part]
        scores: dict[Part, Score | None] = self.world.host.value_of(self._scores[device_id])
        return scores[part]
