"""One process a device, one for the server, one for the links; and the parent that starts, watches and ends them.

The parent talks with each over a pipe of its own: JSON, and its end is the lifeline. A process whose lifeline ends, ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import queue
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from sim.reality.wire import Connection, connect, listen, welcome
from sim.reality.worlds import DeviceWorld, RealityError, ServerWorld
from sim.scenario import Scenario
from sim.scenario_file import resolved

PRIORITY = -10
READY_S = 180.0  # real seconds that the processes may take until all are ready
PRELOADED = [
    *("torch", "torch._dynamo", "transformers.modeling_utils", "transformers.models.bert.modeling_bert", "peft"),
    *(
        "sim.reality.processes",
        "sim.reality.learners",
        "sim.reality.links",
        "learning.side_tuning",
        "learning.trainable",
    ),
]


class Lifeline:
    """A child's end of the pipe to its parent; the process ends at once when the parent's end does."""

    def __init__(self, pipe: connection.Connection) -> None:
        self._pipe, self._heard = pipe, queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, **message: Any) -> None:
        """Tell the parent something."""
        self._pipe.send_bytes(json.dumps(message).encode())

    def hear(self) -> dict[str, Any]:
        """What the parent says next."""
        return self._heard.get()

    def _listen(self) -> None:
        try:
            while True:
                self._heard.put(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            os._exit(1)


def live_in_process(
    life: Callable[[dict, Lifeline], dict], config: dict[str, Any], pipe: connection.Connection
) -> None:
    """The entry of every process: live, and tell the parent how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    os.environ.update(config["environment"])
    sys.setswitchinterval(5e-4)  # a thread with news should not wait 5 ms for one that computes
    with contextlib.suppress(OSError, AttributeError):  # where permitted: what else the machine does should show less
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    line = Lifeline(pipe)
    try:
        line.say(ended=life(config, line))
    except ValueError as error:
        line.say(error=str(error))
        sys.exit(1)
    except Exception:
        line.say(defect=traceback.format_exc())
        sys.exit(1)


def device_life(config: dict[str, Any], line: Lifeline) -> dict[str, Any]:
    """A device: build its world, connect, live its day, stay for what is delivered after it."""
    from sim.reality.learners import for_device, warm_up

    world = DeviceWorld(*_scenario(config), config["speed"], config["device"])
    me = world.me
    world.method.learner = for_device(world, me)
    warm_up(world.method.learner, me)
    begin, bye = queue.SimpleQueue(), threading.Event()

    def control(header: dict, body: bytes, counted: int) -> None:
        if "begin" in header:
            begin.put(header["begin"])
        elif "bye" in header:
            bye.set()
        else:
            world.env.post(lambda: me.hear(header))

    def data(header: dict, body: bytes, counted: int) -> None:
        if "delivery" in header:
            me.control.send({"delivered": counted})
        else:
            world.env.post(lambda: me.receive(header, body, counted))

    def end() -> None:
        if not bye.is_set():
            world.env.post(lambda: _raise("the server's connection ended early"))

    ports = line.hear()
    for name, on_frame in (("control", control), ("data", data)):
        sock = connect(ports[name], config["token"], device=me.id, role=name)
        setattr(me, name, Connection(sock, on_frame, end))
    _quiet()
    world.env.begin(begin.get())
    me.control.send({"done": world.live()})
    me.control.send({"spans": world.spans()})
    bye.wait(config["limit_s"])
    return {"torch_s": world.host.torch_s}


def server_life(config: dict[str, Any], line: Lifeline) -> dict[str, Any]:
    """The server: build its world, welcome every device, let the day pass, write the run directory."""
    from sim.reality.learners import for_server, warm_up

    listener = listen()
    line.say(port=listener.getsockname()[1])
    scenario, folder = _scenario(config)
    world = ServerWorld(scenario, folder, config["speed"])
    world.method.learner = for_server(world)
    warm_up(world.method.learner, None)
    _welcome_all(world, listener, config["token"])
    _quiet()
    at_s = time.monotonic() + 0.3
    for device in world.devices:
        device.control.send({"begin": at_s})
    world.env.begin(at_s)
    said_s = 0.0

    def on_look(world: ServerWorld) -> None:
        nonlocal said_s
        if time.monotonic() - said_s > 0.5:
            said_s = time.monotonic()
            done = len(world.devices) - world.devices_at_work
            line.say(now_s=world.env.now, devices_done=done, updates=world.updates)

    world.live(config["limit_s"], on_look)
    for device in world.devices:
        device.control.send({"bye": True})
    _write(world, Path(config["out"]), at_s)
    return {"torch_s": world.torch_s, "device_torch_s": {d.id: d.report["torch_s"] for d in world.devices}}


def links_life(config: dict[str, Any], line: Lifeline) -> dict[str, Any]:
    """The links: relays between all devices and the server, until the parent lets go."""
    from sim.reality.links import start_links

    members = [tuple(member) for member in config["members"]]
    line.say(ports=start_links(_scenario(config)[0], members, config["server_port"], config["speed"]))
    line.hear()
    return {}


def _scenario(config: dict[str, Any]) -> tuple[Scenario, Path]:
    return Scenario.model_validate(config["scenario"]), Path(config["folder"])


def _welcome_all(world: ServerWorld, listener, token: str) -> None:
    devices = {device.id: device for device in world.devices}
    missing = {(name, role) for name in devices for role in ("control", "data")}
    while missing:
        found = welcome(listener, token)
        who = (found[1].get("device"), found[1].get("role")) if found else None
        if who in missing:
            missing.discard(who)
            _attach(world, devices[who[0]], who[1], found[0])
    listener.close()


def _attach(world: ServerWorld, device, role: str, sock) -> None:
    def control(header: dict, body: bytes, counted: int) -> None:
        world.env.post(lambda: device.hear(header))

    def data(header: dict, body: bytes, counted: int) -> None:
        device.control.send({"payload": header["payload"], "landed": counted})  # at once, whatever the server computes
        world.env.post(lambda: device.receive(header, body, counted))

    def end() -> None:
        if device.spans is None:
            world.env.post(lambda: _raise(f"{device.id} ({device.member.device}) ended before its story did"))

    setattr(device, role, Connection(sock, control if role == "control" else data, end))


def _raise(message: str) -> None:
    raise RealityError(message)


def _quiet() -> None:
    """No garbage collection of what was built: a sweep over it takes as long as a transfer."""
    gc.collect()
    gc.freeze()


def _write(world: ServerWorld, out: Path, began_s: float) -> None:
    from sim.run_directory import write_manifest
    from sim.runner import _write

    out.mkdir(parents=True)
    write_manifest(out, world.scenario, "running", dry=False)
    _write(out, world, time.perf_counter() - (time.monotonic() - began_s))


# --- the parent


class Processes:
    """The processes of one real run; use as a context: whatever happens, none of them outlives it."""

    def __init__(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._make = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._make.set_forkserver_preload(PRELOADED)  # imported once, in a process that has no threads yet
        self._pipes: dict[connection.Connection, str] = {}
        self._processes: dict[str, multiprocessing.process.BaseProcess] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes.values():
            process.join(0.5)
        for process in self._processes.values():
            if process.is_alive():
                process.kill()
                process.join(5)

    def start(self, name: str, life: Callable, config: dict[str, Any]) -> None:
        """Start a process."""
        mine, its = multiprocessing.Pipe()
        process = self._make.Process(target=live_in_process, args=(life, config, its), name=name, daemon=True)
        process.start()
        its.close()
        self._pipes[mine], self._processes[name] = name, process

    def say(self, name: str, **message: Any) -> None:
        """Tell a process something."""
        pipe = next(pipe for pipe, its in self._pipes.items() if its == name)
        pipe.send_bytes(json.dumps(message).encode())

    def hear(self, within_s: float) -> list[tuple[str, dict[str, Any]]]:
        """What the processes say next, within so many seconds; RealityError if one has died."""
        heard = []
        for pipe in connection.wait(list(self._pipes), within_s):
            name = self._pipes[pipe]
            try:
                message = json.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                raise RealityError(self._epitaph(name)) from None
            if "defect" in message:
                raise RuntimeError(f"{name}: {message['defect']}")
            if "error" in message:
                raise RealityError(f"{message['error']}{self._dead(besides=name)}")
            if "ended" in message:
                del self._pipes[pipe]  # it may go now
                pipe.close()
            heard.append((name, message))
        return heard

    def _epitaph(self, name: str) -> str:
        process = self._processes[name]
        process.join(2)
        return f"the process of {name} died (exit code {process.exitcode}); the real run cannot go on without it"

    def _dead(self, besides: str) -> str:
        dead = [n for n, p in self._processes.items() if n != besides and not p.is_alive() and p.exitcode]
        return "".join(f"; the process of {n} died (exit code {self._processes[n].exitcode})" for n in dead)


def run_for_real(
    scenario: Scenario,
    folder: Path,
    out: Path,
    speed: float,
    members: list[tuple[str, str, str | None]],
    limit_s: float,
    on_progress: Callable[[str, dict[str, Any]], None] = lambda stage, facts: None,
) -> dict[str, Any]:
    """Execute a scenario in processes and write its run directory; returns the real seconds of computing of each actor.

    `members`: (device, link, cell) of the fleet. Raises RealityError when a process dies or the time limit passes.
    """
    environment = {name: value for name, value in os.environ.items() if name.startswith("MOBIFLEET")}
    config = {
        "scenario": resolved(scenario),
        "folder": str(folder.resolve()),
        "out": str(out.resolve()),
        "speed": speed,
        "token": secrets.token_hex(16),
        "limit_s": limit_s,
        "members": members,
        "environment": {**environment, "OMP_NUM_THREADS": "1"},
    }
    with Processes() as processes:
        processes.start("server", server_life, config)
        for device, _, _ in members:
            processes.start(device, device_life, {**config, "device": device})
        deadline_s, result = time.monotonic() + READY_S + limit_s, None
        on_progress("starting", {})
        while result is None:
            if time.monotonic() > deadline_s:
                raise RealityError(f"the real run did not end within {READY_S + limit_s:.0f} s")
            for name, message in processes.hear(0.5):
                if "port" in message:
                    control = message["port"]
                    processes.start("links", links_life, {**config, "server_port": control})
                elif "ports" in message:
                    for device, port in message["ports"].items():
                        processes.say(device, control=control, data=port)
                elif name == "server" and "ended" in message:
                    result = message["ended"]
                elif name == "server":
                    on_progress("running", message)
    return result
