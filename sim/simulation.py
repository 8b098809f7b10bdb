"""Read this first: how a scenario becomes a world and how that runs.

`Simulation` builds the fleet, the links and the server from profiles and named random streams,
hands each device and the server to the method's two generators, and lets SimPy's clock run until
the training ends, the target is reached or the horizon comes. It knows nothing of what a method
does; a method knows nothing of how time is kept.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import simpy

import devices.profile
from devices import fleet
from devices.compute import ComputeModel
from learning.backbones import assets
from learning.data.texts import TextDataset
from learning.host_device import CPU, HostDevice, compute_on
from learning.metrics import merit
from network.route import LONGEST_S
from sim.kernel.at_work import ActiveProcesses
from sim.kernel.device import COUNTED, Device
from sim.kernel.host import Host, seldom_collecting, single_threaded_torch
from sim.kernel.journal import Journal
from sim.kernel.ledger import Ledger
from sim.kernel.recorder import Recorder
from sim.kernel.server import Server
from sim.kernel.streams import Normals, Streams
from sim.kernel.tally import Tally
from sim.kernel.work import Process, Steps
from sim.kernel.world import Ended
from sim.scenario.own_code import MethodError, generator_of, in_own_code, refuse_no_event
from sim.scenario.registry import method_of
from sim.scenario.schema import Scenario
from sim.world import arrivals, availability, links, replies
from sim.world.conditions import Conditions
from sim.world.costing import FleetCosting, check_memory, costing_for
from sim.world.end_remarks import end_remarks
from sim.world.task import DividedTask, load_task
from sim.world.truncation import lengths_by_backbone

if TYPE_CHECKING:
    from sim.kernel.learned import Learned
    from sim.kernel.learner import Learner, ScoreKey, Scores
    from sim.results.run import Run

# a look costs a microsecond; an update may cost the host a second, and Ctrl-C should not wait
STEPS_BETWEEN_LOOKS = 20
DEVICES_BETWEEN_LOOKS = 5_000  # while they are built


@dataclass
class RunCallbacks:
    """What someone who watches a run may hook into; called between events, never asked for
    anything.
    """

    on_prepare: Callable[[str, int, int], None] = lambda backbone, done, total: None
    on_progress: Callable[[Simulation], None] = lambda sim: None
    should_stop: Callable[[], bool] = lambda: False


class Interrupted(KeyboardInterrupt):
    """The user asked to stop. `run` is what was written until then; None while the world was still
    being prepared.
    """

    def __init__(self, message: str, run: Run | None = None) -> None:
        super().__init__(message)
        self.run = run


class CannotBuild(ValueError):
    """The scenario asks for a world that cannot be; the message says what stands against it."""


@contextmanager
def building(scenario: Scenario) -> Iterator[list[str]]:
    """What a leaf refuses while the world is built is the scenario's fault: CannotBuild with its
    words.

    Gives the warnings of leaves, e.g. of a cache that takes nothing; they are to be remarks of the
    Simulation.
    """
    warned = _WarningCollector(logging.WARNING)
    logging.getLogger("learning").addHandler(warned)
    try:
        yield warned.texts
    except ValueError as error:
        if type(error) is not ValueError:  # the others say already whose fault it is
            raise
        raise CannotBuild(f"{scenario.name} cannot be built: {error}") from error
    finally:
        logging.getLogger("learning").removeHandler(warned)


class _WarningCollector(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Simulation:
    """One run of one scenario.

    `folder` is where the scenario's relative paths start; `journal` keeps learning results for a
    resumed run; `dry` leaves the learning out: timing, bytes, FLOP and joules alone; `texts` takes
    the place of the scenario's data set; `host` is where it is learned.
    """

    device_type: type[Device] = Device
    server_type: type[Server] = Server

    def __init__(
        self,
        scenario: Scenario,
        folder: Path = Path(),
        dry: bool = False,
        workers: int | str = 1,
        journal: Journal | None = None,
        callbacks: RunCallbacks | None = None,
        texts: TextDataset | None = None,
        host: HostDevice = CPU,
    ) -> None:
        begin = time.perf_counter()
        if not dry:
            compute_on(host)
            single_threaded_torch()
        self.scenario = scenario
        self.dry = dry
        self.callbacks = callbacks or RunCallbacks()
        self.seed = scenario.seed
        self.store_folder = assets.cache_dir() / "activations"
        self.env = self._clock()
        self.recorder, self.ledger = Recorder(), Ledger()
        self.host = Host(workers, journal)
        self.streams, self.ended = Streams(scenario.seed), Ended()
        self.target_reached, self.updates = False, 0
        self.trained_at_s: float | None = None
        self.score: float | None = None
        self.scores: Scores = {}
        self.personal: Scores = {}
        self._looked_at_s, self.looked_after = 0.0, 0
        self._looks_every = getattr(scenario.method, "evaluate_every", 0) or scenario.evaluate_every
        self.tally = Tally()
        self.remarks: list[str] = []
        self.task: DividedTask = load_task(scenario, self.streams, folder, dry, texts)
        self.remark(
            *scenario.renamed(),
            *self.task.remarks,
            *(f"{'.'.join(where)} {what}" for where, what in scenario.ignored()),
        )
        members = fleet.draw(_groups(scenario), lambda id_: self.streams.rng("fleet", id_))
        self.costing: FleetCosting = costing_for(scenario, members, folder)
        read = (self.task, members, self.costing.learned, dry)
        self._lengths, self._said, cuts = lengths_by_backbone(*read)
        self.remark(*self.costing.remarks, *cuts)
        self.traces = links.read_traces(scenario, folder)
        self.remark(*links.doubts(scenario, self.traces))
        with seldom_collecting(len(members) if dry else 0):
            self.network = links.build(
                self.env, scenario, members, self.streams, self.traces, folder
            )
            self.devices: Sequence[Device] = self._devices(members, folder)
        self.devices_at_work = len(self.devices)  # those that have not ended
        self._processes = ActiveProcesses()
        self.server = self._server(folder)
        availability.assign(self, scenario.availability, folder)
        mix = Counter(device.backbone for device in self.devices)
        self._shares = {name: mix[name] / len(self.devices) for name in sorted(mix)}
        with in_own_code():
            self.method = method_of(scenario.method)(scenario.method, self)
            if not hasattr(self.method, "learner"):
                raise MethodError(
                    f"{type(self.method).__name__} sets no `learner` when it is built"
                )
            self.ledger.declare(getattr(self.method, "keeps_on_device", ()))
            check_memory(self.method, self.devices, scenario)
        self.build_s, self._is_prepared = time.perf_counter() - begin, False

    @in_own_code()
    def prepare(self) -> None:
        """Compute what learning needs before the clock starts, e.g. activations of frozen
        backbones; `run` does it where it has not been done.
        """
        begin = time.perf_counter()
        self._heed()
        self.method.learner.prepare()
        self.build_s += time.perf_counter() - begin
        self._is_prepared = True

    def _heed(self, when: str = "before the clock began") -> None:
        if self.callbacks.should_stop():
            raise Interrupted(f"{when}; `--resume` goes on")

    # --- the run

    @in_own_code()
    def run(self) -> Ended:
        """Let the clock run to the end and return how it ended; a run may be run only once."""
        if not self._is_prepared:
            self.prepare()
        self.after_update(self.method.learner, None, 0, first=True)
        with seldom_collecting(len(self.devices) if self.dry else 0):  # learning may leave garbage
            self._start_everybody()
            self._let_the_clock_run()
        if self.ended.reason == "running":
            self.ended.reason = "target" if self.target_reached else "exhausted"
        self.ended.at_s = self.env.now
        for device in self.devices:
            if device.outcome == "ok" and device.task_outcome not in (None, COUNTED):
                # it was there to the end, for nothing
                device.outcome = device.task_outcome
                device.finished_at_s = None
        for sentence in end_remarks(self):
            self.remark(sentence)
        self.personal = {} if self.ended.reason == "interrupted" else self.method.learner.personal()
        self._record_links()
        self.host.close()
        return self.ended

    def _start_everybody(self) -> None:
        for device in self.devices:
            if device.outcome == "never-ready":
                self._end(device)
                continue
            process = (
                self._without_memory(device)
                if device.outcome == "oom"
                else generator_of("device", self.method.device(device))
            )
            self._run(device, self._device_process(device, process))
        self.start(None, replies.after(self, self.method, self.scenario.task.device_replies))
        availability.start(self, self.scenario.dropout)
        self._end_after(self.scenario.stop.horizon)

    def _let_the_clock_run(self) -> None:
        while self._processes.alive:
            self._step_some()
            self.callbacks.on_progress(self)
            if self.ended.reason == "running" and self.callbacks.should_stop():
                # while everybody still holds what it has learned
                self.host.checkpoint(is_last=True)
                self.stop("interrupted")

    def _end_after(self, horizon_s: float | None) -> None:
        if horizon_s is not None:
            self.env.timeout(horizon_s).callbacks.append(lambda _: self.stop("horizon"))
        elif availability.may_stall(self):
            event = self.env.timeout(availability.MOST_S)
            event.callbacks.append(lambda _: self.stop("stalled"))

    def _step_some(self) -> None:
        alive, step, peek = self._processes.alive, self.env.step, self.env.peek
        try:
            for _ in range(STEPS_BETWEEN_LOOKS):
                if not alive:
                    return
                if peek() > LONGEST_S and self.ended.reason == "running":
                    self.stop("stalled")  # who waits now waits for bytes that no link will carry
                step()
        except RuntimeError as error:
            refuse_no_event(self.env.active_process, error)
            raise

    def start(self, actor: Device | None, generator: Process) -> simpy.Process:
        """Let an actor (None: the server) run a process; being stopped ends it quietly."""
        return self._run(actor, self._until_stopped(generator))

    def _run(self, actor: Device | None, generator: Process) -> simpy.Process:
        process = self.env.process(generator)
        self._processes.add(process, actor)
        return process

    @staticmethod
    def _until_stopped(generator: Process) -> Steps[None]:
        try:
            yield from generator
        except simpy.Interrupt:
            pass  # what it was doing has been recorded with the reason

    def _device_process(self, device: Device, generator: Process) -> Steps[None]:
        try:
            yield from generator
            if device.outcome == "ok":
                device.finished_at_s = self.env.now
        except simpy.Interrupt as stop:
            device.outcome = str(stop.cause)
        finally:
            device.note_absence()
            self._end(device)
            self.server.wake()

    def _end(self, device: Device) -> None:
        device.has_ended = True
        self.devices_at_work -= 1
        self.server.note(device)

    def _without_memory(self, device: Device) -> Steps[None]:
        yield from device.arrive()
        self.recorder.span(device.id, "load", self.env.now, self.env.now, outcome="oom")

    def stop(self, reason: str) -> None:
        """Tell everybody to stop, for the first reason that is given."""
        if self.ended.reason == "running":
            self.ended.reason = reason
            self._interrupt(self._processes.all(), reason)

    def interrupt(self, devices: Iterable[Device], reason: str) -> None:
        """Break into what these devices are doing; their spans end now, with the reason as
        outcome.
        """
        self._interrupt(self._processes.of(devices), reason)

    def _interrupt(self, processes: list[simpy.Process], reason: str) -> None:
        for process in processes:
            if process.is_alive and process is not self.env.active_process:
                process.interrupt(reason)

    def _record_links(self) -> None:
        """When each shared link had transfers on it, and the bytes that passed meanwhile, as the
        link itself counted them.
        """
        for name, link in self.network.shared.items():
            self.recorder.record_link(f"link:{name}", link.busy_times())
        if self.scenario.links.tcp:
            self.recorder.metric(self.env.now, "resent_bytes", self.network.resent_bytes)

    # --- what a method tells about its progress

    def remark(self, *texts: str) -> None:
        """Note, once, sentences that whoever reads the result has to know: `check`, the summary and
        the run show them.
        """
        self.remarks += [text for text in dict.fromkeys(texts) if text not in self.remarks]

    def after_update(
        self,
        learner: Learner,
        loss: Learned[float] | None,
        records: int,
        first: bool = False,
        last: bool = False,
    ) -> None:
        """Count a server update; every so often, look at the held-out texts (which takes no virtual
        time).

        A server's model that is no longer finite has no accuracy, and ends the run.
        """
        if not (first or last):
            self.updates += 1
        if learner.diverged:
            self._end_diverged(learner.diverged)
        if not (first or last or self._is_due_for_a_look()):
            return
        now, self.looked_after = self.env.now, self.updates
        self._looked_at_s = now
        scores: Scores = {}
        if self.updates or learner.predicts_untrained:  # what nobody has trained has no accuracy
            scores = learner.evaluate()
        self._note_by_backbone(self.task.metric, scores)
        self.recorder.metric(now, "updates", self.updates)
        self.recorder.metric(now, "uplink_bytes", self.recorder.uplink_bytes)
        self.recorder.metric(now, "cache_records", records)
        if loss is not None and math.isfinite(known := self.host.value_of(loss)):
            self.recorder.metric(now, "loss", known)
        self._look_at_validation(learner)
        self.scores = scores
        if scores:
            self.score = self._note_of_fleet(self.task.metric, scores)
            if self.score is not None:
                self._look_at_target(self.score)
            elif learner.has_one_model and not first:
                self._end_diverged("predictions")

    def _note_by_backbone(self, name: str, scores: Scores, key: ScoreKey = "value") -> None:
        for backbone, score in scores.items():
            if score is not None:
                self.recorder.metric(self.env.now, name, score[key], backbone)

    def _note_of_fleet(self, name: str, scores: Scores, key: ScoreKey = "value") -> float | None:
        """Note the mean by the fleet's mix and give it; None where some backbone has no score."""
        if (whole := self.task.mean(scores, self._shares, key)) is not None:
            self.recorder.metric(self.env.now, name, whole)
        return whole

    def _is_due_for_a_look(self) -> bool:
        """By the growth of virtual time since the last look, or else by the number of updates."""
        if (growth := self.scenario.evaluate_growth) is not None:
            return self.env.now >= growth * self._looked_at_s
        return self.updates % self._looks_every == 0

    def _look_at_validation(self, learner: Learner) -> None:
        """Note metric and loss on the texts to choose by, if there are any: also of what nobody has
        trained, lest a run that never gets better than that is taken for one that converged.
        """
        if not len(self.task.validation):
            return
        found = learner.evaluate("validation")
        names: dict[str, ScoreKey] = {self.task.metric: "value", "loss": "loss"}
        for name, key in names.items():
            self._note_by_backbone(f"validation_{name}", found, key)
            self._note_of_fleet(f"validation_{name}", found, key)

    def note_diverged(self, device: Device | None, what: str) -> None:
        """Note that what came (of a device; None: of the server's own) is not finite and goes into
        no update.
        """
        if device is not None:
            device.note_outcome("diverged")
        self.tally.diverge(
            "server" if device is None else device.id, what, self.updates + 1, self.env.now
        )
        self.tally.left_out += 1

    def _end_diverged(self, what: str) -> None:
        """End the run in whose server's model something is not finite; called from within the
        server's process.
        """
        self.tally.diverge("server", what, self.updates, self.env.now)
        self.score = None
        self.scores = dict.fromkeys(self._shares)
        self.ended.reason = "diverged"
        self.recorder.metric(self.env.now, "updates", self.updates)
        self.recorder.metric(self.env.now, "uplink_bytes", self.recorder.uplink_bytes)
        self._interrupt(self._processes.of_devices(), "ended")
        raise simpy.Interrupt("diverged")

    def _look_at_target(self, score: float) -> None:
        metric, target = self.task.metric, self.scenario.stop.target
        if target is None or self.target_reached or merit(metric, score) < merit(metric, target):
            return
        self.target_reached = True
        self.ended.target = {"reached_at_s": self.env.now}

    def end_training(self, learner: Learner) -> None:
        """No more updates: a last look, and whoever is still at work is told to stop."""
        self.trained_at_s = self.env.now
        self.after_update(learner, None, 0, last=True)
        at_work = self._processes.of_devices()
        self._interrupt(at_work, "target" if self.target_reached else "ended")

    def present_devices(self) -> list[Device]:
        """Devices that have joined, could take part and have not left for good."""
        able = (
            d for d in self.devices if d.outcome not in ("oom", "never-ready") and not d.is_gone
        )
        return [d for d in able if d.joined_at_s <= self.env.now]

    def lengths(self, device: Device, samples: np.ndarray) -> np.ndarray:
        """Tokens of the samples for the device's backbone, shape [n]."""
        return self._lengths[device.backbone][samples]

    def response_lengths(self, device: Device, samples: np.ndarray) -> np.ndarray:
        """Of these, the tokens that are to be said, where texts have responses, shape [n]."""
        return self._said[device.backbone][samples]

    def on_prepare(self, backbone: str, done: int, total: int) -> None:
        """Pass on how far the activations of a backbone are; stop if someone wants to."""
        self.callbacks.on_prepare(backbone, done, total)
        self._heed("while preparing (what was computed is stored)")

    # --- the world

    def _clock(self) -> simpy.Environment:
        return simpy.Environment()

    def _devices(self, members: list[fleet.Member], folder: Path) -> list[Device]:
        s = self.scenario
        counts = [len(part) for part in self.task.parts]
        ids = [member.id for member in members]
        joined_s = arrivals.joining_times(s.arrivals, len(members), self.streams, folder)
        ready = arrivals.data_times(s.fresh_data, counts, ids, joined_s, self.streams, folder)
        profiles = {
            name: devices.profile.load(name, folder)
            for name in sorted({member.device for member in members})
        }
        self.remark(*(text for profile in profiles.values() for text in profile.remarks))
        made = []
        for i, member in enumerate(members):
            if i % DEVICES_BETWEEN_LOOKS == 0:
                self._heed()
            profile, samples = profiles[member.device], self.task.parts[i]
            rng = Normals(self.streams, "jitter", member.id) if self.scenario.jitter else None
            model = ComputeModel(profile, member.engine, rng, self.scenario.jitter)
            ready_s = ready[i]
            if max(joined_s[i], ready_s.max(initial=0.0)) > LONGEST_S:
                raise CannotBuild(
                    f"{member.id} has its data only after {LONGEST_S:.0e} s: let it join, or data "
                    "come, sooner"
                )
            client = self.task.clients[i] if self.task.clients else None
            made.append(
                self.device_type(
                    self, member, i, profile, model, samples, float(joined_s[i]), ready_s, client
                )
            )
            if self.scenario.devices:
                made[-1].conditions = Conditions(made[-1], self.scenario.devices, self.streams)
        return made

    def _server(self, folder: Path) -> Server:
        settings = self.scenario.server
        profile = devices.profile.load(settings.device, folder)
        self.remark(*profile.remarks)
        if settings.step_overhead is not None:
            profile = profile.with_overhead(settings.engine, settings.step_overhead)
        rng = Normals(self.streams, "jitter", "server") if self.scenario.jitter else None
        model = ComputeModel(profile, settings.engine, rng, self.scenario.jitter)
        return self.server_type(self, profile, model)


def _groups(scenario: Scenario) -> list[fleet.Group]:
    return [
        fleet.Group(
            count=group.count,
            device=group.device,
            backbone=group.backbone,
            link=group.link,
            cell=group.cell,
            engine=group.engine,
            memory_bytes=None if group.memory is None else int(group.memory),
            name=group.name or f"group-{index}",
        )
        for index, group in enumerate(scenario.fleet)
    ]
