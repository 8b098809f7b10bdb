"""Messages over TCP on this machine: a JSON header and raw bytes. Nothing is pickled, nothing
outside 127.0.0.1 can connect.

frame = 12 bytes (length of the header, length of the body; little-endian uint32, uint64) + JSON +
body

Whoever connects first says in one small frame without a body who it is, and the token; nothing more
is read, and no memory taken, before the token is right.
"""

from __future__ import annotations

import hmac
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from inputs.files import parse_json

LENGTHS = struct.Struct("<IQ")
LONGEST_HEADER = 64 * 2**20
LONGEST_BODY = 4 * 2**30
LONGEST_HELLO = 4096
CHUNK_BYTES = 2**18  # memory grows by what has come, not by what is announced
HERE = "127.0.0.1"
HELLO_S = 10.0  # how long whoever connects may take, in all, to say who it is
MOST_UNKNOWN = 64  # connections at once that have not said it yet


class WireError(ValueError):
    """A connection cannot be made or broke; the message says which."""


def listen() -> socket.socket:
    """A listening socket on this machine alone, on a free port that the system chooses."""
    listener = socket.create_server((HERE, 0), backlog=256)
    listener.settimeout(0.1)
    return listener


def encode(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def read_frame(sock: socket.socket) -> tuple[dict[str, Any], bytes, int] | None:
    """The next (header, body, bytes of the body as counted from the socket); None at the
    connection's end.
    """
    lengths, _ = _read(sock, LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, body_bytes = LENGTHS.unpack(lengths)
    if header_bytes > LONGEST_HEADER or body_bytes > LONGEST_BODY:
        raise WireError("a frame's lengths make no sense: something else talks on this connection")
    text, _ = _read(sock, header_bytes)
    body, counted = _read(sock, body_bytes)
    if len(text) < header_bytes or len(body) < body_bytes:
        return None
    return parse_json(text.decode(), "a frame"), bytes(body), counted


def _read(sock: socket.socket, wanted: int, until_s: float | None = None) -> tuple[bytearray, int]:
    """So many bytes, or fewer at the connection's end, and the sum of what the socket said it gave;
    OSError after a time.
    """
    buffer, got = bytearray(), 0
    while got < wanted:
        if until_s is not None:
            sock.settimeout(max(1e-3, until_s - time.monotonic()))
        chunk = sock.recv(min(CHUNK_BYTES, wanted - got))
        if not chunk:
            break
        buffer += chunk
        got += len(chunk)
    return buffer, got


def connect(port: int, token: str, **who: Any) -> socket.socket:
    """Connect to a port of this machine and say who one is."""
    sock = socket.create_connection((HERE, port), timeout=HELLO_S)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(encode({"token": token, **who}))
    return sock


def clients(
    listener: socket.socket, token: str
) -> Iterator[tuple[socket.socket, dict[str, Any]] | None]:
    """Connections of clients that know the token, with who they say they are; None whenever nobody
    has come for a while.

    Each is read in a thread of its own, so that one who says nothing holds nobody off; who lacks
    the token is disconnected.
    """
    known: queue.SimpleQueue[tuple[socket.socket, dict[str, Any]]] = queue.SimpleQueue()
    unknown = threading.BoundedSemaphore(MOST_UNKNOWN)

    def admit(sock: socket.socket) -> None:
        try:
            known.put((sock, _identified(sock, token)))
        except (OSError, ValueError):
            sock.close()
        finally:
            unknown.release()

    while True:
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            yield None
        else:
            if unknown.acquire(blocking=False):
                threading.Thread(target=admit, args=(sock,), daemon=True).start()
            else:
                sock.close()
        while not known.empty():
            yield known.get()


def _identified(sock: socket.socket, token: str) -> dict[str, Any]:
    """Who a connection says it is; OSError or WireError for one that takes too long or has
    no token.
    """
    until_s = time.monotonic() + HELLO_S
    lengths, got = _read(sock, LENGTHS.size, until_s)
    header_bytes, body_bytes = LENGTHS.unpack(lengths) if got == LENGTHS.size else (0, 0)
    if not 0 < header_bytes <= LONGEST_HELLO or body_bytes:
        raise WireError("an unknown client")
    who = parse_json(_read(sock, header_bytes, until_s)[0].decode(), "a frame")
    said = who.pop("token", None) if isinstance(who, dict) else None
    if not isinstance(said, str) or not hmac.compare_digest(said.encode(), token.encode()):
        raise WireError("an unknown client")
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return who


class Connection:
    """One socket with a thread that reads frames and one that writes them, so that nobody's clock
    waits for a socket.

    `on_frame(header, body, counted)` and, once, `on_end()` are called from the reading thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[dict, bytes, int], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock, self._on_frame, self._on_end = sock, on_frame, on_end
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for work in (self._read_all, self._write_all):
            threading.Thread(target=work, daemon=True).start()

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Queue a frame."""
        self._outgoing.put(encode(header, body))

    def close(self, within_s: float = 2.0) -> None:
        """Write what is queued, then end the connection."""
        self._outgoing.put(None)
        deadline = time.monotonic() + within_s
        while not self._outgoing.empty() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _read_all(self) -> None:
        try:
            while (frame := read_frame(self._sock)) is not None:
                self._on_frame(*frame)
        except (OSError, ValueError):
            pass  # the other side's process is gone, or talks nonsense: both end the connection
        finally:
            self._on_end()

    def _write_all(self) -> None:
        try:
            while (frame := self._outgoing.get()) is not None:
                self._sock.sendall(frame)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the reading thread sees the same end
