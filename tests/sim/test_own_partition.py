"""A function of the user's that divides the texts: in a file beside the scenario, registered, or
brought by a package.
"""

import sys

import numpy as np
import pytest

import mobifleet as door
from sim.api import load
from sim.results.run import open_run
from sim.scenario import partitions
from sim.scenario.file import ScenarioError
from sim.scenario.registry import MethodError

SIZES = """
import numpy as np


def by_size(labels, n_clients, rng, min_size, first=0.5):
    "The first client gets a share, the others the rest in equal parts."
    order = rng.permutation(len(labels))
    cut = int(first * len(labels))
    return [order[:cut], *np.array_split(order[cut:], n_clients - 1)]


def half(labels, n_clients, rng, min_size):
    return np.array_split(np.arange(len(labels) // 2), n_clients)


def odd(labels, n_clients, rng, min_size, how):
    whole = np.array_split(np.arange(len(labels)), n_clients)
    match how:
        case "too few": return whole[1:]
        case "twice": return [whole[0], whole[0], *whole[2:]]
        case "outside": return [whole[0] - 1, *whole[1:]]
        case "no numbers": return [part / 2 for part in whole]
        case "empty": return [whole[0][:0], *whole[1:]]
        case "nothing": return None
"""


def task(function: str, **settings) -> dict:
    own = {"kind": "own", "function": function, "settings": settings}
    return {
        "dataset": {"path": "texts.csv"},
        "train": 60,
        "test": 30,
        "max_tokens": 16,
        "partition": own,
    }


@pytest.fixture(autouse=True)
def functions_as_before(monkeypatch):
    monkeypatch.setattr(partitions, "_known", {})


@pytest.fixture
def parts_file(tmp_path):
    (tmp_path / "parts.py").write_text(SIZES)


def test_a_function_beside_the_scenario_divides_and_runs_only_if_that_is_said(
    mobifleet, scenario_file, parts_file, tmp_path
):
    path = scenario_file(task=task("parts.py:by_size", first=0.8))
    refused = mobifleet("check", path)
    [at] = [n for n, s in enumerate(path.read_text().splitlines(), 1) if "parts.py" in s]
    assert refused.code == 2 and f"{path.name}:{at}:" in refused.err
    assert "task.partition.function" in refused.err and "--allow-code" in refused.err
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 0 and "6 to 48 texts each" in told.out, told.err
    out = tmp_path / "run"
    argv = ("run", path, "--allow-code", "--dry", "--quiet", "--no-figures", "--out", out)
    assert mobifleet(*argv).code == 0
    assert "parts.py" in open_run(out).manifest["inputs"]


def test_texts_that_a_function_leaves_out_are_told(mobifleet, scenario_file, parts_file):
    path = scenario_file(task=task("parts.py:half"))
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 0 and "30 of the 60 training texts are in no device's part" in " ".join(
        told.err.split()
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("too few", "gives 2 parts for 3 clients"),
        ("twice", "a text to two clients, or twice to one"),
        ("outside", "indices outside the 60 labels"),
        ("no numbers", "something else than arrays"),
        ("empty", "the smallest of 3 clients gets 0 texts"),
        ("nothing", "parts.py:odd: TypeError"),
    ],
)
def test_what_divides_wrongly_is_refused(how, says, mobifleet, scenario_file, parts_file):
    told = mobifleet("check", scenario_file(task=task("parts.py:odd", how=how)), "--allow-code")
    assert told.code == 2 and says in " ".join(told.err.split()), told.err


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("parts.py:by_sise", "has no function by_sise; did you mean by_size?"),
        ("none.py:by_size", "there is no file"),
        ("by-sise", "no function that divides texts is called 'by-sise'; did you mean 'by-size'?"),
    ],
)
def test_a_misspelt_name_stands_at_its_place(function, says, mobifleet, scenario_file, parts_file):
    door.register_partition(lambda *given: [], "by-size")
    path = scenario_file(task=task(function))
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 2 and says in " ".join(told.err.split()), told.err
    assert f"{path.name}:" in told.err and "task.partition.function" in told.err


def test_a_registered_function_needs_no_leave_and_keeps_its_name(scenario_file, mobifleet):
    def evens(labels, n_clients, rng, min_size):
        """Every n-th text."""
        return [np.arange(len(labels))[i::n_clients] for i in range(n_clients)]

    assert door.register_partition(evens, "evens") is evens
    assert load(scenario_file(task=task("evens"))).task.partition.function == "evens"
    assert "Every n-th text." in mobifleet("list", "partitions").out
    with pytest.raises(MethodError, match="evens is"):
        door.register_partition(lambda *given: [], "evens")
    with pytest.raises(ScenarioError, match=r"tiny\.yaml"):
        load(scenario_file(task=task("evenly")))


def test_a_package_brings_one(scenario_file, mobifleet, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "sizes_lab").mkdir(parents=True)
    (site / "sizes_lab" / "__init__.py").write_text(SIZES)
    info = site / "sizes_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sizes_lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mobifleet.partitions]\nsizes = sizes_lab:by_size\n")
    monkeypatch.syspath_prepend(str(site))
    told = mobifleet("check", scenario_file(task=task("sizes", first=0.5)))
    assert told.code == 0 and "15 to 30 texts each" in told.out, told.err
    assert "own, function: sizes" in mobifleet("list", "partitions").out
    del sys.modules["sizes_lab"]


@pytest.mark.thorough
def test_it_reaches_the_processes_of_a_comparison(mobifleet, scenario_file, parts_file, tmp_path):
    methods = {
        name: {"kind": name, "rounds": 1, "device_batch": 8, "rank": 4}
        for name in ("fedavg-lora", "flexlora")
    }
    path = scenario_file(task=task("parts.py:by_size", first=0.8), compare={"methods": methods})
    argv = ("compare", path, "--allow-code", "--dry", "--processes", 2, "--out", tmp_path / "out")
    told = mobifleet(*argv)
    assert told.code == 0, told.err
