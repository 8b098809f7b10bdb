"""From measurements to a link profile: how a throughput series varies, and a YAML file that says so with its source.

A series is one number a step, bit/s, NaN where a second is missing. `moments` describes it by what a link profile
holds: mean, CV, lag-1 autocorrelation. `fit_variation` goes further, to what `bandwidth.quantile_ar` draws from:
quantiles, and how much of the wandering is slow. Measured uplinks need the second: seconds that lie 30 s apart
still resemble each other (autocorrelation 0.3 to 0.8 on 5G walks), where an AR(1) of the same lag 1 has forgotten nearly
everything, so that it underrates how unlike two minutes are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import NormalDist

import numpy as np
import yaml

from network.bandwidth import CapacityTrace, quantile_ar
from network.errors import NetworkError

# Denser at the ends, where straight lines between quantiles would cost most.
PROBABILITIES = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1)
FEWEST_STEPS = 8  # for a CV and an autocorrelation that mean anything
UNITS_BPS = {"bit/s": 1, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9, "B/s": 8, "kB/s": 8e3, "MB/s": 8e6}
PLACES = 4  # significant digits of what is written down


@dataclass(frozen=True)
class Moments:
    """Mean and median in bit/s, CV = sd / mean, lag-1 autocorrelation of a series."""

    mean_bps: float
    median_bps: float
    cv: float
    lag1: float


@dataclass(frozen=True)
class Variation:
    """What a throughput series is drawn from; the arguments of `bandwidth.quantile_ar`, steps of `step_s` seconds."""

    quantiles_bps: tuple[float, ...]
    probabilities: tuple[float, ...]
    slow_share: float
    slow_s: float
    fast_lag1: float
    step_s: float = 1.0

    def trace(self, n_steps: int, rng: np.random.Generator) -> CapacityTrace:
        """A synthetic trace of so many steps."""
        return quantile_ar(**asdict(self), n_steps=n_steps, rng=rng)


def autocorrelation(series: np.ndarray, lags: Sequence[int]) -> np.ndarray:
    """Sample autocorrelation at each lag, over the pairs where both steps are there.

    NaN for a lag without such a pair; 0 for a constant series.
    """
    deviation = series - np.nanmean(series)
    variance = np.nanmean(deviation * deviation)
    if variance <= 1e-24 * np.nanmean(series) ** 2:
        return np.zeros(len(lags))
    products = [deviation[:-k] * deviation[k:] for k in lags]
    return np.array([np.nanmean(p) / variance if np.isfinite(p).any() else np.nan for p in products])


def moments(series_bps: np.ndarray) -> Moments:
    """The numbers of a link profile; raises NetworkError for a series too short or without throughput."""
    series_bps = _checked(series_bps)
    mean_bps = float(np.nanmean(series_bps))
    cv = float(np.nanstd(series_bps)) / mean_bps
    return Moments(mean_bps, float(np.nanmedian(series_bps)), cv, float(autocorrelation(series_bps, [1])[0]))


def fit_variation(series_bps: np.ndarray, step_s: float = 1.0) -> Variation:
    """Quantiles of the series, and the two time scales of its ranks.

    The autocorrelation of the normal scores of the ranks (equal values share theirs), at lags up to a tenth of the series
    and at most 60 steps, is fitted by w exp(-k step / slow) + (1 - w) fast^k: least squares, weighted by 1 / lag so that
    each decade counts alike, over a grid of `slow` and `fast`, w in closed form. What a series this short loses of its
    autocorrelation and of its variance, because its own mean has wandered too, is given back.
    """
    series_bps = _checked(series_bps)
    values = series_bps[~np.isnan(series_bps)]
    lags = np.arange(1, max(3, min(60, len(series_bps) // 10)) + 1)
    measured = autocorrelation(_normal_scores(series_bps), lags)
    lags, measured = lags[np.isfinite(measured)], measured[np.isfinite(measured)]
    best = (np.inf, 0.0, 1.0, 0.0, 0.0)
    for slow_steps in np.geomspace(2, 4 * lags[-1], 40):
        slow, slow_lost = np.exp(-lags / slow_steps), _lost(np.exp(-1 / slow_steps), len(series_bps))
        for fast_lag1 in np.linspace(0, min(0.95, slow[0] - 0.01), 24):
            fast, fast_lost = fast_lag1**lags, _lost(fast_lag1, len(series_bps))
            # measured = (model - lost) / (1 - lost), with model and lost both linear in the share
            span = slow - fast - (1 - measured) * (slow_lost - fast_lost)
            wanted = measured - fast + (1 - measured) * fast_lost
            share = float(np.clip(wanted / lags @ span / (span / lags @ span), 0, 1))
            error = float(np.sum((wanted - share * span) ** 2 / lags))
            if error < best[0]:
                lost = share * slow_lost + (1 - share) * fast_lost
                best = (error, share, float(slow_steps * step_s), float(fast_lag1), lost)
    *scales, lost = best[1:]
    widened = values.mean() + (np.quantile(values, PROBABILITIES) - values.mean()) / np.sqrt(1 - lost)
    return Variation(tuple(np.maximum(widened, 0.0).tolist()), PROBABILITIES, *scales, step_s)


def _lost(rho: float, n: int) -> float:
    """Variance of the mean of n steps of an AR(1), as a share of the variance of a step."""
    return ((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**n) / (n * (1 - rho) ** 2)) / n


def _normal_scores(series: np.ndarray) -> np.ndarray:
    present = ~np.isnan(series)
    values, place, count = np.unique(series[present], return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - 0.5 * count) / count.sum()  # the middle of those that are equal
    score = np.array([NormalDist().inv_cdf(p) for p in rank]) if len(values) > 1 else np.zeros(1)
    scores = np.full(series.shape, np.nan)
    scores[present] = score[place]
    return scores


def _checked(series_bps: np.ndarray) -> np.ndarray:
    series_bps = np.asarray(series_bps, dtype=float)
    values = series_bps[~np.isnan(series_bps)]
    if len(values) < FEWEST_STEPS:
        raise NetworkError(
            f"a series of {len(values)} steps is too short to say how a link varies: give {FEWEST_STEPS}"
        )
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() > 0):
        raise NetworkError("a throughput series must be finite, >= 0 and not zero throughout")
    return series_bps


def per_second(series_bps: np.ndarray, step_s: float) -> np.ndarray:
    """The series in steps of 1 s: means over whole seconds (NaN where a step is missing); as it is if steps are not shorter."""
    n = round(1 / step_s)
    if n <= 1:
        return np.asarray(series_bps, dtype=float)
    whole = len(series_bps) // n
    return np.reshape(series_bps[: whole * n], (whole, n)).mean(axis=1)


# ---- series that others have measured


@dataclass(frozen=True)
class Measured:
    """A throughput series from a file: bit/s a step of `step_s`, direction "up" or "down", how and when it was taken.

    `rtt_s` is the smallest round trip, None where the file has none.
    """

    series_bps: np.ndarray
    step_s: float
    direction: str
    conditions: str
    date: str = ""
    rtt_s: float | None = None


def read_throughput(
    path: str | Path, unit: str = "Mbit/s", direction: str = "up", column: str | None = None
) -> Measured:
    """A CSV of throughput: one column, or several of which `column` names one; t_s, time_s, time or t gives the step.

    Without times a row is a second. Blank cells are missing steps. Raises NetworkError with file, row and column.
    """
    if unit not in UNITS_BPS:
        raise NetworkError(f"unit {unit!r}: one of {', '.join(UNITS_BPS)}")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].lstrip().startswith("#")]
    names = [cell.strip() for cell in rows[0]] if rows and not _is_number(rows[0][-1]) else []
    body = rows[1:] if names else rows
    if not body:
        raise NetworkError(f"{path}: no rows of throughput")
    times = next((names.index(name) for name in ("t_s", "time_s", "time", "t") if name in names), None)
    if not names and len(body[0]) == 2:
        times = 0
    rates = [i for i in range(len(body[0])) if i != times]
    if column is not None:
        if column not in names:
            raise NetworkError(f"{path}: no column {column!r}; it has {', '.join(names) or 'no names'}")
        rates = [names.index(column)]
    if len(rates) != 1:
        known = ", ".join(names[i] for i in rates) if names else "a line of names is missing"
        raise NetworkError(f"{path}: which column is the throughput ({known})? Name one with --column")
    series = np.array([_cell(path, line, row, rates[0]) for line, row in enumerate(body, 1)]) * UNITS_BPS[unit]
    if times is None:
        return Measured(series, 1.0, direction, f"{len(series)} rows of 1 s from {Path(path).name}")
    times_s = np.array([_cell(path, line, row, times) for line, row in enumerate(body, 1)])
    return Measured(*_on_a_grid(path, times_s, series), direction, f"{len(series)} rows from {Path(path).name}")


def _on_a_grid(path, times_s: np.ndarray, series: np.ndarray) -> tuple[np.ndarray, float]:
    """The series at its most usual step, with NaN where rows are missing."""
    gaps_s = np.diff(times_s)
    if not (len(gaps_s) and np.isfinite(times_s).all() and gaps_s.min() > 0):
        raise NetworkError(f"{path}: times must be there in every row and increase")
    step_s = float(np.median(gaps_s))
    place = np.round((times_s - times_s[0]) / step_s).astype(int)
    if place[-1] > 100 * len(place) or len(set(place.tolist())) < len(place):
        raise NetworkError(f"{path}: times are not near multiples of one step (the median is {step_s:g} s)")
    grid = np.full(place[-1] + 1, np.nan)
    grid[place] = series
    return grid, step_s


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell.strip()
    return True


def _cell(path, line: int, row: list[str], column: int) -> float:
    try:
        return float(row[column]) if row[column].strip() else float("nan")
    except (ValueError, IndexError):
        raise NetworkError(f"{path}, row {line}: expected a number in column {column + 1}, found {row}") from None


def read_iperf3(path: str | Path) -> Measured:
    """The JSON that `iperf3 -J` writes, forward (up) or with --reverse (down).

    Intervals of the receiver are taken where the file has them (--reverse, or forward with --get-server-output): a sender's
    intervals show its socket buffer filling, and overrate the CV; then `conditions` says so. Raises NetworkError.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"{path} is not JSON ({error}): give what `iperf3 -J` wrote") from None
    if isinstance(document, dict) and document.get("error"):
        raise NetworkError(f"{path}: iperf3 failed: {document['error']}")
    try:
        start = document["start"]
        down = bool(start["test_start"].get("reverse"))
        at_server = document.get("server_output_json", {}).get("intervals") if not down else None
        sums = [interval["sum"] for interval in at_server or document["intervals"]]
        sums = [entry for entry in sums if not entry.get("omitted")]
        seconds = [float(entry["seconds"]) for entry in sums]
        series = [float(entry["bits_per_second"]) for entry in sums]
        streams = [stream["sender"] for stream in document["end"].get("streams", []) if "sender" in stream]
        date = str(start.get("timestamp", {}).get("time", ""))
        flows = start["test_start"].get("num_streams", 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NetworkError(f"{path}: not a result of `iperf3 -J` ({type(error).__name__}: {error})") from None
    if not seconds:
        raise NetworkError(f"{path}: no intervals; run iperf3 for ten seconds or more")
    step_s = float(np.median(seconds))
    if seconds[-1] < 0.9 * step_s:
        series.pop()  # what the end of the test left over
    rtts_s = [stream[key] / 1e6 for stream in streams for key in ("min_rtt",) if stream.get(key)]
    where = "receiver" if down or at_server else "sender (its buffer inflates the CV: use --get-server-output)"
    conditions = f"iperf3, {flows} TCP flow{'s' * (flows != 1)}, intervals of {step_s:g} s at the {where}"
    return Measured(np.array(series), step_s, "down" if down else "up", conditions, date, min(rtts_s, default=None))


# ---- what is written down


def number(value: float, source: str, date: str, conditions: str, basis: str = "measured") -> dict:
    """One number of a profile with where it comes from, to four significant digits."""
    return {
        "value": _rounded(value),
        "basis": basis,
        "source": source,
        "date": date,
        "conditions": conditions,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{PLACES}g}")


def write_profile(path: str | Path, name: str, numbers: Mapping[str, Mapping]) -> None:
    """A link profile that `network.profile.load` reads; `numbers` as `number` makes them, by the profile's fields."""
    if not all(isfinite(entry["value"]) for entry in numbers.values()):
        raise NetworkError(f"link profile {name!r}: every number must be finite")
    text = yaml.safe_dump({"name": name, **numbers}, sort_keys=False, allow_unicode=True, width=110)
    Path(path).write_text(text, encoding="utf-8")


def write_variations(path: str | Path, variations: Mapping[str, Variation]) -> None:
    """What `read_variations` reads: one Variation a direction, to draw a trace of its own for each device of a fleet."""
    plain = {direction: asdict(variation) for direction, variation in variations.items()}
    for entry in plain.values():
        entry |= {key: [_rounded(v) for v in entry[key]] for key in ("quantiles_bps", "probabilities")}
        entry |= {key: _rounded(entry[key]) for key in ("slow_share", "slow_s", "fast_lag1", "step_s")}
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False, width=110, default_flow_style=None), encoding="utf-8")


def read_variations(path: str | Path) -> dict[str, Variation]:
    """The Variations of a file that `mobifleet calibrate link` has left, by direction; raises NetworkError."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {str(direction): Variation(**entry) for direction, entry in document.items()}
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise NetworkError(f"{path}: not a variation.yaml of `mobifleet calibrate link` ({error})") from None


def fit_transfers(nbytes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(fixed seconds, bit/s) of transfers of several sizes: seconds = fixed + 8 nbytes / rate.

    Least squares of the relative errors. The fixed part is at least 0, the rate infinite where time does not grow with size.
    """
    sizes, took_s = np.asarray(nbytes, dtype=float), np.asarray(seconds, dtype=float)
    design = np.stack([np.ones_like(sizes), 8 * sizes], axis=1) / took_s[:, None]
    (fixed_s, per_bit_s), *_ = np.linalg.lstsq(design, np.ones_like(sizes), rcond=None)
    return max(0.0, float(fixed_s)), 1 / float(per_bit_s) if per_bit_s > 0 else float("inf")
