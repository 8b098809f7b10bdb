"""Throughput that others have measured, a series a direction: from a file of rates, or from iperf3
(`network/iperf3.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inputs.files import FileProblem
from network.series import Rates, read_rates

MOST_STEPS = 1_000_000  # of a series with its holes
LONGEST_HOLE = 3600  # missing steps
NEAR_A_SECOND = 0.05  # steps that differ from a second by so much at most pass for one


@dataclass(frozen=True)
class ThroughputSeries:
    """A throughput series: bit/s a step of `step_s` (NaN: missing), direction "up" or "down", how
    and when it was taken.

    `rtt_s` is the smallest round trip, None where the file has none.
    """

    series_bps: np.ndarray
    step_s: float
    direction: str
    conditions: str
    date: str = ""
    rtt_s: float | None = None


def read_throughput(
    path: str | Path, unit: str | None = None, direction: str = "up", column: str | None = None
) -> ThroughputSeries:
    """The throughput of a file of rates (`network.series`); of several columns `column` names the
    one.

    Without a unit in the column's name or here the numbers are Mbit/s; without times a row is a
    second; blank cells and rows that are not there are missing steps. Raises FileProblem with file,
    line and column.
    """
    rates = read_rates(path, column, unit, "Mbit/s")
    if rates.period_s is not None:
        return _of_packets(rates, rates.period_s, direction, Path(path).name)
    said = f"{len(rates.bps):,} rows from {Path(path).name}: {rates.read}"
    if rates.times_s is None:
        return ThroughputSeries(np.array(rates.bps), 1.0, direction, f"{said}, a row a second")
    series_bps, step_s, shortened = _on_a_grid(path, np.array(rates.times_s), np.array(rates.bps))
    how = f"{said}, steps of {step_s:.4g} s"
    longest_s = float(np.diff(rates.times_s).max(initial=0.0))
    if longest_s > 1.5 * step_s:
        how += f", with holes (the longest lasts {longest_s:.4g} s)"
    if shortened:
        how += f", {shortened} holes shortened to {LONGEST_HOLE} steps"
    return ThroughputSeries(series_bps, step_s, direction, how)


def per_second(series_bps: np.ndarray, step_s: float) -> np.ndarray:
    """The series in steps of 1 s, NaN where any part of a second is missing; as it is if its steps
    are not shorter.
    """
    series_bps, n = np.asarray(series_bps, dtype=float), round(1 / step_s)
    if step_s > 1 - NEAR_A_SECOND:
        return series_bps
    if abs(n * step_s - 1) < 0.01:
        whole = len(series_bps) // n
        means_bps: np.ndarray = np.reshape(series_bps[: whole * n], (whole, n)).mean(axis=1)
        return means_bps
    ends_s = np.arange(len(series_bps) + 1) * step_s
    whole = int(len(series_bps) * step_s)

    def passed(values: np.ndarray) -> np.ndarray:
        """What a rate comes to in each whole second."""
        return np.diff(
            np.interp(
                np.arange(whole + 1), ends_s, np.concatenate([[0.0], np.cumsum(values) * step_s])
            )
        )

    is_missing = np.isnan(series_bps)
    return np.where(
        passed(is_missing.astype(float)) > 1e-9,
        np.nan,
        passed(np.where(is_missing, 0.0, series_bps)),
    )


def _of_packets(rates: Rates, period_s: float, direction: str, name: str) -> ThroughputSeries:
    """Whole seconds of a packet-delivery trace; one shorter than a second is one step."""
    if period_s < 1:
        return ThroughputSeries(np.array(rates.bps), period_s, direction, f"{name}: {rates.read}")
    return ThroughputSeries(
        np.array(rates.bps[: int(period_s)]), 1.0, direction, f"{name}: {rates.read}"
    )


def _on_a_grid(
    path: str | Path, times_s: np.ndarray, series_bps: np.ndarray
) -> tuple[np.ndarray, float, int]:
    """The series at its most usual step, with NaN where rows are missing; that step; how many holes
    were shortened.

    What lies further apart than LONGEST_HOLE is as good as independent, so that holes need not be
    longer.
    """
    if len(times_s) < 2:
        return series_bps, 1.0, 0
    gaps_s = np.diff(times_s)
    step_s = float(np.median(gaps_s))
    steps = gaps_s / step_s
    whole = np.round(steps)
    if whole.min() < 1 or np.mean(np.abs(steps - whole) > 0.25) > 0.1:
        raise FileProblem(
            f"{path}: times are not near multiples of one step (the median is {step_s:g} s): "
            "resample it"
        )
    shortened = int(np.sum(whole > LONGEST_HOLE + 1))
    places: np.ndarray = np.concatenate([[0], np.cumsum(np.minimum(whole, LONGEST_HOLE + 1))])
    if places[-1] >= MOST_STEPS:
        raise FileProblem(
            f"{path}: from its first to its last row lie {places[-1]:,.0f} steps of {step_s:g} s, "
            f"and {len(places):,} "
            "have a row: cut it at its holes"
        )
    grid = np.full(int(places[-1]) + 1, np.nan)
    grid[places.astype(int)] = series_bps
    return grid, step_s, shortened
