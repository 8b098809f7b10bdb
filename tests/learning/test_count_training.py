"""Counted costs of training against published counts, closed formulas, fresh counts and a live step
on real tensors.
"""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
import torch

from learning.backbones.catalogue import config_of, find
from learning.backbones.huggingface import bare_model, hf_config
from learning.backbones.tokens import Tokens
from learning.cost import count_training as counting
from learning.cost.count_training import count_step, count_training, training_architecture
from learning.cost.forward_pass import architecture
from learning.cost.meter import CostMeter
from learning.federated.local_training import LocalTraining, train
from learning.federated.trainable import TrainableClassifier

torch.set_num_threads(1)
ROBERTA, NARROW, MIB = config_of(find("roberta-base")), config_of(find("minilm-narrow")), 2**20
SIZES = {"full": {}, "lora": {"rank": 8}, "adapter": {"bottleneck": 16}, "bitfit": {}, "head": {}}
BACKBONES = ("roberta-base", "minilm", "minilm-l2", "minilm-l4", "minilm-narrow")


@pytest.mark.parametrize("positions", [5, 32, 63])
def test_a_model_with_few_positions_costs_what_one_with_many_does(positions):
    short, long = (
        count_training({**NARROW, "max_position_embeddings": n}, "lora", rank=2).plain
        for n in (positions, 512)
    )
    assert dataclasses.replace(short, bytes_moved=long.bytes_moved) == long
    assert short.bytes_moved == pytest.approx(long.bytes_moved, rel=0.002)  # of the table itself


@pytest.fixture
def counted():
    """The shipped counts of a small encoder, one a kind."""
    return lambda kind: training_architecture(find("minilm-narrow"), kind)


def live(kind, classes=2):
    """The same encoder on real tensors, untrained, so that it needs no fetched weights."""
    made = hf_config(NARROW)
    return TrainableClassifier(
        find("minilm-narrow"), kind, classes, backbone=bare_model(made).from_config(made)
    )


@pytest.mark.parametrize(
    ("kind", "gflop", "own_head"),
    [("full", 67.045, 3), ("lora", 45.047, 3)],
)
def test_published_counts_of_roberta_base(kind, gflop, own_head):
    """128 tokens, forward and backward; the counts that were published include a second d x d map
    in the head.
    """
    second_map = own_head * 2 * 768 * 768
    step = training_architecture(find("roberta-base"), kind).step(1, 128)
    assert (step.flop + second_map) / 1e9 == pytest.approx(gflop, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "plain_mib", "dropout_mib"), [("full", 1302.5, 1740.7), ("lora", 859.9, 1292.0)]
)
def test_published_saved_bytes_of_roberta_base_are_those_with_dropout(kind, plain_mib, dropout_mib):
    """16 x 128 tokens; masks and thinned copies of dropout 0.1 are a quarter to a third of what is
    saved.
    """
    assert training_architecture(find("roberta-base"), kind).saved_bytes(
        16, 128
    ) / MIB == pytest.approx(plain_mib, abs=0.1)
    _, saved = count_step(ROBERTA, kind, 16, 128, dropout=0.1, **SIZES[kind])
    assert saved / MIB == pytest.approx(dropout_mib, abs=0.3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_costs_two_or_three_forward_passes(backbone):
    """Each product has one gradient for its input and one for its weights; PEFT needs the first
    only, the head neither.
    """
    forward = architecture(find(backbone)).forward(1, 64).flop
    ratio = {
        kind: training_architecture(find(backbone), kind).step(1, 64).flop / forward
        for kind in SIZES
    }
    assert ratio["full"] == pytest.approx(3, rel=0.01)
    for kind in ("lora", "adapter", "bitfit"):
        assert 1.5 < ratio[kind] < 2.2  # the first layer needs no gradient for its input
    assert ratio["head"] == pytest.approx(1, rel=0.01)
    again = {
        kind: training_architecture(find(backbone), kind).step(1, 64, checkpointing=True).flop
        for kind in SIZES
    }
    assert again["full"] / forward == pytest.approx(4, rel=0.01)
    assert again["head"] == training_architecture(find(backbone), "head").step(1, 64).flop


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
@pytest.mark.parametrize(
    ("batch", "tokens", "checkpointing"),
    [(5, 33, False), (8, 200, False), (64, 480, False), (16, 100, True), (32, 450, True)],
)
def test_coefficients_give_what_a_fresh_count_gives(counted, kind, batch, tokens, checkpointing):
    fresh, saved = count_step(
        NARROW, kind, batch, tokens, checkpointing=checkpointing, **SIZES[kind]
    )
    step = counted(kind).step(batch, tokens, checkpointing=checkpointing)
    assert step.flop == fresh.flop
    assert counted(kind).saved_bytes(batch, tokens, checkpointing) == pytest.approx(saved, rel=2e-3)
    assert step.peak_bytes == pytest.approx(fresh.peak_bytes, rel=0.05)


@pytest.mark.parametrize("kind", SIZES)
def test_a_live_step_on_real_tensors_peaks_where_counted(counted, kind):
    model = live(kind)
    ids = torch.randint(2, 2000, (8, 96))
    mask, labels, memory = torch.ones_like(ids), torch.zeros(8, dtype=torch.long), CostMeter()
    mask[0, -1] = 0
    memory.ignore([ids, mask, labels, *model.parameters(), *model.buffers()])
    with memory:
        torch.nn.functional.cross_entropy(model(ids, mask), labels).backward()
    assert counted(kind).step(8, 96).peak_bytes == pytest.approx(memory.peak_bytes, rel=0.05)


@pytest.mark.parametrize("kind", SIZES)
def test_numbers_are_the_models_own(counted, kind):
    model = live(kind)
    assert counted(kind).trainable_bytes == model.trainable_bytes
    assert counted(kind).parameters == sum(p.numel() for p in model.parameters())
    state = model.trainable()
    optimiser = torch.optim.AdamW(model.trainable_parameters().values())
    for parameter in model.trainable_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moments = [t for s in optimiser.state.values() for n, t in s.items() if n != "step"]
    assert counted(kind).optimiser_bytes("adamw") == sum(4 * t.numel() for t in moments)
    assert counted(kind).optimiser_bytes("sgd") == 0 and len(state) == len(optimiser.state)


def test_a_head_of_more_classes_is_added_exactly(counted, monkeypatch):
    for kind in ("lora", "head"):
        many = counting._with_classes(counted(kind), 7)
        model = live(kind, 7)
        assert many.trainable_bytes == model.trainable_bytes
        monkeypatch.setattr(counting, "_CLASSES", 7)
        fresh, _ = count_step(NARROW, kind, 3, 16, **SIZES[kind])
        monkeypatch.undo()
        assert many.step(3, 16).flop == fresh.flop


@pytest.mark.parametrize("backbone", ["minilm", "minilm-l4"])
@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [("full", False), ("lora", True), ("adapter", False), ("bitfit", True)],
)
def test_deep_models_follow_from_their_cuts(backbone, kind, checkpointing):
    """The counts shipped for 6 and 4 layers come from cuts to 2 and 3; a fresh count of all layers
    agrees.
    """
    spec, batch, tokens = find(backbone), 64, 100
    fresh, saved = count_step(
        config_of(spec), kind, batch, tokens, checkpointing=checkpointing, **SIZES[kind]
    )
    shipped = training_architecture(spec, kind)
    step = shipped.step(batch, tokens, checkpointing=checkpointing)
    assert step.flop == fresh.flop
    assert shipped.saved_bytes(batch, tokens, checkpointing) == pytest.approx(saved, rel=1e-4)
    assert step.peak_bytes == pytest.approx(fresh.peak_bytes, rel=0.03)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_fitted_cost_of_five_layers_is_a_direct_count_of_five(kind):
    config = {**NARROW, "num_hidden_layers": 5}
    fitted, direct = (
        count_training(config, kind, **SIZES[kind]),
        counting._count(config, kind, "linear", SIZES[kind]),
    )
    assert (fitted.parameters, fitted.trainable) == (direct.parameters, direct.trainable)
    for ours, whole in ((fitted.plain, direct.plain), (fitted.checkpointed, direct.checkpointed)):
        assert ours.flop == whole.flop and ours.bytes_moved == whole.bytes_moved
        assert ours.saved == whole.saved
    layer = 2 * (4 * 128 * 128 + 2 * 128 * 512)  # FLOP a token of one layer's products, forward
    assert (
        5 * layer < direct.plain.flop[1]
        and direct.plain.flop[1] < (3.01 if kind == "full" else 2.1) * 5 * layer
    )


@pytest.mark.parametrize(("kind", "millions"), [("full", 124.7), ("lora", 0.9), ("bitfit", 0.7)])
def test_with_robertas_head_the_trained_numbers_are_fedpetunings(kind, millions):
    """Zhang et al., Findings of ACL 2023: RoBERTa-base with its classification head, in
    millions.
    """
    trained = training_architecture(find("roberta-base"), kind, head="dense").trainable
    assert trained / 1e6 == pytest.approx(millions, abs=0.06)
    linear = training_architecture(find("roberta-base"), kind).trainable
    assert trained - linear == 768 * 768 + 768


def test_memory_orders_as_it_should():
    of = {kind: training_architecture(find("roberta-base"), kind) for kind in SIZES}
    saved = {kind: a.saved_bytes(16, 128) for kind, a in of.items()}
    # two adapters a layer keep more than LoRA beside queries and values
    assert saved["head"] < saved["bitfit"] < saved["lora"] < saved["adapter"] < saved["full"]
    for kind in ("full", "lora", "adapter", "bitfit"):
        plain, less = of[kind].step(16, 128), of[kind].step(16, 128, checkpointing=True)
        assert less.peak_bytes < 0.45 * plain.peak_bytes and less.flop > plain.flop
        assert of[kind].saved_bytes(16, 128, checkpointing=True) < 0.12 * saved[kind]
    assert (
        of["full"].step(1, 8).peak_bytes == of["full"].trainable_bytes
    )  # few texts: the gradients are the peak


def test_traffic_is_weights_gradients_and_the_optimisers_own():
    """RoNARROWa-base, LoRA: all weights but the word table are read forward and backward; the
    trained ones go 7 ways more.
    """
    lora = training_architecture(find("roberta-base"), "lora")
    read = architecture(find("roberta-base")).weight_bytes_read
    sgd, adamw = lora.step(4, 64, "sgd"), lora.step(4, 64)
    assert sgd.bytes_moved == pytest.approx(2 * read, rel=0.05)
    assert adamw.bytes_moved - sgd.bytes_moved == 4 * lora.trainable_bytes
    assert lora.step(4, 64, "sgd", checkpointing=True).bytes_moved == pytest.approx(
        3 * read, rel=0.05
    )


def test_shipped_counts_cover_what_they_promise_and_are_todays():
    file = json.loads(counting._SHIPPED.read_text())
    sizes = [*((kind, sum(options.values()), "houlsby") for kind, options in SIZES.items())]
    sizes += [("lora", 16, ""), ("adapter", 16, "pfeiffer")]
    kinds = list(itertools.product(sizes, ("linear", "dense")))
    configs = [config_of(find(b)) for b in BACKBONES]
    assert set(file) == {
        counting._key(c, kind, size, head, form)
        for c in configs
        for (kind, size, form), head in kinds
    }
    shipped = counting._from_json(file[counting._key(NARROW, "lora", 8, "linear")])
    assert shipped == counting.count_training(NARROW, "lora", rank=8)
    shipped = counting._from_json(file[counting._key(NARROW, "adapter", 16, "dense", "houlsby")])
    assert shipped == counting.count_training(NARROW, "adapter", "dense", bottleneck=16)


def test_another_rank_than_those_counted_is_as_if_counted():
    config, ours = (
        config_of(find("minilm-l2")),
        training_architecture(find("minilm-l2"), "lora", rank=3),
    )
    assert ours == counting.count_training(config, "lora", rank=3)
    assert isinstance(ours.trainable, int)


def test_an_uncatalogued_training_is_counted_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path))
    first = training_architecture(find("random-bert"), "head")
    monkeypatch.setattr(counting, "count_training", lambda *_, **__: pytest.fail("counted twice"))
    assert training_architecture(find("random-bert"), "head") == first
    assert (
        training_architecture(find("random-bert"), "head", classes=3).trainable
        == first.trainable + 65
    )


def test_looking_up_a_shipped_cost_needs_no_torch():
    code = (
        "import sys; from learning.backbones.catalogue import find; from "
        "learning.cost.count_training import training_architecture;"
        "import learning.federated.local_training, learning.federated.aggregation;"
        "print(training_architecture(find('minilm'), 'lora').step(8, 64).flop); assert 'torch' not "
        "in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == training_architecture(find("minilm"), "lora").step(8, 64).flop


def test_the_worked_number_of_the_documents():
    """MiniLM, LoRA of rank 8, two classes, batch 32 of 32 tokens: a step and a round of 100
    texts.
    """
    lora = training_architecture(find("minilm"), "lora")
    step = lora.step(32, 32)
    assert lora.trainable == 6 * 2 * 2 * 8 * 384 + 2 * 385 == 74_498
    assert lora.trainable_bytes == 297_992
    assert step.flop / 1e9 == pytest.approx(43.9, abs=0.1)
    assert lora.saved_bytes(32, 32) / MIB == pytest.approx(98.0, abs=0.1)
    model = TrainableClassifier(find("random-bert"), "lora", 2)
    tokens, labels = Tokens([torch.arange(2, 9).int().numpy()] * 100), [0, 1] * 50
    assert (
        train(model, model.trainable(), tokens, labels, LocalTraining(batch=32), seed=0).steps == 4
    )


@pytest.mark.parametrize(
    ("kind", "trained", "gflop", "again", "saved", "peak", "less", "kept"),
    [
        ("full", 124_056_578, 67.04, 89.39, 1302.5, 1326, 473, 946.5),
        ("lora", 296_450, 45.04, 67.47, 859.9, 908, 187, 2.3),
        ("adapter", 610_178, 45.04, 67.54, 912.4, 967, 200, 4.7),
        ("adapter, pfeiffer", 305_858, 43.61, 66.03, 805.9, 861, 193, 2.3),
        ("bitfit", 103_682, 45.30, 67.65, 798.4, 853, 193, 0.8),
        ("head", 1_538, 22.35, 22.35, 0.0, 79, 79, 0.0),
    ],
)
def test_the_table_of_the_documents(kind, trained, gflop, again, saved, peak, less, kept):
    kind, _, form = kind.partition(", ")
    roberta = training_architecture(find("roberta-base"), kind, adapters=form or "houlsby")
    plain, checkpointed = roberta.step(16, 128), roberta.step(16, 128, checkpointing=True)
    assert roberta.trainable == trained
    assert (plain.flop / 16e9, checkpointed.flop / 16e9) == pytest.approx((gflop, again), abs=0.006)
    assert roberta.saved_bytes(16, 128) / MIB == pytest.approx(saved, abs=0.06)
    assert (plain.peak_bytes / MIB, checkpointed.peak_bytes / MIB) == pytest.approx(
        (peak, less), abs=0.6
    )
    assert roberta.optimiser_bytes() / MIB == pytest.approx(kept, abs=0.06)
