"""The parent of a real run: it starts one process a device, one for the server and one for the
links, watches and ends them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable
from multiprocessing import connection, context
from pathlib import Path
from typing import Any

from sim.scenario.file import resolved
from sim.scenario.schema import Scenario
from sim.validate.process_roles import device_role, links_role, run_role, server_role
from sim.validate.worlds import RealRunError

READY_S = 180.0  # real seconds that the processes may take until all are ready
PRELOADED = [
    *(
        "torch",
        "torch._dynamo",
        "transformers.modeling_utils",
        "transformers.models.bert.modeling_bert",
        "peft",
    ),
    *(
        "sim.validate.processes",
        "sim.validate.learners",
        "sim.validate.links",
        "learning.side.tuning",
        "learning.federated.trainable",
    ),
]


class Processes:
    """The processes of one real run; use as a context: whatever happens, none of them outlives
    it.
    """

    def __init__(self) -> None:
        self._make: context.ForkServerContext | context.SpawnContext
        if "forkserver" in multiprocessing.get_all_start_methods():
            self._make = multiprocessing.get_context("forkserver")
            # imported once, in a process that has no threads yet
            self._make.set_forkserver_preload(PRELOADED)
        else:
            self._make = multiprocessing.get_context("spawn")
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

    def start(self, name: str, role: Callable, config: dict[str, Any]) -> None:
        """Start a process."""
        mine, its = multiprocessing.Pipe()
        process = self._make.Process(
            target=run_role, args=(role, config, its), name=name, daemon=True
        )
        process.start()
        its.close()
        self._pipes[mine], self._processes[name] = name, process

    def send(self, name: str, **message: Any) -> None:
        """Send a process a message."""
        pipe = next(pipe for pipe, its in self._pipes.items() if its == name)
        pipe.send_bytes(json.dumps(message).encode())

    def receive(self, within_s: float) -> list[tuple[str, dict[str, Any]]]:
        """The messages of the processes that come within so many seconds; RealRunError if one has
        died.
        """
        received = []
        ready = connection.wait(list(self._pipes), within_s)
        for pipe, name in list(self._pipes.items()):
            if pipe not in ready:
                continue
            try:
                message = json.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                raise RealRunError(self._death_notice(name)) from None
            if "defect" in message:
                raise RuntimeError(f"{name}: {message['defect']}")
            if "error" in message:
                raise RealRunError(f"{message['error']}{self._dead(besides=name)}")
            if "ended" in message:
                del self._pipes[pipe]  # it may go now
                pipe.close()
            received.append((name, message))
        return received

    def _death_notice(self, name: str) -> str:
        process = self._processes[name]
        process.join(2)
        return (
            f"the process of {name} died (exit code {process.exitcode}); the real run cannot go on "
            "without it"
        )

    def _dead(self, besides: str) -> str:
        others = [p.sentinel for name, p in self._processes.items() if name != besides]
        connection.wait(others, 1)  # what is heard may come before the death that caused it is seen
        dead = [
            n
            for n, p in self._processes.items()
            if n != besides and not p.is_alive() and p.exitcode
        ]
        return "".join(
            f"; the process of {n} died (exit code {self._processes[n].exitcode})" for n in dead
        )


def run_for_real(
    scenario: Scenario,
    folder: Path,
    out: Path,
    speed: float,
    members: list[tuple[str, str, str | None]],
    limit_s: float,
    on_progress: Callable[[str, dict[str, Any]], None] = lambda stage, facts: None,
) -> dict[str, Any]:
    """Execute a scenario in processes and write its run directory; returns the real seconds of
    computing of each actor.

    `members`: (device, link, cell) of the fleet. Raises RealRunError when a process dies or the
    time limit passes.
    """
    environment = {
        name: value for name, value in os.environ.items() if name.startswith("MOBIFLEET")
    }
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
        processes.start("server", server_role, config)
        for device, _, _ in members:
            processes.start(device, device_role, {**config, "device": device})
        deadline_s, result = time.monotonic() + READY_S + limit_s, None
        on_progress("starting", {})
        while result is None:
            if time.monotonic() > deadline_s:
                raise RealRunError(f"the real run did not end within {READY_S + limit_s:.0f} s")
            for name, message in processes.receive(0.5):
                if "port" in message:
                    control = message["port"]
                    processes.start("links", links_role, {**config, "server_port": control})
                elif "ports" in message:
                    for device, port in message["ports"].items():
                        processes.send(device, control=control, data=port)
                elif name == "server" and "ended" in message:
                    result = message["ended"]
                elif name == "server":
                    on_progress("running", message)
    return result
