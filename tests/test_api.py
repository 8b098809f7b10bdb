"""`import mobifleet`: load, check, run and compare from Python, as the command line does them."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import mobifleet
from devices.availability import PROFILES
from sim import api
from sim.scenario.file import resolved
from sim.scenario.named_files import changed_files, digests

STUDY = {
    "name": "study",
    "task": {"dataset": {"classes": 3, "tokens": 16}, "train": 60, "test": 30},
    "fleet": [{"count": 3, "device": "jetson-tx2", "backbone": "minilm", "link": "lte"}],
    "method": {"kind": "fed-mobillm"},
}


@pytest.fixture
def study(tmp_path):
    """Writes a scenario into a folder of its own and returns its path."""

    def write(**changes) -> Path:
        folder = tmp_path / "studies"
        folder.mkdir(exist_ok=True)
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
        return path

    return write


def test_the_door_opens_without_torch_or_pandas():
    code = (
        "import sys, mobifleet; before = set(sys.modules); mobifleet.load, mobifleet.open_run;"
        "print({'sim', 'pydantic'} & before, {'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set() set()\n", done.stderr


def test_every_public_name_is_there_and_says_how_it_is_used():
    assert set(mobifleet.__all__) <= set(dir(mobifleet))
    for name in mobifleet.__all__:
        assert inspect.getdoc(getattr(mobifleet, name)), name
    for name in ("load", "run", "check", "compare", "open_run"):
        assert f"mobifleet.{name}(" in inspect.getdoc(getattr(mobifleet, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = mobifleet.laod


def test_load_checks_names_and_takes_overrides_as_python_values(study):
    path = study()
    changes = {
        "fleet.0.count": 5,
        "stop.horizon": "90 s",
        "method.replay": 3,
        "description": "a: b",
    }
    loaded = mobifleet.load(path, changes, seed=7)
    assert (loaded.fleet[0].count, loaded.stop.horizon, loaded.seed) == (5, 90.0, 7)
    assert loaded.description == "a: b"
    assert mobifleet.load(path, ["seed=7"]).seed == mobifleet.load(path, "seed=7").seed == 7
    with pytest.raises(mobifleet.ScenarioError, match="no device is called 'jetson-tx3'"):
        mobifleet.load(path, {"fleet.0.device": "jetson-tx3"})
    with pytest.raises(mobifleet.ScenarioError, match="override 'seed'"):
        mobifleet.load(path, {"seed": object()})
    assert mobifleet.load("quickstart").folder == api.SCENARIOS


def test_relative_paths_start_in_the_scenarios_folder(study, tmp_path, monkeypatch):
    fleet = [{**STUDY["fleet"][0], "trace": "up.csv"}]
    path = study(fleet=fleet)
    (path.parent / "up.csv").write_text("time_s,rate_mbps\n0,8\n1,8\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    loaded = mobifleet.load("studies/study")
    assert loaded.folder == Path("studies")
    assert "8 Mbit/s" in str(mobifleet.check(loaded))
    later = loaded.model_copy(update={"seed": 3})  # still knows its folder
    run = mobifleet.run(later, out="run", dry=True, figures=False, quiet=True)
    assert run.manifest["seed"] == 3 and list(run.manifest["inputs"]) == [
        *("devices/profiles/a100.yaml", "devices/profiles/jetson-tx2.yaml"),
        *("network/profiles/lte.yaml", "up.csv"),
    ]
    assert mobifleet.open_run("run").summary == run.summary


PHONE = "name: my-phone\nbasis: own\nmemory_bytes: 12 GiB\nengines: {simple: {flop_per_s: 9e10}}\n"
LINK = "name: my-lte\nextends: {}\nbasis: own\nup_bps: 8 Mbit/s\n"


def test_profiles_of_ones_own_lie_beside_the_scenario(study, tmp_path, monkeypatch):
    fleet = [{**STUDY["fleet"][0], "device": "phone.yaml", "link": "links/mine.yaml"}]
    path = study(fleet=fleet, server={"device": "phone.yaml", "step_overhead": "2 ms"})
    (path.parent / "links").mkdir()
    (path.parent / "links" / "mine.yaml").write_text(LINK.format("base.yaml"), encoding="utf-8")
    base = path.parent / "links" / "base.yaml"
    base.write_text(LINK.format("lte").replace("my-lte", "base"), encoding="utf-8")
    (path.parent / "phone.yaml").write_text(PHONE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = mobifleet.run(path, out="run", dry=True, figures=False, quiet=True)
    assert list(run.manifest["inputs"]) == [
        "devices/profiles/phone-2024-flagship.yaml",
        "links/mine.yaml",
        "links/mine.yaml: base.yaml",
        "network/profiles/lte.yaml",
        "phone.yaml",
    ]
    devices = run.devices().to_pandas()
    assert set(devices["device_class"]) == {"phone.yaml"}
    [remark] = [text for text in run.summary["remarks"] if "phone-2024-flagship" in text]
    assert remark.startswith("the profile my-phone leaves out memory_bandwidth_bytes_per_s, ")
    assert remark in mobifleet.check(path).remarks

    spans = run.spans().to_pandas()
    upload = spans[(spans["actor"] == "device-0000") & (spans["kind"] == "upload")].iloc[0]
    latency_s = 0.0445
    seconds = upload["nbytes"] * 8 / 8e6 + latency_s
    assert upload["end_s"] - upload["start_s"] == pytest.approx(seconds)

    before = run.manifest["inputs"]
    base.write_text(LINK.format("wifi-home").replace("my-lte", "base"), encoding="utf-8")
    now = digests(mobifleet.load(path), path.parent)
    changed = ["links/mine.yaml: base.yaml", "network/profiles/wifi-home.yaml"]
    assert changed_files(before, now) == changed


def test_every_mistake_of_a_profile_is_told_at_the_place_that_names_it(study):
    fleet = [{**STUDY["fleet"][0], "device": "phone.yaml", "link": "none.yaml"}]
    path = study(fleet=fleet)
    text = PHONE.replace("12 GiB", "12 GB of RAM") + "colour: red\n"
    (path.parent / "phone.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(mobifleet.ScenarioError) as caught:
        mobifleet.load(path)
    memory, colour, link = caught.value.problems
    where = f"fleet.0.device: {path.parent / 'phone.yaml'}, line "
    assert f"{where}3: memory_bytes: found '12 GB of RAM'" in memory
    assert f"{where}5: colour: is not a key of a profile" in colour
    assert "fleet.0.link: there is no file 'none.yaml' in the scenario's folder" in link
    with pytest.raises(mobifleet.ScenarioError, match=r"server\.engine: my-phone has no engine"):
        (path.parent / "phone.yaml").write_text(PHONE, encoding="utf-8")
        mobifleet.load(
            path, {"fleet.0.link": "lte", "server": {"device": "phone.yaml", "engine": "fast"}}
        )


@pytest.mark.thorough
def test_check_and_run_say_what_the_command_line_says(study, tmp_path):
    path = study()
    command, wide = [sys.executable, "-m", "mobifleet"], {**os.environ, "COLUMNS": "200"}
    shown = subprocess.run(
        [*command, "check", str(path)],
        capture_output=True,
        text=True,
        env=wide,
    ).stdout
    answer = mobifleet.check(path)
    assert (
        shown.split()
        == " ".join(
            [f"{answer.name}: fine", *(f"{name} {what}" for name, what in answer.facts)]
        ).split()
    )
    run = mobifleet.run(path, out=tmp_path / "mine", dry=True, quiet=True)
    done = subprocess.run(
        [*command, "run", str(path), "--dry", "--out", str(tmp_path / "theirs")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "theirs" / "summary.json").read_text(encoding="utf-8"))
    assert run.summary["digest"] == theirs["digest"]
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        path.name for path in (tmp_path / "theirs").iterdir()
    )


def test_progress_is_shown_of_what_takes_long_and_silenced(study, tmp_path, monkeypatch, capsys):
    mobifleet.run(study(), out=tmp_path / "short", dry=True, figures=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(api, "PATIENCE_S", 1e-9)
    monkeypatch.setattr("sim.cli.live.SECONDS_BETWEEN_LINES", 0.0)
    mobifleet.run(study(), out=tmp_path / "shown", dry=True, figures=False)
    out, err = capsys.readouterr()
    assert out == "" and "virtual clock" in err
    mobifleet.run(study(), out=tmp_path / "quiet", dry=True, figures=False, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_notes_are_shown_and_kept(study, tmp_path, capsys):
    slow = [{**STUDY["fleet"][0], "trace": "up.csv"}]
    path = study(fleet=slow)
    (path.parent / "up.csv").write_text("time_s,rate_mbps\n0,0\n1,0\n", encoding="utf-8")
    run = mobifleet.run(path, out=tmp_path / "run", dry=True, figures=False)
    remarks = run.summary["remarks"]
    assert remarks and all(f"note: {remark}" in capsys.readouterr().err for remark in remarks[:1])
    assert set(mobifleet.check(path).remarks) <= set(remarks)


def test_compare_gives_frames(study, tmp_path, capsys):
    methods = {"ours": {"kind": "fed-mobillm"}, "lora": {"kind": "fedavg-lora", "rounds": 2}}
    path = study(compare={"methods": methods})
    made = mobifleet.compare(path, out=tmp_path / "both", dry=True)
    [(title, frame)] = made.frames.items()
    assert title == "totals" and list(frame.index) == ["ours", "lora"]
    run = mobifleet.open_run(tmp_path / "both" / "lora-seed0")
    assert frame.loc["lora", "uplink_bytes"] == run.summary["per_device"]["uplink_bytes"]["mean"]
    saved = made.reductions["totals"]["flop"]["reduction"]
    assert saved == pytest.approx(1 - frame.loc["ours", "flop"] / frame.loc["lora", "flop"])
    assert "run 2/2 lora-seed0" in capsys.readouterr().err
    one = mobifleet.compare(path, out=tmp_path / "one", dry=True, methods="lora", quiet=True)
    assert list(one.frames["totals"].index) == ["lora"] and capsys.readouterr() == ("", "")


def test_a_rhythm_of_ones_own_lies_beside_the_scenario(study, tmp_path, monkeypatch):
    text = PROFILES["charging-wifi-locked"].read_text(encoding="utf-8")
    path = study(availability={"kind": "diurnal", "rhythm": "mine.yaml"})
    file = path.parent / "mine.yaml"
    monkeypatch.chdir(tmp_path)
    ready = {}
    for share in (0, 1):
        file.write_text(re.sub("never_ready: .*", f"never_ready: {share}", text), encoding="utf-8")
        out = path.parent / f"run{share}"
        run = mobifleet.run(path, out=out, dry=True, quiet=True, figures=False)
        ready[share] = run.summary["outcomes"].get("never-ready", 0)
        assert "mine.yaml" in run.manifest["inputs"]
    assert ready == {0: 0, 1: len(run.devices())}


@pytest.mark.parametrize("name", ["a" * 300 + ".yaml", "~nobody-is-called-so/x.yaml", "a\0.yaml"])
def test_a_name_that_no_file_can_have_is_told_at_its_place(study, name):
    fleet = [{**STUDY["fleet"][0], "device": name, "link": name}]
    with pytest.raises(mobifleet.ScenarioError) as caught:
        mobifleet.load(study(fleet=fleet))
    device, link = caught.value.problems
    assert ": fleet.0.device: " in device and ": fleet.0.link: " in link
    with pytest.raises(mobifleet.ScenarioError, match=r"no such scenario file|cannot be opened"):
        mobifleet.load(name)


def test_overrides_may_be_numbers_of_numpy_and_paths(study):
    changes = {"seed": np.int64(5), "stop.target": np.float32(0.5), "description": Path("a/b")}
    loaded = mobifleet.load(study(), changes)
    assert (loaded.seed, loaded.stop.target, loaded.description) == (5, 0.5, str(Path("a/b")))
    with pytest.raises(mobifleet.ScenarioError, match="override 'seed'"):
        mobifleet.load(study(), {"seed": object()})


def test_a_comparison_of_no_seeds_is_refused(study, tmp_path):
    path = study(compare={"methods": {"a": {"kind": "fed-mobillm"}}})
    with pytest.raises(ValueError, match=r"seeds: at least 1 \(got 0\)"):
        mobifleet.compare(path, seeds=0, dry=True, quiet=True, out=tmp_path / "out")


def test_a_dict_is_a_scenario_whose_paths_start_in_the_working_directory(
    study, tmp_path, monkeypatch
):
    assert resolved(mobifleet.load(STUDY)) == resolved(mobifleet.load(study()))
    (tmp_path / "up.csv").write_text("time_s,rate_mbps\n0,8\n1,8\n", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("seed: 5\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    group = {**STUDY["fleet"][0], "count": np.int64(2), "trace": Path("up.csv")}
    mine = {**STUDY, "fleet": (group,), "extends": "base.yaml", "description": "Äpfel: 1e-3"}
    loaded = mobifleet.load(mine, {"task.train": 30})
    assert (loaded.seed, loaded.fleet[0].count, loaded.task.train) == (5, 2, 30)
    assert loaded.description == "Äpfel: 1e-3" and loaded.folder == Path()
    assert "8 Mbit/s" in str(mobifleet.check(mine))
    run = mobifleet.run(mine, out="run", dry=True, figures=False, quiet=True)
    assert run.manifest["seed"] == 5 and "up.csv" in run.manifest["inputs"]
    with pytest.raises(mobifleet.ScenarioError) as caught:
        mobifleet.load({**mine, "fleet": [{**group, "count": "two"}], "colour": "red"})
    colour, count = sorted(caught.value.problems)
    assert colour.startswith("scenario: colour: ")
    assert count.startswith("scenario: fleet.0.count: expected a whole number (got 'two'")


@pytest.mark.parametrize("call", ["load", "check", "run", "compare", "sweep"])
@pytest.mark.parametrize("given", [None, 5, [], b"quickstart"])
def test_what_can_be_no_scenario_is_told_what_may_be_one(call, given):
    with pytest.raises(mobifleet.ScenarioError, match="expected the path of a file, the name of"):
        getattr(mobifleet, call)(given)


def test_a_missing_file_and_a_dict_without_a_yaml_form_are_told(tmp_path):
    for missing in (tmp_path / "none.yaml", str(tmp_path / "none")):
        with pytest.raises(mobifleet.ScenarioError, match="no such scenario file"):
            mobifleet.run(missing)
    for bad in (object(), float("nan")):
        with pytest.raises(mobifleet.ScenarioError, match="the dict holds what YAML cannot"):
            mobifleet.load({**STUDY, "description": bad})
    with pytest.raises(ValueError, match="grid: expected a dict of dotted paths to lists"):
        mobifleet.sweep(STUDY, ["seed"])
