"""Sampled layers that public texts choose: what the server and the devices do for it, and what it
is worth.
"""

import dataclasses

import numpy as np
import pytest

from learning.side.activations import encoded_nbytes
from learning.side.inference import SidePredictor
from learning.side.layer_choice import choosing, most_worth
from learning.side.taps import TapRule
from sim.runner import run_scenario
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario
from sim.simulation import CannotBuild, Simulation, building

TASK = {"dataset": {"path": "texts.csv"}, "test": 30, "max_tokens": 16, "train": 40, "public": 20}
MIXED = [
    {"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
    {"count": 1, "device": "jetson-tx2", "backbone": "random-llama", "link": "lte"},
]
WORLD = {"task": TASK, "fleet": MIXED, "arrivals": {"kind": "at-once"}, "jitter": False}
FEW = {"replay": 5, "server_batch": 8, "device_batch": 4}


def method(taps, **changes) -> dict:
    return {"kind": "fed-mobillm", "taps": taps, **FEW, **changes}


def public_vectors(sim, backbone):
    learner = sim.method.learner
    rows = [learner._row[backbone][int(i)] for i in sim.task.public]
    return learner._readouts[backbone].take(rows)


def test_the_server_chooses_and_every_device_is_told_before_it_begins(simulate, spans):
    sim = simulate(method=method({"layers": 1}), **WORLD)
    targets = np.eye(3)[sim.task.labels[sim.task.public]]
    backbones = {name: public_vectors(sim, name) for name in ("random-bert", "random-llama")}
    wanted = {name: most_worth(v, targets, 1, [0]) for name, v in backbones.items()}
    assert sim.method.learner.layers == wanted
    assert sim.method.findings()["taps"] == wanted
    *passes, choice = spans(sim, actor="server")[:3]
    assert [one["kind"] for one in passes] == ["forward", "forward"]
    depths, widths = {"random-bert": 2, "random-llama": 3}, {"random-bert": 64, "random-llama": 48}
    assert choice["flop"] == choosing(TapRule(layers=1), 1, depths, widths, 20, 3).flop > 0
    for device in sim.devices:
        down = spans(sim, "download", actor=device.id)[0]
        assert (down["nbytes"], down["start_s"]) == (2, choice["end_s"])  # one layer's number
        assert spans(sim, "compute", actor=device.id)[0]["start_s"] >= down["end_s"]
        sent = spans(sim, "upload", actor=device.id)[0]["nbytes"]
        assert sent == encoded_nbytes("float16", 4, 2, widths[device.backbone], 3)


def test_the_worthiest_take_two_thirds_of_the_bytes_of_the_interval(simulate):
    world = {**WORLD, "fleet": [{**MIXED[0], "backbone": "random-bert"}]}
    sims = {taps: simulate(method=method(taps), **world) for taps in ("interval", "importance")}
    vectors = {taps: sim.method.shape.vectors for taps, sim in sims.items()}
    assert vectors == {"interval": 3, "importance": 2}
    up = {taps: sim.recorder.uplink_bytes for taps, sim in sims.items()}
    assert 0.6 < up["importance"] / up["interval"] < 0.72  # with headers


@pytest.mark.parametrize(
    ("kind", "taps", "prediction"),
    [
        ("fed-mobillm", "importance", "public-head"),
        ("pae-mobillm", {"bytes_a_text": "1 kB"}, "uniform"),
        ("single-side-network", {"layers": 2}, "uniform"),
    ],
)
def test_a_dry_run_has_the_spans_of_a_real_one(kind, taps, prediction, simulate):
    settings = {"kind": kind, "taps": taps, "backbone_prediction": prediction}
    world = {**WORLD, "task": {**TASK, "validation": 6}}
    real, dry = (
        simulate(method={**settings, "server_batch": 8}, dry=dry, **world) for dry in (False, True)
    )
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert "taps" in real.method.findings() and "taps" not in dry.method.findings()


@pytest.mark.parametrize("by", ["interval", "importance"])
def test_unlike_backbones_are_aligned_by_what_they_say(by, simulate):
    taps = {"by": by, "layers": 2, "align": "cka"}
    real, dry = (simulate(method=method(taps), dry=dry, **WORLD) for dry in (False, True))
    assert real.recorder.spans().equals(dry.recorder.spans())
    layers = real.method.learner.layers
    assert layers["random-bert"] == (1, 2)  # of two layers, there is no other choice
    if by == "interval":
        assert layers["random-llama"] == (2, 3)


@pytest.mark.parametrize("kind", ["centralised", "upload-raw-text"])
def test_where_the_server_has_the_texts_it_chooses_for_itself(kind, simulate, spans):
    sim = simulate(
        method={"kind": kind, "taps": {"layers": 1}, "backbone": "random-llama"}, **WORLD
    )
    assert [span["kind"] for span in spans(sim, actor="server")[:2]] == ["forward", "train"]
    targets = np.eye(3)[sim.task.labels[sim.task.public]]
    chosen = most_worth(public_vectors(sim, "random-llama"), targets, 1, [0])
    assert sim.method.findings()["taps"] == {"random-llama": chosen}
    assert not spans(sim, "download")


def test_a_network_a_backbone_has_as_many_layers_as_a_shared_one(simulate):
    shared, single = (
        simulate(method=method("importance", kind=kind), **WORLD)
        for kind in ("fed-mobillm", "single-side-network")
    )
    assert single.method.learner.layers == shared.method.learner.layers
    assert single.recorder.uplink_bytes == shared.recorder.uplink_bytes


def test_predicts_afterwards_what_the_run_reports(scenario_file, tmp_path):
    path = scenario_file(**{**WORLD, "method": method({"layers": 1})})
    done = run_scenario(load(str(path), Scenario), tmp_path / "run", path.parent, figures=False)
    predictor = SidePredictor.load(tmp_path / "run", "random-bert")
    task = Simulation(load(str(path), Scenario), path.parent, dry=True).task
    labels, _ = predictor.predict([task.texts.texts[i] for i in task.test])
    right = [task.class_names.index(label) for label in labels] == task.labels[task.test]
    assert np.mean(right) == done.summary["by_backbone"]["random-bert"]
    assert set(done.summary["taps"]) == {"random-bert", "random-llama"}


ALONE = {"fleet": MIXED[:1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": {"layers": 3}}, "3 sampled layers, but"),
        ({"taps": {"layers": 0}}, "0 blocks cannot be cut"),
        ({"taps": {"bytes_a_text": "100 B"}}, "taps: 100 B hold no layer"),
        ({"taps": {"layers": 1, "align": "cka"}, **ALONE}, "here is one alone"),
        ({"taps": {"layers": 1, "align": "cka"}, "kind": "single-side-network"}, "one alone"),
        (
            {
                "taps": {"bytes_a_text": "9 kB"},
                "kind": "pae-mobillm",
                "shortcut": "matrix",
                "replay": None,
                "wire": "int8",
            },
            "say how many `layers`",
        ),
        ({"taps": "importance", "task": {**TASK, "public": 0}}, "`task.public: N`"),
    ],
)
def test_what_cannot_be_chosen_is_refused(changes, message, scenario_file):
    world = {**WORLD, **{key: changes.pop(key) for key in ("task", "fleet") if key in changes}}
    given = {**method("interval"), **changes}
    path = scenario_file(**{**world, "method": {k: v for k, v in given.items() if v is not None}})
    scenario = load(str(path), Scenario)
    with pytest.raises(CannotBuild, match=message), building(scenario):
        Simulation(scenario, path.parent, dry=True)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"taps": {"layers": 1, "bytes_a_text": "1 kB"}}, "method.taps.bytes_a_text"),
        ({"taps": {"layer": 1}}, "method.taps"),
        ({"taps": {"by": "worth"}}, "method.taps"),
        ({"taps": "worth"}, "method.taps"),
        ({"taps": "importance", "kind": "mobillm", "server_batch": None}, "method.taps"),
        ({"taps": "importance", "kind": "local-lst", "server_batch": None}, "method.taps"),
    ],
)
def test_a_setting_that_nothing_reads_is_named(changes, where, scenario_file):
    given = {**method("interval"), **changes}
    if given["kind"] in ("mobillm", "local-lst"):
        given.pop("replay")
    path = scenario_file(**{**WORLD, "method": {k: v for k, v in given.items() if v is not None}})
    with pytest.raises(ScenarioError) as error:
        load(str(path), Scenario, [], [], lambda scenario: problems(scenario, path.parent))
    assert all(where in line for line in error.value.problems), error.value.problems


def test_without_public_texts_check_names_the_setting(scenario_file):
    path = scenario_file(**{**WORLD, "task": {**TASK, "public": 0}, "method": method("importance")})
    with pytest.raises(ScenarioError, match=r"method.taps: .*`task.public: N`"):
        load(str(path), Scenario, [], [], problems)


def test_a_rule_counts_what_is_charged(simulate):
    """Of an architecture to cost by, the layers and the widths."""
    world = {**WORLD, "fleet": MIXED[:1], "cost_as": {"backbone": "bert-base"}}
    sim = simulate(method=method({"bytes_a_text": "6.2 kB"}), dry=True, **world)
    assert sim.method.shape.vectors == 4  # of 1536 B each
    rule = dataclasses.replace(sim.method.tap_rule, layers=None)
    cost = choosing(rule, 3, {"random-bert": 12}, {"random-bert": 768}, 20, 3)
    assert cost.flop in set(sim.recorder.spans().column("flop").to_pylist())
