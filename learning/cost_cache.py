"""What counting has found, in the user's cache: a file for each thing counted, named by what it is and by who counted.

A counter is the source of what counts and the libraries it counts with: a file of an older one is never read. A damaged
file is counted again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inputs.files import FileProblem, is_ours, read_json
from learning import assets
from learning.catalogue import BackboneError

_COUNTERS = (
    "cost.py",
    "count.py",
    "count_forward_only.py",
    "count_split.py",
    "count_training.py",
    "forward_gradient.py",
)
_COUNTERS += ("huggingface.py", "layers.py", "meter.py", "split.py", "trainable.py", "weightless.py")


def counted(backbone: str, what: str, of: Any, count: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `count` gives, or gave before for the same `of`: numbers by name, as JSON keeps them.

    Raises BackboneError, naming the backbone and `what`, where counting fails.
    """
    file = assets.cache_dir() / "costs" / f"{what.replace(' ', '-')}-{_digest([_counter(), what, of])}.json"
    try:
        kept = read_json(file)
        if kept["digest"] == _digest(kept["counted"]):
            return kept["counted"]
    except (FileProblem, KeyError, TypeError):  # not there yet, or damaged
        pass
    try:
        made = count()
    except Exception as error:
        if is_ours(error) or isinstance(error, MemoryError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BackboneError(f"backbone {backbone!r}: what {what} costs cannot be counted: {reason}") from error
    _keep(file, {"digest": _digest(made), "counted": made})
    return json.loads(json.dumps(made))


def _keep(file: Path, content: dict[str, Any]) -> None:
    fresh = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(content))
        fresh.replace(file)
    except OSError:  # a cache that cannot be written is one that is not there
        with contextlib.suppress(OSError):
            fresh.unlink()


def _digest(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _counter() -> str:
    source = b"".join(Path(__file__).with_name(name).read_bytes() for name in _COUNTERS)
    libraries = [version(name) for name in ("torch", "transformers", "peft")]
    return hashlib.blake2b(source, digest_size=16).hexdigest() + "/" + "/".join(libraries)
