"""Numbers that are not finite: said with device and update, in no average, and never an
accuracy.
"""

import dataclasses
import json
import math
import struct

import numpy as np
import pytest
import torch

from learning.federated.aggregation import is_finite
from learning.federated.local_training import predict
from learning.metrics import score
from sim.compare.planned_run import PlannedRun
from sim.compare.table import rows
from sim.compare.write import markdown
from sim.kernel.learned import Learned, with_values
from sim.kernel.server import Server
from sim.methods.on_device.learner import LadderLearner, LocalPeftLearner
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.matrix_learner import MatrixLearner
from sim.results.run import open_run
from sim.results.summary import device_table, summary

FLEET = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
WORLD = {"fleet": FLEET, "arrivals": {"kind": "at-once"}, "evaluate_every": 1}
ROUNDS = {"rounds": 2, "participation": 1.0, "device_batch": 8}
FEW = {"answers": 6, "concurrency": 1.0, "device_batch": 8}
FEDERATED = {
    **{
        kind: {"kind": kind, **ROUNDS}
        for kind in ("fedavg-lora", "fedavg-full", "fedavg-bitfit", "flexlora", "fwdllm")
    },
    **{
        kind: {"kind": kind, **ROUNDS}
        for kind in ("fedmezo", "spry", "splitfed-v1", "splitfed-v2", "fedbert")
    },
    "fedasync": {"kind": "fedasync", **FEW},
    "fedbuff": {"kind": "fedbuff", **FEW, "buffer": 3},
}
HUGE = {  # learning rates at which each method's model is soon not finite
    **{
        kind: {**FEDERATED[kind], "learning_rate": 1e37}
        for kind in FEDERATED
        if kind not in ("fwdllm", "fedmezo")
    },
    "fwdllm": {**FEDERATED["fwdllm"], "learning_rate": 1e38, "warm_up": 0, "rounds": 4},
    "fedmezo": {**FEDERATED["fedmezo"], "learning_rate": 1e30},
}
SIDE = {
    "fed-mobillm": {
        "kind": "fed-mobillm",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
    },
    "single-side-network": {
        "kind": "single-side-network",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
    },
    "pae-mobillm": {"kind": "pae-mobillm", "epochs": 3, "server_batch": 8},
    "pae-without-cache": {"kind": "pae-mobillm", "epochs": 2, "cache": False},
    "mobillm": {"kind": "mobillm", "epochs": 2},
    "centralised": {"kind": "centralised", "replay": 5, "server_batch": 8},
    "upload-raw-text": {"kind": "upload-raw-text", "replay": 5, "server_batch": 8},
}
ALONE = {
    "local-lora": {"kind": "local-lora", "rounds": 3, "device_batch": 10},
    "local-lst": {"kind": "local-lst", "epochs": 3, "device_batch": 10},
}


def told(sim) -> dict:
    found = summary(sim, "digest", device_table(sim), 1.0)
    json.dumps(found, allow_nan=False)
    assert all(math.isfinite(row["value"]) for row in sim.recorder.metrics().to_pylist())
    return found


@pytest.fixture
def one_sends_nan(monkeypatch):
    """The last number of everything that device-0001 uploads is NaN when it lands."""
    receive = Server.receive

    def spoilt(self, payload):
        if payload.sender.id == "device-0001" and payload.data:
            spoilt = with_values(payload.data)[:-4] + struct.pack("<f", math.nan)
            payload = dataclasses.replace(payload, data=spoilt)
        receive(self, payload)

    monkeypatch.setattr(Server, "receive", spoilt)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FEDERATED)
def test_one_devices_nan_enters_no_average_and_is_told(kind, one_sends_nan, simulate, curve):
    sim = simulate(method=FEDERATED[kind], **WORLD)
    found = told(sim)
    assert is_finite(sim.method.learner.state.value)
    assert {name: found["diverged"][name] for name in ("device", "what")} == {
        "device": "device-0001",
        "what": "weights",
    }
    assert found["diverged"]["update"] >= 1 and found["diverged"]["answers_left_out"] >= 1
    assert found["outcomes"] == {"ok": 2, "diverged": 1} or kind in ("fedasync", "fedbuff")
    assert found["final"] == curve(sim)[-1] is not None
    assert sim.ended.reason == "exhausted" and sim.updates > 0
    [remark] = [remark for remark in found["remarks"] if "diverged at update" in remark]
    assert remark.startswith(
        f"device-0001 diverged at update {found['diverged']['update']}: its weights were not finite"
    )


def test_what_is_left_is_the_mean_of_the_others(one_sends_nan, simulate, monkeypatch):
    sent = []
    receive = Server.receive
    monkeypatch.setattr(
        Server, "receive", lambda self, payload: (sent.append(payload), receive(self, payload))[1]
    )
    sim = simulate(method={**FEDERATED["fedavg-full"], "rounds": 1}, **WORLD)
    learner = sim.method.learner
    states = [
        learner.unpacked("random-bert", with_values(p.data))
        for p in sent
        if p.sender.id != "device-0001"
    ]
    assert len(states) == 2
    for name, tensor in learner.state.value.items():
        torch.testing.assert_close(
            tensor, (states[0][name] + states[1][name]) / 2, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("kind", HUGE)
def test_a_federated_model_that_diverges_has_no_accuracy_of_nan(kind, simulate, curve):
    sim = simulate(method=HUGE[kind], **WORLD)
    found, learner = told(sim), sim.method.learner
    assert found["diverged"] is not None
    is_good = (
        sim.updates
        and not learner.diverged
        and is_finite(learner.state.value)
        and None not in learner.evaluate().values()
    )
    assert (found["final"] is not None) == bool(is_good)
    assert sim.ended.reason == "diverged" or found["diverged"]["answers_left_out"] > 0
    assert found["best"] == (max(curve(sim)) if curve(sim) else None)
    if sim.ended.reason == "diverged":
        assert (found["final"], set(found["by_backbone"].values())) == (None, {None})
        assert found["totals"]["updates"] == sim.updates and not any(
            device.is_serving is None for device in sim.devices
        )


@pytest.mark.parametrize("kind", SIDE)
def test_a_side_network_that_diverges_ends_the_run(kind, simulate, curve):
    healthy = simulate(method=SIDE[kind], **WORLD)
    assert told(healthy)["diverged"] is None and healthy.ended.reason == "exhausted"
    sim = simulate(method={**SIDE[kind], "learning_rate": 1e30}, **WORLD)
    found = told(sim)
    assert sim.ended.reason == "diverged" and found["final"] is None
    assert found["diverged"]["device"] == "server" and found["diverged"]["what"] in (
        "loss",
        "predictions",
    )
    assert found["diverged"]["update"] == found["totals"]["updates"] < healthy.updates
    assert f"server diverged at update {sim.updates}: " in found["remarks"][0]
    assert "; the run ended after " in found["remarks"][0]
    times_s = [
        row["time_s"] for row in sim.recorder.metrics().to_pylist() if row["name"] == "accuracy"
    ]
    assert all(time_s < sim.env.now for time_s in times_s)  # the curve stops before
    assert not [
        s for s in sim.recorder.spans().to_pylist() if s["kind"] == "download"
    ]  # nobody is sent such a model


@pytest.mark.parametrize("kind", ALONE)
def test_devices_that_diverge_alone_have_no_accuracy(kind, simulate, curve):
    sim = simulate(method={**ALONE[kind], "learning_rate": 1e37}, **WORLD)
    found = told(sim)
    assert found["final"] is None and found["outcomes"] == {"diverged": 3}
    assert found["diverged"]["device"].startswith("device-") and sim.ended.reason == "exhausted"
    assert sim.updates == 9  # nobody tells them to stop: they go on, and are charged for it


@pytest.mark.parametrize(
    ("kind", "learner", "name"),
    [
        ("local-lora", LocalPeftLearner, "client"),
        ("local-lst", LadderLearner, "epoch"),
    ],
)
def test_one_device_that_diverges_alone_is_left_out_of_the_mean(
    kind, learner, name, simulate, curve, monkeypatch
):
    healthy = getattr(learner, name)

    def spoilt(self, *args):
        result = healthy(self, *args)
        if result is None or not any(isinstance(arg, str) and arg == "device-0001" for arg in args):
            return result
        state = (result[0] if kind == "local-lst" else result).value
        state = Learned.given("spoilt", {n: t * math.nan for n, t in state.items()})
        return (state, Learned.given("none", None)) if kind == "local-lst" else state

    monkeypatch.setattr(learner, name, spoilt)
    sim = simulate(method=ALONE[kind], **WORLD)
    found, ends = told(sim), sim.method.learner
    assert found["diverged"]["device"] == "device-0001"
    assert found["outcomes"] == {"ok": 2, "diverged": 1}
    mine = [
        ends.score(device, "random-bert", "test")["value"]
        for device in ("device-0000", "device-0002")
    ]
    assert found["final"] == pytest.approx(np.mean(mine))


@pytest.mark.parametrize(
    ("kind", "learner"),
    [
        ("fed-mobillm", SideTuningLearner),
        ("single-side-network", SideTuningLearner),
        ("pae-without-cache", SideTuningLearner),
        ("mobillm", MatrixLearner),
    ],
)
def test_activations_that_are_not_finite_are_no_records(kind, learner, simulate, monkeypatch):
    name = "states" if learner is MatrixLearner else "forward"
    healthy = getattr(learner, name)

    def spoilt(self, backbone, samples):
        found = healthy(self, backbone, samples)
        ours = {
            int(sample)
            for sample in (self.world.devices[1].samples if hasattr(self.world, "devices") else ())
        }
        if not ours & {int(sample) for sample in samples}:
            return found
        return (found[0] * np.inf, found[1]) if isinstance(found, tuple) else found * np.inf

    monkeypatch.setattr(learner, name, spoilt)
    sim = simulate(method=SIDE[kind], **WORLD)
    found = told(sim)
    assert (
        found["diverged"]["device"] == "device-0001" and found["diverged"]["what"] == "activations"
    )
    assert found["final"] is not None and sim.ended.reason == "exhausted"
    assert sim.devices[1].outcome == "diverged"
    dry = simulate(method=SIDE[kind], dry=True, **WORLD)
    assert found["totals"]["uplink_bytes"] == dry.recorder.uplink_bytes  # it was sent all the same
    assert sim.updates < dry.updates


def test_logits_that_are_not_finite_are_no_prediction():
    from learning.host_device import CPU

    class Broken(torch.nn.Module):
        classes, host = 2, CPU
        head = torch.nn.Linear(1, 2)  # what evaluation asks the width of a batch

        def load_trainable(self, state):
            self.state = state

        def forward(self, ids_BT, mask_BT, segments_BT=None):
            return torch.full((len(ids_BT), 2), self.state["w"])

    from learning.backbones.tokens import Tokens

    tokens, labels = Tokens([np.array([1, 2])] * 3, None), np.array([0, 0, 1])

    def accuracy(w):
        found = score("accuracy", predict(Broken(), {"w": w}, tokens), labels)
        return found and found["value"]

    assert accuracy(1.0) == pytest.approx(2 / 3)
    assert accuracy(math.nan) is None and accuracy(math.inf) is None


def test_tables_figures_and_the_command_line_say_diverged(mobifleet, scenario_file, tmp_path):
    methods = {"good": SIDE["fed-mobillm"], "bad": {**SIDE["fed-mobillm"], "learning_rate": 1e30}}
    path = scenario_file(
        method=methods["bad"], **WORLD, compare={"methods": methods, "target": 0.99}
    )
    outcome = mobifleet("run", path, "--out", "run", "--workers", "1")
    assert (
        outcome.code == 0
        and "diverged" in outcome.out
        and "server diverged at update" in outcome.err
    )
    run = open_run(tmp_path / "run")
    assert run.summary["final"] is None and "diverged" in run.title
    outcome = mobifleet("compare", path, "--out", "table", "--processes", "1")
    assert outcome.code == 0, outcome.err
    entries = [PlannedRun(label, None, tmp_path / "table" / f"{label}-seed0") for label in methods]
    assert "| bad | diverged |" in markdown({"": rows(entries, "own")})
    assert "nan" not in (tmp_path / "table" / "table.md").read_text()
