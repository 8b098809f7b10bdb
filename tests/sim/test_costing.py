"""Where a scenario's own backbones lie."""

import json

import pytest

from learning.backbones.catalogue import BackboneError, config_of, find
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.world.costing import costing_for


def test_an_own_backbones_directory_is_relative_to_the_scenarios_folder(scenario_file, tmp_path):
    from devices.fleet import Member

    path = scenario_file(backbones={"mine": {"path": "models/mine"}})
    scenario = load(path, Scenario)
    members = [Member("device-0000", "jetson-tx2", "simple", "mine", "lte", None, None, "group-0")]
    with pytest.raises(BackboneError, match=r"no model in .*models/mine"):
        costing_for(scenario, members, tmp_path / "elsewhere")
    folder = tmp_path / "study" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(find("random-bert"))))
    costing = costing_for(scenario, members, tmp_path / "study")
    assert costing.learned["mine"].source == str(folder)
    assert costing.architectures["mine"].layers == 2
