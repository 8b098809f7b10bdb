"""Fair links against real TCP: python benchmarks/real_tcp.py [--rate 20e6] [--repeat 5] [--only
relay|queues|fifo]

Flows of mixed sizes and staggered starts go through one shaped bottleneck, and the instants at
which the last byte of each arrives are held against `network.fair_link.FairLink` with the same
sizes, starts and capacity. The bottlenecks:

    relay   network.shaping.ShapedRelay on 127.0.0.1: works everywhere
    queues  Linux: two network namespaces joined by a pair of devices, `tc` shaping the sending one
            with a queue for each flow
            (htb), as a cell has for each phone
    fifo    the same with one queue for all, first in, first out, 25 or 100 ms long (tbf): shares
            are what TCP makes of them

The last two need root; the fair link gets the share of their rate that carries payload (1448 of the
1514 bytes of a frame).

Prints the relative error of completion times (finish - start): median and p95 of its size, median
with its sign; and the real thing's own spread, the median relative deviation of a flow's time from
its mean over the repetitions.
"""

import argparse
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simpy

from network.fair_link import FairLink
from network.shaping import ShapedRelay

PAYLOAD_SHARE = (
    1448 / 1514
)  # tbf counts Ethernet frames: 14 + 20 + 20 bytes of headers, 12 of TCP timestamps
LONGEST_S = 30.0
NAMES = (f"mobifleet-near-{os.getpid()}", f"mobifleet-far-{os.getpid()}")
NEAR, FAR, PORT, DEVICE = "10.77.0.1", "10.77.0.2", 5209, "mobifleet0"
CLASS = 16


@dataclass(frozen=True)
class Flow:
    """Bytes that start at a time."""

    nbytes: int
    start_s: float


def mixed_flows(n: int, rate_bps: float, busy_s: float, rng: np.random.Generator) -> list[Flow]:
    """n flows of log-normal size (sigma 1) that keep the link busy for `busy_s`, starting within
    its first third.
    """
    sizes = rng.lognormal(0, 1, n)
    nbytes = np.maximum(10_000, sizes / sizes.sum() * busy_s * rate_bps / 8).astype(int)
    starts_s = np.sort(rng.uniform(0, busy_s / 3, n)) * (n > 1)
    return [Flow(int(size), float(start_s)) for size, start_s in zip(nbytes, starts_s, strict=True)]


def simulated(flows: Sequence[Flow], capacity_bps: float) -> np.ndarray:
    """Seconds from start to last byte of each flow on a fair link."""
    env = simpy.Environment()
    link = FairLink(env, capacity_bps)
    took_s = np.zeros(len(flows))

    def run(i: int, flow: Flow):
        yield env.timeout(flow.start_s)
        took_s[i] = (yield link.transfer(flow.nbytes)) - flow.start_s

    for i, flow in enumerate(flows):
        env.process(run(i, flow))
    env.run()
    return took_s


# ---- real flows


class Sink:
    """Receives flows and notes when the last byte of each came; a flow begins with its number in 4
    bytes.
    """

    def __init__(self, address: tuple[str, int], n: int):
        self.ended_s = np.full(n, np.nan)
        self.socket = socket.create_server(address, backlog=n)
        self.threads = [threading.Thread(target=self._receive, daemon=True) for _ in range(n)]
        for thread in self.threads:
            thread.start()

    def _receive(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            number = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
            connection.sendall(b"!")
            while connection.recv(65536):
                pass
            self.ended_s[number] = time.monotonic()

    def wait(self) -> np.ndarray:
        """The instants of the last bytes, on the clock that all processes of a host share."""
        for thread in self.threads:
            thread.join(LONGEST_S)
        self.socket.close()
        return self.ended_s


def send(address: tuple[str, int], flows: Sequence[Flow], congestion: str | None = None) -> float:
    """Send the flows at their starts, each on a connection that is open before; returns the instant
    of time 0.
    """
    sockets = []
    for i in range(len(flows)):
        sockets.append(socket.create_connection(address, timeout=LONGEST_S))
        sockets[-1].sendall(i.to_bytes(4, "big"))
        sockets[-1].recv(1)
        if congestion:
            sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 1 << 16 | CLASS + i)
    zero_s = time.monotonic() + 0.02

    def one(connection: socket.socket, flow: Flow) -> None:
        with connection:
            time.sleep(max(0.0, zero_s + flow.start_s - time.monotonic()))
            connection.sendall(bytes(flow.nbytes))
            connection.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                connection.recv(1)

    threads = [threading.Thread(target=one, args=pair) for pair in zip(sockets, flows, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return zero_s


def through_relay(flows: Sequence[Flow], rate_bps: float) -> np.ndarray:
    """Seconds from start to last byte of each flow through the shaped relay on the loopback
    device.
    """
    sink = Sink(("127.0.0.1", 0), len(flows))
    with ShapedRelay(sink.socket.getsockname(), rate_bps) as relay:
        zero_s = send(("127.0.0.1", relay.port), flows)
        ended_s = sink.wait()
    return ended_s - zero_s - [flow.start_s for flow in flows]


@contextmanager
def namespaces(shape: Sequence[str]):
    """Two network namespaces, the sending device shaped by these `tc` commands; raises OSError
    where not permitted.
    """

    def sh(command: str) -> None:
        done = subprocess.run(command.split(), capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"`{command}`: {done.stderr.strip() or done.returncode}")

    if not shutil.which("ip") or not shutil.which("tc"):
        raise OSError("needs the commands ip and tc (iproute2)")
    near, far = NAMES
    try:
        sh(f"ip netns add {near}")
        sh(f"ip netns add {far}")
        sh(f"ip link add {DEVICE} netns {near} type veth peer name {DEVICE} netns {far}")
        for name, address in ((near, NEAR), (far, FAR)):
            sh(f"ip -n {name} address add {address}/24 dev {DEVICE}")
            sh(
                f"ip -n {name} link set {DEVICE} gso_max_segs 1 up"
            )  # one frame at a time, as on a real device
        for command in shape:
            sh(f"tc -n {near} {command}")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def controls() -> list[str]:
    """The TCP congestion controls that this kernel has loaded."""
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    return known.read_text(encoding="utf-8").split() if known.exists() else []


def fifo(rate_bps: float, queue_s: float) -> list[str]:
    """One queue for all, of this length."""
    return [
        f"qdisc add dev {DEVICE} root tbf rate {rate_bps:.0f} burst 4kb limit "
        f"{rate_bps * queue_s / 8:.0f}"
    ]


def queues(rate_bps: float, n: int) -> list[str]:
    """A queue for each flow, served in turn; flow i is told by its socket's priority, 1:(CLASS +
    i).
    """
    child = "classid 1:{:x} htb rate {:.0f} ceil {:.0f} burst 2kb cburst 2kb quantum 1514"
    shape = [f"qdisc add dev {DEVICE} root handle 1: htb"]
    shape.append(f"class add dev {DEVICE} parent 1: " + child.format(1, rate_bps, rate_bps))
    for i in range(n):
        shape.append(
            f"class add dev {DEVICE} parent 1:1 " + child.format(CLASS + i, rate_bps / n, rate_bps)
        )
        shape.append(f"qdisc add dev {DEVICE} parent 1:{CLASS + i:x} pfifo limit 200")
    return shape


def through_kernel(flows: Sequence[Flow], congestion: str) -> np.ndarray:
    """Seconds from start to last byte of each flow between the namespaces."""

    def inside(name: str, role: str) -> subprocess.Popen:
        argv = [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            __file__,
            "--role",
            role,
            "--congestion",
            congestion,
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, **pipes)

    plan = json.dumps([[flow.nbytes, flow.start_s] for flow in flows])
    sink, sender = inside(NAMES[1], "sink"), inside(NAMES[0], "send")
    try:
        sink.stdin.write(plan + "\n")
        sink.stdin.flush()
        sink.stdout.readline()  # it listens
        zero_s = json.loads(sender.communicate(plan + "\n", timeout=2 * LONGEST_S)[0])
        ended_s = np.array(json.loads(sink.communicate(timeout=2 * LONGEST_S)[0]))
    finally:
        for process in (sink, sender):
            process.kill()
            process.wait()
    return ended_s - zero_s - [flow.start_s for flow in flows]


def play(role: str, congestion: str) -> None:
    """The part of a process inside a namespace: the plan comes in, instants go out."""
    flows = [Flow(nbytes, start_s) for nbytes, start_s in json.loads(sys.stdin.readline())]
    if role == "send":
        print(json.dumps(send((FAR, PORT), flows, congestion)))
        return
    sink = Sink((FAR, PORT), len(flows))
    print("listening", flush=True)
    print(json.dumps(sink.wait().tolist()))


# ---- the table


def held_against(
    real: Callable[[Sequence[Flow]], np.ndarray],
    flows: Sequence[Flow],
    capacity_bps: float,
    repeat: int,
):
    """(relative errors over all flows and repetitions, the real thing's own relative
    deviations).
    """
    expected_s = simulated(flows, capacity_bps)
    runs_s = np.array([real(flows) for _ in range(repeat)])
    spread = np.abs(runs_s / runs_s.mean(axis=0) - 1) if repeat > 1 else np.full(1, np.nan)
    return runs_s / expected_s - 1, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20e6, help="of the bottleneck, bit/s")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--busy", type=float, default=3.0, help="seconds that the flows keep the link busy"
    )
    parser.add_argument("--only", choices=("relay", "queues", "fifo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", choices=("send", "sink"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--congestion",
        default="cubic,bbr",
        help="TCP congestion controls in the kernel's bottlenecks",
    )
    options = parser.parse_args()
    if options.role:
        play(options.role, options.congestion)
        return

    rng = np.random.default_rng(options.seed)
    plans = [mixed_flows(n, options.rate, options.busy, rng) for n in (1, 4, 16)]
    print(
        f"{options.rate / 1e6:g} Mbit/s, {options.repeat} repetitions; errors of completion times "
        "in %"
    )
    print(
        f"{'bottleneck':20}{'flows':>6}{'kB':>14}"
        f"{'median':>8}{'p95':>8}{'signed':>8}{'own spread':>12}"
    )

    def row(title: str, flows: Sequence[Flow], real, capacity_bps: float) -> None:
        errors, spread = held_against(real, flows, capacity_bps, options.repeat)
        size = np.abs(errors)
        kb = f"{min(f.nbytes for f in flows) / 1e3:.0f}-{max(f.nbytes for f in flows) / 1e3:.0f}"
        numbers = (np.median(size), np.quantile(size, 0.95), np.median(errors))
        cells = "".join(f"{100 * x:8.1f}" for x in numbers)
        print(f"{title:20}{len(flows):6}{kb:>14}{cells}{100 * np.median(spread):12.1f}", flush=True)

    if options.only in (None, "relay"):
        for flows in plans:
            row("relay", flows, lambda flows: through_relay(flows, options.rate), options.rate)
    shapes = (
        [("queues", lambda n: queues(options.rate, n))] if options.only in (None, "queues") else []
    )
    if options.only in (None, "fifo"):
        shapes += [
            (f"fifo {q * 1e3:.0f} ms", lambda n, q=q: fifo(options.rate, q)) for q in (0.025, 0.1)
        ]
    try:
        for title, shape in shapes:
            for congestion in options.congestion.split(","):
                if congestion not in controls():
                    print(
                        f"{title}, {congestion}: this kernel does not have it loaded "
                        f"({', '.join(controls())})"
                    )
                    continue
                for flows in plans:
                    with namespaces(shape(len(flows))):
                        real = functools.partial(through_kernel, congestion=congestion)
                        row(f"{title}, {congestion}", flows, real, PAYLOAD_SHARE * options.rate)
    except OSError as error:
        print(f"no kernel bottleneck here: {error}")


if __name__ == "__main__":
    main()
