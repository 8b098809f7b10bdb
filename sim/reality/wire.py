"""Messages over TCP on this machine: a JSON header and raw bytes. Nothing is pickled, nothing outside 127.0.0.1 can connect.

frame = 12 bytes (length of the header, length of the body; little-endian uint32, uint64) + JSON + body
"""

from __future__ import annotations

import hmac
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

LENGTHS = struct.Struct("<IQ")
LONGEST_HEADER, LONGEST_BODY = 64 * 2**20, 4 * 2**30
HERE = "127.0.0.1"
HELLO_S = 10.0  # how long whoever connects may take to say who it is


class WireError(ValueError):
    """A connection cannot be made or broke; the message says which."""


def listen() -> socket.socket:
    """A listening socket on this machine alone, on a free port that the system chooses."""
    listener = socket.create_server((HERE, 0), backlog=256)
    listener.settimeout(0.5)
    return listener


def encode(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def read_frame(sock: socket.socket) -> tuple[dict[str, Any], bytes, int] | None:
    """The next (header, body, bytes of the body as counted from the socket); None at the connection's end."""
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
    return json.loads(text), bytes(body), counted


def _read(sock: socket.socket, wanted: int) -> tuple[bytearray, int]:
    """So many bytes, or fewer at the connection's end, and the sum of what the socket said it gave."""
    buffer, got = bytearray(wanted), 0
    view = memoryview(buffer)
    while got < wanted:
        count = sock.recv_into(view[got:])
        if count == 0:
            break
        got += count
    view.release()
    return buffer[:got], got


def connect(port: int, token: str, **who: Any) -> socket.socket:
    """Connect to a port of this machine and say who one is."""
    sock = socket.create_connection((HERE, port), timeout=HELLO_S)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(encode({"token": token, **who}))
    return sock


def welcome(listener: socket.socket, token: str) -> tuple[socket.socket, dict[str, Any]] | None:
    """The next connection that knows the token, and who it is; None if none came for a while or it was a stranger."""
    try:
        sock, _ = listener.accept()
    except TimeoutError:
        return None
    try:
        sock.settimeout(HELLO_S)
        frame = read_frame(sock)
        who = frame[0] if frame and isinstance(frame[0], dict) else {}
        if not hmac.compare_digest(str(who.pop("token", "")), token):
            raise WireError("a stranger")
    except (OSError, ValueError):
        sock.close()
        return None
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, who


class Connection:
    """One socket with a thread that reads frames and one that writes them, so that nobody's clock waits for a socket.

    `on_frame(header, body, counted)` and, once, `on_end()` are called from the reading thread.
    """

    def __init__(
        self, sock: socket.socket, on_frame: Callable[[dict, bytes, int], None], on_end: Callable[[], None]
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
