"""Writing what a run leaves: every file is whole or not there, and a disk that cannot take it is
one line with the path.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What JSON can hold."""


class CannotWrite(ValueError):
    """A disk does not take what is to be written; the message names the path and the system's
    reason.
    """


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What writers' libraries raise when a disk is full, broken or not to be written becomes a
    CannotWrite with the path.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CannotWrite(f"{path}: cannot be written ({_reason(error)})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file or folder that takes the place of `path` at the end; of a failure
    nothing stays.

    Raises CannotWrite as `writing` does.

        with replacing(folder / "spans.parquet") as temporary:
            parquet.write_table(table, temporary)
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with writing(path):
            remove(temporary)
            yield temporary
            if path.is_dir():
                remove(path)
            temporary.replace(path)
    finally:
        with suppress(OSError):
            remove(temporary)


def write_json(path: Path, data: object) -> None:
    """Write JSON durably: flushed to the disk before it takes the place of what was there."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table under a temporary name, then rename: a reader never sees half a file."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def share_as_folder(folder: Path) -> None:
    """Let who may read a folder read the files in it: safetensors makes them for their owner
    alone.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(folder.stat().st_mode & 0o666)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """The system's words; libraries wrap them in more lines, and some say them by number alone."""
    if number := getattr(error, "errno", None):
        return os.strerror(number)
    return (str(error) or type(error).__name__).splitlines()[0][:200]
