"""What a scenario's files hold is part of which run it is: for --resume, for compare, in the
manifest.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

import devices.profile_file
import network.profile
from sim.results.run import open_run
from sim.scenario.checks import problems
from sim.scenario.file import load, resolved
from sim.scenario.named_files import changed_files, digests, named_files
from sim.scenario.schema import Scenario

PLAIN = ("-q", "--no-figures", "--workers", "1")
METHODS = {
    "ours": {"kind": "fed-mobillm", "replay": 5, "server_batch": 8},
    "raw": {"kind": "upload-raw-text"},
}

# Settings that are text and name no file. Who adds one to a scenario says here, or by its type,
# what it is.
NO_FILES = {
    *(
        "Scenario.name",
        "Scenario.description",
        "GroupSettings.name",
        "GroupSettings.engine",
        "GroupSettings.cell",
        "GroupSettings.backbone",
    ),
    *(
        "Mobility.cells",
        "ServerSettings.engine",
        "CostAs.backbone",
        "Config.backbone",
        "Over.key",
        "Config.wire",
        "Config.wire_down",
        "Config.difference",
        "Compare.ours",
    ),
    *(
        "Compare.reference",
        "Compare.baselines",
        "OwnData.text",
        "OwnData.text_b",
        "OwnPartition.settings",
        "OwnData.prompt",
        "OwnData.response",
        "OwnData.label",
        "OwnData.client",
    ),
    *(
        "OwnData.delimiter",
        "OwnData.encoding",
        "TaskSettings.dataset",
        "TaskSettings.label_texts",
        "TaskSettings.label_words",
        "TaskSettings.template",
        "Scenario.cells",
        "Scenario.backbones",
    ),
    *(
        "Compare.methods",
        "Tune.dials",
        "OwnBackbone.random",
        "Config.ranks",
        "Config.target_modules",
    ),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def world(scenario_file, tmp_path):
    """A scenario that names a file of every kind; returns its path and, by the names that people
    see, the files.
    """
    profile = yaml.safe_load((devices.profile_file.PROFILES["jetson-tx2"]).read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    link = yaml.safe_load((network.profile.PROFILES["lte"]).read_text())
    (tmp_path / "link.yaml").write_text(yaml.safe_dump({**link, "name": "link"}))
    (tmp_path / "up.csv").write_text("time_s,bit/s\n0,1000000\n10,2000000\n")
    (tmp_path / "ingress.csv").write_text("time_s,bit/s\n0,1000000\n10,2000000\n")
    (tmp_path / "joins.csv").write_text("time_s\n0\n1\n")
    (tmp_path / "data.csv").write_text("time_s\n" + "".join(f"{second}\n" for second in range(60)))
    (tmp_path / "on.csv").write_text("device,ready_start_s,ready_end_s\na,0,80000\n")
    shutil.copytree(model_folder(tmp_path / "models" / "tiny"), tmp_path / "enc")
    mine, own_link = str(tmp_path / "mine.yaml"), str(tmp_path / "link.yaml")
    path = scenario_file(
        backbones={"mine": {"path": "enc"}},
        fleet=[
            {
                "count": 1,
                "device": {mine: 1, "raspberry-pi-4": 1},
                "backbone": "mine",
                "link": {own_link: 1, "lte": 1},
            },
            {
                "count": 1,
                "device": "jetson-tx2",
                "backbone": "mine",
                "link": "lte",
                "trace": "up.csv",
            },
        ],
        traces={"ingress": "ingress.csv"},
        arrivals={"kind": "trace", "path": "joins.csv"},
        fresh_data={"kind": "trace", "path": "data.csv"},
        availability={"kind": "trace", "path": "on.csv"},
    )
    files = {
        name: tmp_path / name
        for name in ("texts.csv", "up.csv", "ingress.csv", "joins.csv", "data.csv", "on.csv")
    }
    files |= {mine: Path(mine), own_link: Path(own_link)}
    files |= {
        f"enc/{name}": tmp_path / "enc" / name
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    shipped = {"devices": ("raspberry-pi-4", "jetson-tx2", "a100"), "network": ("lte",)}
    places = {"devices": devices.profile_file.PROFILES, "network": network.profile.PROFILES}
    files |= {
        f"{k}/profiles/{name}.yaml": places[k][name]
        for k, names in shipped.items()
        for name in names
    }
    return path, files


def model_folder(place: Path) -> Path:
    """A model folder that is only looked at, never loaded."""
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 64}))
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "tokenizer.json").write_text("{}")
    (place / "notes.md").write_text("nobody reads this")
    return place


def test_every_file_is_found_and_its_content_told(world, tmp_path):
    path, files = world
    scenario = load(path, Scenario)
    found = named_files(scenario, tmp_path)
    assert {name: p.resolve() for name, p in found.items()} == {
        name: p.resolve() for name, p in files.items()
    }
    before = digests(scenario, tmp_path)
    assert before == {name: sha256(p) for name, p in files.items()}
    for name, file in files.items():
        if not file.is_relative_to(tmp_path):
            continue
        kept = file.read_bytes()
        file.write_bytes(kept + b"\n")
        assert changed_files(before, digests(scenario, tmp_path)) == [name]
        file.unlink()
        missing = changed_files(before, digests(scenario, tmp_path))
        assert missing == ([] if name.startswith("enc/") else [name])
        file.write_bytes(kept)
    assert digests(scenario, tmp_path) == before


def test_no_setting_that_is_text_is_forgotten():
    """Walks the classes of the whole scenario: a field that can be text is typed as a file's name,
    or listed as none.
    """
    text = set()

    def walk(kind: type, seen: set) -> None:
        if kind in seen or not hasattr(kind, "model_fields"):
            return
        seen.add(kind)
        for name, field in kind.model_fields.items():
            told = repr(field)
            is_named = (
                "Annotated[str, AfterValidator]" in told or "sim.scenario.named_files" in told
            )
            if "str" in told and not is_named:
                text.add(f"{kind.__name__}.{name}")
            for inner in classes(field.annotation):
                walk(inner, seen)

    def classes(annotation) -> set:
        from typing import get_args

        inner = {annotation} if isinstance(annotation, type) else set()
        return inner.union(*(classes(argument) for argument in get_args(annotation)))

    walk(Scenario, set())
    assert text == NO_FILES


def test_the_manifest_says_what_files_held(mobifleet, scenario_file, tmp_path):
    assert mobifleet("run", scenario_file(), "--out", "run", "--dry", *PLAIN).code == 0
    inputs = open_run(tmp_path / "run").manifest["inputs"]
    assert inputs["texts.csv"] == sha256(tmp_path / "texts.csv")
    assert inputs["devices/profiles/jetson-tx2.yaml"] == sha256(
        devices.profile_file.PROFILES["jetson-tx2"]
    )


def test_what_files_hold_leaves_the_scenario_and_its_digest_alone(world):
    scenario = load(world[0], Scenario)
    again = Scenario.model_validate(json.loads(json.dumps(resolved(scenario))))
    assert again == scenario and named_files(again, Path()) == named_files(scenario, Path())


def relabelled(path: Path) -> None:
    """The same texts, every label another."""
    lines = path.read_text(encoding="utf-8").splitlines()
    turned = {"a": "b", "b": "c", "c": "a"}
    turned_lines = [lines[0], *(f"{line[:-1]}{turned[line[-1]]}" for line in lines[1:])]
    path.write_text("\n".join(turned_lines) + "\n", encoding="utf-8")


@pytest.mark.thorough
def test_a_comparison_runs_again_what_read_other_files(mobifleet, scenario_file, tmp_path):
    path = scenario_file(compare={"methods": METHODS})
    first = mobifleet("compare", path, "--out", "out", "--processes", "1")
    assert first.code == 0 and "run 2/2" in first.out, first.err
    digests_before = [
        open_run(tmp_path / "out" / f"{label}-seed0").summary["digest"] for label in METHODS
    ]
    again = mobifleet("compare", path, "--out", "out", "--processes", "1")
    assert again.code == 0 and "run 2/2" not in again.out and "made again" not in again.out
    relabelled(tmp_path / "texts.csv")
    third = mobifleet("compare", path, "--out", "out", "--processes", "1")
    assert third.code == 0, third.err
    assert (
        "texts.csv held something else before: 2 runs are made again" in third.out
        and "run 2/2" in third.out
    )
    fresh = mobifleet("compare", path, "--out", "fresh", "--processes", "1")
    assert fresh.code == 0
    for label, before in zip(METHODS, digests_before, strict=True):
        now, new = (
            open_run(tmp_path / place / f"{label}-seed0").summary["digest"]
            for place in ("out", "fresh")
        )
        assert now == new != before


def test_resume_refuses_other_files_by_name(mobifleet, scenario_file, tmp_path):
    path = scenario_file()
    assert mobifleet("run", path, "--out", "run", "--dry", *PLAIN).code == 0
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
    kept = (tmp_path / "texts.csv").read_bytes()
    relabelled(tmp_path / "texts.csv")
    refused = mobifleet("run", path, "--out", "run", "--dry", "--resume", *PLAIN)
    assert refused.code == 2 and "texts.csv" in refused.err and "without --resume" in refused.err
    (tmp_path / "texts.csv").write_bytes(kept)
    resumed = mobifleet("run", path, "--out", "run", "--dry", "--resume", *PLAIN)
    assert resumed.code == 0, resumed.err


def test_texts_of_a_program_are_told_apart(scenario_file, tmp_path):
    from dataclasses import replace

    from learning.data import texts as data

    scenario = load(scenario_file(), Scenario, (), [], problems)
    texts = data.load({"path": str(tmp_path / "texts.csv")})
    other = replace(texts, labels=(texts.labels + 1) % 3)
    one, same, two = (
        digests(scenario, tmp_path, given)["the texts"] for given in (texts, replace(texts), other)
    )
    assert one == same != two


def test_what_never_ends_is_not_read(scenario_file, tmp_path):
    scenario = load(
        scenario_file(
            fleet=[
                {
                    "count": 1,
                    "device": "jetson-tx2",
                    "backbone": "random-bert",
                    "link": "lte",
                    "trace": "/dev/zero",
                }
            ]
        ),
        Scenario,
    )
    assert digests(scenario, tmp_path)["/dev/zero"] == "missing"
