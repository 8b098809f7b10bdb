"""Running what is planned on the nodes of a Ray cluster: the same folders as by processes of this
machine, and the same bytes.

Every run is one task on one core. A node gets the files that the scenario names once (Ray's object
store keeps them), lays them out beside each run and sends the finished run's folder back; only
this machine writes into the sweep. What a lost node was at, Ray gives to another.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from sim.kernel.ray_cluster import started
from sim.results.run_directory import LOCK, empty, held
from sim.scenario.named_files import named_files
from sim.sweep.planned_run import PlannedRun

Run = Callable[[PlannedRun, Path], None]
"""Makes a run in its folder; where the scenario's relative paths start."""

MOST_PENDING = 1_000  # tasks that Ray holds at a time
MOST_TRIES = 4  # of a run whose node or process is lost


def in_cluster(
    entries: list[PlannedRun],
    folder: Path,
    run: Run,
    end: Callable[[PlannedRun], None],
    lost: Callable[[PlannedRun], None],
) -> None:
    """Run them on a Ray cluster, the one that is there (`RAY_ADDRESS`, or this machine's own) or a
    new one on this machine; `end` is told of each that has ended, `lost` before it of one whose
    process died every time.

    The first error that a run raises is raised. What is under way when this is stopped is given up.
    """
    ray = started()
    errors = ray.exceptions
    crashes = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError)
    task = ray.remote(num_cpus=1, max_retries=MOST_TRIES - 1)(_elsewhere)
    files = ray.put(files_of(entries, folder))
    todo = iter(entries)
    pending: dict[Any, PlannedRun] = {}
    try:
        while True:
            for entry in islice(todo, MOST_PENDING - len(pending)):
                pending[task.remote(entry, files, run)] = entry
            if not pending:
                return
            [done], _ = ray.wait(list(pending), num_returns=1)
            entry = pending.pop(done)
            try:
                _put_in_place(ray.get(done), entry.folder)
            except crashes:
                lost(entry)
            except errors.RayTaskError as error:
                raise error.cause from None
            end(entry)
    except BaseException:
        for reference in pending:
            with suppress(Exception):
                ray.cancel(reference)
        raise


def cores() -> int:
    """How many runs at a time the cluster has room for."""
    ray: ModuleType = started()
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def files_of(entries: list[PlannedRun], folder: Path) -> dict[str, bytes]:
    """What the files hold that the scenarios name and that lie in the folder, by their paths from
    there; a node has to have all others at the same place.
    """
    found = {
        path.resolve()
        for entry in entries
        for path in named_files(entry.scenario, folder).values()
        if path.is_file() and path.resolve().is_relative_to(folder.resolve())
    }
    return {
        path.relative_to(folder.resolve()).as_posix(): path.read_bytes() for path in sorted(found)
    }


# --- on a node


def _elsewhere(entry: PlannedRun, files: dict[str, bytes], run: Run) -> bytes:
    """The folder of the finished run, or of the failed one."""
    # nothing that outlives the run: Ray ends its processes without asking them to tidy up
    with tempfile.TemporaryDirectory(prefix="mobifleet-") as place:
        mine = replace(entry, folder=Path(place) / "run")
        run(mine, _laid_out(files, Path(place) / "files"))
        return _packed(mine.folder)


def _laid_out(files: dict[str, bytes], folder: Path) -> Path:
    """The folder, made, with the files in it."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _packed(folder: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in _files(folder):
            archive.add(path, path.relative_to(folder).as_posix())
    return packed.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != LOCK)


# --- here again


def _put_in_place(packed: bytes, folder: Path) -> None:
    """The run's folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".coming-", dir=folder.parent) as coming:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(Path(coming, "run"), filter="data")
        if folder.exists():
            with held(folder):
                empty(folder)
            folder.rmdir()
        os.replace(Path(coming, "run"), folder)
