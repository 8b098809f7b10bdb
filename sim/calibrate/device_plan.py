"""What is asked of a device's calibration, and what it finds."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices import calibration, profile
from devices.calibration import CalibrationError, ComputeFit, Errors, Point, Sustained
from devices.hardware import DeviceProfile
from sim.calibrate import measure
from sim.calibrate.measure import FORWARD, TRAINED, Shape

BATCHES, LENGTHS = (1, 2, 4, 8, 16, 32), (8, 16, 32, 64, 128)
QUICK_BATCHES, QUICK_LENGTHS = (1, 4, 16), (8, 32, 128)


@dataclass(frozen=True)
class Plan:
    """What the user asked for; None: the default of the mode (`sustained_min`), or of the chip
    (`like`).
    """

    name: str
    folder: Path
    backbones: Sequence[str]
    device: str = "cpu"
    precision: str = "float32"
    threads: int | None = None
    quick: bool = False
    train: bool = False
    sustained_min: float | None = None
    like: str | None = None
    seed: int = 0

    @property
    def load_s(self) -> float:
        """Seconds of steady load."""
        minutes = (
            self.sustained_min if self.sustained_min is not None else (0.12 if self.quick else 1.0)
        )
        return 60 * minutes

    @property
    def budget_s(self) -> float:
        """Seconds for the rounds over all shapes."""
        return (20 if self.quick else 120) * (1.5 if self.train else 1)

    @property
    def warm_up_s(self) -> float:
        """Seconds for one pass of every shape, so that the rounds can keep to their budget."""
        return self.budget_s / measure.LEAST_ROUNDS

    def shapes(self) -> list[Shape]:
        """Everything to be timed."""
        if self.train and self.precision != "float32":
            raise CalibrationError(
                "--train is timed in float32 only; leave --precision out, or --train"
            )
        works = (FORWARD, *(TRAINED[: 1 if self.quick else None] if self.train else ()))
        batches, lengths = (QUICK_BATCHES, QUICK_LENGTHS) if self.quick else (BATCHES, LENGTHS)
        return measure.grid(self.backbones, works, batches, lengths, self.precision)

    def lender(self) -> DeviceProfile:
        """The profile that lends what cannot be measured here."""
        usual = (
            "raspberry-pi-5"
            if platform.machine() in ("aarch64", "arm64")
            else "laptop-ryzen-8945hs"
        )
        return profile.load(self.like or ("h100" if self.device == "cuda" else usual))


@dataclass(frozen=True)
class DeviceMeasurements:
    """What a calibration rests on; None for what was not measured."""

    points: list[Point]
    fit: ComputeFit
    title: str
    conditions: str
    kind: str
    memory_bytes: float | None = None
    gemm_flop_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    sustained: Sustained | None = None
    idle_w: float | None = None
    compute_w: float | None = None
    energy_sources: Sequence[str] = ()
    cpu_share: float = 1.0
    table: str | None = None

    def errors(self, fitted: bool, engine: str | None = None) -> Errors | None:
        """How far the fit is off, on the points that it saw or on those held out."""
        chosen = [p for p in self.points if p.fitted == fitted and engine in (None, p.engine)]
        return calibration.errors(
            [self.fit.seconds(p) for p in chosen], [p.seconds for p in chosen]
        )
