"""From timings to the numbers of a device profile: rates, overheads, bandwidth, jitter, sinking
under steady load.

    seconds = overhead + FLOP / rate + bytes / bandwidth

is `devices.compute`'s formula, linear in (overhead, 1 / rate, 1 / bandwidth). Overhead and rate
belong to an engine, the bandwidth to the device, so the engines of a table are fitted together.
Residuals are relative (a pass of 1 ms counts as much as one of 1 s) and lose weight beyond 5 %, so
that a few disturbed timings do not steer the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from devices import thermal

ENOUGH_POINTS = 6  # for an engine's own overhead and rate; with fewer, the rate alone
ENOUGH_SPREAD = (
    4.0  # largest over smallest FLOP (bytes), below which a slope cannot be told from a constant
)
TRUSTED_RESIDUAL = 0.05
# explained variance and depth of a sinking that is more than noise: over 60
BELIEVED = 0.4
LEAST_SINKING = 0.03
# blocks, noise of autocorrelation 0.8 explains 0.22 (95th percentile), sinking phones 0.44-0.95
CALM = 0.9  # share of the best processor share, above which a timing counts as undisturbed
FASTEST_CACHE = (
    10.0  # weights that stay in a cache are read faster than memory, but not without limit
)


class CalibrationError(ValueError):
    """Timings that cannot be fitted, or a calibration that cannot be done; the message says what to
    do.
    """


@dataclass(frozen=True)
class Timing:
    """One timed piece of work: FLOP, bytes read or written once, seconds, share of the processor
    got.
    """

    workload: str
    engine: str
    flop: float
    bytes_moved: float
    seconds: float
    cpu_share: float = 1.0


@dataclass(frozen=True)
class Point:
    """All timings of one workload on one engine: median seconds, how many there were, their CV (0
    for one alone).
    """

    workload: str
    engine: str
    flop: float
    bytes_moved: float
    seconds: float
    repeats: int = 1
    cv: float = 0.0
    fitted: bool = True


def medians(timings: Sequence[Timing]) -> list[Point]:
    """One point a workload and engine, in the order in which they first appear, of the timings
    least disturbed.

    A timing counts as disturbed where other programs took a tenth or more of the processor time
    that the same work got at its best; up to half of a point's timings are left out for it, so that
    a busy machine cannot choose for itself.
    """
    groups: dict[tuple[str, str, float, float], list[Timing]] = {}
    for t in timings:
        groups.setdefault((t.workload, t.engine, t.flop, t.bytes_moved), []).append(t)
    points = []
    for what, own in groups.items():
        best = max(t.cpu_share for t in own)
        own = sorted(own, key=lambda t: -t.cpu_share)
        calm = [t for i, t in enumerate(own) if t.cpu_share >= CALM * best or 2 * i < len(own)]
        seconds = np.array([t.seconds for t in calm])
        points.append(
            Point(*what, seconds=float(np.median(seconds)), repeats=len(seconds), cv=_cv(seconds))
        )
    return points


def _cv(seconds: np.ndarray) -> float:
    return float(seconds.std(ddof=1) / seconds.mean()) if len(seconds) > 1 else 0.0


def hold_out(
    points: Sequence[Point], rng: np.random.Generator, share: float = 1 / 3
) -> list[Point]:
    """The same points with `fitted` false for a random share of each engine's, where enough remain
    to fit.
    """
    held = set()
    for engine in dict.fromkeys(p.engine for p in points):
        own = [i for i, p in enumerate(points) if p.engine == engine]
        count = min(int(share * len(own)), len(own) - ENOUGH_POINTS)
        if count > 0:
            held.update(rng.permutation(own)[:count].tolist())
    return [replace(p, fitted=i not in held) for i, p in enumerate(points)]


# --- the compute-time model
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineFit:
    """Overhead and rate of one engine; `rate_alone` where the overhead was lent, not fitted."""

    overhead_s: float
    flop_per_s: float
    rate_alone: bool


@dataclass(frozen=True)
class ComputeFit:
    """What the fitted points say; `bandwidth_fitted` is false where the bandwidth was lent."""

    engines: dict[str, EngineFit]
    bandwidth_bytes_per_s: float
    bandwidth_fitted: bool

    def seconds(self, point: Point) -> float:
        """Predicted seconds of a point's work."""
        engine = self.engines[point.engine]
        return (
            engine.overhead_s
            + point.flop / engine.flop_per_s
            + point.bytes_moved / self.bandwidth_bytes_per_s
        )


def fit(
    points: Sequence[Point],
    lent_bandwidth: float,
    lent_overheads: Mapping[str, float] | None = None,
) -> ComputeFit:
    """Fit every engine to its `fitted` points.

    `lent_bandwidth` (bytes/s: a measured ceiling, or another profile's) stands where the bytes vary
    too little to fit one; a fitted bandwidth stays within ten times it. An engine with few points,
    or points of nearly equal FLOP, takes its overhead from `lent_overheads` (by engine, default 0)
    and gets the geometric mean of the rates that remain. Raises CalibrationError where the seconds
    do not grow with FLOP, or a row is faster than what is lent.
    """
    if not points:
        raise CalibrationError("no measurements to fit")
    by_engine: dict[str, list[Point]] = {}
    for p in points:
        by_engine.setdefault(p.engine, []).append(p)
    for engine, own in by_engine.items():
        if not any(p.fitted for p in own):
            raise CalibrationError(
                f"every measurement of engine {engine!r} is held out: leave some to fit"
            )
    fitted = {engine: [p for p in own if p.fitted] for engine, own in by_engine.items()}
    full = {
        e: own
        for e, own in fitted.items()
        if len(own) >= ENOUGH_POINTS and _spread(own, "flop") >= ENOUGH_SPREAD
    }
    free = any(_spread(own, "bytes_moved") >= ENOUGH_SPREAD for own in full.values())
    engines, bandwidth = _regress(full, lent_bandwidth, free) if full else ({}, lent_bandwidth)
    for engine, own in fitted.items():
        if engine not in full:
            overhead_s = (lent_overheads or {}).get(engine, 0.0)
            engines[engine] = EngineFit(
                overhead_s, _geometric_mean_rate(own, overhead_s, bandwidth), True
            )
    return ComputeFit({engine: engines[engine] for engine in by_engine}, bandwidth, free)


def _spread(points: Sequence[Point], field: str) -> float:
    values = [getattr(p, field) for p in points]
    return max(values) / min(values) if min(values) > 0 else 1.0


def _regress(
    full: Mapping[str, list[Point]], lent_bandwidth: float, free: bool
) -> tuple[dict[str, EngineFit], float]:
    """Robust relative least squares for (overhead, 1 / rate) of each engine and one 1 /
    bandwidth.
    """
    points = [p for own in full.values() for p in own]
    seconds = np.array([p.seconds for p in points])
    columns = []
    for engine in full:
        mine = np.array([p.engine == engine for p in points], dtype=float)
        columns += [mine, mine * [p.flop for p in points]]
    moved = np.array([p.bytes_moved for p in points])
    relative_PC = np.stack([*columns, moved], axis=1) / seconds[:, None]
    unit_C = np.maximum(
        relative_PC.max(axis=0), 1e-300
    )  # each coefficient in units that make it of order one
    least = np.zeros(len(unit_C))
    least[-1] = unit_C[-1] / (lent_bandwidth * (FASTEST_CACHE if free else 1.0))
    most = np.full(len(unit_C), np.inf)
    if not free:
        most[-1] = least[-1] * (1 + 1e-9) + 1e-12
    start = (
        np.maximum(np.full(len(unit_C), 0.3), least)
        if free
        else np.append(np.full(len(unit_C) - 1, 0.3), least[-1])
    )
    solved = least_squares(
        lambda x: (relative_PC / unit_C) @ x - 1,
        np.clip(start, least, most),
        jac=lambda x: relative_PC / unit_C,
        bounds=(least, most),
        loss="soft_l1",
        f_scale=TRUSTED_RESIDUAL,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    ).x
    coefficients = solved / unit_C
    engines = {}
    for i, engine in enumerate(full):
        overhead_s, per_flop = coefficients[2 * i], coefficients[2 * i + 1]
        if solved[2 * i + 1] < 1e-6:
            raise CalibrationError(
                f"engine {engine!r}: the seconds do not grow with FLOP, so no rate can be fitted; "
                "add longer passes"
            )
        engines[engine] = EngineFit(float(overhead_s), float(1 / per_flop), False)
    return engines, float(1 / coefficients[-1]) if free else lent_bandwidth


def _geometric_mean_rate(points: Sequence[Point], overhead_s: float, bandwidth: float) -> float:
    logs = []
    for p in points:
        left_s = p.seconds - overhead_s - p.bytes_moved / bandwidth
        if left_s <= 0:
            raise CalibrationError(
                f"{p.workload}: {p.seconds:g} s is less than the lent overhead and weight reading "
                "take alone "
                f"({overhead_s:g} s + {p.bytes_moved / bandwidth:g} s); lend them from a faster "
                "profile, or give "
                f"{ENOUGH_POINTS} rows or more of different sizes so that they are fitted"
            )
        logs.append(np.log(p.flop / left_s))
    return float(np.exp(np.mean(logs)))


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions, in per cent: mean, 95th percentile and worst of their sizes,
    and the bias.
    """

    count: int
    mean_pct: float
    p95_pct: float
    worst_pct: float
    bias_pct: float


def errors(predicted_s: Sequence[float], measured_s: Sequence[float]) -> Errors | None:
    """Errors of predicted against measured seconds; None where there is nothing to compare."""
    if not len(measured_s):
        return None
    off = 100 * (np.asarray(predicted_s) / np.asarray(measured_s) - 1)
    size = np.abs(off)
    return Errors(
        len(off),
        float(size.mean()),
        float(np.percentile(size, 95)),
        float(size.max()),
        float(off.mean()),
    )


# --- jitter and sustained load
# ---------------------------------------------------------------------------------------


def jitter_cv(points: Sequence[Point], least_repeats: int = 3) -> float | None:
    """The median over workloads of the CV of equal work; None without repeats."""
    cvs = [p.cv for p in points if p.repeats >= least_repeats]
    return float(np.median(cvs)) if cvs else None


@dataclass(frozen=True)
class Sustained:
    """How the rate sinks under continuous load, as `devices.thermal` reads it: f(t) = f + (1 - f)
    e^(-t / tau).

    `factor` is f and `tau_s` tau; 1 and 0 where no sinking stands out from the noise. `explained`
    is the share of the rate's variance that the curve explains, `noise_cv` what is left, relative
    to the mean. `still_sinking` where tau is more than half of `observed_s`: then f is the share
    seen at the end, and more time may show less.
    """

    factor: float
    tau_s: float
    burst_per_s: float
    observed_s: float
    explained: float
    noise_cv: float
    still_sinking: bool = False


def block_rates(
    at_s: Sequence[float], seconds: Sequence[float], block_s: float
) -> tuple[list[float], list[float]]:
    """Passes a second in blocks of about `block_s` of a continuous load: (start of each block, rate
    in it).
    """
    starts = []
    rates = []
    count = 0
    spent_s = 0.0
    for at, each_s in zip(at_s, seconds, strict=True):
        if count == 0:
            starts.append(at)
        count, spent_s = count + 1, spent_s + each_s
        if spent_s >= block_s:
            rates.append(count / spent_s)
            count, spent_s = 0, 0.0
    return starts[: len(rates)], rates


def fit_sustained(at_s: Sequence[float], rate_per_s: Sequence[float]) -> Sustained:
    """Fit `devices.thermal`'s curve to rates (any unit) at times from the start of the load, and
    judge it.

    The curve is believed where it explains 0.4 of the variance and has sunk by 3 % at the end:
    otherwise the rate is steady. Give about 60 rates (`block_rates`): more are noisier, fewer hide
    a short tau. Raises CalibrationError below ten rates.
    """
    at = np.asarray(at_s, dtype=float)
    rate = np.asarray(rate_per_s, dtype=float)
    if len(at) < 10:
        raise CalibrationError(
            f"{len(at)} rates are too few to see a rate sink; load the machine for longer"
        )
    at = at - at[0]
    observed_s, curve = float(at[-1]), thermal.fit(at, rate)
    left = rate - curve.rate(at)
    explained = max(0.0, 1 - float(left.var() / max(rate.var(), 1e-300)))
    at_end = float(curve.rate(at[-1:])[0]) / curve.burst
    if explained < BELIEVED or at_end > 1 - LEAST_SINKING:
        steady_cv = float(rate.std() / rate.mean())
        return Sustained(1.0, 0.0, float(rate.mean()), observed_s, explained, steady_cv)
    slow = curve.tau_s > observed_s / 2
    factor, tau_s = (at_end, observed_s / 2) if slow else (curve.floor, curve.tau_s)
    return Sustained(
        factor, tau_s, curve.burst, observed_s, explained, float(left.std() / rate.mean()), slow
    )
