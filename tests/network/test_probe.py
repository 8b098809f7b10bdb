"""Measuring a path: a shaped link's rates and latency are found, and what goes wrong is said."""

import asyncio
import socket
import threading
from contextlib import closing, contextmanager

import numpy as np
import pytest

from network import probe
from network.calibration import fit_transfers, moments
from network.errors import NetworkError
from network.measured import per_second
from network.shaping import Access, ShapedRelay


@contextmanager
def serving():
    """The listening end in a thread of its own; gives its port."""
    ready, stop = threading.Event(), None

    async def main():
        nonlocal stop, port
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        stop = lambda: loop.call_soon_threadsafe(ended.set)  # noqa: E731
        server = await probe.listen("127.0.0.1", 0, lambda peer, wish: wishes.append(wish))
        port = server.sockets[0].getsockname()[1]
        ready.set()
        await ended.wait()
        server.close()

    port, wishes = 0, []
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    ready.wait(5)
    yield port, wishes
    stop()
    thread.join(5)


def measure(port: int, seconds: float, **rest) -> probe.Probe:
    return asyncio.run(probe.measure("127.0.0.1", port, seconds, **rest))


def test_a_shaped_path_is_found_as_it_was_shaped():
    """8 Mbit/s up, 16 down, 10 ms each way."""
    stages = []
    with serving() as (port, wishes), ShapedRelay(("127.0.0.1", port), 8e6, 16e6, [Access(latency_s=0.01)]) as relay:
        found = measure(
            relay.port, 1.0, on_progress=lambda stage, done_s, all_s: stages.append((stage, done_s <= all_s))
        )
    assert wishes == ["take", "up", "down"]
    assert {stage for stage, _ in stages} == {"round trips and small transfers", "uplink", "downlink"}
    assert all(in_time for _, in_time in stages)
    assert len(found.up_bps) == len(found.down_bps) == 10
    assert np.mean(found.up_bps) == pytest.approx(8e6, rel=0.1)
    assert np.mean(found.down_bps) == pytest.approx(16e6, rel=0.1)
    assert moments(found.up_bps).cv < 0.15  # well below radio links (0.2 and up): the probe adds little of its own
    assert len(per_second(found.up_bps, found.step_s)) == 1
    assert np.min(found.round_trips_s) >= 0.02 and np.median(found.round_trips_s) < 0.03
    fixed_s, rate_bps = fit_transfers(*zip(*found.transfers, strict=True))
    assert rate_bps == pytest.approx(8e6, rel=0.2)
    assert 0.015 < fixed_s < 0.035  # the round trip; nothing else is paid on an open connection


def test_nobody_listens_or_somebody_else_does():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(NetworkError, match=f"refused.*--serve --port {port}"):
        measure(port, 1)

    def answer_otherwise():
        connection, _ = stranger.accept()
        with connection:
            connection.sendall(b"220 mail.example ready\r\n")
            connection.recv(1)

    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        thread = threading.Thread(target=answer_otherwise, daemon=True)
        thread.start()
        with pytest.raises(NetworkError, match="is not `mobifleet calibrate link --serve`"):
            measure(stranger.getsockname()[1], 1)
    with pytest.raises(NetworkError, match=r"cannot connect to nowhere\.invalid"):
        asyncio.run(probe.measure("nowhere.invalid", 1, 1))
    with pytest.raises(NetworkError, match="lasts from 0"):
        measure(port, 0)


def test_silence_and_a_busy_server_are_told_apart(monkeypatch):
    monkeypatch.setattr(probe, "QUIET_S", 0.3)
    monkeypatch.setattr(probe, "TURN_S", 0.1)
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as mute,
        pytest.raises(NetworkError, match="no answer from 127"),
    ):
        measure(mute.getsockname()[1], 1)
    with serving() as (port, _), socket.create_connection(("127.0.0.1", port)) as first:
        assert b"mobifleet-link" in first.recv(100)
        first.sendall(b'{"do": "down", "seconds": 5}\n')
        with pytest.raises(NetworkError, match="somebody else"):
            measure(port, 1)


@pytest.mark.parametrize("stage", ["uplink", "downlink"])
def test_a_path_that_is_cut_says_when_and_where(stage):
    with serving() as (port, _):
        relay = ShapedRelay(("127.0.0.1", port), 150e6).start()

        def cut(now, done_s, all_s):
            if now == stage and done_s > 0.1 and relay.port:
                threading.Thread(target=relay.stop).start()

        with pytest.raises(NetworkError, match=rf"was cut .* measuring \({stage}\)"):
            measure(relay.port, 0.6, on_progress=cut)
        relay.stop()


def test_the_serving_end_outlives_strange_clients():
    with serving() as (port, _):
        for message in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"do": "format"}\n',
            b"[1]\n",
            b'{"do": "take"}\n' + b"\xff" * 8,
        ):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.recv(100)
                client.sendall(message)
                client.shutdown(socket.SHUT_WR)
                while client.recv(100):
                    pass
        assert np.mean(measure(port, 0.2).up_bps) > 0
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(NetworkError, match="another --port"):
        asyncio.run(probe.listen("127.0.0.1", taken.getsockname()[1]))
