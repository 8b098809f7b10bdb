"""Device profiles: what one device can compute, hold and draw, each number with its source.

A profile is a YAML file. Every number in it is a mapping `{value, source, date or version,
conditions, basis}`; `load` turns the file into frozen dataclasses with plain floats and keeps the
sources in `DeviceProfile.provenance`. The unit of speed is the *engine* (chip and software path
together), because on one chip the path moves the rate by up to 40x, more than the chip does. Power
belongs to it too, for a chip in a fast mode draws more: an engine's `compute_w`, of the power mode
that it names, or `power.compute_w` for engines that say nothing.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from inputs.files import FileProblem, read_yaml

PROFILES = Path(__file__).parent / "profiles"
KINDS = ("board", "phone", "sbc", "laptop", "server")
BASES = ("measured", "published", "derived", "estimated", "data-sheet", "recalled")


class ProfileError(ValueError):
    """A profile that does not exist or does not follow the format; the message says where and what
    is allowed.
    """


@dataclass(frozen=True)
class Provenance:
    """Where one number comes from. `basis` is one of `BASES`; `date` or `version` may be empty,
    never both.
    """

    value: float
    source: str
    date: str
    version: str
    conditions: str
    basis: str


@dataclass(frozen=True)
class Power:
    """Power drawn by the whole device in each state, in watts (not above idle), on one engine.

    The radio's is a constant, or, where the optional numbers are known, base + w_per_mbps x rate.
    """

    compute_w: float
    uplink_w: float
    downlink_w: float
    idle_w: float
    uplink_base_w: float | None = None
    uplink_w_per_mbps: float | None = None
    downlink_base_w: float | None = None
    downlink_w_per_mbps: float | None = None


@dataclass(frozen=True)
class Engine:
    """One way of computing on a device: achieved FLOP/s in the long run, fixed seconds per piece of
    work, and its power.

    Rate and power belong together: both are of one power mode, which `power_mode` names ("" where a
    device has but one).
    """

    name: str
    precision: str
    flop_per_s: float
    overhead_s: float
    power: Power
    description: str
    power_mode: str = ""


@dataclass(frozen=True)
class Measurement:
    """One published timing that the profile should reproduce.

    `fitted` rows gave the engine its rate; the others are held out. `bytes_moved` counts the
    weights once per pass.
    """

    workload: str
    engine: str
    flop: float
    bytes_moved: float
    seconds: float
    fitted: bool
    source: str


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device.

    `memory_bytes` is all the RAM, the operating system's share included.
    `memory_bandwidth_bytes_per_s` is the achieved share of the peak. `jitter_cv` is the coefficient
    of variation of one step's time. `sustained_factor` and `sustained_tau_s` describe how the rate
    sinks under continuous load (`devices/thermal.py`). `battery_wh` is None for a device on the
    mains, or of unknown battery. `provenance` maps dotted keys such as `engines.simple.flop_per_s`
    to their source.
    """

    name: str
    title: str
    kind: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    engines: dict[str, Engine] = field(hash=False)
    jitter_cv: float
    sustained_factor: float
    sustained_tau_s: float
    provenance: dict[str, Provenance] = field(hash=False, repr=False)
    measurements: tuple[Measurement, ...] = field(default=(), repr=False)
    battery_wh: float | None = None

    def with_overhead(self, engine: str, overhead_s: float) -> "DeviceProfile":
        """The same device with another fixed time of a piece of work on one engine."""
        changed = replace(self.engine(engine), overhead_s=overhead_s)
        return replace(self, engines={**self.engines, engine: changed})

    def engine(self, name: str) -> Engine:
        """The engine of that name; raises `ProfileError` with the engines that exist."""
        if name not in self.engines:
            raise ProfileError(f"{self.name} has no engine {name!r}{_nearest(name, self.engines)}")
        return self.engines[name]


def names() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name_or_path: str | Path) -> DeviceProfile:
    """The profile of that name, or the one in a YAML file of the user's own.

    A string that ends in `.yaml` or `.yml` is a path. Raises `ProfileError` for an unknown name, an
    unreadable file or a malformed profile.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return _read(path)
    name = str(name_or_path)
    if name not in names():
        hint = _nearest(name, names())
        raise ProfileError(
            f"no device profile {name!r}{hint}; or give the path of a .yaml file of your own"
        )
    return _bundled(name)


@cache
def _bundled(name: str) -> DeviceProfile:
    return _read(PROFILES / f"{name}.yaml")


def _read(path: Path) -> DeviceProfile:
    try:
        data = read_yaml(path)
    except FileProblem as error:
        raise ProfileError(f"device profile {error}") from error
    return _Parser(path).profile(data)


@dataclass
class _Parser:
    """Checks one file key by key; collects the source of every number on its way."""

    path: Path
    provenance: dict[str, Provenance] = field(default_factory=dict)

    def profile(self, data: Any) -> DeviceProfile:
        required = (
            "name",
            "title",
            "kind",
            "memory_bytes",
            "memory_bandwidth_bytes_per_s",
            "engines",
            "power",
        )
        required += ("jitter_cv", "sustained_factor", "sustained_tau_s")
        data = self.mapping(data, "", required, optional=("measurements", "battery_wh"))
        if data["kind"] not in KINDS:
            self.fail("kind", f"found {data['kind']!r}, allowed: {', '.join(KINDS)}")
        engines = self.engines(data["engines"], self.power(data["power"]))
        return DeviceProfile(
            name=self.text(data["name"], "name"),
            title=self.text(data["title"], "title"),
            kind=data["kind"],
            memory_bytes=int(self.number(data["memory_bytes"], "memory_bytes", above=0)),
            memory_bandwidth_bytes_per_s=self.number(
                data["memory_bandwidth_bytes_per_s"], "memory_bandwidth_bytes_per_s", above=0
            ),
            engines=engines,
            jitter_cv=self.number(data["jitter_cv"], "jitter_cv", least=0),
            sustained_factor=self.number(
                data["sustained_factor"], "sustained_factor", above=0, most=1
            ),
            sustained_tau_s=self.number(data["sustained_tau_s"], "sustained_tau_s", least=0),
            provenance=self.provenance,
            measurements=self.measurements(data.get("measurements") or [], engines),
            battery_wh=self.number(data["battery_wh"], "battery_wh", above=0)
            if "battery_wh" in data
            else None,
        )

    def power(self, data: Any) -> dict[str, float]:
        """Idle and radio, which all engines share, and `compute_w` of those engines that say
        nothing of it.
        """
        by_rate = tuple(
            f"{way}_{what}" for way in ("uplink", "downlink") for what in ("base_w", "w_per_mbps")
        )
        data = self.mapping(
            data, "power", ("uplink_w", "downlink_w", "idle_w"), optional=("compute_w", *by_rate)
        )
        for base, slope in (by_rate[:2], by_rate[2:]):
            if (base in data) != (slope in data):
                self.fail("power", f"{base} and {slope} go together: give both, or neither")
        return {key: self.number(data[key], f"power.{key}", least=0) for key in data}

    def engines(self, data: Any, shared: Mapping[str, float]) -> dict[str, Engine]:
        if not isinstance(data, Mapping) or not data:
            self.fail("engines", "needs at least one engine, for example `simple`")
        engines = {}
        for name, entry in data.items():
            where = f"engines.{name}"
            required = ("description", "precision", "flop_per_s", "overhead_s")
            entry = self.mapping(entry, where, required, optional=("compute_w", "power_mode"))
            power = dict(shared)
            if "compute_w" in entry:
                power["compute_w"] = self.number(entry["compute_w"], f"{where}.compute_w", least=0)
            if "compute_w" not in power:
                self.fail(
                    f"{where}.compute_w",
                    "is missing, and so is power.compute_w, which would stand in for it",
                )
            engines[str(name)] = Engine(
                name=str(name),
                precision=self.text(entry["precision"], f"{where}.precision"),
                flop_per_s=self.number(entry["flop_per_s"], f"{where}.flop_per_s", above=0),
                overhead_s=self.number(entry["overhead_s"], f"{where}.overhead_s", least=0),
                power=Power(**power),
                description=self.text(entry["description"], f"{where}.description"),
                power_mode=self.text(entry["power_mode"], f"{where}.power_mode")
                if "power_mode" in entry
                else "",
            )
        return engines

    def measurements(self, data: Any, engines: Mapping[str, Engine]) -> tuple[Measurement, ...]:
        if not isinstance(data, list):
            self.fail("measurements", f"found {data!r}, allowed: a list of measured rows")
        rows = []
        for i, entry in enumerate(data):
            where = f"measurements[{i}]"
            entry = self.mapping(
                entry,
                where,
                ("workload", "engine", "flop", "bytes_moved", "seconds", "fitted", "source"),
            )
            if not isinstance(entry["engine"], str) or entry["engine"] not in engines:
                self.fail(
                    f"{where}.engine",
                    f"found {entry['engine']!r}{_nearest(str(entry['engine']), engines)}",
                )
            if not isinstance(entry["fitted"], bool):
                self.fail(f"{where}.fitted", f"found {entry['fitted']!r}, allowed: true, false")
            rows.append(
                Measurement(
                    workload=self.text(entry["workload"], f"{where}.workload"),
                    engine=entry["engine"],
                    flop=self.amount(entry["flop"], f"{where}.flop", above=0),
                    bytes_moved=self.amount(entry["bytes_moved"], f"{where}.bytes_moved", least=0),
                    seconds=self.amount(entry["seconds"], f"{where}.seconds", above=0),
                    fitted=entry["fitted"],
                    source=self.text(entry["source"], f"{where}.source"),
                )
            )
        return tuple(rows)

    def number(self, data: Any, where: str, **limits: float) -> float:
        """One number with its source; the source goes to `provenance`."""
        data = self.mapping(
            data, where, ("value", "source", "conditions", "basis"), optional=("date", "version")
        )
        if not data.get("date") and not data.get("version"):
            self.fail(where, "needs `date` or `version`, so that the source can be found again")
        if data["basis"] not in BASES:
            self.fail(f"{where}.basis", f"found {data['basis']!r}, allowed: {', '.join(BASES)}")
        value = self.amount(data["value"], f"{where}.value", **limits)
        self.provenance[where] = Provenance(
            value=value,
            source=self.text(data["source"], f"{where}.source"),
            date=str(data.get("date") or ""),
            version=str(data.get("version") or ""),
            conditions=self.text(data["conditions"], f"{where}.conditions"),
            basis=data["basis"],
        )
        return value

    def amount(
        self, value: Any, where: str, above=-math.inf, least=-math.inf, most=math.inf
    ) -> float:
        """A finite number within limits. PyYAML reads `1e9` as a string, hence the conversion."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and above < number and least <= number <= most):
            allowed = "a number"
            allowed += f" above {above:g}" if above > -math.inf else ""
            allowed += f" of at least {least:g}" if least > -math.inf else ""
            allowed += f" up to {most:g}" if most < math.inf else ""
            self.fail(where, f"found {value!r}, allowed: {allowed}")
        return number

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fail(where, f"found {value!r}, allowed: a line of text")
        return value

    def mapping(
        self, data: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()
    ) -> Mapping:
        required, allowed = tuple(required), (*required, *optional)
        if not isinstance(data, Mapping):
            self.fail(
                where, f"found {data!r}, allowed: a mapping with the keys {', '.join(allowed)}"
            )
        for key in data:
            if key not in allowed:
                self.fail(
                    f"{where}.{key}".lstrip("."),
                    f"is not a key of a profile{_nearest(str(key), allowed)}",
                )
        for key in required:
            if key not in data:
                self.fail(
                    f"{where}.{key}".lstrip("."),
                    f"is missing; the keys here are {', '.join(allowed)}",
                )
        return data

    def fail(self, where: str, what: str):
        raise ProfileError(f"{self.path}: {where or 'the file'}: {what}")


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"
