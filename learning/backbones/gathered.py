"""The many small files of a wheel's folder as one file of the cache, so that no name inside an
archive ever becomes a path, and one digest pins them all.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Gathered:
    """Which files: `count` of them below a folder, whose names are like `pattern`, where `*` is
    anything but a slash.
    """

    pattern: str
    count: int


def members(archive: zipfile.ZipFile, folder: str, pattern: str) -> list[str]:
    """The names in an archive that are meant, in order."""
    inside = "/".join(filter(None, (folder, pattern)))
    like = re.compile("[^/]+".join(map(re.escape, inside.split("*"))))
    return sorted(filter(like.fullmatch, set(archive.namelist())))


def lines(
    archive: zipfile.ZipFile, names: list[str], folder: str, most_bytes: int
) -> Iterator[bytes]:
    """A line of JSON for each file, `{"name": below the folder, "text": ...}`; at most `most_bytes`
    are read of one. What is not UTF-8 is Windows-1252.
    """
    for name in names:
        with archive.open(name) as file:
            content = file.read(most_bytes)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = content.decode("cp1252", errors="replace")
        below = name.removeprefix(f"{folder}/")
        yield json.dumps({"name": below, "text": text}).encode() + b"\n"
