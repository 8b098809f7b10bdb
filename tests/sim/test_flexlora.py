"""FlexLoRA on the clock: against a plain loop with dense updates, formulas, published sizes and
devices that drop out.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.backbones.backbone import pad
from learning.backbones.catalogue import find
from learning.cost.count_training import training_architecture
from learning.federated.aggregation import flex_lora_flop
from learning.federated.trainable import TrainableClassifier

AT_ONCE = {"arrivals": {"kind": "at-once"}, "evaluate_every": 1, "jitter": False}
FLEX = {
    "kind": "flexlora",
    "rounds": 2,
    "participation": 1.0,
    "learning_rate": 5e-3,
    "device_batch": 8,
}
MIXED = {**FLEX, "ranks": {"raspberry-pi-5": 4, "strong": 12}}
FLEET = [
    {"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
    {
        "count": 1,
        "device": "raspberry-pi-5",
        "backbone": "random-bert",
        "link": "wifi-home",
        "name": "strong",
    },
    {"count": 1, "device": "raspberry-pi-5", "backbone": "random-bert", "link": "wifi-home"},
]
HEAD = 64 * 65 + 3 * 65  # numbers of a dense head of three classes
RANKS = [8, 12, 4]  # all others; a group's before its device's; a device's


def dense(state, scaling):
    """The update of each matrix, and the other tensors, in float64."""
    made = {}
    for name, tensor in state.items():
        if ".lora_A." in name:
            made[name] = (
                scaling * state[name.replace("lora_A", "lora_B")].double() @ tensor.double()
            )
        elif ".lora_B." not in name:
            made[name] = tensor.double()
    return made


def factors(of, rank, scaling):
    """A LoRA state of a rank from dense updates, by PyTorch's own SVD of the whole matrix."""
    made = {}
    for name, tensor in of.items():
        if ".lora_A." in name:
            u, s, v_t = torch.linalg.svd(tensor)
            made[name] = v_t[:rank].float()
            made[name.replace("lora_A", "lora_B")] = (u[:, :rank] * s[:rank] / scaling).float()
        else:
            made[name] = tensor.float()
    return made


def plain_model(rank, alpha, seed):
    return TrainableClassifier(
        find("random-bert"), "lora", 3, "mean", rank, alpha, 16, seed, head="dense"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("alpha", [None, 8.0])
def test_two_rounds_equal_a_plain_loop_over_dense_updates(alpha, simulate):
    """Every device a plain AdamW loop on its own rank; means of dense matrices; an SVD of each: the
    same to 1e-5.
    """
    sim = simulate(fleet=FLEET, method={**MIXED, "alpha": alpha, "dropout": 0}, **AT_ONCE)
    seed, scalings = sim.streams.seed64("server/model") % 2**31, [(alpha or r) / r for r in RANKS]
    models = [plain_model(r, alpha or r, seed) for r in RANKS]
    starts = [model.trainable() for model in models]
    for number in range(2):
        made = []
        for device, model, start, scaling in zip(
            sim.devices, models, starts, scalings, strict=True
        ):
            model.load_trainable(start)
            optimiser = torch.optim.AdamW(
                model.trainable_parameters().values(), lr=5e-3, weight_decay=0.0
            )
            tokens = sim.task.tokens(find("random-bert"), device.samples)
            labels = torch.tensor(sim.task.labels[device.samples])
            local = sim.streams.seed64("local-training", f"{device.id}/{number}") % 2**31
            order = np.random.default_rng(local).permutation(len(labels))
            for chosen in np.split(order, range(8, len(order), 8)):
                optimiser.zero_grad()
                F.cross_entropy(
                    model(*pad([tokens.ids[i] for i in chosen])), labels[chosen]
                ).backward()
                optimiser.step()
            made.append(dense(model.trainable(), scaling))
        mean = {name: sum(m[name] for m in made) / len(made) for name in made[0]}
        starts = [
            factors(mean, rank, scaling) for rank, scaling in zip(RANKS, scalings, strict=True)
        ]
    learner = sim.method.learner
    for rank, scaling, start in zip(RANKS, scalings, starts, strict=True):
        ours = dense(learner.part_of(("random-bert", rank), learner.state.value), scaling)
        for name, tensor in dense(start, scaling).items():
            assert torch.allclose(ours[name], tensor, atol=1e-5), (rank, name)
    assert dense(learner.state.value, 1.0).keys() == mean.keys()


@pytest.mark.thorough
def test_every_device_sends_and_computes_what_its_own_rank_takes(simulate, spans):
    sim = simulate(fleet=FLEET, method=MIXED, **AT_ONCE)
    for device, rank in zip(sim.devices, RANKS, strict=True):
        numbers = 2 * 2 * rank * (64 + 64) + HEAD  # two layers' query and value maps
        for way in ("upload", "download"):
            assert [s["nbytes"] for s in spans(sim, actor=device.id, kind=way)] == [4 * numbers] * 2
        model = ("random-bert", rank)
        assert (
            len(sim.method.learner.packed(sim.method.learner.models[model].trainable()))
            == 4 * numbers
        )
    equal = simulate(fleet=FLEET, method=FLEX, dry=True, **AT_ONCE)
    flop = [
        [sum(s["flop"] for s in spans(run, actor=d.id)) for d in run.devices]
        for run in (sim, equal)
    ]
    assert flop[0][0] == flop[1][0] and flop[0][1] > flop[1][1] and flop[0][2] < flop[1][2]
    peaks = [[d.peak_memory_bytes for d in run.devices] for run in (sim, equal)]
    assert peaks[0][0] == peaks[1][0] and peaks[0][1] > peaks[1][1]
    (of_mean, _) = (s["flop"] for s in spans(sim, actor="server", kind="aggregate"))
    sent = sum(2 * 2 * rank * 128 + HEAD for rank in RANKS)
    assert of_mean == 4 * sent + 2 * 2 * flex_lora_flop(RANKS, 12, 64)


def test_bytes_grow_with_the_rank_as_on_real_phones():
    """EdgeFlowerTune (arXiv 2605.08636), FlexLoRA of Gemma-3-270M on three phones: 1,486,080,
    2,960,640 and 5,909,760 bytes uploaded at ranks 4, 8 and 16, for query, key, value and output
    maps of 18 layers, and a fixed frame beside them.
    """
    hidden, queries, keys = 640, 4 * 256, 256
    numbers = 18 * ((hidden + queries) + 2 * (hidden + keys) + (queries + hidden))
    measured = {4: 1_486_080, 8: 2_960_640, 16: 5_909_760}
    assert {nbytes - 4 * rank * numbers for rank, nbytes in measured.items()} == {11_520}


def test_the_worked_numbers_of_the_documents():
    costs = [
        training_architecture(find("roberta-base"), "lora", rank=rank, head="dense")
        for rank in (4, 8, 16)
    ]
    assert [cost.trainable_bytes for cost in costs] == [2_958_344, 3_548_168, 4_727_816]
    assert 24 * flex_lora_flop([4] * 6 + [16] * 4, 16, 768) == pytest.approx(1.62e9, rel=2e-3)


def test_a_dry_runs_spans_are_the_real_runs_and_the_digest_repeats(simulate, mark):
    method = {**MIXED, "over_selection": 1.5, "participation": 0.67}
    real, again, dry = (
        simulate(fleet=FLEET, method=method, dry=d, workers=w) for d, w in ((0, 1), (0, 2), (1, 1))
    )
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert mark(real) == mark(again)
    assert real.updates == 2


def test_it_learns_on_cuts_of_one_backbone(simulate, curve, spans):
    fleet = [{**FLEET[0], "backbone": "random-bert-l1"}, *FLEET[1:]]
    sim = simulate(
        fleet=fleet,
        method={**MIXED, "rounds": 10, "learning_rate": 2e-2, "evaluate_every": 10},
        **AT_ONCE,
    )
    assert curve(sim)[-1] >= 0.95  # all is learned; the commonest class has 0.43
    assert [s["nbytes"] for s in spans(sim, kind="upload", actor=sim.devices[0].id)] == [
        4 * (2 * 8 * 128 + HEAD)
    ] * 10


@pytest.mark.parametrize("during", ["download", "compute", "upload"])
def test_a_device_that_drops_out_stalls_nobody(during, simulate, spans):
    undisturbed = simulate(fleet=FLEET, method=MIXED, dry=True, **AT_ONCE)
    span = spans(undisturbed, during, actor="device-0001")[0]
    moment_s = (span["start_s"] + span["end_s"]) / 2
    sim = simulate(fleet=FLEET, method=MIXED, dropped=(1, moment_s), **AT_ONCE)
    assert [d.outcome for d in sim.devices] == ["ok", "dropped", "ok"]
    assert sim.ended.reason == "exhausted" and sim.updates == 2
    [cut] = spans(sim, outcome="dropped")
    assert (cut["kind"], cut["end_s"]) == (during, pytest.approx(moment_s))
    assert torch.isfinite(
        torch.cat([t.flatten() for t in sim.method.learner.state.value.values()])
    ).all()


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({"jetson-txx2": 4}, "jetson-txx2.*did you mean 'jetson-tx2'"),
        ({"strong": 65}, "65 is more"),
    ],
)
def test_ranks_that_cannot_be_are_refused(ranks, said, simulate):
    with pytest.raises(ValueError, match=said):
        simulate(fleet=FLEET, method={**FLEX, "ranks": ranks}, dry=True, **AT_ONCE)
