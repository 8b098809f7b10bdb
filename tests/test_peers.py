"""The workload that other simulators run beside ours is what its page says; no peer is needed."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"
NAMES = ("workload", "plain", "run_all", "mobifleet_")


@pytest.fixture(scope="module")
def peers():
    """Its scripts, which import each other by their plain names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def test_clients_hold_what_is_said(peers):
    workload = peers["workload"]
    ids, labels = workload.words()
    assert ids.shape == (100, 32, 32) and ids.min() >= 0 and ids.max() == 255
    assert all((np.bincount(own, minlength=4) == 8).all() for own in labels)
    assert len({row.tobytes() for row in ids.reshape(-1, 32)}) == 3200
    told = "100 clients with 32 texts of 32 tokens (256 words, 4 classes"
    assert told in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_plain_loop_averages_and_learns(peers):
    workload, instants = peers["workload"], peers["workload"].Rounds()
    before = workload.loss_of(workload.model("tiny"))
    assert before == workload.loss_of(workload.model("tiny"))  # the same start for everybody
    after = peers["plain"].plain_loop("tiny", 2, instants)
    assert workload.loss_of(after) < before
    assert len(instants.cpu) == len(instants.wall) == 3
    assert instants.of([1.0, 3.0, 4.0, 5.0, 6.0]) == {"first_s": 2.0, "ms": 100.0}


def test_ours_is_the_same_workload(peers):
    from learning.backbones.catalogue import find
    from learning.backbones.tokens import tokenise
    from learning.federated.trainable import TrainableClassifier
    from sim.scenario.schema import Scenario

    ours, workload = peers["mobifleet_"], peers["workload"]
    told = ours.scenario("tiny", 3)
    Scenario.model_validate(told)
    data = ours.texts()
    assert len(data) == 3200 + 4 and len(set(data.texts)) == len(data)
    spec = find("tiny", told["backbones"])
    assert set(tokenise(spec, data.texts[:9], None, 32).lengths()) == {32}
    model = TrainableClassifier(spec, "full", 4)
    theirs = sum(p.numel() for p in workload.model("tiny").parameters())
    assert sum(p.numel() for p in model.trainable_parameters().values()) == theirs


def test_the_page_shows_the_results(peers):
    run_all = peers["run_all"]
    found = json.loads(run_all.RESULTS.read_text(encoding="utf-8"))
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert run_all.table(found) in page
    assert f"{found['machine']['processor']}, {found['machine']['cores']} cores" in page
    for peer, runs in found["runs"].items():
        for one in (run["models"][model] for run in runs for model in run["models"]):
            before, after = one["loss"]["before"], one["loss"]["after"]
            assert one["loss"]["plain"] < before, peer
            if one["rounds"] > 10:  # a few rounds may end with a bad one
                assert after is None or after < before, peer
    for peer in {*found["runs"], *found["failed"]} - {"mobifleet"}:
        pins = (FOLDER / "requirements" / f"{peer}.txt").read_text(encoding="utf-8").split()
        assert all("==" in pin for pin in pins) and "torch==2.13.0" in pins
        for run in found["runs"].get(peer, ()):
            assert f"{run['version']}" in pins[0]
