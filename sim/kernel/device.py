"""Who acts: devices, and (in server.py) the server. Their verbs let the modelled time pass and
record it; methods only say in which order.

Every verb is a generator to be used with `yield from`. A device or server that is told to stop is
interrupted inside the verb: what had been done until then is recorded with the reason as its
outcome, and the interruption goes on to the caller. A device that only goes offline, or whose
battery is empty, keeps its place: its verb ends with that outcome, waits until the
device is on again, and is done anew. Within a task of the server's it drops the task, as if it were
late.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, Protocol

import numpy as np
import simpy

from devices.availability import Availability
from devices.compute import ComputeModel
from devices.fleet import Member
from devices.hardware import DeviceProfile
from devices.power import radio
from sim.kernel.ledger import Contents, contents_of
from sim.kernel.spans import AWAY, EnergyMeter, recorded
from sim.kernel.work import Batch, ClientTask, Process, Result, Steps, Work

if TYPE_CHECKING:
    from sim.kernel.world import World

Arguments = ParamSpec("Arguments")

COUNTED = "counted"  # of an answer that went into an update
ON: frozenset[str] = frozenset()  # why a device is off that is on: one set for all of a large fleet
MOST_TRIES = 1_000  # of one verb that is cut short again and again by going offline


@dataclass(eq=False, slots=True)  # frozen it would take twice as long to make
class Payload:
    """What an upload carries: its number in the run, who sent how many records, what it holds, and
    (unless dry) its bytes, or the `Learned` that will be these.
    """

    number: int
    sender: Device
    samples: np.ndarray
    contents: Contents
    data: object = field(default=None, repr=False)
    version: int = 0

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.contents.nbytes

    def land(self) -> None:
        """Note that all of it is at the server."""
        self.sender.world.ledger.note("server", self.contents, len(self.samples))


class WorkConditions(Protocol):
    """What makes a device unlike its profile (`sim.world.conditions`)."""

    @property
    def radio_by_rate(self) -> bool:
        """Whether the radio draws by its rate, where the profile knows how much."""

    def compute(self, work: Work[object], nominal_s: float) -> Steps[None]:
        """Let the seconds pass that work of so many nominal ones takes here and now."""


class Device:
    """One device of the fleet and what it does.

    `place` is that in the fleet. `ready_s` are the rising times at which its samples are there; the
    last of fewer is that of all others.
    """

    __slots__ = (
        *("_assigned", "_back", "_called", "_model", "_open_verbs", "_ready_s", "_serving"),
        *("availability", "backbone", "client", "conditions", "finished_at_s", "has_ended", "id"),
        *("is_gone", "is_on", "is_serving", "joined_at_s", "member", "memory_bytes", "meter"),
        *("off_for", "off_since_s", "outcome", "peak_memory_bytes", "place", "power", "profile"),
        *("samples", "task"),
        *(
            "task_outcome",
            "world",
            "__dict__",
            "__weakref__",
        ),  # a method may note things of its own
    )

    def __init__(
        self,
        world: World,
        member: Member,
        place: int,
        profile: DeviceProfile,
        model: ComputeModel,
        samples: np.ndarray,
        joined_at_s: float,
        ready_s: np.ndarray,
        client: str | None = None,
    ) -> None:
        self.world = world
        self.member = member
        self.profile = profile
        self.client = client
        self.id, self.backbone, self.power = member.id, member.backbone, model.engine.power
        self.samples, self.joined_at_s = samples, joined_at_s
        self.place = place
        self.finished_at_s: float | None = None
        self.has_ended = False  # it will do nothing more
        self.outcome = "ok"
        self.task_outcome: str | None = (
            None  # of the server's tasks, where it has had any: see `note_outcome`
        )
        self.peak_memory_bytes = 0
        self.memory_bytes = (
            profile.memory_bytes if member.memory_bytes is None else member.memory_bytes
        )
        self.conditions: WorkConditions | None = None
        self.meter = EnergyMeter(world.env, self.power.idle_w)
        self._model, self._ready_s = model, ready_s
        self.availability: Availability | None = None  # None: always on
        self.is_on, self.is_gone, self.off_since_s = True, False, 0.0
        self.off_for = ON  # of `AWAY`: why it is off
        self._back: simpy.Event | None = None  # happens when it is on again, while it is off
        # tuples, here and below: empty ones weigh nothing, and there are few in them
        self._open_verbs: tuple[simpy.Process, ...] = ()
        self._serving: simpy.Process | None = None
        self.is_serving = False
        self.task: ClientTask[object] | None = None
        self._assigned: tuple[ClientTask[object] | None, ...] = ()
        self._called: simpy.Event | None = None  # happens when one comes, while it waits for one

    def arrive(self) -> Steps[None]:
        """Be absent until the joining time, and until it is on; an absent device draws no power of
        the study's.
        """
        yield self.world.env.timeout(max(0.0, self.joined_at_s - self.world.env.now))
        yield from self._until_on()

    def batches(self, size: int) -> Iterator[Batch]:
        """The device's own samples, once, in batches."""
        for start in range(0, len(self.samples), size):
            yield self.batch(start, size)

    def batch(self, start: int, size: int) -> Batch:
        """At most so many of the device's own samples from that one on, and when all are there."""
        samples = self.samples[start : start + size]
        last = min(start + len(samples), len(self._ready_s)) - 1
        return Batch(samples, float(self._ready_s[last]))

    def until(self, time_s: float) -> Steps[None]:
        """Wait, idle, until a moment; nothing happens if it has passed."""
        if time_s > self.world.env.now:
            yield from self._resumed(self._wait, time_s)

    def until_event(self, event: simpy.Event) -> Steps[None]:
        """Wait, idle, for something that happens at the server."""
        while not event.triggered:
            yield from self._resumed(recorded, self, "wait", event, self.power.idle_w)

    def compute(self, work: Work[Result]) -> Steps[Result | None]:
        """Run the work for real on the host while the device's own modelled seconds pass; returns
        its result.
        """
        self.note_memory(work.cost.peak_bytes)
        seconds = self._model.seconds(work.cost.flop, work.cost.bytes_moved, work.passes)
        result = work.run() if work.run else None
        yield from self._resumed(self._computing, work, seconds)
        return self.world.host.joined(result)

    def payload(
        self,
        samples: np.ndarray,
        contents: Contents | int,
        data: object = None,
        version: int = 0,
    ) -> Payload:
        """What the device has to send, numbered in the run: records of so many samples, holding
        this (or so many bytes of which nothing is said).

        `data` are the bytes, or the `Learned` that will be these; `version` is that of the model
        that they answer. Raises BrokenDeclaration where the method declares to keep such on the
        device.
        """
        number, contents = self.world.server.next_payload(), contents_of(contents)
        self.world.ledger.require_kept(self.id, contents)
        return Payload(number, self, samples, contents, data, version)

    def send(self, payload: Payload, into_inbox: bool = True) -> Steps[Payload]:
        """Upload a payload, and hand it over: it lies in the server's inbox with its last byte.

        `into_inbox=False` is for what the server is waiting for at that moment.
        """
        yield from self.upload(payload)
        if into_inbox:
            self.world.server.receive(payload)
        return payload

    def upload(self, payload: Payload) -> Steps[None]:
        """Send a payload's bytes to the server through whatever links lie between."""
        what = ("upload", "uplink", payload.nbytes, (payload.number,), payload.land)
        return self._resumed(self._moving, *what)  # no generator of its own: many upload at a time

    def download(self, contents: Contents | int) -> Steps[None]:
        """Receive this (or so many bytes of which nothing is said) from the server."""
        contents = contents_of(contents)
        yield from self._resumed(self._moving, "download", "downlink", contents.nbytes)
        self.world.ledger.note("devices", contents, 0)

    def assign(self, task: ClientTask[object] | None) -> None:
        """Called by the server: one more task (which a device that is off never hears of), or None:
        there will be no more.
        """
        if task is not None and not self.is_on:
            return
        self._assigned += (task,)
        if self._called is not None:
            self._called.succeed()
            self._called = None

    def serve(self, client_round: Callable[[ClientTask[object]], Process]) -> Steps[None]:
        """Run `client_round` for every task that the server assigns, then wait, idle, until that
        round is closed.

        Between rounds that do not want it a device is free: no power of the study's. A device that
        is told it is too late, or that goes offline, drops what it was doing and waits for its next
        task.
        """
        self.is_serving, self._serving = True, self.world.env.active_process
        self.world.server.note(self)
        self.world.server.wake()
        while True:
            try:
                while not self._assigned:
                    self._called = self.world.env.event()
                    yield self._called
                self.task, self._assigned = self._assigned[0], self._assigned[1:]
                if self.task is None:
                    return
                yield from client_round(self.task)
                closed = self.task.closed
                if closed is not None and not closed.triggered:
                    yield from recorded(self, "wait", closed, self.power.idle_w)
            except (
                simpy.Interrupt
            ) as stop:  # it may come when the task has just been dropped for another reason
                if stop.cause not in ("late", *AWAY):
                    raise
            finally:
                self.task = None

    def has(self, task: ClientTask[object]) -> bool:
        """Whether the device has this task still before it."""
        return self.task is task or any(assigned is task for assigned in self._assigned)

    def note_outcome(self, how: str) -> None:
        """Note what came of a task: late, offline, ... or "counted"; one answer that counted makes
        its run good.
        """
        if self.task_outcome != COUNTED:
            self.task_outcome = how

    # --- there or not; sim/world/availability.py says when

    @property
    def first_on_s(self) -> float:
        """The first moment at which it has joined and is on; infinity if there is none."""
        own, joined_s = self.availability, self.joined_at_s
        return joined_s if own is None or own.is_on(joined_s) else own.next_change(joined_s)

    def note_absence(self) -> None:
        """An "offline" (or "empty") span, up to now, of a device that has joined and takes
        part, or ends now.
        """
        if not self.is_on and not self.has_ended:
            start_s = max(self.off_since_s, self.first_on_s)
            if start_s < self.world.env.now:
                kind = "empty" if "battery" in self.off_for else "offline"
                self.world.recorder.span(self.id, kind, start_s, self.world.env.now)
        self.off_since_s = self.world.env.now

    def leave(self, reason: str) -> None:
        """Go for good: what it is doing ends with the reason as outcome, and nobody waits for
        it.
        """
        self.is_gone = True
        self.world.interrupt([self], reason)

    def go_off(self, why: str = "offline") -> None:
        """Go off, for one more of the reasons in `AWAY`: what it is doing ends now, and a task of
        the server's is dropped.
        """
        self.note_absence()
        self.off_for |= {why}
        if not self.is_on:
            return
        self.is_on, self._back = False, self.world.env.event()
        self.world.server.note(self)
        at_it = dict.fromkeys(self._open_verbs)
        if self.task is not None and self._serving is not None:
            at_it[self._serving] = None
        if self.task is not None or any(self._assigned):
            self.world.server.note_dropped(self, why)
        self._assigned = tuple(task for task in self._assigned if task is None)
        for process in at_it:
            process.interrupt(why)

    def come_on(self, why: str = "offline") -> None:
        """That reason is gone; without any other be on again: what was begun goes on, and the
        server may ask.
        """
        self.note_absence()
        self.off_for -= {why}
        if self.is_on or self.off_for:
            return
        self.is_on = True
        if self._back is not None:
            self._back.succeed()
            self._back = None
        self.world.server.note(self)
        self.world.server.note_return(self)

    def _until_on(self) -> Steps[None]:
        while self._back is not None:
            yield self._back

    def _resumed(
        self,
        verb: Callable[Arguments, Steps[None]],
        *args: Arguments.args,
        **more: Arguments.kwargs,
    ) -> Steps[None]:
        if self.availability is None and self.meter.battery is None:
            return verb(*args, **more)
        return self._retried(functools.partial(verb, *args, **more))

    def _retried(self, verb: Callable[[], Steps[None]]) -> Steps[None]:
        """Run a verb; after being offline begin it anew, except in a task of the server's, which
        is dropped.

        A device that has begun `MOST_TRIES` times gives up and ends: what it does never
        fits between two absences.
        """
        process = self.world.env.active_process
        assert process is not None  # verbs are run by processes
        if process in self._open_verbs:  # a verb within a verb
            yield from verb()
            return
        for _ in range(MOST_TRIES):
            yield from self._until_on()
            self._open_verbs += (process,)
            try:
                yield from verb()
                return
            except simpy.Interrupt as stop:
                if stop.cause not in AWAY or (self.task is not None and process is self._serving):
                    raise
            finally:
                self._open_verbs = tuple(one for one in self._open_verbs if one is not process)
        raise simpy.Interrupt("gave-up")

    def note_memory(self, peak_bytes: int) -> None:
        """Note that the work's own memory, beside the backbone's weights, reached so many bytes."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.held_bytes(peak_bytes))

    def held_bytes(self, peak_bytes: int) -> int:
        """Memory held by the backbone's weights and work whose own peak is so many bytes."""
        return self.world.costing.weight_bytes(self.member) + peak_bytes

    def timed(
        self,
        kind: str,
        seconds: float,
        watts: float,
        flop: float = 0.0,
        outcome: str = "ok",
        done: Callable[[float], float] | None = None,
    ) -> Steps[None]:
        """Let so many seconds of one kind pass from now on and record them; `done` gives the share
        of the FLOP in a part of them.
        """
        event = self.world.env.timeout(seconds)
        return recorded(
            self, kind, event, watts, seconds=seconds, flop=flop, outcome=outcome, done=done
        )

    def _wait(self, time_s: float) -> Steps[None]:
        left_s = max(0.0, time_s - self.world.env.now)
        return self.timed("wait", left_s, self.power.idle_w)

    def _computing(self, work: Work[object], seconds: float) -> Steps[None]:
        if self.conditions:
            return self.conditions.compute(work, seconds)
        return self.timed("compute", seconds, self.power.compute_w, work.cost.flop)

    def _moving(
        self,
        kind: str,
        way: str,
        nbytes: int,
        flows: Sequence[int] = (),
        landed: Callable[[], None] | None = None,
    ) -> Steps[None]:
        network = self.world.network
        by_rate = self.conditions is not None and self.conditions.radio_by_rate
        watts, j_per_byte = radio(self.power, way, by_rate)
        send = network.upload if kind == "upload" else network.download
        return recorded(
            self,
            kind,
            send(self.id, nbytes),
            watts,
            nbytes=nbytes,
            flows=flows,
            abort=network.abort,
            j_per_byte=j_per_byte,
            progress=network.progress if j_per_byte else None,
            landed=landed,
        )
