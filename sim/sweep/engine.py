"""Running what is planned and not there yet, in several processes, so that nothing is lost whatever
ends it.

A run is its folder: who calls again with the same plan takes up what was begun and leaves alone
what is finished. What is the same run is told by the digests of its scenario and of the files that
it names. Processes heed their parent: they end their runs in good order when it is stopped, and at
once when it is gone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Literal

from inputs.files import FileProblem, is_ours, read_text
from learning.host_device import CPU, HostDevice, take_turns
from sim.kernel.writing import replacing
from sim.privacy.measures import PrivacyError, is_attacked, targets_of, write_found
from sim.results.run import RunError, open_run
from sim.results.run_directory import (
    FAILED,
    empty,
    has_learned,
    held,
    is_strangers,
    read_manifest,
)
from sim.scenario.file import digest, resolved
from sim.scenario.named_files import changed_files, digests
from sim.sweep.cluster import in_cluster
from sim.sweep.planned_run import PlannedRun, SweepError

KILLED = "its process ended without a word (was it killed, did the machine run out of memory?)"

Processes = int | Literal["ray"]
"""How many of this machine; or the cores of a Ray cluster."""
NO_ATTACKS = "none"
OnDone = Callable[[PlannedRun, int, int], None]
"""Told of each run that has ended: which, how many of how many that is."""


def is_done(entry: PlannedRun, dry: bool, folder: Path, host: HostDevice = CPU) -> bool:
    """Whether there already is a finished run, whole, of exactly this scenario and what its files
    hold, computed on that host, dry or not as asked.

    `folder` is where the scenario's relative paths start.
    """
    finished = _manifest(entry, dry).get("status") == "finished"
    return finished and why_again(entry, dry, folder, host) is None


def is_whole(
    entry: PlannedRun, dry: bool, folder: Path, host: HostDevice = CPU, attacks: str = NO_ATTACKS
) -> bool:
    """Whether it is done, and the attacks have been tried on it."""
    if not is_done(entry, dry, folder, host):
        return False
    return attacks == NO_ATTACKS or is_attacked(open_run(entry.folder), attacks)


def why_again(entry: PlannedRun, dry: bool, folder: Path, host: HostDevice) -> str | None:
    """Why the run of this scenario in the folder is made again; None where it need not be, and
    without one.
    """
    if not (manifest := _manifest(entry, dry)):
        other = read_manifest(entry.folder)
        if _is_of(other, entry):
            return "dry before, and now to learn" if other.get("status") == "finished" else None
        is_some = other.get("status") in ("finished", "interrupted")
        return "of other settings before" if is_some else None
    if changed := changed_files(manifest.get("inputs") or {}, digests(entry.scenario, folder)):
        return f"{', '.join(changed)} held something else before"
    if (before := manifest.get("host")) and not host.is_that_of(before):
        return f"computed on {before} before"
    if manifest.get("status") == "finished":
        try:
            open_run(entry.folder)
        except RunError:
            return "finished, but a file is missing or damaged"
    return None


def _manifest(entry: PlannedRun, dry: bool) -> dict[str, Any]:
    """That of the run of exactly this scenario in the folder, {} without one."""
    manifest = read_manifest(entry.folder)
    return manifest if _is_of(manifest, entry) and manifest.get("dry", False) == dry else {}


def _is_of(manifest: dict[str, Any], entry: PlannedRun) -> bool:
    return manifest.get("scenario_digest") == digest(resolved(entry.scenario))


def failure(entry: PlannedRun) -> str | None:
    """Why the run failed when it was last tried, in one line; None if it did not."""
    try:
        return read_text(entry.folder / FAILED).strip()
    except FileProblem:
        return None


def run_all(
    entries: list[PlannedRun],
    folder: Path,
    dry: bool,
    processes: Processes,
    on_done: OnDone,
    host: HostDevice = CPU,
    keep_going: bool = False,
    attacks: str = NO_ATTACKS,
) -> None:
    """Run what is not done yet, in so many processes or on a Ray cluster; what was interrupted goes
    on where it stopped, on a cluster from its beginning. Of each, try attacks (`sim.privacy`).

    The first run that fails ends it with its error. With `keep_going` a failure is written into the
    run's folder (`failure` reads it) and the others go on. Ctrl-C and SIGTERM end all runs under
    way in good order, and then raise KeyboardInterrupt.
    """
    missing = [entry for entry in entries if not is_whole(entry, dry, folder, host, attacks)]
    ended = len(entries) - len(missing)

    def end(entry: PlannedRun) -> None:
        nonlocal ended
        ended += 1
        on_done(entry, ended, len(entries))

    require_replaceable(missing, dry)
    if not missing:
        return
    work = (folder, dry, host, keep_going, attacks)
    with _sigterm_is_ctrl_c():
        if processes == "ray":
            how = functools.partial(_run, dry=dry, host=host, keep_going=keep_going)
            run = functools.partial(how, attacks=attacks)
            in_cluster(missing, folder, run, end, functools.partial(_lost, keep_going=keep_going))
            return
        if processes <= 1 or len(missing) <= 1:
            for entry in missing:
                _run(entry, *work)
                end(entry)
            return
        left = _in_processes(missing, min(processes, len(missing)), work, end)
        for entry in left:  # alone, it is clear which one it is whose process dies
            if _in_processes([entry], 1, work, end):
                _lost(entry, keep_going)
                end(entry)


def require_replaceable(missing: Sequence[PlannedRun], dry: bool) -> None:
    """Raise SweepError where nothing of these is to be put, and nothing of what is there removed:
    what is no run's, and, of a dry run, what has learned.
    """
    for entry in missing:
        if is_strangers(entry.folder):
            raise SweepError(
                f"{entry.folder} holds what is no run, or one whose manifest.json is damaged: move "
                "it away, or name another --out"
            )
        if dry and has_learned(entry.folder):
            raise SweepError(
                f"{entry.folder} has learned, which a dry run is not to take the place of: name "
                "another --out"
            )


def _lost(entry: PlannedRun, keep_going: bool) -> None:
    """Its process died."""
    if not keep_going:
        raise SweepError(f"{entry.folder}: {KILLED}")
    _note_failure(entry, KILLED)


def _in_processes(
    entries: list[PlannedRun], count: int, work: tuple[Any, ...], end: Callable[[PlannedRun], None]
) -> list[PlannedRun]:
    """Run them in so many processes; those that are left where one of the processes died."""
    spawn = multiprocessing.get_context("spawn")  # torch does not survive a fork
    ear, mouth = spawn.Pipe(duplex=False)
    numbers = spawn.Value("i", 0)
    left = list(entries)
    with ear, mouth, ProcessPoolExecutor(count, spawn, _begin, (ear, numbers)) as pool:
        try:
            pending = {pool.submit(_in_turn, entry, *work): entry for entry in entries}
            for future in as_completed(pending):
                future.result()
                left.remove(pending[future])
                end(pending[future])
        except BrokenProcessPool:
            return left
        except BaseException:
            mouth.close()  # what the processes hear
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:  # who asks again does not want to wait
                for process in multiprocessing.active_children():
                    process.kill()
            raise
    return []


def _begin(ear: connection.Connection, numbers: Synchronized[int]) -> None:
    """A process of the pool: the first of `numbers` that no other has is its own."""
    with numbers.get_lock():
        take_turns(numbers.value)
        numbers.value += 1
    _heed_parent(ear)


# in a process of the pool
_stopped = threading.Event()  # nothing new is begun
_at_work = threading.Event()


def _heed_parent(ear: connection.Connection) -> None:
    """End the run under way in good order when the parent is stopped, and at once when it is gone:
    its folder is free for the next one.

    In a session of its own a process does not hear the terminal's Ctrl-C, which is the parent's.
    One that is told to stop while it is idle goes when the pool tells it to: it holds the lock of
    the pool's queue, which nobody would have again.
    """
    signal.signal(signal.SIGTERM, _told_to_stop)  # what a run has in its place while its clock runs
    if hasattr(os, "setsid"):
        os.setsid()

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "a process of the pool has one"
        if parent.sentinel not in connection.wait([parent.sentinel, ear]):
            _stopped.set()
            os.kill(os.getpid(), signal.SIGTERM)
            connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _told_to_stop(number: int, frame: Any) -> None:
    _stopped.set()
    if _at_work.is_set():
        raise KeyboardInterrupt


def _in_turn(*what: Any) -> None:
    """`_run` in a process of the pool, which begins nothing more once it has been told to stop."""
    if _stopped.is_set():
        raise KeyboardInterrupt
    try:
        _at_work.set()
        _run(*what)
    except KeyboardInterrupt:
        _stopped.set()
        raise
    finally:
        _at_work.clear()


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    entry: PlannedRun, folder: Path, dry: bool, host: HostDevice, keep_going: bool, attacks: str
) -> None:
    """Run it, or go on with what was begun of it, and attack it; why it fails is noted, or
    raised.
    """
    with suppress(OSError):
        (entry.folder / FAILED).unlink()
    try:
        if not is_done(entry, dry, folder, host):
            _run_or_resume(entry, folder, dry, host)
        if attacks != NO_ATTACKS:
            _attack(entry, folder, attacks)
    except Exception as error:
        if not keep_going:
            raise
        what = str(error) if is_ours(error) else f"{type(error).__name__}: {error}"
        _note_failure(entry, what)


def _attack(entry: PlannedRun, folder: Path, attacks: str) -> None:
    from sim.privacy.report import report

    run = open_run(entry.folder)
    try:
        report(run, attacks, folder)
    except PrivacyError as error:  # there is nothing to attack: that is what was found
        write_found(run, targets_of(attacks), [], [str(error)])


def _note_failure(entry: PlannedRun, why: str) -> None:
    entry.folder.mkdir(parents=True, exist_ok=True)
    with replacing(entry.folder / FAILED) as temporary:
        temporary.write_text(" ".join(why.split()) + "\n", encoding="utf-8")


def _run_or_resume(entry: PlannedRun, folder: Path, dry: bool, host: HostDevice) -> None:
    """A run of another scenario, of other files or of another host in its place goes."""
    from sim.kernel.journal import CannotResume
    from sim.runner import run_scenario

    def run(resume: bool) -> None:
        run_scenario(
            entry.scenario,
            entry.folder,
            folder,
            dry,
            resume,
            workers=1,
            figures=False,
            host=host,
        )

    is_begun = _manifest(entry, dry) and why_again(entry, dry, folder, host) is None
    if is_begun:
        with suppress(CannotResume):  # by other code: it is run anew
            return run(resume=True)
    if is_begun or read_manifest(entry.folder):
        with held(entry.folder):
            empty(entry.folder)
    run(resume=False)
