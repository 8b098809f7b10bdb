"""The clock against reality: a tiny fleet in real processes over real sockets, and the pieces that
this is made of.
"""

import contextlib
import copy
import json
import multiprocessing
import socket
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import network.profile
from learning.side.delivery import decode
from sim.kernel.writing import write_json
from sim.methods import METHODS
from sim.results.run import open_run
from sim.scenario.checks import problems
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.simulation import Simulation
from sim.validate import verb as module
from sim.validate.agreement import agreement, ranking, spread, transfers_from_real_starts
from sim.validate.clock import RealClock
from sim.validate.learners import shipped
from sim.validate.links import start_links
from sim.validate.processes import run_for_real
from sim.validate.wire import (
    LENGTHS,
    Connection,
    WireError,
    clients,
    connect,
    encode,
    listen,
    read_frame,
)
from sim.validate.worlds import RealRunError

SIDE = {
    "kind": "fed-mobillm",
    "replay": 4,
    "update_share_on_arrival": 1,
    "server_batch": 8,
    "device_batch": 8,
    "side_network": {"skip": "none"},  # how often a skip is solved hangs on when texts come
}
LORA = {"kind": "fedavg-lora", "rounds": 1, "participation": 1.0, "device_batch": 8}
TWO = {
    "task": {"dataset": {"path": "texts.csv"}, "train": 32, "test": 12, "max_tokens": 16},
    "fleet": [
        {
            "count": 1,
            "device": "jetson-tx2",
            "backbone": "random-bert",
            "link": "lte-field-average",
        },
        {
            "count": 1,
            "device": "raspberry-pi-5",
            "backbone": "random-bert-l1",
            "link": "wifi-home",
            "cell": "home",
        },
    ],
    "cells": {"home": {"up": "200 kbit/s", "down": "2 Mbit/s"}},
    "server": {"ingress": "250 kbit/s", "egress": "2 Mbit/s", "step_overhead": "50 ms"},
    "arrivals": {"kind": "list", "times": ["0 s", "50 ms"]},
    "method": SIDE,
}
PUBLIC = {**TWO["task"], "public": 10}


@pytest.fixture
def two(scenario_file):
    """The two devices' scenario with changes, and its folder."""

    def make(**changes):
        path = scenario_file(**{**TWO, **changes})
        return load(str(path), Scenario, [], [], problems), path.parent

    return make


# --- the whole


@pytest.mark.thorough
def test_it_executes_what_it_simulates(mobifleet, scenario_file, tmp_path):
    path = scenario_file(**TWO)
    done = mobifleet("validate", path, "--repeats", 1, "--compress", 1, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert found["range"]["devices"] == 2 and set(found["methods"]) == {"fed-mobillm"}
    _check(found["methods"]["fed-mobillm"]["agreement"][0])
    real = open_run(tmp_path / "out" / "real-fed-mobillm-1")
    assert real.summary["final"] is not None and real.summary["outcomes"] == {"ok": 2}
    assert (tmp_path / "out" / "figures" / "fed-mobillm.png").stat().st_size > 1000
    assert "| bytes, every transfer | exact |" in (tmp_path / "out" / "report.md").read_text()
    assert "exact" in done.out
    assert not multiprocessing.active_children()


@pytest.mark.thorough
def test_rounds_whose_model_goes_down_and_up_are_executed_too(two, tmp_path):
    scenario, folder = two(method=LORA)
    sim = Simulation(scenario, folder, dry=True)
    sim.run()
    members = [(d.id, d.member.link, d.member.cell) for d in sim.devices]
    run_for_real(scenario, folder, tmp_path / "real", 2.0, members, 300)
    real = open_run(tmp_path / "real")
    _check(agreement(_written(sim, tmp_path / "dry"), real))
    assert {span["kind"] for span in real.spans().to_pylist()} >= {
        "download",
        "compute",
        "upload",
        "wait",
        "aggregate",
    }


def _check(found):
    """Every span has its partner, every byte is there, and nothing real is faster than its modelled
    pace.
    """
    assert found["bytes"]["exact"], found["bytes"]
    assert found["bytes"]["upload"]["real"] > 0 and found["bytes"]["download"]["real"] > 0
    assert all(group.get("unmatched", 0) == 0 for group in found["spans"].values())
    # How much slower depends on what else this machine does.
    assert found["makespan"]["real_s"] > 0.98 * found["makespan"]["simulated_s"]


@pytest.mark.thorough
def test_a_device_that_dies_is_named_and_nobody_is_left(two, tmp_path):
    scenario, folder = two()
    members = [
        (d.id, d.member.link, d.member.cell) for d in Simulation(scenario, folder, dry=True).devices
    ]

    def kill(stage, facts):
        if stage == "running":
            for process in multiprocessing.active_children():
                if process.name == "device-0001":
                    process.kill()

    with pytest.raises(RealRunError, match=r"device-0001.*exit code -9"):
        run_for_real(scenario, folder, tmp_path / "real", 0.2, members, 300, kill)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"kind": "fedasync"}}, "fedasync is not executed for real"),
        (
            {"method": {"kind": "splitfed-v1"}},
            "splitfed-v1 is not executed for real; what is: fed-mobillm",
        ),
        ({"method": {"kind": "pae-mobillm", "shortcut": "matrix"}}, "single vectors"),
        ({"method": {**LORA, "deadline": "1 s"}}, "method.deadline is simulated only"),
        ({"method": {**LORA, "wire": "int8"}}, "executed runs send what is trained"),
        (
            {"task": PUBLIC, "method": {"kind": "fed-mobillm", "taps": "importance"}},
            "no texts choose layers",
        ),
        (
            {"method": {"kind": "fed-mobillm", "wire": ["pca-2", "int8"]}},
            "say random-K, or leave pca-K out",
        ),
        ({"cost_as": {"backbone": "roberta-base"}}, "cost_as is simulated only"),
        (
            {"traces": {"ingress": {"times": ["0 s"], "capacity": ["1 Mbit/s"]}}},
            "traces is simulated only",
        ),
        ({"availability": {"kind": "diurnal"}}, "availability is simulated only"),
        ({"links": {"tcp": True}}, "links is simulated only"),
        (
            {
                "fleet": [{**TWO["fleet"][0], "count": 40}, TWO["fleet"][1]],
                "arrivals": {"kind": "at-once"},
            },
            "at most 32",
        ),
    ],
)
def test_what_cannot_be_executed_is_said_before_anything_runs(two, tmp_path, changes, words):
    try:
        scenario, folder = two(**changes)
    except ValueError as error:
        pytest.fail(f"the scenario itself is refused: {error}")
    with pytest.raises(RealRunError, match=words):
        module.validate(scenario, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_would_take_too_long_names_the_compression(mobifleet, scenario_file):
    done = mobifleet("validate", scenario_file(**TWO), "--compress", "1e-4", "--limit", 60)
    assert done.code == 2 and "use --compress" in done.err and "Traceback" not in done.err


def test_every_supported_method_is_one(two):
    assert set(module.SUPPORTED) <= set(METHODS)


# --- the clock


def test_events_happen_at_their_time_on_the_wall():
    clock, happened = RealClock(speed=20.0), []

    def events():
        for wait_s in (0.4, 0.0, 1.0):
            yield clock.timeout(wait_s)
            happened.append((clock.now, clock.elapsed()))

    process = clock.process(events())
    began = time.monotonic()
    clock.begin(began)
    while process.is_alive:
        clock.step()
    assert time.monotonic() - began >= 1.4 / 20
    for (now_s, wall_s), planned_s in zip(happened, (0.4, 0.4, 1.4), strict=True):
        assert planned_s <= now_s <= wall_s


def test_work_fills_the_beginning_of_its_time_and_an_overrun_shows():
    clock, ended_s = RealClock(speed=1.0), []

    def events():
        for work_s in (0.01, 0.7):  # in a piece of 0.4; a busy machine may add a third of a second
            begun_s = clock.now
            time.sleep(work_s)
            yield clock.timeout(0.4)
            ended_s.append(clock.now - begun_s)

    process = clock.process(events())
    clock.begin(time.monotonic())
    while process.is_alive:
        clock.step()
    assert 0.4 <= ended_s[0] < 0.7 <= ended_s[1]


def test_what_another_thread_posts_happens_without_waiting_for_the_next_event():
    clock, heard_s = RealClock(speed=1.0), []
    landed = clock.event()
    clock.process(iter_once(landed, heard_s, clock))
    clock.timeout(30.0)
    clock.begin(time.monotonic())
    threading.Timer(0.03, lambda: clock.post(landed.succeed)).start()
    while not heard_s:
        clock.step()
    assert 0.03 <= heard_s[0] < 30.0  # before the timeout


def iter_once(event, heard_s, clock):
    yield event
    heard_s.append(clock.now)


def test_a_failed_event_is_raised_as_simpy_does():
    clock = RealClock(speed=100.0)
    clock.begin(time.monotonic())
    clock.event().fail(RealRunError("broken"))
    with pytest.raises(RealRunError, match="broken"):
        clock.step()


# --- the wire

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(
        st.tuples(st.dictionaries(st.text(), json_values, max_size=3), st.binary(max_size=5000)),
        max_size=4,
    )
)
def test_frames_arrive_as_they_were_sent_and_are_counted(frames):
    one, other = socket.socketpair()
    with one, other:
        writer = threading.Thread(
            target=lambda: (one.sendall(b"".join(encode(*f) for f in frames)), one.close())
        )
        writer.start()
        for header, body in frames:
            assert read_frame(other) == (header, body, len(body))
        assert read_frame(other) is None
        writer.join()


def test_nonsense_ends_a_connection():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(LENGTHS.pack(2**31, 0))
        with pytest.raises(WireError, match="make no sense"):
            read_frame(other)
    for text in (b"{", b"[" * 100_000, b"9" * 5000, b"\xff"):
        one, other = socket.socketpair()
        with one, other:
            one.sendall(LENGTHS.pack(len(text), 0) + text)
            with pytest.raises(ValueError, match=r"frame|decode"):
                read_frame(other)


def first_client(door):
    """Who comes first, however long nobody comes."""
    return next(client for client in door if client is not None)


def test_only_who_knows_the_token_is_let_in_and_nobody_else_is_read():
    hello = encode({"token": "secret", "device": "device-0000"})
    strangers = [
        *(
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0" * 12,
            b"\xff" * 12,
            hello[:20],
            LENGTHS.pack(100, 0) + b"{",
        ),
        LENGTHS.pack(2**26, 0) + b"{" * 4096,  # a header that is too long
        LENGTHS.pack(len(hello) - 12, 4 * 2**30) + hello[12:],  # the right token, and a body
        *(
            encode({"token": token})
            for token in ("guess", "", "sécret", "secre", None, 5, ["secret"], {"secret": 1})
        ),
        *(encode(who) for who in ([], "secret", None, {})),
        *(
            LENGTHS.pack(len(text), 0) + text
            for text in (b"[" * 4000, b"9" * 4000, b'"\\ud800"', b'{"token": "\\ud800"}')
        ),
    ]
    strangers += [np.random.default_rng(i).bytes(i) for i in range(1, 40)]
    with listen() as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        silent = socket.create_connection(("127.0.0.1", port))  # holds nobody off
        ends = []
        for message in strangers:
            ends.append(socket.create_connection(("127.0.0.1", port), timeout=20))
            ends[-1].sendall(message)
            ends[-1].shutdown(socket.SHUT_WR)
        friend = connect(port, "secret", device="device-0000", role="data")
        sock, who = first_client(clients(listener, "secret"))
        assert who == {"device": "device-0000", "role": "data"}
        for end in ends:
            with contextlib.suppress(ConnectionError):  # a reset where bytes had not been read
                assert end.recv(1) == b""
        friend.sendall(encode({"payload": 1}, b"body"))
        assert read_frame(sock) == ({"payload": 1}, b"body", 4)
        for end in (silent, friend, sock, *ends):
            end.close()


def test_a_frame_takes_memory_as_it_comes_not_as_it_is_announced():
    one, other = socket.socketpair()
    with one, other:
        text = b"{}"
        one.sendall(LENGTHS.pack(len(text), 4 * 2**30) + text + b"a few bytes")
        one.shutdown(socket.SHUT_WR)
        tracemalloc.start()
        assert read_frame(other) is None
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 4 * 2**20


def test_a_connection_writes_what_is_queued_before_it_ends():
    one, other = socket.socketpair()
    got, ended = [], threading.Event()
    Connection(other, lambda *frame: got.append(frame), ended.set)
    sender = Connection(one, lambda *frame: None, lambda: None)
    for number in range(20):
        sender.send({"number": number}, bytes(1000 * number))
    sender.close()
    assert ended.wait(5)
    assert [(header["number"], counted) for header, _, counted in got] == [
        (n, 1000 * n) for n in range(20)
    ]


@pytest.mark.timed
def test_links_are_the_scenarios_and_in_series(two):
    """One transfer alone: latency + bytes / the slowest rate on its way, and a chunk of 1448 bytes
    more a hop.
    """
    scenario, _ = two()
    with listen() as listener:
        listener.settimeout(5)
        ports = start_links(
            scenario, Path(), [("a", "wifi-home", "home")], listener.getsockname()[1], 4.0
        )
        device = socket.create_connection(("127.0.0.1", ports["a"]))
        server, _ = listener.accept()
        begun, nbytes = time.monotonic(), 10_000
        device.sendall(bytes(nbytes))
        left = nbytes
        while left:
            left -= len(server.recv(65536))
        took_s = 4.0 * (time.monotonic() - begun)
        device.close()
        server.close()
    link = network.profile.load("wifi-home")
    fluid_s = link.latency_s + 8 * nbytes / 200e3
    chunks_s = 8 * 1448 * (1 / link.up_bps + 1 / 250e3)
    assert (
        fluid_s == pytest.approx(0.4065) and chunks_s < 0.047
    )  # the worked number of docs/validation.md
    assert (
        fluid_s < took_s < fluid_s + chunks_s + 4.0 * 0.1
    )  # a tenth of a real second for a busy machine


def test_a_cell_without_a_rate_one_way_holds_nothing_up_that_way(two):
    scenario, _ = two()
    cells = {"home": scenario.cells["home"].model_copy(update={"down": None})}
    open_ = scenario.model_copy(update={"cells": cells})
    with listen() as listener:
        listener.settimeout(5)
        ports = start_links(
            open_, Path(), [("a", "wifi-home", "home")], listener.getsockname()[1], 1000.0
        )
        device = socket.create_connection(("127.0.0.1", ports["a"]))
        server, _ = listener.accept()
        for sender, receiver in ((device, server), (server, device)):
            sender.sendall(bytes(5000))
            receiver.settimeout(5)
            left = 5000
            while left:
                left -= len(receiver.recv(left))
        device.close()
        server.close()


# --- what is compared


def test_a_run_agrees_with_itself_and_a_slower_one_is_measured(two, tmp_path):
    scenario, folder = two(jitter=False)
    runs = []
    for number, slower in enumerate((1.0, 1.25)):
        server = scenario.server.model_copy(update={"step_overhead": 0.05 * slower})
        sim = Simulation(scenario.model_copy(update={"server": server}), folder, dry=True)
        sim.run()
        runs.append(_written(sim, tmp_path / str(number)))
    same = agreement(runs[0], runs[0])
    assert (
        same["makespan"]["error"] == 0
        and same["finish times"]["max"] == 0
        and same["bytes"]["exact"]
    )
    assert all(group["max"] == 0 and group["unmatched"] == 0 for group in same["spans"].values())
    other = agreement(*runs)
    server = other["spans"]["server compute"]
    per_update = server["p50"]
    assert server["n"] == 16 and per_update == pytest.approx(1 - 1 / 1.25, abs=0.01)
    assert other["spans"]["device compute"]["max"] == 0 and other["makespan"]["error"] < 0
    own = spread(runs)
    assert own["makespan"] == pytest.approx(
        abs(np.diff(own["makespans_s"])[0]) / np.mean(own["makespans_s"])
    )


def test_replayed_transfers_of_a_simulated_run_are_the_simulated_ones(two, tmp_path):
    scenario, folder = two()
    sim = Simulation(scenario, folder, dry=True)
    sim.run()
    found = transfers_from_real_starts(
        Simulation(scenario, folder, dry=True), _written(sim, tmp_path / "run")
    )
    assert set(found) == {"uploads from their real starts", "downloads from their real starts"}
    assert all(group["max"] < 1e-9 for group in found.values())


def test_one_byte_more_is_not_exact(two, tmp_path):
    scenario, folder = two()
    sim = Simulation(scenario, folder, dry=True)
    sim.run()
    run = _written(sim, tmp_path / "one")
    sim.recorder.span("device-0001", "upload", 9.0, 9.5, 1)
    more = _written(sim, tmp_path / "two")
    found = agreement(run, more)
    assert not found["bytes"]["exact"] and found["bytes"]["first_difference"][:2] == [
        "device-0001",
        "upload",
    ]
    assert found["spans"]["uploads"]["unmatched"] == 1


def test_ranking_names_the_pairs_that_swap():
    assert ranking({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 5.0}) == {
        "simulated": ["a", "b"],
        "real": ["a", "b"],
        "agrees": True,
        "swapped": [],
    }
    assert ranking({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 2.0})["swapped"] == [
        ["b", "c"]
    ]


def test_what_is_delivered_is_as_large_as_charged(simulate):
    sim = simulate("task.train=12", "method.replay=1")
    for backbone in ("random-bert", "random-bert-l1"):
        data = shipped(sim.method.learner, backbone)
        assert len(data) == sim.method.shape.shipped_bytes(backbone, "int8")
        received = copy.deepcopy(sim.method.learner.tuning.value.averaged)
        decode(data, received, backbone, "int8")
        assert all(bool(weights.isfinite().all()) for weights in received.parameters())


def _written(sim, folder):
    """A finished dry simulation as a run directory, as far as it is read here."""
    from sim.kernel.writing import write_table
    from sim.results.summary import device_table, summary

    folder.mkdir()
    devices = device_table(sim)
    sim.recorder.write(folder)
    write_table(devices, folder / "devices.parquet")
    write_json(folder / "summary.json", summary(sim, "", devices, 0.0))
    write_json(folder / "manifest.json", {"scenario": {"name": "two"}, "status": "finished"})
    return open_run(folder)
