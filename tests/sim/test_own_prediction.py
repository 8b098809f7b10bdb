"""What the frozen backbone predicts by itself: where it comes from, what it costs on the clock, and
when a device has it.
"""

import numpy as np
import pytest

from learning.side.activations import decode
from learning.side.heads import fit, fitting, head_bytes
from learning.side.inference import InferenceError, SidePredictor
from learning.side.prediction_difference import backbone_prediction
from sim.runner import run_scenario
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario
from sim.simulation import CannotBuild, Simulation

SAID = {
    "a": "This has the words a0, a1, a2 and a3.",
    "b": "b0 b1 b2 b3 b0 b1 b2 b3",
    "c": "c0 c1 c2 c3 c0 c1 c2 c3",
}
DATA = {"dataset": {"path": "texts.csv"}, "test": 30, "max_tokens": 16}
TASK = {**DATA, "train": 40, "public": 20, "label_texts": SAID}
FLEET = [{"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
WORLD = {"task": TASK, "fleet": FLEET, "arrivals": {"kind": "at-once"}, "jitter": False}


def method(kind: str, **changes) -> dict:
    few = {"replay": 5, "server_batch": 8, "device_batch": 4}
    return {"kind": "fed-mobillm", "backbone_prediction": kind, **few, **changes}


@pytest.fixture
def uploaded(monkeypatch):
    """Every payload that the server got, decoded, by device."""
    got, deliver = {}, Simulation.server_type.receive

    def spy(self, payload):
        got.setdefault(payload.sender.id, []).append(decode(payload.data))
        deliver(self, payload)

    monkeypatch.setattr(Simulation.server_type, "receive", spy)
    return got


def last_layer(sim, samples):
    learner = sim.method.learner
    rows = [learner._row["random-bert"][int(i)] for i in samples]
    return learner._readouts["random-bert"].take(rows, [-1])[:, 0]


# --- class-texts


def test_a_pass_over_the_classes_texts_comes_first_and_gives_a_prediction_at_once(
    simulate, spans, curve
):
    plain = simulate(method=method("uniform"), dry=True, **WORLD)
    sim = simulate(method=method("class-texts"), stop={"horizon": "1 us"}, **WORLD)
    assert sim.updates == 0 and curve(sim) == [sim.score] and sim.score > 0.5
    dry = simulate(method=method("class-texts"), dry=True, **WORLD)
    device = dry.devices[0]
    lengths = np.sort(dry.task.said_lengths(dry.costing.learned["random-bert"], "class-texts"))
    expected = dry.costing.forward(device.member, lengths).flop  # three texts are one batch of four
    own, before = (spans(s, "compute", actor=device.id) for s in (dry, plain))
    assert own[0]["flop"] == expected > 0 and own[0]["start_s"] == 0.0
    assert [s["flop"] for s in own[1:]] == [s["flop"] for s in before]
    assert dry.recorder.uplink_bytes == plain.recorder.uplink_bytes


def test_differences_are_to_the_likeness_with_the_classes_texts(simulate, uploaded):
    sim = simulate(method=method("class-texts", wire="float32"), **WORLD)
    classes = sim.method.learner._classes["random-bert"]
    for records in (record for mine in uploaded.values() for record in mine):
        y_b = backbone_prediction("class-texts", last_layer(sim, records.samples), 3, classes)
        one_hot = np.eye(3)[sim.task.labels[records.samples]]
        assert np.allclose(records.targets + y_b, one_hot, atol=1e-6)


@pytest.mark.parametrize("kind", ["class-texts", "label-names", "public-head"])
def test_predicts_afterwards_what_the_run_reports(kind, scenario_file, tmp_path):
    path = scenario_file(**{**WORLD, "method": method(kind)})
    scenario = load(str(path), Scenario, [], [], problems)
    done = run_scenario(scenario, tmp_path / "run", path.parent, figures=False)
    predictor = SidePredictor.load(tmp_path / "run", "random-bert")
    task = Simulation(scenario, path.parent, dry=True).task
    labels, _ = predictor.predict([task.texts.texts[i] for i in task.test])
    right = [task.class_names.index(label) for label in labels] == task.labels[task.test]
    assert np.mean(right) == done.summary["final"]


@pytest.mark.parametrize(
    ("said", "where", "what"),
    [
        ({**SAID, "d": "No such class."}, "task.label_texts.d", "no class is called 'd'"),
        ({"a": "Only this."}, "task.label_texts", "says nothing of 'b', 'c'"),
        ({**SAID, "b": " "}, "task.label_texts.b", "is blank"),
        ({**SAID, "b": f" {SAID['a']} "}, "task.label_texts.b", "says what 'a' says"),
    ],
)
def test_texts_of_other_classes_are_named_with_their_line(said, where, what, scenario_file):
    path = scenario_file(task={**TASK, "label_texts": said})

    def check(scenario):
        return problems(scenario, path.parent)

    with pytest.raises(ScenarioError) as error:
        load(str(path), Scenario, [], [], check)
    (line,) = error.value.problems
    assert where in line and what in line
    number = int(line.split(":")[-4] if line.count(":") > 4 else line.split(":")[1])
    key = where.rsplit(".", 1)[-1]
    assert path.read_text().splitlines()[number - 1].strip().startswith(f"{key}:") or number > 1


def test_what_the_task_does_not_have_is_asked_for(scenario_file):
    for kind, wanted in (
        ("class-texts", "`task.label_texts`"),
        ("public-head", "`task.public: N`"),
    ):
        path = scenario_file(method=method(kind))
        with pytest.raises(
            ScenarioError, match=f"method.backbone_prediction: {kind} needs {wanted}"
        ):
            load(str(path), Scenario, [], [], problems)
        scenario = load(str(path), Scenario)
        with pytest.raises(CannotBuild, match=f"{kind} needs {wanted}"):
            from sim.simulation import building

            with building(scenario):
                Simulation(scenario, path.parent, dry=True)


# --- public-head


def test_the_server_fits_a_head_to_public_texts_and_every_device_downloads_it(
    simulate, spans, uploaded
):
    sim = simulate(method=method("public-head", wire="float32"), **WORLD)
    held = np.concatenate([device.samples for device in sim.devices])
    assert len(sim.task.public) == 20
    assert not set(sim.task.public) & {*held, *sim.task.test}
    server = spans(sim, actor="server")
    forward, fitted = server[0], server[1]
    assert (forward["kind"], fitted["flop"]) == ("forward", fitting(20, 64, 3).flop)
    for device in sim.devices:
        down = spans(sim, "download", actor=device.id)[0]
        assert down["nbytes"] == head_bytes(64, 3) and down["start_s"] == fitted["end_s"]
        first = spans(sim, "compute", actor=device.id)[0]
        assert first["start_s"] >= down["end_s"]
        assert sum(span["kind"] == "wait" for span in spans(sim, actor=device.id)) >= 1
    head = fit(last_layer(sim, sim.task.public), sim.task.labels[sim.task.public], 3).weights
    for records in uploaded[sim.devices[0].id]:
        y_b = backbone_prediction("public-head", last_layer(sim, records.samples), 3, head=head)
        one_hot = np.eye(3)[sim.task.labels[records.samples]]
        assert np.allclose(records.targets + y_b, one_hot, atol=1e-5)


# --- own-head


def test_a_device_fits_its_head_before_it_sends_and_says_of_no_text_what_its_label_told(
    simulate, spans, uploaded
):
    sim = simulate(method=method("own-head", wire="float32"), **WORLD)
    for device in sim.devices:
        own = spans(sim, "compute", actor=device.id)
        assert own[-1]["flop"] == fitting(len(device.samples), 64, 3).flop
        assert spans(sim, "upload", actor=device.id)[0]["start_s"] == own[-1]["end_s"]
        head = fit(last_layer(sim, device.samples), sim.task.labels[device.samples], 3)
        sent = np.concatenate([records.targets for records in uploaded[device.id]])
        one_hot = np.eye(3)[sim.task.labels[device.samples]]
        assert np.allclose(sent, one_hot - head.left_out, atol=1e-5)
    assert sim.method.learner._heads["random-bert"].shape == (2, 65, 3)
    assert sim.score is not None and sim.score > 0.5


def test_a_head_that_never_left_its_device_predicts_nowhere_else(scenario_file, tmp_path):
    path = scenario_file(**{**WORLD, "method": method("own-head")})
    run_scenario(load(str(path), Scenario), tmp_path / "run", path.parent, figures=False)
    predictor = SidePredictor.load(tmp_path / "run", "random-bert")
    with pytest.raises(InferenceError, match="a head each of its own"):
        predictor.predict(["a0 a1"])


# --- all of them


@pytest.mark.parametrize("prediction", ["class-texts", "public-head", "own-head"])
@pytest.mark.parametrize("kind", ["fed-mobillm", "pae-mobillm", "single-side-network"])
def test_a_dry_run_has_the_spans_of_a_real_one(kind, prediction, simulate):
    settings = {"kind": kind, "backbone_prediction": prediction, "server_batch": 8}
    real, dry = (simulate(method=settings, dry=dry, **WORLD) for dry in (False, True))
    assert real.recorder.spans().equals(dry.recorder.spans())


@pytest.mark.parametrize("prediction", ["class-texts", "public-head"])
@pytest.mark.parametrize("kind", ["centralised", "upload-raw-text"])
def test_where_the_server_has_the_texts_it_predicts_for_the_devices(
    kind, prediction, simulate, spans
):
    sim = simulate(method={"kind": kind, "backbone_prediction": prediction}, dry=True, **WORLD)
    assert spans(sim, actor="server")[0]["kind"] == "forward"
    assert not spans(sim, "download") and not spans(sim, "compute")


def test_a_ladder_of_ones_own_passes_over_the_classes_texts_once(simulate, spans):
    plain, said = (
        simulate(
            method={"kind": "local-lst", "epochs": 2, "backbone_prediction": kind},
            dry=True,
            **WORLD,
        )
        for kind in ("uniform", "class-texts")
    )
    one = said.devices[0].id
    of = [[s["flop"] for s in spans(sim, "compute", actor=one)] for sim in (plain, said)]
    assert of[1][0] > of[0][0] and of[1][1] == of[0][1]
