"""Who acts: devices and the server. Their verbs let the modelled time pass and record it; methods only tell the story.

Every verb is a generator to be used with `yield from`. A device or server that is told to stop is interrupted inside the
verb: what had been done until then is recorded with the reason as its outcome, and the interruption goes on to the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from devices.compute import ComputeModel
from devices.fleet import Member
from devices.profile import DeviceProfile
from learning.cost import Cost

if TYPE_CHECKING:
    from sim.learners.null import NullLearner
    from sim.simulation import Simulation


@dataclass(frozen=True)
class Work:
    """A piece of computation: what it costs, and the real thing to run on the host (None in a dry run)."""

    cost: Cost
    run: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one device that are processed together, and when the last of them is there."""

    samples: np.ndarray
    ready_s: float


@dataclass(frozen=True)
class Payload:
    """What an upload carries: its number in the run, who sent how many records, its size, and (unless dry) its bytes."""

    number: int
    sender: Device
    samples: np.ndarray
    nbytes: int
    data: bytes | None = field(default=None, repr=False)
    version: int = 0


@dataclass(frozen=True)
class Task:
    """What a server asks of a device: to work on version `version` of a model; `closed` happens when that round ends."""

    version: int
    model: Any
    closed: simpy.Event


class Device:
    """One device of the fleet and its day."""

    def __init__(
        self,
        sim: Simulation,
        member: Member,
        profile: DeviceProfile,
        model: ComputeModel,
        samples: np.ndarray,
        joined_at_s: float,
        ready_s: np.ndarray,
        client: str | None = None,
    ) -> None:
        self.sim, self.member, self.profile, self.client = sim, member, profile, client
        self.id, self.backbone = member.id, member.backbone
        self.samples, self.joined_at_s = samples, joined_at_s
        self.finished_at_s: float | None = None
        self.outcome = "ok"
        self.peak_memory_bytes = 0
        self._model, self._ready_s = model, ready_s
        self.is_serving = False
        self._assigned: deque[Task | None] = deque()
        self._called = sim.env.event()

    def arrive(self) -> Generator:
        """Be absent until the joining time; an absent device draws no power of the study's."""
        yield self.sim.env.timeout(max(0.0, self.joined_at_s - self.sim.env.now))

    def batches(self, size: int) -> Iterator[Batch]:
        """The device's own samples, once, in batches."""
        for start in range(0, len(self.samples), size):
            here = slice(start, start + size)
            yield Batch(self.samples[here], float(self._ready_s[here].max()))

    def until(self, time_s: float) -> Generator:
        """Wait, idle, until a moment; nothing happens if it has passed."""
        if time_s > self.sim.env.now:
            yield from self._timed("wait", time_s - self.sim.env.now, self.profile.power.idle_w)

    def compute(self, work: Work) -> Generator[Any, Any, Any]:
        """Run the work for real on the host while the device's own modelled seconds pass; returns its result."""
        self.remember(work.cost.peak_bytes)
        seconds = self._model.seconds(work.cost.flop, work.cost.bytes_moved)
        future = self.sim.host.start(work.run) if work.run else None
        yield from self._timed("compute", seconds, self.profile.power.compute_w, work.cost.flop)
        return future.result() if future else None

    def upload(self, payload: Payload) -> Generator:
        """Send a payload's bytes to the server through whatever links lie between."""
        event = self.sim.network.upload(self.id, payload.nbytes)
        yield from self._transfer("upload", event, payload.nbytes, self.profile.power.uplink_w, (payload.number,))

    def download(self, nbytes: int) -> Generator:
        """Receive bytes from the server."""
        event = self.sim.network.download(self.id, nbytes)
        yield from self._transfer("download", event, nbytes, self.profile.power.downlink_w)

    def assign(self, task: Task | None) -> None:
        """Called by the server: one more task, or None when there will be no more."""
        self._assigned.append(task)
        if not self._called.triggered:
            self._called.succeed()

    def serve(self, story: Callable[[Task], Generator]) -> Generator:
        """Live `story` for every task that the server assigns, then wait, idle, until that round is closed.

        Between rounds that do not want it a device is free: no power of the study's. A device that is told it is too late
        drops what it was doing and waits for its next task.
        """
        self.is_serving = True
        self.sim.server.wake()
        while True:
            if not self._assigned:
                self._called = self.sim.env.event()
                yield self._called
            task = self._assigned.popleft()
            if task is None:
                return
            try:
                yield from story(task)
                if not task.closed.triggered:
                    yield from self._spend("wait", task.closed, self.profile.power.idle_w)
            except simpy.Interrupt as stop:
                if stop.cause != "late":
                    raise

    def remember(self, peak_bytes: int) -> None:
        """Note that the work's own memory, beside the backbone's weights, reached so many bytes."""
        used = self.sim.costing.weight_bytes(self.member) + peak_bytes
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)

    def _timed(self, kind: str, seconds: float, watts: float, flop: float = 0.0) -> Generator:
        yield from self._spend(kind, self.sim.env.timeout(seconds), watts, seconds=seconds, flop=flop)

    def _transfer(self, kind: str, event: simpy.Event, nbytes: int, watts: float, flows=()) -> Generator:
        yield from self._spend(kind, event, watts, nbytes=nbytes, flows=flows, abort=self.sim.network.abort)

    def _spend(self, kind: str, event: simpy.Event, watts: float, **what: Any) -> Generator:
        yield from _recorded(self.sim, self.id, kind, event, watts, **what)


def _recorded(
    sim: Simulation,
    actor: str,
    kind: str,
    event: simpy.Event,
    watts: float,
    *,
    seconds: float = 0.0,
    flop: float = 0.0,
    nbytes: int = 0,
    flows: Sequence[int] = (),
    abort: Callable[[simpy.Event], float] | None = None,
) -> Generator:
    """Wait for an event and record the span; an interrupted one holds the share of its FLOP, or the bytes, until then."""
    start, outcome = sim.env.now, "ok"
    try:
        yield event
    except simpy.Interrupt as stop:
        outcome = str(stop.cause)
        flop *= (sim.env.now - start) / seconds if seconds > 0 else 1.0
        nbytes = int(abort(event)) if abort else nbytes
        raise
    finally:
        if kind != "wait" or sim.env.now > start:  # no time passed, nobody waited
            joules = watts * (sim.env.now - start)
            sim.recorder.span(actor, kind, start, sim.env.now, nbytes, flop, joules, outcome, flows)


class Server:
    """The server: an inbox of payloads and one accelerator with a first-come-first-served queue."""

    def __init__(self, sim: Simulation, profile: DeviceProfile, model: ComputeModel) -> None:
        self.sim, self.profile = sim, profile
        self._model, self._accelerator = model, simpy.Resource(sim.env, capacity=1)
        self._inbox: deque[Payload] = deque()
        self._news = sim.env.event()

    def receive(self, payload: Payload) -> None:
        """Put a payload into the inbox; called by a device when its last byte has landed."""
        self._inbox.append(payload)
        self.wake()

    def take(self) -> list[Payload]:
        """Everything that has landed since the last call, in order of landing."""
        taken = list(self._inbox)
        self._inbox.clear()
        return taken

    def wake(self) -> None:
        """Let a waiting server look again."""
        if not self._news.triggered:
            self._news.succeed()

    def wait(self) -> Generator:
        """Sleep until something lands or a device ends."""
        if not self._inbox:
            self._news = self.sim.env.event()
            yield self._news

    def select(self, count: int, version: int) -> Generator[Any, Any, list[Device]]:
        """A random sample of so many devices that have joined; waits until that many have (or all that ever will)."""
        while True:
            free = [d for d in self.sim.devices if d.is_serving and self.sim.is_at_work(d)]
            if len(free) >= min(count, self.sim.devices_at_work):
                break
            self.take()  # answers to rounds that are over
            yield from self.wait()
        rng = self.sim.streams.rng("server/selection", version)
        return [free[i] for i in sorted(rng.permutation(len(free))[:count])]

    def free(self, count: int, version: int, busy: Collection[Device]) -> list[Device]:
        """A random sample of at most so many devices that have joined and are not busy."""
        free = [d for d in self.sim.devices if d.is_serving and self.sim.is_at_work(d) and d not in busy]
        rng = self.sim.streams.rng("server/selection", version)
        return [free[i] for i in rng.permutation(len(free))[: max(0, count)]]

    def rounds(self, count: int, learner: NullLearner, story: Callable[[int], Generator[Any, Any, int]]) -> Generator:
        """Live `story` for every round (it returns how many devices answered), until there are no more rounds, the target
        is reached or no device is at work; then let the devices go and end the training.
        """
        for number in range(count):
            answered = yield from story(number)
            self.sim.after_update(learner, None, answered)
            if self.sim.target_reached or not self.sim.devices_at_work:
                break
        yield from self.dismiss()
        self.sim.end_training(learner)

    def ask(
        self,
        devices: Sequence[Device],
        version: int,
        model: Any,
        wanted: int | None = None,
        deadline_s: float | None = None,
    ) -> Generator[Any, Any, list[Payload]]:
        """Give these devices a task and collect their answers: of all of them, or of so many as are wanted."""
        task = Task(version, model, self.sim.env.event())
        for device in devices:
            device.assign(task)
        return (yield from self.collect(task, devices, len(devices) if wanted is None else wanted, deadline_s))

    def dismiss(self) -> Generator:
        """Tell every device that there will be no more tasks."""
        for device in self.sim.devices:
            device.assign(None)
        yield self.sim.env.timeout(0)  # let them go in good order

    def collect(
        self, task: Task, devices: Sequence[Device], wanted: int, deadline_s: float | None = None
    ) -> Generator[Any, Any, list[Payload]]:
        """Wait until so many of the devices have answered a task, or the deadline; close it and return what came.

        Devices that are still at it are told that they are late. Fewer answers come when devices drop out. The waiting is
        a span of the server's: a synchronous server waits for its slowest device.
        """
        start, got = self.sim.env.now, []
        deadline = None if deadline_s is None else self.sim.env.timeout(deadline_s)
        while True:
            got += [payload for payload in self.take() if payload.version == task.version]
            answered = {payload.sender.id for payload in got}
            open_ = [d for d in devices if d.id not in answered and self.sim.is_at_work(d)]
            if len(got) >= wanted or not open_ or (deadline and deadline.processed):
                break
            self._news = self.sim.env.event()
            yield self._news if deadline is None else self._news | deadline
        self.sim.recorder.span("server", "wait", start, self.sim.env.now, flows=[p.number for p in got])
        self.sim.interrupt(open_, "late")
        task.closed.succeed()
        return got

    def compute(self, work: Work, flows: Sequence[int] = (), kind: str = "train") -> Generator[Any, Any, Any]:
        """Queue for the accelerator, then run the work for real while its modelled seconds pass; returns its result."""
        with self._accelerator.request() as turn:
            yield turn
            seconds = self._model.seconds(work.cost.flop, work.cost.bytes_moved)
            future = self.sim.host.start(work.run) if work.run else None
            watts, done = self.profile.power.compute_w, self.sim.env.timeout(seconds)
            yield from _recorded(
                self.sim, "server", kind, done, watts, seconds=seconds, flop=work.cost.flop, flows=flows
            )
        return future.result() if future else None

    def deliver(self, devices: Sequence[Device], nbytes_of: Callable[[Device], int]) -> Generator:
        """Send every device its bytes, all at once through the shared links; ends when the last has them."""
        downloads = [self.sim.start(device, device.download(nbytes_of(device))) for device in devices]
        yield self.sim.env.all_of(downloads)
