"""From a profile's YAML file to a `DeviceProfile`: all mistakes of a file at once, each with its
line.

A file that says `basis: own` may leave out whatever a device of its kind can lend: numbers that are
then called estimated, and listed in `DeviceProfile.lent`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.hardware import (
    BASES,
    KINDS,
    DeviceProfile,
    Engine,
    Measurement,
    Power,
    ProfileError,
    Provenance,
    nearest,
)
from inputs.profiles import hint, merged, quantity, read_layered
from inputs.shipped import Shipped

PROFILES = Shipped(Path(__file__).parent / "profiles", "mobifleet.devices")
TYPICAL = {
    "board": "jetson-tx2",
    "phone": "phone-2024-flagship",
    "sbc": "raspberry-pi-5",
    "laptop": "laptop-ryzen-8945hs",
    "server": "a100",
}
"""Kind -> the shipped profile that lends what a file of one's own leaves out."""
REQUIRED = (
    *("name", "title", "kind", "memory_bytes", "memory_bandwidth_bytes_per_s", "engines", "power"),
    *("jitter_cv", "sustained_factor", "sustained_tau_s"),
)
RADIO = tuple(
    f"{way}_{what}" for way in ("uplink", "downlink") for what in ("base_w", "w_per_mbps")
)
POWERS = ("uplink_w", "downlink_w", "idle_w")
ENGINE = ("description", "precision", "flop_per_s", "overhead_s")
NUMBERS = {
    *("memory_bytes", "memory_bandwidth_bytes_per_s", "jitter_cv", "sustained_factor"),
    *("sustained_tau_s", "battery_wh", "flop_per_s", "overhead_s", "compute_w", *POWERS, *RADIO),
}
NOT_INHERITED = {"name", "title", "measurements"}  # a parent's rows are of the parent's rates
DEFAULT_ENGINE = "simple"

Where = tuple[str | int, ...]


def read(path: Path) -> tuple[DeviceProfile, list[Path]]:
    """The profile in the file, and every file that it takes numbers from, its own first.

    Raises ProfileError with all that is wrong with the file, FileProblem for one that is no YAML.
    """
    said = read_layered(path, PROFILES, NUMBERS, ProfileError, _laid_over, NOT_INHERITED)
    data = said.data
    files = [*said.files]
    parser = _Parser()
    if isinstance(data, Mapping) and (len(files) > 1 or said.own):
        data = {"title": str(data.get("name") or "?"), **data}
    if said.own and isinstance(data, Mapping):
        data, lenders = _with_what_is_lent(data, files[-1], parser)
        files += [file for file in lenders if file not in files]
    profile = parser.profile(data)
    said.refuse(parser.problems, ProfileError)
    return profile, files


def _laid_over(child: Any, parent: Any) -> Any:
    """The child over the profile that it extends.

    What the child says of all counts for all: its `power.compute_w` takes the place of the
    parent's engines' own, its `uplink_w` that of a parent's power by rate.
    """
    if not (isinstance(child, Mapping) and isinstance(parent, Mapping)):
        return child
    parent, power = dict(parent), child.get("power")
    if isinstance(power, Mapping) and isinstance(parent.get("power"), Mapping):
        outdated = {
            f"{way}_{what}"
            for way in ("uplink", "downlink")
            if f"{way}_w" in power
            for what in ("base_w", "w_per_mbps")
        }
        parent["power"] = {k: v for k, v in parent["power"].items() if k not in outdated}
        if "compute_w" in power and isinstance(parent.get("engines"), Mapping):
            parent["engines"] = {
                name: {key: value for key, value in engine.items() if key != "compute_w"}
                for name, engine in parent["engines"].items()
            }
    return merged(child, parent)


# --- what a file of one's own may leave out


def _with_what_is_lent(
    data: Mapping[str, Any], root: Path, parser: _Parser
) -> tuple[dict[str, Any], list[Path]]:
    """The data with what is lent to it, and the file that this comes from, if there is any.

    The lender is the shipped profile that is extended, or the typical one of the kind.
    """
    data = {"kind": "phone", **data}
    kind = data["kind"]
    typical = TYPICAL.get(kind) if isinstance(kind, str) else None
    name = root.stem if root.parent == PROFILES.folder else typical
    if name is None:
        return data, []  # the kind is wrong, as the parser says
    whole = read_layered(PROFILES[name], PROFILES, NUMBERS, ProfileError).data

    def lent(where: Where, entry: Mapping[str, Any]) -> dict[str, Any]:
        parser.lent.append(".".join(map(str, where)))
        why = f"not said: that of {name} ({entry['conditions']})"
        source = f"profile {name}: {entry['source']}"
        return {**entry, "source": source, "conditions": why, "basis": "estimated"}

    for key in ("memory_bandwidth_bytes_per_s", "jitter_cv", "sustained_factor", "sustained_tau_s"):
        if key not in data:
            data[key] = lent((key,), whole[key])
    if "battery_wh" not in data and "battery_wh" in whole:
        data["battery_wh"] = lent(("battery_wh",), whole["battery_wh"])
    power = data.get("power", {})
    if isinstance(power, Mapping):
        said = {way for way in ("uplink", "downlink") if f"{way}_w" in power}
        missing = [key for key in POWERS if key not in power]
        missing += [
            key for key in RADIO if key in whole["power"] and key.partition("_")[0] not in said
        ]
        data["power"] = dict(power)
        for key in missing:
            if key not in power:
                data["power"][key] = lent(("power", key), whole["power"][key])
    engines = data.get("engines")
    if isinstance(engines, Mapping):
        data["engines"] = {
            engine: _whole_engine(engine, entry, data, whole, lent)
            if isinstance(entry, Mapping)
            else entry
            for engine, entry in engines.items()
        }
    if parser.lent:
        parser.lender = name
    return data, [PROFILES[name]] if parser.lent else []


def _whole_engine(
    engine: Any,
    entry: Mapping[str, Any],
    data: Mapping[str, Any],
    whole: Mapping[str, Any],
    lent: Any,
) -> dict[str, Any]:
    """An engine with overhead and power of the lender's engine of that name, or its `simple`."""
    theirs = whole["engines"].get(engine) or whole["engines"].get(DEFAULT_ENGINE)
    theirs = theirs or next(iter(whole["engines"].values()))
    made = {"description": "as its owner says", "precision": "float32", **entry}
    if "overhead_s" not in made:
        made["overhead_s"] = lent(("engines", engine, "overhead_s"), theirs["overhead_s"])
    power = data.get("power")
    if "compute_w" not in made and not (isinstance(power, Mapping) and "compute_w" in power):
        compute_w = theirs.get("compute_w") or whole["power"]["compute_w"]
        made["compute_w"] = lent(("engines", engine, "compute_w"), compute_w)
    return made


# --- key by key


@dataclass
class _Parser:
    """Checks a profile key by key; collects what is wrong, and the source of every number."""

    problems: list[tuple[Where, str]] = field(default_factory=list)
    provenance: dict[str, Provenance] = field(default_factory=dict)
    lent: list[str] = field(default_factory=list)
    lender: str = ""

    def profile(self, data: Any) -> DeviceProfile:
        data = self.mapping(data, (), REQUIRED, optional=("measurements", "battery_wh"))
        if "kind" in data and data["kind"] not in KINDS:
            self.fail(("kind",), f"found {data['kind']!r}, allowed: {', '.join(KINDS)}")
        power = self.power(data["power"]) if "power" in data else None
        engines = self.engines(data["engines"], power) if "engines" in data else {}
        memory_bytes = self.number(data, (), "memory_bytes", above=0)
        return DeviceProfile(
            name=self.text(data, (), "name"),
            title=self.text(data, (), "title"),
            kind=data.get("kind", ""),
            memory_bytes=int(memory_bytes) if math.isfinite(memory_bytes) else 0,
            memory_bandwidth_bytes_per_s=self.number(
                data, (), "memory_bandwidth_bytes_per_s", above=0
            ),
            engines=engines,
            jitter_cv=self.number(data, (), "jitter_cv", least=0),
            sustained_factor=self.number(data, (), "sustained_factor", above=0, most=1),
            sustained_tau_s=self.number(data, (), "sustained_tau_s", least=0),
            provenance=self.provenance,
            measurements=self.measurements(data.get("measurements") or [], engines),
            battery_wh=self.number(data, (), "battery_wh", above=0)
            if "battery_wh" in data
            else None,
            lent=tuple(self.lent),
            lender=self.lender,
        )

    def power(self, data: Any) -> dict[str, float] | None:
        """Idle and radio, which all engines share, and `compute_w` of those engines that say
        nothing of it; None where it is no mapping.
        """
        where = ("power",)
        data = self.mapping(data, where, POWERS, optional=("compute_w", *RADIO))
        for base, slope in (RADIO[:2], RADIO[2:]):
            if (base in data) != (slope in data):
                self.fail(where, f"{base} and {slope} go together: give both, or neither")
        return {key: self.number(data, where, key, least=0) for key in data} if data else None

    def engines(self, data: Any, shared: Mapping[str, float] | None) -> dict[str, Engine]:
        if not isinstance(data, Mapping) or not data:
            self.fail(("engines",), "needs at least one engine, for example `simple`")
            return {}
        engines = {}
        for name, entry in data.items():
            where = ("engines", str(name))
            entry = self.mapping(entry, where, ENGINE, optional=("compute_w", "power_mode"))
            power = dict(shared or {})
            if "compute_w" in entry:
                power["compute_w"] = self.number(entry, where, "compute_w", least=0)
            if entry and shared is not None and "compute_w" not in power:
                self.fail(
                    (*where, "compute_w"),
                    "is missing, and so is power.compute_w, which would stand in for it",
                )
            engines[str(name)] = Engine(
                name=str(name),
                precision=self.text(entry, where, "precision"),
                flop_per_s=self.number(entry, where, "flop_per_s", above=0),
                overhead_s=self.number(entry, where, "overhead_s", least=0),
                power=Power(**dict.fromkeys((*POWERS, "compute_w"), math.nan) | power),
                description=self.text(entry, where, "description"),
                power_mode=self.text(entry, where, "power_mode") if "power_mode" in entry else "",
            )
        return engines

    def measurements(self, data: Any, engines: Mapping[str, Engine]) -> tuple[Measurement, ...]:
        if not isinstance(data, list):
            self.fail(("measurements",), f"found {data!r}, allowed: a list of measured rows")
            return ()
        rows = []
        keys = ("workload", "engine", "flop", "bytes_moved", "seconds", "fitted", "source")
        for i, entry in enumerate(data):
            where: Where = ("measurements", i)
            entry = self.mapping(entry, where, keys)
            engine, fitted = entry.get("engine"), entry.get("fitted")
            if "engine" in entry and not (isinstance(engine, str) and engine in engines):
                self.fail((*where, "engine"), f"found {engine!r}{nearest(str(engine), engines)}")
            if "fitted" in entry and not isinstance(fitted, bool):
                self.fail((*where, "fitted"), f"found {fitted!r}, allowed: true, false")
            rows.append(
                Measurement(
                    workload=self.text(entry, where, "workload"),
                    engine=str(engine),
                    flop=self.amount(entry, where, "flop", above=0),
                    bytes_moved=self.amount(entry, where, "bytes_moved", least=0),
                    seconds=self.amount(entry, where, "seconds", above=0),
                    fitted=bool(fitted),
                    source=self.text(entry, where, "source"),
                )
            )
        return tuple(rows)

    def number(self, data: Mapping[str, Any], where: Where, key: str, **limits: float) -> float:
        """One number with its source, which goes to `provenance`; NaN where something is wrong."""
        if key not in data:
            return math.nan  # said by whoever requires it
        where = (*where, key)
        entry = self.mapping(
            data[key],
            where,
            ("value", "source", "conditions", "basis"),
            optional=("date", "version"),
            plain="; plain numbers are for files that say `basis: own` at their top",
        )
        if not entry:
            return math.nan
        if not entry.get("date") and not entry.get("version"):
            self.fail(where, "needs `date` or `version`, so that the source can be found again")
        if "basis" in entry and entry["basis"] not in BASES:
            self.fail((*where, "basis"), f"found {entry['basis']!r}, allowed: {', '.join(BASES)}")
        value = self.amount(entry, where, "value", key, **limits)
        self.provenance[".".join(map(str, where))] = Provenance(
            value=value,
            source=self.text(entry, where, "source"),
            date=str(entry.get("date") or ""),
            version=str(entry.get("version") or ""),
            conditions=self.text(entry, where, "conditions"),
            basis=str(entry.get("basis")),
        )
        return value

    def amount(
        self,
        data: Mapping[str, Any],
        where: Where,
        key: str,
        unit_of: str = "",
        above: float = -math.inf,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> float:
        """A finite number within limits, or a text with the unit that the key `unit_of` names."""
        if key not in data:
            return math.nan
        value, more = data[key], ""
        try:
            number = quantity(value, unit_of)
        except ValueError as error:
            number, more = math.nan, hint(error)
        if not (math.isfinite(number) and above < number and least <= number <= most):
            allowed = "a number"
            allowed += f" above {above:g}" if above > -math.inf else ""
            allowed += f" of at least {least:g}" if least > -math.inf else ""
            allowed += f" up to {most:g}" if most < math.inf else ""
            self.fail((*where, key), f"found {_short(value)}, allowed: {allowed}{more}")
            return math.nan
        return number

    def text(self, data: Mapping[str, Any], where: Where, key: str) -> str:
        if key not in data:
            return ""
        value = data[key]
        if not isinstance(value, str) or not value.strip():
            self.fail((*where, key), f"found {_short(value)}, allowed: a line of text")
        return str(value)

    def mapping(
        self,
        data: Any,
        where: Where,
        required: Iterable[str],
        optional: Iterable[str] = (),
        plain: str = "",
    ) -> Mapping[str, Any]:
        """The mapping without keys that are none; empty where it is no mapping."""
        required, allowed = tuple(required), (*required, *optional)
        if not isinstance(data, Mapping):
            keys = ", ".join(allowed)
            self.fail(
                where, f"found {_short(data)}, allowed: a mapping with the keys {keys}{plain}"
            )
            return {}
        for key in data:
            if key not in allowed:
                self.fail(
                    (*where, str(key)), f"is not a key of a profile{nearest(str(key), allowed)}"
                )
        if missing := [key for key in required if key not in data]:
            others = f" (and so is {', '.join(missing[1:])})" if missing[1:] else ""
            self.fail(
                (*where, missing[0]),
                f"is missing{others}; the keys here are {', '.join(allowed)}",
            )
        return {key: value for key, value in data.items() if key in allowed}

    def fail(self, where: Where, what: str) -> None:
        self.problems.append((where, what))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
