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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from pathlib import Path

from inputs.files import read_yaml
from network.errors import NetworkError

PROFILES = Path(__file__).parent / "profiles"
MOST_BYTES = 2**20  # of a profile
BASES = ("measured", "derived", "published", "estimated")
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

    def __post_init__(self):
        for key in NUMBERS:
            value = getattr(self, key)
            if key.endswith("window_bytes"):
                good, bound = value > 0, "> 0 bytes"
            elif key.endswith("_bps"):
                good, bound = 0 < value < inf, "finite and > 0 bit/s"
            elif key in ("lag1", "loss"):
                good, bound = 0 <= value < 1, ">= 0 and below 1"
            else:
                good, bound = (
                    0 <= value < inf,
                    "finite and >= 0" + (" s" if key.endswith("_s") else ""),
                )
            if not good:
                raise NetworkError(
                    f"link profile {self.name!r}: {key} must be {bound}, not {value}"
                )

    @property
    def rtt_s(self) -> float:
        """The round trip: twice the one-way latency, s."""
        return 2 * self.latency_s


def names() -> list[str]:
    """The shipped profiles, in alphabetical order."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name_or_path: str | Path) -> LinkProfile:
    """A shipped profile by name, or one of your own by the path of its .yaml file.

    Raises UnknownProfileError with the nearest name, FileProblem for a file that cannot be read, or
    NetworkError with file and field for one that says something else.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        name, known = str(name_or_path), names()
        if name not in known:
            near = get_close_matches(name.lower(), known, n=1, cutoff=0.3)
            hint = (
                f"did you mean {near[0]!r}?" if near else "give a name or the path of a .yaml file."
            )
            raise UnknownProfileError(
                f"no link profile is called {name!r}: {hint} Known: {', '.join(known)}"
            )
        path = PROFILES / f"{name}.yaml"
    return _parse(read_yaml(path, MOST_BYTES), path)


def _parse(document, path: Path) -> LinkProfile:
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise NetworkError(
            f"{path}: a link profile is a mapping with a name; see the shipped ones in {PROFILES}"
        )
    unknown = set(document) - {"name", *NUMBERS}
    if unknown:
        raise NetworkError(
            f"{path}: unknown field {sorted(map(str, unknown))[0]!r}; allowed: name, "
            f"{', '.join(NUMBERS)}"
        )
    values, provenance = {}, {}
    for key in NUMBERS:
        entry = document.get(key)
        if entry is None and key in OPTIONAL:
            continue
        if not isinstance(entry, dict) or "value" not in entry or not entry.get("source"):
            raise NetworkError(
                f"{path}: {key} must be given as {{value: ..., source: ..., basis: ...}}, not "
                f"{entry!r}"
            )
        if entry.get("basis") not in BASES:
            raise NetworkError(
                f"{path}: {key}: basis must be one of {', '.join(BASES)}, not "
                f"{entry.get('basis')!r}"
            )
        try:
            values[key] = float(entry["value"])
        except (TypeError, ValueError, OverflowError):
            raise NetworkError(
                f"{path}: {key}: value must be a number, not {str(entry['value'])[:40]!r}"
            ) from None
        provenance[key] = {k: str(v) for k, v in entry.items() if k != "value"}
    return LinkProfile(name=document["name"], **values, provenance=provenance)
