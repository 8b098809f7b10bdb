"""Fits of timings: known numbers come back from noise, disturbed timings count less, mistakes are
explained.
"""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import calibration, compute, profile
from devices.calibration import CalibrationError, Point, Timing

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"


def made(
    overhead_s, flop_per_s, bandwidth, engine="simple", noise=0.0, rng=None, count=40
) -> list[Point]:
    """Points of the model itself over four decades of FLOP and two of bytes, with log-normal
    noise.
    """
    rng = rng or np.random.default_rng(0)
    flop, moved = 10 ** rng.uniform(7, 11, count), 10 ** rng.uniform(6, 8, count)
    seconds = (overhead_s + flop / flop_per_s + moved / bandwidth) * np.exp(
        noise * rng.standard_normal(count)
    )
    rows = zip(flop, moved, seconds, strict=True)
    return [Point(f"{engine} {i}", engine, f, b, s) for i, (f, b, s) in enumerate(rows)]


@settings(max_examples=25, deadline=None)
@given(
    overhead_s=st.floats(1e-5, 1e-2),
    flop_per_s=st.floats(1e9, 1e12),
    bandwidth=st.floats(1e9, 1e11),
    seed=st.integers(0, 99),
)
def test_a_noiseless_law_is_predicted_exactly_where_nothing_was_seen(
    overhead_s, flop_per_s, bandwidth, seed
):
    points = made(overhead_s, flop_per_s, bandwidth, rng=np.random.default_rng(seed))
    points = calibration.hold_out(points, np.random.default_rng(seed))
    fit = calibration.fit(points, lent_bandwidth=bandwidth)
    held = [p for p in points if not p.fitted]
    assert len(held) == len(points) // 3
    assert (
        calibration.errors([fit.seconds(p) for p in held], [p.seconds for p in held]).worst_pct
        < 0.01
    )


def test_two_engines_share_one_bandwidth_and_keep_their_own_rates():
    rng = np.random.default_rng(1)
    points = made(1e-3, 1e11, 1e10, "simple", 0.03, rng) + made(
        4e-3, 5e10, 1e10, "training", 0.03, rng
    )
    fit = calibration.fit(points, lent_bandwidth=2e10)
    assert fit.bandwidth_fitted and fit.bandwidth_bytes_per_s == pytest.approx(1e10, rel=0.15)
    assert fit.engines["simple"].flop_per_s == pytest.approx(1e11, rel=0.05)
    assert fit.engines["training"].flop_per_s == pytest.approx(5e10, rel=0.05)
    assert fit.engines["simple"].overhead_s == pytest.approx(1e-3, rel=0.15)
    assert fit.engines["training"].overhead_s == pytest.approx(4e-3, rel=0.15)


def test_a_few_disturbed_points_do_not_steer_the_fit():
    clean = made(1e-3, 1e11, 1e10, noise=0.02)
    spoilt = [replace(p, seconds=3 * p.seconds) if i % 8 == 0 else p for i, p in enumerate(clean)]
    relative = np.array([[1, p.flop, p.bytes_moved] for p in spoilt]) / np.array(
        [[p.seconds] for p in spoilt]
    )
    plain = np.linalg.lstsq(relative, np.ones(len(spoilt)), rcond=None)[0]
    fit = calibration.fit(spoilt, lent_bandwidth=1e10)
    measured_s = [p.seconds for p in clean]
    robust = calibration.errors([fit.seconds(p) for p in clean], measured_s)
    ordinary = calibration.errors([plain @ [1, p.flop, p.bytes_moved] for p in clean], measured_s)
    assert robust.mean_pct < 3 and robust.mean_pct < 0.7 * ordinary.mean_pct


def test_weights_in_a_cache_are_not_read_infinitely_fast():
    points = [
        replace(p, seconds=1e-3 + p.flop / 1e11) for p in made(1e-3, 1e11, 1e10)
    ]  # bytes cost nothing here
    fit = calibration.fit(points, lent_bandwidth=1e10)
    assert fit.bandwidth_bytes_per_s == pytest.approx(calibration.FASTEST_CACHE * 1e10, rel=1e-3)


def test_bytes_that_do_not_vary_leave_the_bandwidth_lent():
    points = [replace(p, bytes_moved=1e7) for p in made(0, 1, 1)]
    points = [replace(p, seconds=2e-3 + p.flop / 1e11 + 1e7 / 2e10) for p in points]
    fit = calibration.fit(points, lent_bandwidth=2e10)
    assert not fit.bandwidth_fitted and fit.bandwidth_bytes_per_s == 2e10
    assert fit.engines["simple"].overhead_s == pytest.approx(2e-3, rel=1e-3)


def test_few_rows_give_the_geometric_mean_rate_with_the_lent_overhead():
    rows = [
        Point("a", "npu", 1e10, 0, 0.1 + 1e10 / 4e11),
        Point("b", "npu", 2e10, 0, 0.1 + 2e10 / 1e11),
    ]
    found = calibration.fit(rows, 1e10, {"npu": 0.1}).engines["npu"]
    assert found.rate_alone and found.overhead_s == 0.1
    assert found.flop_per_s == pytest.approx(math.sqrt(4e11 * 1e11))


def test_what_cannot_be_fitted_is_explained():
    with pytest.raises(CalibrationError, match="no measurements"):
        calibration.fit([], 1e10)
    flat = [replace(p, seconds=0.1) for p in made(0, 1e11, 1e10)]
    with pytest.raises(CalibrationError, match="do not grow with FLOP"):
        calibration.fit(flat, 1e10)
    with pytest.raises(CalibrationError, match="less than the lent overhead"):
        calibration.fit([Point("a", "npu", 1e9, 0, 0.01)], 1e10, {"npu": 0.02})
    with pytest.raises(CalibrationError, match="every measurement of engine 'npu' is held out"):
        calibration.fit([Point("a", "npu", 1e9, 0, 0.01, fitted=False)], 1e10)


def test_shapes_are_held_out_by_seed_a_third_of_each_engine_and_never_too_many():
    points = made(1e-3, 1e11, 1e10, "simple", count=30) + made(
        1e-3, 1e11, 1e10, "training", count=7
    )
    first, again, other = (
        [p.fitted for p in calibration.hold_out(points, np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert (
        first[:30].count(False) == 10 and first[30:].count(False) == 7 - calibration.ENOUGH_POINTS
    )
    assert all(p.fitted for p in calibration.hold_out(points[:5], np.random.default_rng(0)))


def test_repeats_become_their_median_and_the_disturbed_half_is_left_out():
    calm = [Timing("w", "simple", 1e9, 1e6, s, 1.0) for s in (1.0, 1.1, 1.2)]
    disturbed = [Timing("w", "simple", 1e9, 1e6, s, 0.5) for s in (2.0, 2.1, 2.2, 2.3)]
    [point] = calibration.medians(disturbed[:2] + calm)
    assert (point.seconds, point.repeats) == (1.1, 3)
    [point] = calibration.medians(
        disturbed + calm
    )  # four of seven are kept: three calm ones and one more
    assert point.repeats == 4 and point.seconds == pytest.approx(1.15)
    assert calibration.jitter_cv([point]) == pytest.approx(
        np.std([1.0, 1.1, 1.2, 2.0], ddof=1) / np.mean([1.0, 1.1, 1.2, 2.0])
    )
    assert calibration.jitter_cv([replace(point, repeats=1)]) is None


@pytest.mark.parametrize("name", [n for n in profile.names() if profile.load(n).measurements])
def test_the_measurements_in_a_shipped_profile_give_its_rates_again(name):
    """Within 2 %, and with them every row's prediction: some shipped rates are rounded, or kept
    between two rows.
    """
    shipped = profile.load(name)
    seen = {
        m.engine for m in shipped.measurements if m.fitted
    }  # an engine may have its rate from elsewhere
    rows = [m for m in shipped.measurements if m.engine in seen]
    points = [
        Point(m.workload, m.engine, m.flop, m.bytes_moved, m.seconds, fitted=m.fitted) for m in rows
    ]
    overheads = {engine: found.overhead_s for engine, found in shipped.engines.items()}
    fit = calibration.fit(points, shipped.memory_bandwidth_bytes_per_s, overheads)
    for engine, found in fit.engines.items():
        assert found.flop_per_s == pytest.approx(shipped.engine(engine).flop_per_s, rel=0.02)
    for p in points:
        assert fit.seconds(p) == pytest.approx(
            compute.seconds(shipped, p.engine, p.flop, p.bytes_moved), rel=0.02
        )


# --- sustained load


def test_a_sinking_rate_gives_factor_and_tau():
    at_s = np.arange(300.0)
    rate = (
        40
        * (0.55 + 0.45 * np.exp(-at_s / 30))
        * np.exp(0.03 * np.random.default_rng(0).standard_normal(300))
    )
    found = calibration.fit_sustained(at_s, rate)
    assert found.factor == pytest.approx(0.55, abs=0.02) and found.tau_s == pytest.approx(
        30, rel=0.15
    )
    assert found.explained > 0.8 and not found.still_sinking


@pytest.mark.parametrize("memory", [0.0, 0.7])
def test_noise_alone_is_not_taken_for_sinking(memory):
    for seed in range(12):
        noise = np.random.default_rng(seed).standard_normal(60)
        for i in range(1, 60):
            noise[i] = memory * noise[i - 1] + math.sqrt(1 - memory**2) * noise[i]
        found = calibration.fit_sustained(np.arange(60.0), 40 * np.exp(0.05 * noise))
        assert (found.factor, found.tau_s) == (1.0, 0.0)
        assert found.noise_cv == pytest.approx(0.05, rel=0.6)


def test_what_still_sinks_at_the_end_says_so_and_claims_no_more_than_was_seen():
    at_s = np.arange(60.0)
    found = calibration.fit_sustained(at_s, 10 * (0.5 + 0.5 * np.exp(-at_s / 200)))
    assert found.still_sinking and found.tau_s <= 60
    assert found.factor == pytest.approx(0.5 + 0.5 * math.exp(-59 / 200), abs=0.01)
    with pytest.raises(CalibrationError, match="too few"):
        calibration.fit_sustained([0, 1, 2], [1, 1, 1])


def test_blocks_of_equal_work_have_the_rate_of_their_passes():
    at_s = np.cumsum([0, *[0.1] * 99])
    starts, rates = calibration.block_rates(at_s, [0.1] * 100, 0.95)
    assert len(starts) == len(rates) == 10
    assert rates == pytest.approx([10] * 10) and starts[1] == pytest.approx(1.0)


@pytest.mark.skipif(not TRACES.is_dir(), reason="measured series not beside the checkout")
@pytest.mark.parametrize(
    ("model", "factor", "tau_s"),
    [
        ("DeepSeek-R1-1.5B (Core AI, ANE)", 0.60, 20),
        ("Llama-3.2-3B (Core AI, ANE)", 0.52, 50),
        ("Llama-3.2-3B (Core AI, GPU)", 0.56, 50),
    ],
)
def test_measured_phones_sink_as_published(model, factor, tau_s):
    """iPhone 17 Pro under continuous load: the index names the runs, the facts give f_inf and tau
    of each model.
    """
    with (TRACES / "thermal_iphone17pro_index.csv").open(newline="") as file:
        runs = [row for row in csv.DictReader(file) if row["model"] == model]
    with (TRACES / "thermal_iphone17pro.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["run"] == runs[0]["run"] and row["decode_tok_s"]
        ]
    rate = np.array([float(r["decode_tok_s"]) for r in rows])
    rate = rate[: len(rate) // 10 * 10].reshape(-1, 10).mean(axis=1)  # blocks of ten seconds
    found = calibration.fit_sustained(10.0 * np.arange(len(rate)), rate)
    assert found.factor == pytest.approx(factor, abs=0.06)
    assert found.tau_s == pytest.approx(tau_s, rel=0.6)


@pytest.mark.skipif(not TRACES.is_dir(), reason="measured table not beside the checkout")
def test_timings_of_the_measured_table_come_out_within_the_error_that_the_fit_states():
    """Every device and path of the published table that gives a time and a rate."""
    with (TRACES / "device_measurements.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["derived_tflops"] and row["metric"] in ("time", "latency")
        ]
    unit_s = {"ms": 1e-3, "ms (max of 1 run)": 1e-3, "s/batch": 1.0, "s/step": 1.0}
    points = []
    for row in rows:
        if row["unit"] in unit_s and row["value"].replace(".", "", 1).isdigit():  # not a range
            seconds = float(row["value"]) * unit_s[row["unit"]]
            flop, engine = (
                float(row["derived_tflops"]) * 1e12 * seconds,
                f"{row['device']}, {row['engine']}, {row['precision']}",
            )
            points.append(Point(row["workload"], engine, flop, 0.0, seconds))
    assert len(points) >= 8
    fit = calibration.fit(points, 1e10)
    for engine in fit.engines:
        own = [p for p in points if p.engine == engine]
        stated = calibration.errors([fit.seconds(p) for p in own], [p.seconds for p in own])
        spread = max(p.flop / p.seconds for p in own) / min(p.flop / p.seconds for p in own)
        assert stated.worst_pct <= 100 * (spread - 1) + 1e-6


def test_worked_number_of_the_docs():
    """One published timing of a TX2 gives its rate: 355 GFLOP/s."""
    row = Point("BERT-base, 4 x 256", "simple", 183.6e9, 340e6, 0.5325)
    assert calibration.fit([row], 32.84e9, {"simple": 0.005}).engines[
        "simple"
    ].flop_per_s == pytest.approx(355e9, rel=1e-3)
