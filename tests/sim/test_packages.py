"""What installed packages bring by entry points: devices, links and data sets as files, read
without running any code of theirs, and methods as classes.
"""

import sys
import textwrap

import pytest

import network.profile
from inputs.files import FileProblem
from inputs.shipped import Shipped
from learning.data import texts
from sim.api import load
from sim.results.run import open_run
from sim.scenario import registry
from sim.scenario.file import ScenarioError

GROUPS = {"devices": "devices", "links": "links", "data_sets": "data_sets"}
BOARD = """
name: lab-board
extends: jetson-tx2
basis: own
memory_bytes: 16 GiB
"""
ATTIC = """
name: attic
extends: lte
basis: own
up_bps: 2 Mbit/s
"""
DESK = """
description: notes that their words give away
path: notes.csv
text: note
label: mood
texts: 60
"""


def install(site, name: str, files: dict[str, str], points: dict[str, dict[str, str]]) -> None:
    """A package as pip leaves it in the folder `site`; importing it is an error."""
    for inside, text in {"__init__.py": "raise RuntimeError('imported')", **files}.items():
        path = site / name / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, named in points.items():
        lines += [f"[mobifleet.{group}]", *(f"{k} = {v}" for k, v in named.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages that Python looks into."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def methods_as_before():
    before = dict(registry._known)
    yield
    registry._known.clear()
    registry._known.update(before)
    registry._notify()


@pytest.fixture
def lab(site):
    rows = [f"{mood} word{i},{mood}" for mood in ("glad", "cross") for i in range(30)]
    files = {
        "devices/lab-board.yaml": BOARD,
        "links/attic.yaml": ATTIC,
        "links/lte.yaml": ATTIC.replace("attic", "lte"),
        "data_sets/desk.yaml": DESK,
        "data_sets/notes.csv": "\n".join(["note,mood", *rows]),
    }
    install(site, "my_lab", files, {g: {"lab": f"my_lab.{g}"} for g in GROUPS})


FLEET = [{"count": 3, "device": "lab-board", "backbone": "random-bert", "link": "attic"}]
DATA = {"dataset": "desk", "max_tokens": 16}


def test_what_a_package_brings_is_listed_and_run_and_none_of_its_code(
    lab, mobifleet, scenario_file, tmp_path
):
    for what, name in (("devices", "lab-board"), ("links", "attic"), ("datasets", "desk")):
        assert name in mobifleet("list", what).out
    path = scenario_file(fleet=FLEET, task=DATA, arrivals={"kind": "at-once"})
    told = mobifleet("check", path)
    assert told.code == 0 and "3 lab-board" in told.out and "3 attic" in told.out, told.err
    out = tmp_path / "run"
    ran = mobifleet("run", path, "--dry", "--quiet", "--no-figures", "--out", out)
    assert ran.code == 0, ran.err
    assert {f"my_lab/{inside}" for inside in ("devices/lab-board.yaml", "links/attic.yaml")} <= set(
        open_run(out).manifest["inputs"]
    )
    assert {"my_lab/data_sets/desk.yaml", "desk: notes.csv"} <= set(
        open_run(out).manifest["inputs"]
    )
    assert "my_lab" not in sys.modules


def test_the_numbers_are_those_of_its_files(lab):
    assert network.profile.load("attic").up_bps == 2e6
    loaded = texts.load("desk")
    assert (loaded.name, len(loaded), loaded.class_names) == ("desk", 60, ("cross", "glad"))


def test_what_a_package_brings_is_said_as_its_columns_have_it(lab, site, mobifleet):
    plain = texts.load("desk", "language-modelling")
    assert plain.texts == [""] * 60 and plain.responses[0] == "glad word0"
    assert plain.class_names == ("cross", "glad") and not texts.find("desk").has_responses
    (site / "my_lab/data_sets/desk.yaml").write_text(
        "description: moods\npath: notes.csv\nprompt: mood\nresponse: note\n"
    )
    said = texts.load("desk", "language-modelling")
    assert (said.name, said.texts[0], said.responses[0]) == ("desk", "glad", "glad word0")
    assert said.class_names == ("text",) and texts.find("desk").has_responses
    assert "moods; for language modelling" in mobifleet("list", "datasets").out
    with pytest.raises(
        texts.DataError, match=r"desk is prompts and responses.*say `kind: language"
    ):
        texts.load("desk")


def test_a_name_of_ours_stays_ours_and_that_is_said(lab, mobifleet):
    assert network.profile.load("lte").up_bps != 2e6
    told = mobifleet("list", "links")
    assert "my_lab/links/lte.yaml is never read" in told.err.replace("\n", "")
    assert "never read" not in mobifleet("list", "devices").err


def test_one_file_may_extend_what_a_package_brings(lab, tmp_path):
    path = tmp_path / "cellar.yaml"
    path.write_text("name: cellar\nextends: attic\nbasis: own\nlatency_s: 80 ms\n")
    found = network.profile.load(path)
    assert (found.up_bps, found.latency_s) == (2e6, 0.08)
    assert [file.name for file in network.profile.files(str(path))][:2] == [
        "cellar.yaml",
        "attic.yaml",
    ]


def test_a_misspelt_name_of_a_package_is_corrected_at_its_line(lab, mobifleet, scenario_file):
    path = scenario_file(fleet=[{**FLEET[0], "link": "atic", "device": "lab-bord"}])
    lines = path.read_text().splitlines()
    told = mobifleet("check", path)
    assert told.code == 2 and "did you mean 'attic'" in told.err
    assert "did you mean 'lab-board'" in told.err
    at = next(i for i, line in enumerate(lines, 1) if "link: atic" in line)
    assert f"{path.name}:{at}:" in told.err
    told = mobifleet("check", scenario_file(task={**DATA, "dataset": "desc"}))
    assert told.code == 2 and "did you mean 'desk'" in told.err


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("links/attic.yaml", ATTIC + "lag: 1\n", "attic.yaml, line 6: lag: unknown field"),
        ("data_sets/desk.yaml", DESK + "txt: note\n", "desk.yaml, line 7: txt: is not a key"),
        ("data_sets/desk.yaml", DESK + "header: 3\n", "line 7: header: found '3', allowed: true"),
        ("data_sets/desk.yaml", "path: a.csv\nprompt: q\n", "line 2: prompt: needs `response`"),
        ("data_sets/desk.yaml", "description: x\n", "desk.yaml: a data set is a mapping with a `p"),
    ],
)
def test_a_mistake_in_a_packages_file_is_one_line_with_its_place(
    lab, site, file, text, says, mobifleet, scenario_file
):
    (site / "my_lab" / file).write_text(text)
    path = scenario_file(fleet=FLEET, task=DATA, arrivals={"kind": "at-once"})
    told = mobifleet("check", path)
    assert told.code == 2 and says in told.err.replace("\n", " "), told.err
    with pytest.raises(ScenarioError, match=r"tiny\.yaml"):
        load(path)


def test_two_packages_of_one_name_are_told_apart_by_path(lab, site, mobifleet, scenario_file):
    install(site, "other_lab", {"links/attic.yaml": ATTIC}, {"links": {"other": "other_lab.links"}})
    sys.path.append(str(site / "elsewhere"))  # so that packages are looked for again
    try:
        told = mobifleet("check", scenario_file(fleet=FLEET))
        assert told.code == 2 and "two packages bring 'attic'" in told.err
        assert network.profile.load(site / "other_lab/links/attic.yaml").up_bps == 2e6
    finally:
        sys.path.pop()


def test_an_entry_point_that_names_no_folder_is_named(site, mobifleet, scenario_file):
    install(site, "bare", {}, {"links": {"bare": "bare.links"}})
    told = mobifleet("check", scenario_file(fleet=[{**FLEET[0], "device": "jetson-tx2"}]))
    assert told.code == 2 and "entry point 'bare' of mobifleet.links" in told.err
    with pytest.raises(FileProblem, match="no folder nowhere"):
        install(site, "gone", {}, {"devices": {"gone": "nowhere.devices"}})
        sys.path_importer_cache.clear()
        [*Shipped(None, "mobifleet.devices")]


def test_a_package_registers_a_method_and_a_broken_one_is_named(
    site, mobifleet, scenario_file, methods_as_before
):
    quiet = textwrap.dedent(
        """
        from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
        class Quiet(FedMobiLLM):
            "Nothing comes back."
            class Config(FedMobiLLM.Config):
                kind: str = "x"
        """
    )
    files = {"__init__.py": "", "methods.py": quiet}
    install(site, "quiet_lab", files, {"methods": {"quiet": "quiet_lab.methods:Quiet"}})
    method = {"kind": "quiet", "replay": 5, "server_batch": 8, "device_batch": 4}
    told = mobifleet("check", scenario_file(method=method))
    assert told.code == 0 and "quiet" in told.out, told.err
    assert "Nothing comes back" in mobifleet("list", "methods").out
    install(site, "broken_lab", {}, {"methods": {"broken": "broken_lab:Broken"}})
    told = mobifleet("list", "methods")
    assert told.code == 2 and "entry point 'broken' of mobifleet.methods" in told.err
    assert "RuntimeError: imported" in told.err
