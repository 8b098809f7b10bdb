"""`mobifleet calibrate link`: a link profile from a measured path, from iperf3, or from a trace of
throughput.

Whatever the source, it becomes a `Found`: a throughput series for one or both directions, and
perhaps a round trip and a fixed cost a transfer. `report` turns it into calibrations/<name>/:
profile.yaml (for `link:` in a scenario), variation.yaml (to draw traces from), the series and an
hour of synthetic trace as CSV, and one figure a direction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from math import isfinite
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from inputs.units import format_seconds, format_si
from network import probe, profile
from network.calibration import (
    FEWEST_STEPS,
    Number,
    RateMoments,
    Variation,
    fit_transfers,
    fit_variation,
    moments,
    number,
    write_link_profile,
    write_variations,
)
from network.errors import NetworkError
from network.iperf3 import is_iperf3, read_iperf3
from network.measured import NEAR_A_SECOND, ThroughputSeries, per_second, read_throughput
from network.profile import LinkProfile
from network.series import doubt
from sim.calibrate.link_figure import draw
from sim.views.terminal_tables import show

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WARM_UP_S = 1  # of a bulk transfer: TCP finding the rate is no variation of the link
# shortest series of which every other minute is held out, to see whether the fit foretells it
HELD_OUT_S = 240
SYNTHETIC_S = 3600
LONGEST_DRAW_S = 20_000  # of a held-out comparison
DRAWS = 40  # of a held-out comparison: one draw of a link that wanders slowly says little
SECONDS_BETWEEN_LINES = 5.0


class LinkCalibrationError(ValueError):
    """What the user asked for does not go together."""


@dataclass(frozen=True)
class Found:
    """What is known of a path: series by direction ("up", "down"), and its source; times in s, None
    where unknown.
    """

    source: str
    series: Mapping[str, ThroughputSeries]
    date: str = field(default_factory=lambda: date.today().isoformat())
    rtt_s: float | None = None
    rtt_conditions: str = ""
    overhead_s: float | None = None
    connect_s: float | None = None


# ---- from where


def serve(host: str, port: int, console: Console) -> None:
    """Be the other end until Ctrl-C."""

    async def forever() -> None:
        server = await probe.listen(host, port, lambda peer, what: console.print(f"{peer}: {what}"))
        at = server.sockets[0].getsockname()[1]
        where = "this machine alone (`--host 0.0.0.0` lets others in)" if host in LOOPBACK else host
        there = (
            "`mobifleet calibrate link --to "
            f"{'127.0.0.1' if host in LOOPBACK else 'THIS-HOST'}:{at}`"
        )
        console.print(
            f"listening on port {at} of {where}; run {there} at the other end (Ctrl-C to close)",
            soft_wrap=True,
        )
        async with server:
            await server.serve_forever()

    try:
        asyncio.run(forever())
    except KeyboardInterrupt:
        console.print("closed")


def measure_link(address: str, port: int, seconds: float, console: Console) -> Found:
    """Measure the path to a listening end, `seconds` of bulk each way; `port` where it names none.
    Raises NetworkError.
    """
    host, port = _address(address, port)
    with _Shown(console) as shown:
        seen = asyncio.run(probe.measure(host, port, seconds, shown))
    how = f"one TCP flow, counted at the receiver, {seconds:g} s each way"
    warm_up = round(WARM_UP_S / seen.step_s) if seconds > 2 * WARM_UP_S else 0
    series = {
        direction: ThroughputSeries(per_second(bps[warm_up:], seen.step_s), 1.0, direction, how)
        if seconds > 2 * WARM_UP_S
        else ThroughputSeries(bps, seen.step_s, direction, how)
        for direction, bps in (("up", seen.up_bps), ("down", seen.down_bps))
    }
    rtt_s = float(np.median(seen.round_trips_s))
    fixed_s, _ = fit_transfers(*zip(*seen.transfers, strict=True))
    return Found(
        f"mobifleet calibrate link, to {host}:{port}",
        series,
        rtt_s=rtt_s,
        rtt_conditions=f"half the median of {len(seen.round_trips_s)} round trips on an idle path",
        overhead_s=max(0.0, fixed_s - rtt_s),
        connect_s=float(np.median(seen.connect_s)),
    )


def read(paths: Sequence[Path], unit: str | None, direction: str, column: str | None) -> Found:
    """iperf3's JSON, a file of rates, or a packet-delivery trace for each direction; --bidir holds
    both.

    Raises FileProblem, NetworkError or LinkCalibrationError.
    """
    series: dict[str, ThroughputSeries] = {}
    for path in paths:
        if is_iperf3(path):
            measured = read_iperf3(path)
        else:
            measured = (read_throughput(path, unit, direction, column),)
        for found in measured:
            if found.direction in series:
                raise LinkCalibrationError(
                    f"{path}: a second series for {found.direction}; give one file for up and one "
                    "for down "
                    "(`iperf3 -J` and `iperf3 -J --reverse`, or others each with its own "
                    "calibration)"
                )
            if not np.nansum(found.series_bps) > 0:
                raise LinkCalibrationError(
                    f"{path}: nothing passed in it: no step has a rate above zero"
                )
            series[found.direction] = found
    rtts_s = [found.rtt_s for found in series.values() if found.rtt_s]
    dates = [found.date for found in series.values() if found.date]
    return Found(
        ", ".join(path.name for path in paths),
        series,
        dates[0] if dates else "not in the file",
        rtt_s=min(rtts_s, default=None),
        rtt_conditions="half the smallest round trip that TCP saw while it was sending",
    )


def _address(address: str, default: int) -> tuple[str, int]:
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(default))
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise LinkCalibrationError(
            f"--to: HOST or HOST:PORT, for example phone.local:{probe.PORT} (got {address!r})"
        )
    return host, int(port)


# ---- what it means


def report(
    found: Found, name: str, folder: Path, like: str | None, console: Console
) -> LinkProfile:
    """Fit, write everything into `folder`, print it, and return the profile as it can be loaded.

    `like` names the profile that lends what was not measured. Raises LinkCalibrationError if it is
    needed and missing.
    """
    lender = profile.load(like) if like else None
    steps = {way: _steps(measured) for way, measured in found.series.items()}
    seconds = {way: bps for way, (bps, step_s) in steps.items() if step_s == 1}
    varied = {
        way: bps
        for way, bps in seconds.items()
        if _present(bps) >= FEWEST_STEPS and np.nansum(bps) > 0
    }
    found_moments = {way: moments(bps) for way, bps in varied.items()}
    variations = {way: fit_variation(bps) for way, bps in varied.items()}
    held_out = {way: cross_validated(bps) for way, bps in varied.items() if len(bps) >= HELD_OUT_S}

    numbers = _numbers(found, found_moments, varied, lender)
    folder.mkdir(parents=True, exist_ok=True)
    write_link_profile(folder / "profile.yaml", name, numbers)
    for way, (bps, step_s) in steps.items():
        _write_series(folder / f"{way}.csv", bps, step_s)
    if variations:
        write_variations(folder / "variation.yaml", variations)
        for way, variation in variations.items():
            trace = variation.trace(SYNTHETIC_S, np.random.default_rng(0))
            _write_series(folder / f"synthetic_{way}.csv", np.array(trace.capacity_bps), 1.0)
            draw(
                varied[way],
                trace,
                variation,
                found_moments[way],
                f"{name}, {way}link",
                folder / f"{way}.png",
            )
    link = profile.load(folder / "profile.yaml")
    _show(link, found, found_moments, variations, held_out, folder, console)
    return link


def _steps(measured: ThroughputSeries) -> tuple[np.ndarray, float]:
    """A series in steps of 1 s where it has whole seconds, else as it is, and the length of its
    steps.
    """
    seconds = per_second(measured.series_bps, measured.step_s)
    is_fine = measured.step_s < 1 + NEAR_A_SECOND
    return (seconds, 1.0) if is_fine and len(seconds) else (measured.series_bps, measured.step_s)


def _present(bps: np.ndarray) -> int:
    return int(np.isfinite(bps).sum())


def _numbers(
    found: Found,
    by_way: Mapping[str, RateMoments],
    varied: Mapping[str, np.ndarray],
    lender: LinkProfile | None,
) -> dict[str, Number]:
    def entry(value: float, conditions: str, basis: str = "measured") -> Number:
        return number(value, found.source, found.date, conditions, basis)

    def lent(by: LinkProfile, value: float, conditions: str) -> Number:
        return number(value, f"profile {by.name}", found.date, conditions, "estimated")

    missing = [f"{way}link" for way in ("up", "down") if way not in found.series]
    missing += ["latency"] if found.rtt_s is None else []
    if missing and lender is None:
        raise LinkCalibrationError(
            f"{found.source} says nothing of {' and '.join(missing)}: name a profile that lends "
            "it, "
            "for example --like lte (`mobifleet list links`)"
        )
    numbers: dict[str, Number] = {}
    for way, other in (("up", "down"), ("down", "up")):
        bps = found.series[way if way in found.series else other].series_bps
        mean_bps, median_bps = float(np.nanmean(bps)), float(np.nanmedian(bps))
        if way in found.series:
            how = f"mean (median {format_si(median_bps, 'bit/s')}); {found.series[way].conditions}"
            numbers[f"{way}_bps"] = entry(mean_bps, how)
        elif lender is not None:
            ratio = getattr(lender, f"{way}_bps") / getattr(lender, f"{other}_bps")
            how = f"{ratio:.3g} x the measured {other}link, as in that profile"
            numbers[f"{way}_bps"] = lent(lender, mean_bps * ratio, how)
    if found.rtt_s is not None:
        numbers["latency_s"] = entry(found.rtt_s / 2, found.rtt_conditions, "derived")
    elif lender is not None:
        numbers["latency_s"] = lent(lender, lender.latency_s, "not measured: that profile's")
    if found.overhead_s is not None:
        fixed = "fixed cost of a transfer on an open connection, above the round trip"
        opened = (
            f"; a new connection took {format_seconds(found.connect_s)} more"
            if found.connect_s
            else ""
        )
        numbers["overhead_s"] = entry(found.overhead_s, fixed + opened, "derived")
    if by_way:
        way = "up" if "up" in by_way else "down"
        how = f"{way}link, {_present(varied[way])} steps of 1 s; {found.series[way].conditions}"
        numbers["cv"] = entry(by_way[way].cv, how)
        if isfinite(by_way[way].lag1):  # else no second has a next one
            numbers["lag1"] = entry(float(np.clip(by_way[way].lag1, 0, 0.999)), how)
    return numbers


def _write_series(path: Path, bps: np.ndarray, step_s: float) -> None:
    """time_s, bit/s: what `network.bandwidth.read_csv` reads; missing steps are left out."""
    rows = [f"{i * step_s:g},{value:.0f}\n" for i, value in enumerate(bps) if np.isfinite(value)]
    path.write_text("time_s,capacity_bps\n" + "".join(rows), encoding="utf-8")


def cross_validated(series_bps: np.ndarray) -> dict[str, tuple[RateMoments, RateMoments] | str]:
    """(drawn from a fit on one part, measured in the other) for every other minute, and for the
    second half.

    Why there is none where a part is too short, or nothing passed in it.
    """
    minute = np.arange(len(series_bps)) // 60 % 2
    half = np.arange(len(series_bps)) >= len(series_bps) // 2
    n_steps = min(_present(series_bps), LONGEST_DRAW_S)
    results: dict[str, tuple[RateMoments, RateMoments] | str] = {}
    for title, held_out in (("every other minute", minute == 1), ("second half", half)):
        try:
            measured = moments(np.where(held_out, series_bps, np.nan))
            variation = fit_variation(np.where(held_out, np.nan, series_bps))
        except NetworkError as error:
            results[title] = f"not held out: {error}"
            continue
        drawn = [
            variation.trace(n_steps, np.random.default_rng(seed)).capacity_bps
            for seed in range(DRAWS)
        ]
        each = [moments(np.array(bps)) for bps in drawn]
        mean = RateMoments(
            *(
                float(np.mean([getattr(m, key) for m in each]))
                for key in RateMoments.__dataclass_fields__
            )
        )
        results[title] = (mean, measured)
    return results


# ---- what is seen


class _Shown:
    """Progress of a measurement: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console, self._told_s, self._stage = console, 0.0, ""
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done_s: float, all_s: float) -> None:
        new = stage != self._stage
        self._stage = stage
        if self.console.is_terminal:
            if new or self._task is None:
                self._task = self._bar.add_task(stage, total=all_s)
            self._bar.update(self._task, completed=done_s)
        elif new or time.perf_counter() - self._told_s > SECONDS_BETWEEN_LINES:
            self.console.print(f"{stage}: {done_s:.0f} of {all_s:.0f} s")
            self._told_s = time.perf_counter()


def _show(
    link: LinkProfile,
    found: Found,
    by_way: Mapping[str, RateMoments],
    variations: Mapping[str, Variation],
    held_out: Mapping[str, Mapping[str, tuple[RateMoments, RateMoments] | str]],
    folder: Path,
    console: Console,
) -> None:
    table = Table(
        title=f"link {link.name}", title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    for way in ("up", "down"):
        if way in found.series:
            bps = found.series[way].series_bps
            mean, median = (format_si(float(f(bps)), "bit/s") for f in (np.nanmean, np.nanmedian))
            table.add_row(
                f"{way}link", f"mean {mean}, median {median}; {found.series[way].conditions}"
            )
        else:
            table.add_row(
                f"{way}link",
                f"{format_si(getattr(link, f'{way}_bps'), 'bit/s')}, by the ratio of --like",
            )
    table.add_row("asymmetry", f"down / up {link.down_bps / link.up_bps:.2f}")
    how = "measured" if found.rtt_s is not None else "lent by --like"
    table.add_row("latency", f"{format_seconds(link.latency_s)} one way, {how}")
    if found.overhead_s is not None:
        table.add_row(
            "overhead", f"{format_seconds(link.overhead_s)} a transfer on an open connection"
        )
    for way, m in by_way.items():
        v = variations[way]
        lag1 = (
            f"lag-1 autocorrelation {m.lag1:.2f}"
            if isfinite(m.lag1)
            else "no two seconds in a row to correlate"
        )
        table.add_row(f"variability, {way}", f"CV {m.cv:.2f}, {lag1} at 1 s")
        table.add_row(
            "",
            f"{v.slow_share:.0%} of it slow ({format_seconds(v.slow_s)}), the rest fast (lag 1 "
            f"{v.fast_lag1:.2f})",
        )
    if not by_way:
        table.add_row(
            "variability",
            f"not known: it needs {FEWEST_STEPS} steps of 1 s and more (cv and lag1 are left out)",
        )
    for way, parts in held_out.items():
        for title, outcome in parts.items():
            table.add_row(
                f"held out, {way}",
                f"{title}: {outcome if isinstance(outcome, str) else _errors(*outcome)}",
            )
    show(table, console)
    console.print(
        f"written to {folder}; in a scenario: `link: {folder / 'profile.yaml'}`", soft_wrap=True
    )
    for way, measured in found.series.items():
        if (what := doubt(measured.series_bps.tolist())) is not None:
            console.print(f"note: {way}link: {what}", style="yellow", soft_wrap=True)


def _errors(drawn: RateMoments, held_out: RateMoments) -> str:
    """How far a drawn series is from the measured one, relatively."""
    return ", ".join(
        f"{label} {getattr(drawn, key) / getattr(held_out, key) - 1:+.0%}"
        for label, key in (("mean", "mean_bps"), ("CV", "cv"), ("lag 1", "lag1"))
        if getattr(held_out, key) and isfinite(getattr(held_out, key))
    )
