"""Measuring a path: a shaped link's rates and latency are found, and what goes wrong is said."""

import asyncio
import json
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress

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


def measure(port: int, seconds: float, **rest) -> probe.LinkProbe:
    return asyncio.run(probe.measure("127.0.0.1", port, seconds, **rest))


def test_a_shaped_path_is_found_as_it_was_shaped():
    """8 Mbit/s up, 16 down, 10 ms each way."""
    stages = []
    with (
        serving() as (port, wishes),
        ShapedRelay(("127.0.0.1", port), 8e6, 16e6, [Access(latency_s=0.01)]) as relay,
    ):
        found = measure(
            relay.port,
            1.0,
            on_progress=lambda stage, done_s, all_s: stages.append((stage, done_s <= all_s)),
        )
    assert wishes == ["take", "up", "down"]
    assert {stage for stage, _ in stages} == {
        "round trips and small transfers",
        "uplink",
        "downlink",
    }
    assert all(in_time for _, in_time in stages)
    assert len(found.up_bps) == len(found.down_bps) == 10
    assert np.min(found.round_trips_s) >= 0.02
    assert len(found.transfers) > 0


@pytest.mark.timed
def test_a_shaped_path_is_found_with_its_rates_and_times():
    with (
        serving() as (port, _),
        ShapedRelay(("127.0.0.1", port), 8e6, 16e6, [Access(latency_s=0.01)]) as relay,
    ):
        found = measure(relay.port, 1.0)
    assert np.mean(found.up_bps) == pytest.approx(8e6, rel=0.1)
    assert np.mean(found.down_bps) == pytest.approx(16e6, rel=0.1)
    assert (
        moments(found.up_bps).cv < 0.15
    )  # well below radio links (0.2 and up): the probe adds little of its own
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


def said_to(port: int, message: bytes, shut: bool = True) -> bytes:
    """What the serving end sends to a client that says this, until it hangs up."""
    heard = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as client,
        suppress(ConnectionError),
    ):
        client.sendall(message)
        if shut:
            client.shutdown(socket.SHUT_WR)
        while data := client.recv(65536):
            heard += data
            if len(heard) > 10**7:
                break
    return heard


STRANGE = [
    *(
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"do": "format"}\n',
        b"[1]\n",
        b"null\n",
        b"\n",
        b"\0" * 100 + b"\n",
    ),
    *(
        b'{"do": "take"}\n' + size
        for size in (b"\xff" * 8, b"\x80" + b"\0" * 7, b"\0" * 7, (10**7).to_bytes(8, "big"))
    ),
    *(
        b"[" * 60_000 + b"\n",
        b'{"do":' * 200 + b"\n",
        b"9" * 900 + b"\n",
        b'{"do": "up", "seconds": ' + b"9" * 900 + b"}\n",
    ),
    *(
        b'{"do": "%b", "seconds": %b}\n' % (do, seconds)
        for do in (b"up", b"down", b"take", b"__class__")
        for seconds in (
            b"1e999",
            b"-1",
            b"NaN",
            b"-Infinity",
            b'"5"',
            b"null",
            b"[]",
            b"true",
            b"601",
            b"0",
        )
    ),
    *(
        b'{"do": ["up"]}\n',
        b'{"do": {}}\n',
        b'{"do": null}\n',
        b'{"seconds": 1}\n',
        b"\xff\xfe\n",
        b"\xed\xa0\x80\n",
    ),
    *(
        b"x" * 70_000,
        b"x" * 70_000 + b"\n",
        b'{"do": "up"}' + b" " * 2000 + b"\n",
        b'{"do": "up", "seconds": 0.1}\nrest',
    ),
]


def test_the_serving_end_outlives_whatever_bytes_come():
    """200 strings, odd ones and random ones; then it measures as before."""
    rng = np.random.default_rng(0)
    parts = [
        b'{"do": "',
        b"up",
        b"down",
        b'", "seconds": ',
        b"0.1",
        b"1e400",
        b"}",
        b"\n",
        b"{",
        b"[",
        b'"',
        b"\0",
        b"\xff",
        b"9" * 50,
    ]
    mixed = [
        b"".join(parts[i] for i in rng.integers(0, len(parts), rng.integers(1, 12)))
        for _ in range(100)
    ]
    noise = [
        rng.bytes(int(n)) + b"\n" for n in rng.integers(1, 400, 200 - len(mixed) - len(STRANGE))
    ]
    messages = [*STRANGE, *mixed, *noise]
    assert len(messages) == 200
    with serving() as (port, told):
        for message in messages:
            assert said_to(port, message).startswith(b'{"mobifleet-link": 2}\n')
        wishes = sum(what in ("up", "down", "take") for what in told)
        assert len(told) == 200 and 0 < wishes < 100
        assert set(told) - {"up", "down", "take"} == {
            "speaks another language",
            "asked for something else",
        }
        del told[:]
        assert np.mean(measure(port, 0.2).up_bps) > 0
        assert told == ["take", "up", "down"]


def test_silent_slow_and_many_clients_hold_nobody_off(monkeypatch):
    monkeypatch.setattr(probe, "REQUEST_S", 2.0)
    monkeypatch.setattr(probe, "MOST_CLIENTS", 8)
    with serving() as (port, told):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
        assert np.mean(measure(port, 0.2).up_bps) > 0  # while the six say nothing
        more = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(20)]
        for client in [*silent, *more]:
            client.settimeout(20)
            with suppress(ConnectionError):
                while client.recv(1000):
                    pass  # until it is hung up on
            client.close()
        assert (
            told.count("asked for nothing in time") >= 6
            and "sent away: 8 others are connected" in told
        )
        assert np.mean(measure(port, 0.2).up_bps) > 0


def test_a_client_that_does_not_read_is_left(monkeypatch):
    monkeypatch.setattr(probe, "QUIET_S", 0.3)
    with serving() as (port, _), socket.create_connection(("127.0.0.1", port)) as deaf:
        deaf.sendall(b'{"do": "down", "seconds": 600}\n')
        time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as other:
            other.sendall(b'{"do": "up", "seconds": 0.1}\n')
            file = other.makefile("rb")
            assert json.loads(file.readline()) == {"mobifleet-link": 2}
            assert json.loads(file.readline()) == {"go": True}  # within its turn of 5 s, of 600


def test_one_client_gets_so_many_bytes_and_transfers_at_most(monkeypatch):
    monkeypatch.setattr(probe, "MOST_BYTES", 10 * len(probe.BLOCK))
    monkeypatch.setattr(probe, "MOST_TRANSFERS", 3)
    with serving() as (port, _):
        assert len(said_to(port, b'{"do": "down", "seconds": 600}\n')) <= 11 * len(probe.BLOCK)
        taken = said_to(port, b'{"do": "take"}\n' + (b"\0" * 7 + b"\1x") * 10)
        assert taken.endswith(b'{"go": true}\n...')
        flood = said_to(
            port, b'{"do": "up", "seconds": 600}\n' + bytes(2 * 10 * len(probe.BLOCK)), shut=False
        )
        assert b"[" not in flood  # cut, not counted


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b'{"mobifleet-link": 1}'], "another version"),
        ([b"[" * 100_000], "is not `mobifleet calibrate link --serve`"),
        ([b'{"mobifleet-link": 2}', b"9" * 10_000], "is not `mobifleet calibrate link --serve`"),
        ([b'{"mobifleet-link": 2}', b'{"busy": true}'], "somebody else"),
        ([b'{"mobifleet-link": 2}', b'{"go": true}', b'["many"]'], "does not answer what arrived"),
        (
            [b'{"mobifleet-link": 2}', b'{"go": true}', b"[1e999, -1]"],
            "does not answer what arrived",
        ),
        ([b'{"mobifleet-link": 2}', b'{"go": true}', b"{" * 5000], "was cut"),
    ],
    ids=range(7),
)
def test_a_serving_end_that_is_none_is_told_in_one_message(lines, message):
    def serve():
        with suppress(OSError):
            while True:
                connection, _ = stranger.accept()
                with connection:
                    connection.sendall(b"\n".join(lines) + b"\n")
                    connection.settimeout(1)
                    with suppress(OSError):
                        while connection.recv(65536):
                            pass

    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        threading.Thread(target=serve, daemon=True).start()
        client = probe._Client("127.0.0.1", stranger.getsockname()[1], lambda *how: None)
        with pytest.raises(NetworkError, match=message):
            asyncio.run(client.bulk_up(0.5))


def test_a_port_that_is_taken_is_told():
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as taken,
        pytest.raises(NetworkError, match="another --port"),
    ):
        asyncio.run(probe.listen("127.0.0.1", taken.getsockname()[1]))
