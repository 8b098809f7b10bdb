"""The directory that a run leaves behind: made without overwriting anything, whole or clearly marked as not."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sim.scenario import Scenario
from sim.scenario_file import digest, resolved

_VERSIONS = ("mobifleet", "simpy", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


class RunDirectoryError(ValueError):
    """The run directory cannot be used; the message says what to do instead."""


def new_folder(scenario: Scenario, out: Path | None) -> Path:
    """A fresh folder: `out` itself, or `runs/<name>`, `runs/<name>-2`, ... whichever is free.

    Raises RunDirectoryError when `out` holds anything already, or cannot be written.
    """
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunDirectoryError(
                f"{out} exists and is not empty: name another directory with --out, "
                "or go on with an interrupted run there by --resume"
            )
        return _make(out)
    root = Path("runs")
    number = 1
    while (folder := root / (scenario.name if number == 1 else f"{scenario.name}-{number}")).exists():
        number += 1
    return _make(folder)


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunDirectoryError(f"{folder} cannot be written ({error.strerror}): name another with --out") from error
    return folder


def folder_to_resume(scenario: Scenario, out: Path | None) -> Path:
    """The folder of the unfinished run of this scenario: `out`, or the newest of `runs/<name>*` that is unfinished.

    Raises RunDirectoryError if there is none, or if it belongs to another scenario.
    """
    if out is not None:
        folder = out
    else:
        candidates = [f.parent for f in Path("runs").glob(f"{scenario.name}*/manifest.json")]
        unfinished = [f for f in candidates if read_manifest(f).get("status") != "finished" and _same(f, scenario)]
        if not unfinished:
            raise RunDirectoryError(
                f"runs/ holds no unfinished run of {scenario.name} to resume; run it without --resume"
            )
        folder = max(unfinished, key=lambda f: (f / "manifest.json").stat().st_mtime)
    manifest = read_manifest(folder)
    if not manifest:
        raise RunDirectoryError(f"{folder} is not a run directory; run without --resume")
    if manifest.get("status") == "finished":
        raise RunDirectoryError(f"{folder} is finished; run without --resume to run it again elsewhere")
    if not _same(folder, scenario):
        raise RunDirectoryError(f"{folder} was begun with another scenario, seed or setting; run without --resume")
    return folder


def _same(folder: Path, scenario: Scenario) -> bool:
    return read_manifest(folder).get("scenario_digest") == digest(resolved(scenario))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run directory, {} where there is none that can be read."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_manifest(folder: Path, scenario: Scenario, status: str, **more: Any) -> None:
    """manifest.json: what was run, from what, by which versions, and how it stands."""
    plain = resolved(scenario)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before = read_manifest(folder)
    manifest = {
        "scenario": plain,
        "scenario_digest": digest(plain),
        "seed": scenario.seed,
        "status": status,
        "command": sys.argv,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _VERSIONS},
        "begun_at": before.get("begun_at", now),
        "written_at": now,
        **more,
    }
    write_json(folder / "manifest.json", manifest)


def write_json(path: Path, data: Any) -> None:
    """Write JSON under a temporary name, flush it to disk, then rename."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
