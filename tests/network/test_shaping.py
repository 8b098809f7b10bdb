"""The shaped relay: every byte arrives, at the rate of the link, shared fairly, as late as the
latency says.
"""

import socket
import threading
import time
from contextlib import closing, contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from network.errors import NetworkError
from network.shaping import Access, ShapedRelay, TokenBucket

ASKS = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5000)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(asks=ASKS, rate_bps=st.floats(1e3, 1e6), burst_bytes=st.sampled_from([0.0, 1500.0, 20000.0]))
def test_a_bucket_never_lets_more_than_its_burst_above_its_rate(asks, rate_bps, burst_bytes):
    """In any window that ends with a passage: bytes <= burst + rate x length (+ what passes at its
    very start).
    """
    bucket, now_s, passed = TokenBucket(rate_bps, burst_bytes), 0.0, []
    for gap_s, nbytes in asks:
        now_s += gap_s
        passed.append((bucket.passes_s(nbytes, now_s), nbytes))
    for i, (start_s, _) in enumerate(passed):
        nbytes = 0
        for end_s, size in passed[i + 1 :]:
            nbytes += size
            assert nbytes <= burst_bytes + rate_bps * (end_s - start_s) / 8 + 1e-6
    assert all(b[0] >= a[0] for a, b in pairwise(passed))


def test_without_a_burst_a_bucket_is_a_queue_at_a_plain_rate():
    """8000 bit/s: 1000 bytes take 1 s. Asked at 0, 0.2 and 5: the second waits for the first, the
    third for nobody.
    """
    bucket = TokenBucket(8000)
    assert [bucket.passes_s(1000, t) for t in (0, 0.2, 5)] == [1, 2, 6]
    bucket = TokenBucket(8000, burst_bytes=1500)
    assert [bucket.passes_s(1000, t) for t in (0, 0, 0)] == [0, 0.5, 1.5]
    with pytest.raises(NetworkError, match="rate > 0"):
        TokenBucket(0)


@contextmanager
def listener(serve):
    """A server on a free port that hands each connection to `serve` in a thread of its own."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)


def echo(connection):
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def received(connection) -> bytes:
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


def echoed_s() -> float:
    """Seconds until 400 kB have come back through 40 Mbit/s up and 8 Mbit/s down; every byte is
    checked and counted.
    """
    payload = np.random.default_rng(0).bytes(400_000)
    with listener(echo) as target, ShapedRelay(target, 40e6, 8e6) as relay:
        with socket.create_connection(("127.0.0.1", relay.port)) as client:
            began_s = time.perf_counter()
            sender = threading.Thread(
                target=lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR))
            )
            sender.start()
            assert received(client) == payload  # the end of the stream came through too
            took_s = time.perf_counter() - began_s
            sender.join()
        assert (relay.up_bytes, relay.down_bytes) == (400_000, 400_000)
        assert relay.connections == 1 and relay.unreached == 0
    return took_s


def test_every_byte_comes_back_at_no_more_than_the_slower_rate_and_is_counted():
    assert echoed_s() >= 0.39  # 3.2 Mbit at 8 Mbit/s


@pytest.mark.timed
def test_the_way_up_overlaps_the_way_down():
    assert echoed_s() < 0.6


def delayed_and_capped_s() -> tuple[float, float]:
    """The shortest round trip through 30 ms each way, and the seconds of 75 kB through another
    port's cap of 2 Mbit/s.
    """
    access = [Access(latency_s=0.03), Access(up_bps=2e6)]
    with listener(echo) as target, ShapedRelay(target, 20e6, access=access) as relay:
        with socket.create_connection(("127.0.0.1", relay.ports[0])) as client:
            round_trips_s = []
            for _ in range(5):
                began_s = time.perf_counter()
                client.sendall(b"ping")
                client.recv(4)
                round_trips_s.append(time.perf_counter() - began_s)
        with socket.create_connection(("127.0.0.1", relay.ports[1])) as client:
            began_s = time.perf_counter()
            client.sendall(bytes(75_000))
            client.shutdown(socket.SHUT_WR)
            received(client)
            return min(round_trips_s), time.perf_counter() - began_s


def test_latency_is_paid_each_way_and_a_cap_binds_one_port_only():
    round_trip_s, capped_s = delayed_and_capped_s()
    assert round_trip_s >= 0.06 and capped_s >= 0.29  # 600 kbit at the cap of 2 Mbit/s


@pytest.mark.timed
def test_no_more_than_latency_and_cap_is_paid():
    round_trip_s, capped_s = delayed_and_capped_s()
    assert round_trip_s < 0.08 and capped_s < 0.45


@pytest.mark.timed
def test_connections_at_once_get_alike():
    """Three that start together with as much to send end together, after three times as long."""
    ends_s = []

    def sink(connection):
        with connection:
            received(connection)
            ends_s.append(time.perf_counter())

    with listener(sink) as target, ShapedRelay(target, 16e6) as relay:
        clients = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(3)]
        began_s = time.perf_counter()

        def send(client):
            with client:
                client.sendall(bytes(200_000))
                client.shutdown(socket.SHUT_WR)
                client.recv(1)

        threads = [threading.Thread(target=send, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
    assert min(ends_s) - began_s >= 0.29 and max(ends_s) - began_s < 0.45
    assert max(ends_s) - min(ends_s) < 0.05


def test_what_can_go_wrong_is_said():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError, match=f"cannot listen on 127.0.0.1 port {port}"):
            ShapedRelay(("127.0.0.1", 1), 1e6, access=[Access(port=port)]).start()
    relay = ShapedRelay(("127.0.0.1", port), 1e6).start()  # nobody listens there any more
    with pytest.raises(NetworkError, match="started already"):
        relay.start()
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        client.settimeout(5)
        assert client.recv(1) == b""
    assert relay.unreached == 1
    with socket.create_connection(("127.0.0.1", relay.port)):
        relay.stop()
    relay.stop()
