"""Fed MobiLLM and PAE MobiLLM on next-token tasks: side-tuning of decoders, without a token at the
server.

PAE MobiLLM's second version sends "the tokens that take part in the loss" (arXiv 2507.01216), and
leaves open how a prediction difference over a vocabulary goes over a link. Here each device passes
over its texts with its frozen decoder and uploads, for each place that a token of a response
follows, the states of a few sampled layers and what the difference says of the last state: the
negative gradient of the loss, E'(one_hot - p). The server solves moves of the last state from them
(`learning/next_token/side.py`), which the device's own head then reads. Each further pass is a
round of boosting: devices get the moves, and send the gradients that are left; the states stay at
the server.
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
from learning.cost.costs import Cost
from learning.next_token.payload import encoded_sizes
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


def gradients(head: VocabularyHead, last_MD: Tensor, said_M: Tensor) -> np.ndarray:
    """A client update: which way each place's last state should move, [M, D]."""
    from learning.next_token.difference import negative_gradient

    return negative_gradient(head, last_MD, said_M).numpy()


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

    config: Config
    learner: NextTokenLearner
    client_update: ClassVar[Callable[..., Any]] = staticmethod(gradients)
    server_update: ClassVar[Callable[..., Any]] = staticmethod(boosted)
    keeps_on_device = DATA_KINDS

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.says = vocabularies(world)
        self.widths = world.costing.widths()
        self.layers = sampled(config.taps, world.costing.depths())
        learned = {name: depth_of(config_of(s)) for name, s in world.costing.learned.items()}
        own = sampled(config.taps, learned)
        self.learner = learner_for(world, NextTokenLearner, config, own)
        self.sent_first: set[str] = set()  # devices whose states the server has
        self.rounds_there: dict[str, int] = {}  # of moves that a device has
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
        """Forward passes over all texts, and the gradients at the head."""
        cost, size = Cost(), self.config.device_batch
        for start in range(0, len(device.samples), size):
            cost += self.batch_cost(device, device.samples[start : start + size], task.version)
        numbers = self.places(device) * self.inputs(device) if first else 0
        held = 2 * (numbers + self.places(device) * self.widths[device.backbone])
        cost = dataclasses.replace(cost, peak_bytes=cost.peak_bytes + held)
        answer = self.learner.answer
        how = (device.backbone, device.samples, task.model, first)
        return self.learner.work(cost, answer, self.client_update, *how)

    def batch_cost(self, device: Device, samples: np.ndarray, rounds: int) -> Cost:
        """Of one batch's forward pass, the moves so far, and the gradients."""
        lengths = self.world.lengths(device, samples)
        places = int(self.world.response_lengths(device, samples).sum())
        width = self.widths[device.backbone]
        moves = Cost(2.0 * rounds * places * self.inputs(device) * width)
        below = self.world.costing.forward(device.member, lengths) + moves
        return with_words(below, 0, self.says[device.backbone].gradient(places))

    def peak_bytes(self, device: Device) -> int:
        """Of a pass with the backbone's weights and what waits to be sent."""
        cost = self.one_pass(device, ClientTask(0, None, None), True).cost
        return device.held_bytes(cost.peak_bytes + self.moves_bytes(device, self.config.passes))

    def held(self, device: Device, first: bool) -> Contents:
        """What a device uploads."""
        backbone = device.backbone
        sizes = self.sizes(backbone, self.places(device), first)
        layers = tuple(self.layers[backbone]) if first else ()
        return Contents(
            Item("activation", sizes["values"], layers, "response"),
            Item("prediction difference", sizes["targets"]),
            Item("frame", sizes["frame"]),
        )

    def _sizes(self, backbone: str, places: int, first: bool) -> dict[str, int]:
        vectors = len(self.layers[backbone]) if first else 0
        width = self.widths[backbone]
        return encoded_sizes(self.config.wire, places, vectors, width, width)

    def places(self, device: Device) -> int:
        """Tokens that are to be said after what the device holds."""
        return int(self.world.response_lengths(device, device.samples).sum())

    def inputs(self, device: Device) -> int:
        """Numbers of a place's sampled states."""
        return len(self.layers[device.backbone]) * self.widths[device.backbone]

    def moves_bytes(self, device: Device, rounds: int) -> int:
        """Of so many rounds' moves as a device gets them: weights, bias, mean and scale, in half
        precision.
        """
        inputs, width = self.inputs(device), self.widths[device.backbone]
        return 2 * rounds * (inputs * width + width + 2 * inputs)

    def delivery_bytes(self, device: Device) -> int:
        """All rounds' moves."""
        return self.moves_bytes(device, self.config.passes)

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
        return counted

    def solving(self, answers: list[Payload]) -> Work:
        """A round of moves from these answers."""
        cost = Cost()
        for name in sorted({payload.sender.backbone for payload in answers}):
            mine = [p.sender for p in answers if p.sender.backbone == name]
            cost += self.solving_cost(name, sum(map(self.places, mine)))
        what: Any = [(p.sender.backbone, p.samples, p.data) for p in answers]
        return self.learner.work(cost, self.learner.aggregate, self.server_update, what)

    def solving_cost(self, backbone: str, places: int) -> Cost:
        """Sums over the records, a Cholesky solution for each of half the penalties, and what the
        choice asks of the head: logits of the curvature's places and, a dozen times, of those left
        out.
        """
        from learning.next_token.side import MOST_CURVED, MOST_LEFT_OUT, PENALTIES

        width = self.widths[backbone]
        inputs = len(self.layers[backbone]) * width
        sums = 2.0 * places * inputs * (inputs + width)
        solved = len(PENALTIES) / 2 * (2 / 3 * inputs**3 + 2.0 * inputs**2 * width)
        looked = min(places, MOST_CURVED) + 12 * min(places // 10, MOST_LEFT_OUT)
        words = self.says[backbone].gradient(looked)
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
