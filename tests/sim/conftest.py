"""Small worlds for the tests of sim/: untrained backbones, three devices, texts that their words
give away.
"""

import contextlib
import csv
import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer.main
import yaml

from sim.cli import main as cli
from sim.kernel.device import Device
from sim.scenario import registry
from sim.scenario.checks import problems
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.simulation import Simulation

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "name": "tiny",
    "task": {"dataset": {"path": "texts.csv"}, "train": 60, "test": 30, "max_tokens": 16},
    "fleet": [
        {"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
        {"count": 1, "device": "raspberry-pi-5", "backbone": "random-bert-l1", "link": "wifi-home"},
    ],
    "server": {"ingress": "1 Gbit/s"},
    "arrivals": {"kind": "list", "times": ["0 s", "1 s", "500 ms"]},
    "method": {
        "kind": "fed-mobillm",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        "device_batch": 4,
        "side_network": {"skip": "none"},  # so that every update is a granted step
    },
    "evaluate_every": 5,
}


ONE_OF_EACH_FAMILY = {
    "fed-mobillm",
    "fedavg-lora",
    "fwdllm",
    "splitfed-v1",
    "local-lora",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What goes over kinds of methods tries one of each family in `make test`, or the first that it
    goes over, and all in `make thorough`.
    """
    ours = registry.known()
    seen = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if (kind := params.get("kind")) not in ours:
            continue
        others = tuple(repr(value) for name, value in params.items() if name != "kind")
        seen.setdefault((item.path, item.originalname, others), []).append((kind, item))
    for over in seen.values():
        fast = ONE_OF_EACH_FAMILY & {kind for kind, _ in over} or {over[0][0]}
        for kind, item in over:
            if kind not in fast:
                item.add_marker(pytest.mark.thorough)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory, request) -> Path:
    """An empty cache but for counted costs, which are kept by the source of what counts them: they
    outlive the session, and the processes of one share them.
    """
    made = tmp_path_factory.mktemp("cache")
    with contextlib.suppress(OSError):  # Windows lets few make links: each session counts anew
        (made / "costs").symlink_to(request.config.cache.mkdir("costs"), target_is_directory=True)
    return made


@pytest.fixture(autouse=True)
def _own_cache(request, monkeypatch, session_cache):
    """Counted costs and activations go to a cache of the tests' own; only `fetched` tests use the
    user's.
    """
    if "fetched" not in request.keywords:
        monkeypatch.setenv("MOBIFLEET_CACHE", str(session_cache))


@pytest.fixture(scope="session")
def texts_csv(tmp_path_factory) -> Path:
    """120 texts of three classes; each class has words of its own, so that even an untrained
    encoder tells them apart.
    """
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(120):
            words = [f"{'abc'[i % 3]}{number}" for number in rng.integers(0, 4, rng.integers(3, 9))]
            rows.writerow([" ".join(words), "abc"[i % 3]])
    return path


@pytest.fixture
def scenario_file(tmp_path, texts_csv):
    """Writes `TINY` with some top-level keys replaced to tmp_path/tiny.yaml and returns its
    path.
    """

    def write(**changes) -> Path:
        (tmp_path / "texts.csv").write_bytes(texts_csv.read_bytes())
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def simulate(scenario_file):
    """Runs `TINY` with changes, given as `--set` would give them, to its end; returns the finished
    Simulation.

    `dropped` is the number of a device that drops out, and when.
    """

    def run(
        *overrides: str, dry=False, workers=1, journal=None, callbacks=None, dropped=None, **changes
    ) -> Simulation:
        path = scenario_file(**changes)
        scenario = load(str(path), Scenario, overrides, [], problems)
        sim = Simulation(scenario, path.parent, dry, workers, journal, callbacks)
        if dropped is not None:
            number, at_s = dropped
            sim.env.timeout(at_s).callbacks.append(
                lambda _: sim.interrupt([sim.devices[number]], "dropped")
            )
        sim.run()
        return sim

    return run


@pytest.fixture
def payloads(monkeypatch):
    """Every payload that devices of the runs that follow make, in order."""
    made, make = [], Device.payload

    def spy(self, *args):
        made.append(make(self, *args))
        return made[-1]

    monkeypatch.setattr(Device, "payload", spy)
    return made


@pytest.fixture
def spans():
    """The spans of a finished Simulation, of these kinds (or any), whose actor's name begins so,
    with these values.
    """

    def of(sim: Simulation, *kinds: str, actor: str = "", **wanted) -> list[dict]:
        rows = [s for s in sim.recorder.spans().to_pylist() if s["actor"].startswith(actor)]
        rows = [s for s in rows if not kinds or s["kind"] in kinds]
        return [s for s in rows if all(s[key] == value for key, value in wanted.items())]

    return of


@pytest.fixture
def curve():
    """The accuracies that a finished Simulation noted, in order: the fleet's, or those of a
    backbone.
    """

    def of(sim: Simulation, group: str = "") -> list[float]:
        rows = sim.recorder.metrics().to_pylist()
        return [m["value"] for m in rows if (m["name"], m["group"]) == ("accuracy", group)]

    return of


@pytest.fixture
def mark():
    """The digest of a finished Simulation, as the runner takes it."""
    from sim.scenario.file import digest, resolved

    return lambda sim: sim.recorder.digest(
        digest(resolved(sim.scenario)), sim.method.learner.digest()
    )


typer.main.get_command = functools.cache(
    typer.main.get_command
)  # a process has one command line; made anew, it takes 30 ms


@dataclass
class Outcome:
    """What a command line left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def mobifleet(capsys, monkeypatch, tmp_path):
    """Runs the real `main()` in this process, in tmp_path."""

    def run(*argv: object) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["mobifleet", *map(str, argv)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def shell(tmp_path):
    """Starts a fresh Python with arguments, in tmp_path; `environment` adds to this one's."""

    def start(*argv: object, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, argv)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
