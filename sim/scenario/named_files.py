"""Which files a scenario names, and what they hold: the same scenario over other files is another
run.

A setting that names a file is typed as one of the names below, and is so found wherever in a
scenario it stands.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

import devices.availability
import devices.profile
import devices.profile_file
import network.profile
from inputs.files import located
from inputs.shipped import Shipped, is_file
from learning.backbones import catalogue
from learning.data import packaged, texts
from learning.data.texts import TextDataset
from sim.scenario.own_code import file_of


class NamedFile(str):
    """A file's name as a setting: a path that starts in the scenario's folder."""

    __slots__ = ()

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """What lies under the name, each by a name for people and its path."""
        yield str(self), located(self, folder)


class _Profile(NamedFile):
    """The name of a shipped profile, or the path of a YAML file of one's own."""

    __slots__ = ()
    shipped: Shipped

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """The profile's file, and those that it extends or that lend to it."""
        own, *others = self.places(folder)
        yield str(self) if is_file(self) else self.shipped.title(own), own
        for path in others:
            is_named = self.shipped.get(path.stem) == path
            yield self.shipped.title(path) if is_named else f"{self}: {path.name}", path

    def places(self, folder: Path) -> list[Path]:
        """Where these files lie, its own first."""
        return [self.shipped.file(self, folder)]


class _Device(_Profile):
    __slots__ = ()
    shipped = devices.profile_file.PROFILES

    def places(self, folder: Path) -> list[Path]:
        return devices.profile.files(self, folder)


class _Link(_Profile):
    __slots__ = ()
    shipped = network.profile.PROFILES

    def places(self, folder: Path) -> list[Path]:
        return network.profile.files(self, folder)


class _Rhythm(_Profile):
    __slots__ = ()
    shipped = devices.availability.PROFILES


class _Dataset(NamedFile):
    """The name of a data set: of ours, which are pinned assets, or of a package's."""

    __slots__ = ()

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Of a package's the file that describes it, and those of its texts."""
        if (path := texts.PACKAGED.get(self)) is None:
            return
        yield texts.PACKAGED.title(path), path
        for file in packaged.files(path):
            yield f"{self}: {file.name}", file


class _ModelFolder(NamedFile):
    """A folder of the transformers library's format."""

    __slots__ = ()

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """What is read of the folder."""
        yield from _of_model(str(self), located(self, folder))


class _HubModel(NamedFile):
    """A model's name on the Hugging Face hub."""

    __slots__ = ()

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """What is read of its snapshot in the local cache, where there is one."""
        try:
            place = catalogue.directory(catalogue.BackboneSpec(str(self), "hub", str(self)))
        except catalogue.BackboneError:
            return  # whoever needs it says so
        yield from _of_model(str(self), place)


class _Code(NamedFile):
    """A function's name: registered, or with its file or module before a colon."""

    __slots__ = ()

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """The file, if it names one."""
        if (file := file_of(self)) is not None:
            yield file, located(file, folder)


CodeName = Annotated[str, AfterValidator(_Code)]
FilePath = Annotated[str, AfterValidator(NamedFile)]
DeviceName = Annotated[str, AfterValidator(_Device)]
LinkName = Annotated[str, AfterValidator(_Link)]
DatasetName = Annotated[str, AfterValidator(_Dataset)]
RhythmName = Annotated[str, AfterValidator(_Rhythm)]
ModelFolder = Annotated[str, AfterValidator(_ModelFolder)]
HubModel = Annotated[str, AfterValidator(_HubModel)]


def named_files(settings: Any, folder: Path) -> dict[str, Path]:
    """Every file that a scenario names, by a name for people: as the scenario spells it, or
    `devices/profiles/NAME.yaml`.
    """
    return {name: path for one in _names(settings) for name, path in one.files(folder)}


def digests(settings: Any, folder: Path, texts: TextDataset | None = None) -> dict[str, str]:
    """SHA-256 in hex of what each of those files holds, or "missing"; `texts` take the place of the
    scenario's data set.
    """
    found = {name: _digest(path) for name, path in sorted(named_files(settings, folder).items())}
    return found if texts is None else {**found, "the texts": _digest_of_texts(texts)}


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of files that hold something else than before, or were not known then."""
    return [name for name, digest in now.items() if before.get(name) != digest]


def _names(value: Any) -> Iterator[NamedFile]:
    if isinstance(value, NamedFile):
        yield value
    elif isinstance(value, BaseModel):
        if isinstance(kind := getattr(value, "kind", None), str) and (own := file_of(kind)):
            yield NamedFile(own)  # the method's own code
        yield from _names(vars(value))
    elif isinstance(value, Mapping):
        yield from (name for pair in value.items() for one in pair for name in _names(one))
    elif isinstance(value, list | tuple):
        yield from (name for one in value for name in _names(one))


def _of_model(name: str, place: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted({path for kind in catalogue.MODEL_FILES for path in place.glob(kind)}):
        yield f"{name}/{path.name}", path


def _digest(path: Path) -> str:
    try:
        if not path.is_file():  # a device or a pipe might never end
            return "missing"
        found = path.stat()
        return _digest_of_file(path, found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return "missing"  # whoever reads it says what is wrong


@functools.lru_cache(1000)
def _digest_of_file(path: Path, size: int, changed_ns: int) -> str:
    """Kept for as long as the file looks the same: a comparison asks for every one of its runs."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_texts(texts: TextDataset) -> str:
    digest = hashlib.sha256(texts.labels.tobytes())
    clients = () if texts.clients is None else map(str, texts.clients)
    seconds = texts.second_texts or texts.responses or ()
    for text in (*texts.class_names, *texts.texts, *seconds, *clients):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
