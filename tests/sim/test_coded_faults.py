"""What goes wrong with coded changes and private means: what is not finite, cut off, left out or
too long, and what it costs.
"""

import math

import pytest
import torch

from learning.codecs import states
from learning.codecs.chain import chain_of
from learning.differential_privacy import epsilon_of
from learning.federated import local_training
from learning.federated.aggregation import ServerOptimiser
from learning.federated.local_training import LocalTraining
from sim.methods.federated_peft import client_updates as learning
from sim.methods.federated_peft import fed_async, fed_avg
from sim.methods.split.learner import SplitLearner
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario

EQUAL = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
WORLD = {"fleet": EQUAL, "arrivals": {"kind": "at-once"}, "evaluate_every": 1}
FEDAVG = {"kind": "fedavg-lora", "rounds": 2, "participation": 1.0, "dropout": 0}
FEDBUFF = {"kind": "fedbuff", "answers": 6, "buffer": 3, "concurrency": 1.0, "dropout": 0}
LOSSY = ["float16", "bfloat16", "int8", "int4", ["top-0.1", "int8"], ["top-0.1", "float32"]]


def tensors(*numbers: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(numbers)}


def test_devices_that_have_gone_for_good_are_not_there_to_be_drawn(simulate):
    how = {**FEDAVG, "rounds": 8, "participation": 0.2, "differential_privacy": {"clip": 1}}
    world = {**WORLD, "fleet": [{**EQUAL[0], "count": 10}]}
    gone = {"times": ["1 ms"] * 6 + [None] * 4}
    sim = simulate(dry=True, method=how, dropout=gone, **world)
    asked = max(sim.method.asked_of.values())
    found = sim.method.findings()["differential_privacy"]["epsilon"]
    assert found == pytest.approx(epsilon_of(1.0, 1.0, asked, 1e-5))
    assert found > epsilon_of(1.0, 0.2, 8, 1e-5)


@pytest.mark.parametrize("method", [FEDAVG, FEDBUFF], ids=["fedavg", "fedbuff"])
@pytest.mark.parametrize("wire", ["float32", *LOSSY], ids=str)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_change_that_is_not_finite_is_left_out_whatever_the_wire(
    method, wire, bad, simulate, monkeypatch
):
    train, calls = local_training.train, []

    def spoilt(*args):
        made = train(*args)
        calls.append(1)
        if len(calls) == 1:
            next(iter(made.state.values())).view(-1)[3] = bad
        return made

    monkeypatch.setattr(local_training, "train", spoilt)
    sim = simulate(method={**method, "wire": wire}, **WORLD)
    found = sim.tally.diverged
    assert found is not None and found["what"] == "weights"
    assert found["device"].startswith("device-")
    assert all(t.isfinite().all() for t in sim.method.learner.state.value.values())


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("before", [None, (0.25, -0.5, 0.0)])
def test_what_a_change_that_is_not_finite_loses_is_not_kept(bad, before, monkeypatch):
    chain = chain_of(["top-0.4", "int8"])
    lost = None if before is None else tensors(*before)
    monkeypatch.setattr(learning, "changed", lambda *_: tensors(1.0, bad, 2.0))
    change, kept = learning.changed_and_lost(None, {}, LocalTraining(), 0, None, lost, chain)
    assert not change["w"].isfinite().all()
    assert kept["w"].tolist() == list(before or (0.0, 0.0, 0.0))
    monkeypatch.setattr(learning, "changed", lambda *_: tensors(1.0, 0.0, 2.0))
    change, after = learning.changed_and_lost(None, {}, LocalTraining(), 0, None, kept, chain)
    arrives = states.from_bytes(states.to_bytes(change, chain), change, chain)
    assert torch.equal(after["w"], change["w"] - arrives["w"]) and after["w"].isfinite().all()


def test_what_did_not_arrive_is_not_what_a_change_has_lost(simulate):
    """One of the three is always cut off while it sends: what it keeps is of no task of its."""
    how = {**FEDAVG, "wire": ["top-0.1", "int8"], "error_feedback": True, "rounds": 1}
    whole = simulate(method=how, **WORLD)
    assert set(whole.method.lost) == {d.id for d in whole.devices}
    ends = {
        s["actor"]: (s["start_s"], s["end_s"])
        for s in whole.recorder.spans().to_pylist()
        if s["kind"] == "upload"
    }
    start_s, end_s = ends["device-0001"]
    cut = simulate(method=how, dropped=(1, (start_s + end_s) / 2), **WORLD)
    assert set(cut.method.lost) == {"device-0000", "device-0002"}


def test_what_is_kept_of_a_change_is_in_memory(simulate):
    def peak(**more) -> tuple[int, int]:
        how = {**FEDAVG, "wire": ["top-0.1", "int8"], **more}
        sim = simulate(dry=True, method=how, **WORLD)
        return sim.method.peak_bytes(sim.devices[0]), sim.method.costs["random-bert"].trainable

    (bare, numbers), (fed, _) = peak(), peak(error_feedback=True)
    assert fed - bare == 4 * numbers


@pytest.mark.parametrize(("up", "down"), [("int4", "float32"), ("float32", "int4")])
def test_no_deadline_is_called_too_short_that_is_not(up, down, simulate):
    sim = simulate(dry=True, method={**FEDAVG, "wire": up, "wire_down": down}, **WORLD)
    device, method = sim.devices[0], sim.method
    fewest = min(method.nbytes(device), method.sent_bytes(device))
    assert fewest < max(method.nbytes(device), method.sent_bytes(device))
    computing_s = method.alone_s(device) - sim.network.alone_s(device.id, fewest)
    plain = simulate(dry=True, method={**FEDAVG, "wire": "int8", "wire_down": "int8"}, **WORLD)
    own = plain.method
    both_s = own.alone_s(plain.devices[0])
    training_s = both_s - plain.network.alone_s(device.id, own.nbytes(plain.devices[0]))
    assert computing_s == pytest.approx(training_s, rel=0.05)


def test_clipping_and_noise_are_another_pass_of_the_servers(simulate):
    def flop(**more) -> float:
        sim = simulate(dry=True, method={**FEDAVG, **more}, **WORLD)
        return sum(s["flop"] for s in sim.recorder.spans().to_pylist() if s["actor"] == "server")

    assert flop(differential_privacy={"clip": 1}) == 2 * flop() > 0


def test_who_is_left_out_takes_its_own_weight_along():
    """Of three answers the first is not finite: the others have the weights 2 and 6, or ages of 0
    and 3 updates.
    """
    state, answers = tensors(0.0), [tensors(1.0), tensors(3.0)]
    received = tensors(0.0)
    new, _ = fed_avg.server_update(
        state, None, answers, [1, 2], ServerOptimiser(), received, [5.0, 2.0, 6.0]
    )
    assert new["w"].item() == pytest.approx((2 * 1 + 6 * 3) / 8)
    new, _ = fed_async.buffered(state, None, answers, [1, 2], ServerOptimiser(), [8, 0, 3])
    assert new["w"].item() == pytest.approx((1 + 3 / 2) / 2)


def test_a_part_that_is_left_out_takes_its_own_weight_along(simulate):
    how = {"kind": "splitfed-v1", "layers": 1, "rounds": 1, "dropout": 0}
    learner = simulate(method=how, **WORLD).method.learner
    assert isinstance(learner, SplitLearner)
    initial = learner.initial
    held = [{n: t + step for n, t in initial.items()} for step in (math.nan, 1.0, 3.0)]
    data = [learner._own_parts(one) for one in held]
    new, (left_out, is_finite) = learner._averaged(
        initial, held, None, ["random-bert"] * 3, data, [5.0, 2.0, 6.0]
    )
    assert left_out == [0] and is_finite
    for name, tensor in new.items():
        torch.testing.assert_close(tensor, initial[name] + (2 * 1 + 6 * 3) / 8)


@pytest.mark.parametrize("kind", ["fedavg-lora", "fedasync", "local-lora", "splitfed-v1"])
@pytest.mark.parametrize(
    "what",
    [
        {"learning_rate": 1e39},
        {"learning_rate": 1e39, "momentum": 0.9},
        {"weight_decay": 1e39},
        {"proximal_mu": 1e39},
    ],
    ids=lambda what: ",".join(what),
)
def test_a_step_beyond_float32_diverges(kind, what, simulate):
    if "proximal_mu" in what and kind == "splitfed-v1":
        return
    own = {"answers": 3, "concurrency": 1.0} if kind == "fedasync" else {"rounds": 1}
    own |= {} if kind in ("fedasync", "local-lora") else {"participation": 1.0}
    sim = simulate(method={"kind": kind, "optimiser": "sgd", **own, **what}, **WORLD)
    assert sim.tally.diverged is not None


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({**FEDBUFF, "error_feedback": True}, "is for a `wire` that loses something alone"),
        (
            {**FEDBUFF, "error_feedback": True, "wire_down": "int8"},
            "is for a `wire` that loses something alone",
        ),
        (
            {"kind": "fedasync", "answers": 9, "error_feedback": True},
            "method.error_feedback: is for",
        ),
        ({"kind": "mobillm", "protection": {}}, "protection: changes nothing here"),
    ],
)
def test_a_setting_that_nothing_reads_is_told(method, what, scenario_file):
    with pytest.raises(ScenarioError, match=what):
        load(str(scenario_file(method=method, **WORLD)), Scenario, (), [], problems)


@pytest.mark.parametrize(
    "method",
    [
        FEDAVG,
        FEDBUFF,
        {"kind": "splitfed-v1", "rounds": 1},
        {"kind": "fedbert", "rounds": 1},
        {"kind": "fed-mobillm"},
    ],
    ids=lambda method: method["kind"],
)
def test_more_numbers_than_there_are_is_told_by_its_key_and_with_what_to_say(method, simulate):
    said = r"method\.wire: top-999999999: of [\d,]+ numbers there are not so many: say at most \d+"
    with pytest.raises(ValueError, match=said):
        simulate(dry=True, method={**method, "wire": ["top-999999999", "int8"]}, **WORLD)


def test_a_wire_fits_what_learns_too(simulate):
    charged = {"backbone": "roberta-base", "tokens": 32}
    how = {**FEDAVG, "wire": ["top-100000", "int8"]}
    with pytest.raises(ValueError, match=r"method\.wire: top-100000: of"):
        simulate(dry=True, method=how, cost_as=charged, **WORLD)
