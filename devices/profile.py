"""Device profiles by name or file: what one device can compute, hold and draw, each number with its
source.

A profile is a YAML file. Every number in it is a mapping `{value, source, date or version,
conditions, basis}`; `load` turns the file into the frozen dataclasses of `hardware.py`. A file of
one's own may extend another profile and, under `basis: own`, give plain numbers and leave out what
a device of its kind can lend (`profile_file.py` reads it).
"""

from functools import cache
from pathlib import Path

from devices.hardware import DeviceProfile, ProfileError, nearest
from devices.profile_file import PROFILES, read
from inputs.files import FileProblem
from inputs.profiles import is_file, place


def names() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name_or_path: str | Path, folder: Path = Path()) -> DeviceProfile:
    """The profile of that name, or the one in a YAML file of the user's own.

    A string that ends in `.yaml` or `.yml` is a path, looked for below `folder` and then below the
    working directory. Raises `ProfileError` for an unknown name, an unreadable file or a malformed
    profile.
    """
    name = str(name_or_path)
    if is_file(name):
        return _read(name, folder)[0]
    if name not in names():
        hint = nearest(name, names())
        raise ProfileError(
            f"no device profile {name!r}{hint}; or give the path of a .yaml file of your own"
        )
    return _bundled(name)


def files(name: str, folder: Path = Path()) -> list[Path]:
    """The files that a profile's numbers come from: its own first, then those that it extends or
    that lend to it; its own alone where it cannot be read.
    """
    try:
        return [PROFILES / f"{name}.yaml"] if not is_file(name) else _read(name, folder)[1]
    except ProfileError:  # whoever reads it says so
        return [place(name, folder)]


@cache
def _bundled(name: str) -> DeviceProfile:
    return _read(PROFILES / f"{name}.yaml", Path())[0]


def _read(path: str | Path, folder: Path) -> tuple[DeviceProfile, list[Path]]:
    try:
        return read(place(path, folder))
    except FileProblem as error:
        raise ProfileError(f"device profile {error}") from error
