"""The two ends of the real world. Each process builds the scenario's world and runs its own part
of what the method does.

The verbs are those of `sim.kernel.device`; only what crosses the wire is replaced here: a device's
`upload` and `download`, and what the server does to a device of another process. Pacing needs no
code: on a `RealClock` the host's real work fills the beginning of the modelled time, and work that
takes longer makes its span longer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from sim.kernel.device import Device, Payload
from sim.kernel.learned import Learned, with_values
from sim.kernel.learner import Learner
from sim.kernel.ledger import Contents, contents_of, only
from sim.kernel.server import Server
from sim.kernel.work import ClientTask, Steps
from sim.methods.federated_peft.learner import FederatedLearner
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.scenario.schema import Scenario
from sim.simulation import Ended, Simulation
from sim.validate.clock import RealClock
from sim.validate.wire import Connection


class RealRunError(ValueError):
    """The real run cannot be, or went wrong; the message says why."""


class RealWorld(Simulation):
    """A scenario's world on the wall's clock; its process sets what learns."""

    env: RealClock

    def __init__(self, scenario: Scenario, folder: Path, speed: float) -> None:
        self._speed = speed
        super().__init__(scenario, folder, dry=True)
        self.dry = False

    def _clock(self) -> RealClock:
        return RealClock(self._speed)


def _travelling(world: Simulation) -> FederatedLearner:
    """The learner of a method whose model travels: of those executed, the federated ones alone."""
    learner = world.method.learner
    assert isinstance(learner, FederatedLearner)
    return learner


# --- a device's process


@dataclass(eq=False)
class RemoteTask(ClientTask):
    """A task as a device sees it: the model is there once it has been downloaded."""

    closed: simpy.Event = field(kw_only=True)
    landed: simpy.Event = field(kw_only=True)


class LocalDevice(Device):
    """The device of this process; it has both connections before it begins."""

    world: DeviceWorld
    control: Connection
    data: Connection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tasks: dict[int, RemoteTask] = {}
        self._acknowledged: dict[int, simpy.Event] = {}
        self._present: RemoteTask

    def upload(self, payload: Payload) -> Generator[simpy.Event, Any, None]:
        """Send the payload's bytes; done when the server has said how many of them landed."""
        start_s = self.world.env.now
        self._acknowledged[payload.number] = self.world.env.event()
        header = {
            "payload": payload.number,
            "records": len(payload.samples),
            "version": payload.version,
            "holds": payload.contents.plain(),
        }
        body = with_values(payload.data)
        assert isinstance(body, bytes)
        self.data.send(header, body)
        nbytes = yield self._acknowledged[payload.number]
        del self._acknowledged[payload.number]
        self._record("upload", start_s, nbytes, self.power.uplink_w, [payload.number])

    def download(self, contents: Contents | int) -> Generator[simpy.Event, Any, None]:
        """Receive the model of the present task, which the server sends without being asked."""
        start_s, task = self.world.env.now, self._present
        body, nbytes = yield task.landed
        task.model = _travelling(self.world).unpacked(self.backbone, body)
        self._record("download", start_s, nbytes, self.power.downlink_w)

    def _record(
        self, kind: str, start_s: float, nbytes: int, watts: float, flows: Sequence[int] = ()
    ) -> None:
        now = self.world.env.now
        self.world.recorder.span(
            self.id, kind, start_s, now, nbytes, 0.0, watts * (now - start_s), "ok", flows
        )

    def on_control(self, header: dict[str, Any]) -> None:
        """A message of the server's."""
        if "landed" in header:
            self._acknowledged[header["payload"]].succeed(header["landed"])
        elif "closed" in header:
            self._task(header["closed"]).closed.succeed()
        elif header["task"] is None:
            self.assign(None)
        else:
            self._tasks = {
                number: task for number, task in self._tasks.items() if number >= header["task"]
            }
            self._present = self._task(header["task"])
            self._present.version = header["version"]
            self.assign(self._present)

    def on_data(self, header: dict[str, Any], body: bytes, counted: int) -> None:
        """Bytes of the server's, all landed."""
        if "task" in header:
            self._task(header["task"]).landed.succeed((body, counted))

    def _task(self, number: int) -> RemoteTask:
        """By its number: news of a task may come before or after the bytes of its model."""
        event = self.world.env.event
        return self._tasks.setdefault(number, RemoteTask(0, None, closed=event(), landed=event()))


class RemoteServer(Server):
    """The server as a device's process knows it: what is uploaded is there already."""

    world: DeviceWorld

    def receive(self, payload: Payload) -> None:
        """It landed with its last byte."""

    def wake(self) -> None:
        """Tell the server that this device would serve now."""
        me = self.world.me
        me.control.send({"is_serving": me.is_serving})


class DeviceWorld(RealWorld):
    """The world of one device's process."""

    device_type, server_type = LocalDevice, RemoteServer
    devices: Sequence[LocalDevice]

    def __init__(self, scenario: Scenario, folder: Path, speed: float, me: str) -> None:
        super().__init__(scenario, folder, speed)
        self.me = next(device for device in self.devices if device.id == me)

    def execute(self) -> dict[str, Any]:
        """Run this device's part of the method; returns what the server needs to know of it."""
        self.start(self.me, self._device_process(self.me, self.method.device(self.me)))
        while self._processes.alive:
            self.env.step()
        return {
            "outcome": self.me.outcome,
            "finished_at_s": self.me.finished_at_s,
            "peak_memory_bytes": self.me.peak_memory_bytes,
            "torch_s": self.host.torch_s,
        }

    def spans(self) -> list[dict[str, Any]]:
        """What this device did; asked for at its end, for making a table takes the host its
        time.
        """
        return self.recorder.spans().to_pylist()


# --- the server's process


class RemoteDevice(Device):
    """A device, in a process of its own, as the server knows it; it has both
    connections before it begins.
    """

    world: ServerWorld
    control: Connection
    data: Connection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.report: dict[str, Any] = {}
        self.spans: list[dict[str, Any]] | None = None
        self._tasks = 0
        self._done = self.world.env.event()
        self._delivered = self.world.env.event()

    def until_done(self) -> Generator:
        """Until its process says that it has ended."""
        yield self._done

    def assign(self, task: ClientTask | None) -> None:
        """Send word of a task, its model, and later that its round is closed."""
        if task is None:
            self.control.send({"task": None})
            return
        learner, model = _travelling(self.world), with_values(task.model)
        assert isinstance(model, Mapping)
        self._tasks = number = self._tasks + 1
        self.control.send({"task": number, "version": task.version})
        body = learner.packed(learner.part_of(self.backbone, model))
        self.world.ledger.note("devices", only("parameters", len(body)), 0)
        self.data.send({"task": number}, body)
        if task.closed is not None:
            task.closed.callbacks.append(lambda _: self.control.send({"closed": number}))

    def has(self, task: ClientTask) -> bool:
        """Nobody drops a task here: it has it until it has answered."""
        return task.closed is None or not task.closed.triggered

    def download(self, contents: Contents | int) -> Generator[simpy.Event, Any, None]:
        """Send it what it needs to predict, and wait for its word that this has landed."""
        start_s, watts = self.world.env.now, self.power.downlink_w
        self.data.send({"delivery": self.id}, self.world.shipped(self.backbone))
        landed_bytes = yield self._delivered
        now = self.world.env.now
        self.world.recorder.span(
            self.id, "download", start_s, now, landed_bytes, 0.0, watts * (now - start_s)
        )
        self.world.ledger.note("devices", contents_of(contents), 0)

    def on_control(self, header: dict[str, Any]) -> None:
        """A message of the device's."""
        if "is_serving" in header:
            self.is_serving = header["is_serving"]
            self.world.server.note(self)
            self.world.server.wake()
        elif "delivered" in header:
            self._delivered.succeed(header["delivered"])
        elif "done" in header:
            self.report = header["done"]
            self.outcome = self.report["outcome"]
            self.peak_memory_bytes = self.report["peak_memory_bytes"]
            self._done.succeed()
        elif "spans" in header:
            self.spans = header["spans"]

    def on_data(self, header: dict[str, Any], body: bytes, counted: int) -> None:
        """A payload whose last byte has landed; it holds what its device says, if that is as many
        bytes as have come.
        """
        samples = np.zeros(
            header["records"], dtype=np.int64
        )  # which texts they were is the device's business
        said = Contents.of_plain(header["holds"])
        held = said if said.nbytes == counted else contents_of(counted)
        self.world.ledger.note("server", held, len(samples))
        number = self.world.server.next_payload()
        payload = Payload(number, self, samples, held, body, header["version"])
        self.world.server.receive(payload)


class LocalServer(Server):
    """The server of this process."""

    world: ServerWorld

    def select(self, count: int, version: int) -> Generator[Any, Any, list[Device]]:
        """As simulated, once all who have joined have reported: their message may still be on its
        way.
        """
        sim = self.world
        while any(
            d.joined_at_s <= sim.env.now and not d.is_serving and not d.has_ended
            for d in sim.devices
        ):
            self.take()
            yield from self.wait()
        return (yield from super().select(count, version))

    def dismiss(self) -> Steps[None]:
        """Tell every device that there will be no more tasks, and wait for the end of each."""
        for device in self.world.devices:
            device.assign(None)
        yield self.world.env.all_of([device._done for device in self.world.devices])


class ServerWorld(RealWorld):
    """The world of the server's process; devices' spans join its own as each device ends."""

    device_type, server_type = RemoteDevice, LocalServer
    devices: Sequence[RemoteDevice]

    def __init__(self, scenario: Scenario, folder: Path, speed: float) -> None:
        super().__init__(scenario, folder, speed)
        self.torch_s = 0.0
        self._shipped: dict[str, bytes] = {}

    def shipped(self, backbone: str) -> bytes:
        """What is delivered after training, packed once a backbone."""
        from sim.validate.learners import shipped

        if backbone not in self._shipped:
            learner = self.method.learner
            assert isinstance(learner, SideTuningLearner)  # no other method delivers anything
            self._shipped[backbone] = shipped(learner, backbone)
        return self._shipped[backbone]

    def after_update(
        self,
        learner: Learner,
        loss: Learned[float] | None,
        records: int,
        first: bool = False,
        last: bool = False,
    ) -> None:
        """Count; looking at the model would take real time, so that is left for the end."""
        self.updates += not (first or last)

    def execute(self, limit_s: float, on_progress: Callable[[ServerWorld], None]) -> Ended:
        """Run the method to its end; RealRunError when that takes longer than `limit_s`."""
        began = time.monotonic()
        for device in self.devices:
            self.start(device, self._device_process(device, device.until_done()))
        self.start(None, self.method.server(self.server))
        while self._processes.alive:
            self.env.step()
            on_progress(self)
            if time.monotonic() - began > limit_s:
                raise RealRunError(
                    f"the real run was still under way after {limit_s:.0f} s: use a higher "
                    "--compress"
                )
        self.ended.reason = "exhausted"
        self.ended.at_s = self.env.now
        self.torch_s = self.host.torch_s
        while any(device.spans is None for device in self.devices):
            self.env.step()
        for device in self.devices:
            device.finished_at_s = device.report["finished_at_s"]
            for span in device.spans or ():
                self.recorder.span(**span)
        with contextlib.suppress(
            simpy.Interrupt
        ):  # of a model that is not finite: there is nothing left to stop
            super().after_update(self.method.learner, None, 0, last=True)
        return self.ended
