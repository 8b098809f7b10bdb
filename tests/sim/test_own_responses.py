"""Prompts and responses of one's own in a scenario: where labels are not looked for, what goes
together and what does not, and a scenario that says nothing of them as it always was.
"""

import json

import numpy as np
import pytest
import yaml

from learning.data import texts as data
from sim.kernel.streams import Streams
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load, resolved
from sim.scenario.schema import Scenario
from sim.world.task import load_task

SAID = {"kind": "language-modelling"}
COLUMNS = {"path": "d.csv", "prompt": "ask", "response": "answer"}


@pytest.fixture
def world(tmp_path):
    """Writes a scenario of two devices; returns what it loads as."""
    rows = [f"ask {i},answer {i},{'ab'[i % 2]},who{i % 2}" for i in range(40)]
    (tmp_path / "d.csv").write_text("\n".join(["ask,answer,about,by", *rows]))

    def write(dataset, **task) -> Scenario:
        group = {"count": 2, "device": "jetson-tx2", "backbone": "random-llama", "link": "lte"}
        scenario = {
            "name": "own",
            "task": {"dataset": dataset, "max_tokens": 16, **task},
            "fleet": [group],
            "method": {"kind": "fedavg-lora"},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(scenario))
        return load(str(tmp_path / "own.yaml"), Scenario, check=problems)

    return write


def complaints(world, dataset, **task) -> str:
    with pytest.raises(ScenarioError) as raised:
        world(dataset, **task)
    return "\n".join(raised.value.problems)


def test_topics_and_speakers_divide_what_is_to_be_said(world, tmp_path):
    named = {**COLUMNS, "label": "about", "client": "by"}
    scenario = world(named, **SAID, partition={"kind": "natural"})
    task = load_task(scenario, Streams(0), tmp_path, dry=True)
    assert task.class_names == ("a", "b") and sorted(task.clients) == ["who0", "who1"]
    held = np.concatenate(task.parts)
    assert len(held) == 32 and len(task.test) == 8
    assert all(task.texts.responses[i] == f"answer {i}" for i in held)
    plain = load_task(
        world({"path": "d.csv", "text": "ask"}, **SAID), Streams(0), tmp_path, dry=True
    )
    assert plain.texts.responses[3] == "ask 3" and plain.texts.texts[3] == ""


def test_what_was_read_is_written_down_and_read_again(world):
    for dataset in (COLUMNS, {"path": "d.csv", "text": "ask"}, {**COLUMNS, "label": "about"}):
        scenario = world(dataset, **SAID)
        again = Scenario.model_validate(json.loads(json.dumps(resolved(scenario))))
        assert again == scenario
        assert again.task.dataset.label == dataset.get("label")


@pytest.mark.parametrize(
    ("dataset", "kind", "said"),
    [
        (
            {"path": "d.csv", "response": "by"},
            "classification",
            "task.dataset.response: is for `kind: language-modelling`",
        ),
        (
            {"path": "d.csv", "response": "answer"},
            SAID["kind"],
            "task.dataset.response: needs `pro",
        ),
        ({**COLUMNS, "text": "by"}, SAID["kind"], "task.dataset.text: and `response` are two ways"),
        (
            {"path": "d.csv", "label": None},
            None,
            "task.dataset.label: expected text or a whole num",
        ),
        ("film-dialogues", "classification", "has no labels to predict: say `kind: language-model"),
        ("film-dialogue", SAID["kind"], "did you mean 'film-dialogues'"),
    ],
)
def test_what_does_not_go_together_is_said_at_its_line(world, dataset, kind, said):
    [found] = complaints(world, dataset, kind=kind).splitlines()
    assert said in found and "own.yaml:" in found


def test_sentences_about_classes_are_of_no_use_to_what_is_said(world):
    found = complaints(world, COLUMNS, **SAID, label_texts={"a": "One.", "b": "Two."})
    assert "task.label_texts: is of classes, and language modelling has none" in found


def test_texts_in_memory_are_taken_for_what_the_task_is(world, tmp_path):
    texts = data.load({"path": tmp_path / "d.csv", "text": "ask", "label": "about"})
    scenario = world(COLUMNS, **SAID)
    task = load_task(scenario, Streams(0), tmp_path, dry=True, texts=texts)
    assert task.texts.responses == texts.texts and task.class_names == ("a", "b")
    said = data.load({**COLUMNS, "path": tmp_path / "d.csv"}, "language-modelling")
    labelled = world({"path": "d.csv", "text": "ask", "label": "about"})
    with pytest.raises(data.DataError, match="has responses to be said"):
        load_task(labelled, Streams(0), tmp_path, dry=True, texts=said)


def test_check_says_what_is_said_to_what(world, mobifleet, tmp_path):
    world({**COLUMNS, "label": "about"}, **SAID)
    told = " ".join(mobifleet("check", tmp_path / "own.yaml").out.split())
    assert " said 'answer " in told and " to 'ask " in told and "topics 2 (training + test)" in told
    world({"path": "d.csv", "text": "ask"}, **SAID)
    told = " ".join(mobifleet("check", tmp_path / "own.yaml").out.split())
    assert " said 'ask " in told and " to nothing " in told and "topics" not in told
    world({"tokens": 12, "response_tokens": 5}, **SAID)
    told = " ".join(mobifleet("check", tmp_path / "own.yaml").out.split())
    assert "by size alone: 12 tokens a text, 5 of them to be said" in told
