"""Settings that were called otherwise once: the old name says the same, and a remark says so."""

import json

import pytest

from sim.results.run import open_run
from sim.scenario.file import ScenarioError, changed, digest, load, resolved
from sim.scenario.registry import MethodError, register
from sim.scenario.schema import Scenario

METHOD = {"kind": "fed-mobillm", "replay": 5, "server_batch": 8, "device_batch": 4}
OLD = {"eager": 0.5, "deliver": False}
NOW = {"update_share_on_arrival": 0.5, "ship_side_network": False}
REMARKS = [
    "method.eager is called update_share_on_arrival now: say that",
    "method.deliver is called ship_side_network now: say that",
]


def words(remarks) -> list[str]:
    return [text for text in remarks if "is called" in text]


def test_an_old_name_says_the_same(simulate, mark):
    old, now = (simulate(method=METHOD | names) for names in (OLD, NOW))
    assert words(old.remarks) == REMARKS and not words(now.remarks)
    assert resolved(old.scenario) == resolved(now.scenario)
    assert resolved(now.scenario)["method"].items() >= NOW.items()
    assert mark(old) == mark(now)
    usual = simulate(method=METHOD)
    assert mark(usual) != mark(now)
    kinds = [{span["kind"] for span in sim.recorder.spans().to_pylist()} for sim in (usual, now)]
    assert ["download" in some for some in kinds] == [True, False]  # and it is heeded


def test_a_scenario_has_the_digest_that_it_had_under_the_old_names(scenario_file):
    """So a run of before is still this scenario's, for `--resume` and `compare`."""
    scenario = load(scenario_file(method=METHOD | NOW), Scenario)
    before = resolved(scenario)
    settings = before["method"]
    for (old, value), now in zip(OLD.items(), NOW, strict=True):
        assert settings.pop(now) == value
        settings[old] = value
    assert "update_share_on_arrival" not in json.dumps(before)
    assert digest(before) == digest(resolved(scenario))
    assert resolved(Scenario.model_validate(before)) == resolved(scenario)


def test_check_and_run_say_what_it_is_called_now(mobifleet, scenario_file, tmp_path):
    path = scenario_file(method=METHOD | OLD)
    assert words(mobifleet("check", path).err.splitlines()) == [f"note: {r}" for r in REMARKS]
    run = mobifleet("run", path, "--dry", "--no-figures", "--out", tmp_path / "run")
    assert run.code == 0
    done = open_run(tmp_path / "run")
    assert words(done.summary["remarks"]) == REMARKS
    assert done.manifest["scenario"]["method"].items() >= NOW.items()


def test_an_unfinished_run_of_before_goes_on(mobifleet, scenario_file, tmp_path):
    path = scenario_file(method=METHOD | NOW)
    mobifleet("run", path, "--dry", "--no-figures", "--out", tmp_path / "run")
    file = tmp_path / "run" / "manifest.json"
    text = file.read_text(encoding="utf-8")
    for old, now in zip(OLD, NOW, strict=True):
        text = text.replace(now, old)
    file.write_text(text.replace('"finished"', '"running"'), encoding="utf-8")
    again = mobifleet("run", path, "--dry", "--no-figures", "--resume", "--out", tmp_path / "run")
    assert again.code == 0, again.err
    assert open_run(tmp_path / "run").manifest["status"] == "finished"


@pytest.mark.parametrize("given", [NOW, OLD])
@pytest.mark.parametrize("name", ["eager", "update_share_on_arrival"])
def test_an_override_may_say_either(given, name, scenario_file):
    scenario = load(scenario_file(method=METHOD | given), Scenario, [f"method.{name}=0.75"])
    assert scenario.method.update_share_on_arrival == 0.75
    assert not scenario.method.ship_side_network
    assert changed(scenario, f"method.{name}", 0.125).method.update_share_on_arrival == 0.125


@pytest.mark.parametrize("above", [NOW, OLD])
@pytest.mark.parametrize("name", ["eager", "update_share_on_arrival"])
def test_a_file_that_extends_another_may_say_either(above, name, scenario_file, tmp_path):
    scenario_file(method=METHOD | above)
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: tiny.yaml\nmethod: {{{name}: 0.75}}\n")
    scenario = load(child, Scenario)
    assert scenario.method.update_share_on_arrival == 0.75
    assert any("method.eager" in text for text in scenario.renamed()) == (name == "eager")


def test_both_at_once_are_refused_at_the_line_of_the_old_one(scenario_file):
    path = scenario_file(method=METHOD | NOW | OLD)
    line = 1 + path.read_text().splitlines().index("  eager: 0.5")
    with pytest.raises(ScenarioError) as error:
        load(path, Scenario)
    assert (
        str(error.value)
        .splitlines()[0]
        .startswith(
            f"{path}:{line}:3: method.eager: is the old name of update_share_on_arrival, which is "
            "given, too: leave one of them out"
        )
    )
    assert len(error.value.problems) == 2


def test_a_wrong_value_is_found_where_it_stands(scenario_file):
    path = scenario_file(method=METHOD | {"eager": 1.5})
    line = 1 + path.read_text().splitlines().index("  eager: 1.5")
    with pytest.raises(ScenarioError, match=f":{line}:10: .*update_share_on_arrival: .*at most 1"):
        load(path, Scenario)


@pytest.mark.parametrize("name", ["eager", "update_share_on_arrival"])
def test_only_where_it_is_read(name, scenario_file):
    with pytest.raises(ScenarioError, match=f"{name}: is for upload-raw-text alone"):
        load(scenario_file(method={"kind": "centralised", name: 0.5}), Scenario)
    with pytest.raises(ScenarioError, match=f"{name}: unknown key"):
        load(scenario_file(method={"kind": "pae-mobillm", name: 0.5}), Scenario)


def test_a_comparison_may_say_either(scenario_file):
    compare = {
        "methods": {"ours": METHOD | OLD, "late": METHOD | {"update_share_on_arrival": 0}},
        "tune": {"validation": 5, "dials": {"late": {"eager": [0, 1]}}},
        "target": 0.5,
    }
    scenario = load(scenario_file(compare=compare), Scenario)
    assert scenario.compare.methods["ours"].update_share_on_arrival == 0.5
    assert [text.split()[0] for text in scenario.renamed()] == [
        "compare.methods.ours.eager",
        "compare.methods.ours.deliver",
        "compare.tune.dials.late.eager",
    ]


def test_a_method_of_ones_own_that_sets_another_default_by_the_old_name_is_refused():
    from sim.methods.side_tuning.fed_mobillm import FedMobiLLM

    class Quiet(FedMobiLLM):
        """Nothing would read its `deliver`."""

        class Config(FedMobiLLM.Config):
            """Sets a default."""

            deliver: bool = False

    with pytest.raises(MethodError, match=r"Quiet.Config.deliver is called ship_side_network now"):
        register(Quiet, "quiet-by-an-old-name")
