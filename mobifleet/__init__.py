"""mobifleet from Python: what a script or a notebook calls, gathered here, and loaded when it is
asked for.

    import mobifleet

    scenario = mobifleet.load("quickstart", {"stop.target": 0.75})
    run = mobifleet.run(scenario, out="runs/from_python")
    run.summary["final"], run.devices().to_pandas()

`import mobifleet` alone imports neither torch nor pandas. The names below are defined in the
packages beside this one; nothing is defined here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mobifleet.hidden import require_own_packages

if TYPE_CHECKING:
    from sim.api import check, compare, load, run, sweep
    from sim.results.run import Run, open_run
    from sim.scenario.file import ScenarioError
    from sim.scenario.partitions import register_partition
    from sim.scenario.registry import register
    from sim.simulation import Interrupted

_HOMES = {
    "load": "sim.api",
    "run": "sim.api",
    "check": "sim.api",
    "compare": "sim.api",
    "sweep": "sim.api",
    "open_run": "sim.results.run",
    "register": "sim.scenario.registry",
    "register_partition": "sim.scenario.partitions",
    "Run": "sim.results.run",
    "ScenarioError": "sim.scenario.file",
    "Interrupted": "sim.simulation",
}

__all__ = [
    "Interrupted",
    "Run",
    "ScenarioError",
    "check",
    "compare",
    "load",
    "open_run",
    "register",
    "register_partition",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name != "__version__":
        raise AttributeError(f"module 'mobifleet' has no attribute {name!r}")
    require_own_packages()
    if name == "__version__":
        return import_module("sim.cli.faults").version()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
