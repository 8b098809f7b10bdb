"""Who shares what on the way between a device and its server."""

from pathlib import Path

import pytest
import simpy

from network.bandwidth import CapacityTrace
from network.errors import NetworkError
from network.profile import LinkProfile
from network.topology import Cell, InstantNetwork, Network

MEGABYTE = 1_000_000


def profile(up_bps=8e6, down_bps=16e6, latency_s=0.0, overhead_s=0.0):
    return LinkProfile("test", up_bps, down_bps, latency_s, overhead_s)


def test_worked_number_of_the_docs():
    """docs/network.md: 2 MB and 1 MB up through one 12 Mbit/s cell, access 8 and 5 Mbit/s, after
    0.1 and 0.6 s.
    """
    env = simpy.Environment()
    network = Network(env, 1e9, cells={"cell": Cell(12e6, 100e6)})
    network.attach("a", profile(8e6, latency_s=0.1), cell="cell")
    network.attach("b", profile(5e6, latency_s=0.1, overhead_s=0.5), cell="cell")
    a, b = network.upload("a", 2 * MEGABYTE), network.upload("b", MEGABYTE)
    env.run()
    assert a.value == pytest.approx(2.3)
    assert b.value == pytest.approx(2.2)
    text = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
    assert f"{a.value:.4f} s" in text and f"{b.value:.4f} s" in text


def test_alone_the_access_link_decides():
    env = simpy.Environment()
    network = Network(env)
    network.attach("d", profile(latency_s=0.25, overhead_s=0.5))
    up, down = network.upload("d", MEGABYTE), network.download("d", MEGABYTE)
    env.run()
    assert up.value == pytest.approx(0.75 + 1.0)  # 8 Mbit at 8 Mbit/s
    assert down.value == pytest.approx(0.75 + 0.5)


def test_ingress_and_egress_are_shared_apart():
    env = simpy.Environment()
    network = Network(env, ingress_bps=8e6, egress_bps=4e6)
    for name in "abcd":
        network.attach(name, profile())
    sent = [network.upload(name, MEGABYTE) for name in "ab"] + [
        network.download(name, MEGABYTE) for name in "cd"
    ]
    env.run()
    assert [t.value for t in sent] == pytest.approx([2, 2, 4, 4])
    assert network.shared["ingress"].bytes_carried == pytest.approx(2 * MEGABYTE)
    assert network.shared["egress"].busy_s == pytest.approx(4)


def test_one_transfer_at_a_time_in_each_direction_of_a_device():
    env = simpy.Environment()
    network = Network(env, cells={"home": Cell(100e6, 100e6)})
    network.attach("d", profile(latency_s=0.5), cell="home")
    first, second, third = (network.upload("d", MEGABYTE) for _ in range(3))
    env.run(until=0.1)
    assert network.abort(second) == 0
    env.run()
    assert first.value == pytest.approx(1.5) and third.value == pytest.approx(3.0)
    assert not second.triggered


def test_abort_at_every_stage():
    env = simpy.Environment()
    network = Network(env)
    network.attach("d", profile(latency_s=1.0))
    on_the_way, next_one = network.upload("d", MEGABYTE), network.upload("d", MEGABYTE)
    env.run(until=0.5)
    assert network.abort(on_the_way) == 0  # still paying latency; the next one starts
    env.run(until=2.0)
    assert network.abort(next_one) == MEGABYTE / 2
    assert network.abort(next_one) == MEGABYTE / 2
    last = network.upload("d", MEGABYTE)
    env.run()
    assert last.value == pytest.approx(4.0)
    assert network.abort(last) == MEGABYTE
    assert network.shared["ingress"].bytes_carried == pytest.approx(1.5 * MEGABYTE)


def test_an_abort_at_the_very_end_does_not_start_the_next_twice():
    env = simpy.Environment()
    network = Network(env)
    network.attach("d", profile())
    first, second, third = (network.upload("d", MEGABYTE) for _ in range(3))
    moved = []
    # at 1 s the link has ended the first, but nobody has been told yet
    env.timeout(1.0).callbacks.append(
        lambda _: moved.append((first.triggered, first.processed, network.abort(first)))
    )
    env.run()
    assert moved == [(True, False, MEGABYTE)]
    assert (second.value, third.value) == pytest.approx((2.0, 3.0))


def test_an_interrupted_process_gives_up_its_transfer():
    env = simpy.Environment()
    network = Network(env)
    network.attach("d", profile())
    moved = []

    def device():
        upload = network.upload("d", MEGABYTE)
        try:
            yield upload
        except simpy.Interrupt:
            moved.append(network.abort(upload))

    process = env.process(device())
    env.timeout(0.75).callbacks.append(lambda _: process.interrupt())
    env.run()
    assert moved == [0.75 * MEGABYTE]


def test_access_trace_re_rates_a_transfer_under_way_and_idle_devices_cost_nothing():
    env = simpy.Environment()
    network = Network(env)
    trace = CapacityTrace([0, 1, 2], [8e6, 0, 4e6], period_s=3)
    network.attach("d", profile(), trace=trace)
    network.attach("idle", profile(), trace=trace)
    up, down = network.upload("d", 2 * MEGABYTE), network.download("d", MEGABYTE)
    env.run()  # ends: nobody follows a trace for ever
    assert up.value == pytest.approx(3.5)  # 8 Mbit, none, 4 Mbit, then half a second at 8 Mbit/s
    assert down.value == pytest.approx(0.5)  # the trace is the uplink's


def test_cell_and_ingress_traces():
    env = simpy.Environment()
    network = Network(
        env,
        1e9,
        cells={"cell": Cell(8e6, 8e6)},
        traces={
            "cell/up": CapacityTrace([0, 1], [8e6, 2e6]),
            "ingress": CapacityTrace([0, 2], [1e9, 1e6]),
        },
    )
    network.attach("d", profile(), cell="cell")
    upload = network.upload("d", 1_500_000)
    env.run()
    assert upload.value == pytest.approx(
        4.0
    )  # 8 + 2 Mbit, then 2 Mbit through an ingress of 1 Mbit/s


def test_cells_meet_in_the_ingress():
    env = simpy.Environment()
    network = Network(env, ingress_bps=9e6, cells={"a": Cell(2e6, 1e9), "b": Cell(1e9, 1e9)})
    network.attach("a1", profile(100e6), cell="a")
    network.attach("b1", profile(100e6), cell="b")
    network.attach("direct", profile(3e6))
    for name in ("a1", "b1", "direct"):
        network.upload(name, 100 * MEGABYTE)
    env.run(until=1)
    carried = [network.shared[name].bytes_carried * 8 for name in ("a/up", "b/up", "ingress")]
    assert carried == pytest.approx([2e6, 4e6, 9e6])


def test_wrong_names_are_answered_with_the_nearest():
    env = simpy.Environment()
    network = Network(env, 1e9, cells={"kitchen": Cell(1e6, 1e6)})
    network.attach("device-1", profile(), cell="kitchen")
    with pytest.raises(NetworkError, match="did you mean 'kitchen'"):
        network.attach("device-2", profile(), cell="kichen")
    with pytest.raises(NetworkError, match="did you mean 'device-1'"):
        network.upload("device_1", 10)
    with pytest.raises(NetworkError, match="attached already"):
        network.attach("device-1", profile())
    with pytest.raises(NetworkError, match="did you mean 'kitchen/up'"):
        Network(
            env,
            1e9,
            cells={"kitchen": Cell(1e6, 1e6)},
            traces={"kitchen-up": CapacityTrace([0], [1])},
        )
    with pytest.raises(NetworkError, match="abort"):
        network.abort(env.event())


def test_instant_network_takes_no_time():
    env = simpy.Environment()
    network = InstantNetwork(env)
    network.attach("d", profile())

    def device():
        yield env.timeout(3)
        end = yield network.upload("d", 10**9)
        return end, (yield network.download("d", 5))

    process = env.process(device())
    env.run()
    assert process.value == (3, 3)
    assert network.abort(network.upload("d", 7)) == 7
