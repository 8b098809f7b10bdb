"""Files that a scenario names by a word: ours, in a folder of YAML files, and those that installed
packages bring.

A package brings a folder by an entry point that names it as one names a module, here
`my_lab/devices` with a file NAME.yaml for each name:

    [project.entry-points."mobifleet.devices"]
    my-lab = "my_lab.devices"

Such files are data: nothing of the package is imported, and a name of ours stays ours.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inputs.files import FileProblem, located

SUFFIXES = (".yaml", ".yml")


def is_file(name: str | Path) -> bool:
    """Whether something is named by its file rather than by a word."""
    return str(name).endswith(SUFFIXES)


def place(name: str | Path, folder: Path = Path()) -> Path:
    """Where a file of one's own lies: below the scenario's folder, or else the working
    directory.
    """
    near = located(name, folder)
    return near if os.path.isfile(near) else located(name)  # False for a name too long, too


@dataclass(frozen=True)
class Shipped(Mapping[str, Path]):
    """Name -> its YAML file, in alphabetical order: those in our `folder`, then those of the
    packages with entry points of the `group`.

    Packages are looked at for names that are not ours. FileProblem for an entry point that names no
    folder, and for a name that two packages bring.
    """

    folder: Path | None
    group: str
    reserved: frozenset[str] = frozenset()
    """Names of ours that stand for no file."""

    def __getitem__(self, name: str) -> Path:
        if (own := _in(self.folder).get(name)) is not None:
            return own
        if name in self.reserved:
            raise KeyError(name)
        first, *others = self._brought()[name]
        if others:
            raise FileProblem(
                f"two packages bring {name!r}: name {first} or {others[0]} by its path"
            )
        return first

    def __iter__(self) -> Iterator[str]:
        own = _in(self.folder)
        yield from own
        yield from sorted(self._brought().keys() - own.keys() - self.reserved)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def file(self, name: str | Path, folder: Path = Path()) -> Path:
        """The file of a name, or the one of the user's that the name is the path of; for an unknown
        name where it would lie.
        """
        if is_file(name):
            return place(name, folder)
        return self.get(str(name)) or (self.folder or Path()) / f"{name}.yaml"

    def files(
        self, name: str, folder: Path, read: Callable[[Path], tuple[Any, list[Path]]]
    ) -> list[Path]:
        """The file of a name or path, and those that `read` finds that it takes numbers from; its
        own alone where it cannot be read.
        """
        path = self.file(name, folder)
        if path.parent == self.folder:
            return [path]
        try:
            return read(path)[1]
        except ValueError:  # whoever needs it says so
            return [path]

    def title(self, path: Path) -> str:
        """A file's name for people: with the package and the folder that it comes with."""
        return "/".join(path.parts[-3:])

    def unseen(self) -> list[Path]:
        """Files of packages whose names are ours, so that nothing ever reads them."""
        ours = {*_in(self.folder), *self.reserved}
        return [path for name, paths in self._brought().items() if name in ours for path in paths]

    def _brought(self) -> Mapping[str, list[Path]]:
        return _brought(self.group, tuple(sys.path))


def _in(folder: Path | None) -> dict[str, Path]:
    found = () if folder is None else folder.glob("*.yaml")
    return dict(sorted((path.stem, path) for path in found))


@functools.lru_cache(32)
def _brought(group: str, path: tuple[str, ...]) -> dict[str, list[Path]]:
    """What packages on Python's path bring; kept, for looking through all of them takes a while."""
    found: dict[str, list[Path]] = {}
    for folder in {_folder(group, point.name, point.value) for point in entry_points(group=group)}:
        for name, file in _in(folder).items():
            found.setdefault(name, []).append(file)
    return {name: sorted(files) for name, files in found.items()}


def _folder(group: str, point: str, value: str) -> Path:
    """The folder that an entry point names as one names a module, found without importing any."""
    first, *rest = value.split(".")
    spec = find_spec(first)
    for home in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(home, *rest)).is_dir():
            return folder
    raise FileProblem(f"entry point {point!r} of {group}: there is no folder {value}")
