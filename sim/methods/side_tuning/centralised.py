"""References without activations on the wire: all texts at the server from the start, or uploaded
as they are.

The server runs the backbone itself and then trains the same side network as Fed MobiLLM's server,
by the same schedule. `centralised` is the best that side-tuning could do; `upload-raw-text` asks
what forward passes on devices are good for: a text is far smaller than its activations, and its
privacy is what the difference buys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from sim.kernel.device import Device
from sim.kernel.learner import NullLearner
from sim.kernel.server import Server
from sim.kernel.work import Payload, Work
from sim.methods.side_tuning.reference_learners import ServerLearner
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.methods.side_tuning.shared import SideTuningSettings, require_updates, shape_over
from sim.methods.side_tuning.text_wire import encode_texts, texts_nbytes
from sim.scenario.settings import OnlyFor

if TYPE_CHECKING:
    from sim.simulation import Simulation


class Centralised:
    """Side-tuning of one backbone at the server, with all texts there or with texts that devices
    upload.
    """

    class Config(SideTuningSettings):
        """Settings of centralised side-tuning and of the upload of raw texts."""

        only_for: ClassVar[OnlyFor] = dict.fromkeys(
            ("eager", "bytes_per_token"),
            ("upload-raw-text", lambda settings: settings.kind == "upload-raw-text"),
        )
        kind: Literal["centralised", "upload-raw-text"]
        backbone: str | None = None
        """The server's backbone, one of the fleet's; default the one with the most parameters."""
        replay: float = Field(20, gt=0)
        """Sample-updates granted to the server for each sample that it has."""
        eager: float = Field(0.25, ge=0, le=1)
        """Share of them that is spent while devices still upload."""
        server_batch: int = Field(32, ge=1)
        bytes_per_token: float = Field(3.7, gt=0)
        """UTF-8 bytes of a token where texts are charged by length alone; 3.74 measured (TREC
        questions, MiniLM tokens).
        """
        wire: Literal["float32"] = "float32"
        """Activations stay at the server, unrounded."""

    def __init__(self, config: Config, sim: Simulation) -> None:
        self.config, self.sim = config, sim
        known = dict(sorted(sim.costing.architectures.items()))
        self.backbone = config.backbone or max(known, key=lambda name: known[name].parameters)
        if self.backbone not in known:
            raise ValueError(
                f"method.backbone: no device runs {self.backbone}; choose one of {', '.join(known)}"
            )
        self.architecture = known[self.backbone]
        require_updates(config, sim.devices)
        self.shape = shape_over(config, sim, [self.backbone])
        self.learner = NullLearner() if sim.dry else ServerLearner(config, sim, [self.backbone])
        self.cache, self.payloads = ReplayCache(sim.streams.rng("server/replay")), 0

    def peak_bytes(self, device: Device) -> int:
        """No model runs on a device."""
        return 0

    def device(self, device: Device) -> Generator:
        """Its own texts, once; nothing where the server has them."""
        yield from device.arrive()
        if self.config.kind == "centralised":
            return
        for batch in device.batches(self.config.device_batch):
            yield from device.until(batch.ready_s)
            payload = self.payload(device, batch.samples)
            yield from device.upload(payload)
            self.sim.server.receive(payload)

    def server(self, server: Server) -> Generator:
        """Forward passes over what has come, as soon as it has; updates whenever enough samples
        grant another.
        """
        updates, landed = 0, deque(self.texts_at_the_server())
        while not self.sim.target_reached:
            landed += [(payload.samples, [payload.number]) for payload in server.take()]
            is_complete = self.config.kind == "centralised" or not self.sim.devices_at_work
            share = 1.0 if is_complete else self.config.eager
            if landed:
                samples, flows = landed.popleft()
                activations = yield from server.compute(self.forward(samples), flows, "forward")
                data = self.learner.encode(self.backbone, samples, activations)
                if self.learner.ingest(self.backbone, data, len(samples)):
                    self.cache.insert(self.backbone, len(samples))
                else:
                    self.sim.leave_out(None, "activations")
            elif (
                share * self.config.replay * len(self.cache)
                >= (updates + 1) * self.config.server_batch
            ):
                loss = yield from server.compute(
                    self.update(self.cache.draw(self.config.server_batch))
                )
                updates += 1
                self.sim.after_update(self.learner, loss, len(self.cache))
            elif not is_complete:
                yield from server.wait()
            else:
                break
        self.sim.end_training(self.learner)

    def texts_at_the_server(self) -> Iterator[tuple[np.ndarray, list[int]]]:
        """The batches that need no upload: all, in the order of devices, or none."""
        if self.config.kind == "centralised":
            for device in self.sim.devices:
                for batch in device.batches(self.config.device_batch):
                    yield batch.samples, []

    def payload(self, device: Device, samples: np.ndarray) -> Payload:
        """Texts and labels as bytes; charged by the bytes themselves, or by tokens where the clock
        charges for those.
        """
        self.payloads += 1
        texts, tokens = (
            self.sim.task.texts,
            self.sim.costing.fixed_tokens or self.sim.task.fixed_tokens,
        )
        if texts is None or tokens:
            nbytes = texts_nbytes([round(self.config.bytes_per_token * tokens)] * len(samples))
            return Payload(self.payloads, device, samples, nbytes)
        data = encode_texts(texts, samples)
        return Payload(self.payloads, device, samples, len(data), data)

    def forward(self, samples: np.ndarray) -> Work:
        """The backbone over a batch, at the server."""
        fixed, spec = self.sim.costing.fixed_tokens, self.sim.costing.learned[self.backbone]
        tokens = fixed or int(self.sim.task.lengths(spec, samples).max())
        return self.learner.work(
            self.architecture.forward(len(samples), tokens), "forward", self.backbone, samples
        )

    def update(self, records: list[int]) -> Work:
        """One AdamW update of the side network on the drawn records."""
        return self.learner.work(
            self.shape.training_step(self.cache.count_by_backbone(records)), "step", records
        )
