"""No number of a run depends on how a version of Python adds up: `sum` of floats compensates for
rounding from 3.12 on.
"""

import importlib
import json
import os
import pkgutil
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim import simulation
from sim.results.summary import device_table, summary

REPOSITORY = Path(__file__).parents[2]
every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, small, CALM, hard = (every_method[name] for name in ("KINDS", "small", "CALM", "hard"))
LINKS = {"links": {"tcp": True}, "server": {"ingress": "20 Mbit/s", "egress": "20 Mbit/s"}}


def checked(values, /, start=0):
    """`sum` for our code, which gives it no float: `math.fsum` has the same bits everywhere."""
    values = list(values)
    assert not any(isinstance(value, float) and value % 1 for value in values), (
        "sums floats without math.fsum"
    )
    return sum(values, start)


@pytest.fixture
def no_sum_of_floats(monkeypatch):
    for package in map(
        importlib.import_module, ("inputs", "learning", "devices", "network", "sim")
    ):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                monkeypatch.setattr(
                    importlib.import_module(found.name), "sum", checked, raising=False
                )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_no_method_sums_floats_by_a_way_that_versions_change(
    kind, simulate, tmp_path, no_sum_of_floats
):
    calm = simulate(method=small(kind), dry=True, **CALM)
    world = {**hard(tmp_path, calm), "method": small(kind), **LINKS}
    for sim in (calm, simulate(dry=True, **world), simulate(method=small(kind), fleet=mixed())):
        summary(sim, "digest", device_table(sim), 1.0)


def mixed() -> list[dict]:
    mix = {"jetson-tx2": 0.3, "raspberry-pi-5": 0.7}
    return [
        {
            "count": 3,
            "device": mix,
            "backbone": {"random-bert": 0.1, "random-bert-l1": 0.2},
            "link": "lte",
        }
    ]


def test_the_check_finds_a_sum_of_floats(no_sum_of_floats):
    with pytest.raises(AssertionError, match=r"math.fsum"):
        simulation.sum([0.1, 0.2])


# --- the same on every Python at hand

VERSIONS = (
    "import sim.simulation; from importlib.metadata import version; "
    "print(version('torch').partition('+')[0])"
)
RUN = """
import json, sys
from pathlib import Path
from sim.results.summary import device_table, summary
from sim.scenario.schema import Scenario
from sim.scenario.checks import problems
from sim.scenario.file import digest, load, resolved
from sim.simulation import Simulation

dry, *paths = sys.argv[1:]
for path in paths:
    scenario = load(path, Scenario, (), [], problems)
    sim = Simulation(scenario, Path(path).parent, dry == "dry")
    sim.run()
    mark = sim.recorder.digest(digest(resolved(scenario)), sim.method.learner.digest())
    print(json.dumps({**summary(sim, mark, device_table(sim), 0.0), "host": None}))
"""
LEARNED = (
    "fed-mobillm",
    "pae-mobillm",
    "fedavg-lora",
    "fedbuff",
    "flexlora",
    "fwdllm",
    "splitfed-v1",
    "local-lst",
)


def other_pythons() -> list[str]:
    """Those on the path, pyenv's, and whatever `MOBIFLEET_PYTHONS` names."""
    named = os.environ.get("MOBIFLEET_PYTHONS", "").split(os.pathsep)
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python3")))
    return [
        path for path in dict.fromkeys(filter(None, [*named, *found])) if path != sys.executable
    ]


def asked(python: str, *argv: object, **environment: str) -> subprocess.CompletedProcess:
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        [python, "-c", *map(str, argv)], env=own, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(params=other_pythons())
def python(request) -> str:
    probe = asked(request.param, VERSIONS)
    if probe.returncode:
        pytest.skip(f"lacks what mobifleet needs: {probe.stderr.strip().splitlines()[-1]}")
    return request.param


@pytest.fixture
def worlds(scenario_file, simulate, tmp_path):
    """Scenario files of every method on a hard day, for dry runs, and of small ones that learn."""
    dry, real = [], []
    for kind in KINDS:
        calm = simulate(method=small(kind), dry=True, **CALM)
        folder = tmp_path / kind
        folder.mkdir()
        hard_day = {**hard(folder, calm), "method": small(kind), **LINKS}
        dry.append(scenario_file(**hard_day).rename(folder / "hard.yaml"))
        (folder / "texts.csv").write_bytes((tmp_path / "texts.csv").read_bytes())
        if kind in LEARNED:
            real.append(
                scenario_file(method=small(kind), fleet=mixed()).rename(folder / "small.yaml")
            )
    return dry, real


def test_another_python_gives_the_same_bits(python, worlds, tmp_path):
    same_torch = asked(python, VERSIONS).stdout == asked(sys.executable, VERSIONS).stdout
    for how, paths in zip(("dry", "real"), worlds, strict=True):
        if how == "real" and not same_torch:
            continue
        runs = [asked(one, RUN, how, *paths, MOBIFLEET_CACHE=str(tmp_path / name))
                for one, name in ((sys.executable, "ours"), (python, "theirs"))]  # fmt: skip
        for run in runs:
            assert run.returncode == 0, run.stderr
        ours, theirs = ([json.loads(line) for line in run.stdout.splitlines()] for run in runs)
        assert len(ours) == len(paths)
        for one, other in zip(ours, theirs, strict=True):
            assert one == other
