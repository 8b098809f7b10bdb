"""Files of a user's that hide packages of ours: Python takes the first `network` on its way,
whoever's it is.

A script's own folder, or the working directory under `python -m`, comes before whatever is
installed. This is seen here, before anything of ours is imported, and said by the file's name;
else it would be an ImportError from our depths.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("inputs", "learning", "devices", "network", "sim")
HOME = Path(__file__).resolve().parents[1]
"""Where this package lies, and so must the others."""


def hidden() -> tuple[str, Path] | None:
    """The first package of ours that Python would take from elsewhere, and from where; None where
    all are ours.
    """
    for name in PACKAGES:
        if (place := _place(name)) is not None and not place.is_relative_to(HOME / name):
            return name, place
    return None


def _place(name: str) -> Path | None:
    """The file that `import name` reads, or has read; None where there is none or it is no file."""
    module = sys.modules.get(name)
    try:
        spec = find_spec(name) if module is None else module.__spec__
    except (ImportError, ValueError):
        return None
    origin = getattr(module, "__file__", None) or (spec.origin if spec else None)
    return Path(origin).resolve() if origin and Path(origin).exists() else None


def explained(name: str, place: Path) -> str:
    """What to say of it, with what to do."""
    own = place.parent if place.name == "__init__.py" else place
    return (
        f"{own} hides mobifleet's own package {name!r}: rename it, or move it out of the folder "
        "that Python starts in"
    )


def require_own_packages() -> None:
    """Raise ImportError that names the file which hides one of our packages, if there is one."""
    if (found := hidden()) is not None:
        raise ImportError(explained(*found), name=found[0], path=str(found[1]))
