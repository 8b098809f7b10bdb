"""Run a scenario into a directory: prepare, simulate, write everything down, whatever happens on
the way.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from learning.data.texts import TextDataset
from learning.host_device import CPU, HostDevice
from sim.kernel.journal import CHECKPOINT, CannotResume, Journal
from sim.kernel.writing import (
    CannotWrite,
    remove,
    replacing,
    share_as_folder,
    write_json,
    write_table,
)
from sim.results.generations import GENERATIONS, generations
from sim.results.host_memory import forget_peak_rss
from sim.results.model_card import write_model_card
from sim.results.run import Run, open_run
from sim.results.run_directory import (
    RunDirectoryError,
    computed_by,
    empty,
    folder_to_resume,
    make_room,
    new_folder,
    read_manifest,
    write_manifest,
)
from sim.results.summary import device_table, summary
from sim.scenario.file import digest, resolved
from sim.scenario.named_files import digests
from sim.scenario.schema import Scenario
from sim.simulation import Interrupted, RunCallbacks, Simulation, building
from sim.world.preflight import preflight

LARGE = 1_000  # devices
BUT_FIGURES = "holds the whole run, but for figures: `mobifleet plot` draws them"
STOPPING = "stopping in good order; once more stops at once"


def run_scenario(
    scenario: Scenario,
    out: Path | None = None,
    folder: Path = Path(),
    dry: bool = False,
    resume: bool = False,
    workers: int | str = 1,
    callbacks: RunCallbacks | None = None,
    figures: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
    texts: TextDataset | None = None,
    host: HostDevice = CPU,
) -> Run:
    """Run a scenario and return its run directory, read back.

    `texts` takes the place of the scenario's data set (e.g. `learning.data.texts.load` of a
    `datasets.Dataset`); `host` is the torch device of the learning.

    `out` defaults to a fresh `runs/<name>`. Ctrl-C and SIGTERM end the run in good order: what
    happened until then is written, marked `interrupted`, and `resume=True` goes on from there; then
    `Interrupted`, a KeyboardInterrupt, ends whatever loop the run was in (a second Ctrl-C stops at
    once). Raises RunDirectoryError, CannotResume, CannotWrite, and what building the world raises:
    all ValueError or AssetError with a message for the user.
    """
    began, seconds = time.perf_counter(), dict[str, float]()
    forget_peak_rss()
    callbacks = callbacks or RunCallbacks()
    inputs = digests(scenario, folder, texts)
    with (
        folder_to_resume(scenario, out, inputs)
        if resume
        else new_folder(scenario.name, out) as place
    ):
        as_it_was = read_manifest(place) if resume else {}
        if as_it_was.get("dry", dry) != dry:
            raise RunDirectoryError(
                f"{place} was begun {'without' if dry else 'with'} --dry: resume it the same way"
            )
        precision = (as_it_was.get("host") or host.precision).rpartition(", ")[2]
        if precision != host.precision:
            raise RunDirectoryError(
                f"{place} was begun with --precision {precision}: resume it the same way"
            )
        sim, journal = None, Journal(None)
        try:
            with building(scenario):
                write_manifest(place, scenario, "running", dry=dry, inputs=inputs)
            with _ctrl_c(on_stage) as callbacks.should_stop:
                on_stage("preparing")
                if not dry:
                    journal = Journal(place, resume)
                with building(scenario) as warned:
                    if not dry:
                        preflight(scenario, folder)
                    with _spending(seconds, "building"):
                        built = Simulation(
                            scenario, folder, dry, workers, journal, callbacks, texts, host
                        )
                    with _spending(seconds, "store", built):
                        built.prepare()
                    sim = built
                    sim.recorder.keep_in(place)
                sim.remark(*warned, *journal.remarks, *_arithmetic_remarks(place, sim))
                known = (
                    f"; {journal.position} pieces of learning are in the journal"
                    if journal.position
                    else ""
                )
                on_stage(f"simulating{known}")
                with _spending(seconds, "events", sim):
                    sim.run()
                if sim.host.is_replaying and sim.ended.reason != "interrupted":
                    raise CannotResume.other_course()
                if sim.host.is_replaying:
                    raise Interrupted("before it was where it had been; `--resume` goes on")
                on_stage("writing")
                seconds["torch"] = sim.host.torch_s
                _write(place, sim, began, seconds)
        except BaseException as error:
            if sim is not None:
                sim.host.close(at_once=True)
                sim.recorder.discard()
            if isinstance(error, KeyboardInterrupt) and _is_finished(place):
                raise Interrupted(f"{place} {BUT_FIGURES}") from None
            _mark(place, scenario, dry, error, as_it_was, has_begun=sim is not None)
            if type(error) is KeyboardInterrupt:  # asked for twice
                is_kept = (place / CHECKPOINT).is_file()
                how = "goes on from the last checkpoint" if is_kept else "begins anew"
                raise Interrupted(f"at once, in {place}; `--resume` {how}") from None
            raise
        is_large = len(built.devices) >= LARGE  # its world weighs more than what is drawn of it
        sim = None
        del built
        if is_large:
            gc.collect()
        run = open_run(place)
        try:
            with _spending(seconds, "figures"):
                _draw(run, figures, on_stage)
        except KeyboardInterrupt:
            if _is_finished(place):
                raise Interrupted(f"{place} {BUT_FIGURES}", run) from None
        run.summary["host"] |= {"seconds": seconds, "wall_s": time.perf_counter() - began}
        write_json(place / "summary.json", run.summary)
    if run.manifest["status"] == "interrupted":
        how = "begins a dry run anew" if dry else "goes on from there"
        raise Interrupted(f"{place} holds the run so far; `--resume` {how}", run)
    return run


def _is_finished(place: Path) -> bool:
    return read_manifest(place).get("status") == "finished"


def _arithmetic_remarks(place: Path, sim: Simulation) -> list[str]:
    """Note in the manifest by what arithmetic the learning is computed; what to say of a run that
    was begun by another.
    """
    if sim.dry:
        return []
    from learning.arithmetic import arithmetic
    from learning.host_device import host_device

    begun, here = computed_by(read_manifest(place)), arithmetic()
    write_manifest(
        place,
        sim.scenario,
        "running",
        dry=False,
        host=host_device().describe(),
        arithmetic=[*begun, *({here} - {*begun})],
    )
    others = [kind for kind in begun if kind != here]
    return [
        f"begun on {kind}, resumed on {here}: the last bits are not those of either alone"
        for kind in others
    ]


def _mark(
    place: Path,
    scenario: Scenario,
    dry: bool,
    error: BaseException,
    as_it_was: Mapping[str, Any],
    has_begun: bool,
) -> None:
    """What a run leaves that did not get through: a manifest that says so, or that of the run that
    could not be resumed, as it was; of one that had not begun, nothing.
    """
    with suppress(
        CannotWrite, OSError
    ):  # the disk may be full; the first error is the one to be told
        if isinstance(error, KeyboardInterrupt):
            write_manifest(place, scenario, "interrupted", dry=dry)
        elif as_it_was and (isinstance(error, CannotResume) or not has_begun):
            write_json(place / "manifest.json", as_it_was)
        elif has_begun:
            make_room(place)
            write_manifest(
                place, scenario, "failed", dry=dry, error=f"{type(error).__name__}: {error}"
            )
        else:
            empty(place)


@contextmanager
def _spending(
    seconds: dict[str, float], what: str, sim: Simulation | None = None
) -> Iterator[None]:
    """Count the seconds that pass meanwhile under this name, but for what learning takes of them,
    or what is waited for it.
    """
    clock = time.thread_time if sim else time.perf_counter
    began, learning_s = clock(), sim.host.own_learning_s if sim else 0.0
    yield
    if sim:
        learning_s = sim.host.own_learning_s - learning_s
    seconds[what] = max(0.0, clock() - began - learning_s)


def _write(place: Path, sim: Simulation, began: float, seconds: dict[str, float]) -> None:
    recorded = time.perf_counter()
    status = "interrupted" if sim.ended.reason == "interrupted" else "finished"
    learner = sim.method.learner
    mark = sim.recorder.digest(digest(resolved(sim.scenario)), learner.digest())
    devices = device_table(sim)
    sim.recorder.write(place)
    write_table(devices, place / "devices.parquet")
    write_table(sim.ledger.table(sim.recorder.bytes_to), place / "ledger.parquet")
    found = summary(sim, mark, devices, time.perf_counter() - began)
    if not sim.dry:
        with replacing(place / "model") as temporary:
            learner.save(temporary)
            write_model_card(temporary, sim, found, read_manifest(place)["versions"])
            share_as_folder(temporary)
    if status == "finished" and (said := generations(sim)):
        found["generations"] = said["scores"]
        write_json(place / GENERATIONS, said)
    seconds["recording"] = time.perf_counter() - recorded
    found["host"]["seconds"] = seconds
    write_json(place / "summary.json", found)
    write_manifest(place, sim.scenario, status, dry=sim.dry, digest=mark)
    if status == "finished":
        sim.host.journal.forget()


def _draw(run: Run, figures: bool, on_stage: Callable[[str], None]) -> None:
    from sim.views.timeline import write_perfetto

    on_stage("exporting the timeline")
    with replacing(run.path / "timeline.pftrace") as temporary:
        write_perfetto(run, temporary)
    if not figures:
        remove(run.path / "figures")  # of what there was when the run was interrupted
    else:
        from sim.views.plots import draw

        on_stage("drawing")
        with replacing(run.path / "figures") as temporary:
            draw(run, temporary)


@contextmanager
def _ctrl_c(on_stage: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C (and a polite kill) into a question that is asked between events; a second one
    stops at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = is_told = False

    def ask(number, frame):
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def is_asked() -> bool:
        nonlocal is_told
        if asked and not is_told:  # said here, for a signal may come in the middle of a line
            is_told = True
            on_stage(STOPPING)
        return asked

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
