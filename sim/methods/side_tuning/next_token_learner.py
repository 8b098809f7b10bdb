"""The learning behind side-tuning of decoders: states of real backbones, gradients at their heads,
and moves of the last state that are solved from what was uploaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.host_device import host_device
from learning.next_token.choices import form_of
from learning.next_token.payload import PlaceShape
from sim.kernel.learned import Learned
from sim.kernel.learner import Part, RealLearner

if TYPE_CHECKING:
    from torch import Tensor

    from learning.backbones.vocabulary_head import VocabularyHead
    from learning.metrics import Score
    from learning.next_token.side import NextTokenSide
    from learning.next_token.states import TokenStates
    from sim.kernel.world import World

Moves = Mapping[str, "Tensor"]


class NextTokenLearner(RealLearner):
    """`state` is the server's: the moves of all backbones, by the names of
    `learning.next_token.side.NextTokenSide.tensors`.
    """

    @property
    def predicts_untrained(self) -> bool:
        """A language model says something before anything has been learned."""
        return True

    def __init__(self, world: World, config: Any, layers: Mapping[str, Sequence[int]]) -> None:
        self.world, self.config, self.layers = world, config, layers
        self.state: Learned = Learned.given("side/none", {})
        self._kept: dict[str, Learned] = {}  # of each device, the payload that brought its states
        self.chosen: list[dict[str, float]] = []

    def prepare(self) -> None:
        """The states of all texts that this run needs, from the store or computed now."""
        from learning.backbones.vocabulary_head import head_of
        from learning.next_token.states import stored_states
        from learning.side.activation_store import ActivationStore
        from learning.side.readouts import loaded

        store = ActivationStore(self.world.store_folder)
        self.heads: dict[str, VocabularyHead] = {}
        self.states: dict[str, TokenStates] = {}
        self._row: dict[str, dict[int, int]] = {}
        for name, layers in self.layers.items():
            spec, task = self.world.costing.learned[name], self.world.task
            mine = [d.samples for d in self.world.devices if d.backbone == name]
            samples = np.unique(np.concatenate([*mine, task.held_out]))
            tokens, tell = task.tokens(spec, samples), partial(self.world.on_prepare, name)
            spread = self.world.host.map
            self.states[name] = stored_states(spec, tokens, layers, store, spread, tell)
            self.heads[name] = head_of(spec, loaded(spec).model)
            self._row[name] = {int(sample): row for row, sample in enumerate(samples)}

    def shape(self, backbone: str) -> PlaceShape:
        """Of what is sent of a place."""
        form, head = form_of(self.config.difference), self.heads[backbone]
        targets = form.numbers(head.in_features, head.vocabulary)
        words = head.vocabulary if form.kind == "top" else 0
        return PlaceShape(len(self.layers[backbone]), head.in_features, targets, words)

    def of(self, backbone: str, samples: np.ndarray) -> TokenStates:
        """States at the places of these samples that are looked at: all of their responses'."""
        return self.states[backbone].of([self._row[backbone][int(s)] for s in samples])

    def sent_of(self, backbone: str, samples: np.ndarray) -> TokenStates:
        """Those at the places that something is sent of, the same in every pass."""
        draws = [self.world.streams.rng("positions", int(sample)) for sample in samples]
        return self.of(backbone, samples).at(self.config.positions, draws)

    # --- a device

    def answer(
        self, update: Callable[..., Any], backbone: str, samples: np.ndarray, side: Any, first: bool
    ) -> Learned:
        """Begin what a device makes of its texts with the moves that it has been sent:
        `update(head, last, said, difference)` gives what it says of its differences; that goes up
        as bytes, with the states the first time.
        """
        return self.world.host.learn(self._answered, update, backbone, samples, side, first)

    def _answered(
        self, update: Callable[..., Any], backbone: str, samples: np.ndarray, side: Any, first: bool
    ) -> bytes:
        from learning.next_token.payload import encode

        mine = self.sent_of(backbone, samples)
        at, form = self._moved(backbone, mine, side), self.config.difference
        numbers_MN, words_MN = update(self.heads[backbone], *at, form)
        values = np.asarray(mine.values, dtype=np.float32) if first else None
        if not np.isfinite(numbers_MN).all():
            return b""
        return encode(values, numbers_MN, words_MN, self.shape(backbone), self.config.wire)

    def _moved(self, backbone: str, states: TokenStates, side: Moves) -> tuple[Tensor, Tensor]:
        """The last states as the head is to read them, and the tokens that follow."""
        import torch

        from learning.next_token.side import NextTokenSide

        last_MD = torch.from_numpy(states.last)
        x_MF = torch.from_numpy(states.values).flatten(1).float()
        moved_MD = NextTokenSide.of(side).moved(backbone, x_MF, last_MD)
        return moved_MD, torch.from_numpy(states.said)

    # --- the server

    def aggregate(
        self, update: Callable[..., Any], answers: Sequence[tuple[str, str, Learned, bool]]
    ) -> Callable[[], list[int]]:
        """Begin the server's update: `update(side, records, heads)` gives the next one. `answers`
        are device, backbone and payload of each, and whether that has its states; joined, it gives
        the places of those that were not finite.
        """
        self._kept |= {device: data for device, _, data, is_first in answers if is_first}
        names = [backbone for _, backbone, _, _ in answers]
        brought = [self._kept[device] for device, _, _, _ in answers]
        payloads = [data for _, _, data, _ in answers]
        self.state, found = self.world.host.learn(
            self._aggregated, update, self.state, names, brought, payloads, stored=(True, True)
        )

        def joined() -> list[int]:
            left_out, *chosen = self.world.host.value_of(found)
            self.chosen += chosen
            return left_out

        return joined

    def _aggregated(
        self,
        update: Callable[..., Any],
        side: Moves,
        names: Sequence[str],
        brought: Sequence[bytes],
        payloads: Sequence[bytes],
    ) -> tuple[dict[str, Tensor], list[Any]]:
        import torch

        from learning.next_token.side import NextTokenSide, Records

        before = NextTokenSide.of(side)
        parts: dict[str, list[tuple[Tensor, ...]]] = {}
        left_out = []
        for place, (name, states, data) in enumerate(zip(names, brought, payloads, strict=True)):
            if data:
                parts.setdefault(name, []).append(self._received(before, name, states, data))
            else:
                left_out.append(place)
        if not parts:
            return dict(side), [left_out]
        records = {
            name: Records(*(torch.cat(column) for column in zip(*mine, strict=True)))
            for name, mine in parts.items()
        }
        after = update(before, records, self.heads)
        chosen = [vars(one) for one in after.chosen[len(before.chosen) :]]
        return after.tensors(), [left_out, *chosen]

    def _received(
        self, side: NextTokenSide, backbone: str, states: bytes, data: bytes
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A device's states side by side, its last states, and gradients."""
        import torch

        from learning.next_token.difference import gradient_of
        from learning.next_token.payload import decode

        shape, wire = self.shape(backbone), self.config.wire
        values, _, _ = decode(states, shape, wire)
        _, numbers, words = decode(data, shape, wire)
        assert values is not None, "the first payload of a device brings its states"
        values_MVD, numbers_MN = torch.from_numpy(values), torch.from_numpy(numbers)
        x_MF, last_MD = values_MVD.flatten(1), values_MVD[:, -1]
        if form_of(self.config.difference).kind == "gradient":
            return x_MF, last_MD, numbers_MN
        words_MN = None if words is None else torch.from_numpy(words)
        at_MD = side.moved(backbone, x_MF, last_MD)
        return x_MF, last_MD, gradient_of(self.heads[backbone], at_MD, numbers_MN, words_MN)

    # --- what it is worth

    def evaluate(self, part: Part = "test") -> dict[str, Score | None]:
        """The score of every backbone with its moves on the held-out texts."""
        return self.world.host.compute_now(self._scores_of, self.state, part)

    def _scores_of(self, side: Moves, part: Part) -> dict[str, Score | None]:
        from learning.next_token.difference import losses

        found: dict[str, Score | None] = {}
        for name, head in self.heads.items():
            states = self.of(name, self.world.task.texts_of(part))
            nll_M, right_M = losses(head, *self._moved(name, states, side))
            starts = np.concatenate([[0], states.ends[:-1]])
            sums = [np.add.reduceat(a.numpy().astype(float), starts) for a in (nll_M, right_M)]
            counts = np.diff(np.concatenate([[0], states.ends])).astype(float)
            found[name] = self.world.task.score(part, np.stack([*sums, counts], axis=1))
        return found

    def replies(self, samples: np.ndarray, most: int) -> dict[str, list[tuple[str, str]]]:
        """What every backbone says to the prompts of these samples, in so many tokens: by itself,
        and with its moves.
        """
        from learning.backbones.loading import load_model
        from learning.backbones.vocabulary_head import head_of
        from learning.next_token.replies import replies, speaking_model
        from learning.next_token.side import NextTokenSide
        from learning.next_token.speaking import SideTuned

        found: dict[str, list[tuple[str, str]]] = {}
        for name, layers in self.layers.items():
            spec = self.world.costing.learned[name]
            tokens = self.world.task.tokens(spec, samples)
            # with a head of its own, too: what reads moved states reads nothing else
            own = host_device().place_frozen(load_model(spec))
            whole = speaking_model(spec, own, head_of(spec, own))
            before = replies(whole, spec, tokens, most)
            SideTuned(NextTokenSide.of(self.state.value), name, layers).attach(whole)
            found[name] = list(zip(before, replies(whole, spec, tokens, most), strict=True))
        return found

    def digest(self) -> str:
        """A digest of all moves."""
        from learning.federated.state_codec import digest

        return digest(dict(sorted(self.state.value.items())))

    def save(self, folder: Path) -> None:
        """model/moves.safetensors, which `learning.next_token.speaking.SideTuned` reads."""
        from learning.next_token.speaking import save_moves

        specs = {name: self.world.costing.learned[name] for name in self.layers}
        save_moves(self.state.value, specs, self.layers, folder / "moves.safetensors")
