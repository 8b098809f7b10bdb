"""From measurements to a link profile: how a throughput series varies, and a YAML file that says so
with its source.

A series is one number a step, bit/s, NaN where a second is missing. `moments` describes it by what
a link profile holds: mean, CV, lag-1 autocorrelation. `fit_variation` goes further, to what
`bandwidth.quantile_ar` draws from: quantiles, and how much of the wandering is slow. Measured
uplinks need the second: seconds that lie 30 s apart still resemble each other (autocorrelation 0.3
to 0.8 on 5G walks), where an AR(1) of the same lag 1 has forgotten nearly everything, so that it
underrates how unlike two minutes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypedDict

import numpy as np
import yaml

from inputs.files import FileProblem, read_yaml
from network.bandwidth import CapacityTrace, quantile_ar
from network.errors import NetworkError

# Denser at the ends, where straight lines between quantiles would cost most.
PROBABILITIES = (
    0,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
    0.99,
    0.995,
    1,
)
FEWEST_STEPS = 8  # for a CV and an autocorrelation that mean anything
PLACES = 4  # significant digits of what is written down


@dataclass(frozen=True)
class RateMoments:
    """Mean and median in bit/s, CV = sd / mean, lag-1 autocorrelation of a series."""

    mean_bps: float
    median_bps: float
    cv: float
    lag1: float


@dataclass(frozen=True)
class Variation:
    """What a throughput series is drawn from; the arguments of `bandwidth.quantile_ar`, steps of
    `step_s` seconds.
    """

    quantiles_bps: tuple[float, ...]
    probabilities: tuple[float, ...]
    slow_share: float
    slow_s: float
    fast_lag1: float
    step_s: float = 1.0

    def trace(self, n_steps: int, rng: np.random.Generator) -> CapacityTrace:
        """A synthetic trace of so many steps."""
        return quantile_ar(**asdict(self), n_steps=n_steps, rng=rng)


def autocorrelation(series: np.ndarray, lags: Sequence[int] | np.ndarray) -> np.ndarray:
    """Sample autocorrelation at each lag, over the pairs where both steps are there.

    NaN for a lag without such a pair; 0 for a constant series.
    """
    deviation = series - np.nanmean(series)
    variance = np.nanmean(deviation * deviation)
    if variance <= 1e-24 * np.nanmean(series) ** 2:
        return np.zeros(len(lags))
    products = [deviation[:-k] * deviation[k:] for k in lags]
    return np.array(
        [np.nanmean(p) / variance if np.isfinite(p).any() else np.nan for p in products]
    )


def moments(series_bps: np.ndarray) -> RateMoments:
    """The numbers of a link profile; raises NetworkError for a series too short or without
    throughput.
    """
    series_bps = _checked(series_bps)
    mean_bps = float(np.nanmean(series_bps))
    cv = float(np.nanstd(series_bps)) / mean_bps
    return RateMoments(
        mean_bps, float(np.nanmedian(series_bps)), cv, float(autocorrelation(series_bps, [1])[0])
    )


def fit_variation(series_bps: np.ndarray, step_s: float = 1.0) -> Variation:
    """Quantiles of the series, and the two time scales of its ranks.

    The autocorrelation of the normal scores of the ranks (equal values share theirs), at lags up to
    a tenth of the series and at most 60 steps, is fitted by w exp(-k step / slow) + (1 - w) fast^k:
    least squares, weighted by 1 / lag so that each decade counts alike, over a grid of `slow` and
    `fast`, w in closed form. What a series this short loses of its autocorrelation and of its
    variance, because its own mean has wandered too, is given back.
    """
    series_bps = _checked(series_bps)
    values = series_bps[~np.isnan(series_bps)]
    lags = np.arange(1, max(3, min(60, len(series_bps) // 10)) + 1)
    measured = autocorrelation(_normal_scores(series_bps), lags)
    lags = lags[np.isfinite(measured)]
    measured = measured[np.isfinite(measured)]
    best = (np.inf, 0.0, step_s, 0.0, 0.0)  # independent steps, should no two lie near each other
    for slow_steps in np.geomspace(2, 4 * lags[-1], 40) if len(lags) else ():
        slow = np.exp(-lags / slow_steps)
        slow_lost = _lost(np.exp(-1 / slow_steps), len(series_bps))
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
    _, share, slow_s, fast_lag1, lost = best
    widened = values.mean() + (np.quantile(values, PROBABILITIES) - values.mean()) / np.sqrt(
        1 - lost
    )
    quantiles_bps = tuple(np.maximum(widened, 0.0).tolist())
    return Variation(quantiles_bps, PROBABILITIES, share, slow_s, fast_lag1, step_s)


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
            f"a series of {len(values)} steps is too short to say how a link varies: give "
            f"{FEWEST_STEPS}"
        )
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() > 0):
        raise NetworkError("a throughput series must be finite, >= 0 and not zero throughout")
    return series_bps


# ---- what is written down


class Number(TypedDict):
    """One number of a profile with where it comes from."""

    value: float
    basis: str
    source: str
    date: str
    conditions: str


def number(
    value: float, source: str, date: str, conditions: str, basis: str = "measured"
) -> Number:
    """A number for `write_link_profile`, to four significant digits."""
    return {
        "value": _rounded(value),
        "basis": basis,
        "source": source,
        "date": date,
        "conditions": conditions,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{PLACES}g}")


def write_link_profile(path: str | Path, name: str, numbers: Mapping[str, Number]) -> None:
    """A link profile that `network.profile.load` reads; `numbers` as `number` makes them, by the
    profile's fields.
    """
    if not all(isfinite(entry["value"]) for entry in numbers.values()):
        raise NetworkError(f"link profile {name!r}: every number must be finite")
    text = yaml.safe_dump({"name": name, **numbers}, sort_keys=False, allow_unicode=True, width=110)
    Path(path).write_text(text, encoding="utf-8")


def write_variations(path: str | Path, variations: Mapping[str, Variation]) -> None:
    """What `read_variations` reads: one Variation a direction, to draw a trace of its own for each
    device of a fleet.
    """
    plain = {direction: asdict(variation) for direction, variation in variations.items()}
    for entry in plain.values():
        entry |= {
            key: [_rounded(v) for v in entry[key]] for key in ("quantiles_bps", "probabilities")
        }
        entry |= {
            key: _rounded(entry[key]) for key in ("slow_share", "slow_s", "fast_lag1", "step_s")
        }
    Path(path).write_text(
        yaml.safe_dump(plain, sort_keys=False, width=110, default_flow_style=None), encoding="utf-8"
    )


def read_variations(path: str | Path) -> dict[str, Variation]:
    """The Variations of a file that `mobifleet calibrate link` has left, by direction; FileProblem
    for another file.
    """
    document = read_yaml(path)
    try:
        return {str(way): _variation(entry) for way, entry in document.items()}
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise FileProblem(
            f"{path}: not a variation.yaml of `mobifleet calibrate link` ({error})"
        ) from None


def _variation(entry: Mapping[str, Any]) -> Variation:
    names = {field.name for field in fields(Variation)}
    if not names - {"step_s"} <= set(entry) <= names:
        raise ValueError(f"a variation has {', '.join(sorted(names))}, and nothing else")
    return Variation(
        _floats(entry["quantiles_bps"]),
        _floats(entry["probabilities"]),
        float(entry["slow_share"]),
        float(entry["slow_s"]),
        float(entry["fast_lag1"]),
        float(entry.get("step_s", 1.0)),
    )


def _floats(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a list of numbers is needed, not {str(values)[:40]!r}")
    return tuple(map(float, values))


def fit_transfers(nbytes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(fixed seconds, bit/s) of transfers of several sizes: seconds = fixed + 8 nbytes / rate.

    Least squares of the relative errors. The fixed part is at least 0, the rate infinite where time
    does not grow with size.
    """
    sizes = np.asarray(nbytes, dtype=float)
    took_s = np.asarray(seconds, dtype=float)
    design = np.stack([np.ones_like(sizes), 8 * sizes], axis=1) / took_s[:, None]
    (fixed_s, per_bit_s), *_ = np.linalg.lstsq(design, np.ones_like(sizes), rcond=None)
    return max(0.0, float(fixed_s)), 1 / float(per_bit_s) if per_bit_s > 0 else float("inf")
