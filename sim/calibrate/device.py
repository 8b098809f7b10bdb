"""`mobifleet calibrate device`: measure (or read) timings, fit them, and leave a device profile
with how good it is.

`calibrate` measures this machine, `fit_table` reads measurements made elsewhere, `validate` holds
an old profile against the machine as it is now. The measuring is in `sim.calibrate.measure`, the
fits are in `devices.calibration`.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from devices import calibration, compute, profile
from devices.calibration import CalibrationError, Errors, Point, Sustained, Timing
from devices.hardware import DeviceProfile
from sim.calibrate import measure
from sim.calibrate.device_plan import DeviceMeasurements, Plan
from sim.calibrate.measure import FORWARD, Bench, Shape
from sim.calibrate.profile_report import write_device_profile, write_report, write_validation

COLUMNS = (
    *("workload", "engine", "backbone", "work", "batch", "tokens"),
    *("flop", "bytes_moved", "seconds", "cpu_share", "round", "at_s"),
)


def calibrate(plan: Plan, console: Console) -> DeviceMeasurements:
    """Measure this machine into `plan.folder`; an interrupted measurement leaves its timings
    there.
    """
    lender = plan.lender()
    plan.folder.mkdir(parents=True, exist_ok=True)
    table = plan.folder / "measurements.csv"
    table.unlink(missing_ok=True)
    try:
        with Steps(console) as steps:
            measured = _measure(plan, table, steps)
    except KeyboardInterrupt:
        hint = "nothing was timed yet"
        if table.exists():
            how = (
                f"mobifleet calibrate device --from {table} --name {plan.name} --like {lender.name}"
            )
            hint = f"the timings so far are in {table}; `{how}` fits them"
        console.print(f"interrupted: {hint}")
        raise
    write_device_profile(measured, lender, plan.name, plan.folder / "profile.yaml")
    write_report(measured, plan, console)
    return measured


def _measure(plan: Plan, table: Path, steps: Steps) -> DeviceMeasurements:
    steps.stage("loading backbones and counting their FLOP")
    bench = Bench(plan.device, plan.precision, plan.threads, plan.seed)
    shapes = plan.shapes()
    bench.load(shapes)
    counter = measure.EnergyCounter(plan.device)
    forward = [shape for shape in shapes if shape.work == FORWARD]
    steady = forward[int(0.7 * len(forward))]
    bench.time(steady)
    idle_w = measure.mean_power_w(counter, 3.0) if counter.sources else None

    sustained, compute_w = None, None
    if plan.load_s > 0:  # first of all, while the machine is as cold as it will be
        sustained, compute_w = _steady_load(bench, steady, plan, counter, steps)

    kept = _warm(bench, shapes, plan, steps)
    steps.stage("ceilings: matrix product and memory copy")
    gemm_flop_per_s = bench.gemm_flop_per_s()
    copy_bytes_per_s = bench.copy_bytes_per_s()
    timings = _rounds(bench, kept, plan, table, steps)

    steps.stage("fitting")
    cold = (
        sustained.factor if sustained else 1.0
    )  # timed warm; a profile's rates are those of the cold device
    points = [
        dataclasses.replace(p, seconds=cold * p.seconds) for p in calibration.medians(timings)
    ]
    points = calibration.hold_out(points, np.random.default_rng(plan.seed))
    machine = measure.this_machine(bench)
    return DeviceMeasurements(
        points=points,
        fit=calibration.fit(points, copy_bytes_per_s),
        title=machine.title,
        conditions=f"{machine.software}, {plan.precision}, on {plan.device}",
        kind=machine.kind,
        memory_bytes=machine.memory_bytes,
        gemm_flop_per_s=gemm_flop_per_s,
        copy_bytes_per_s=copy_bytes_per_s,
        sustained=sustained,
        idle_w=idle_w,
        compute_w=compute_w,
        energy_sources=counter.sources,
        cpu_share=float(np.median([t.cpu_share for t in timings])),
    )


def _steady_load(
    bench: Bench, shape: Shape, plan: Plan, counter: measure.EnergyCounter, steps: Steps
) -> tuple[Sustained, float | None]:
    """The same pass for `plan.load_s`: how the rate sinks, and the mean watts of computing."""
    steps.stage(f"steady load: {shape.workload}", plan.load_s)
    at_s = []
    seconds = []
    began_j = counter.joules()
    began_s = time.perf_counter()
    with _csv(plan.folder / "sustained.csv", ("at_s", "seconds", "cpu_share")) as write:
        for at, timed in measure.steady_load(bench, shape, plan.load_s):
            write((f"{at:.6f}", f"{timed.seconds:.9f}", f"{timed.cpu_share:.4f}"))
            at_s.append(at)
            seconds.append(timed.seconds)
            counter.joules()  # often enough that no counter wraps twice
            steps.at(min(at, plan.load_s))
    compute_w = (
        (counter.joules() - began_j) / (time.perf_counter() - began_s) if counter.sources else None
    )
    sustained = calibration.fit_sustained(
        *calibration.block_rates(at_s, seconds, math.fsum(seconds) / 60)
    )
    return sustained, compute_w


def _warm(bench: Bench, shapes: Sequence[Shape], plan: Plan, steps: Steps) -> list[Shape]:
    """The shapes, smallest first, of which three rounds fit into the budget; the others are left
    out, with a word.
    """
    steps.stage("one pass of every shape", len(shapes))
    began_s = time.perf_counter()
    kept: list[Shape] = []
    for shape in shapes:
        bench.time(shape)
        if kept and time.perf_counter() - began_s > plan.warm_up_s:
            steps.say(
                f"timing the {len(kept)} smallest of {len(shapes)} shapes: more do not fit into "
                f"{plan.budget_s:g} s"
            )
            break
        kept.append(shape)
        steps.at(len(kept))
    return kept


def _rounds(
    bench: Bench, shapes: Sequence[Shape], plan: Plan, table: Path, steps: Steps
) -> list[Timing]:
    """Time all shapes round after round, each timing written down as it is made."""
    steps.stage(f"timing {len(shapes)} shapes, round after round", plan.budget_s)
    timings, rng = [], np.random.default_rng(plan.seed)
    with _csv(table, COLUMNS) as write:
        for s, timed, number, at_s in measure.round_robin(bench, shapes, rng, plan.budget_s):
            seconds, share = f"{timed.seconds:.9f}", f"{timed.cpu_share:.4f}"
            write(
                (
                    s.workload,
                    s.engine,
                    s.backbone,
                    s.work,
                    s.batch,
                    s.tokens,
                    f"{s.flop:.0f}",
                    f"{s.bytes_moved:.0f}",
                    seconds,
                    share,
                    number,
                    f"{at_s:.3f}",
                )
            )
            timings.append(
                Timing(s.workload, s.engine, s.flop, s.bytes_moved, timed.seconds, timed.cpu_share)
            )
            steps.at(min(at_s, plan.budget_s))
    return timings


# --- measurements made elsewhere
# -------------------------------------------------------------------------------------


def fit_table(table: Path, plan: Plan, console: Console) -> DeviceMeasurements:
    """Fit a table of timings; `--like` lends what no table says. Raises CalibrationError for what
    cannot be read.
    """
    if plan.like is None:
        raise CalibrationError(
            "--from needs --like PROFILE: a table says neither memory nor power, so they are lent, "
            "for example --like phone-2024-flagship (`mobifleet list devices` shows all)"
        )
    lender = plan.lender()
    timings, fitted = read_timings(table)
    points = calibration.medians(timings)
    if fitted is None:
        points = calibration.hold_out(points, np.random.default_rng(plan.seed))
    else:
        points = [dataclasses.replace(p, fitted=fitted[p.engine, p.workload]) for p in points]
    first = next(iter(lender.engines))
    overheads = {
        p.engine: lender.engines.get(p.engine, lender.engines[first]).overhead_s for p in points
    }
    fit = calibration.fit(points, lender.memory_bandwidth_bytes_per_s, overheads)
    title = f"{plan.name}, fitted to {table.name}"
    shares = [t.cpu_share for t in timings]
    measured = DeviceMeasurements(
        points,
        fit,
        title,
        f"{len(timings)} timings of {len(points)} workloads",
        lender.kind,
        table=table.name,
        cpu_share=float(np.median(shares)),
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_device_profile(measured, lender, plan.name, plan.folder / "profile.yaml")
    write_report(measured, plan, console)
    return measured


def read_timings(path: Path) -> tuple[list[Timing], dict[tuple[str, str], bool] | None]:
    """The timings of a CSV, and which (engine, workload) its column `fitted` lets the fit see (None
    without it).

    A row gives `seconds`, and either `flop` (with `bytes_moved`, default 0) or `backbone`, `batch`,
    `tokens` (with `work`, default forward, and `precision`, default float32), of which FLOP and
    bytes are counted. `workload` and `engine` (default simple, training for training steps) are
    optional. Raises CalibrationError naming the line.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if "seconds" not in columns or not (
            {"flop"} <= columns or {"backbone", "batch", "tokens"} <= columns
        ):
            raise CalibrationError(
                f"{path}: the columns must hold seconds, and flop or backbone, batch and tokens; "
                f"found {', '.join(reader.fieldnames or ()) or 'none'}"
            )
        rows = [(reader.line_num, row) for row in reader]
    timings, fitted = [], {}
    for line, row in rows:
        timing = _timing(row, f"{path}:{line}")
        timings.append(timing)
        if "fitted" in columns:
            word = (row["fitted"] or "").strip().lower()
            if word not in ("true", "false"):
                raise CalibrationError(
                    f"{path}:{line}: fitted: found {word!r}, allowed: true, false"
                )
            fitted[timing.engine, timing.workload] = word == "true"
    if not timings:
        raise CalibrationError(f"{path}: no rows below the header")
    return timings, fitted if "fitted" in columns else None


def _timing(row: Mapping[str, str], where: str) -> Timing:
    def number(
        key: str, default: float | None = None, least: float = 0.0, whole: bool = False
    ) -> float:
        text = (row.get(key) or "").strip()
        if not text and default is not None:
            return default
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = float("nan")
        if not (np.isfinite(value) and value >= least and (value > 0 or default is not None)):
            kind = "a whole number above 0" if whole else "a number above 0"
            raise CalibrationError(f"{where}: {key}: found {text!r}, allowed: {kind}")
        return value

    seconds = number("seconds")
    share, work = number("cpu_share", 1.0), (row.get("work") or FORWARD).strip()
    engine = (row.get("engine") or "").strip() or measure.engine_of(work)
    if (row.get("flop") or "").strip():
        workload = (row.get("workload") or "").strip() or f"{number('flop'):g} FLOP"
        return Timing(workload, engine, number("flop"), number("bytes_moved", 0.0), seconds, share)
    batch = int(number("batch", whole=True))
    tokens = int(number("tokens", whole=True))
    precision = (row.get("precision") or "float32").strip()
    shape = measure.shape_of((row.get("backbone") or "").strip(), work, batch, tokens, precision)
    return Timing(
        (row.get("workload") or "").strip() or shape.workload,
        engine,
        shape.flop,
        shape.bytes_moved,
        seconds,
        share,
    )


# --- an old profile, now
# ------------------------------------------------------------------------------------------


def validate_profile(name_or_path: str, plan: Plan, console: Console) -> Errors:
    """Time this machine again and say how far a profile is off; nothing of the profile is
    changed.
    """
    old = profile.load(name_or_path)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with Steps(console) as steps:
        steps.stage("loading backbones and counting their FLOP")
        bench = Bench(plan.device, plan.precision, plan.threads, plan.seed)
        shapes = plan.shapes()
        bench.load(shapes)
        kept = _warm(bench, shapes, plan, steps)
        timings = _rounds(bench, kept, plan, plan.folder / "validation.csv", steps)
    points = calibration.medians(timings)
    predicted_s = [predicted(old, p) for p in points]
    found = calibration.errors(predicted_s, [p.seconds for p in points])
    if found is None:
        raise CalibrationError("no shape was timed: name a backbone with --backbones")
    share = float(np.median([t.cpu_share for t in timings]))
    machine = measure.this_machine(bench)
    write_validation(
        old,
        points,
        predicted_s,
        found,
        share,
        f"{machine.title}; {machine.software}",
        plan.folder,
        console,
    )
    return found


def predicted(old: DeviceProfile, point: Point) -> float:
    """What a profile says of a point under continuous load; without an engine `training`, training
    is on the first.
    """
    engine = point.engine if point.engine in old.engines else next(iter(old.engines))
    return compute.seconds(old, engine, point.flop, point.bytes_moved) / old.sustained_factor


# --- what a person sees, and what is written as it comes
# -------------------------------------------------------------


class Steps:
    """A bar of the present stage on a terminal; elsewhere a line at its start and one every ten
    seconds.
    """

    def __init__(self, console: Console, seconds_between_lines: float = 10.0) -> None:
        self._console, self._every_s, self._spoke_s = console, seconds_between_lines, 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._total = "", 0.0

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stage(self, name: str, total: float | None = None) -> None:
        """Begin a stage of `total` seconds or pieces (None: not known)."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total)
        self._name, self._total = name, total or 0.0
        if not self._console.is_terminal:
            self._console.print(f"{name} ...")
            self._spoke_s = time.perf_counter()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line)

    def at(self, done: float) -> None:
        """So much of the stage is done."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)
        if not self._console.is_terminal and time.perf_counter() - self._spoke_s > self._every_s:
            how_far = f"{done / self._total:.0%}" if self._total else f"{done:g}"
            self._console.print(f"{self._name}: {how_far}")
            self._spoke_s = time.perf_counter()


@contextmanager
def _csv(path: Path, columns: Sequence[str]):
    """A writer of rows that are on the disk before the next is made."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def write(row: Sequence[Any]) -> None:
            writer.writerow(row)
            file.flush()

        write(columns)
        yield write
