"""What TCP makes of a link, against segments sent one by one, a sawtooth walked step by step, and
SimGrid's example.
"""

from collections import deque
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from network import profile, tcp
from network.profile import LinkProfile
from network.topology import Cell, Network
from network.varying import VaryingRate

MEGABYTE = 1_000_000


def send_segments(
    n: int, rate_bps: float, rtt_s: float, window: float, longest: float = inf
) -> float:
    """When the last of n segments is on the wire, of a sender whose window grows by one at each
    acknowledgement.
    """
    one_s = 8 * tcp.MSS_BYTES / rate_bps
    free_s, now, acks = 0.0, 0.0, deque()
    sent = under_way = 0
    while sent < n:
        if under_way < min(window, longest):
            free_s = max(free_s, now) + one_s
            acks.append(free_s + rtt_s)
            sent, under_way = sent + 1, under_way + 1
        else:
            now = acks.popleft()
            under_way, window = under_way - 1, window + 1
    return free_s


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3000),
    rate_bps=st.floats(1e5, 3e8),
    rtt_s=st.sampled_from([0.005, 0.03, 0.2]),
    window=st.integers(1, 20),
)
def test_slow_start_is_what_segments_and_acknowledgements_do(n, rate_bps, rtt_s, window):
    """Fluid windows against segments: apart by the time of a segment for each round in which the
    sender waits.
    """
    nbytes, one_s = n * tcp.MSS_BYTES, 8 * tcp.MSS_BYTES / rate_bps
    extra_s = tcp.slow_start_s(nbytes, rate_bps, rtt_s, window * tcp.MSS_BYTES)
    waited_s = send_segments(n, rate_bps, rtt_s, window) - n * one_s
    assert waited_s == pytest.approx(extra_s, abs=13 * one_s + 1e-9)


def test_slow_start_never_ends_later_than_it_must():
    assert tcp.slow_start_s(14480, 1e9, 0.1, 14480) == 0.0  # all in the first window
    assert tcp.slow_start_s(14481, 1e9, 0.1, 14480) == pytest.approx(
        0.1 - 8 * 14480 / 1e9
    )  # one wait
    assert (
        tcp.slow_start_s(10**12, 1e6, 0.1, 14480) == 0.0
    )  # the first window fills the pipe: 116 ms of sending
    assert tcp.slow_start_s(10**6, 1e6, 0.0, 14480) == tcp.slow_start_s(10**6, inf, 0.1, inf) == 0.0


@pytest.mark.parametrize("loss", [1e-4, 1e-3, 1e-2])
def test_mathis_is_the_mean_of_a_sawtooth(loss):
    """Every 1/p-th packet is lost and halves the window, which else grows by one each round
    trip.
    """
    rtt_s, window, sent, packets, rounds = 0.1, 10.0, 0.0, 0.0, 0
    while packets < 2000 / loss:
        packets, sent, rounds = packets + window, sent + window, rounds + 1
        window += 1
        if sent >= 1 / loss:
            window, sent = window / 2, sent - 1 / loss
    measured_bps = 8 * tcp.MSS_BYTES * packets / (rounds * rtt_s)
    assert tcp.mathis_bps(rtt_s, loss) == pytest.approx(
        measured_bps, rel=0.06 if loss == 1e-2 else 0.02
    )
    assert tcp.mathis_bps(rtt_s, loss) == pytest.approx(
        8 * tcp.MSS_BYTES / rtt_s * sqrt(1.5) / sqrt(loss)
    )


def test_the_worked_numbers_of_the_docs():
    """docs/network.md: 100 kB over `lte`; what `lte-driving` and a window of 64 KiB at 100 ms allow
    one transfer.
    """
    env = simpy.Environment()
    network = Network(env)
    network.attach("plain", profile.load("lte"))
    network.attach("tcp", profile.load("lte"), tcp=True)
    plain, with_tcp = network.upload("plain", 100_000), network.upload("tcp", 100_000)
    env.run()
    driving_bps = tcp.bound_bps(profile.load("lte-driving"))
    assert driving_bps == tcp.mathis_bps(0.094, 0.0116)
    window_bps = tcp.window_bps(0.1, 65536)
    text = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
    for number in (
        f"{plain.value:.4f} s",
        f"{with_tcp.value:.4f} s",
        f"{with_tcp.value - plain.value:.4f} s",
    ):
        assert number in text
    for bps in (driving_bps, window_bps):
        assert f"{bps / 1e6:.3f} Mbit/s" in text
    assert tcp.bound_bps(profile.load("fwdllm-10mbit")) == inf  # no round trip, no bound


def test_simgrids_example_with_its_factors():
    """100 kB over 10 ms and 1 Mbit/s take 0.996079 s in SimGrid's LV08: 13.01 latencies, 0.97 of
    the rate over 1.05.
    """
    env = simpy.Environment()
    network = Network(env)
    network.attach(
        "d", LinkProfile("LV08", 1e6 * 0.97 / 1.05, 1e6, latency_s=0.01, overhead_s=12.01 * 0.01)
    )
    upload = network.upload("d", 100_000)
    env.run()
    assert upload.value == pytest.approx(0.996079, abs=5e-7)


LOSSY = LinkProfile(
    "lossy",
    4e6,
    8e6,
    latency_s=0.05,
    overhead_s=0.1,
    loss=0.2,
    window_bytes=1e5,
    initial_window_bytes=14480,
)


def test_a_lone_transfer_pays_all_of_it():
    env = simpy.Environment()
    network = Network(env)
    network.attach("d", LOSSY, tcp=True)
    network.attach("without", LOSSY)
    upload, plain = network.upload("d", MEGABYTE), network.upload("without", MEGABYTE)
    env.run()
    rate_bps = 8 * 1448 / 0.1 * sqrt(1.5 / 0.2)
    assert rate_bps < min(4e6, 8 * 1e5 / 0.1)
    waits_s = tcp.slow_start_s(1.25e6, rate_bps, 0.1, 14480)
    assert upload.value == pytest.approx(0.15 + waits_s + 8 * 1.25e6 / rate_bps)
    assert plain.value == pytest.approx(0.15 + 2.0)
    assert network.shared["ingress"].bytes_carried == pytest.approx(2.25 * MEGABYTE)
    assert network.resent_bytes == pytest.approx(MEGABYTE / 4)


def test_the_bound_leaves_the_rest_to_others():
    env = simpy.Environment()
    network = Network(env, cells={"home": Cell(10e6, 10e6), "air": Cell(kind="wifi")})
    far = LinkProfile("far", 10e6, 10e6, 0.1, window_bytes=62_500)  # 2.5 Mbit/s at 200 ms
    near = LinkProfile("near", 10e6, 10e6, 0.1)
    for cell in ("home", "air"):
        network.attach(f"far-{cell}", far, cell, tcp=True)
        network.attach(f"near-{cell}", near, cell, tcp=True)
        network.upload(f"far-{cell}", 10**9), network.upload(f"near-{cell}", 10**9)
    env.run(until=1.1)
    for cell in ("home", "air"):
        assert network.shared[f"{cell}/up"].bytes_carried * 8 == pytest.approx(10e6)
        assert network.shared[f"{cell}/up"].rate_bps == pytest.approx(10e6)


@settings(max_examples=60, deadline=None)
@given(at_s=st.floats(0, 6), nbytes=st.integers(0, 2 * MEGABYTE))
def test_bytes_of_an_aborted_transfer_are_of_its_payload(at_s, nbytes):
    """What has passed and what had to be sent again add up to what the link carried, to the
    byte.
    """
    env = simpy.Environment()
    network = Network(env)
    network.attach("d", LOSSY, tcp=True)
    first, second = network.upload("d", nbytes), network.upload("d", 1000)
    env.run(until=at_s + 1e-9)
    moved = network.abort(first)
    assert 0 <= moved <= nbytes and moved == int(moved)
    assert (moved == nbytes) or not first.triggered
    env.run()
    assert second.triggered and network.abort(second) == 1000
    assert network.shared["ingress"].bytes_carried == pytest.approx(
        moved + 1000 + network.resent_bytes, abs=0.6
    )
    assert network.resent_bytes == pytest.approx((moved + 1000) / 4, abs=1)


def test_it_goes_with_a_varying_rate():
    """The slow start is charged at the rate of its beginning; the bound caps every later one."""
    env = simpy.Environment()
    network = Network(env)
    rate = VaryingRate(30e6, 0.5, 0.9, np.random.default_rng(1))
    link = LinkProfile("l", 30e6, 30e6, 0.05, window_bytes=2e5, initial_window_bytes=14480)
    network.attach("d", link, trace=rate, tcp=True)
    upload = network.upload("d", 10 * MEGABYTE)
    env.run()
    bound_bps = 8 * 2e5 / 0.1
    t = 0.05 + tcp.slow_start_s(10 * MEGABYTE, min(rate.at(0), bound_bps), 0.1, 14480)
    left = 80e6
    while left > 0:
        bps = min(rate.at(t), bound_bps)
        step_s = min(rate.next_change(t) - t, left / bps)
        left, t = left - bps * step_s, t + step_s
    assert upload.value == pytest.approx(t)
