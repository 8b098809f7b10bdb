"""Real bytes over a shaped link: a TCP relay in user space whose connections share one bottleneck
fairly.

    client --> port --> [cap of this connection] --> [shared bottleneck] --> latency --> target
    client <-- latency <-- [shared bottleneck] <-- [cap of this connection] <-- target

Up and down are two bottlenecks (full duplex). Each serves its connections in turn, a small chunk at
a time, so that all that have something to send get alike, and what a capped connection leaves goes
to the others: max-min sharing, chunk by chunk. A connection whose queue is full is not read from,
and TCP's own flow control then holds its sender back.

Every chunk is given the instant at which it has passed the bottleneck; it is handed on at that
instant, or as soon after as the host allows. The link's schedule never waits for the host, so a
rate is kept to over any length of time even where the host wakes late. Nothing of the simulator's
clock is here: this module keeps the host's, the event loop's.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf

from network.errors import NetworkError

CHUNK_BYTES = 1448  # the payload of an Ethernet frame with TCP timestamps
QUEUE_BYTES = 256 * 1024  # of one connection in one direction; 20 ms at 100 Mbit/s


class TokenBucket:
    """The instants at which bytes pass a bucket that fills at `rate_bps` bit/s and holds
    `burst_bytes`.

    Keeps no clock: times are given, in s, in order. With a burst of 0 it is a line of this rate:
    bytes pass when the last of them has been sent. The generic cell rate algorithm in its
    virtual-scheduling form (ITU-T I.371). Raises NetworkError for a rate that is not positive or a
    burst below zero.
    """

    def __init__(self, rate_bps: float, burst_bytes: float = 0.0):
        if not (rate_bps > 0 and 0 <= burst_bytes < inf):
            raise NetworkError(
                f"a token bucket needs a rate > 0 bit/s and a burst >= 0 bytes, not {rate_bps}, "
                f"{burst_bytes}"
            )
        self.rate_bps, self.burst_bytes = rate_bps, burst_bytes
        self._sent_s = -inf  # when all bytes so far would have been sent at the plain rate

    def passes_s(self, nbytes: float, asked_s: float) -> float:
        """When `nbytes` that ask at `asked_s` have passed; they are taken from the bucket."""
        self._sent_s = max(self._sent_s, asked_s) + 8 * nbytes / self.rate_bps
        return max(asked_s, self._sent_s - 8 * self.burst_bytes / self.rate_bps)


@dataclass(frozen=True)
class Access:
    """One listening port of a relay, as a device's access link: caps of each connection in bit/s,
    one-way latency in s.

    Port 0 lets the system choose; `ShapedRelay.ports` says what it chose.
    """

    up_bps: float = inf
    down_bps: float = inf
    latency_s: float = 0.0
    port: int = 0


class ShapedRelay:
    """A TCP relay to `target` (host, port) whose connections share `up_bps` towards it and
    `down_bps` back, in bit/s.

    Runs in a thread of its own between start() and stop(), or as a context. `access`: its ports,
    one each for devices with unlike links; all of them share the two bottlenecks. `burst_bytes` may
    pass at once after a pause. start() raises NetworkError if a port cannot be had. A target that
    cannot be reached closes the connection.
    """

    def __init__(
        self,
        target: tuple[str, int],
        up_bps: float,
        down_bps: float | None = None,
        access: Sequence[Access] = (Access(),),
        burst_bytes: float = 0.0,
        host: str = "127.0.0.1",
    ):
        self.target = target
        self.host = host
        self.access = tuple(access)
        self._up = _Bottleneck(up_bps, burst_bytes)
        self._down = _Bottleneck(up_bps if down_bps is None else down_bps, burst_bytes)
        self.ports: list[int] = []
        self.connections = 0  # so far
        self.unreached = 0  # connections for which the target did not answer
        self._thread: threading.Thread | None = None
        self._halt: Callable[[], object] = lambda: None  # once it serves: ends the serving
        self._open: set[asyncio.Task[None]] = set()
        self._failure: OSError | None = None

    @property
    def port(self) -> int:
        """The first port, known once started."""
        return self.ports[0]

    @property
    def up_bytes(self) -> int:
        """Payload bytes handed on to the target so far."""
        return self._up.passed_bytes

    @property
    def down_bytes(self) -> int:
        """Payload bytes handed back to the clients so far."""
        return self._down.passed_bytes

    def start(self) -> ShapedRelay:
        """Listen; returns itself once connections are accepted."""
        if self._thread is not None:
            raise NetworkError("this relay has been started already")
        listening = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening)), daemon=True
        )
        self._thread.start()
        listening.wait()
        if self._failure is not None:
            self.stop()
            wanted = ", ".join(str(access.port) for access in self.access)
            raise NetworkError(
                f"cannot listen on {self.host} port {wanted}: {self._failure.strerror}; choose "
                "another port, or 0"
            )
        return self

    def stop(self) -> None:
        """Close every connection and end the thread; a second call does nothing."""
        thread, self._thread = self._thread, None  # two threads may stop it at once
        if thread is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self._halt()
            thread.join()

    def __enter__(self) -> ShapedRelay:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    async def _serve(self, listening: threading.Event) -> None:
        stopping, servers = asyncio.Event(), []
        self._halt = partial(asyncio.get_running_loop().call_soon_threadsafe, stopping.set)
        try:
            for access in self.access:
                servers.append(
                    await asyncio.start_server(partial(self._relay, access), self.host, access.port)
                )
            self.ports = [server.sockets[0].getsockname()[1] for server in servers]
        except OSError as error:
            self._failure = error
        listening.set()
        if self._failure is None:
            await stopping.wait()
        for server in servers:
            server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _relay(
        self, access: Access, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs every connection in a task"
        self._open.add(task)
        self.connections += 1
        far_writer = None
        try:
            try:
                far_reader, far_writer = await asyncio.open_connection(*self.target)
                for end in (
                    writer,
                    far_writer,
                ):  # else the kernel would queue megabytes in front of the bottleneck
                    end.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES // 2
                    )
            except OSError:
                self.unreached += 1
                return
            async with asyncio.TaskGroup() as both:
                both.create_task(
                    _Lane(self._up, far_writer, access.up_bps, access.latency_s).carry(reader)
                )
                both.create_task(
                    _Lane(self._down, writer, access.down_bps, access.latency_s).carry(far_reader)
                )
        except* (OSError, asyncio.CancelledError):
            pass  # an end has gone away, or the relay stops
        finally:
            writer.close()
            if far_writer is not None:
                far_writer.close()
            self._open.discard(task)


class _Lane:
    """One direction of one connection: chunks that wait for their turn, and where they go."""

    def __init__(
        self,
        bottleneck: _Bottleneck,
        writer: asyncio.StreamWriter,
        cap_bps: float,
        latency_s: float,
    ):
        self.bottleneck, self.writer, self.latency_s = bottleneck, writer, latency_s
        # Two chunks of burst, so that waiting for its turn at the bottleneck costs a connection
        # nothing of its cap.
        self.cap = None if cap_bps == inf else TokenBucket(cap_bps, 2 * CHUNK_BYTES)
        self.waiting: deque[tuple[float, bytes]] = deque()  # (when it came, chunk)
        self.waiting_bytes = 0
        self.head_s = inf  # from when on the first of them may take the bottleneck
        self.under_way = 0  # chunks read and not yet handed on
        self.moved = asyncio.Event()

    async def carry(self, reader: asyncio.StreamReader) -> None:
        """Pass on what the reader gives until its end, then the end."""
        loop = asyncio.get_running_loop()
        while data := await reader.read(QUEUE_BYTES // 4):
            self.bottleneck.enqueue(self, data, loop)
            while self.waiting_bytes > QUEUE_BYTES:
                self.moved.clear()
                await self.moved.wait()
            await self.writer.drain()
        while self.under_way:
            self.moved.clear()
            await self.moved.wait()
        self.writer.write_eof()

    def set_head(self, not_before_s: float) -> None:
        """Ask the cap when the first chunk may go."""
        if self.waiting:
            came_s, chunk = self.waiting[0]
            asked_s = max(came_s, not_before_s)
            self.head_s = asked_s if self.cap is None else self.cap.passes_s(len(chunk), asked_s)


class _Bottleneck:
    """One direction of the shared link: lanes in turn, a chunk each, at the rate of the bucket."""

    def __init__(self, rate_bps: float, burst_bytes: float):
        self.bucket = TokenBucket(rate_bps, burst_bytes)
        self.passed_bytes = 0
        self._turn: deque[_Lane] = deque()  # lanes with chunks waiting
        self._free_s = -inf  # when the chunk chosen last has passed
        self._passed: dict[
            float, deque[tuple[float, _Lane, bytes]]
        ] = {}  # by latency: (when to hand on, ...)
        self._timer: asyncio.TimerHandle | None = None

    def enqueue(self, lane: _Lane, data: bytes, loop: asyncio.AbstractEventLoop) -> None:
        idle = not lane.waiting
        came_s = loop.time()
        chunks = [(came_s, data[i : i + CHUNK_BYTES]) for i in range(0, len(data), CHUNK_BYTES)]
        lane.waiting.extend(chunks)
        lane.waiting_bytes += len(data)
        lane.under_way += len(chunks)
        if idle:
            lane.set_head(came_s)
            self._turn.append(lane)
            self._pump(loop)

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what was due until now, in the order of the link's own schedule, and wake for what is
        due next.
        """
        now_s, next_s = loop.time(), inf
        while self._turn:
            start_s = max(self._free_s, min(lane.head_s for lane in self._turn))
            if start_s > now_s:
                next_s = start_s
                break
            self._choose(start_s)
        for passed in self._passed.values():
            while passed and passed[0][0] <= now_s:
                _, lane, chunk = passed.popleft()
                self._hand_on(lane, chunk)
            if passed:
                next_s = min(next_s, passed[0][0])
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(next_s, self._pump, loop) if next_s < inf else None

    def _choose(self, start_s: float) -> None:
        """Give the bottleneck to the next lane in turn whose head may go; it moves to the end of
        the turn.
        """
        place, lane = next((i, lane) for i, lane in enumerate(self._turn) if lane.head_s <= start_s)
        del self._turn[place]  # who must wait for its cap keeps its place
        _, chunk = lane.waiting.popleft()
        lane.waiting_bytes -= len(chunk)
        lane.moved.set()
        if lane.waiting:
            lane.set_head(start_s)
            self._turn.append(lane)
        self._free_s = self.bucket.passes_s(len(chunk), start_s)
        passed = self._passed.setdefault(lane.latency_s, deque())
        passed.append((self._free_s + lane.latency_s, lane, chunk))

    def _hand_on(self, lane: _Lane, chunk: bytes) -> None:
        lane.under_way -= 1
        lane.moved.set()
        if not lane.writer.is_closing():
            lane.writer.write(chunk)
            self.passed_bytes += len(chunk)
