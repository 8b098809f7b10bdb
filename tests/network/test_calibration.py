"""Fits of links: known processes come back, files are read or refused clearly, and held-out seconds
of real uplinks too.
"""

from math import exp, inf
from pathlib import Path

import numpy as np
import pytest
import simpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inputs.files import FileProblem
from network import profile
from network.bandwidth import lognormal_ar1, quantile_ar
from network.calibration import (
    PROBABILITIES,
    Variation,
    autocorrelation,
    fit_transfers,
    fit_variation,
    moments,
    number,
    read_variations,
    write_link_profile,
    write_variations,
)
from network.errors import NetworkError
from network.measured import read_throughput
from network.topology import Network


def drawn(variation: Variation, n_steps: int, seed: int = 0) -> np.ndarray:
    return np.array(variation.trace(n_steps, np.random.default_rng(seed)).capacity_bps)


# ---- the fit against theory


def test_moments_of_a_known_process_come_back():
    trace = lognormal_ar1(20e6, 0.4, 0.8, 40_000, np.random.default_rng(1))
    found = moments(np.array(trace.capacity_bps))
    assert (found.mean_bps, found.cv, found.lag1) == pytest.approx((20e6, 0.4, 0.8), rel=0.05)
    assert found.median_bps == pytest.approx(
        20e6 / (1 + 0.4**2) ** 0.5, rel=0.03
    )  # of a log-normal


def test_quantile_ar_has_the_quantiles_and_the_autocorrelation_that_it_says():
    """A normal marginal makes the copula the identity, so that the formula of the docstring can be
    read off.
    """
    from statistics import NormalDist

    probabilities = np.linspace(0, 1, 2001)
    normal = [NormalDist(100, 10).inv_cdf(min(max(p, 1e-4), 1 - 1e-4)) for p in probabilities]
    trace = quantile_ar(normal, probabilities, 0.6, 50, 0.3, 100_000, np.random.default_rng(0))
    series = np.array(trace.capacity_bps)
    lags = [1, 5, 20, 60]
    expected = [0.6 * exp(-k / 50) + 0.4 * 0.3**k for k in lags]
    assert expected[::2][:2] == pytest.approx(
        [0.708, 0.402], abs=5e-4
    )  # the worked number of docs/calibrate_link.md
    assert autocorrelation(series, lags) == pytest.approx(expected, abs=0.03)
    assert np.quantile(series, [0.05, 0.5, 0.95]) == pytest.approx(
        [100 - 16.45, 100, 100 + 16.45], rel=0.01
    )


def test_two_time_scales_and_outages_come_back_from_a_fit():
    truth = Variation((0, 0, 8e6, 30e6), (0, 0.1, 0.5, 1), slow_share=0.7, slow_s=60, fast_lag1=0.4)
    series = drawn(truth, 20_000)
    series[5::50] = np.nan  # missing seconds
    found = fit_variation(series)
    assert found.slow_share == pytest.approx(0.7, abs=0.1)
    assert found.slow_s == pytest.approx(60, rel=0.35)
    assert np.mean(drawn(found, 20_000, 1) == 0) == pytest.approx(0.1, abs=0.03)
    again = drawn(found, 60_000, 2)
    wanted, got = moments(series), moments(again)
    assert (got.mean_bps, got.cv, got.lag1) == pytest.approx(
        (wanted.mean_bps, wanted.cv, wanted.lag1), rel=0.07
    )
    assert (
        found.trace(50, np.random.default_rng(3)).capacity_bps
        == found.trace(50, np.random.default_rng(3)).capacity_bps
    )


def test_a_steady_link_stays_steady():
    steady = np.full(30, 5e6)
    assert moments(steady).cv == 0 and moments(steady).lag1 == 0
    assert set(drawn(fit_variation(steady), 20)) == {5e6}
    with pytest.raises(NetworkError, match="too short"):
        moments(steady[:3])
    with pytest.raises(NetworkError, match="zero throughout"):
        moments(np.zeros(20))


@settings(max_examples=60, deadline=None)
@given(
    fixed_s=st.floats(0, 2),
    rate_bps=st.floats(1e4, 1e9),
    sizes=st.lists(st.integers(1, 10**7), min_size=3, unique=True),
)
def test_fixed_cost_and_rate_of_exact_transfers_are_found(fixed_s, rate_bps, sizes):
    seconds = [fixed_s + 8 * n / rate_bps for n in sizes]
    found_s, found_bps = fit_transfers(sizes, seconds)
    assert [found_s + 8 * n / found_bps for n in sizes] == pytest.approx(seconds, rel=1e-3)


# ---- files


def test_a_written_profile_is_read_back(tmp_path):
    path = tmp_path / "mine.yaml"
    numbers = {"up_bps": 1.23456e7, "down_bps": 5e7, "latency_s": 0.02, "cv": 0.4, "lag1": 0.8}
    write_link_profile(
        path,
        "mine",
        {key: number(value, "a test", "2026", "none: at home") for key, value in numbers.items()},
    )
    link = profile.load(path)
    assert (link.name, link.up_bps, link.cv, link.lag1) == ("mine", 1.235e7, 0.4, 0.8)
    assert link.provenance["cv"] == {
        "basis": "measured",
        "source": "a test",
        "date": "2026",
        "conditions": "none: at home",
    }
    with pytest.raises(NetworkError, match="finite"):
        write_link_profile(path, "mine", {"up_bps": number(inf, "a", "b", "c")})


# ---- measured uplinks, held out

HERE = Path(__file__).parent
TRACES = next(
    (p for n in (2, 3) if (p := HERE.parents[n - 1] / "shared" / "traces" / "uplink_1s").is_dir()),
    None,
)
MINUTE = 60


def uplinks() -> dict[str, np.ndarray]:
    """Throughput in bit/s by the name of the run: the interface's counter for 5G, delivery
    opportunities for the rest.

    Where the measured series are not at hand, stand-ins: drawn from what was fitted to each,
    brought to its mean and CV.
    """
    found = {}
    for i, (name, fit) in enumerate(
        yaml.safe_load((HERE / "uplinks.yaml").read_text(encoding="utf-8")).items()
    ):
        if TRACES is not None:
            column = "iface_tx_mbps" if name.startswith("5g") else "uplink_mbps"
            found[name] = read_throughput(TRACES / f"{name}.csv", "Mbit/s", "up", column).series_bps
        else:
            scales = {key: fit[key] for key in ("slow_share", "slow_s", "fast_lag1")}
            series = drawn(
                Variation(fit["quantiles_bps"], PROBABILITIES, **scales), fit["seconds"], i
            )
            found[name] = fit["mean_bps"] * np.maximum(
                1 + fit["cv"] * (series - series.mean()) / series.std(), 0
            )
    return found


def triple(series: np.ndarray) -> np.ndarray:
    found = moments(series)
    return np.array([found.mean_bps, found.cv, found.lag1])


def through_a_link(trace, seconds: int) -> np.ndarray:
    """Bits that pass each second on a simulated access link with this trace while it always has
    something to send.
    """
    env = simpy.Environment()
    network = Network(env)
    network.attach("phone", profile.LinkProfile("phone", 1e6, 1e6, 0.0), trace=trace)
    network.upload("phone", 1e12)
    carried = []
    for second in range(1, seconds + 1):
        env.run(until=second)
        carried.append(network.shared["ingress"].bytes_carried)
    return 8 * np.diff([0.0, *carried])


def every_other_minute(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The series with its odd minutes missing, and with its even ones missing."""
    even = np.arange(len(series)) // MINUTE % 2 == 0
    return np.where(even, series, np.nan), np.where(even, np.nan, series)


def test_a_simulated_link_passes_what_its_trace_offers():
    """So what holds for the trace holds for the link."""
    trace = Variation((0, 2e6, 8e6, 30e6), (0, 0.1, 0.5, 1), 0.7, 60, 0.4).trace(
        300, np.random.default_rng(0)
    )
    assert through_a_link(trace, 300) == pytest.approx(trace.capacity_bps, rel=1e-6)


def minute_cv(series: np.ndarray) -> float:
    whole = series[: len(series) // MINUTE * MINUTE].reshape(-1, MINUTE)
    means = np.nanmean(whole, axis=1)
    return float(np.std(means) / np.mean(means))


@pytest.mark.parametrize(
    ("group", "n"), [("5g_nsa_low", 5), ("5g_sa_low", 5), ("5g_nsa_mmwave", 10)]
)
def test_simulated_links_reproduce_minutes_that_the_fit_did_not_see(group, n):
    """Mean, CV and lag 1 averaged over the runs of a group, within 15 %; single runs differ more
    (docs/calibrate_link.md).
    """
    runs = [series for name, series in uplinks().items() if name.startswith(group)]
    assert len(runs) == n
    simulated, held_out = [], []
    for run, series in enumerate(runs):
        fit_on, held = every_other_minute(series)
        variation = fit_variation(fit_on)
        seeds = range(12 * run, 12 * run + 12)
        simulated.append(
            np.mean([triple(drawn(variation, len(series), seed)) for seed in seeds], axis=0)
        )
        held_out.append(triple(held))
    assert np.mean(simulated, axis=0) == pytest.approx(np.mean(held_out, axis=0), rel=0.15)


def test_a_whole_run_is_reproduced_from_the_others_of_its_group():
    """5G SA low band: each of five walks from the other four, every number within 15 %."""
    runs = [series for name, series in uplinks().items() if name.startswith("5g_sa_low")]
    for left_out, series in enumerate(runs):
        others = [
            np.append(run, np.full(MINUTE, np.nan)) for i, run in enumerate(runs) if i != left_out
        ]
        variation = fit_variation(np.concatenate(others))
        assert triple(drawn(variation, 20_000, left_out)) == pytest.approx(triple(series), rel=0.15)


@pytest.mark.thorough
def test_only_two_time_scales_make_minutes_as_unlike_as_they_are():
    """CV of the mean of a minute, simulated / measured, median over the runs of ten minutes and
    more.
    """
    two_scales, one_scale = [], []
    for series in uplinks().values():
        if len(series) < 10 * MINUTE:
            continue
        variation, plain, n = fit_variation(series), moments(series), len(series)
        seeds = range(3)
        two_scales.append(
            np.mean([minute_cv(drawn(variation, n, seed)) for seed in seeds]) / minute_cv(series)
        )
        ar1 = [
            lognormal_ar1(plain.mean_bps, plain.cv, plain.lag1, n, np.random.default_rng(seed))
            for seed in seeds
        ]
        one_scale.append(
            np.mean([minute_cv(np.array(trace.capacity_bps)) for trace in ar1]) / minute_cv(series)
        )
    assert 0.8 < np.median(two_scales) < 1.15
    assert np.median(one_scale) < 0.7


def test_variations_come_back_from_their_file_and_others_are_refused(tmp_path):
    path = tmp_path / "variation.yaml"
    known = Variation((0.0, 2e6, 8e6), (0.0, 0.5, 1.0), 0.7, 60.0, 0.4, 1.0)
    write_variations(path, {"up": known})
    assert read_variations(path) == {"up": known}
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["up"]
    for change in (
        {"slow_share": [0.7]},
        {"quantiles_bps": 8e6},
        {"probabilities": "015"},
        {"slow_s": None},
        {"more": 1.0},
    ):
        path.write_text(yaml.safe_dump({"up": {**written, **change}}), encoding="utf-8")
        with pytest.raises(FileProblem, match=r"not a variation.yaml"):
            read_variations(path)
    path.write_text(yaml.safe_dump({"up": {"slow_s": 60.0}}), encoding="utf-8")
    with pytest.raises(FileProblem, match=r"a variation has fast_lag1, .*, step_s, and nothing"):
        read_variations(path)
