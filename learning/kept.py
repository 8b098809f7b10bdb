"""What was found once and is kept in the user's cache: JSON in a file named by what it is about and
by who found it.

A finder is the source of what finds and the libraries it finds with: what an older one found is
never read. A damaged file is one that is not there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inputs.files import FileProblem, read_json
from learning import cache
from learning.backbones import assets


def place(folder: str, what: str, of: Any, finder: str) -> Path:
    """The file of what `finder` found of `of` (JSON): `what` begins its name."""
    return (
        assets.cache_dir() / folder / f"{what.replace(' ', '-')}-{_digest([finder, what, of])}.json"
    )


def recall(file: Path) -> Any:
    """What is kept in the file; None where nothing is, or nothing whole."""
    try:
        kept = read_json(file)
        return kept["found"] if kept["digest"] == _digest(kept["found"]) else None
    except (FileProblem, KeyError, TypeError):
        return None


def keep(file: Path, found: Any) -> None:
    """Keep it (JSON) in the file, whole or not at all."""
    text = json.dumps({"digest": _digest(found), "found": found})
    cache.keep(file, lambda fresh: fresh.write_text(text))


@functools.cache
def finder(modules: tuple[str, ...], libraries: tuple[str, ...]) -> str:
    """Who finds: the source of these modules of `learning` (as "backbones/tokens"), and these
    installed packages.
    """
    source = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in modules)
    return "/".join([hashlib.blake2b(source, digest_size=16).hexdigest(), *map(version, libraries)])


def _digest(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()
