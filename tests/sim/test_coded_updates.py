"""Federated updates by codecs and with differential privacy, on the clock."""

import math

import numpy as np
import pytest
import torch

from learning.codecs import states
from learning.codecs.chain import chain_of
from learning.codecs.numbers import nbytes
from learning.differential_privacy import epsilon_of
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario

EQUAL = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
WORLD = {"fleet": EQUAL, "arrivals": {"kind": "at-once"}, "evaluate_every": 1}
FEDAVG = {"kind": "fedavg-lora", "rounds": 4, "participation": 1.0, "dropout": 0}
FEDBUFF = {"kind": "fedbuff", "answers": 12, "buffer": 3, "concurrency": 1.0, "dropout": 0}


def numbers_of(sim) -> np.ndarray:
    state = sim.method.learner.state.value
    return torch.cat([tensor.flatten() for tensor in state.values()]).numpy()


def size_of(sim) -> int:
    return sim.method.costs["random-bert"].trainable_bytes // 4


@pytest.mark.parametrize("method", [FEDAVG, FEDBUFF], ids=["fedavg", "fedbuff"])
@pytest.mark.parametrize("wire", ["bfloat16", "int8", ["top-0.1", "int8"]], ids=str)
def test_up_go_the_bytes_of_the_codec_and_down_the_model(method, wire, simulate, payloads):
    sim = simulate(method={**method, "wire": wire}, **WORLD)
    size = states.nbytes(size_of(sim), chain_of(wire))
    assert {p.nbytes for p in payloads} == {size}
    assert {len(p.data.value) for p in payloads} == {size}
    assert sim.recorder.uplink_bytes == size * len(payloads)
    dry = simulate(dry=True, method={**method, "wire": wire}, **WORLD)
    assert dry.recorder.spans().equals(sim.recorder.spans())


@pytest.mark.parametrize("method", [FEDAVG, FEDBUFF], ids=["fedavg", "fedbuff"])
def test_float32_of_a_change_is_what_is_trained_but_for_the_last_bits(method, simulate):
    plain, all_of_it = (
        simulate(method={**method, "wire": wire}, **WORLD)
        for wire in ("float32", ["top-0.9999999", "float32"])
    )
    assert np.allclose(numbers_of(plain), numbers_of(all_of_it), atol=1e-5)


@pytest.mark.parametrize("method", [FEDAVG, FEDBUFF], ids=["fedavg", "fedbuff"])
def test_errors_fed_back_bring_the_model_nearer_to_that_of_whole_changes(method, simulate):
    how = {**method, "wire": ["top-0.02", "int8"]}
    whole = numbers_of(simulate(method=method, **WORLD))
    bare = numbers_of(simulate(method=how, **WORLD))
    fed = numbers_of(simulate(method={**how, "error_feedback": True}, **WORLD))
    assert np.linalg.norm(fed - whole) < 0.97 * np.linalg.norm(bare - whole)


@pytest.mark.parametrize("more", [{}, {"error_feedback": True}], ids=["bare", "fed back"])
def test_workers_change_nothing(more, simulate, mark):
    how = {**FEDAVG, "wire": ["top-0.1", "int8"], **more}
    assert mark(simulate(method=how, **WORLD)) == mark(simulate(workers=2, method=how, **WORLD))


def test_a_run_that_is_taken_up_again_keeps_what_was_lost(scenario_file, tmp_path, monkeypatch):
    from sim.api import run

    how = {**FEDAVG, "wire": ["top-0.1", "int8"], "error_feedback": True}
    path = str(scenario_file(method=how, **WORLD))
    whole = run(path, out=tmp_path / "whole", figures=False, quiet=True)
    stopped = []

    def stop_once(self, learner, loss, *more, plain=None):
        stopped.append(1)
        if len(stopped) == 3:
            raise KeyboardInterrupt
        return original(self, learner, loss, *more)

    from sim.simulation import Simulation

    original = Simulation.after_update
    monkeypatch.setattr(Simulation, "after_update", stop_once)
    with pytest.raises(BaseException):  # noqa: B017  # whatever a stopped run raises
        run(path, out=tmp_path / "run", figures=False, quiet=True)
    monkeypatch.setattr(Simulation, "after_update", original)
    again = run(path, out=tmp_path / "run", figures=False, quiet=True, resume=True)
    assert again.summary["digest"] == whole.summary["digest"]


def test_noise_costs_what_it_should_and_is_told(simulate):
    how = {"clip": 1e6, "noise_multiplier": 0.0}
    plain = simulate(method=FEDAVG, **WORLD)
    silent = simulate(method={**FEDAVG, "differential_privacy": how}, **WORLD)
    assert np.allclose(numbers_of(plain), numbers_of(silent), atol=1e-6)
    assert silent.method.findings()["differential_privacy"]["epsilon"] is None
    noisy = simulate(
        method={**FEDAVG, "differential_privacy": {"clip": 0.1, "noise_multiplier": 2.0}}, **WORLD
    )
    told = noisy.method.findings()["differential_privacy"]
    assert told == {"epsilon": pytest.approx(epsilon_of(2.0, 1.0, 4, 1e-5)), "delta": 1e-5}
    # four rounds of three devices: sums of clipped changes, and noise of 2 x 0.1 / 3 each time
    away = (
        numbers_of(noisy)
        - torch.cat([t.flatten() for t in noisy.method.learner.initial.values()]).numpy()
    )
    expected = math.sqrt(4 * len(away)) * 2.0 * 0.1 / 3
    assert np.linalg.norm(away) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("method", [FEDAVG, FEDBUFF], ids=["fedavg", "fedbuff"])
def test_down_goes_the_model_by_its_own_codec_and_what_is_trained_is_that(method, simulate):
    sim = simulate(method={**method, "wire_down": "int8"}, **WORLD)
    numbers = sim.method.costs["random-bert"].trainable_bytes // 4
    size, whole = (states.nbytes(numbers, chain_of(wire)) for wire in ("int8", "float32"))
    spans = sim.recorder.spans().to_pylist()
    down = {s["nbytes"] for s in spans if s["kind"] == "download"} - {0}  # cut off at the end
    up = {s["nbytes"] for s in spans if s["kind"] == "upload"}
    assert (down, up) == ({size}, {whole})
    assert sim.method.delivery_bytes(sim.devices[0]) == size
    plain = simulate(method=method, **WORLD)
    away = np.linalg.norm(numbers_of(sim) - numbers_of(plain))
    assert 0 < away < 0.5 * np.linalg.norm(numbers_of(plain))


def test_noise_is_not_promised_where_fewer_stand_behind_a_mean(simulate):
    mixed = [*EQUAL, {**EQUAL[0], "count": 1, "backbone": "random-bert-l1"}]
    how = {**FEDAVG, "differential_privacy": {"clip": 1}}
    with pytest.raises(ValueError, match="devices of several backbones train other parts"):
        simulate(dry=True, method=how, **{**WORLD, "fleet": mixed})


def test_every_round_counts_where_some_devices_are_not_there_to_be_drawn(simulate):
    how = {**FEDAVG, "participation": 0.3, "rounds": 6, "differential_privacy": {"clip": 1}}
    drawn = simulate(dry=True, method=how, **WORLD)
    late = {**WORLD, "arrivals": {"kind": "list", "times": ["0 s", "1 h", "1 h"]}}
    alone = simulate(dry=True, method=how, **late)
    found = [s.method.findings()["differential_privacy"]["epsilon"] for s in (drawn, alone)]
    assert found[0] == pytest.approx(epsilon_of(1.0, 1 / 3, 6, 1e-5))
    assert found[1] == pytest.approx(epsilon_of(1.0, 1.0, 6, 1e-5)) and found[1] > found[0]


def test_the_server_computes_on_what_it_decodes(simulate):
    def flop(method) -> float:
        rows = simulate(dry=True, method=method, **WORLD).recorder.spans().to_pylist()
        return sum(row["flop"] for row in rows if row["actor"] == "server")

    for method in (FEDAVG, FEDBUFF):
        assert flop({**method, "wire": "int4"}) == flop(method) > 0


def test_clipping_holds_a_round_to_its_length(simulate):
    how = {"clip": 0.05, "noise_multiplier": 0.0}
    sim = simulate(method={**FEDAVG, "rounds": 1, "differential_privacy": how}, **WORLD)
    start = torch.cat([t.flatten() for t in sim.method.learner.initial.values()]).numpy()
    assert 0 < np.linalg.norm(numbers_of(sim) - start) <= 0.05 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({**FEDAVG, "wire": ["pca-4", "int8"]}, "a change of a model is sent by a number format"),
        ({**FEDAVG, "wire_down": ["top-0.1", "int8"]}, "a model is sent whole"),
        ({**FEDAVG, "error_feedback": True}, "is for a `wire` that loses something alone"),
        ({"kind": "fedasync", "answers": 9, "wire": "int8"}, "is for fedbuff alone"),
        (
            {
                **FEDAVG,
                "weigh_by_samples": True,
                "differential_privacy": {"clip": 1},
            },
            "noise is for devices that weigh alike",
        ),
        ({**FEDAVG, "differential_privacy": {"noise_multiplier": 1}}, "clip"),
    ],
)
def test_what_does_not_go_together_is_told_at_its_line(method, what, scenario_file):
    with pytest.raises(ScenarioError, match=what):
        load(str(scenario_file(method=method, **WORLD)), Scenario, (), [], problems)


SPLITFED = {"kind": "splitfed-v1", "layers": 1, "rounds": 2, "dropout": 0, "device_batch": 8}
FEDBERT = {"kind": "fedbert", "rounds": 2, "dropout": 0, "device_batch": 8, "learning_rate": 1e-3}


@pytest.mark.parametrize("method", [SPLITFED, FEDBERT], ids=["splitfed", "fedbert"])
@pytest.mark.parametrize("wire", ["bfloat16", "int8", ["top-0.5", "int8"]], ids=str)
def test_vectors_and_gradients_of_split_learning_go_by_a_codec(method, wire, simulate, payloads):
    sim = simulate(method={**method, "wire": wire}, **WORLD)
    assert all(len(p.data.value) == p.nbytes for p in payloads)
    dry = simulate(dry=True, method={**method, "wire": wire}, **WORLD)
    assert dry.recorder.spans().equals(sim.recorder.spans())
    plain = simulate(method=method, **WORLD)
    tokens = sum(int(sim.lengths(d, d.samples).sum()) for d in sim.devices)
    saved = nbytes(chain_of("float32"), (1, 64)) - nbytes(chain_of(wire), (1, 64))
    times = 2 * (2 if method is FEDBERT else 1)  # rounds, and vectors up (and a gradient) a batch
    assert plain.recorder.uplink_bytes - sim.recorder.uplink_bytes == times * tokens * saved
    assert plain.recorder.downlink_bytes - sim.recorder.downlink_bytes == times * tokens * saved
    away = np.linalg.norm(numbers_of(sim) - numbers_of(plain))
    moved = np.linalg.norm(
        numbers_of(plain)
        - torch.cat([t.flatten() for t in plain.method.learner.initial.values()]).numpy()
    )
    assert 0 < away < 1.2 * moved  # AdamW's steps are of one length, whatever a gradient's


@pytest.mark.parametrize("method", [SPLITFED, FEDBERT], ids=["splitfed", "fedbert"])
def test_what_split_learning_is_not_sent_by_is_told(method, scenario_file):
    path = scenario_file(method={**method, "wire": ["int8", "zstd"]}, **WORLD)
    with pytest.raises(ScenarioError, match="a batch's vectors are sent by a number format"):
        load(str(path), Scenario, (), [], problems)
