"""Access links by name: how fast, how far, and where each number comes from.

A profile is a YAML file. Every number stands with its source:

    name: wifi-home
    up_bps: {value: 26900000, basis: measured, source: ..., date: ..., conditions: ...}

in SI base units (bit/s, s). `latency_s` is one way; `overhead_s`, 0 unless given, is paid once a
transfer (connection set-up). `basis` is `measured`, `derived` (a formula over measurements, which
`conditions` gives), `published` (a value that a paper or its code uses) or `estimated`.

What may be left out says how the link varies and what TCP makes of it: `cv` and `lag1`, the
coefficient of variation of the throughput of one second and its correlation with the next second's;
`loss`, the share of packets that do not arrive; `window_bytes`, the most that one transfer has
under way; `initial_window_bytes`, what it sends in its first round trip.

A file of one's own may say `extends: lte`, and `basis: own`, under which numbers stand plain or
with a unit (`inputs/profiles.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

from inputs.profiles import OWN, hint, quantity, read_layered
from inputs.shipped import Shipped, is_file
from network.errors import NetworkError

PROFILES = Shipped(Path(__file__).parent / "profiles", "mobifleet.links")
BASES = ("measured", "derived", "published", "estimated", OWN)
REQUIRED = ("up_bps", "down_bps", "latency_s")
OPTIONAL = ("overhead_s", "cv", "lag1", "loss", "window_bytes", "initial_window_bytes")
NUMBERS = REQUIRED + OPTIONAL


class UnknownProfileError(NetworkError):
    """No link profile has this name."""


@dataclass(frozen=True)
class LinkProfile:
    """One access link: rates in bit/s, one-way latency and per-transfer overhead in seconds.

    By default it is steady (`cv` 0), loses nothing, and has windows that never bind. `provenance`
    maps each number that was read from a file to its source, date, conditions and basis. Raises
    NetworkError for a rate or window that is not positive, a time or `cv` below 0, a `lag1` or
    `loss` outside [0, 1); only windows may be infinite.
    """

    name: str
    up_bps: float
    down_bps: float
    latency_s: float
    overhead_s: float = 0.0
    cv: float = 0.0
    lag1: float = 0.0
    loss: float = 0.0
    window_bytes: float = inf
    initial_window_bytes: float = inf
    provenance: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        for key in NUMBERS:
            if what := _out_of_bounds(key, getattr(self, key)):
                raise NetworkError(f"link profile {self.name!r}: {key} {what}")

    @property
    def rtt_s(self) -> float:
        """The round trip: twice the one-way latency, s."""
        return 2 * self.latency_s


def names() -> list[str]:
    """The shipped profiles, in alphabetical order, then those of installed packages."""
    return [*PROFILES]


def load(name_or_path: str | Path, folder: Path = Path()) -> LinkProfile:
    """A shipped profile by name, or one of your own by the path of its .yaml file.

    A relative path is looked for below `folder` and then below the working directory. Raises
    UnknownProfileError with the nearest name, FileProblem for a file that cannot be read, or
    NetworkError with a line for each mistake of a file.
    """
    name = str(name_or_path)
    if not is_file(name) and name not in PROFILES:
        near = get_close_matches(name.lower(), names(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else "give a name or the path of a .yaml file."
        raise UnknownProfileError(
            f"no link profile is called {name!r}: {hint} Known: {', '.join(names())}"
        )
    return _read(PROFILES.file(name, folder))[0]


def files(name: str, folder: Path = Path()) -> list[Path]:
    """The files that a profile's numbers come from: its own first, then those that it extends; its
    own alone where it cannot be read.
    """
    return PROFILES.files(name, folder, _read)


def _read(path: Path) -> tuple[LinkProfile, list[Path]]:
    said = read_layered(path, PROFILES, NUMBERS, NetworkError)
    problems: list[tuple[tuple[str, ...], str]] = []
    values, provenance = _parsed(said.data, problems)
    said.refuse(problems, NetworkError)
    return LinkProfile(name=said.data["name"], **values, provenance=provenance), said.files


def _parsed(
    document: Any, problems: list[tuple[tuple[str, ...], str]]
) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """The numbers and their sources; what is wrong goes to the problems."""
    values: dict[str, float] = {}
    provenance: dict[str, dict[str, str]] = {}
    if not isinstance(document, Mapping) or not isinstance(document.get("name"), str):
        what = f"a link profile is a mapping with a name; see the shipped ones in {PROFILES.folder}"
        problems.append(((), what))
        document = document if isinstance(document, Mapping) else {}
    for key in document:
        if key not in ("name", *NUMBERS):
            what = f"unknown field {str(key)!r}; allowed: name, {', '.join(NUMBERS)}"
            problems.append(((str(key),), what))
    for key in NUMBERS:
        entry = document.get(key)
        if entry is None and key in OPTIONAL:
            continue
        if not isinstance(entry, Mapping) or "value" not in entry or not entry.get("source"):
            what = (
                "must be given as {value: ..., source: ..., basis: ...}, or plain in a file that "
                f"says `basis: own`, not {str(entry)[:80]!r}"
            )
        elif entry.get("basis") not in BASES:
            what = f"basis must be one of {', '.join(BASES)}, not {entry.get('basis')!r}"
        else:
            what = _number(entry["value"], key, values)
            provenance[key] = {k: str(v) for k, v in entry.items() if k != "value"}
        if what:
            problems.append(((key,), what))
    return values, provenance


def _number(value: Any, key: str, values: dict[str, float]) -> str:
    """Put the number to the values; what is wrong with it, or nothing."""
    try:
        values[key] = quantity(value, key)
    except ValueError as error:
        return f"value must be a number, not {str(value)[:40]!r}{hint(error)}"
    return _out_of_bounds(key, values[key])


def _out_of_bounds(key: str, value: float) -> str:
    if key.endswith("window_bytes"):
        good, bound = value > 0, "> 0 bytes"
    elif key.endswith("_bps"):
        good, bound = 0 < value < inf, "finite and > 0 bit/s"
    elif key in ("lag1", "loss"):
        good, bound = 0 <= value < 1, ">= 0 and below 1"
    else:
        good = 0 <= value < inf
        bound = "finite and >= 0" + (" s" if key.endswith("_s") else "")
    return "" if good else f"must be {bound}, not {value}"
