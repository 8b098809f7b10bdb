"""What each process of the real world does from its start to its end: a device, the server, the
links.

Its parent exchanges JSON with it over a pipe. A process whose pipe ends, ends at once.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from sim.scenario.schema import Scenario
from sim.validate.wire import Connection, clients, connect, listen
from sim.validate.worlds import DeviceWorld, RealRunError, RemoteDevice, ServerWorld

PRIORITY = -10


class ParentPipe:
    """A child's end of the pipe to its parent; the process ends at once when the parent's end
    does.
    """

    def __init__(self, pipe: connection.Connection) -> None:
        self._pipe = pipe
        self._received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, **message: Any) -> None:
        """Send the parent a message."""
        self._pipe.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """The parent's next message, waited for."""
        return self._received.get()

    def _listen(self) -> None:
        try:
            while True:
                self._received.put(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            os._exit(1)


def run_role(
    role: Callable[[dict, ParentPipe], dict], config: dict[str, Any], pipe: connection.Connection
) -> None:
    """The entry of every process: play its role, and tell the parent how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    os.environ.update(config["environment"])
    sys.setswitchinterval(5e-4)  # a thread with news should not wait 5 ms for one that computes
    with contextlib.suppress(
        OSError, AttributeError
    ):  # where permitted: what else the machine does should show less
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    parent = ParentPipe(pipe)
    try:
        parent.send(ended=role(config, parent))
    except ValueError as error:
        parent.send(error=str(error))
        sys.exit(1)
    except Exception:
        parent.send(defect=traceback.format_exc())
        sys.exit(1)


def device_role(config: dict[str, Any], parent: ParentPipe) -> dict[str, Any]:
    """A device: build its world, connect, run its part of the method, stay for what is delivered
    after it.
    """
    from sim.validate.learners import for_device, warm_up

    world = DeviceWorld(*_scenario(config), config["speed"], config["device"])
    me = world.me
    world.method.learner = for_device(world, me)
    warm_up(world.method.learner, me)
    begin: queue.SimpleQueue[float] = queue.SimpleQueue()
    bye = threading.Event()

    def control(header: dict, body: bytes, counted: int) -> None:
        if "begin" in header:
            begin.put(header["begin"])
        elif "bye" in header:
            bye.set()
        else:
            world.env.post(lambda: me.on_control(header))

    def data(header: dict, body: bytes, counted: int) -> None:
        if "delivery" in header:
            me.control.send({"delivered": counted})
        else:
            world.env.post(lambda: me.on_data(header, body, counted))

    def end() -> None:
        if not bye.is_set():
            world.env.post(lambda: _raise("the server's connection ended early"))

    ports = parent.receive()
    for name, on_frame in (("control", control), ("data", data)):
        sock = connect(ports[name], config["token"], device=me.id, role=name)
        setattr(me, name, Connection(sock, on_frame, end))
    _freeze_garbage()
    world.env.begin(begin.get())
    me.control.send({"done": world.execute()})
    me.control.send({"spans": world.spans()})
    bye.wait(config["limit_s"])
    return {"torch_s": world.host.torch_s}


def server_role(config: dict[str, Any], parent: ParentPipe) -> dict[str, Any]:
    """The server: build its world, accept every device's connections, run its part of the method,
    write the run directory.
    """
    from sim.validate.learners import for_server, warm_up

    listener = listen()
    parent.send(port=listener.getsockname()[1])
    scenario, folder = _scenario(config)
    world = ServerWorld(scenario, folder, config["speed"])
    world.method.learner = for_server(world)
    warm_up(world.method.learner, None)
    _accept_all(world, listener, config["token"])
    _freeze_garbage()
    at_s = time.monotonic() + 0.3
    for device in world.devices:
        device.control.send({"begin": at_s})
    world.env.begin(at_s)
    said_s = 0.0

    def on_progress(world: ServerWorld) -> None:
        nonlocal said_s
        if time.monotonic() - said_s > 0.5:
            said_s = time.monotonic()
            done = len(world.devices) - world.devices_at_work
            parent.send(now_s=world.env.now, devices_done=done, updates=world.updates)

    world.execute(config["limit_s"], on_progress)
    for device in world.devices:
        device.control.send({"bye": True})
    _write(world, Path(config["out"]), at_s)
    return {
        "torch_s": world.torch_s,
        "device_torch_s": {d.id: d.report["torch_s"] for d in world.devices},
    }


def links_role(config: dict[str, Any], parent: ParentPipe) -> dict[str, Any]:
    """The links: relays between all devices and the server, until the parent lets go."""
    from sim.validate.links import start_links

    members = [tuple(member) for member in config["members"]]
    where = (*_scenario(config), members, config["server_port"], config["speed"])
    parent.send(ports=start_links(*where))
    parent.receive()
    return {}


def _scenario(config: dict[str, Any]) -> tuple[Scenario, Path]:
    return Scenario.model_validate(config["scenario"]), Path(config["folder"])


def _accept_all(world: ServerWorld, listener: socket.socket, token: str) -> None:
    devices = {device.id: device for device in world.devices}
    missing = {(name, role) for name in devices for role in ("control", "data")}
    for client in clients(listener, token):
        if client is not None:
            sock, said = client
            who = str(said.get("device")), str(said.get("role"))
            if who in missing:
                missing.discard(who)
                _attach(world, devices[who[0]], who[1], sock)
            else:
                sock.close()
        if not missing:
            break
    listener.close()


def _attach(world: ServerWorld, device: RemoteDevice, role: str, sock: socket.socket) -> None:
    def control(header: dict, body: bytes, counted: int) -> None:
        world.env.post(lambda: device.on_control(header))

    def data(header: dict, body: bytes, counted: int) -> None:
        device.control.send(
            {"payload": header["payload"], "landed": counted}
        )  # at once, whatever the server computes
        world.env.post(lambda: device.on_data(header, body, counted))

    def end() -> None:
        if device.spans is None:
            world.env.post(
                lambda: _raise(f"{device.id} ({device.member.device}) ended before its part did")
            )

    setattr(device, role, Connection(sock, control if role == "control" else data, end))


def _raise(message: str) -> None:
    raise RealRunError(message)


def _freeze_garbage() -> None:
    """No garbage collection of what was built: a sweep over it takes as long as a transfer."""
    gc.collect()
    gc.freeze()


def _write(world: ServerWorld, out: Path, began_s: float) -> None:
    from sim.results.run_directory import write_manifest
    from sim.runner import _write

    out.mkdir(parents=True)
    write_manifest(out, world.scenario, "running", dry=False)
    _write(out, world, time.perf_counter() - (time.monotonic() - began_s), {})
