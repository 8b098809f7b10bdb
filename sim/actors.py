"""Who acts: devices and the server. Their verbs let the modelled time pass and record it; methods only tell the story.

Every verb is a generator to be used with `yield from`. A device or server that is told to stop is interrupted inside the
verb: what had been done until then is recorded with the reason as its outcome, and the interruption goes on to the caller.
A device that only goes offline keeps its place in the story: its verb ends as "offline", waits until the device is on again,
and is done anew. Within a task of the server's it drops the task instead, as if it were late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from devices.availability import Availability
from devices.compute import ComputeModel
from devices.fleet import Member
from devices.power import radio
from devices.profile import DeviceProfile
from learning.cost import Cost
from sim.spans import recorded

if TYPE_CHECKING:
    from sim.conditions import Conditions
    from sim.learners.null import NullLearner
    from sim.simulation import Simulation

MOST_TRIES = 1_000  # of one verb that is cut short again and again by going offline


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
        self.id, self.backbone, self.power = member.id, member.backbone, model.engine.power
        self.samples, self.joined_at_s = samples, joined_at_s
        self.finished_at_s: float | None = None
        self.outcome = "ok"
        self.peak_memory_bytes = 0
        self.memory_bytes = profile.memory_bytes if member.memory_bytes is None else member.memory_bytes
        self.conditions: Conditions | None = None
        self._model, self._ready_s = model, ready_s
        self.availability: Availability | None = None  # None: always on
        self.is_on, self.is_gone, self.off_since_s = True, False, 0.0
        self._back = sim.env.event()
        self._open_verbs: dict[simpy.Process, None] = {}
        self._serving: simpy.Process | None = None
        self.is_serving = False
        self.task: Task | None = None
        self._assigned: deque[Task | None] = deque()
        self._called = sim.env.event()

    def arrive(self) -> Generator:
        """Be absent until the joining time, and until it is on; an absent device draws no power of the study's."""
        yield self.sim.env.timeout(max(0.0, self.joined_at_s - self.sim.env.now))
        yield from self._until_on()

    def batches(self, size: int) -> Iterator[Batch]:
        """The device's own samples, once, in batches."""
        for start in range(0, len(self.samples), size):
            here = slice(start, start + size)
            yield Batch(self.samples[here], float(self._ready_s[here].max()))

    def until(self, time_s: float) -> Generator:
        """Wait, idle, until a moment; nothing happens if it has passed."""
        if time_s > self.sim.env.now:
            yield from self._resumed(lambda: self._wait(time_s))

    def compute(self, work: Work) -> Generator[Any, Any, Any]:
        """Run the work for real on the host while the device's own modelled seconds pass; returns its result."""
        self.remember(work.cost.peak_bytes)
        seconds = self._model.seconds(work.cost.flop, work.cost.bytes_moved)
        future = self.sim.host.start(work.run) if work.run else None
        yield from self._resumed(lambda: self._computing(work, seconds))
        return future.result() if future else None

    def upload(self, payload: Payload) -> Generator:
        """Send a payload's bytes to the server through whatever links lie between."""
        link = self.sim.network.upload
        yield from self._transfer("upload", link, payload.nbytes, "uplink", (payload.number,))

    def download(self, nbytes: int) -> Generator:
        """Receive bytes from the server."""
        link = self.sim.network.download
        yield from self._transfer("download", link, nbytes, "downlink")

    def assign(self, task: Task | None) -> None:
        """Called by the server: one more task (which a device that is off never hears of), or None: there will be no more."""
        if task is not None and not self.is_on:
            return
        self._assigned.append(task)
        if not self._called.triggered:
            self._called.succeed()

    def serve(self, story: Callable[[Task], Generator]) -> Generator:
        """Live `story` for every task that the server assigns, then wait, idle, until that round is closed.

        Between rounds that do not want it a device is free: no power of the study's. A device that is told it is too late,
        or that goes offline, drops what it was doing and waits for its next task.
        """
        self.is_serving, self._serving = True, self.sim.env.active_process
        self.sim.server.wake()
        while True:
            try:
                while not self._assigned:
                    self._called = self.sim.env.event()
                    yield self._called
                self.task = self._assigned.popleft()
                if self.task is None:
                    return
                yield from story(self.task)
                if not self.task.closed.triggered:
                    yield from self._spend("wait", self.task.closed, self.power.idle_w)
            except simpy.Interrupt as stop:  # it may come when the task has just been dropped for another reason
                if stop.cause not in ("late", "offline"):
                    raise
            finally:
                self.task = None

    def has(self, task: Task) -> bool:
        """Whether the device has this task still before it."""
        return self.task is task or any(assigned is task for assigned in self._assigned)

    # --- there or not; sim/availability.py says when

    def go_off(self) -> None:
        """Go offline: what it is doing ends now, and a task of the server's is dropped."""
        self.is_on, self.off_since_s, self._back = False, self.sim.env.now, self.sim.env.event()
        at_it = dict.fromkeys(self._open_verbs)
        if self.task is not None:
            at_it[self._serving] = None
        if self.task is not None or any(self._assigned):
            self.sim.server.lose(self)
        self._assigned = deque(task for task in self._assigned if task is None)
        for process in at_it:
            process.interrupt("offline")

    def come_on(self) -> None:
        """Be on again: what was begun goes on, and the server may ask."""
        self.is_on = True
        self._back.succeed()
        self.sim.server.greet(self)

    def _until_on(self) -> Generator:
        while not self.is_on:
            yield self._back

    def _resumed(self, verb: Callable[[], Generator]) -> Generator:
        return verb() if self.availability is None else self._tried(verb)

    def _tried(self, verb: Callable[[], Generator]) -> Generator:
        """Live a verb; after being offline begin it anew, except in a task of the server's, which is dropped.

        A device that has begun `MOST_TRIES` times gives up and ends its day: what it does never fits between two absences.
        """
        process = self.sim.env.active_process
        if process in self._open_verbs:  # a verb within a verb
            yield from verb()
            return
        for _ in range(MOST_TRIES):
            yield from self._until_on()
            self._open_verbs[process] = None
            try:
                yield from verb()
                return
            except simpy.Interrupt as stop:
                if stop.cause != "offline" or (self.task is not None and process is self._serving):
                    raise
            finally:
                del self._open_verbs[process]
        raise simpy.Interrupt("gave-up")

    def remember(self, peak_bytes: int) -> None:
        """Note that the work's own memory, beside the backbone's weights, reached so many bytes."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.held_bytes(peak_bytes))

    def held_bytes(self, peak_bytes: int) -> int:
        """Memory held by the backbone's weights and work whose own peak is so many bytes."""
        return self.sim.costing.weight_bytes(self.member) + peak_bytes

    def timed(self, kind: str, seconds: float, watts: float, flop: float = 0.0, outcome="ok", done=None) -> Generator:
        """Let so many seconds of one kind pass and record them; `done` gives the share of the FLOP in a part of them."""
        event = self.sim.env.timeout(seconds)
        yield from self._spend(kind, event, watts, seconds=seconds, flop=flop, outcome=outcome, done=done)

    def _wait(self, time_s: float) -> Generator:
        left_s = max(0.0, time_s - self.sim.env.now)
        yield from self.timed("wait", left_s, self.power.idle_w)

    def _computing(self, work: Work, seconds: float) -> Generator:
        if self.conditions:
            return self.conditions.compute(work, seconds)
        return self.timed("compute", seconds, self.power.compute_w, work.cost.flop)

    def _transfer(
        self, kind: str, link: Callable[[str, int], simpy.Event], nbytes: int, way: str, flows: Sequence[int] = ()
    ) -> Generator:
        watts, j_per_byte = radio(self.power, way, bool(self.conditions) and self.conditions.radio_by_rate)
        what = {"nbytes": nbytes, "flows": flows, "abort": self.sim.network.abort, "j_per_byte": j_per_byte}
        yield from self._resumed(lambda: self._spend(kind, link(self.id, nbytes), watts, **what))

    def _spend(self, kind: str, event: simpy.Event, watts: float, **what: Any) -> Generator:
        spent = self.conditions.spent if self.conditions else None
        yield from recorded(self.sim, self.id, kind, event, watts, spent=spent, **what)


class Server:
    """The server: an inbox of payloads and one accelerator with a first-come-first-served queue."""

    def __init__(self, sim: Simulation, profile: DeviceProfile, model: ComputeModel) -> None:
        self.sim, self.profile, self.power = sim, profile, model.engine.power
        self._model, self._accelerator = model, simpy.Resource(sim.env, capacity=1)
        self._inbox: deque[Payload] = deque()
        self._news = sim.env.event()
        self._is_short, self._lost = False, set()

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

    def lose(self, device: Device) -> None:
        """Called by a device that has dropped its task."""
        self._lost.add(device)
        self.wake()

    def take_lost(self) -> set[Device]:
        """The devices that have dropped a task since the last call."""
        lost, self._lost = self._lost, set()
        return lost

    def greet(self, device: Device) -> None:
        """Called by a device that is on again: a server that is short of devices looks again."""
        if self._is_short and device.is_serving:
            self.wake()

    def select(self, count: int, version: int) -> Generator[Any, Any, list[Device]]:
        """A random sample of so many devices that have joined and are on.

        Waits until that many have joined (or all that ever will); for devices that are off it waits only while none is on.
        """
        while True:
            free, now_s = self._free(), self.sim.env.now
            able = sum(d.is_on or now_s < d.joined_at_s for d in self.sim.devices if self.sim.is_at_work(d))
            if len(free) >= max(min(count, able), min(1, self.sim.devices_at_work)):
                break
            self._is_short = True
            self.take()  # answers to rounds that are over
            yield from self.wait()
        self._is_short = False
        rng = self.sim.streams.rng("server/selection", version)
        return [free[i] for i in sorted(rng.permutation(len(free))[:count])]

    def free(self, count: int, version: int, busy: Collection[Device]) -> list[Device]:
        """A random sample of at most so many devices that have joined, are on and are not busy."""
        free = [device for device in self._free() if device not in busy]
        self._is_short = len(free) < count
        rng = self.sim.streams.rng("server/selection", version)
        return [free[i] for i in rng.permutation(len(free))[: max(0, count)]]

    def _free(self) -> list[Device]:
        return [d for d in self.sim.devices if d.is_serving and d.is_on and self.sim.is_at_work(d)]

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

        Devices that are still at it are told that they are late. Fewer answers come when devices go. The waiting is
        a span of the server's: a synchronous server waits for its slowest device.
        """
        start, got = self.sim.env.now, []
        deadline = None if deadline_s is None else self.sim.env.timeout(deadline_s)
        while True:
            got += [payload for payload in self.take() if payload.version == task.version]
            answered = {payload.sender.id for payload in got}
            open_ = [d for d in devices if d.id not in answered and self.sim.is_at_work(d) and d.has(task)]
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
            watts, done = self.power.compute_w, self.sim.env.timeout(seconds)
            yield from recorded(
                self.sim, "server", kind, done, watts, seconds=seconds, flop=work.cost.flop, flows=flows
            )
        return future.result() if future else None

    def deliver(self, devices: Sequence[Device], nbytes_of: Callable[[Device], int]) -> Generator:
        """Send every device its bytes, all at once through the shared links; ends when the last has them."""
        downloads = [self.sim.start(device, device.download(nbytes_of(device))) for device in devices]
        yield self.sim.env.all_of(downloads)
