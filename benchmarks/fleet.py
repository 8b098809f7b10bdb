"""What a fleet costs the host as it grows: python benchmarks/fleet.py [--kinds fedavg,cells]
[--devices 1000,10000,100000] [--repeat 3]

Dry runs of one device class, every device at once and each with 8 texts, so that all there is are
events. A row a run, each in a process of its own, best of several: processor seconds to build the
world, to run it and to sum it up; how a run's seconds grow with the fleet (n^g, to the size
before); microseconds an event, and over an event of bare SimPy timeouts with as many processes;
bytes of memory that a device takes after building, and that the run takes beside it, for each span.

What is counted (events, spans, updates) is the same whoever runs it; `tests/test_benchmarks.py`
looks at that alone.
"""

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import simpy
import yaml

import mobifleet
from sim.results.summary import device_table
from sim.simulation import Simulation

KINDS = {
    "fedavg": {"kind": "fedavg-lora", "rounds": 10, "participation": 0.1},
    "fedbuff": {"kind": "fedbuff", "concurrency": 0.1},
    "fedasync": {"kind": "fedasync", "concurrency": 0.1},
    "fed-mobillm": {"kind": "fed-mobillm", "device_batch": 2},
    "cells": {"kind": "fed-mobillm", "device_batch": 2},  # of a hundred devices each
    "poisson": {"kind": "fed-mobillm", "device_batch": 2},  # joining one by one
}
A_CELL = 100


def scenario(kind: str, devices: int) -> dict:
    """A scenario whose fleet is so large; asynchronous methods take in an answer a device."""
    method = dict(KINDS[kind])
    if method["kind"] in ("fedasync", "fedbuff"):
        method["answers"] = devices
    group = {"device": "jetson-tx2", "backbone": "roberta-base", "link": "wifi-home"}
    made = {
        "name": f"{kind}_{devices}",
        "task": {
            "dataset": {"classes": 3, "tokens": 128},
            "train": 8 * devices,
            "test": 1_000,
            "max_tokens": 128,
            "partition": {"kind": "iid"},
        },
        "fleet": [{"count": devices, **group}],
        "server": {"device": "a100", "ingress": "10 Gbit/s"},
        "arrivals": {"kind": "at-once"},
        "method": method,
    }
    if kind == "poisson":
        made["arrivals"] = {"kind": "poisson", "mean_gap": "100 ms"}
    if kind == "cells":
        n_cells = max(1, devices // A_CELL)
        made["server"]["ingress"] = f"{n_cells} Gbit/s"
        made["cells"] = {
            f"cell-{i}": {"up": "50 Mbit/s", "down": "50 Mbit/s"} for i in range(n_cells)
        }
        made["fleet"] = [
            {"count": devices // n_cells, "cell": f"cell-{i}", **group} for i in range(n_cells)
        ]
    return made


def simulation(kind: str, devices: int, folder: Path) -> Simulation:
    """The world of that scenario, not run yet."""
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump(scenario(kind, devices), sort_keys=False))
    return Simulation(mobifleet.load(file), folder, dry=True)


def measured(kind: str, devices: int) -> dict:
    """Counts, processor seconds and bytes of one run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        simulation(kind, 10, Path(folder))  # imports and profiles
        held, began = _held_bytes(), time.process_time()
        sim = simulation(kind, devices, Path(folder))
    built, built_bytes = time.process_time(), _held_bytes()
    sim.run()
    ran, ran_bytes = time.process_time(), _held_bytes()
    device_table(sim)
    sim.recorder.digest()
    summed = time.process_time()
    spans = sim.recorder.spans().num_rows
    return {
        "kind": kind,
        "devices": devices,
        "events": next(sim.env._eid),
        "spans": spans,
        "updates": sim.updates,
        "build_s": built - began,
        "run_s": ran - built,
        "sum_s": summed - ran,
        "bytes_a_device": (built_bytes - held) / devices,
        "run_bytes_a_span": (ran_bytes - built_bytes) / spans,
    }


def bare_event_s(processes: int, events: int) -> float:
    """Processor seconds of an event of SimPy alone: so many processes that wait again and again."""
    env = simpy.Environment()

    def waiting(every_s: float):
        while True:
            yield env.timeout(every_s)

    for i in range(processes):
        env.process(waiting(1 + (i * 0.6180339887) % 1))
    for _ in range(processes):
        env.step()
    began = time.process_time()
    for _ in range(events):
        env.step()
    return (time.process_time() - began) / events


def _held_bytes() -> int:
    return psutil.Process().memory_info().rss


def _one(kind: str, devices: int) -> dict:
    """`measured` in a process of its own, and the bare events beside it."""
    call = [sys.executable, __file__, "--one", f"{kind},{devices}"]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def _row(best: dict, before: dict | None) -> str:
    growth = ""
    if before:
        apart = math.log(best["devices"] / before["devices"])
        growth = f"n^{math.log(best['run_s'] / before['run_s']) / apart:.2f}"
    event_s = best["run_s"] / best["events"]
    return (
        f"{best['kind']:<12}{best['devices']:>9,}{best['events']:>12,}{best['build_s']:>9.2f}"
        f"{best['run_s']:>9.2f}{best['sum_s']:>8.2f}{growth:>8}{event_s * 1e6:>8.1f}"
        f"{event_s / best['bare_s']:>7.1f}{best['bytes_a_device']:>9,.0f}"
        f"{best['run_bytes_a_span']:>8,.0f}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--devices", default="1000,10000,100000")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        kind, devices = options.one.split(",")
        found = measured(kind, int(devices))
        gc.collect()  # the world is gone
        bare_s = bare_event_s(int(devices), max(100_000, 2 * int(devices)))
        print(json.dumps({**found, "bare_s": bare_s}))
        return
    print(
        f"{'':<12}{'devices':>9}{'events':>12}{'build s':>9}{'run s':>9}{'sum s':>8}{'growth':>8}"
        f"{'us/ev':>8}{'/bare':>7}{'B/dev':>9}{'B/span':>8}"
    )
    for kind in options.kinds.split(","):
        before = None
        for devices in map(int, options.devices.split(",")):
            tries = [_one(kind, devices) for _ in range(options.repeat)]
            best = min(tries, key=lambda one: one["run_s"])
            best["bare_s"] = min(one["bare_s"] for one in tries)
            best["build_s"] = min(one["build_s"] for one in tries)
            print(_row(best, before), flush=True)
            before = best


if __name__ == "__main__":
    main()
