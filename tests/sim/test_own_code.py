"""Code of a user's that is wrong: told by its own line, at load or when it runs, never as a fault
of mobifleet's; and two files of one name in two folders.
"""

import copy
import pickle

import pytest

from sim.api import compare, load
from sim.scenario.file import digest, resolved
from sim.scenario.own_code import MethodError, OwnCodeError
from sim.scenario.registry import register
from sim.simulation import Simulation

DATA = {"dataset": {"classes": 3, "tokens": 16}, "train": 60, "test": 30}
BASE = """from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.scenario.settings import Settings
import sys


class Mine(FedMobiLLM):
"""
CONFIG = """    class Config(FedMobiLLM.Config):
        ship_side_network: bool = {}
"""
DIVIDE = """import numpy as np


def cut(labels, n_clients, rng, min_size):
    return np.array_split(np.arange(len(labels)), n_clients)[::{}]
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "    def device(self, device):\n        yield from device.arive()",
            "line 8: AttributeErr",
        ),
        ("    def device(self, device):\n        yield device.arrive()", 'line 8: "<generator'),
        ("    def device(self, device):\n        yield 3", 'line 8: "3" is yielded, and no event'),
        ("    def device(self, device):\n        pass", "`device` gives None, and no generator"),
        ("    def server(self, server):\n        return []", "`server` gives [], and no generator"),
        (
            "    def server(self, server):\n        yield from server.wait()\n        sys.exit(3)",
            "line 9: SystemExit: 3",
        ),
        (
            "    def server(self, server):\n"
            "        while True:\n            yield from server.wait()",
            "line 9: RuntimeError: waits in a loop and takes nothing",
        ),
        ("    def peak_bytes(self, device):\n        return None", "`peak_bytes` gives None"),
        ("    def delivery_bytes(self, device):\n        return 0.5", "`delivery_bytes` gives 0.5"),
        ("    def peak_bytes(self, device):\n        return 1 / 0", "line 8: ZeroDivisionError"),
        ("    def __init__(self, config, world):\n        pass", "sets no `learner`"),
        (
            "    def __init__(self, config, world):\n        self.learner = None",
            "Mine lacks what its base class asks of it: AttributeError",
        ),
        ("    def __init__(self, config, world):\n        raise KeyError('a')", "line 8: KeyError"),
        ("    def __init__(self, config):\n        pass", "called as Mine(config, world)"),
        ("    def device(self):\n        yield", "called as Mine.device(self, device)"),
        ("    class Config(Settings):\n        rounds: int = 1", "derived from FedMobiLLM.Config"),
        (
            "    class Config(FedMobiLLM.Config):\n        x: 'Nothing' = 1",
            "Config: name 'Nothing' is not defined",
        ),
        ("    pass\n\nsys.exit(3)", "line 9: SystemExit: 3"),
        ("    pass\n\nraise ValueError('one\\ntwo' * 999)", "line 9: ValueError: one"),
    ],
)
def test_what_is_wrong_with_a_method_is_one_line_with_its_place(
    body, says, scenario_file, tmp_path, mobifleet
):
    (tmp_path / "mine.py").write_text(BASE + body + "\n")
    path = scenario_file(method={"kind": "mine.py:Mine"}, task=DATA)
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 2, told
    words = " ".join(told.err.split())
    assert says in words and "fault of mobifleet" not in words
    assert len(told.err.splitlines()) < 6
    if says.startswith("line"):
        assert f"mine.py, {says}" in words
    fine = scenario_file(method={"kind": "fed-mobillm"}, task=DATA)
    assert mobifleet("check", fine).code == 0  # what was refused has left nothing behind


def test_a_setting_that_raises_is_told_by_its_line(scenario_file, tmp_path):
    (tmp_path / "mine.py").write_text(
        f"{BASE.replace('import sys', 'import pydantic')}{CONFIG.format(True)}\n"
        "        @pydantic.field_validator('replay')\n"
        "        def odd(cls, value):\n"
        "            return {}[value]\n"
    )
    path = scenario_file(method={"kind": "mine.py:Mine", "replay": 2}, task=DATA)
    with pytest.raises(OwnCodeError, match=r"mine.py, line 12: KeyError: 2"):
        load(path, allow_code=True)


@pytest.mark.parametrize("kind", [":Mine", "mine.py:", ":"])
def test_half_a_name_says_how_a_whole_one_looks(kind, scenario_file, mobifleet):
    told = mobifleet("check", scenario_file(method={"kind": kind}, task=DATA), "--allow-code")
    assert told.code == 2 and "say `my_file.py:Name`" in " ".join(told.err.split())


@pytest.mark.parametrize("name", ["", "a b", "x.py:Mine", "../up"])
def test_a_name_from_python_is_a_word(name):
    from sim.methods.side_tuning.fed_mobillm import FedMobiLLM

    with pytest.raises(MethodError, match="no name for a method"):
        register(FedMobiLLM, name)


@pytest.fixture
def two_folders(tmp_path, scenario_file):
    """Two scenarios with methods and partitions of one name, which do opposite things."""
    found = []
    for ships, step in ((True, 1), (False, -1)):
        home = tmp_path / str(ships)
        home.mkdir()
        (home / "mine.py").write_text(BASE + CONFIG.format(ships))
        (home / "cut.py").write_text(DIVIDE.format(step))
        own = {"kind": "mine.py:Mine"}
        path = scenario_file(
            method=own,
            compare={"methods": {"a": own}, "over": {"key": "method.replay", "values": [2, 3]}},
            task={**DATA, "partition": {"kind": "own", "function": "cut.py:cut"}},
        ).rename(home / "study.yaml")
        found.append(load(path, allow_code=True))
    return found


@pytest.mark.thorough
def test_one_name_in_two_folders_means_two_methods(two_folders, tmp_path, recwarn):
    for scenario, ships in zip(two_folders, (True, False), strict=True):
        for again in (scenario, pickle.loads(pickle.dumps(scenario)), copy.deepcopy(scenario)):
            sim = Simulation(again, dry=True)
            assert sim.method.config.ship_side_network is ships
            assert bool(sim.devices[0].samples[0] == 0) is ships
            assert resolved(again)["method"]["ship_side_network"] is ships
    first, second = two_folders
    assert digest(resolved(first)) != digest(resolved(second))
    compared = compare(first, dry=True, quiet=True, out=tmp_path / "out")
    assert all(entry.scenario.method.ship_side_network for entry in compared.entries)
    assert not [w for w in recwarn if "ydantic" in str(w.message)]


def test_a_file_that_has_changed_is_read_again(two_folders):
    first, _ = two_folders
    (first.folder / "mine.py").write_text(BASE + CONFIG.format(False))
    assert load(first.folder / "study.yaml", allow_code=True).method.ship_side_network is False
    assert first.method.ship_side_network is True


def test_what_one_load_allowed_the_next_has_to_allow_too(two_folders):
    with pytest.raises(ValueError, match="--allow-code"):
        load(two_folders[0].folder / "study.yaml")


def test_nothing_is_written_beside_the_scenario(two_folders):
    for scenario in two_folders:
        names = {path.name for path in scenario.folder.iterdir()}
        assert names == {"study.yaml", "mine.py", "cut.py"}
