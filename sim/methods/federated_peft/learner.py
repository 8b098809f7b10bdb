"""The learning behind the federated baselines' clock: one trainable state, trained on devices,
averaged by the server.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.backbones.catalogue import BackboneError
from learning.backbones.tokens import Tokens
from learning.codecs import states
from learning.codecs.chain import Chain
from sim.kernel.learned import Learned
from sim.kernel.learner import Part, RealLearner
from sim.methods.federated_peft.client_updates import Client, made_elsewhere, updated_together

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.stackable import Room
    from learning.federated.trainable import TrainableClassifier
    from learning.metrics import Score
    from sim.kernel.world import World


class FederatedLearner(RealLearner):
    """Real local training of real backbones. `state` is the server's, as `Learned`: that of the
    deepest backbone of the fleet.

    A shallower backbone of the same family trains and sends the first part of it. Raises
    BackboneError for a fleet whose backbones are not cuts of one model: their states cannot be
    averaged.
    """

    lora_dropout = 0.0  # other than 0: LoRA's inputs are dropped out as well, where anything is
    chain: Chain | None = None  # by which changes are sent; None: what is trained is sent
    side_by_side = True  # whether client updates may run on threads, each with a model of its own

    def __init__(
        self,
        world: World,
        peft: str,
        readout: str,
        rank: int,
        alpha: float,
        bottleneck: int,
        head: str = "linear",
        target_modules: Sequence[str] | str | None = None,
        adapters: str = "houlsby",
    ) -> None:
        self.world = world
        self._idle: dict[Any, list[TrainableClassifier]] = {}  # models that nobody computes with
        self._lending = threading.Lock()
        self._memory: Learned | None = None  # of the server, beside the model: moments and the like
        sizes = (peft, readout, rank, alpha, bottleneck, head, target_modules, adapters)
        self._sizes = (rank, bottleneck, head, target_modules, adapters)
        self.models: dict[Any, TrainableClassifier] = {
            name: self.new_model(name, *sizes) for name in world.costing.learned
        }
        deepest = max(self.models, key=lambda name: len(self.models[name].trainable()))
        self.initial = self.models[deepest].trainable()
        self._require_one_family(deepest)
        self.state = Learned.given("server/model", self.initial)
        self._tokens: dict[str, Tokens] = {}
        self._row: dict[str, dict[int, int]] = {}
        for name, spec in world.costing.learned.items():
            mine = [d.samples for d in world.devices if d.backbone == name]
            samples = np.unique(np.concatenate([*mine, world.task.held_out]))
            self._tokens[name] = world.task.tokens(spec, samples)
            self._row[name] = {int(sample): row for row, sample in enumerate(samples)}

    def new_model(
        self,
        backbone: str,
        peft: str,
        readout: str,
        rank: int,
        alpha: float,
        bottleneck: int,
        head: str,
        target_modules: Sequence[str] | str | None,
        adapters: str = "houlsby",
    ) -> TrainableClassifier:
        """A backbone with what is trained of it, and a head for the classes; or with its own
        vocabulary, where what is learned are responses.
        """
        from learning.federated.language_model import TrainableLanguageModel
        from learning.federated.trainable import TrainableClassifier

        spec, task = self.world.costing.learned[backbone], self.world.task
        sizes = (rank, alpha, bottleneck, self.world.streams.seed64("server/model") % 2**31)
        forms: dict[str, Any] = {
            "target_modules": target_modules,
            "adapters": adapters,
            "lora_dropout": self.lora_dropout,
        }
        if task.has_responses:
            return TrainableLanguageModel(spec, peft, *sizes, **forms)
        return TrainableClassifier(spec, peft, task.classes, readout, *sizes, head=head, **forms)

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
        return self._tokens[backbone].of(self._row[backbone][int(s)] for s in samples)

    def part_of(self, backbone: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of the server's state a backbone has."""
        from learning.federated.aggregation import restrict

        return restrict(state, self.models[backbone].trainable_parameters())

    def client(
        self,
        update: Callable[..., Any],
        backbone: str,
        samples: Any,
        *how: Any,
        results: int = 1,
    ) -> Any:
        """Begin a client update: `update(client, *how)`, a pure function; several run at a time.

        It gives what the device sends, a state or a list of states, which is packed into bytes; or
        a tuple of `results` values, of which that is the first and the others stay on the device.
        """
        return self.world.host.learn(
            self._updated,
            *(update, backbone, samples, *how),
            stored=(True,) * results,
            side_by_side=self.runs_side_by_side,
            together=self._updated_together if self._is_plain else None,
        )

    @property
    def runs_side_by_side(self) -> bool:
        """Whether client updates may run beside one another, where the host computes."""
        return self._is_plain if self.world.host.cluster else self.side_by_side

    @property
    def _is_plain(self) -> bool:
        """Whether client updates compute with a `Client`, so that a process of a cluster can, and
        several can train as one.
        """
        return type(self).client_of is FederatedLearner.client_of

    def _updated(
        self, update: Callable[..., Any], backbone: str, samples: np.ndarray, *how: Any
    ) -> Any:
        return self._on_its_way(self.made(update, backbone, samples, how))

    def _on_its_way(self, made: Any) -> Any:
        """What a client update gives, with what the device sends in bytes."""
        sent, *kept = made if isinstance(made, tuple) else (made,)
        states = sent if isinstance(sent, list) else [sent]
        data = b"".join(map(self.packed, states))
        return (data, *kept) if kept else data

    def _updated_together(self, several: Sequence[Sequence[Any]]) -> list[Any]:
        """What `_updated` gives for each of these arguments; the devices of a backbone train as
        one.
        """
        made: dict[int, Any] = {}
        for backbone in dict.fromkeys(name for _, name, *_ in several):
            mine = [k for k, (_, name, *_) in enumerate(several) if name == backbone]
            with self.lent(backbone) as model:
                updates = [
                    (update, self.client_of(model, backbone, samples), how)
                    for update, _, samples, *how in (several[k] for k in mine)
                ]
                of_them = updated_together(updates, self._room(model))
            made |= zip(mine, of_them, strict=True)
        return [self._on_its_way(made[k]) for k in range(len(several))]

    def made(
        self, update: Callable[..., Any], backbone: str, samples: Any, how: Sequence[Any]
    ) -> Any:
        """What a client update gives, computed here or on the cluster."""
        cluster = self.world.host.cluster
        if cluster is None or not self._is_plain:
            with self.lent(backbone) as model:
                return update(self.client_of(model, backbone, samples), *how)
        cluster.by_value(update)
        names, given = self.models[backbone].trainable_parameters(), []
        for number, one in enumerate(how):
            if isinstance(one, Mapping) and all(name in one for name in names):
                both = functools.partial(self._with_part, backbone, one)
                given.append(cluster.shared(f"state {number} of {backbone}", one, both))
            else:
                given.append(one)
        frozen = cluster.shared(f"model {backbone}", self.models[backbone])
        tokens, labels = self.tokens(backbone, samples), self.world.task.labels[samples]
        return cluster.call(made_elsewhere, update, frozen, tokens, labels, given)

    def _with_part(self, backbone: str, state: Mapping[str, Tensor]) -> tuple[Any, Any]:
        return state, self.part_of(backbone, state)

    def _room(self, model: TrainableClassifier) -> Room:
        """For how many devices at once the memory is that they are trained in."""
        from learning.federated.stackable import Room

        return Room.of(model, *self._sizes)

    def client_of(self, model: TrainableClassifier, backbone: str, samples: Any) -> Any:
        """What a client update computes with."""
        return Client(
            model,
            self.tokens(backbone, samples),
            self.world.task.labels[samples],
            functools.partial(self.part_of, backbone),
        )

    @contextmanager
    def lent(self, backbone: Any) -> Iterator[TrainableClassifier]:
        """A model that nobody else computes with meanwhile: that of `models`, or a twin of it.

        A twin is made of a model that lies idle, so one more than are lent is kept, where several
        ever are.
        """
        with self._lending:
            idle = self._idle.setdefault(backbone, [self.models[backbone]])
            model = idle.pop()
            host = self.world.host
            if not idle and self.side_by_side and host.is_parallel and not host.cluster:
                idle.append(model.twin())
        try:
            yield model
        finally:
            idle.append(model)

    def serve(
        self, update: Callable[..., Any], backbones: Sequence[Any], sent: Any, *how: Any
    ) -> Any:
        """Begin a server update: `update(state, memory, answers, kept, *how)`, a pure function that
        gives the next state and memory; `answers` are the finite ones of what was sent, unpacked,
        and `kept` their places. Not called where nothing finite came.

        Joined, it gives the places of what is not finite, and was left out.
        """
        now = (self.state, self._memory)
        self.state, self._memory, verdict = self.world.host.learn(
            self._served, update, *now, backbones, sent, *how, stored=(True, True, True)
        )
        return self.judged(verdict)

    def _served(
        self,
        update: Callable[..., Any],
        state: Any,
        memory: Any,
        backbones: Any,
        sent: Any,
        *how: Any,
    ) -> tuple:
        answers, kept, left_out = self.finite(state, backbones, sent)
        if kept:
            state, memory = update(state, memory, answers, kept, *how)
        return state, memory, verdict_on(state, left_out)

    def finite(
        self, state: Mapping[str, Tensor], backbones: Sequence[Any], sent: Sequence[bytes]
    ) -> tuple[list[Any], list[int], list[int]]:
        """The finite ones of what was sent, unpacked; their places, and those of the others."""
        pairs = zip(backbones, sent, strict=True)
        several = [self.received(state, name, data) for name, data in pairs]
        whole = [{(i, n): t for i, one in enumerate(s) for n, t in one.items()} for s in several]
        kept, left_out = sorted_out(whole)
        answers = [states[0] if len(states) == 1 else states for states in several]
        return [answers[k] for k in kept], kept, left_out

    def received(
        self, state: Mapping[str, Tensor], backbone: Any, data: bytes
    ) -> list[dict[str, Tensor]]:
        """What a server whose model is `state` makes of what a client update sent: its states, in
        their order. Each is as long as the first.
        """
        from learning.federated.state_codec import nbytes

        like = self.models[backbone].trainable_parameters()
        if self.chain is not None:
            return [self.unpacked(backbone, data)]
        size = nbytes(like)
        return [
            self.unpacked(backbone, data[start : start + size])
            for start in range(0, len(data), size)
        ]

    @property
    def memory(self) -> Learned | None:
        """What the server keeps beside the model; None before the first update."""
        return self._memory

    def packed(self, state: Mapping[str, Tensor]) -> bytes:
        """The state, or a change of it, as bytes on the wire."""
        from learning.federated.state_codec import pack

        return pack(state) if self.chain is None else states.to_bytes(state, self.chain)

    def unpacked(self, backbone: str, data: bytes) -> dict[str, Tensor]:
        """The state of a backbone, or a change of it, from its bytes."""
        from learning.federated.state_codec import unpack

        like = self.models[backbone].trainable_parameters()
        return (
            unpack(data, like) if self.chain is None else states.from_bytes(data, like, self.chain)
        )

    def judged(self, verdict: Learned) -> Callable[[], list[int]]:
        """What an aggregation is joined with: the places of what it left out; a state that is not
        finite ends the run.
        """

        def joined() -> list[int]:
            left_out, is_finite = self.world.host.value_of(verdict)
            if not is_finite:
                self._diverged = "weights"
            return left_out

        return joined

    def evaluate(self, part: Part = "test") -> dict[str, Score | None]:
        """The score of every backbone with its part of the server's state."""
        return self.world.host.compute_now(self._scores_of, self.state, part)

    def _scores_of(self, state: Mapping[str, Tensor], part: Part) -> dict[Any, Score | None]:
        return {name: self.score_of(name, self.part_of(name, state), part) for name in self.models}

    def score_of(self, backbone: Any, state: Mapping[str, Tensor], part: Part) -> Score | None:
        """What a backbone with such a state scores."""
        from learning.federated.language_model import TrainableLanguageModel, score_texts
        from learning.federated.local_training import WHOLE, Share, predict

        tokens = self.tokens(backbone, self.world.task.texts_of(part))

        def of_share(share: Share) -> np.ndarray:
            with self.lent(backbone) as model:
                if isinstance(model, TrainableLanguageModel):
                    return score_texts(model, state, tokens, share)
                return predict(model, state, tokens, share=share)

        shares = self.world.host.spread(of_share) if self.side_by_side else [of_share(WHOLE)]
        return self.world.task.score(part, functools.reduce(np.add, shares))

    def replies(self, samples: np.ndarray, most: int) -> dict[str, list[tuple[str, str]]]:
        """What every backbone says to the prompts of these samples, in so many tokens: before
        anything was learned, and now.
        """
        from learning.federated.language_model import TrainableLanguageModel
        from learning.next_token.replies import replies, speaking_model

        found: dict[str, list[tuple[str, str]]] = {}
        for name, model in self.models.items():
            backbone = name if isinstance(name, str) else name[0]  # then with a rank, rising
            assert isinstance(model, TrainableLanguageModel), "asked for responses alone"
            whole = speaking_model(model.spec, model.backbone, model.head)
            tokens, said = self.tokens(name, samples), []
            for state in self._before_and_after(name):
                model.load_trainable(state)
                said.append(replies(whole, model.spec, tokens, most))
            found[backbone] = list(zip(*said, strict=True))
        return found

    def _before_and_after(self, backbone: Any) -> Iterator[Mapping[str, Tensor]]:
        """A state of the backbone that nothing has been learned in, and one of now."""
        for state in (self.initial, self.state.value):
            yield self.part_of(backbone, state)

    def digest(self) -> str:
        """A digest of the server's state."""
        from learning.federated.state_codec import digest

        return digest(self.state.value)

    def save(self, folder: Path) -> None:
        """model/state.safetensors: the trained part, by the names of
        `learning.federated.trainable`; LoRA also as the peft library has it, in model/peft.
        """
        from learning.federated.peft_format import save_peft
        from learning.federated.state_codec import write

        write(self.state.value, folder / "state.safetensors")
        deepest = max(self.models.values(), key=lambda model: len(model.trainable_parameters()))
        if deepest.lora is not None:
            save_peft(deepest, self.state.value, folder / "peft")


class RoundLearner(FederatedLearner):
    """The learning of synchronous rounds: a method adds `aggregate`."""

    def aggregate(
        self,
        models: Sequence[Any],
        received: Learned,
        sent: Sequence[Learned],
        weights: Sequence[float],
    ) -> Callable[[], list[int]]:
        """Begin the server's update on what came; gives the places of what was left out."""
        raise NotImplementedError


def sorted_out(states: Sequence[Mapping[Any, Tensor]]) -> tuple[list[int], list[int]]:
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
