"""Federated PEFT on the clock, synchronous and asynchronous: against plain loops, formulas and
schedules worked out by hand.
"""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import get_linear_schedule_with_warmup

from learning.backbones.backbone import pad
from learning.backbones.catalogue import find
from learning.cost.count_training import training_architecture
from learning.federated.aggregation import Staleness
from learning.federated.trainable import TrainableClassifier
from sim.kernel.learned import with_values
from sim.kernel.work import ClientTask
from sim.methods.federated_peft.fed_async import FedAsync
from sim.world.costing import DoesNotFit

AT_ONCE = {"arrivals": {"kind": "at-once"}, "evaluate_every": 1, "jitter": False}
ROUNDS = {
    "kind": "fedavg-full",
    "rounds": 2,
    "participation": 1.0,
    "learning_rate": 1e-3,
    "device_batch": 8,
}
ASYNC = {"kind": "fedasync", "peft": "head", "answers": 12, "concurrency": 1.0}
EQUAL = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
FAST_AND_SLOW = [
    {**EQUAL[0], "count": 2, "device": "jetson-agx-xavier", "link": "ethernet-1g"},
    {**EQUAL[0], "count": 1, "device": "raspberry-pi-4", "link": "ethernet-1g"},
]


def stepped(kind, x, d, m, v, eta):
    """Reddi et al. (ICLR 2021), algorithm 2, and Hsu et al. (2019), for one tensor: its new value
    and moments.
    """
    if kind == "fedavg":
        return x + eta * d, m, v
    if kind == "fedavgm":
        m = 0.9 * m + d
        return x + eta * m, m, v
    m = 0.9 * m + 0.1 * d
    v = 0.99 * v + 0.01 * d**2 if kind == "fedadam" else v - 0.01 * d**2 * torch.sign(v - d**2)
    return x + eta * m / (torch.sqrt(v) + 1e-3), m, v


def plain_loop(
    sim,
    rounds,
    decay=0.0,
    mu=0.0,
    weighted=False,
    server="fedavg",
    eta=1.0,
    sgd=None,
    linear=True,
    drops_out=True,
):
    """The state after so many rounds of whole models in plain PyTorch; `sgd` holds its settings."""
    seed = sim.streams.seed64("server/model") % 2**31
    model = TrainableClassifier(
        find("random-bert"), "full", 3, "mean", 8, 8, 16, seed, head="dense"
    )
    state = model.trainable()
    m, v = (
        {n: torch.zeros_like(t) for n, t in state.items()},
        {n: torch.full_like(t, 1e-6) for n, t in state.items()},
    )
    for number in range(rounds):
        made, weights = [], []
        for device in sim.devices:
            model.load_trainable(state)
            parameters = model.trainable_parameters()
            decayed = [p for p in parameters.values() if p.ndim >= 2]
            others = [
                {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0}
            ]
            groups = [{"params": decayed}, *others]
            if sgd is None:
                optimiser = torch.optim.AdamW(groups, lr=1e-3, weight_decay=decay)
            else:
                optimiser = torch.optim.SGD(groups, weight_decay=decay, **sgd)
            tokens, labels = (
                sim.method.learner.tokens("random-bert", device.samples),
                sim.task.labels[device.samples],
            )
            local = sim.streams.seed64("local-training", f"{device.id}/{number}") % 2**31
            order = np.random.default_rng(local).permutation(len(labels))
            model.train(drops_out)
            torch.manual_seed(local)
            schedule = get_linear_schedule_with_warmup(optimiser, 0, math.ceil(len(order) / 8))
            for start in range(0, len(order), 8):
                chosen = order[start : start + 8]
                ids, mask = pad([tokens.ids[i] for i in chosen])
                loss = F.cross_entropy(model(ids, mask), torch.tensor(labels[chosen]))
                loss = loss + mu / 2 * sum(
                    ((p - state[n]) ** 2).sum() for n, p in parameters.items()
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                if linear:
                    schedule.step()
            made.append(model.trainable())
            weights.append(len(labels) if weighted else 1)
        for name, x in state.items():
            d = sum(w * one[name] for w, one in zip(weights, made, strict=True)) / sum(weights) - x
            state[name], m[name], v[name] = stepped(server, x, d, m[name], v[name], eta)
    return state


UNLIKE = {"task": {"dataset": {"path": "texts.csv"}, "train": 60, "test": 30, "max_tokens": 16,
                   "partition": {"kind": "dirichlet", "alpha": 0.5, "min_size": 4}}}  # fmt: skip
LOOPS = {
    "plain": ({}, {}),
    "decay": (
        {"weight_decay": 10.0},
        {"decay": 10.0},
    ),  # with a rate of 1e-3 it shrinks a weight by a hundredth a step
    "proximal": ({"proximal_mu": 0.5}, {"mu": 0.5}),
    "weighted": ({"weigh_by_samples": True}, {"weighted": True}),
    "constant": ({"schedule": "constant"}, {"linear": False}),
    "undropped": ({"dropout": 0}, {"drops_out": False}),
    "sgd": ({"optimiser": "sgd", "learning_rate": 0.05}, {"sgd": {"lr": 0.05}}),
    "momentum": (
        {"optimiser": "sgd", "learning_rate": 0.02, "momentum": 0.9},
        {"sgd": {"lr": 0.02, "momentum": 0.9}},
    ),
    "fedavgm": ({"server_optimiser": {"kind": "fedavgm"}}, {"server": "fedavgm"}),
    **{
        kind: (
            {"server_optimiser": {"kind": kind, "learning_rate": 0.01}},
            {"server": kind, "eta": 0.01},
        )
        for kind in ("fedadam", "fedyogi")
    },
}


FAST = ("plain", "undropped", "proximal", "weighted", "decay", "momentum", "fedavgm")


@pytest.mark.parametrize(
    "which", [*FAST, *(pytest.param(w, marks=pytest.mark.thorough) for w in LOOPS if w not in FAST)]
)
def test_rounds_equal_a_plain_loop(which, simulate):
    """FedAvg of K clients, every one a plain AdamW loop on its own copy, by the formulas of the
    papers: the same model.
    """
    (settings, how), rounds = LOOPS[which], 3 if "server" in LOOPS[which][1] else 2
    sim = simulate(
        fleet=EQUAL, method={**ROUNDS, "rounds": rounds, **settings}, **AT_ONCE, **UNLIKE
    )
    assert len({len(device.samples) for device in sim.devices}) > 1
    expected, without = plain_loop(sim, rounds, **how), plain_loop(sim, rounds) if how else None
    within = 2e-5 if rounds == 2 else 1e-4  # a server's step by a root magnifies rounding
    for name, tensor in sim.method.learner.state.value.items():
        if not name.endswith(
            "key.bias"
        ):  # its gradient is zero but for rounding, which AdamW blows up to whole steps
            torch.testing.assert_close(tensor, expected[name], atol=within, rtol=0, msg=name)
    if how:  # and it would be another without the setting
        found = sim.method.learner.state.value
        assert max((found[n] - without[n]).abs().max() for n in found) > 10 * within


def test_an_answer_of_fedasync_is_mixed_in_by_its_staleness(simulate, monkeypatch):
    """(1 - a) x + a x_new with a = 0.6 / sqrt(1 + versions made meanwhile), the paper's polynomial
    with its 0.5.
    """
    applied, aggregation = [], FedAsync.aggregation

    def noting(self, buffer):
        before = self.learner.state
        work = aggregation(self, buffer)
        run = work.run

        def noted():
            result = run()
            applied.append((before, buffer[0], self.learner.state))
            return result

        return dataclasses.replace(work, run=noted)

    monkeypatch.setattr(FedAsync, "aggregation", noting)
    sim = simulate(
        fleet=FAST_AND_SLOW,
        method={**ASYNC, "peft": "full", "answers": 9, "device_batch": 8},
        **AT_ONCE,
    )
    stale = []
    for version, (before, payload, after) in enumerate(applied):
        stale.append(version - payload.version)
        a, sent = (
            0.6 / (1 + stale[-1]) ** 0.5,
            sim.method.learner.unpacked("random-bert", with_values(payload.data)),
        )
        for name, x in with_values(before).items():
            torch.testing.assert_close(
                with_values(after)[name], (1 - a) * x + a * sent[name], atol=1e-6, rtol=0
            )
    assert len(applied) == 9 and max(stale) > 1


@pytest.mark.parametrize(("answers", "left"), [(6, 0), (7, 1)])
def test_answers_that_fill_no_buffer_are_told(answers, left, simulate):
    method = {**ASYNC, "kind": "fedbuff", "answers": answers, "buffer": 2}
    sim = simulate(method=method, dry=True)
    told = [remark for remark in sim.remarks if "entered no update" in remark]
    assert (
        told
        == [f"{left} of {answers} answers entered no update: an update takes 2 (`buffer`)"] * left
    )


def test_answers_that_the_horizon_leaves_in_the_buffer_are_told(simulate, spans):
    method = {**ASYNC, "kind": "fedbuff", "answers": 1000, "buffer": 7}
    sim = simulate("stop.horizon=4 s", method=method, dry=True)
    landed = len([span for span in spans(sim, "upload") if span["outcome"] == "ok"])
    left = landed - 7 * sim.updates
    assert sim.ended.reason == "horizon" and left > 0
    assert [r for r in sim.remarks if "entered no update" in r] == [
        f"{left} of {landed} answers entered no update: an update takes 7 (`buffer`)"
    ]


def test_a_buffer_is_one_step_on_its_changes_each_by_its_age(simulate, monkeypatch):
    """FedBuff's mean of K changes, each over sqrt(1 + versions made meanwhile), and FedAdam's step
    on it with moments that last: the whole run as one explicit loop.
    """
    buffers, aggregation = [], FedAsync.aggregation

    def noting(self, buffer):
        buffers.append(list(buffer))
        return aggregation(self, buffer)

    monkeypatch.setattr(FedAsync, "aggregation", noting)
    method = {**ASYNC, "kind": "fedbuff", "peft": "full", "answers": 10, "buffer": 2}
    method |= {"device_batch": 8, "server_optimiser": {"kind": "fedadam", "learning_rate": 0.01}}
    sim = simulate(fleet=FAST_AND_SLOW, method=method, **AT_ONCE)
    learner = sim.method.learner
    x, aged = learner.initial, False
    m = {name: torch.zeros_like(t) for name, t in x.items()}
    v = {name: torch.full_like(t, 1e-6) for name, t in x.items()}
    assert len(buffers) == 5
    for version, buffer in enumerate(buffers):
        ages = [version - payload.version for payload in buffer]
        aged = aged or (version > 1 and len(set(ages)) > 1)  # one is older than the other, and late
        changes = [learner.unpacked("random-bert", with_values(payload.data)) for payload in buffer]
        for name in x:
            d = sum(c[name] / (1 + age) ** 0.5 for c, age in zip(changes, ages, strict=True)) / 2
            new, m[name], v[name] = stepped("fedadam", x[name], d, m[name], v[name], 0.01)
            x = {**x, name: new}
    assert aged
    for name, tensor in learner.state.value.items():
        torch.testing.assert_close(tensor, x[name], atol=1e-5, rtol=0, msg=name)


def test_whoever_is_free_has_its_turn_without_rounds_too(simulate, spans):
    """10 devices, 3 at work at any time, 60 answers: each is asked about 6 times."""
    method = {**ASYNC, "answers": 60, "concurrency": 0.3}
    sim = simulate(fleet=[{**EQUAL[0], "count": 10}], method=method, dry=True, **AT_ONCE)
    times = Counter(s["actor"] for s in spans(sim, "upload", outcome="ok"))
    assert len(times) == 10 and all(2 <= asked <= 10 for asked in times.values())


def test_memory_is_needed_for_weights_a_step_and_adamws_two_moments(simulate):
    counted = training_architecture(find("random-bert"), "full", 3, head="dense")
    sim = simulate(fleet=EQUAL, method=ROUNDS, dry=True, **AT_ONCE)
    for device in sim.devices:
        lengths = sim.lengths(device, device.samples)
        batches = [lengths[start : start + 8] for start in range(0, len(lengths), 8)]
        peak = max(
            counted.step(len(batch), int(batch.max()), "adamw", False).peak_bytes
            for batch in batches
        )
        weights = sim.costing.architectures["random-bert"].parameters * 4
        needed = weights + peak + 8 * counted.trainable
        assert sim.method.peak_bytes(device) == device.peak_memory_bytes == needed
    most = max(device.peak_memory_bytes for device in sim.devices)
    simulate(fleet=[{**EQUAL[0], "memory": most}], method=ROUNDS, dry=True, **AT_ONCE)
    with pytest.raises(DoesNotFit):
        simulate(fleet=[{**EQUAL[0], "memory": most - 1}], method=ROUNDS, dry=True, **AT_ONCE)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, 2), ({"optimiser": "sgd"}, 0), ({"optimiser": "sgd", "momentum": 0.9}, 1)],
)
@pytest.mark.parametrize("method", ["fedavg-lora", "fedasync", "local-lora"])
def test_an_optimiser_costs_what_it_keeps(method, settings, kept, simulate, spans):
    """AdamW keeps two numbers for each trained one, momentum one, plain SGD none: 4 bytes of memory
    each, and read and written in every step. Numbers of random-bert with LoRA of rank 8 and the
    dense head of three classes: 2 x 2 x 8 x (64 + 64) + 64 x 65 + 3 x 65.
    """
    trained = 2 * 2 * 8 * 128 + 64 * 65 + 3 * 65
    own = {"rounds": 1} if method != "fedasync" else {"answers": 1, "concurrency": 0.4}
    world = {"fleet": EQUAL, "dry": True, **AT_ONCE}
    sims = [
        simulate(method={"kind": method, **own, **extra}, **world)
        for extra in (settings, {"optimiser": "sgd"})
    ]
    ours, plain = ([s for s in spans(sim, "compute") if s["actor"] != "server"] for sim in sims)
    device = sims[0].devices[0]
    peaks = [sim.method.peak_bytes(sim.devices[0]) for sim in sims]
    assert peaks[0] - peaks[1] == 4 * kept * trained
    assert [s["flop"] for s in ours] == [s["flop"] for s in plain]
    steps = -(-len(device.samples) // 32)
    moved = [sim.method.local_training(sim.devices[0], ClientTask(0, None, None)) for sim in sims]
    more = moved[0].cost.bytes_moved - moved[1].cost.bytes_moved
    assert more == 2 * 4 * kept * trained * steps


def test_every_local_epoch_is_charged(simulate, spans):
    one, three = (
        simulate(
            fleet=EQUAL, method={**ROUNDS, "rounds": 1, "local_epochs": n}, dry=True, **AT_ONCE
        )
        for n in (1, 3)
    )
    for short, long in zip(spans(one, "compute"), spans(three, "compute"), strict=True):
        assert long["flop"] == 3 * short["flop"]
    overhead_s = one.devices[0].profile.engine("simple").overhead_s
    short_s, long_s = (
        [s["end_s"] - s["start_s"] - overhead_s for s in spans(sim, "compute")]
        for sim in (one, three)
    )
    assert long_s == pytest.approx([3 * seconds for seconds in short_s])


@pytest.mark.parametrize(
    ("kind", "rate"), [("lora", 5e-3), ("adapter", 1e-3), ("bitfit", 5e-3), ("full", 5e-5)]
)
def test_without_a_learning_rate_it_is_fedpetunings_for_what_is_trained(kind, rate, simulate):
    method = {"kind": f"fedavg-{kind}", "rounds": 1, "participation": 1.0}
    sim = simulate(fleet=EQUAL, method=method, dry=True, **AT_ONCE)
    assert sim.method.settings.learning_rate == rate


def test_rounds_end_with_the_one_that_reaches_the_target(simulate):
    method = {**ROUNDS, "kind": "fedavg-lora", "rounds": 4}
    sim = simulate(fleet=EQUAL, method=method, stop={"target": 0.01}, **AT_ONCE)
    assert (sim.ended.reason, sim.updates) == ("target", 1)


def test_every_device_has_its_turns(simulate, spans):
    """10 devices, 3 a round, 20 rounds: each is asked about 6 times (standard deviation 2)."""
    method = {**ROUNDS, "rounds": 20, "participation": 0.3}
    sim = simulate(fleet=[{**EQUAL[0], "count": 10}], method=method, dry=True, **AT_ONCE)
    times = Counter(s["actor"] for s in spans(sim, "download"))
    assert len(times) == 10 and all(2 <= asked <= 10 for asked in times.values())


def test_each_round_has_its_own_deadline(simulate, spans):
    """The fast one answers, the slow one is late: a deadline that began with the run would close
    the later rounds at once.
    """
    alone_s = simulate(
        fleet=[{**EQUAL[0], "count": 1}], method={**ROUNDS, "rounds": 1}, dry=True, **AT_ONCE
    ).ended.at_s
    fleet = [
        {**EQUAL[0], "count": 1},
        {**EQUAL[0], "count": 1, "device": "raspberry-pi-4", "link": "lte-driving"},
    ]
    method = {**ROUNDS, "rounds": 3, "deadline": 1.2 * alone_s}
    sim = simulate(fleet=fleet, method=method, dry=True, **AT_ONCE)
    waits = [s["end_s"] - s["start_s"] for s in spans(sim, "wait", actor="server")]
    assert waits == pytest.approx([1.2 * alone_s] * 3) and sim.updates == 3


@pytest.mark.parametrize("kind", ["fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "fedavg-full"])
def test_bytes_both_ways_are_four_a_trained_number(kind, simulate, spans):
    sim = simulate(fleet=EQUAL, method={**ROUNDS, "kind": kind}, **AT_ONCE)
    nbytes = (
        4
        * training_architecture(
            find("random-bert"), kind.removeprefix("fedavg-"), 3, head="dense"
        ).trainable
    )
    for way in ("upload", "download"):
        assert [s["nbytes"] for s in spans(sim, kind=way)] == [nbytes] * 6
    packed = sim.method.learner.packed(
        sim.method.learner.part_of("random-bert", sim.method.learner.state.value)
    )
    assert len(packed) == nbytes


@pytest.mark.parametrize(
    "method",
    [ROUNDS, {**ASYNC, "peft": "full"}, {**ASYNC, "kind": "fedbuff", "peft": "lora", "buffer": 3}],
)
def test_a_dry_runs_spans_are_the_real_runs_and_the_digest_repeats(method, simulate, mark):
    real, again, dry = (
        simulate(method=method, dry=d, workers=w) for d, w in ((False, 1), (False, 2), (True, 1))
    )
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert mark(real) == mark(again)


def test_cuts_of_one_backbone_share_what_they_have(simulate, spans):
    sim = simulate(method={**ROUNDS, "rounds": 1})  # two whole ones and one of a single layer
    whole, cut = (
        sim.method.learner.models[name].trainable() for name in ("random-bert", "random-bert-l1")
    )
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
    late = simulate(
        method={**ROUNDS, "rounds": 3, "participation": 0.34, "over_selection": 3.0},
        dry=True,
        **AT_ONCE,
    )
    for waited in spans(late, actor="server", kind="wait"):  # a round is over with its first answer
        inside = [
            s
            for s in spans(late, kind="upload", outcome="ok")
            if waited["start_s"] < s["end_s"] <= waited["end_s"]
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
    [
        {**ROUNDS, "rounds": 4},
        {**ASYNC, "peft": "lora"},
        {**ASYNC, "kind": "fedbuff", "peft": "lora", "buffer": 2},
    ],
)
def test_a_device_that_drops_out_stalls_nobody(method, simulate, spans):
    sim = simulate(method=method, dry=True, dropped=(0, 0.05), **AT_ONCE)
    assert sim.ended.reason == "exhausted"
    assert sim.devices[0].outcome == "dropped"
    assert {d.outcome for d in sim.devices[1:]} <= {"ok", "ended"}
    assert len(spans(sim, actor="device-0000", outcome="dropped")) == 1
    assert spans(sim, actor="device-0001", kind="upload")[-1]["start_s"] > 0.05


@pytest.mark.thorough
@pytest.mark.parametrize(
    "method",
    [
        {**ROUNDS, "rounds": 8, "learning_rate": 3e-3},
        {**ROUNDS, "kind": "fedavg-lora", "rounds": 12, "learning_rate": 2e-2},
        {**ASYNC, "peft": "lora", "answers": 36, "learning_rate": 2e-2, "device_batch": 8},
        {
            **ASYNC,
            "kind": "fedbuff",
            "buffer": 3,
            "peft": "lora",
            "answers": 36,
            "learning_rate": 2e-2,
            "device_batch": 8,
        },
    ],
)
def test_it_learns(method, simulate):
    sim = simulate(fleet=EQUAL, method=method, **AT_ONCE)
    best = max(
        m["value"]
        for m in sim.recorder.metrics().to_pylist()
        if (m["name"], m["group"]) == ("accuracy", "")
    )
    assert best >= 0.95  # all is learned; the commonest class has 0.43


def test_staleness_of_three_devices_by_hand(simulate, spans):
    """A fast device answers twice while a slow one works: the slow answer is as many versions old
    as were made meanwhile.
    """
    sim = simulate(
        fleet=FAST_AND_SLOW, method={**ASYNC, "peft": "full", "answers": 9}, dry=True, **AT_ONCE
    )
    applied = spans(sim, actor="server", kind="aggregate")
    noted = [
        (m["time_s"], m["value"], m["group"])
        for m in sim.recorder.metrics().to_pylist()
        if m["name"] == "staleness"
    ]
    downloads = spans(sim, kind="download")
    uploads = {s["flows"][0]: s for s in spans(sim, kind="upload", outcome="ok")}
    assert len(noted) == len(applied) == 9
    for (time_s, staleness, group), work in zip(noted, applied, strict=True):
        [flow] = work["flows"]
        sender = uploads[flow]["actor"]
        asked_s = max(
            d["start_s"]
            for d in downloads
            if d["actor"] == sender and d["start_s"] < uploads[flow]["start_s"]
        )
        meanwhile = [w for w in applied if asked_s < w["end_s"] <= time_s]
        assert staleness == len(meanwhile), group
    assert {value for _, value, _ in noted} > {0.0}


def test_staleness_weights():
    assert Staleness("constant").weight(7) == 1
    assert Staleness("polynomial", a=0.5).weight(3) == 0.5
    assert Staleness("hinge", a=1.0, b=4).weight(6) == pytest.approx(1 / 3)


def test_looking_at_the_model_waits_its_turn(simulate, mark):
    """Evaluation loads weights into the model that devices train with: with workers it must not
    come between.
    """
    method = {**ASYNC, "peft": "lora", "answers": 30, "evaluate_every": 1, "learning_rate": 2e-2}
    one, four = (
        simulate(fleet=EQUAL, method=method, workers=workers, **AT_ONCE) for workers in (1, 4)
    )
    assert mark(one) == mark(four)
