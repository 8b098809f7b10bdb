"""Fair links against real TCP flows, in short; benchmarks/real_tcp.py gives the whole table."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "real_tcp.py"
spec = importlib.util.spec_from_file_location("real_tcp", BENCHMARK)
real_tcp = importlib.util.module_from_spec(spec)
sys.modules["real_tcp"] = real_tcp  # where its dataclasses look for their annotations
spec.loader.exec_module(real_tcp)


@pytest.mark.parametrize(("n", "busy_s"), [(1, 0.3), (4, 0.4)])
def test_a_shaped_relay_carries_no_more_than_its_rate(n, busy_s):
    flows = real_tcp.mixed_flows(n, 16e6, busy_s, np.random.default_rng(n))
    starts_s = np.array([flow.start_s for flow in flows])
    ends_s = starts_s + real_tcp.through_relay(flows, 16e6)
    assert (
        ends_s.max() - starts_s.min() > 0.95 * 8 * sum(flow.nbytes for flow in flows) / 16e6 - 0.02
    )


@pytest.mark.timed
@pytest.mark.parametrize(("n", "busy_s"), [(1, 0.3), (4, 0.8), (16, 1.2)])
def test_completion_times_through_a_shaped_relay_are_a_fair_links(n, busy_s):
    """Within 10 % at the median over the flows, real sockets on the loopback device."""
    flows = real_tcp.mixed_flows(n, 16e6, busy_s, np.random.default_rng(n))
    assert sum(flow.nbytes for flow in flows) < 4e6
    took_s = real_tcp.through_relay(flows, 16e6)
    expected_s = real_tcp.simulated(flows, 16e6)
    assert np.all(
        took_s > 0.95 * expected_s - 0.02
    )  # nothing overtakes the bottleneck by more than a few chunks
    assert np.median(np.abs(took_s / expected_s - 1)) < 0.1


@pytest.mark.timed
def test_completion_times_through_a_shaping_kernel_are_a_fair_links():
    """Linux shapes real TCP, a queue for each of four flows: where namespaces and tc are permitted,
    again within 10 %.
    """
    flows = real_tcp.mixed_flows(4, 16e6, 0.8, np.random.default_rng(4))
    try:
        with real_tcp.namespaces(real_tcp.queues(16e6, 4)):
            if "cubic" not in real_tcp.controls():
                pytest.skip("this kernel has no cubic")
            took_s = real_tcp.through_kernel(flows, "cubic")
    except OSError as error:
        pytest.skip(f"no shaping kernel: {error}")
    expected_s = real_tcp.simulated(flows, real_tcp.PAYLOAD_SHARE * 16e6)
    assert np.median(np.abs(took_s / expected_s - 1)) < 0.1
