"""Fed MobiLLM and PAE MobiLLM on next-token tasks: side-tuning of decoders, without a token at the
server.

PAE MobiLLM's second version sends "the tokens that take part in the loss" (arXiv 2507.01216), and
leaves open how a prediction difference over a vocabulary goes over a link. Here each device passes
over its texts with its frozen decoder and uploads, for each place that a token of a response
follows, the states of a few sampled layers and what the difference says of the last state: the
negative gradient of the loss, E'(one_hot - p), or more of it (`learning/next_token/difference.py`).
The server solves moves of the last state from them (`learning/next_token/side.py`), which the
device's own head then reads. Each further pass is a round of boosting: devices get the moves, and
send the differences that are left; the states stay at the server.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from inputs.units import Seconds
from learning.backbones.catalogue import config_of, depth_of
from learning.codecs.chain import Wire, chain_of
from learning.cost.costs import FORMATS, Cost
from learning.cost.vocabulary import vocabulary_of
from learning.next_token.choices import Positions, chosen_counts, form_of
from learning.next_token.payload import PlaceShape, encoded_sizes
from learning.side.taps import sample
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import DATA_KINDS, Contents, Item, only
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Work
from sim.kernel.world import World
from sim.methods.protocols import SynchronousRounds
from sim.methods.responses import vocabularies, with_words
from sim.methods.side_tuning.next_token_learner import NextTokenLearner
from sim.scenario.settings import Responses, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from learning.backbones.vocabulary_head import VocabularyHead
    from learning.next_token.side import NextTokenSide, Records


def differences(
    head: VocabularyHead, last_MD: Tensor, said_M: Tensor, difference: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """A client update: what is said of each place's difference [M, N], and of which words."""
    from learning.next_token.difference import told

    numbers_MN, words_MN = told(head, last_MD, said_M, form_of(difference))
    return numbers_MN.numpy(), None if words_MN is None else words_MN.numpy()


def boosted(
    side: NextTokenSide, records: dict[str, Records], heads: dict[str, VocabularyHead]
) -> NextTokenSide:
    """A server update: another round of moves, solved for all records."""
    from learning.next_token.side import solve

    return solve(side, records, heads)


class NextTokenSideTuning(SynchronousRounds):
    """Side-tuning of decoders: forward passes and gradients at the head on devices, moves of the
    last state solved at the server, one round a pass.
    """

    class Config(Settings):
        """Settings of side-tuning on next-token tasks."""

        responses: ClassVar[Responses] = "only"
        kind: Literal["fed-mobillm-lm"]
        passes: int = Field(1, ge=1)
        """Passes of each device over its texts: after the first, rounds of boosting."""
        taps: int | tuple[int, ...] = 3
        """Sampled layers: so many at even distances, the last among them, or a list of layers that
        ends with it.
        """
        wire: Wire = ("float16",)
        """The number format of states and gradients."""
        difference: str = "gradient"
        """What is said of a prediction difference: its gradient at the last state, all of it
        (`whole`, a number a word of the vocabulary), or its K largest entries (`top-64`).
        """
        positions: Positions = "response"
        """At which tokens of a response: all, the last, or so many at random."""
        participation: float = Field(1.0, gt=0, le=1)
        """Share of the fleet that takes part in a pass."""
        deadline: Seconds | None = None
        """End a pass after this time, with whatever has come."""
        device_batch: int = Field(8, ge=1)
        """Texts of one forward pass."""
        evaluate_every: int = Field(1, ge=1)
        """Passes between two evaluations."""

        @field_validator("wire")
        @classmethod
        def _is_a_format(cls, wire: Any) -> Any:
            if not chain_of(wire).is_plain:
                raise ValueError("states of places are sent by one number format alone")
            return wire

        @field_validator("taps")
        @classmethod
        def _are_layers(cls, taps: int | tuple[int, ...]) -> int | tuple[int, ...]:
            listed = taps if isinstance(taps, tuple) else (taps - 1,)
            if not listed or min(listed) < 0 or len({*listed}) < len(listed):
                raise ValueError(
                    "are how many layers (1 or more), or different layers from 0, the embedding, on"
                )
            return taps

        @field_validator("difference")
        @classmethod
        def _is_a_difference(cls, difference: str) -> str:
            form_of(difference)
            return difference

        @field_validator("positions")
        @classmethod
        def _is_a_place(cls, positions: Any) -> Any:
            if isinstance(positions, int) and positions < 1:
                raise ValueError("at no token is nothing to send: say 1 or more")
            return positions

    config: Config
    learner: NextTokenLearner
    client_update: ClassVar[Callable[..., Any]] = staticmethod(differences)
    server_update: ClassVar[Callable[..., Any]] = staticmethod(boosted)
    keeps_on_device = DATA_KINDS

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.says = vocabularies(world)
        self.widths = world.costing.widths()
        self.layers = sampled(config.taps, world.costing.depths())
        self.form = form_of(config.difference)
        for name, charged in self.says.items():  # refuses more entries than there are
            for words in (charged, vocabulary_of(config_of(world.costing.learned[name]))):
                self.form.numbers(words.width, words.words)
        learned = {name: depth_of(config_of(s)) for name, s in world.costing.learned.items()}
        own = sampled(config.taps, learned)
        self.learner = learner_for(world, NextTokenLearner, config, own)
        self.sent_first: set[str] = set()  # devices whose states the server has
        self.rounds_there: dict[str, int] = {}  # of moves that a device has
        self.rounds_done = 0
        self.sizes = functools.cache(self._sizes)

    def server(self, server: Server) -> Generator:
        """A round a pass."""
        one_round = functools.partial(self.server_round, server)
        yield from server.rounds(self.config.passes, self.asked, self.learner, one_round)

    # --- a device

    def client_round(self, device: Device, task: ClientTask) -> Generator:
        """Get the moves so far, pass over the texts, send what is left to learn."""
        if missed := task.version - self.rounds_there.get(device.id, 0):
            yield from device.download(only("side network", self.moves_bytes(device, missed)))
            self.rounds_there[device.id] = task.version
        first = device.id not in self.sent_first
        work = self.one_pass(device, task, first)
        data = yield from device.compute(work)
        yield from device.send(
            device.payload(device.samples, self.held(device, first), data, task.version)
        )

    def one_pass(self, device: Device, task: ClientTask, first: bool) -> Work:
        """Forward passes over all texts, and the differences at the head."""
        cost, size = Cost(), self.config.device_batch
        for start in range(0, len(device.samples), size):
            cost += self.batch_cost(device, device.samples[start : start + size], task.version)
        waiting = self.held(device, first).nbytes  # to be sent
        cost = dataclasses.replace(cost, peak_bytes=cost.peak_bytes + waiting)
        answer = self.learner.answer
        how = (device.backbone, device.samples, task.model, first)
        return self.learner.work(cost, answer, self.client_update, *how)

    def batch_cost(self, device: Device, samples: np.ndarray, rounds: int) -> Cost:
        """Of one batch's forward pass, the moves so far, and the differences."""
        lengths = self.world.lengths(device, samples)
        places = self.places(device, samples)
        per_place = 2.0 * rounds * self.inputs(device) * self.widths[device.backbone]
        moves = Cost(places * per_place)
        below = self.world.costing.forward(device.member, lengths) + moves
        says = self.says[device.backbone]
        width = FORMATS[self.world.costing.precision[device.member.group]].other
        if self.form.kind == "gradient":
            return with_words(below, 0, says.gradient(places, width))
        words = says.forward(places, width)  # logits, and what is made of them
        return with_words(below, 0, dataclasses.replace(words, peak_bytes=2 * words.peak_bytes))

    def peak_bytes(self, device: Device) -> int:
        """Of a pass with the backbone's weights and what waits to be sent."""
        cost = self.one_pass(device, ClientTask(0, None, None), True).cost
        return device.held_bytes(cost.peak_bytes + self.moves_bytes(device, self.config.passes))

    def held(self, device: Device, first: bool) -> Contents:
        """What a device uploads."""
        backbone = device.backbone
        sizes = self.sizes(backbone, self.places(device, device.samples), first)
        layers = tuple(self.layers[backbone]) if first else ()
        return Contents(
            Item("activation", sizes["values"], layers, "response"),
            Item("prediction difference", sizes["targets"]),
            Item("frame", sizes["frame"]),
        )

    def _sizes(self, backbone: str, places: int, first: bool) -> dict[str, int]:
        return encoded_sizes(self.config.wire, places, self.shape(backbone), first)

    def shape(self, backbone: str) -> PlaceShape:
        """Of what is sent of a place."""
        width, words = self.widths[backbone], self.says[backbone].words
        targets = self.form.numbers(width, words)
        named = words if self.form.kind == "top" else 0
        return PlaceShape(len(self.layers[backbone]), width, targets, named)

    def places(self, device: Device, samples: np.ndarray) -> int:
        """Tokens of these samples' responses at which something is sent."""
        said = self.world.response_lengths(device, samples)
        return int(chosen_counts(said, self.config.positions).sum())

    def inputs(self, device: Device) -> int:
        """Numbers of a place's sampled states."""
        return len(self.layers[device.backbone]) * self.widths[device.backbone]

    def moves_bytes(self, device: Device, rounds: int) -> int:
        """Of so many rounds' moves as a device gets them: weights, bias, mean and scale, in half
        precision.
        """
        inputs, width = self.inputs(device), self.widths[device.backbone]
        return 2 * rounds * (inputs * width + width + 2 * inputs)

    @property
    def rounds(self) -> int:
        """Of moves that there are: those of all passes, until some are over."""
        return self.rounds_done or self.config.passes

    def delivery_bytes(self, device: Device) -> int:
        """The moves that the device has not yet."""
        return self.moves_bytes(device, self.rounds - self.rounds_there.get(device.id, 0))

    def said_token_cost(self, device: Device) -> Cost:
        """Of moving the last state before a token is said."""
        flop = 2.0 * self.rounds * self.inputs(device) * self.widths[device.backbone]
        return Cost(flop, float(self.moves_bytes(device, self.rounds)))

    # --- the server

    def server_round(
        self, server: Server, cohort: list[Device], number: int
    ) -> Generator[Any, Any, list[Payload]]:
        """One pass of the cohort, and the moves solved from it."""
        answers = yield from server.ask(
            cohort, number, self.learner.state, len(cohort), self.config.deadline
        )
        work = self.solving(answers)
        counted = yield from server.aggregate(answers, work)
        self.sent_first |= {payload.sender.id for payload in counted}
        self.rounds_done = number + 1
        return counted

    def solving(self, answers: list[Payload]) -> Work:
        """A round of moves from these answers."""
        cost = Cost()
        for name in sorted({payload.sender.backbone for payload in answers}):
            mine = [p for p in answers if p.sender.backbone == name]
            cost += self.solving_cost(name, sum(self.places(p.sender, p.samples) for p in mine))
        what: Any = [
            (p.sender.id, p.sender.backbone, p.data, p.sender.id not in self.sent_first)
            for p in answers
        ]
        return self.learner.work(cost, self.learner.aggregate, self.server_update, what)

    def solving_cost(self, backbone: str, places: int) -> Cost:
        """Gradients of differences that are told otherwise, sums over the records, a Cholesky
        solution for each of half the penalties, and what the choice asks of the head: logits of the
        curvature's places and, a dozen times, of those left out.
        """
        from learning.next_token.side import MOST_CURVED, MOST_LEFT_OUT, PENALTIES

        width = self.widths[backbone]
        inputs = len(self.layers[backbone]) * width
        sums = 2.0 * places * inputs * (inputs + width)
        solved = len(PENALTIES) / 2 * (2 / 3 * inputs**3 + 2.0 * inputs**2 * width)
        looked = min(places, MOST_CURVED) + 12 * min(places // 10, MOST_LEFT_OUT)
        words = self.says[backbone].gradient(looked)
        if self.form.kind != "gradient":
            words += self.says[backbone].gradient(places)
        return Cost(sums + solved, 8.0 * inputs**2) + words


def sampled(taps: int | tuple[int, ...], depths: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The sampled layers of backbones of these depths, the last among them. ValueError for a list
    that does not end with it.
    """
    if isinstance(taps, int):
        return sample(depths, taps, 0)
    for name, depth in depths.items():
        if max(taps) != depth:
            raise ValueError(
                f"method.taps: ends with layer {max(taps)}, and the last state of {name} is that "
                f"of layer {depth}, which its head reads: end with it, or say how many"
            )
    return dict.fromkeys(depths, tuple(sorted(taps)))
