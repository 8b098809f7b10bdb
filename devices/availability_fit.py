"""Fit a daily rhythm to recorded availability: `fit(intervals, windows)` gives the parameters that
`by_rhythm` draws from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.optimize import minimize
from scipy.special import gammaln, ndtr

from devices.availability import DAY_S, HOUR_S, AvailabilityError, Rhythm, Sessions, _merged

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95)
# of the typical length, beside those of an hour: few start by day that last through the night
PSEUDO_SESSIONS = 10.0

Intervals = Mapping[str, Sequence[tuple[float, float]]]


def fit(
    intervals: Intervals,
    windows: Mapping[str, tuple[float, float]],
    name: str,
    source: str,
    shortest_s: float = 60.0,
    longest_s: float = DAY_S,
) -> Rhythm:
    """The rhythm of recorded devices; AvailabilityError where there is too little to fit.

    `intervals`: each device's (start_s, end_s) of being on; `windows`: from when to when each was
    watched. Times count from a midnight. Intervals no more than `shortest_s` apart are one session;
    shorter sessions are left out. Rates: maximum likelihood of negative binomial counts in the time
    off. Lengths: maximum likelihood of a log-normal cut to [shortest_s, longest_s], of the sessions
    that start in an hour or its neighbours. The device's shift: the mean product of the residuals
    of two sessions of one device.
    """
    sessions = sessions_of(intervals, windows, shortest_s)
    if sum(map(len, sessions.values())) < 240:
        raise AvailabilityError(
            f"{name}: {sum(map(len, sessions.values()))} sessions, too few: 240 are needed at least"
        )
    starts = np.array([a for mine in sessions.values() for a, _ in mine])
    logs = np.log([min(b - a, longest_s) for mine in sessions.values() for a, b in mine])
    hour = (starts % DAY_S // HOUR_S).astype(int)
    device = np.repeat(np.arange(len(sessions)), [len(mine) for mine in sessions.values()])
    watched_s = _time_by_hour({d: [window] for d, window in windows.items()})
    off_s = np.maximum(watched_s - _time_by_hour(sessions), 1.0)
    is_long, laws = _two_kinds(logs, hour, np.log(shortest_s))
    kinds = {}
    for kind, weight, (mean, sd) in zip(
        ("short", "long"), (1 - is_long, is_long), laws, strict=True
    ):
        hazard = np.bincount(hour, weight, 24) / off_s.sum(axis=0)
        hazard /= hazard.mean()
        counts = np.bincount(device, weight, len(sessions))
        per_day, shape = _negative_binomial(counts, off_s @ hazard / DAY_S)
        shared = _shared_variance(logs - mean[hour], weight, device)
        within = float(np.sqrt(max(sd**2 - shared, (sd / 2) ** 2)))
        kinds[kind] = Sessions(
            per_day, shape, tuple(hazard), tuple(mean), within, float(np.sqrt(shared))
        )
    return Rhythm(name, source, 0.0, shortest_s, longest_s, kinds, describe(sessions, windows))


def sessions_of(
    intervals: Intervals, windows: Mapping[str, tuple[float, float]], shortest_s: float = 60.0
) -> dict[str, list[tuple[float, float]]]:
    """Each watched device's sessions: intervals merged over gaps up to `shortest_s`, shorter ones
    left out.
    """
    merged = {device: _merged(intervals.get(device, ()), shortest_s) for device in windows}
    return {
        device: [(a, b) for a, b in mine if b - a >= shortest_s] for device, mine in merged.items()
    }


def describe(sessions: Intervals, windows: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """What a rhythm is compared by: share of time on by hour (24), quantiles of session lengths and
    of devices' shares.
    """
    on_s = _time_by_hour(sessions)
    watched_s = _time_by_hour({d: [window] for d, window in windows.items()})
    lengths = [b - a for mine in sessions.values() for a, b in mine]
    share = on_s.sum(axis=1) / watched_s.sum(axis=1)
    return {
        "devices": len(windows),
        "sessions": len(lengths),
        "share_by_hour": [float(x) for x in on_s.sum(axis=0) / watched_s.sum(axis=0)],
        "session_s": {q: float(np.quantile(lengths, q)) for q in QUANTILES},
        "device_share": {q: float(np.quantile(share, q)) for q in QUANTILES},
        "mean_device_share": float(share.mean()),
    }


def write(rhythm: Rhythm, path: Path) -> None:
    """Write a rhythm as a YAML file that `availability.load` reads, numbers to four digits."""
    text = yaml.safe_dump(
        _rounded(asdict(rhythm)), sort_keys=False, width=118, default_flow_style=None
    )
    path.write_text(text, encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _time_by_hour(intervals: Intervals) -> np.ndarray:
    """Seconds of each device's intervals that lie in each hour of the day, shape (devices, 24)."""
    time_s = np.zeros((len(intervals), 24))
    for row, mine in enumerate(intervals.values()):
        for start, end in mine:
            edges = np.concatenate(
                [[start], np.arange(start // HOUR_S + 1, -(-end // HOUR_S)) * HOUR_S, [end]]
            )
            np.add.at(time_s[row], (edges[:-1] % DAY_S // HOUR_S).astype(int), np.diff(edges))
    return time_s


def _two_kinds(
    logs: np.ndarray, hour: np.ndarray, low: float
) -> tuple[np.ndarray, list[tuple[np.ndarray, float]]]:
    """Tell short sessions from long ones: a mixture of normal laws of log lengths above `low`, by
    expectation-maximisation.

    Share and means are of an hour and its neighbours, standard deviations of all hours. Returns the
    probability that a session is long (n,), and (means (24,), standard deviation) of each kind.
    """
    near = np.array(
        [np.isin(hour, [(h - 1) % 24, h, (h + 1) % 24]) for h in range(24)], dtype=float
    )
    share = np.full(24, 0.1)
    laws = [(np.full(24, 6.5), 1.3), (np.full(24, 9.8), 0.6)]
    for _ in range(200):
        density = [
            np.exp(-(((logs - m[hour]) / sd) ** 2) / 2) / sd / ndtr((m[hour] - low) / sd)
            for m, sd in laws
        ]
        odds = share[hour] * density[1]
        is_long = odds / np.maximum(odds + (1 - share[hour]) * density[0], 1e-300)
        share = near @ is_long / near.sum(axis=1)
        laws = [
            _law(logs, hour, low, near, w, *law)
            for w, law in zip((1 - is_long, is_long), laws, strict=True)
        ]
    return is_long, laws


def _law(
    logs: np.ndarray,
    hour: np.ndarray,
    low: float,
    near: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    sd: float,
) -> tuple[np.ndarray, float]:
    """One step towards means by hour and standard deviation, with what a cut at `low` takes away
    given back.

    Above a cut at a = (low - mean) / sd a normal law has the mean `mean + sd r` and the second
    moment about `mean` `sd^2 (1 + a r)`, with r = phi(a) / Phi(-a).
    """
    typical = weight @ logs / weight.sum()
    seen = (near @ (weight * logs) + PSEUDO_SESSIONS * typical) / (near @ weight + PSEUDO_SESSIONS)
    a = (low - mean) / sd
    r = np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi) / ndtr(-a)
    mean = seen - sd * r
    square = weight @ (logs - mean[hour]) ** 2 / (weight @ (1 + a * r)[hour])
    return mean, float(np.sqrt(square))


def _shared_variance(residuals: np.ndarray, weight: np.ndarray, device: np.ndarray) -> float:
    """The variance that a device's sessions have in common: the weighted mean product of two of its
    residuals.
    """
    total = np.bincount(device, weight * residuals)
    square = np.bincount(device, (weight * residuals) ** 2)
    pairs = np.bincount(device, weight) ** 2
    own = np.bincount(device, weight**2)
    return max(0.0, float((total**2 - square).sum() / max((pairs - own).sum(), 1e-9)))


def _negative_binomial(counts: np.ndarray, days: np.ndarray) -> tuple[float, float]:
    """Mean rate a day and shape of the gamma law of rates that is most likely to give these counts
    in these days.
    """

    def loss(p: np.ndarray) -> float:
        mean, shape = np.exp(p)
        expected = mean * days
        log_p = (
            gammaln(counts + shape) - gammaln(shape) + shape * np.log(shape / (shape + expected))
        )
        return -float(np.sum(log_p + counts * np.log(expected / (shape + expected))))

    best = minimize(loss, [np.log(counts.sum() / days.sum()), 0.0], method="Nelder-Mead")
    return float(np.exp(best.x[0])), float(np.exp(best.x[1]))
