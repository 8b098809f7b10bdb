"""Measuring a path over TCP: one end listens, the other asks for bulk up, bulk down and small
transfers.

Each connection does one thing. The server begins with a line of JSON, the client answers with one
that says what it wants, and the server says that it may go on, or that somebody else is measuring:

    up     the client sends as fast as it can; after so many seconds the server answers what
           arrived in each step
    down   the server sends as fast as it can; the client counts
    take   sizes and bytes by turns, each answered by one byte when the last has arrived: round
           trips and transfer times

Throughput is counted where it arrives: at the sender a series would show its socket buffer filling.
Every wait is bounded, and what goes wrong is one message (NetworkError). Whatever bytes come, the
serving end stays: a wish is a short line that must come soon, one client at a time measures, and
none of them longer, with more bytes or on more connections than the bounds below. Times are the
event loop's; the simulator's clock has no part in this.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from inputs.files import parse_json
from network.errors import NetworkError

PORT = 5207
STEP_S = 0.1
QUIET_S = 10.0  # nobody waits longer than this for a next byte
TURN_S = 5.0  # for the client before to be seen off
REQUEST_S = 5.0  # for a client to say what it wants
LONGEST_REQUEST = 1024  # bytes
MOST_CLIENTS = 32  # connections at once, of which one measures and the others wait
MOST_BYTES = 128 * 10**9  # that one client may send or get: ten minutes at 1.7 Gbit/s
MOST_TRANSFERS = 1000
LONGEST_S = 600.0
ROUND_TRIPS = 30
ROUND_TRIP_BYTES = 16
TRANSFER_BYTES = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
REPEATS = 3
LARGEST_BYTES = 10_000_000
BLOCK = bytes(65536)
HELLO = {"mobifleet-link": 2}
GO, BUSY = {"go": True}, {"busy": True}

ProbeProgress = Callable[
    [str, float, float], None
]  # what is measured now, seconds done, seconds in all


@dataclass(frozen=True)
class LinkProbe:
    """What one measurement saw: bytes that arrived in each step of `step_s`, as bit/s; times of
    round trips and transfers in s.

    `transfers`: (bytes, seconds) over an open connection, from the first byte sent to the answer.
    """

    up_bps: np.ndarray
    down_bps: np.ndarray
    step_s: float
    connect_s: tuple[float, ...]
    round_trips_s: tuple[float, ...]
    transfers: tuple[tuple[int, float], ...]


async def listen(
    host: str, port: int, on_client: Callable[[str, str], None] = lambda peer, what: None
) -> asyncio.Server:
    """The serving end, listening; it measures with one client at a time until it is closed.

    `on_client` is told of every connection, once: from where, and what it wants or why it is sent
    away. Raises NetworkError if the port cannot be had.
    """
    turn, here = asyncio.Lock(), 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal here
        peer = str((writer.get_extra_info("peername") or ["gone"])[0])
        here += 1
        try:
            writer.write(_line(HELLO))
            if here > MOST_CLIENTS:
                on_client(peer, f"sent away: {MOST_CLIENTS} others are connected")
                writer.write(_line(BUSY))
                return
            do, seconds = await _wish(reader)
            on_client(peer, do)
            if not await _in_time(turn.acquire(), TURN_S):
                writer.write(_line(BUSY))
                return
            try:
                writer.write(_line(GO))
                await _SERVICES[do](reader, writer, seconds)
            finally:
                turn.release()
        except _NotOurs as error:
            on_client(peer, str(error))
        except (OSError, EOFError):
            pass  # gone, or silent: no news
        finally:
            here -= 1
            await _see_off(writer)

    try:
        return await asyncio.start_server(connected, host, port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise NetworkError(
            f"cannot listen on {host}:{port}: {why}; choose another --port"
        ) from None


async def measure(
    host: str,
    port: int,
    seconds: float,
    on_progress: ProbeProgress = lambda stage, done_s, all_s: None,
) -> LinkProbe:
    """Measure the path to a listening end: `seconds` of bulk each way, and a few seconds of small
    transfers.

    Raises NetworkError if nobody listens, somebody else answers, the server is busy, or the path
    falls silent or is cut.
    """
    if not 0 < seconds <= LONGEST_S:
        raise NetworkError(
            f"a measurement lasts from 0 to {LONGEST_S:.0f} s each way, not {seconds:g} s"
        )
    client = _Client(host, port, on_progress)
    round_trips_s, transfers = await client.small_transfers(seconds)
    up_bps = await client.bulk_up(seconds)
    down_bps = await client.bulk_down(seconds)
    return LinkProbe(
        up_bps, down_bps, STEP_S, tuple(client.connect_s), tuple(round_trips_s), tuple(transfers)
    )


class _Client:
    def __init__(self, host: str, port: int, on_progress: ProbeProgress):
        self.host, self.port, self.on_progress = host, port, on_progress
        self.connect_s: list[float] = []
        self.stage = "connecting"

    async def small_transfers(self, seconds: float) -> tuple[list[float], list[tuple[int, float]]]:
        """Round trips, then transfers of growing size while one more will not take longer than the
        time allowed.
        """
        reader, writer = await self._open("round trips and small transfers", {"do": "take"})
        loop = asyncio.get_running_loop()
        began_s, allowed_s = loop.time(), max(seconds, 3.0)
        round_trips_s, transfers = [], []
        try:
            for _ in range(ROUND_TRIPS):
                round_trips_s.append(await self._transfer(reader, writer, ROUND_TRIP_BYTES))
            for nbytes in TRANSFER_BYTES:
                for _ in range(REPEATS):
                    took_s = await self._transfer(reader, writer, nbytes)
                    transfers.append((nbytes, took_s))
                    self.on_progress(self.stage, min(allowed_s, loop.time() - began_s), allowed_s)
                if loop.time() - began_s + 4 * REPEATS * took_s > allowed_s:
                    break
        finally:
            _hang_up(writer)
        return round_trips_s, transfers

    async def _transfer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nbytes: int
    ) -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        writer.write(nbytes.to_bytes(8, "big") + bytes(nbytes))
        if not await self._wait(reader.read(1)):
            raise self._cut(loop.time() - began_s)
        return loop.time() - began_s

    async def bulk_up(self, seconds: float) -> np.ndarray:
        """bit/s that arrived at the server in each step."""
        reader, writer = await self._open("uplink", {"do": "up", "seconds": seconds})
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def send() -> None:
            with suppress(OSError):  # the wait for the answer says what has happened
                while True:
                    writer.write(BLOCK)
                    await writer.drain()

        sending = asyncio.create_task(send())
        answering = asyncio.create_task(reader.readline())
        try:
            while not answering.done():
                await asyncio.wait([answering], timeout=0.2)
                elapsed_s = loop.time() - began_s
                self.on_progress(self.stage, min(elapsed_s, seconds), seconds)
                if elapsed_s > seconds + QUIET_S:
                    raise self._silent(elapsed_s)
            try:
                counts = parse_json(answering.result().decode(), "an answer")
            except (OSError, ValueError):
                raise self._cut(loop.time() - began_s) from None
            if not isinstance(counts, list) or not all(
                _is_number(count, MOST_BYTES) for count in counts
            ):
                raise NetworkError(f"{self.host}:{self.port} does not answer what arrived there")
        finally:
            sending.cancel()
            answering.cancel()
            _hang_up(writer)
        return _as_bps(counts)

    async def bulk_down(self, seconds: float) -> np.ndarray:
        """bit/s that arrived here in each step."""
        reader, writer = await self._open("downlink", {"do": "down", "seconds": seconds})
        try:
            counts, whole_s = await _count(
                reader,
                seconds,
                lambda done_s: self.on_progress(self.stage, done_s, seconds),
                self._wait,
            )
        finally:
            _hang_up(writer)
        if whole_s < seconds:
            raise self._cut(whole_s)
        return _as_bps(counts)

    async def _open(
        self, stage: str, wish: Mapping[str, object]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop, where = asyncio.get_running_loop(), f"{self.host}:{self.port}"
        self.stage = stage
        began_s = loop.time()
        try:
            async with asyncio.timeout(QUIET_S):
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
                self.connect_s.append(loop.time() - began_s)
                if (hello := await _read_message(reader)).keys() != HELLO.keys():
                    raise ValueError
                if hello != HELLO:
                    raise NetworkError(
                        f"{where} serves another version of this measurement: take the same at "
                        "both ends"
                    )
                writer.write(_line(wish))
            async with asyncio.timeout(REQUEST_S + TURN_S + QUIET_S):
                turn = await _read_message(reader)
        except TimeoutError:
            raise NetworkError(
                f"no answer from {where} within {QUIET_S:g} s: check the address, and that no "
                "firewall drops the port"
            ) from None
        except ConnectionRefusedError:
            raise NetworkError(
                f"{where} refused the connection: start `mobifleet calibrate link --serve --port "
                f"{self.port}` there"
            ) from None
        except OSError as error:
            raise NetworkError(f"cannot connect to {where}: {error.strerror or error}") from None
        except NetworkError:
            raise
        except ValueError:
            raise NetworkError(
                f"{where} answers, but is not `mobifleet calibrate link --serve`"
            ) from None
        if turn != GO:
            _hang_up(writer)
            raise NetworkError(
                f"{where} is measuring with somebody else: try again when it has finished"
            )
        return reader, writer

    async def _wait(self, coming: Awaitable[bytes]) -> bytes:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(QUIET_S):
                return await coming
        except TimeoutError:
            raise self._silent(loop.time() - began_s) from None
        except OSError:
            return b""

    def _cut(self, after_s: float) -> NetworkError:
        return NetworkError(
            f"the connection to {self.host}:{self.port} was cut {after_s:.1f} s into measuring "
            f"({self.stage}): "
            "is the serving end still running? Nothing was written; run it again"
        )

    def _silent(self, after_s: float) -> NetworkError:
        return NetworkError(
            f"{self.host}:{self.port} fell silent while measuring ({self.stage}, {after_s:.1f} s "
            "without an answer): "
            "the path may be down; run it again, or with fewer --seconds"
        )


# ---- the serving end


async def _in_time(coming: Awaitable[object], within_s: float) -> bool:
    """Whether something came in time."""
    try:
        async with asyncio.timeout(within_s):
            await coming
    except TimeoutError:
        return False
    return True


class _NotOurs(Exception):
    """A client that does not say what it wants; the message says what it did instead."""


async def _wish(reader: asyncio.StreamReader) -> tuple[str, float]:
    """What a client wants, and for how many seconds; _NotOurs for anything else that it may send,
    or nothing in time.
    """
    try:
        async with asyncio.timeout(REQUEST_S):
            line = await reader.readuntil(b"\n")
        wish = parse_json(line.decode(), "a wish") if len(line) <= LONGEST_REQUEST else None
    except TimeoutError:
        raise _NotOurs("asked for nothing in time") from None
    except (EOFError, asyncio.LimitOverrunError, ValueError):
        raise _NotOurs("speaks another language") from None
    if not isinstance(wish, dict):
        raise _NotOurs("asked for something else")
    do, seconds = wish.get("do"), wish.get("seconds", 0)
    if not isinstance(do, str) or do not in _SERVICES or not _is_number(seconds, LONGEST_S):
        raise _NotOurs("asked for something else")
    return do, float(seconds)


def _is_number(value: Any, most: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    )  # NaN is neither


async def _see_off(writer: asyncio.StreamWriter) -> None:
    """Close in good order where the other side takes what is left within a second, and else at
    once.
    """
    writer.close()
    with suppress(OSError):
        if not await _in_time(writer.wait_closed(), 1.0):
            writer.transport.abort()


async def _count_for(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    counts, whole_s = await _count(reader, seconds)
    if whole_s < seconds:
        return
    writer.write(_line(counts))
    with suppress(TimeoutError):
        async with asyncio.timeout(QUIET_S):
            while await reader.read(
                2**20
            ):  # what was on its way: closing now would lose the answer
                pass


async def _send_for(
    _reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(
            seconds + QUIET_S
        ):  # the client hangs up when it has counted enough
            for _ in range(MOST_BYTES // len(BLOCK)):
                writer.write(BLOCK)
                async with asyncio.timeout(QUIET_S):
                    await writer.drain()
    writer.transport.abort()


async def _take(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _seconds: float
) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_S):
            for _ in range(MOST_TRANSFERS):
                async with asyncio.timeout(2 * QUIET_S):
                    left = int.from_bytes(await reader.readexactly(8), "big")
                    if left > LARGEST_BYTES:
                        return
                    while left:
                        left -= len(await reader.readexactly(min(left, len(BLOCK))))
                writer.write(b".")


_SERVICES = {"up": _count_for, "down": _send_for, "take": _take}


async def _count(
    reader: asyncio.StreamReader,
    seconds: float,
    on_progress: Callable[[float], None] = lambda done_s: None,
    wait: Callable[[Awaitable[bytes]], Awaitable[bytes]] | None = None,
) -> tuple[list[int], float]:
    """Bytes that arrive in each step from the first byte on, and for how long they did: less than
    `seconds` if cut.
    """
    loop = asyncio.get_running_loop()
    counts = [0] * max(1, round(seconds / STEP_S))
    began_s = None
    told_s = 0.0
    nbytes = 0
    while True:
        data = await (
            wait(reader.read(2**20)) if wait else asyncio.wait_for(reader.read(2**20), QUIET_S)
        )
        now_s = loop.time()
        began_s = now_s if began_s is None else began_s
        if now_s - began_s >= seconds:
            return counts, seconds
        nbytes += len(data)
        if not data or nbytes > MOST_BYTES:
            return counts, now_s - began_s
        counts[min(int((now_s - began_s) / STEP_S), len(counts) - 1)] += len(data)
        if now_s - told_s > 0.2:
            on_progress(now_s - began_s)
            told_s = now_s


async def _read_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The other end's next line, {} for one that is no object; ValueError for one that is no
    JSON.
    """
    message = parse_json((await reader.readline()).decode(), "a line")
    return message if isinstance(message, dict) else {}


def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, so that the megabytes that the kernel still holds are dropped and not
    sent into the next stage.
    """
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.transport.abort()


def _as_bps(counts: list[int]) -> np.ndarray:
    return np.array(counts, dtype=float) * 8 / STEP_S


def _line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"
