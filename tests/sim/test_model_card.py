"""The card beside a trained model: what the hub reads of it, the scenario, and code that runs."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from sim.results.run import open_run

METHODS = {
    "fed-mobillm": {"kind": "fed-mobillm"},
    "fedavg-lora": {"kind": "fedavg-lora", "rounds": 1, "participation": 1.0},
    "local-lora": {"kind": "local-lora", "rounds": 1},
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_trained_model_has_a_card(kind, scenario_file, tmp_path, mobifleet, monkeypatch):
    shown = mobifleet("run", scenario_file(method=METHODS[kind]), "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    done, model = open_run(tmp_path / "out"), tmp_path / "out" / "model"
    shared = (tmp_path / "out" / "manifest.json").stat().st_mode & 0o666
    assert {f.stat().st_mode & 0o666 for f in model.rglob("*") if f.is_file()} == {shared}
    card = ModelCard.load(model / "README.md")
    assert kind in card.data.tags
    found = {(r.metric_name, r.metric_value) for r in card.data.eval_results}
    scores = done.summary["by_backbone"]
    assert found == {(f"accuracy of {name}", v) for name, v in scores.items() if v is not None}
    scenario = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    assert scenario == done.manifest["scenario"]
    assert done.manifest["scenario_digest"] in card.text and done.summary["digest"] in card.text
    uses = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(uses) == {"local-lora": 0}.get(kind, 1)
    if kind == "fed-mobillm":
        monkeypatch.chdir(model)
        names = {}
        exec(uses[0], names)  # what the card says is to be run
        assert len(names["labels"]) == 1


def test_a_card_names_a_packaged_data_set_as_text(scenario_file, tmp_path, mobifleet):
    task = {"dataset": "hutto-films", "train": 40, "validation": 0, "test": 20, "max_tokens": 16}
    shown = mobifleet("run", scenario_file(task=task), "--out", tmp_path / "out")
    if "fetch" in shown.err:
        pytest.skip(shown.err)
    assert shown.code == 0, shown.err
    card = ModelCard.load(tmp_path / "out" / "model" / "README.md")
    assert {r.dataset_name for r in card.data.eval_results} == {"hutto-films"}


def test_a_dry_run_has_no_card(scenario_file, tmp_path, mobifleet):
    shown = mobifleet("run", scenario_file(), "--dry", "--out", tmp_path / "out")
    assert shown.code == 0 and not (tmp_path / "out" / "model").exists()
