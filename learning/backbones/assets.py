"""Fetch pre-trained weights and labelled text out of pinned public wheels into a checked, per-user
cache.

`fetch` downloads a wheel with the running interpreter's own pip (so its index, proxy and
certificate settings hold), copies the few files that assets.yaml names out of it, checks each one's
sha256 and renames the finished folder into the cache. Nothing of a wheel is installed or imported,
and a folder in the cache is always whole.
"""

import contextlib
import difflib
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import metadata
from pathlib import Path, PurePosixPath

import platformdirs

from inputs.files import read_yaml
from learning.backbones import gathered
from learning.backbones.gathered import Gathered

TABLE = Path(__file__).with_name("assets.yaml")

DownloadProgress = Callable[[str, int, int, str], None]
"""Called with (asset, done_bytes, total_bytes, note)."""


class AssetError(RuntimeError):
    """An asset could not be fetched or is unknown; the message says what to do."""


class AssetMissing(AssetError):
    """An asset is not in the cache yet; the message names the command that fetches it."""


@dataclass(frozen=True)
class Wheel:
    """A pinned distribution: `name==version`, its file's size and sha256."""

    name: str
    version: str
    bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Source:
    """Where an asset's files lie: in `folder` of a wheel, or of a zip file (`archive`) inside that
    wheel.
    """

    wheel: Wheel
    folder: str = ""
    archive: str | None = None


@dataclass(frozen=True)
class Asset:
    """One thing to fetch: its files as {name: (size in bytes, sha256)}, which of them are gathered
    from many, and its sources in the order they are tried.
    """

    name: str
    kind: str
    description: str
    licence: str
    default: bool
    files: dict[str, tuple[int, str]]
    sources: tuple[Source, ...]
    gathered: dict[str, Gathered] = field(default_factory=dict)

    @property
    def download_bytes(self) -> int:
        """The first source's whole wheel, which several assets may share."""
        return self.sources[0].wheel.bytes

    @property
    def disk_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())

    @property
    def folder(self) -> str:
        """The folder's name in the cache; it changes with the content, so an old cache never passes
        for a new one.
        """
        content = "".join(f"{name}:{sha256}\n" for name, (_, sha256) in sorted(self.files.items()))
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class AssetStatus:
    """One line of a listing: the asset, whether it is in the cache, and where."""

    asset: Asset
    present: bool
    path: Path


@cache
def table(file: Path = TABLE) -> dict[str, Asset]:
    """Read the list of assets. Raises AssetError for a file name that would leave the cache."""
    document = read_yaml(file)
    wheels = {name: Wheel(name, **wheel) for name, wheel in document["wheels"].items()}
    assets = {}
    for name, entry in document["assets"].items():
        for inside in [name, *entry["files"]]:
            if (
                PurePosixPath(inside).is_absolute()
                or ".." in PurePosixPath(inside).parts
                or "\\" in inside
            ):
                raise AssetError(f"{file}: {inside!r} is not a plain relative name")
        assets[name] = Asset(
            name=name,
            kind=entry["kind"],
            description=entry["description"],
            licence=entry["licence"],
            default=entry["default"],
            files={
                inside: (spec["bytes"], spec["sha256"]) for inside, spec in entry["files"].items()
            },
            sources=tuple(
                Source(**{**source, "wheel": wheels[source["wheel"]]})
                for source in entry["sources"]
            ),
            gathered={
                inside: Gathered(spec["gathered"], spec["count"])
                for inside, spec in entry["files"].items()
                if "gathered" in spec
            },
        )
    return assets


def cache_dir() -> Path:
    """The per-user cache: the environment variable MOBIFLEET_CACHE, or the platform's own place for
    caches.
    """
    try:
        chosen = os.environ.get("MOBIFLEET_CACHE") or platformdirs.user_cache_dir(
            "mobifleet", appauthor=False
        )
        return Path(chosen).expanduser().absolute()
    except RuntimeError:  # neither HOME nor a home in the list of users
        return Path(_homeless_cache().name)


@cache
def _homeless_cache() -> tempfile.TemporaryDirectory:
    logging.getLogger(__name__).warning(
        "there is no home directory to keep what is computed: it goes when this process ends; set "
        "MOBIFLEET_CACHE"
    )
    return tempfile.TemporaryDirectory(prefix="mobifleet-", ignore_cleanup_errors=True)


def path(name: str, table_file: Path = TABLE) -> Path:
    """The cached folder of an asset. Raises AssetMissing when it is not fetched yet, AssetError for
    an unknown name.
    """
    asset = _named(name, table_file)
    if not _is_present(asset):
        raise AssetMissing(f"asset {name!r} is not in {cache_dir()}: run `mobifleet fetch {name}`")
    return _place(asset)


def status(table_file: Path = TABLE) -> list[AssetStatus]:
    """Every asset and whether it is in the cache (judged by file sizes; `fetch` checks the
    hashes).
    """
    return [
        AssetStatus(asset, _is_present(asset), _place(asset))
        for asset in table(table_file).values()
    ]


def fetch(
    names: Iterable[str] | None = None,
    progress: DownloadProgress | None = None,
    *,
    wheels_dir: Path | str | None = None,
    table_file: Path = TABLE,
) -> None:
    """Bring assets into the cache: the named ones, or the default set.

    What is already there and passes its sha256 is left alone, so a fetch that was cut off goes on
    where it stopped. With `wheels_dir` the wheels are taken from that folder and no network is
    used. Raises AssetError when every source of an asset failed (the message lists the reasons and
    the way round).
    """
    known = table(table_file)
    wanted = (
        [_named(name, table_file) for name in names]
        if names is not None
        else [a for a in known.values() if a.default]
    )
    report = progress or (lambda *_: None)
    try:
        with scratch() as folder:
            wheels = _Wheels(folder, Path(wheels_dir) if wheels_dir is not None else None)
            for asset in wanted:
                if _is_verified(asset):
                    report(asset.name, asset.disk_bytes, asset.disk_bytes, "already in the cache")
                else:
                    _fetch_one(asset, wheels, report)
    except OSError as error:
        raise AssetError(
            f"cannot write the cache {cache_dir()} ({error}): free space there or set "
            "MOBIFLEET_CACHE"
        ) from error


def _fetch_one(asset: Asset, wheels: "_Wheels", report: DownloadProgress) -> None:
    failures = []
    for source in asset.sources:
        try:
            wheel_file = wheels.get(
                source.wheel, lambda done, total, note: report(asset.name, done, total, note)
            )
            _unpack(asset, source, wheel_file, wheels.scratch)
        except _SourceFailed as failure:
            failures.append(f"{source.wheel.requirement}: {failure}")
            report(asset.name, 0, source.wheel.bytes, f"failed: {failures[-1]}")
            if failure.hopeless:
                break
        else:
            report(
                asset.name,
                asset.disk_bytes,
                asset.disk_bytes,
                f"fetched from {source.wheel.requirement}",
            )
            return
    first = asset.sources[0].wheel.requirement
    raise AssetError(
        f"could not fetch {asset.name!r}:\n"
        + "".join(f"  {failure}\n" for failure in failures)
        + "Without a network, either copy the cache of a machine that has it and set "
        + "MOBIFLEET_CACHE to the copy "
        + f"(here it is {cache_dir()}), or run there\n"
        + "  python -m pip download --no-deps --only-binary=:all: "
        + f"--ignore-requires-python -d wheels {first}\n"
        + f"and here\n  mobifleet fetch {asset.name} --from wheels"
    )


class _SourceFailed(Exception):
    """One source did not deliver; `hopeless` when the next one would fail in the same way."""

    def __init__(self, reason: str, hopeless: bool = False):
        super().__init__(reason)
        self.hopeless = hopeless


class _Wheels:
    """The wheels at hand during one fetch: each is downloaded at most once, however many assets it
    holds.
    """

    def __init__(self, scratch: Path, wheels_dir: Path | None):
        self.scratch, self.wheels_dir = scratch, wheels_dir
        self._files: dict[str, Path] = {}

    def get(self, wheel: Wheel, report: Callable[[int, int, str], None]) -> Path:
        if wheel.name not in self._files:
            if self.wheels_dir is not None:
                found = _find_wheel(self.wheels_dir, wheel)
            else:
                found = _download(wheel, self.scratch / wheel.name, report)
            if _sha256(found) != wheel.sha256:
                raise _SourceFailed(f"{found.name} is not the pinned file (its sha256 differs)")
            self._files[wheel.name] = found
        return self._files[wheel.name]


def _find_wheel(folder: Path, wheel: Wheel) -> Path:
    if not folder.is_dir():
        raise AssetError(f"no folder of wheels at {folder.absolute()}")
    canonical = re.sub(r"[-_.]+", "_", wheel.name).lower()
    for file in sorted(folder.glob("*.whl")):
        name, version, *_ = file.name.split("-")
        if re.sub(r"[-_.]+", "_", name).lower() == canonical and version == wheel.version:
            return file
    raise _SourceFailed(f"no such wheel in {folder.absolute()}")


def _download(wheel: Wheel, folder: Path, report: Callable[[int, int, str], None]) -> Path:
    """Run `pip download` for one pinned wheel; report the bytes by watching pip's own temporary
    files grow.
    """
    partial, done = folder / "partial", folder / "done"
    partial.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += [
        "--ignore-requires-python",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += [
        "--progress-bar",
        "off",
        *_resume_option(),
        "-d",
        str(done),
        "-r",
        str(requirements),
    ]
    temporary = {name: str(partial) for name in ("TMPDIR", "TEMP", "TMP")}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **temporary},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        reader = threading.Thread(target=lambda: lines.extend(pip.stdout or ()), daemon=True)
        reader.start()
        try:
            while pip.poll() is None:
                report(
                    min(_size(partial), wheel.bytes),
                    wheel.bytes,
                    f"downloading {wheel.requirement}",
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(0.2)
        except (
            BaseException
        ):  # an interrupted fetch, or a progress callback that raised, must not leave pip running
            pip.kill()
            raise
        reader.join()
    files = list(done.glob("*.whl"))
    if pip.returncode == 0 and len(files) == 1:
        report(wheel.bytes, wheel.bytes, f"downloaded {wheel.requirement}")
        return files[0]
    raise _why_pip_failed("".join(lines))


def _resume_option() -> list[str]:
    """pip 25.1 and later can go on with a download whose connection broke."""
    try:
        release = tuple(int(part) for part in re.findall(r"\d+", metadata.version("pip"))[:2])
    except metadata.PackageNotFoundError:
        return []
    return ["--resume-retries", "5"] if release >= (25, 1) else []


def _why_pip_failed(output: str) -> _SourceFailed:
    if "No module named pip" in output:
        return _SourceFailed("this Python has no pip (run `python -m ensurepip`)", hopeless=True)
    if "DO NOT MATCH THE HASHES" in output:
        return _SourceFailed(
            "the package index served another file than the pinned one (its sha256 differs)"
        )
    errors = [line.strip() for line in output.splitlines() if line.lower().startswith("error:")]
    reason = errors[0] if errors else (output.strip().splitlines() or ["pip said nothing"])[-1]
    unreachable = (
        r"NewConnection|ConnectTimeout|Failed to establish"
        r"|name resolution|getaddrinfo|ProxyError|unreachable"
    )
    if re.search(unreachable, output):
        return _SourceFailed(f"the package index cannot be reached (pip: {reason})", hopeless=True)
    return _SourceFailed(f"pip: {reason}")


def _unpack(asset: Asset, source: Source, wheel_file: Path, scratch: Path) -> None:
    """Copy the asset's files out of a wheel, check each, and rename the finished folder into the
    cache.

    Names inside the archive never become paths: only names from the table are written.
    """
    staging = Path(tempfile.mkdtemp(dir=scratch)) / asset.name
    try:
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(wheel_file))
            if source.archive is not None:
                archive = stack.enter_context(
                    zipfile.ZipFile(stack.enter_context(archive.open(source.archive)))
                )
            for name, (size, sha256) in asset.files.items():
                with _blocks(
                    archive, source.folder, name, size, asset.gathered.get(name)
                ) as packed:
                    _copy_checked(packed, staging / name, size, sha256)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise _SourceFailed(f"{wheel_file.name} is not a whole wheel ({error})") from error
    install(staging, _place(asset))


@contextlib.contextmanager
def _blocks(
    archive: zipfile.ZipFile, folder: str, name: str, size: int, many: Gathered | None
) -> Iterator[Iterator[bytes]]:
    """What a file is to hold, bit by bit: a file of the archive, or `many` of them in one."""
    if many is None:
        with archive.open(f"{folder}/{name}" if folder else name) as packed:
            yield iter(partial(packed.read, 1 << 20), b"")
        return
    found = gathered.members(archive, folder, many.pattern)
    if len(found) != many.count:
        raise _SourceFailed(f"it holds {len(found)} files {many.pattern}, not {many.count}")
    yield gathered.lines(archive, found, folder, size)


def _copy_checked(packed: Iterator[bytes], target: Path, size: int, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, written = hashlib.sha256(), 0
    with target.open("wb") as file:
        for block in packed:
            file.write(block)
            digest.update(block)
            written += len(block)
            if written > size:  # a lying archive cannot fill the disk
                break
    if written != size or digest.hexdigest() != sha256:
        raise _SourceFailed(
            f"{target.name} inside it is not the pinned file (its size or sha256 differs)"
        )


def install(staging: Path, place: Path) -> None:
    """Rename a finished folder into its place; whatever was there is out of the way first, for it
    failed its check.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(Path(tempfile.mkdtemp(prefix="replaced", dir=staging.parent)) / "old")
    try:
        staging.rename(place)
    except OSError:
        if not place.is_dir():  # else another fetch was faster by a moment, with the same files
            raise


def _named(name: str, table_file: Path) -> Asset:
    known = table(table_file)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise AssetError(f"unknown asset {name!r}.{hint} There are: {', '.join(known)}")


def _place(asset: Asset) -> Path:
    return cache_dir() / "assets" / asset.folder


def _is_present(asset: Asset) -> bool:
    place = _place(asset)
    return all(
        (file := place / name).is_file() and file.stat().st_size == size
        for name, (size, _) in asset.files.items()
    )


def _is_verified(asset: Asset) -> bool:
    return _is_present(asset) and all(
        _sha256(_place(asset) / n) == sha256 for n, (_, sha256) in asset.files.items()
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # pip moves its files while we look
                total += os.stat(os.path.join(root, name)).st_size
    return total


@contextlib.contextmanager
def scratch(stale_after_s: float = 86_400) -> Iterator[Path]:
    """A folder beside the cached assets (so that a rename is atomic), gone afterwards.

    What a killed fetch left behind is removed once it is a day old; a younger one may be at work.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    for left in cache_dir().glob(".fetch-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > stale_after_s:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=".fetch-", dir=cache_dir(), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
