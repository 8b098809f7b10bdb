"""The directory that a run leaves behind: held by one process at a time, made without overwriting
anything, whole or clearly marked as not.

A folder of ours holds `LOCK` while it is being written. The lock on it dies with its process; the
file that a killed process leaves marks the folder as ours, so that a folder with nothing else in it
can be used again.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inputs.files import FileProblem, read_json
from sim.kernel.journal import CHECKPOINT
from sim.kernel.writing import remove, write_json
from sim.scenario.file import digest, resolved
from sim.scenario.named_files import changed_files
from sim.scenario.schema import Scenario

LOCK = ".lock"
FAILED = "failed.txt"  # of a planned run that failed: one line that says why
RESERVED_BYTES = 16_384
ANEW = "run without --resume, into another --out"
PATIENCE_S = 0.5  # for one who only looks whether a folder is held
_VERSIONS = (
    "mobifleet",
    "simpy",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
)


class RunDirectoryError(ValueError):
    """The run directory cannot be used; the message says what to do instead."""


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Be the only process that writes into an existing folder; RunDirectoryError names the one that
    does already.
    """
    lock = FileLock(folder / LOCK, timeout=PATIENCE_S)
    try:
        lock.acquire()
    except Timeout:
        who = f"{folder} is being written by {_holder(folder)}"
        raise RunDirectoryError(f"{who}: wait for it, or name another --out") from None
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        with suppress(OSError):  # a disk that is full says so at the first thing that matters
            who = f"process {os.getpid()} on {socket.gethostname()}, started {_now()}"
            (folder / LOCK).write_text(who.ljust(RESERVED_BYTES), encoding="utf-8")
        yield folder
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def make_room(folder: Path) -> None:
    """Let go of the room that the lock's file keeps on the disk for one last manifest, which says
    that it was full.
    """
    (folder / LOCK).write_bytes(b"")


def empty(folder: Path) -> None:
    """Remove all that is in a folder but the lock of whoever holds it."""
    for path in folder.iterdir():
        if path.name != LOCK:
            remove(path)


def is_held(folder: Path) -> bool:
    """Whether a process is writing into the folder now."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except OSError:  # Timeout is one, too
        return True


def _holder(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text(
            encoding="utf-8", errors="replace"
        ).strip() or "another process"
    except OSError:  # Windows lets nobody else read it
        return "another process"


@contextmanager
def new_folder(name: str, out: Path | None) -> Iterator[Path]:
    """A fresh folder, held: `out` itself, or `runs/<name>`, `runs/<name>-2`, ... whichever is free.

    Raises RunDirectoryError when `out` holds anything already, is held, or cannot be written. If
    nothing was put into a folder made here, it goes again.
    """
    folder, is_new = (out, not out.exists()) if out is not None else (_numbered(name), True)
    is_unfinished = read_manifest(folder).get("status", "finished") != "finished"
    refusal = RunDirectoryError(
        f"{folder} exists and is not empty: name another directory with --out"
        + ", or go on with the unfinished run there by --resume" * is_unfinished
    )
    if not is_new and not (_is_unused(folder) or (folder / LOCK).is_file()):
        raise refusal  # nothing of ours is put into a stranger's folder
    with suppress(FileExistsError):  # a file; the lock will say so
        _make(folder)
    try:
        with held(folder):
            if not _is_unused(folder):
                raise refusal
            with suppress(OSError):  # of who was killed
                (folder / "manifest.json").unlink()
            yield folder
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _numbered(name: str) -> Path:
    """The first of `runs/<name>`, `runs/<name>-2`, ... that was not there, made now; two processes
    never get the same.
    """
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            _make(folder)
            return folder
    raise AssertionError("there is always a next number")


def _make(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"{folder} cannot be written ({error.strerror}): name another with --out"
    )


def _is_unused(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a run leaves that failed, or was killed, before
    it had begun.
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()} - {LOCK, FAILED, "manifest.json.tmp"}
    killed = names == {"manifest.json"} and read_manifest(folder).get("status") == "running"
    return not names or killed


def is_strangers(folder: Path) -> bool:
    """Whether a folder holds something, and no run whose manifest can be read."""
    return folder.exists() and not _is_unused(folder) and not read_manifest(folder)


def has_learned(folder: Path) -> bool:
    """Whether a run in the folder, finished or not, has learned what it would be a pity to lose."""
    manifest = read_manifest(folder)
    is_dry = not manifest or manifest.get("dry", False)
    return not is_dry and (manifest.get("status") == "finished" or (folder / CHECKPOINT).is_file())


@contextmanager
def folder_to_resume(
    scenario: Scenario, out: Path | None, inputs: Mapping[str, str]
) -> Iterator[Path]:
    """The folder of the unfinished run of this scenario, held: `out`, or the newest of
    `runs/<name>*` that is unfinished.

    `inputs` are the digests of the files that the scenario names. Raises RunDirectoryError if there
    is none, if it belongs to another scenario or was begun with other files, or if it is still
    running.
    """
    folder = newest_unfinished(scenario) if out is None else out
    if folder is None:
        others = ", ".join(map(str, sorted(_unfinished(scenario.name))))
        raise RunDirectoryError(
            f"runs/ holds no unfinished run of {scenario.name} to resume"
            + (f" with these settings and this seed ({others}: with others)" if others else "")
            + "; run it without --resume"
        )
    if not read_manifest(folder) and not (folder / LOCK).is_file():
        raise RunDirectoryError(f"{folder} is not a run directory; run without --resume")
    with held(folder):
        with suppress(OSError):
            for leftover in folder.glob("*.tmp"):  # of a process that was killed as it wrote
                remove(leftover)
        manifest = read_manifest(folder)
        if not manifest and not _is_unused(folder):
            raise RunDirectoryError(f"{folder / 'manifest.json'} is missing or damaged; {ANEW}")
        if manifest.get("status") == "finished":
            raise RunDirectoryError(
                f"{folder} is finished; run without --resume to run it again elsewhere"
            )
        if manifest and not _same(folder, scenario):
            raise RunDirectoryError(
                f"{folder} was begun with another scenario, seed or setting; {ANEW}"
            )
        if manifest and (changed := changed_files(manifest.get("inputs") or {}, inputs)):
            raise RunDirectoryError(
                f"{folder} was begun when {', '.join(changed)} held something else; {ANEW}"
            )
        yield folder


def newest_unfinished(scenario: Scenario) -> Path | None:
    """The newest of `runs/<name>*` that is an unfinished run of this scenario: one that nobody is
    writing, if there is one.
    """
    unfinished = [folder for folder in _unfinished(scenario.name) if _same(folder, scenario)]
    stopped = [folder for folder in unfinished if not is_held(folder)] or unfinished
    return max(stopped, key=lambda f: (f / "manifest.json").stat().st_mtime) if stopped else None


def _unfinished(name: str) -> list[Path]:
    """The folders `runs/<name>*` of runs of that name that have not finished."""
    folders = (file.parent for file in Path("runs").glob("*/manifest.json"))
    unfinished = []
    for folder in folders:
        manifest = read_manifest(folder) if folder.name.startswith(name) else {}
        scenario = manifest.get("scenario")
        is_named = isinstance(scenario, dict) and scenario.get("name") == name
        if is_named and manifest.get("status") != "finished":
            unfinished.append(folder)
    return unfinished


def _same(folder: Path, scenario: Scenario) -> bool:
    return read_manifest(folder).get("scenario_digest") == digest(resolved(scenario))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run directory, {} where there is none that can be read."""
    try:
        manifest = read_json(folder / "manifest.json")
    except FileProblem:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def computed_by(manifest: Mapping[str, Any]) -> list[str]:
    """The kinds of arithmetic (`learning.arithmetic`) that a run's learning has been computed by,
    in order: usually one.
    """
    kinds = manifest.get("arithmetic")
    return [str(kind) for kind in kinds] if isinstance(kinds, list) else []


def write_manifest(folder: Path, scenario: Scenario, status: str, **more: Any) -> None:
    """manifest.json: what was run, from what, by which versions, and how it stands."""
    plain = resolved(scenario)
    now = _now()
    before = read_manifest(folder)
    manifest = {
        "scenario": plain,
        "scenario_digest": digest(plain),
        "seed": scenario.seed,
        "status": status,
        "command": sys.argv,
        "git_revision": _revisions(before.get("git_revision")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _VERSIONS},
        "inputs": before.get("inputs", {}),
        "host": before.get("host"),
        "arithmetic": computed_by(before),
        "begun_at": before.get("begun_at", now),
        "written_at": now,
        **more,
    }
    write_json(folder / "manifest.json", manifest)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revisions(before: str | None) -> str | None:
    """The commit that computes, beside others that have before: `-dirty` is one with changes."""
    now = _git_revision()
    known = before.split(", ") if before else []
    return ", ".join([*known, *([now] if now and now not in known else [])]) or None


def _git_revision() -> str | None:
    here = Path(__file__).parent
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *describe],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
