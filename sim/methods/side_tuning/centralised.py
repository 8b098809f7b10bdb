"""References without activations on the wire: all texts at the server from the start, or uploaded
as they are.

The server runs the backbone itself and then trains the same side network as Fed MobiLLM's server,
by the same schedule. `centralised` says what being spread over devices costs this side network; it
is no upper bound of side-tuning, as a logistic regression on the same vectors can be better.
`upload-raw-text` asks what forward passes on devices are good for: a text is far smaller than its
activations, and its privacy is what the difference buys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import simpy
from pydantic import Field

from learning.side.config import SideShape
from learning.side.prediction_difference import SAID_FIRST
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import Contents, Item
from sim.kernel.server import Server
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.side_tuning.passes import server_cost, server_pass
from sim.methods.side_tuning.reference_learners import ServerLearner
from sim.methods.side_tuning.sending import require_ratings_of_half
from sim.methods.side_tuning.shared import (
    SideTuning,
    SideTuningSettings,
    Unfitted,
    shape_over,
)
from sim.methods.side_tuning.text_wire import LABEL_BYTES, encode_texts, framing_nbytes
from sim.methods.side_tuning.updates import one_step, with_differences
from sim.scenario.settings import OnlyFor


class Centralised(SideTuning):
    """Side-tuning of one backbone at the server.

    centralised: Side-tuning of one backbone at the server, with all texts there from the start.

    upload-raw-text: Side-tuning of one backbone at the server, with texts that devices upload.
    """

    class Config(SideTuningSettings):
        """Settings of centralised side-tuning and of the upload of raw texts."""

        only_for: ClassVar[OnlyFor] = dict.fromkeys(
            ("update_share_on_arrival", "bytes_per_token"),
            ("upload-raw-text", lambda settings: settings.kind == "upload-raw-text"),
        )
        is_reference: ClassVar[bool] = True
        kind: Literal["centralised", "upload-raw-text"]
        backbone: str | None = None
        """The server's backbone, one of the fleet's; default the one with the most parameters."""
        replay: float = Field(20, gt=0)
        """Sample-updates granted to the server for each sample that it has."""
        update_share_on_arrival: float = Field(0.25, ge=0, le=1)
        """Share of them that is spent while devices still upload."""
        server_batch: int = Field(32, ge=1)
        bytes_per_token: float = Field(3.7, gt=0)
        """UTF-8 bytes of a token where texts are charged by length alone; 3.74 measured (TREC
        questions, MiniLM tokens).
        """
        backbone_prediction: Literal[Unfitted, "public-head"] = "uniform"
        """As in Fed MobiLLM; there is no device with texts of its own to fit a head to."""
        wire: Literal["float32"] = "float32"
        """Activations stay at the server, unrounded."""

    client_update = staticmethod(with_differences)  # the server does it on their behalf
    server_update = staticmethod(one_step)

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        known = dict(sorted(world.costing.architectures.items()))
        self.backbone = config.backbone or max(known, key=lambda name: known[name].parameters)
        if self.backbone not in known:
            raise ValueError(
                f"method.backbone: no device runs {self.backbone}; choose one of {', '.join(known)}"
            )
        self.architecture = known[self.backbone]
        if config.kind == "upload-raw-text":  # each text after its label
            require_ratings_of_half(config, world)
        super().__init__(config, world)
        self.landed = deque(self.texts_at_the_server())
        if config.kind == "centralised":
            for kind in ("text", "label"):
                world.ledger.hold(
                    "server", kind, sum(len(device.samples) for device in world.devices)
                )

    keeps_on_device: frozenset[str] = frozenset()  # nothing is kept there

    def new_shape(self) -> SideShape:
        """Over the server's backbone."""
        return shape_over(self.config, self.world, [self.backbone])

    def new_learner(self) -> ServerLearner:
        """With the texts of all devices."""
        return learner_for(self.world, ServerLearner, self.config, [self.backbone])

    def peak_bytes(self, device: Device) -> int:
        """No model runs on a device."""
        return 0

    def delivery_bytes(self, device: Device) -> int:
        """The model is where it is used."""
        return 0

    def read_public(self, server: Server) -> Generator:
        """What devices would compute of the classes, too."""
        kind, task = self.config.backbone_prediction, self.world.task
        if kind in SAID_FIRST:
            lengths = task.said_lengths(self.world.costing.learned[self.backbone], kind)
            work: Work[None] = Work(server_pass(self.config, self.world, self.backbone, lengths))
            yield from server.compute(work, kind="forward")
        yield from super().read_public(server)

    def findings(self) -> dict[str, Any]:
        """Nobody is sent anything: at most which layers were chosen."""
        return {"taps": self.learner.layers} if self.tap_rule and not self.world.dry else {}

    def device(self, device: Device) -> Generator:
        """Its own texts, once; nothing where the server has them."""
        yield from device.arrive()
        if self.config.kind == "centralised":
            return
        for batch in device.batches(self.config.device_batch):
            yield from device.until(batch.ready_s)
            yield from device.send(self.text_payload(device, batch.samples))

    @property
    def is_complete(self) -> bool:
        """Whether all texts are at the server."""
        return self.config.kind == "centralised" or super().is_complete

    def take_arrivals(self, server: Server) -> Generator[simpy.Event, Any, bool]:
        """Forward passes over what has come, as soon as it has; they go before updates."""
        self.landed += [(payload.samples, [payload.number]) for payload in server.take()]
        if not self.landed:
            return False
        samples, flows = self.landed.popleft()
        activations: Any = yield from server.compute(self.forward_pass(samples), flows, "forward")
        data = self.learner.encode(self.client_update, self.backbone, samples, activations)
        self.keep(None, self.backbone, data, samples)
        return True

    def end(self, server: Server) -> Generator:
        """The model is where it is used."""
        self.world.end_training(self.learner)
        return
        yield  # a generator, as that of methods that send the model

    def texts_at_the_server(self) -> Iterator[tuple[np.ndarray, list[int]]]:
        """The batches that need no upload: all, in the order of devices, or none."""
        if self.config.kind == "centralised":
            for device in self.world.devices:
                for batch in device.batches(self.config.device_batch):
                    yield batch.samples, []

    def text_payload(self, device: Device, samples: np.ndarray) -> Payload:
        """Texts and labels as bytes; charged by the bytes themselves, or by tokens where the clock
        charges for those.
        """
        texts = self.world.task.texts
        tokens = self.world.costing.fixed_tokens or self.world.task.fixed_tokens
        if texts is None or tokens:
            text_bytes = round(self.config.bytes_per_token * tokens)
            return device.payload(samples, texts_held(len(samples), text_bytes * len(samples)))
        data = encode_texts(texts, samples)
        held = texts_held(len(samples), len(data) - framing_nbytes(len(samples)))
        return device.payload(samples, held, data)

    def forward_pass(self, samples: np.ndarray) -> Work:
        """The backbone over a batch, at the server."""
        fixed = self.world.costing.fixed_tokens
        spec = self.world.costing.learned[self.backbone]
        tokens = fixed or int(self.world.task.lengths(spec, samples).max())
        cost = server_cost(self.config, self.world, self.backbone, len(samples), tokens)
        return self.learner.work(cost, self.learner.forward, self.backbone, samples)


def texts_held(records: int, text_bytes: int) -> Contents:
    """What so many texts of so many bytes together hold on the wire."""
    labels = LABEL_BYTES * records
    lengths = framing_nbytes(records) - labels
    return Contents(Item("text", text_bytes), Item("label", labels), Item("length", lengths))
