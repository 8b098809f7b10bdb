"""Whose fault an error is: a user's, who is told in one message what to do, or mobifleet's own,
which is to be reported.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from inputs.files import is_ours

USERS, OURS = 2, 70  # exit codes; 70 is sysexits.h's word for a fault of the program
TRACEBACK = "MOBIFLEET_TRACEBACK"  # set it to see where a fault of ours comes from


class UserError(Exception):
    """A mistake of the user's that has no error class of its own."""


def of_the_user(error: Exception) -> str | None:
    """The message of an error that a user, or his machine, caused; None for a fault of ours."""
    from learning.backbones.assets import AssetError

    if hasattr(
        error, "format_message"
    ):  # click's own errors, of whichever copy of click typer uses
        return error.format_message()
    if isinstance(error, OSError):
        return f"{error.filename or 'the disk'}: {error.strerror or error}"
    if type(error).__name__ == "SafetensorError":  # how safetensors words a full or broken disk
        return f"the disk: {error}"
    if isinstance(error, MemoryError):
        return (
            f"this machine has too little memory for it ({error or 'no more could be had'}): make "
            "the scenario smaller"
        )
    return str(error) if isinstance(error, UserError | AssetError) or is_ours(error) else None


def ours(error: Exception) -> str:
    """What to say of a fault of ours: what it is, where, and how to report it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "/".join(Path(frame.filename).parts[-2:])
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"this is a fault of mobifleet's, not yours: {what} (mobifleet {version()}, "
        f"{place}:{frame.lineno})\n"
        f"please report this line with the scenario and the files that it names; {TRACEBACK}=1 "
        "shows the whole traceback"
    )


def version() -> str:
    """The installed version of mobifleet."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mobifleet")
    except PackageNotFoundError:
        return "unknown"
