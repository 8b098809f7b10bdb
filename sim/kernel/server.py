"""The server: an inbox, one accelerator with a queue, and rounds. Its verbs are generators, as
those of the devices are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from typing import TYPE_CHECKING

import simpy

from devices.compute import ComputeModel
from devices.hardware import DeviceProfile
from sim.kernel.device import COUNTED, Device, Payload
from sim.kernel.ledger import Contents
from sim.kernel.roster import Roster
from sim.kernel.spans import EnergyMeter, recorded
from sim.kernel.work import ClientTask, Result, Steps, Work

if TYPE_CHECKING:
    from sim.kernel.learner import Learner
    from sim.kernel.world import World

ServerRound = Callable[[list[Device], int], Generator[simpy.Event, None, list[Payload]]]

MOST_PERMUTED = 1_000  # free devices
MOST_SLEEPLESS = 10_000  # waits in a row that find something in the inbox and take nothing


class Server:
    """The server: an inbox of payloads and one accelerator with a first-come-first-served queue."""

    id = "server"

    def __init__(self, world: World, profile: DeviceProfile, model: ComputeModel) -> None:
        self.world, self.profile, self.power = world, profile, model.engine.power
        self.meter = EnergyMeter(
            world.env, 0.0
        )  # what a server draws while it has nothing to do is not the study's
        self._model = model
        self._turn: simpy.Event | None = None  # who has the accelerator,
        self._queue: deque[simpy.Event] = deque()  # and who waits for it
        self._inbox: deque[Payload] = deque()
        self._news = world.env.event()
        self._is_short = False
        self._dropped: set[Device] = set()
        self._changed: set[Device] = set()  # since it was last looked at who is still at a task
        self.roster: Roster[Device] = Roster(world)
        self._payloads = 0
        self._sleepless = 0

    def next_payload(self) -> int:
        """The number of one more payload of this run."""
        self._payloads += 1
        return self._payloads

    def receive(self, payload: Payload) -> None:
        """Put a payload into the inbox; called by a device when its last byte has landed."""
        self._inbox.append(payload)
        self.wake()

    def take(self) -> list[Payload]:
        """Everything that has landed since the last call, in order of landing."""
        taken = list(self._inbox)
        self._inbox.clear()
        self._sleepless = 0
        return taken

    def wake(self) -> None:
        """Let a waiting server look again."""
        if not self._news.triggered:
            self._news.succeed()

    def wait(self) -> Steps[None]:
        """Sleep until something lands or a device ends; not at all while the inbox holds something.

        Raises RuntimeError for a loop that would wait so for ever, taking nothing.
        """
        if not self._inbox:
            self._news = self.world.env.event()
            yield self._news
            return
        self._sleepless += 1
        if self._sleepless > MOST_SLEEPLESS:
            raise RuntimeError("waits in a loop and takes nothing: call `server.take()`")

    def note(self, device: Device) -> None:
        """Called when a device serves, is off or on again, or has ended."""
        self._changed.add(device)
        self.roster.note(device)

    def note_dropped(self, device: Device, why: str) -> None:
        """Called by a device that has dropped its task."""
        self._dropped.add(device)
        device.note_outcome(why)
        self.wake()

    def take_dropped(self) -> set[Device]:
        """The devices that have dropped a task since the last call."""
        dropped, self._dropped = self._dropped, set()
        return dropped

    def note_return(self, device: Device) -> None:
        """Called by a device that is on again: a server that is short of devices looks again."""
        if self._is_short and device.is_serving:
            self.wake()

    def select(self, count: int, version: int) -> Steps[list[Device]]:
        """A random sample of so many devices that have joined and are on.

        Waits until that many have joined (or all that ever will); for devices that are off it waits
        only while none is on.
        """
        free = self.roster
        while len(free) < max(min(count, free.able), min(1, self.world.devices_at_work)):
            self._is_short = True
            self.take()  # answers to rounds that are over
            yield from self.wait()
        self._is_short = False
        return [free[i] for i in sorted(self._drawn(count, version))]

    def free(self, count: int, version: int) -> list[Device]:
        """A random sample of at most so many devices that have joined, are on and are not busy
        (`roster.occupy`).
        """
        free = self.roster
        self._is_short = len(free) < count
        return [free[i] for i in self._drawn(count, version)] if count > 0 else []

    def _drawn(self, count: int, version: int) -> list[int]:
        """The ranks of at most so many free devices, at random, in random order.

        The first of a permutation, as ever, where it takes no longer than a stream's making; a few
        of very many are drawn by themselves, or each answer would cost as much as the fleet is
        large.
        """
        rng, free = self.world.streams.rng("server/selection", version), len(self.roster)
        few_of_many = free > MOST_PERMUTED and count <= free // 50
        drawn = rng.choice(free, count, replace=False) if few_of_many else rng.permutation(free)
        return list(map(int, drawn[:count]))

    def rounds(
        self,
        count: int,
        wanted: int,
        learner: Learner,
        server_round: ServerRound,
    ) -> Steps[None]:
        """Ask so many devices in every round and run `server_round` with them (it returns the
        answers that counted), until there are no more rounds, the target is reached or no device
        is at work; then let the devices go and end the training.

        A round without such an answer took its time, and is no update.
        """
        for number in range(count):
            asked = yield from self.select(wanted, number)
            if not asked:  # nobody is left
                break
            counted = len(
                (yield from server_round(asked, number))
            )  # the answers themselves are needed no more
            self.world.tally.round(counted)
            if counted or learner.diverged:
                self.world.after_update(learner, None, counted)
            if self.world.target_reached or not self.world.devices_at_work:
                break
        yield from self.dismiss()
        self.world.end_training(learner)

    def assign(self, device: Device, task: ClientTask[object]) -> None:
        """Give a device a task; until its answer counts it is taken to be late."""
        device.note_outcome("late")
        device.assign(task)

    def ask(
        self,
        devices: Sequence[Device],
        version: int,
        model: object,
        wanted: int | None = None,
        deadline_s: float | None = None,
    ) -> Steps[list[Payload]]:
        """Give these devices a task and collect their answers: of all of them, or of so many as are
        wanted.
        """
        task: ClientTask[object] = ClientTask(version, model, self.world.env.event())
        for device in devices:
            self.assign(device, task)
        return (
            yield from self.collect(
                task, devices, len(devices) if wanted is None else wanted, deadline_s
            )
        )

    def dismiss(self) -> Steps[None]:
        """Tell every device that there will be no more tasks."""
        for device in self.world.devices:
            device.assign(None)
        yield self.world.env.timeout(0)  # let them go in good order

    def collect(
        self,
        task: ClientTask[object],
        devices: Sequence[Device],
        wanted: int,
        deadline_s: float | None = None,
    ) -> Steps[list[Payload]]:
        """Wait until so many of the devices have answered a task, or the deadline; close it and
        return what came.

        Devices that are still at it are told that they are late. Fewer answers come when devices
        go. The waiting is a span of the server's: a synchronous server waits for its slowest
        device.
        """
        start = self.world.env.now
        got: list[Payload] = []
        deadline = None if deadline_s is None else self.world.env.timeout(deadline_s)
        open_, answered = dict.fromkeys(devices), set[Device]()
        self._changed.update(devices)
        while True:
            came = [payload for payload in self.take() if payload.version == task.version]
            got += came
            answered.update(payload.sender for payload in came)
            for device in self._changed.union(payload.sender for payload in came):
                if device in answered or device.has_ended or not device.has(task):
                    open_.pop(device, None)
            self._changed.clear()
            if len(got) >= wanted or not open_ or (deadline and deadline.processed):
                break
            self._news = self.world.env.event()
            yield self._news if deadline is None else self._news | deadline
        self.world.recorder.span(
            "server", "wait", start, self.world.env.now, flows=[p.number for p in got]
        )
        for device in devices:
            if device not in answered:
                gone = device.outcome if device.has_ended else "offline"
                self.world.tally.miss("late" if device in open_ else gone)
        self.world.interrupt(open_, "late")
        if task.closed is not None:
            task.closed.succeed()
        return got

    def aggregate(
        self,
        answers: Sequence[Payload],
        work: Work[Collection[int]],
        flows: Sequence[int] | None = None,
    ) -> Steps[list[Payload]]:
        """Make these answers' update (`work` gives the places of those it left out); returns those
        that counted.

        Nothing runs on no answers. `flows` are the payloads' numbers, by default in the order of
        the answers.
        """
        if not answers:
            return []
        left_out = yield from self.compute(work, flows or [p.number for p in answers], "aggregate")
        return self.counted(answers, left_out or ())

    def counted(self, answers: Sequence[Payload], left_out: Collection[int]) -> list[Payload]:
        """The answers that go into an update; the others, by their places, are not finite, and that
        is noted.
        """
        for place, payload in enumerate(answers):
            if place in left_out:
                self.world.note_diverged(payload.sender, "weights")
                self.world.tally.miss("diverged")
            else:
                payload.sender.note_outcome(COUNTED)
        return [payload for place, payload in enumerate(answers) if place not in left_out]

    def compute(
        self, work: Work[Result], flows: Sequence[int] = (), kind: str = "train"
    ) -> Steps[Result | None]:
        """Queue for the accelerator, then run the work for real while its modelled seconds pass;
        returns its result.
        """
        turn = self.world.env.event()
        self._queue.append(turn)
        self._let_in()
        try:
            yield turn
            seconds = self._model.seconds(work.cost.flop, work.cost.bytes_moved, work.passes)
            result = work.run() if work.run else None
            watts, done = self.power.compute_w, self.world.env.timeout(seconds)
            yield from recorded(
                self, kind, done, watts, seconds=seconds, flop=work.cost.flop, flows=flows
            )
        finally:
            self._give_back(turn)
        return self.world.host.joined(result)

    def _let_in(self, _: simpy.Event | None = None) -> None:
        """The first in the queue has the accelerator, if nobody else has (a `simpy.Resource` would
        do the same, in three times the time).
        """
        if self._turn is None and self._queue:
            self._turn = self._queue.popleft()
            self._turn.succeed()

    def _give_back(self, turn: simpy.Event) -> None:
        """Called by whoever has the accelerator, or has waited for it: the next has his turn once
        all that happens at this moment has happened.
        """
        if turn is not self._turn:
            self._queue.remove(turn)
            return
        self._turn = None
        if self._queue:
            free = self.world.env.event()
            free.callbacks.append(self._let_in)
            free.succeed()

    def deliver(
        self, devices: Sequence[Device], contents_for: Callable[[Device], Contents | int]
    ) -> Steps[None]:
        """Send every device what is for it, all at once through the shared links; ends when the
        last has it.
        """
        downloads = [
            self.world.start(device, device.download(contents_for(device))) for device in devices
        ]
        yield self.world.env.all_of(downloads)
