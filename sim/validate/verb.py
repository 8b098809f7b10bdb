"""`mobifleet validate`: simulate a scenario, execute it for real, and say how far the two are
apart.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.compare.runs import plan
from sim.kernel.vocabulary import SERVER_WORK
from sim.kernel.writing import write_json
from sim.results.run import Run, open_run
from sim.results.run_directory import new_folder
from sim.runner import run_scenario
from sim.scenario.data import SizedData
from sim.scenario.registry import method_of
from sim.scenario.schema import Scenario, Stop
from sim.scenario.settings import Settings
from sim.simulation import Simulation, building
from sim.sweep.planned_run import PlannedRun
from sim.validate.agreement import agreement, ranking, spread, transfers_from_real_starts
from sim.validate.learners import SUPPORTED, require_executed
from sim.validate.processes import run_for_real
from sim.validate.worlds import RealRunError
from sim.world.links import link_of
from sim.world.preflight import preflight

REAL_S = 50.0  # the longest real run, where nobody chose the compression
MOST_DEVICES = 32
EXECUTED = {
    *(
        "name",
        "description",
        "seed",
        "task",
        "backbones",
        "fleet",
        "cells",
        "server",
        "arrivals",
        "fresh_data",
    ),
    *("method", "evaluate_every", "jitter", "stop", "compare"),
}
GROUPS = {"count", "device", "backbone", "link", "engine", "cell", "memory", "name"}
Say = Callable[[str], None]


def validate(
    scenario: Scenario,
    folder: Path,
    out: Path | None = None,
    compress: float | None = None,
    repeats: int = 2,
    methods: list[str] | None = None,
    limit_s: float = 600.0,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run everything and write it into `out` (default `runs/<name>-validate`); returns what
    validation.json holds.

    `compress`: virtual seconds in a real one, for all methods; default such that the longest run
    takes `REAL_S`. Raises RealRunError for what cannot be executed, or when a process dies;
    whatever was finished by then is kept.
    """
    entries = [_executable(entry, folder) for entry in _entries(scenario, methods or [])]
    preflight(scenario, folder)
    with new_folder(f"{scenario.name}-validate", out) as place:
        simulated: dict[str, Run] = {}
        for label, one in entries:
            say(f"simulating {label}")
            simulated[label] = run_scenario(
                one, place / f"simulated-{label}", folder, figures=False
            )
        longest_s = max(run.summary["virtual_time_s"] for run in simulated.values())
        compress = compress or longest_s / REAL_S
        if longest_s / compress > limit_s:
            raise RealRunError(
                f"a real run would take {longest_s / compress:.0f} s, more than the limit of "
                f"{limit_s:.0f} s: "
                f"use --compress {longest_s / limit_s * 1.25:.2g} or more, or a higher --limit"
            )
        results = {}
        for label, one in entries:
            results[label] = _one_method(
                label, one, folder, place, simulated[label], compress, repeats, limit_s, say
            )
            _write(place, scenario, compress, repeats, results)
        return _write(place, scenario, compress, repeats, results)


def _entries(scenario: Scenario, methods: list[str]) -> list[tuple[str, Scenario]]:
    if scenario.compare is None and not methods:
        return [(scenario.method.kind, scenario)]
    entries: list[PlannedRun] = plan(scenario, Path(), 1, methods, alike=False)
    return [(entry.label, entry.scenario) for entry in entries]


def _executable(entry: tuple[str, Scenario], folder: Path) -> tuple[str, Scenario]:
    """The scenario as both worlds run it, to its own end; RealRunError if the real one could
    not.
    """
    label, scenario = entry
    method, kinds = scenario.method, ", ".join(SUPPORTED.values())
    if method_of(method) not in SUPPORTED or getattr(method, "shortcut", "pivot") == "matrix":
        raise RealRunError(
            f"{label}: {method.kind} is not executed for real; what is: {kinds} (single vectors)"
        )
    try:
        require_executed(method)
    except ValueError as error:
        raise RealRunError(f"{label}: {error}") from None
    beyond = [
        *_beyond(scenario, EXECUTED, ""),
        *(
            text
            for index, group in enumerate(scenario.fleet)
            for text in _beyond(group, GROUPS, f"fleet[{index}].")
        ),
        *(
            text
            for name, cell in scenario.cells.items()
            for text in _beyond(cell, {"up", "down"}, f"cells.{name}.")
        ),
        *(["method.over_selection"] if getattr(method, "over_selection", 1.0) > 1 else []),
        *(["method.deadline"] if getattr(method, "deadline", None) is not None else []),
        *(["task.dataset (a size alone)"] if isinstance(scenario.task.dataset, SizedData) else []),
    ]
    if beyond:
        raise RealRunError(
            f"{label}: {beyond[0]} is simulated only; leave it out of what is executed for real"
        )
    if (count := sum(group.count for group in scenario.fleet)) > MOST_DEVICES:
        raise RealRunError(
            f"{count} devices would be as many processes; validate with at most {MOST_DEVICES}"
        )
    return label, scenario.model_copy(update={"stop": Stop()})


def _beyond(settings: Settings, executed: set[str], where: str) -> list[str]:
    """The settings that differ from their defaults and that the real world does not know."""
    fields = type(settings).model_fields.items()
    chosen = [
        n
        for n, f in fields
        if n not in executed and getattr(settings, n) != f.get_default(call_default_factory=True)
    ]
    return [where + name for name in chosen]


def _one_method(
    label: str,
    scenario: Scenario,
    folder: Path,
    place: Path,
    simulated: Run,
    compress: float,
    repeats: int,
    limit_s: float,
    say: Say,
) -> dict[str, Any]:
    with building(scenario):
        fleet = Simulation(scenario, folder, dry=True).devices
    if unfit := [device.id for device in fleet if device.outcome == "oom"]:
        raise RealRunError(
            f"{label}: {unfit[0]} cannot hold its backbone; only fleets that can work are executed"
        )
    members = [(device.id, link_of(device.member), device.member.cell) for device in fleet]
    planned_s = simulated.summary["virtual_time_s"]
    reals = []
    hosts = []
    for number in range(1, repeats + 1):
        name = f"{label}, real run {number} of {repeats}"
        load = os.getloadavg()[0]

        def progress(stage: str, facts: dict[str, Any], name: str = name) -> None:
            if stage == "starting":
                say(f"{name}: starting {len(members) + 2} processes")
            else:
                say(
                    f"{name}: {facts['now_s']:.1f} of about {planned_s:.1f} virtual s, "
                    f"{facts['devices_done']} of "
                    f"{len(members)} devices done, {facts['updates']} updates"
                )

        out = place / f"real-{label}-{number}"
        torch_s = run_for_real(scenario, folder, out, compress, members, limit_s, progress)
        reals.append(open_run(out))
        hosts.append({"load_before": load, **_share_of_real_work(reals[-1], torch_s, compress)})
    from sim.validate.figure import draw_overlay

    title = f"{scenario.name} · {label} · simulated over real ({compress:.3g} virtual s a real s)"
    draw_overlay(simulated, reals[-1], title, place / "figures" / f"{label}.png")
    return {
        "agreement": [_agreement(simulated, real, scenario, folder) for real in reals],
        "spread": spread(reals),
        "host": hosts,
    }


def _agreement(simulated: Run, real: Run, scenario: Scenario, folder: Path) -> dict[str, Any]:
    found = agreement(simulated, real)
    found["spans"] |= transfers_from_real_starts(Simulation(scenario, folder, dry=True), real)
    return found


def _share_of_real_work(run: Run, torch_s: dict[str, Any], compress: float) -> dict[str, float]:
    """Which part of the time that devices (worst) and the server modelled as computing was filled
    with real computing.
    """
    spans = run.spans(["actor", "kind", "start_s", "end_s"]).to_pylist()

    def share(actor: str, seconds: float) -> float:
        mine = [s for s in spans if s["actor"] == actor and s["kind"] in ("compute", *SERVER_WORK)]
        modelled_s = math.fsum(span["end_s"] - span["start_s"] for span in mine) / compress
        return seconds / modelled_s if modelled_s else 0.0

    devices = {name: share(name, seconds) for name, seconds in torch_s["device_torch_s"].items()}
    return {
        "real_share_of_devices": max(devices.values()),
        "real_share_of_server": share("server", torch_s["torch_s"]),
    }


def _write(
    place: Path, scenario: Scenario, compress: float, repeats: int, results: dict[str, Any]
) -> dict[str, Any]:
    from sim.validate.agreement_report import markdown

    simulated_s = {
        label: r["agreement"][0]["makespan"]["simulated_s"] for label, r in results.items()
    }
    real_s = {
        label: math.fsum(r["spread"]["makespans_s"]) / repeats for label, r in results.items()
    }
    found = {
        "scenario": scenario.name,
        "path": str(place),
        "compress": compress,
        "repeats": repeats,
        "range": _range(scenario),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "ranking": ranking(simulated_s, real_s),
        "methods": results,
    }
    write_json(place / "validation.json", found)
    (place / "report.md").write_text(markdown(found), encoding="utf-8")
    return found


def _range(scenario: Scenario) -> dict[str, Any]:
    server = scenario.server
    return {
        "devices": sum(group.count for group in scenario.fleet),
        "kinds": sorted({str(group.device) for group in scenario.fleet}),
        "backbones": sorted({str(group.backbone) for group in scenario.fleet}),
        "links": sorted({str(group.link) for group in scenario.fleet}),
        "cells": {name: [cell.up, cell.down] for name, cell in scenario.cells.items()},
        "server": server.device,
        "ingress_bps": server.ingress,
        "jitter": "the same draws in both worlds" if scenario.jitter else "none",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """What the bars are about: the worst makespan error, whether all bytes are exact, whether the
    ranking agrees.
    """
    all_ = [one for result in found["methods"].values() for one in result["agreement"]]
    return {
        "worst_makespan_error": max(abs(one["makespan"]["error"]) for one in all_),
        "bytes_exact": all(one["bytes"]["exact"] for one in all_),
        "ranking_agrees": found["ranking"]["agrees"],
    }
