"""The language model's own verbaliser as the backbone's prediction: what devices send, what it
costs on the clock, and what stands against it.
"""

import numpy as np
import pytest

from learning.backbones.catalogue import BackboneError
from learning.backbones.language_head import WordHead
from learning.backbones.prompts import first_tokens
from learning.data.texts import DataError
from learning.side.activations import decode
from learning.side.inference import SidePredictor
from learning.side.prediction_difference import verbalised
from sim.runner import run_scenario
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario
from sim.simulation import Simulation

SAID = {letter: f"{letter}0 {letter}1 {letter}2" for letter in "abc"}
SAYS = {"template": "{text}\nIt is about:", "label_words": {c: f"{c}3 or so" for c in "abc"}}
TASK = {"dataset": {"path": "texts.csv"}, "test": 30, "max_tokens": 16, "train": 40, **SAYS}
FLEET = [{"count": 2, "device": "jetson-tx2", "backbone": "random-llama", "link": "lte"}]
WORLD = {"task": TASK, "fleet": FLEET, "arrivals": {"kind": "at-once"}, "jitter": False}
CALIBRATED = "calibrated-verbaliser"


def method(kind: str, **changes) -> dict:
    few = {"replay": 5, "server_batch": 8, "device_batch": 4}
    return {"kind": "fed-mobillm", "backbone_prediction": kind, **few, **changes}


@pytest.fixture
def uploaded(monkeypatch):
    """Every payload that the server got, decoded."""
    got, deliver = [], Simulation.server_type.receive

    def spy(self, payload):
        got.extend([] if payload.data is None else [decode(payload.data)])
        deliver(self, payload)

    monkeypatch.setattr(Simulation.server_type, "receive", spy)
    return got


@pytest.mark.parametrize(
    ("kind", "sentences"),
    [
        (CALIBRATED, SAID),
        pytest.param("verbaliser", None, marks=pytest.mark.thorough),
        pytest.param(CALIBRATED, None, marks=pytest.mark.thorough),
    ],
)
def test_differences_are_to_what_the_last_token_says(kind, sentences, simulate, uploaded):
    task = TASK if sentences is None else {**TASK, "label_texts": sentences}
    sim = simulate(method=method(kind, wire="float32"), **{**WORLD, "task": task})
    spec = sim.costing.learned["random-llama"]
    head = WordHead(spec, first_tokens(spec, SAYS["template"], SAYS["label_words"]))

    def says(texts):
        from learning.backbones.backbone import Backbone
        from learning.backbones.tokens import tokenise

        put = [SAYS["template"].replace("{text}", text) for text in texts]
        return head(Backbone(spec).readouts(tokenise(spec, put), "last")[:, -1])

    neutral = None
    if kind == CALIBRATED:
        neutral = says(["N/A", "[MASK]", ""] if sentences is None else sentences.values())
    for records in uploaded:
        y_b = verbalised(says([sim.task.texts.texts[i] for i in records.samples]), neutral)
        one_hot = np.eye(3)[sim.task.labels[records.samples]]
        assert np.allclose(records.targets + y_b, one_hot, atol=1e-5)
        assert np.ptp(y_b) > 1e-3
    dry = simulate(method=method(kind, wire="float32"), dry=True, **{**WORLD, "task": task})
    assert dry.recorder.spans().equals(sim.recorder.spans())


def test_the_template_and_three_words_are_charged_and_no_byte_more(simulate, spans):
    task = {key: TASK[key] for key in TASK if key not in SAYS}
    plain = simulate(method=method("uniform"), dry=True, **{**WORLD, "task": task})
    said, calibrated = (
        simulate(method=method(k), dry=True, **WORLD) for k in ("verbaliser", CALIBRATED)
    )
    device, spec = said.devices[0], said.costing.learned["random-llama"]
    lengths = said.task.lengths(spec, device.samples)
    assert np.array_equal(lengths, plain.task.lengths(spec, device.samples) + 3)  # It is about:
    expected = 0.0
    for batch in device.batches(4):
        longest = said.task.lengths(spec, batch.samples)
        expected += said.costing.forward(device.member, longest).flop
        expected += 2 * 48 * 3 * len(longest)  # hidden numbers, words
    own = spans(said, "compute", actor=device.id)
    assert sum(span["flop"] for span in own) == pytest.approx(expected, rel=1e-12)
    assert said.recorder.uplink_bytes == plain.recorder.uplink_bytes
    first, *others = spans(calibrated, "compute", actor=device.id)
    neutral = said.task.said_lengths(spec, CALIBRATED)
    assert neutral.tolist() == [5, 5, 4]  # N/A, [MASK] and nothing
    cost = said.costing.forward(device.member, neutral).flop + 2 * 48 * 3 * 3
    assert first["flop"] == pytest.approx(cost, rel=1e-12)
    assert [span["flop"] for span in others] == [span["flop"] for span in own]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["fed-mobillm", "pae-mobillm", "single-side-network"])
def test_a_dry_run_has_the_spans_of_a_real_one(kind, simulate):
    settings = {"kind": kind, "backbone_prediction": CALIBRATED, "server_batch": 8}
    real, dry = (simulate(method=settings, dry=dry, **WORLD) for dry in (False, True))
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert real.recorder.uplink_bytes == dry.recorder.uplink_bytes


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["centralised", "upload-raw-text", "local-lst"])
def test_who_else_trains_a_side_network_begins_with_it_too(kind, simulate, spans):
    settings = {"kind": kind, "backbone_prediction": CALIBRATED}
    if kind == "local-lst":
        settings["epochs"] = 1
    sim = simulate(method=settings, **WORLD)
    assert sim.score is not None
    actor = "server" if kind != "local-lst" else sim.devices[0].id
    dry = simulate(method=settings, dry=True, **WORLD)
    assert [s["flop"] for s in spans(sim, actor=actor)] == [
        s["flop"] for s in spans(dry, actor=actor)
    ]


@pytest.mark.thorough
def test_matrices_go_with_it(simulate):
    settings = {"kind": "pae-mobillm", "shortcut": "matrix", "epochs": 1, "server_batch": 8}
    sim = simulate(method={**settings, "backbone_prediction": "verbaliser"}, **WORLD)
    assert sim.score is not None


@pytest.mark.thorough
@pytest.mark.parametrize("readout", ["mean", "last"])
@pytest.mark.parametrize("kind", ["verbaliser", CALIBRATED])
def test_predicts_afterwards_what_the_run_reports(kind, readout, scenario_file, tmp_path):
    path = scenario_file(**{**WORLD, "method": method(kind, readout=readout)})
    scenario = load(str(path), Scenario, [], [], problems)
    done = run_scenario(scenario, tmp_path / "run", path.parent, figures=False)
    predictor = SidePredictor.load(tmp_path / "run", "random-llama")
    task = Simulation(scenario, path.parent, dry=True).task
    labels, _ = predictor.predict([task.texts.texts[i] for i in task.test])
    right = [task.class_names.index(label) for label in labels] == task.labels[task.test]
    assert np.mean(right) == done.summary["final"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"template": None}, "backbone_prediction: verbaliser needs `task.template`, such as"),
        ({"template": "It is about:"}, "task.template: has no {text}, where a text stands"),
        ({"label_words": None}, "backbone_prediction: verbaliser needs `task.label_words`"),
        ({"label_words": {}}, "task.label_words: says nothing of 'a', 'b', 'c'"),
        ({"label_words": {"a": "x", "b": "y"}}, "every class needs a word"),
        ({"label_words": {"a": "x", "b": "y", "c": " "}}, "task.label_words.c: is blank"),
        ({"label_words": {**dict.fromkeys("abc", "x"), "d": "z"}}, "no class is called 'd'"),
    ],
)
def test_what_the_task_lacks_is_said_before_anything_runs(changes, what, scenario_file):
    path = scenario_file(**{**WORLD, "task": {**TASK, **changes}, "method": method("verbaliser")})
    with pytest.raises(ScenarioError) as error:
        load(str(path), Scenario, [], [], lambda scenario: problems(scenario, path.parent))
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "changes", "what"),
    [
        ("random-bert", {}, "a bert model has no head that says the next word"),
        (
            "random-llama",
            {"label_words": {"a": "x y", "b": "y", "c": "x z"}},
            "begin with the same",
        ),
        ("random-llama", {"template": "{text} {second_text}:"}, "these texts are no pairs"),
        ("random-llama", {"template": "It is {text} " + "x " * 20}, "leaves no room for text"),
    ],
)
def test_what_a_backbone_cannot_do_is_said_before_anything_runs(
    backbone, changes, what, scenario_file
):
    world = {**WORLD, "fleet": [{**FLEET[0], "backbone": backbone}], "task": {**TASK, **changes}}
    path = scenario_file(**world, method=method("verbaliser"))
    scenario = load(str(path), Scenario)
    with pytest.raises((BackboneError, DataError), match=what):
        Simulation(scenario, path.parent, dry=True)


def test_a_template_that_is_said_is_read_in_by_every_method(simulate):
    task = {key: TASK[key] for key in TASK if key != "label_words"}
    sim = simulate(method={"kind": "upload-raw-text"}, dry=True, **{**WORLD, "task": task})
    spec, samples = sim.costing.learned["random-llama"], sim.devices[0].samples
    words = [len(sim.task.texts.texts[i].split()) for i in samples]
    assert sim.task.lengths(spec, samples).tolist() == [1 + n + 3 for n in words]


def test_data_known_by_their_size_are_charged_at_their_length(simulate, spans):
    task = {"dataset": {"classes": 4, "tokens": 20}, "train": 40, "test": 10}
    fleet = [{**FLEET[0], "backbone": "opt-1.3b", "precision": "float16"}]
    world = {**WORLD, "task": task, "fleet": fleet, "out_of_memory": "record"}
    plain, said = (
        simulate(method=method(kind), dry=True, **world) for kind in ("uniform", "verbaliser")
    )
    both = [
        [s["flop"] for s in spans(sim, "compute", actor=sim.devices[0].id)] for sim in (plain, said)
    ]
    assert both[1][0] - both[0][0] == 2 * 2048 * 4 * 4
