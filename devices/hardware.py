"""What one device can compute, hold and draw: frozen dataclasses of plain floats, each number with
its source in `DeviceProfile.provenance`.

The unit of speed is the *engine* (chip and software path together), because on one chip the path
moves the rate by up to 40x, more than the chip does. Power belongs to it too, for a chip in a fast
mode draws more: an engine's `compute_w`, of the power mode that it names, or `power.compute_w` for
engines that say nothing.
"""

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from inputs.profiles import OWN

PLAUSIBLE = (1e5, 1e18)  # FLOP/s, bytes/s and bytes, from a microcontroller to a rack
MANY = 5  # numbers of one part of a profile; beyond that they are counted, not listed
KINDS = ("board", "phone", "sbc", "laptop", "server")
BASES = ("measured", "published", "derived", "estimated", "data-sheet", "recalled", OWN)


class ProfileError(ValueError):
    """A profile that does not exist or does not follow the format; one line for each mistake, with
    where it stands and what is allowed.
    """

    @property
    def problems(self) -> list[str]:
        """The lines."""
        return str(self).splitlines()


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
    to their source. `lent` are those that the file leaves out and `lender` lends.
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
    lent: tuple[str, ...] = ()
    lender: str = ""

    def with_overhead(self, engine: str, overhead_s: float) -> "DeviceProfile":
        """The same device with another fixed time of a piece of work on one engine."""
        changed = replace(self.engine(engine), overhead_s=overhead_s)
        return replace(self, engines={**self.engines, engine: changed})

    @property
    def estimates(self) -> str:
        """What whoever reads a result has to know of numbers that nobody gave; "" where all are."""
        groups = Counter(key.rpartition(".")[0] for key in self.lent)
        alone = [key for key in self.lent if groups[key.rpartition(".")[0]] <= MANY]
        several = [f"{count} numbers of {key}" for key, count in groups.items() if count > MANY]
        left_out = ", ".join([*alone, *several])
        lender = f"taken from {self.lender}, as estimates"
        return f"the profile {self.name} leaves out {left_out}: {lender}" if left_out else ""

    @property
    def remarks(self) -> list[str]:
        """`estimates`, and rates and sizes that no device has: those of another unit."""
        stated = {
            "memory_bytes": self.memory_bytes,
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s,
            **{f"engines.{name}.flop_per_s": e.flop_per_s for name, e in self.engines.items()},
        }
        return [text for text in [self.estimates] if text] + [
            f"the profile {self.name} has {key} {value:.3g}: is the unit right?"
            for key, value in stated.items()
            if not PLAUSIBLE[0] <= value <= PLAUSIBLE[1]
        ]

    def engine(self, name: str) -> Engine:
        """The engine of that name; raises `ProfileError` with the engines that exist."""
        if name not in self.engines:
            raise ProfileError(f"{self.name} has no engine {name!r}{nearest(name, self.engines)}")
        return self.engines[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean x?` for the known names that look like the word, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"
