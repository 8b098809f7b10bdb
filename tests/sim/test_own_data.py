"""Data of one's own in a scenario: what `check` says of it, leaks from training to test, and bounds
before memory is taken.
"""

import json
import resource

import numpy as np
import pytest
import yaml

from inputs.files import FileProblem
from inputs.units import format_bytes, format_seconds
from learning.backbones.catalogue import find
from learning.data import texts as data
from learning.data.partition import PartitionError
from sim.kernel.streams import Streams
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import OwnData, Scenario, TaskSettings
from sim.world.task import load_task


def rows(count: int, distinct: int | None = None, start: int = 0) -> list[tuple[str, str]]:
    """Texts with the label that their first letter says; `distinct` of them, over and over."""
    numbers = [start + i % (distinct or count) for i in range(count)]
    return [(f"{'ab'[n % 2]} text {n}", "ab"[n % 2]) for n in numbers]


@pytest.fixture
def world(tmp_path):
    """Writes tables and a scenario of four devices over them; returns the scenario's path."""

    def write(files: dict[str, list[tuple]], dataset: dict, columns="text,label", **task):
        for name, cells in files.items():
            lines = [",".join(row) for row in cells]
            (tmp_path / name).write_text("\n".join([columns, *lines]) + "\n", encoding="utf-8")
        scenario = {
            "name": "own",
            "task": {"dataset": dataset, "max_tokens": 16, **task},
            "fleet": [
                {
                    "count": 4,
                    "device": "jetson-tx2",
                    "backbone": "random-bert-l1",
                    "link": "wifi-home",
                }
            ],
            "method": {"kind": "fed-mobillm", "replay": 5, "server_batch": 8},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(scenario, sort_keys=False))
        return tmp_path / "own.yaml"

    return write


def task_of(path) -> TaskSettings:
    return load_task(load(str(path), Scenario, check=problems), Streams(0), path.parent, dry=True)


def texts_of(task, indices) -> set[str]:
    return {task.texts.texts[i] for i in indices}


def test_no_test_text_is_trained_on_and_the_rest_stays_as_it_was(world):
    path = world({"d.csv": rows(200, 50)}, {"path": "d.csv"}, train=100, test=60)
    task = task_of(path)
    held = np.concatenate(task.parts)
    assert not texts_of(task, task.test) & texts_of(task, held)
    left_out = 60 - len(task.test)
    assert left_out and task.remarks[0] == (
        f"{left_out} of 60 test texts stand in the training part, too, and were left out of the "
        "test"
    )
    kept = task_of(world({}, {"path": "d.csv", "keep_test_copies": True}, train=100, test=60))
    assert [p.tolist() for p in kept.parts] == [p.tolist() for p in task.parts]
    assert [
        i for i in kept.test if kept.texts.texts[i] not in texts_of(task, held)
    ] == task.test.tolist()
    assert (
        kept.remarks[0] == f"{left_out} of 60 test texts stand in the training part, too, "
        "and are judged on all the same"
    )


def test_texts_that_no_device_holds_leak_nothing(world):
    cells = [(text, label, f"c{i % 8}") for i, (text, label) in enumerate(rows(160, 80))]
    natural = {"kind": "natural", "min_size": 2}
    files = {"d.csv": cells, "t.csv": [(*row, "c0") for row in rows(20, start=70)]}
    dataset = {"path": "d.csv", "client": "who", "test": "t.csv"}
    task = task_of(world(files, dataset, "text,label,who", partition=natural))
    held = texts_of(task, np.concatenate(task.parts))
    assert 0 < len(held) < 80 and len(task.parts) == 4
    assert not any("without a device" in remark for remark in task.remarks)  # none were asked for
    asked = task_of(world(files, dataset, "text,label,who", partition=natural, train=150))
    left = 150 - sum(map(len, asked.parts))
    said = f"{left} of the 150 training texts are of clients without a device"
    assert left and said in asked.remarks
    wanted = {text for text, _ in rows(20, start=70)} - held
    assert texts_of(task, task.test) == wanted and len(wanted) > 10


def test_validation_texts_are_clear_of_training_texts(world):
    path = world(
        {"d.csv": rows(200, 60)},
        {"path": "d.csv"},
        train=60,
        test=40,
        validation=50,
        judge_on="validation",
    )
    task = task_of(path)
    assert 0 < len(task.test) < 50
    assert not texts_of(task, task.test) & texts_of(task, np.concatenate(task.parts))


def test_capital_letters_alone_are_counted_not_dropped(world):
    files = {
        "d.csv": rows(40),
        "t.csv": [(text.upper(), label) for text, label in rows(40)[:6]] + rows(4, start=90),
    }
    task = task_of(world(files, {"path": "d.csv", "test": "t.csv"}))
    assert len(task.test) == 10
    assert task.remarks == (
        "6 of 10 test texts differ from a training text in capital letters alone",
    )


def test_nothing_left_to_test_on_is_an_error(world):
    with pytest.raises(
        data.DataError,
        match="d: no text is left to test on; 60 were set aside, and 60 of these are trained on",
    ):
        task_of(world({"d.csv": rows(400, 2)}, {"path": "d.csv"}, train=100, test=60))
    with pytest.raises(data.DataError, match="d: no text is left to test on; 0 were set aside"):
        task_of(world({"d.csv": rows(40)}, {"path": "d.csv"}, train=40))


def test_a_class_that_only_test_texts_have_is_remarked(world):
    cells = [*rows(40), *((f"rare {i}", "c") for i in range(12))]
    task = task_of(
        world(
            {"d.csv": cells},
            {"path": "d.csv"},
            train=4,
            test=40,
        )
    )
    unknown = sum(task.labels[i] == 2 for i in task.test)
    assert (
        unknown and f"no training text is of 'c', which {unknown} test texts are of" in task.remarks
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"min_size": 30}, "natural clients have 30 or more texts"),
        ({}, "of 3 natural clients have 1 or more texts; 4 asked for"),
    ],
)
def test_fewer_clients_than_devices_is_an_error(world, change, said):
    cells = [(text, label, f"c{i % 3}") for i, (text, label) in enumerate(rows(60))]
    dataset = {"path": "d.csv", "client": "who"}
    path = world(
        {"d.csv": cells}, dataset, "text,label,who", partition={"kind": "natural", **change}
    )
    with pytest.raises(PartitionError, match=said):
        task_of(path)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_are_the_same_piece_by_piece(world, monkeypatch, pairs):
    cells = [(text, f"other {i}" * (i % 3), label) for i, (text, label) in enumerate(rows(60))]
    dataset = {"path": "d.csv"} | ({"text_b": "other"} if pairs else {})
    task, spec = task_of(world({"d.csv": cells}, dataset, "text,other,label")), find("random-bert")
    samples = np.concatenate(task.parts)
    whole = task.tokens(spec, samples)
    monkeypatch.setattr("sim.world.task.CHARACTERS_AT_ONCE", 50)
    pieces = task.tokens(spec, samples)
    for name in ("ids", "segments") if pairs else ("ids",):
        one, other = getattr(whole, name), getattr(pieces, name)
        assert len(one) == len(other) == len(samples)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert pairs or whole.segments is pieces.segments is None
    assert np.array_equal(task.lengths(spec, samples), whole.lengths())
    assert len(task.tokens(spec, samples[:0])) == 0


def test_a_client_column_is_read_named_and_checked(world):
    cells = [(text, label, "me" if i != 6 else " ") for i, (text, label) in enumerate(rows(60))]
    path = world({"d.csv": cells}, {"path": "d.csv", "client": "who"}, "text,label,who")
    with pytest.raises(data.DataError, match=r"d\.csv, row 7 .line 8., column 'who': no client"):
        task_of(path)
    with pytest.raises(data.DataError, match="natural partition needs a client column"):
        task_of(world({"d.csv": rows(60)}, {"path": "d.csv"}, partition={"kind": "natural"}))


def test_every_setting_of_a_scenario_reaches_the_reader(world, tmp_path):
    lines = [f"{'ab'[i % 2]};größe {i}~x;w{i % 4}" for i in range(40)]
    (tmp_path / "d.txt").write_bytes("\n".join([*lines, ";none;w0"]).encode("cp1252"))
    dataset = {
        "path": "d.txt",
        "text": 2,
        "label": 1,
        "client": 3,
        "delimiter": ";",
        "encoding": "cp1252",
        "header": False,
    }
    task = task_of(
        world({}, dataset | {"skip_blank": True}, partition={"kind": "natural"}, train=30)
    )
    assert task.texts.texts[3] == "größe 3~x" and task.texts.sources[0].endswith(
        "40 rows, split at semicolons, cp1252"
    )
    assert sorted(task.clients) == ["w0", "w1", "w2", "w3"]
    assert task.remarks == (
        f"{tmp_path / 'd.txt'}: left out for want of a text, a label or a client: 1 row",
    )
    with pytest.raises(data.DataError, match=r"row 41 .line 41., column '1': no label \(''\)"):
        task_of(world({}, dataset))


def test_later_settings_leave_the_digest_of_a_scenario_alone():
    before = {
        "path": "d.csv",
        "text": "text",
        "text_b": None,
        "label": "label",
        "client": None,
        "test": None,
    }
    assert OwnData(path="d.csv").model_dump() == before
    changed = OwnData(path="d.csv", delimiter=";", header=False, text=1, label=2, skip_blank=True)
    assert changed.model_dump() == before | {
        "delimiter": ";",
        "header": False,
        "text": 1,
        "label": 2,
        "skip_blank": True,
    }
    assert OwnData.model_validate(changed.model_dump()) == changed


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (
            {"path": "d.csv", "lable": "x"},
            "task.dataset.lable: unknown key .*; did you mean 'label'",
        ),
        ({"path": "d.csv", "text": [1]}, "task.dataset.text: expected text or a whole number"),
        ({"classes": 10**9, "tokens": 3}, "task.dataset.classes: must be at most 100000 "),
        ({"classes": 3, "tokens": 10**30}, "task.dataset.tokens: must be at most 1000000 "),
        ({"classes": 3}, "task.dataset.tokens: required key is missing"),
        ({"label": "x"}, "task.dataset.path: required key is missing"),
        (3, "task.dataset: expected text"),
    ],
)
def test_a_mistake_is_answered_once_for_the_kind_of_data_that_is_meant(world, dataset, said):
    with pytest.raises(ScenarioError, match=said) as raised:
        load(str(world({}, dataset)), Scenario)
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("task.train=10000000000", "task.train: must be at most 2000000"),
        ("task.test=10000000000", "task.test: must be at most 2000000"),
        ("task.validation=10000000000", "task.validation: must be at most"),
        ("fleet.0.count=1000000000000", "fleet.0.count: must be at most 2000000"),
        ("fleet.0.count=0", "fleet.0.count: must be at least 1"),
    ],
)
def test_sizes_are_bounded_before_memory_is_taken(world, setting, said, mobifleet):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = mobifleet("check", world({}, {"classes": 3, "tokens": 8}), "--set", setting)
    assert outcome.code == 2 and said in outcome.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_all_groups_together_are_bounded(world, mobifleet):
    path = world({}, {"classes": 3, "tokens": 8})
    scenario = yaml.safe_load(path.read_text())
    scenario["fleet"] = [scenario["fleet"][0] | {"count": 1_200_000}] * 2
    path.write_text(yaml.safe_dump(scenario))
    outcome = mobifleet("check", path)
    assert (
        outcome.code == 2 and "fleet: 2,400,000 devices, and 2,000,000 is the most" in outcome.err
    )


def said_by(out: str) -> dict[str, str]:
    """The table of `check` by its first column, lines that were broken put together again."""
    found, name = {}, ""
    for line in out.splitlines()[1:]:
        name = line[2:22].strip() or name if line[2:3].strip() else name
        found[name] = " ".join(
            [
                *found.get(name, "").split(),
                *line[2 + len(name) if line[2:3].strip() else 0 :].split(),
            ]
        )
    return found


@pytest.fixture
def check(mobifleet, monkeypatch):
    """What `check` says of a scenario, by row, and its notes."""
    monkeypatch.setattr("sim.cli.terminal.console.width", 200, raising=False)

    def run(path, *argv) -> tuple[dict[str, str], str]:
        outcome = mobifleet("check", path, *argv)
        assert outcome.code == 0, outcome.err
        return said_by(outcome.out), outcome.err

    return run


def test_check_says_what_it_read_who_holds_what_and_what_it_takes(
    world, check, tmp_path, mobifleet
):
    path = world(
        {"d.csv": [("b; and [red]more", "b"), *rows(160, 150)]},
        {"path": "d.csv"},
        train=90,
        test=40,
    )
    said, notes = check(path)
    assert said["data"].endswith("d.csv: 161 rows, split at commas (guessed), utf-8")
    assert said["texts"].startswith("90 to train on, ") and said["texts"].endswith(" to test on")
    assert said["classes"].startswith("2 (training + test): ") and "a: " in said["classes"]
    assert said["devices"] == "4, with 22 to 23 texts each (median 22.5)"
    assert (said["device kinds"], said["links"]) == ("4 jetson-tx2", "4 wifi-home")
    assert "classes" not in notes
    assert mobifleet("run", path, "--dry", "-q", "--no-figures", "--out", "out").code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    totals, each = summary["totals"], summary["per_device"]
    assert said["it takes"].startswith(
        f"{format_seconds(summary['virtual_time_s'])} of virtual time (exhausted), "
    )
    for way in ("uplink", "downlink"):
        key = f"{way}_bytes"
        largest = f"(largest {format_bytes(each[key]['max'])})"
        assert (
            said[way]
            == f"{format_bytes(totals[key])}, {format_bytes(each[key]['mean'])} a device {largest}"
        )


def test_check_shows_texts_and_names_as_they_are(world, check):
    path = world(
        {"d.csv": [("[red]a\x1b[31m", "[b]")] * 30 + [("c", "\x1b[1m")] * 30},
        {"path": "d.csv"},
        train=20,
        test=20,
    )
    with pytest.raises(AssertionError, match="no text is left"):
        check(path)
    said, _ = check(path, "--set", "task.dataset.keep_test_copies=true")
    assert said["a text"] in (r"'[red]a\x1b[31m': [b]", r"'c': '\x1b[1m'")
    assert "[b]: " in said["classes"] and r"'\x1b[1m': " in said["classes"]


def test_words_that_a_terminal_cannot_show_are_spelled(world, shell):
    path = world({"d.csv": [(f"größe {i}", "äöü"[i % 3]) for i in range(60)]}, {"path": "d.csv"})
    process = shell(
        "-c", "from sim.cli import main as cli; cli.main()", "check", path, PYTHONIOENCODING="ascii"
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert r"\xe4 " in out


def test_check_leaves_a_long_dry_run_to_run(world, check, monkeypatch):
    path = world({}, {"classes": 3, "tokens": 8}, train=4000, test=10)
    monkeypatch.setattr("sim.cli.answer.MOST_EVENTS", 200)
    said, _ = check(path)
    assert said["data"] == "by size alone: 3 classes, 8 tokens a text"
    assert said["it takes"] == "more than 200 events: `mobifleet run --dry` says how long"
    assert "uplink" not in said


def test_check_and_summary_say_the_same_remarks(world, check, mobifleet, tmp_path):
    path = world({"d.csv": rows(200, 80)}, {"path": "d.csv"}, train=100, test=60)
    _, notes = check(path)
    assert (
        "note: " in notes
        and "test texts stand in the training part, too, and were left out" in notes
    )
    assert mobifleet("run", path, "--dry", "-q", "--no-figures", "--out", "out").code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [
        line.removeprefix("note: ") for line in notes.splitlines() if "training part" in line
    ] == [remark for remark in summary["remarks"] if "training part" in remark]


def test_the_home_of_nobody_is_no_fault_of_ours(world):
    for key in ("path", "test"):
        path = world({"d.csv": rows(40)}, {"path": "d.csv"} | {key: "~nobody-at-all/d.csv"})
        with pytest.raises(FileProblem, match="~nobody-at-all"):
            task_of(path)
