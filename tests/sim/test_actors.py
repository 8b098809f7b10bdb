"""The verbs of devices and the server, alone on a clock: what they take, what they record, what
being stopped leaves.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import simpy

import devices.profile
from devices.compute import ComputeModel
from devices.fleet import Member
from learning.cost.costs import Cost
from network.profile import LinkProfile
from network.topology import Network
from sim.kernel.device import Device, Payload
from sim.kernel.host import Host
from sim.kernel.ledger import Ledger, only
from sim.kernel.recorder import Recorder
from sim.kernel.server import Server
from sim.kernel.work import Work

TX2 = devices.profile.load("jetson-tx2")
LINK = LinkProfile("line", up_bps=8000.0, down_bps=16000.0, latency_s=0.5, overhead_s=0.25)


@pytest.fixture
def world():
    """One device on a line of 1000 byte/s up and 2000 byte/s down, and a server; nothing else of a
    simulation.
    """
    env = simpy.Environment()
    sim = SimpleNamespace(
        env=env,
        recorder=Recorder(),
        ledger=Ledger(),
        host=Host(1),
        network=Network(env),
        devices=(),
    )
    sim.costing = SimpleNamespace(weight_bytes=lambda member: 1000)
    sim.start = lambda actor, generator: env.process(generator)
    member = Member("device-0000", "jetson-tx2", "simple", "b", "line", None, None, "group-0")
    sim.network.attach(member.id, LINK)
    samples, ready_s = np.arange(10), np.arange(10) / 10
    sim.device = Device(sim, member, 0, TX2, ComputeModel(TX2, "simple"), samples, 2.0, ready_s)
    a100 = devices.profile.load("a100").with_overhead("simple", 1.0)
    sim.server = Server(sim, a100, ComputeModel(a100, "simple"))
    return sim


def rows(sim) -> list[dict]:
    return sim.recorder.spans().to_pylist()


def payload(sim, number: int = 1, nbytes: int = 500) -> Payload:
    return Payload(number, sim.device, np.arange(2), only("activation", nbytes))


def test_compute_runs_the_work_and_returns_its_result_after_the_modelled_seconds(world):
    seconds = TX2.engine("simple").overhead_s + 355e9 / TX2.engine("simple").flop_per_s
    got = []

    def events():
        got.append(
            (
                yield from world.device.compute(
                    Work(Cost(flop=355e9, peak_bytes=77), lambda: "activations")
                )
            )
        )

    world.env.process(events())
    world.env.run()
    assert got == ["activations"]
    [span] = rows(world)
    assert (span["kind"], span["flop"], span["outcome"]) == ("compute", 355e9, "ok")
    assert span["end_s"] == pytest.approx(seconds)
    assert span["joules"] == pytest.approx(12.0 * seconds)
    assert world.device.peak_memory_bytes == 1077


def test_an_error_of_the_work_surfaces_at_the_virtual_end(world):
    def wrong():
        return 1 / 0

    def events():
        with pytest.raises(ZeroDivisionError):
            yield from world.device.compute(Work(Cost(flop=355e9), lambda: world.host.learn(wrong)))
        assert world.env.now > 1.0

    world.env.process(events())
    world.env.run()
    assert len(rows(world)) == 1


@pytest.mark.parametrize(
    ("verb", "rate", "watts"), [("upload", 1000, 4.0), ("download", 2000, 4.0)]
)
def test_transfers_take_overhead_latency_and_bytes_over_rate(verb, rate, watts, world):
    what = payload(world) if verb == "upload" else 500
    world.env.process(getattr(world.device, verb)(what))
    world.env.run()
    [span] = rows(world)
    assert span["end_s"] == pytest.approx(0.25 + 0.5 + 500 / rate)
    assert (span["kind"], span["nbytes"], span["outcome"]) == (verb, 500, "ok")
    assert span["joules"] == pytest.approx(watts * span["end_s"])
    assert span["flows"] == ([1] if verb == "upload" else [])


@pytest.mark.parametrize(("stop_s", "passed"), [(0.1, 0), (0.75, 0), (1.0, 250), (1.2, 450)])
def test_a_stopped_upload_records_what_had_passed(stop_s, passed, world):
    ended = []

    def events():
        try:
            yield from world.device.upload(payload(world))
        except simpy.Interrupt as stop:
            ended.append(stop.cause)

    process = world.env.process(events())
    world.env.timeout(stop_s).callbacks.append(lambda _: process.interrupt("horizon"))
    world.env.run()
    [span] = rows(world)
    assert ended == ["horizon"]
    assert (span["outcome"], span["end_s"]) == ("horizon", stop_s)
    assert span["nbytes"] == pytest.approx(passed, abs=1)


def test_arriving_draws_nothing_and_waiting_draws_idle_power(world):
    def events():
        yield from world.device.arrive()
        assert world.env.now == 2.0
        yield from world.device.until(1.0)  # has passed
        yield from world.device.until(5.0)

    world.env.process(events())
    world.env.run()
    [span] = rows(world)
    assert (span["kind"], span["start_s"], span["end_s"]) == ("wait", 2.0, 5.0)
    assert span["joules"] == pytest.approx(3 * TX2.engine("simple").power.idle_w)


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_batches_are_the_own_samples_once_each_ready_with_its_last(size, world):
    batches = list(world.device.batches(size))
    assert np.concatenate([b.samples for b in batches]).tolist() == list(range(10))
    assert all(len(b.samples) == size for b in batches[:-1])
    for batch in batches:
        assert batch.ready_s == batch.samples.max() / 10


def test_the_server_takes_payloads_in_order_of_landing_and_wakes_for_them(world):
    seen = []

    def server():
        while len(seen) < 3:
            seen.extend((p.number, world.env.now) for p in world.server.take())
            if len(seen) < 3:
                yield from world.server.wait()

    world.env.process(server())
    for at_s, number in ((1.0, 1), (1.0, 2), (4.0, 3)):
        world.env.timeout(at_s).callbacks.append(
            lambda _, n=number: world.server.receive(payload(world, n))
        )
    world.env.run()
    assert seen == [(1, 1.0), (2, 1.0), (3, 4.0)]
    assert world.server.take() == []
    world.server.wake()
    world.server.wake()  # waking one who is awake does no harm


def test_the_server_computes_one_piece_at_a_time_with_the_scenarios_own_overhead(world):
    for number in (1, 2, 3):
        world.env.process(world.server.compute(Work(Cost()), flows=[number]))
    world.env.run()
    assert [(s["start_s"], s["end_s"], s["flows"]) for s in rows(world)] == [
        (pytest.approx(n), pytest.approx(n + 1), [n + 1]) for n in range(3)
    ]


def test_a_stopped_server_gives_its_turn_back(world):
    def first():
        try:
            yield from world.server.compute(Work(Cost(flop=1e12)))
        except simpy.Interrupt:
            pass

    process = world.env.process(first())
    world.env.process(world.server.compute(Work(Cost())))
    world.env.timeout(0.5).callbacks.append(lambda _: process.interrupt("horizon"))
    world.env.run()
    cut, after = rows(world)
    assert (cut["outcome"], cut["end_s"]) == ("horizon", 0.5)
    assert 0 < cut["flop"] < 1e12
    assert (after["start_s"], after["end_s"]) == (0.5, pytest.approx(1.5))


def test_delivering_ends_with_the_last_download(world):
    world.env.process(world.server.deliver([world.device], lambda device: 4000))
    world.env.run()
    [span] = rows(world)
    assert (span["kind"], span["nbytes"]) == ("download", 4000)
    assert span["end_s"] == pytest.approx(0.75 + 2.0)
