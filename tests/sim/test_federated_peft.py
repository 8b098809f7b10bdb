"""Federated PEFT on the clock, synchronous and asynchronous: against plain loops, formulas and stories told by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.aggregation import Staleness
from learning.backbone import pad
from learning.catalogue import find
from learning.count_training import training_architecture
from learning.trainable import TrainableClassifier

AT_ONCE = {"arrivals": {"kind": "at-once"}, "evaluate_every": 1, "jitter": False}
ROUNDS = {"kind": "fedavg-full", "rounds": 2, "participation": 1.0, "learning_rate": 1e-3, "device_batch": 8}
ASYNC = {"kind": "fedasync", "peft": "head", "answers": 12, "concurrency": 1.0}
EQUAL = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]


def test_two_rounds_equal_a_plain_loop(simulate):
    """FedAvg of K clients, every one a plain AdamW loop on its own copy: the same model to 1e-5."""
    sim = simulate(fleet=EQUAL, method=ROUNDS, **AT_ONCE)
    seed = sim.streams.seed64("server/model") % 2**31
    model = TrainableClassifier(find("random-bert"), "full", 3, "mean", 8, 8, 16, seed, head="dense")
    state = model.trainable()
    for number in range(2):
        made = []
        for device in sim.devices:
            model.load_trainable(state)
            decayed = [p for p in model.trainable_parameters().values() if p.ndim >= 2]
            others = [p for p in model.trainable_parameters().values() if p.ndim < 2]
            optimiser = torch.optim.AdamW([{"params": decayed}, {"params": others}], lr=1e-3, weight_decay=0.0)
            tokens, labels = sim.method.learner.tokens("random-bert", device.samples), sim.task.labels[device.samples]
            local = sim.streams.seed64("local-training", f"{device.id}/{number}") % 2**31
            order = np.random.default_rng(local).permutation(len(labels))
            for start in range(0, len(order), 8):
                chosen = order[start : start + 8]
                ids, mask = pad([tokens.ids[i] for i in chosen])
                loss = F.cross_entropy(model(ids, mask), torch.tensor(labels[chosen]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            made.append(model.trainable())
        state = {name: sum(m[name] for m in made) / len(made) for name in state}
    for name, tensor in sim.method.learner.state.value.items():
        assert torch.allclose(tensor, state[name], atol=1e-5), name


@pytest.mark.parametrize("kind", ["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"])
def test_bytes_both_ways_are_four_a_trained_number(kind, simulate, spans):
    sim = simulate(fleet=EQUAL, method={**ROUNDS, "kind": kind}, **AT_ONCE)
    nbytes = 4 * training_architecture(find("random-bert"), kind.removeprefix("fedavg-"), 3, head="dense").trainable
    for way in ("upload", "download"):
        assert [s["nbytes"] for s in spans(sim, kind=way)] == [nbytes] * 6
    packed = sim.method.learner.packed(sim.method.learner.part_of("random-bert", sim.method.learner.state.value))
    assert len(packed) == nbytes


@pytest.mark.parametrize(
    "method", [ROUNDS, {**ASYNC, "peft": "full"}, {**ASYNC, "kind": "fedbuff", "peft": "lora", "buffer": 3}]
)
def test_a_dry_runs_spans_are_the_real_runs_and_the_digest_repeats(method, simulate, mark):
    real, again, dry = (simulate(method=method, dry=d, workers=w) for d, w in ((False, 1), (False, 2), (True, 1)))
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert mark(real) == mark(again)


def test_cuts_of_one_backbone_share_what_they_have(simulate, spans):
    sim = simulate(method={**ROUNDS, "rounds": 1})  # two whole ones and one of a single layer
    whole, cut = (sim.method.learner.models[name].trainable() for name in ("random-bert", "random-bert-l1"))
    assert set(cut) < set(whole)
    assert {s["nbytes"] for s in spans(sim, kind="upload")} == {
        4 * training_architecture(find(name), "full", 3, head="dense").trainable
        for name in ("random-bert", "random-bert-l1")
    }


def test_strangers_cannot_be_averaged(simulate):
    mixed = [{**EQUAL[0], "count": 1}, {**EQUAL[0], "count": 1, "backbone": "random-llama"}]
    with pytest.raises(ValueError, match="backbones of one family"):
        simulate(fleet=mixed, method={**ROUNDS, "kind": "fedavg-lora"}, **AT_ONCE)


def test_the_server_waits_for_its_slowest_and_the_others_wait_with_it(simulate, spans):
    sim = simulate(method={**ROUNDS, "rounds": 1}, dry=True, **AT_ONCE)
    [waited] = spans(sim, actor="server", kind="wait")
    ends = {s["actor"]: s["end_s"] for s in spans(sim, kind="upload")}
    assert waited["end_s"] == max(ends.values())
    for device, end_s in ends.items():
        mine = spans(sim, actor=device, kind="wait")
        assert [(w["start_s"], w["end_s"]) for w in mine] == (
            [(end_s, waited["end_s"])] if end_s < waited["end_s"] else []
        )


def test_over_selection_and_deadline_tell_the_last_that_they_are_late(simulate, spans):
    late = simulate(method={**ROUNDS, "rounds": 3, "participation": 0.34, "over_selection": 3.0}, dry=True, **AT_ONCE)
    for waited in spans(late, actor="server", kind="wait"):  # a round is over with its first answer
        inside = [
            s for s in spans(late, kind="upload", outcome="ok") if waited["start_s"] < s["end_s"] <= waited["end_s"]
        ]
        assert inside and {s["end_s"] for s in inside} == {waited["end_s"]}
    assert {s["actor"] for s in spans(late, outcome="late")} == {"device-0002"}
    assert late.ended.reason == "exhausted"
    assert [d.outcome for d in late.devices].count("ok") == len(
        {s["actor"] for s in spans(late, "upload", outcome="ok")}
    )
    short = simulate(method={**ROUNDS, "rounds": 1, "deadline": 0.05}, dry=True, **AT_ONCE)
    [waited] = spans(short, actor="server", kind="wait")
    assert waited["end_s"] - waited["start_s"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "method",
    [{**ROUNDS, "rounds": 4}, {**ASYNC, "peft": "lora"}, {**ASYNC, "kind": "fedbuff", "peft": "lora", "buffer": 2}],
)
def test_a_device_that_drops_out_stalls_nobody(method, simulate, spans):
    sim = simulate(method=method, dry=True, dropped=(0, 0.05), **AT_ONCE)
    assert sim.ended.reason == "exhausted"
    assert sim.devices[0].outcome == "dropped"
    assert {d.outcome for d in sim.devices[1:]} <= {"ok", "ended"}
    assert len(spans(sim, actor="device-0000", outcome="dropped")) == 1
    assert spans(sim, actor="device-0001", kind="upload")[-1]["start_s"] > 0.05


@pytest.mark.parametrize("method", [
    {**ROUNDS, "rounds": 8, "learning_rate": 3e-3}, {**ROUNDS, "kind": "fedavg-lora", "rounds": 12, "learning_rate": 2e-2},
    {**ASYNC, "peft": "lora", "answers": 36, "learning_rate": 2e-2, "device_batch": 8},
    {**ASYNC, "kind": "fedbuff", "buffer": 3, "peft": "lora", "answers": 36, "learning_rate": 2e-2, "device_batch": 8},
])  # fmt: skip
def test_it_learns(method, simulate):
    sim = simulate(fleet=EQUAL, method=method, **AT_ONCE)
    best = max(m["value"] for m in sim.recorder.metrics().to_pylist() if (m["name"], m["group"]) == ("accuracy", ""))
    majority = np.bincount(sim.task.labels[sim.task.test]).max() / len(sim.task.test)
    assert best >= majority + 0.2


def test_staleness_of_three_devices_by_hand(simulate, spans):
    """A fast device answers twice while a slow one works: the slow answer is as many versions old as were made meanwhile."""
    fleet = [{**EQUAL[0], "count": 2, "device": "jetson-agx-xavier", "link": "ethernet-1g"},
             {**EQUAL[0], "count": 1, "device": "raspberry-pi-4", "link": "ethernet-1g"}]  # fmt: skip
    sim = simulate(fleet=fleet, method={**ASYNC, "peft": "full", "answers": 9}, dry=True, **AT_ONCE)
    applied = spans(sim, actor="server", kind="aggregate")
    noted = [
        (m["time_s"], m["value"], m["group"]) for m in sim.recorder.metrics().to_pylist() if m["name"] == "staleness"
    ]
    downloads = spans(sim, kind="download")
    uploads = {s["flows"][0]: s for s in spans(sim, kind="upload", outcome="ok")}
    assert len(noted) == len(applied) == 9
    for (time_s, staleness, group), work in zip(noted, applied, strict=True):
        [flow] = work["flows"]
        sender = uploads[flow]["actor"]
        asked_s = max(
            d["start_s"] for d in downloads if d["actor"] == sender and d["start_s"] < uploads[flow]["start_s"]
        )
        meanwhile = [w for w in applied if asked_s < w["end_s"] <= time_s]
        assert staleness == len(meanwhile), group
    assert {value for _, value, _ in noted} > {0.0}


def test_staleness_weights():
    assert Staleness("constant").weight(7) == 1
    assert Staleness("polynomial", a=0.5).weight(3) == 0.5
    assert Staleness("hinge", a=1.0, b=4).weight(6) == pytest.approx(1 / 3)


def test_looking_at_the_model_waits_its_turn(simulate, mark):
    """Evaluation loads weights into the model that devices train with: with workers it must not come between."""
    method = {**ASYNC, "peft": "lora", "answers": 30, "evaluate_every": 1, "learning_rate": 2e-2}
    one, four = (simulate(fleet=EQUAL, method=method, workers=workers, **AT_ONCE) for workers in (1, 4))
    assert mark(one) == mark(four)
