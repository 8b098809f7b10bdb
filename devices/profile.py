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
from inputs.shipped import is_file


def names() -> list[str]:
    """Names of the profiles that come with the package, sorted, then of those that installed
    packages bring.
    """
    return [*PROFILES]


def load(name_or_path: str | Path, folder: Path = Path()) -> DeviceProfile:
    """The profile of that name, or the one in a YAML file of the user's own.

    A string that ends in `.yaml` or `.yml` is a path, looked for below `folder` and then below the
    working directory. Raises `ProfileError` for an unknown name, an unreadable file or a malformed
    profile.
    """
    name = str(name_or_path)
    if is_file(name):
        return _read(PROFILES.file(name, folder))[0]
    if name not in PROFILES:
        hint = nearest(name, PROFILES)
        raise ProfileError(
            f"no device profile {name!r}{hint}; or give the path of a .yaml file of your own"
        )
    return _named(PROFILES[name])


def files(name: str, folder: Path = Path()) -> list[Path]:
    """The files that a profile's numbers come from: its own first, then those that it extends or
    that lend to it; its own alone where it cannot be read.
    """
    return PROFILES.files(name, folder, _read)


@cache
def _named(path: Path) -> DeviceProfile:
    return _read(path)[0]


def _read(path: Path) -> tuple[DeviceProfile, list[Path]]:
    try:
        return read(path)
    except FileProblem as error:
        raise ProfileError(f"device profile {error}") from error
