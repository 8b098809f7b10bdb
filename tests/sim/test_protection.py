"""Protected uploads on the clock: what the server gets, what it can do with it, and the price."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from learning.attacks.outcome import AttackOutcome
from learning.differential_privacy import noise_for
from learning.side import full_activations
from learning.side.activations import decode
from learning.side.inference import InferenceError, SidePredictor
from learning.side.protection import FILE, sensitivity
from sim.api import run as run_scenario
from sim.kernel.learned import with_values
from sim.privacy.attacks import labels
from sim.privacy.measures import measures_of
from sim.privacy.report import report
from sim.privacy.uploads import uploads_of
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario
from sim.simulation import Simulation

METHOD = {
    "kind": "fed-mobillm",
    "replay": 5,
    "update_share_on_arrival": 1,
    "server_batch": 8,
    "device_batch": 4,
}
TASK = {
    "dataset": {"path": "texts.csv"},
    "train": 60,
    "test": 30,
    "max_tokens": 16,
    "public": 25,
}
ALIKE = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
ALL = {"codes": 5, "offset": 4, "axes": 8, "noise": 0.05, "rotate": True}


def protected(**protection) -> dict:
    return {"task": TASK, "method": {**METHOD, "protection": protection}}


def test_the_price_of_codes_is_nothing_and_a_protected_run_learns(simulate):
    open_ = simulate(task=TASK, method=METHOD)
    coded = simulate(**protected())
    assert coded.score == pytest.approx(open_.score, abs=0.1)
    assert simulate(**protected(**ALL)).score > 0.6  # three classes
    assert coded.recorder.uplink_bytes == open_.recorder.uplink_bytes


def test_bytes_and_flop_are_charged(simulate):
    open_, coded = (
        simulate(dry=True, **w) for w in ({"task": TASK, "method": METHOD}, protected())
    )
    turned = simulate(dry=True, **protected(rotate=True))
    axes = simulate(dry=True, **protected(offset=2, axes=8))
    wide = simulate(dry=True, **protected(codes=10))
    shape = open_.method.shape
    flop = [sum(s.recorder.spans()["flop"].to_pylist()) for s in (coded, turned)]
    # every vector of 60 texts meets a matrix; who trains on the server is charged the same
    width = next(iter(shape.backbone_widths.values()))
    assert flop[1] - flop[0] == pytest.approx(60 * 2 * shape.vectors * width**2)
    down = axes.recorder.downlink_bytes - coded.recorder.downlink_bytes
    assert down == 3 * 2 * (8 + 2) * shape.vectors * width
    assert wide.recorder.uplink_bytes - coded.recorder.uplink_bytes >= 60 * 2 * (10 - 3)


def test_what_the_server_holds_is_useless_without_the_secret(scenario_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_scenario(str(scenario_file(**protected(**ALL))), out=tmp_path / "run", figures=False)
    texts = [line.split(",") for line in (tmp_path / "texts.csv").read_text().splitlines()[1:]]
    words, truth = [t[0] for t in texts], [t[-1] for t in texts]
    own = SidePredictor.load(run.path, "random-bert")
    said, _ = own.predict(words)
    assert np.mean(np.array(said) == np.array(truth)) > 0.6
    secret = run.path / "model" / FILE
    other = type(own.secret)(own.secret.codes[::-1][[1, 0, 2]], {}, {})
    without, _ = SidePredictor(own.spec, own.network, own.notes, other).predict(words)
    assert np.mean(np.array(without) == np.array(truth)) < 0.6
    secret.unlink()
    with pytest.raises(InferenceError, match="without the devices' secret"):
        SidePredictor.load(run.path, "random-bert")


def test_a_text_that_is_sent_twice_carries_the_same_noise(scenario_file):
    method = {
        "kind": "pae-mobillm",
        "cache": False,
        "epochs": 2,
        "side_network": {"skip": "none"},
        "protection": {"noise": 0.5, "activation_noise": 0.5},
    }
    path = scenario_file(task=TASK, method=method)
    sim = Simulation(load(str(path), Scenario, (), [], problems), path.parent)
    made = []
    for device in sim.devices:
        make = device.payload
        vars(device)["payload"] = lambda *what, make=make: made.append(make(*what)) or made[-1]
    sim.run()
    data = {}
    for payload in made:
        data.setdefault(tuple(payload.samples), set()).add(with_values(payload.data))
    assert len(made) == 2 * len(data) and all(len(same) == 1 for same in data.values())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"codes": 2}, "2 numbers cannot tell 3 classes apart"),
        ({"epsilon": 0.01}, "protection.epsilon: 0.01 at delta 1e-05 is less than can be counted"),
        ({"offset": 1, "axes": 25}, "25 axes need more than 25 public texts"),
    ],
)
def test_what_cannot_be_protected_so_is_told(simulate, changes, what):
    with pytest.raises(ValueError, match=what):
        simulate(dry=True, **protected(**changes))


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({**METHOD, "loss": "cross-entropy", "protection": {}}, "sends the labels themselves"),
        (
            {"kind": "pae-mobillm", "shortcut": "matrix", "protection": {"offset": 1}},
            "protection.offset: is for single vectors",
        ),
        (
            {"kind": "pae-mobillm", "shortcut": "matrix", "protection": {"decoys": 1}},
            "protection.decoys: is for single vectors",
        ),
        ({**METHOD, "protection": {"epsilon": 8, "offset": 1}}, "leave one of them out"),
        ({**METHOD, "protection": {"epsilon": 8, "decoys": 1}}, "are made of texts' vectors, too"),
        ({**METHOD, "protection": {"delta": 1e-6}}, "is for an `epsilon` alone"),
        ({**METHOD, "protection": {"decoy_classes": 2}}, "is for `decoys` alone"),
        ({**METHOD, "protection": {"axes": 3}}, "is for an `offset` alone"),
        ({"kind": "mobillm", "protection": {"noise": 1}}, "labels go as they are here"),
    ],
)
def test_settings_that_do_not_go_together_are_told_at_their_line(scenario_file, method, what):
    with pytest.raises(ScenarioError, match=what):
        load(str(scenario_file(task=TASK, method=method)), Scenario, (), [], problems)


def test_one_seed_gives_one_digest(simulate):
    marks = [
        sim.recorder.digest(sim.method.learner.digest())
        for sim in (simulate(workers=n, **protected(**ALL)) for n in (1, 2))
    ]
    assert marks[0] == marks[1]


def test_the_privacy_command_tells_open_from_protected(scenario_file, tmp_path, mobifleet):
    found = {}
    for name, changes in (("open", {}), ("shut", {"protection": ALL})):
        path = scenario_file(task=TASK, method={**METHOD, **changes})
        run_scenario(str(path), out=tmp_path / name, figures=False)
        said = mobifleet("privacy", tmp_path / name)
        assert said.code == 0, said.err
        assert "What the server saw" in said.out and "activation" in said.out
        rows = json.loads((tmp_path / name / "privacy.json").read_text())["outcomes"]
        found[name] = {(row["attack"], row["what"]): row["success"] for row in rows}
    grouping = "grouping (adjusted Rand index)"
    assert found["open"]["largest component", "labels"] == 1.0
    assert found["open"]["clustering", grouping] == 1.0
    assert ("largest component", "labels") not in found["shut"]  # codes are of another length
    assert found["shut"]["clustering", grouping] < 0.5
    told = "decoding by a device's secret", "labels, with the secret"
    assert found["shut"][told] > 0.9 and told not in found["open"]
    assert uploads_of(tmp_path / "open", tmp_path).is_same


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "single-side-network", **{k: v for k, v in METHOD.items() if k != "kind"}},
        {**METHOD, "loss": "cross-entropy"},
        {"kind": "pae-mobillm", "wire": "int4"},
    ],
)
def test_labels_are_read_off_every_method_that_sends_differences_or_labels(
    scenario_file, tmp_path, method
):
    run = run_scenario(str(scenario_file(task=TASK, method=method)), out=tmp_path / "run")
    [first, *_] = labels(uploads_of(run, tmp_path))
    assert first.attack == "largest component" and first.success == 1.0


def test_what_cannot_be_attacked_is_said_before_it_is_simulated_again(
    scenario_file, tmp_path, mobifleet, monkeypatch
):
    path = scenario_file(fleet=ALIKE, method={"kind": "local-lora", "rounds": 1})
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    monkeypatch.setattr("sim.privacy.report.uploads_of", lambda *_: pytest.fail("simulated"))
    said = mobifleet("privacy", run.path)
    assert said.code == 2 and "sends nothing to a server" in said.err


@pytest.mark.parametrize(
    ("method", "found", "remark"),
    [
        (
            {"kind": "mobillm", "epochs": 1},
            {("sent as they are", "labels"): 1.0},
            None,
        ),
        (
            {"kind": "pae-mobillm", "shortcut": "matrix", "epochs": 1},
            {("largest component", "labels"): 1.0},
            None,
        ),
        (
            {"kind": "centralised"},
            {("sent as they are", "labels"): 1.0, ("sent as they are", "text in top 1"): 1.0},
            None,
        ),
        (
            {"kind": "upload-raw-text"},
            {("sent as they are", "labels"): 1.0, ("sent as they are", "tokens, F1"): 1.0},
            None,
        ),
        (
            {"kind": "splitfed-v1", "rounds": 1},
            {("sent as they are", "labels"): 1.0},
            None,
        ),
        (
            {"kind": "fedavg-full", "rounds": 2, "participation": 1, "learning_rate": 1e-3},
            {("rows of the table of embeddings that moved", "tokens, F1"): 1.0},
            None,
        ),
        (
            {"kind": "fedbuff", "answers": 6, "buffer": 2, "peft": "full"},
            {("rows of the table of embeddings that moved", "tokens, F1"): 1.0},
            None,
        ),
        ({"kind": "fedavg-lora", "rounds": 2, "participation": 1}, {}, "no table of embeddings"),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else None,
)
def test_what_other_methods_send_is_attacked_as_it_allows(
    method, found, remark, scenario_file, tmp_path
):
    path = scenario_file(fleet=ALIKE, method=method)
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    got = report(run, folder=tmp_path)
    success = {(one.attack, one.what): one.success for one in got.outcomes}
    assert success.items() >= found.items()
    assert remark is None or any(remark in said for said in got.remarks)
    assert ("loss", "AUC") in success
    if method["kind"].startswith("fed"):
        [counted] = [one for one in got.outcomes if one.what == "labels of a batch"]
        assert counted.success > counted.chance  # three classes, unevenly dealt


def test_public_texts_at_the_server_are_no_texts_of_devices(scenario_file, tmp_path):
    method = {**METHOD, "backbone_prediction": "public-head"}
    run = run_scenario(str(scenario_file(task=TASK, method=method)), out=tmp_path / "run")
    assert {r["kind"] for r in run.ledger().to_pylist() if r["way"] == "start"} == {"text", "label"}
    found = report(run, folder=tmp_path)
    assert not [one for one in found.outcomes if one.attack == "sent as they are"]


def test_the_numbers_of_a_table_are_the_most_that_any_attack_got():
    def got(attack, what, success, known=0) -> AttackOutcome:
        return AttackOutcome(attack, what, success, 0, 1, 0.25, 10, known)

    found = measures_of(
        [
            got("a", "labels", 0.3),
            got("b", "labels", 0.6),
            got("c", "labels", 0.9, known=10),
            got("d", "AUC", 0.7),
            got("e", "advantage", 0.99),
        ]
    )
    assert found == {
        **{"privacy.labels": 0.6, "privacy.labels_chance": 0.25},
        **{"privacy.labels_known": 0.9, "privacy.labels_known_chance": 0.25},
        **{"privacy.members": 0.7, "privacy.members_chance": 0.25},
    }


def test_what_never_arrived_is_not_attacked(scenario_file, tmp_path, mobifleet):
    path = scenario_file(task=TASK, method=METHOD, dropout={"times": ["40 ms", None, None]})
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    arrived = sum(len(part.samples) for part in uploads_of(run, tmp_path).vectors().values())
    [records] = [r["records"] for r in run.ledger().to_pylist() if r["kind"] == "sample number"]
    assert arrived == records < 60
    nothing = scenario_file(task=TASK, method=METHOD, stop={"horizon": "1 ms"})
    run = run_scenario(str(nothing), out=tmp_path / "nothing", figures=False)
    said = mobifleet("privacy", run.path)
    assert said.code == 0 and "nothing usable arrived" in said.out


def test_a_run_from_before_the_ledger_is_still_attacked(scenario_file, tmp_path, mobifleet):
    path = scenario_file(task=TASK, method=METHOD)
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    (run.path / "ledger.parquet").unlink()
    said = mobifleet("privacy", run.path, "--attacks", "labels")
    assert said.code == 0 and "before there was a ledger" in said.out
    assert "largest component" in " ".join(said.out.split())


def test_an_attack_with_too_little_to_go_on_is_a_remark(
    scenario_file, tmp_path, mobifleet, monkeypatch
):
    run = run_scenario(str(scenario_file(task=TASK, method=METHOD)), out=tmp_path / "run")

    def too_little(*_):
        raise ValueError("too few known labels")

    monkeypatch.setattr("learning.attacks.label_recovery.by_known_labels", too_little)
    said = mobifleet("privacy", run.path, "--attacks", "labels")
    assert said.code == 0 and "too few known labels" in said.out
    assert "largest component" in " ".join(said.out.split())


def test_layers_that_texts_choose_are_in_the_ledger_of_separate_networks_too(simulate):
    method = {"kind": "single-side-network", "taps": "importance", "replay": 5, "server_batch": 8}
    sim = simulate(task=TASK, method=method)
    rows = sim.ledger.table({"server": 0, "devices": 0}).to_pylist()
    assert {r["layer"] for r in rows if r["kind"] == "activation"} <= {0, 1, 2}


def test_the_file_that_is_shipped_does_not_tell_the_secret(scenario_file, tmp_path):
    run = run_scenario(str(scenario_file(**protected(**ALL))), out=tmp_path / "run", figures=False)
    with safe_open(run.path / "model" / "side_network.safetensors", "np") as file:
        assert file.metadata()["seed"] == "" and file.metadata()["is_protected"] == "1"


def by_labels(run, folder) -> dict:
    return {(o.attack, o.what): o.success for o in labels(uploads_of(run, folder))}


@pytest.mark.parametrize("none", [0, 2])
def test_decoys_are_paid_for_learned_from_and_hide_how_many_there_are(none, simulate):
    open_ = simulate(**protected())
    more = {"decoys": 0.5, "decoy_classes": none} if none else {"decoys": 0.5}
    sim = simulate(**protected(**more))
    dry = simulate(dry=True, **protected(**more))
    assert sim.recorder.spans().equals(dry.recorder.spans())
    assert sim.method.records == 90 and open_.method.records == 60
    shape = sim.method.shape
    assert shape.classes == 3 + none
    # a payload of four texts has two decoys: vectors, targets and a number each
    extra = 30 * (shape.vectors * 64 * 2 + 2 * shape.classes + 4) + 60 * 2 * none
    assert sim.recorder.uplink_bytes - open_.recorder.uplink_bytes == pytest.approx(extra, abs=200)
    assert sim.score > 0.6  # three classes


def test_a_server_that_counts_groups_is_led_astray_by_decoys(scenario_file, tmp_path):
    skewed = {**TASK, "partition": {"kind": "dirichlet", "alpha": 0.4, "min_size": 6}}
    found = {}
    for name, protection in (("codes", {}), ("decoys", {"decoys": 2, "decoy_classes": 3})):
        method = {**METHOD, "device_batch": 5, "protection": protection}
        path = scenario_file(task=skewed, method=method)
        run = run_scenario(str(path), out=tmp_path / name, figures=False)
        found[name] = by_labels(run, tmp_path)
        assert uploads_of(run, tmp_path).is_same
    named, what = "clustering, named by size", "labels"
    without = f"{named}, without what looks like decoys"
    assert found["decoys"][named, what] < found["codes"][named, what]
    assert found["decoys"][without, what] < found["codes"][named, what]
    grouped = ("clustering", "grouping (adjusted Rand index)")
    assert found["decoys"][grouped] == found["codes"][grouped] == 1.0  # and no more than that


def test_the_secret_with_decoys_predicts_from_its_file(scenario_file, tmp_path, simulate):
    more = protected(decoys=0.5, decoy_classes=2, rotate=True, noise=0.1)
    run = run_scenario(str(scenario_file(**more)), out=tmp_path / "run", figures=False)
    task = simulate(dry=True, **more).task
    own = [task.texts.texts[i] for i in task.test]
    names = np.array(task.class_names)[task.labels[task.test]]
    for backbone, score in run.summary["by_backbone"].items():
        said, _ = SidePredictor.load(run.path, backbone).predict(own)
        assert np.mean(np.array(said) == names) == pytest.approx(score)


def test_no_privacy_of_a_text_is_stated_where_others_carry_it(simulate):
    method = {**METHOD, "backbone_prediction": "own-head", "protection": {"epsilon": 8}}
    with pytest.raises(ValueError, match="a text's label moves the uploads of others"):
        simulate(dry=True, task=TASK, method=method)


def test_mobillm_with_rotated_matrices_predicts_from_its_file(scenario_file, tmp_path, simulate):
    method = {"kind": "mobillm", "epochs": 3, "protection": {"rotate": True}}
    run = run_scenario(str(scenario_file(task=TASK, method=method)), out=tmp_path / "run")
    task = simulate(dry=True, task=TASK, method=method).task
    own = [task.texts.texts[i] for i in task.test]
    names = np.array(task.class_names)[task.labels[task.test]]
    for backbone, score in run.summary["by_backbone"].items():
        said, _ = SidePredictor.load(run.path, backbone).predict(own)
        assert np.mean(np.array(said) == names) == pytest.approx(score)


def test_noise_of_a_stated_privacy_is_what_it_should_be(simulate, payloads):
    sim = simulate(**protected(epsilon=50, delta=1e-4))
    assert sim.method.findings()["differential_privacy"] == {"epsilon": 50, "delta": 1e-4}
    expected = noise_for(50, 1e-4) * sensitivity(sim.method.shape.vectors)
    learner, gaps = sim.method.learner, []
    for payload in payloads:
        sent = decode(with_values(payload.data))
        whole = learner.forward(payload.sender.backbone, payload.samples)
        gaps.append((sent.values - learner.secret.rotated(whole)).ravel())
    assert np.std(np.concatenate(gaps)) == pytest.approx(expected, rel=0.03)
    lengths = np.linalg.norm(learner.secret.rotated(whole), axis=-1)
    assert lengths == pytest.approx(np.ones_like(lengths), abs=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "mobillm", "epochs": 2},
        {"kind": "pae-mobillm", "shortcut": "matrix", "epochs": 2, "server_batch": 8},
    ],
    ids=lambda method: method["kind"],
)
def test_matrices_are_rotated_and_noised_and_still_learned_from(method, simulate, payloads, mark):
    turned = {**method, "protection": {"rotate": True, "activation_noise": 0.1}}
    open_ = simulate(
        task=TASK, method={**method, "protection": {}} if "pae" in method["kind"] else method
    )
    size = sum(p.nbytes for p in payloads)
    payloads.clear()
    sim = simulate(task=TASK, method=turned)
    assert sum(p.nbytes for p in payloads) == size
    assert sim.score > open_.score - 0.25
    wire = sim.method.config.wire
    name = payloads[0].sender.backbone
    sent = full_activations.decode(with_values(payloads[0].data), 64, wire)
    whole, lengths = sim.method.learner.states(name, payloads[0].samples)
    assert np.array_equal(lengths, sent.lengths)
    assert np.abs(sent.values - whole).mean() > 0.5 * np.abs(whole).mean()  # it is turned
    back = sim.method.learner.secret.rotated(whole.transpose(1, 0, 2)).transpose(1, 0, 2)
    size_LN1 = np.sqrt((whole**2).mean(axis=-1, keepdims=True))
    assert np.std((sent.values - back) / size_LN1) == pytest.approx(0.1, rel=0.1)
    cost = [s.method.forward(s.devices[0], np.arange(4)).cost.flop for s in (open_, sim)]
    assert cost[1] > cost[0]
    assert mark(simulate(workers=2, task=TASK, method=turned)) == mark(sim)
