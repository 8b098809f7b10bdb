"""At which precision the side network goes to the devices, what that costs in accuracy, and what
asking the server would cost instead.
"""

import json
from types import SimpleNamespace

import pytest

from learning.side.config import SideNetworkConfig, shape_for
from learning.side.delivery import encode
from sim.methods.side_tuning.shipping import Shipping, at_server, prediction_bytes
from sim.results.run import open_run
from sim.results.summary import device_table, summary
from sim.scenario.file import ScenarioError, changed, load, resolved
from sim.scenario.schema import Scenario
from sim.simulation import Simulation

METHOD = {"kind": "fed-mobillm", "replay": 5, "server_batch": 8, "device_batch": 4}
KINDS = {
    "fed-mobillm": METHOD,
    "single-side-network": METHOD | {"kind": "single-side-network"},
    "pae-mobillm": {"kind": "pae-mobillm", "epochs": 2, "server_batch": 8},
    "pae-mobillm of 4 bits": {
        "kind": "pae-mobillm",
        "epochs": 2,
        "shortcut": "matrix",
        "wire": "int4",
    },
    "mobillm": {"kind": "mobillm", "epochs": 2},
}


def ships(scenario_file, given):
    return load(scenario_file(method=METHOD | {"ship_side_network": given}), Scenario)


def test_true_is_the_usual_way_and_false_is_false(scenario_file):
    usual = ships(scenario_file, True)
    assert resolved(usual) == resolved(load(scenario_file(method=METHOD), Scenario))
    assert usual.method.ship_side_network == Shipping()
    assert ships(scenario_file, False).method.ship_side_network is False
    finer = changed(usual, "method.ship_side_network.precision", "float32")
    assert finer.method.ship_side_network == Shipping(precision="float32")
    again = Scenario.model_validate(resolved(finer))
    assert resolved(again) == resolved(finer)


def test_a_wrong_precision_is_told_with_those_there_are(scenario_file):
    with pytest.raises(ScenarioError, match=r"precision: .*float32.*float16.*int8"):
        ships(scenario_file, {"precision": "int4"})
    with pytest.raises(ScenarioError, match="precison: unknown key"):
        ships(scenario_file, {"precison": "int8"})


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_charged_is_what_is_sent_and_what_arrives_is_measured(kind, precision, simulate):
    sim = simulate(method=KINDS[kind] | {"ship_side_network": {"precision": precision}})
    rows = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "download"]
    learner = sim.method.learner
    for device in sim.devices:
        mine = learner._of[device.backbone] if kind == "single-side-network" else learner
        sent = encode(mine.tuning.value.averaged, device.backbone, precision)
        assert [s["nbytes"] for s in rows if s["actor"] == device.id] == [len(sent)]
    found = summary(sim, "", device_table(sim), 0.0)["delivered"]
    assert found["precision"] == precision
    assert found["bytes"] == sum(s["nbytes"] for s in rows) / len(sim.devices)
    assert found["by_backbone"].keys() == sim.scores.keys()
    if precision == "float32":
        assert found["final"] == pytest.approx(sim.score)
        assert found["by_backbone"] == {name: one["value"] for name, one in sim.scores.items()}


def test_a_run_keeps_it_and_a_dry_one_or_one_that_ships_nothing_does_not(
    mobifleet, scenario_file, tmp_path
):
    for name, more, given, there in (
        ("real", [], True, True),
        ("dry", ["--dry"], True, False),
        ("kept", [], False, False),
    ):
        path = scenario_file(method=METHOD | {"ship_side_network": given})
        done = mobifleet("run", path, *more, "--no-figures", "--out", tmp_path / name)
        assert done.code == 0, done.err
        run = open_run(tmp_path / name)
        assert ("delivered" in run.summary) == there
        assert run.summary["prediction_at_server"]["texts_to_break_even"] > 0
        assert json.loads((tmp_path / name / "summary.json").read_text()) == run.summary


def test_a_side_network_that_reached_nobody_has_not_been_delivered(simulate, monkeypatch):
    monkeypatch.setattr(Simulation, "present_devices", lambda self: [])
    sim = simulate()
    assert not [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "download"]
    assert "delivered" not in summary(sim, "", device_table(sim), 0.0)


def test_a_prediction_at_the_server_by_hand():
    """RoBERTa-base, twelve sampled layers and the embedding, two classes: 13 x 768 numbers up at 2
    bytes, two back.
    """
    config = SideNetworkConfig()
    shape = shape_for(config, 12, {"roberta-base": 768}, 2)
    assert prediction_bytes(shape, 768, "float16") == 13 * 768 * 2 + 2 * 2 == 19_972
    assert prediction_bytes(shape, 768, "float32") == 39_944
    assert prediction_bytes(shape, 768, "int8") == 13 * 768 + 13 * 2 + 2 * 2 == 10_014


def test_the_number_of_texts_to_break_even_by_hand():
    """Two devices: 100 and 300 bytes a text, 1,000 and 5,000 bytes delivered: 3,000 / 200."""
    assert at_server([100, 300], [1000, 5000]) == {"bytes_a_text": 200, "texts_to_break_even": 15}


def test_a_method_of_ones_own_may_still_say_true_or_false():
    from sim.methods.side_tuning.shipping import precision_of

    for given in (True, False):
        own = SimpleNamespace(ship_side_network=given)
        assert precision_of(own.ship_side_network) == Shipping().precision
