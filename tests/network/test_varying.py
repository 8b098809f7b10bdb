"""Rates of a device's own: their moments, that they are functions of time alone, and what a
transfer makes of them.
"""

from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import simpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from network import profile
from network.bandwidth import CapacityTrace, lognormal_ar1
from network.errors import NetworkError
from network.profile import LinkProfile
from network.topology import Network
from network.varying import PERIOD_STEPS, ShiftedTrace, VaryingRate


def rng(seed=5):
    return np.random.default_rng(seed)


def test_a_rate_drawn_as_time_goes_on_is_the_trace_drawn_at_once():
    whole = lognormal_ar1(30e6, 0.4, 0.85, PERIOD_STEPS, rng())
    rate = VaryingRate(30e6, 0.4, 0.85, rng())
    assert [rate.at(t) for t in range(PERIOD_STEPS)] == pytest.approx(whole.capacity_bps, rel=1e-12)
    assert rate.at(PERIOD_STEPS + 3.7) == rate.at(3)  # it repeats


def test_worked_number_of_the_docs():
    """docs/network.md: the logarithm of `lte`."""
    lte = profile.load("lte")
    rate = VaryingRate(lte.up_bps, lte.cv, lte.lag1, rng())
    median_bps = lte.up_bps * np.exp(-rate._variance / 2)
    text = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
    assert f"= {rate._variance:.4f} and" in text and f"= {rate._rho:.4f};" in text
    assert f"= {median_bps / 1e6:.1f} Mbit/s" in text


@settings(max_examples=60, deadline=None)
@given(
    asked_s=st.lists(st.floats(0, 10_000), max_size=20),
    step_s=st.sampled_from([1.0, 0.1, 0.3, 7.0]),
)
def test_a_function_of_time_however_it_is_asked(asked_s, step_s):
    here, there = (VaryingRate(1e6, 0.7, 0.9, rng(), step_s) for _ in range(2))
    answers = {t: (here.at(t), here.next_change(t)) for t in asked_s}
    for t in sorted(asked_s):
        assert (there.at(t), there.next_change(t)) == answers[t]
        change_s = here.next_change(t)
        assert t < change_s <= t + step_s * (1 + 1e-9)
        assert here.at(np.nextafter(change_s, 0)) == here.at(t)


@pytest.mark.parametrize("name", [n for n in profile.names() if profile.load(n).cv])
def test_moments_over_many_devices_are_the_profiles(name):
    """At one second of 3,000 devices, and between that second and the next."""
    link = profile.load(name)
    rates = [VaryingRate(link.up_bps, link.cv, link.lag1, rng((7, n))) for n in range(3000)]
    now, then = (np.array([rate.at(t) for rate in rates]) for t in (40, 41))
    assert now.mean() == pytest.approx(link.up_bps, rel=4 * link.cv / np.sqrt(3000))
    assert now.std() / now.mean() == pytest.approx(link.cv, rel=0.12)
    assert np.corrcoef(now, then)[0, 1] == pytest.approx(link.lag1, abs=0.05)


def test_a_transfer_ends_when_its_rates_have_carried_it():
    env = simpy.Environment()
    network = Network(env)
    up, down = VaryingRate(8e6, 0.5, 0.9, rng(1)), VaryingRate(2e6, 0.5, 0.9, rng(2))
    network.attach("d", LinkProfile("l", 8e6, 2e6, 0.25), trace=up, down_trace=down)
    sent = network.upload("d", 20_000_000), network.download("d", 3_000_000)
    env.run()
    for transfer, rate, nbytes in zip(sent, (up, down), (20_000_000, 3_000_000), strict=True):
        steps = np.arange(0.25, transfer.value, 1e-4)  # small steps, blind to where the changes are
        assert sum(rate.at(t) for t in steps) * 1e-4 == pytest.approx(8 * nbytes, rel=1e-3)


def test_who_looks_and_who_else_sends_changes_nothing():
    def finish(looks, others):
        env = simpy.Environment()
        network = Network(env, 1e12)
        for i in range(1 + others):
            link = LinkProfile("l", 8e6, 8e6, 0.0)
            network.attach(str(i), link, trace=VaryingRate(8e6, 0.6, 0.9, rng((3, i))))
        sent = [network.upload(str(i), 10_000_000) for i in range(1 + others)]
        for i in range(looks):
            env.run(until=(i + 1) / 10)
            assert network.shared["ingress"].bytes_carried > 0
        env.run()
        return sent[0].value

    assert finish(0, 0) == finish(70, 0)
    assert finish(0, 5) == pytest.approx(
        finish(0, 0), rel=1e-12
    )  # a free ingress: the sums of others round


def test_idle_devices_draw_nothing_and_wake_nobody():
    env = simpy.Environment()
    network = Network(env)
    rates = [VaryingRate(8e6, 0.6, 0.9, rng(i)) for i in range(2)]
    for i, rate in enumerate(rates):
        network.attach(str(i), LinkProfile("l", 8e6, 8e6, 0.0), trace=rate)
    network.upload("0", 10_000_000)
    env.run()
    assert 5 < env.now < 60
    assert len(rates[0]._bps) and not len(rates[1]._bps)


@settings(max_examples=80, deadline=None)
@given(
    gaps=st.lists(st.floats(0.01, 5), min_size=1, max_size=5),
    offset_s=st.floats(0, 2000),
    start_s=st.floats(0, 1000),
    periodic=st.booleans(),
)
def test_a_shifted_trace_is_the_trace_from_there_on(gaps, offset_s, start_s, periodic):
    times = [0.0, *np.cumsum(gaps)[:-1].tolist()]
    trace = CapacityTrace(
        times,
        [float(i + 1) for i in range(len(times))],
        float(sum(gaps)) * 1.001 if periodic else None,
    )
    shifted = ShiftedTrace(trace, offset_s)
    t, changes = start_s, []
    for _ in range(30):
        assert shifted.at(t) == trace.at(t + offset_s)
        change_s = shifted.next_change(t)
        assert change_s > t  # time passes, whatever the rounding
        if change_s == inf:
            return
        t = change_s
        changes.append(t)
    mine = [b - a for a, b in pairwise(changes)]
    assert min(mine) > 0 and sum(mine) == pytest.approx(changes[-1] - changes[0])


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: VaryingRate(0, 0.4, 0.8, rng()),
        lambda: VaryingRate(1e6, -1, 0.8, rng()),
        lambda: VaryingRate(1e6, 0.4, 1.0, rng()),
        lambda: VaryingRate(1e6, 0.4, 0.8, rng()).at(-1),
        lambda: VaryingRate(1e6, 0.4, 0.8, rng()).next_change(inf),
        lambda: ShiftedTrace(CapacityTrace([0], [1]), -1),
        lambda: LinkProfile("l", 1e6, 1e6, 0.0, cv=-0.1),
        lambda: LinkProfile("l", 1e6, 1e6, 0.0, lag1=1.0),
        lambda: LinkProfile("l", 1e6, 1e6, 0.0, loss=1.0),
        lambda: LinkProfile("l", 1e6, 1e6, 0.0, window_bytes=0),
        lambda: LinkProfile("l", 1e6, 1e6, 0.0, initial_window_bytes=float("nan")),
    ],
)
def test_mistakes_are_named(mistake):
    with pytest.raises(NetworkError):
        mistake()


@pytest.mark.parametrize("name", profile.names())
def test_every_optional_number_has_its_source(name):
    link = profile.load(name)
    for key in profile.OPTIONAL:
        if getattr(link, key) != LinkProfile.__dataclass_fields__[key].default:
            entry = link.provenance[key]
            assert entry["basis"] in profile.BASES and all(
                entry[f] for f in ("source", "date", "conditions")
            )
    assert link.window_bytes > 1e4 and link.initial_window_bytes > 1e3  # bytes, not segments


@pytest.mark.parametrize(
    ("name", "runs", "n"),
    [
        ("lte", "lte_mahimahi", 4),
        ("lte-driving", "lte_mahimahi_att_lte_driving", 1),
        ("5g-nsa-low", "5g_nsa_low_tmobile", 5),
        ("5g-sa-low", "5g_sa_low_tmobile", 5),
        ("5g-mmwave", "5g_nsa_mmwave_default", 10),
    ],
)
def test_variation_is_that_of_the_measured_traces(name, runs, n):
    """The profile has the medians over the measured uplinks of its kind, to the digits that it
    gives.
    """
    measured = yaml.safe_load((Path(__file__).parent / "uplinks.yaml").read_text(encoding="utf-8"))
    found = [
        run
        for title, run in measured.items()
        if title == runs or (n > 1 and title.startswith(runs))
    ]
    assert len(found) == n
    link = profile.load(name)
    assert link.cv == pytest.approx(median(run["cv"] for run in found), abs=0.006)
    assert link.lag1 == pytest.approx(median(run["lag1"] for run in found), abs=0.006)
