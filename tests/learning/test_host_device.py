"""The learning on another torch device or in another precision, against the CPU in float32; and
that nothing is left behind on the way there.

Where there is no accelerator, bfloat16 on the CPU takes the same ways, and fake tensors on `meta`
stand for a device: torch refuses to mix theirs with the CPU's.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from learning import host_device
from learning.arithmetic import arithmetic
from learning.backbones.backbone import Backbone, pad
from learning.backbones.catalogue import find
from learning.backbones.tokens import Tokens
from learning.backbones.vocabulary_head import VocabularyHead
from learning.federated import forward_gradient, split
from learning.federated.local_training import LocalTraining, predict, train
from learning.federated.stackable import Holding
from learning.federated.stacked import train_together
from learning.federated.trainable import TrainableClassifier
from learning.host_device import CPU, HostDevice, HostDeviceError, compute_on
from learning.next_token import difference
from learning.next_token.choices import form_of
from learning.next_token.side import _partition
from learning.side.config import SideNetworkConfig, SideShape
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

torch.set_num_threads(1)
# how far results may be off, as a share of their size: rounding, and sums in another order
OTHERS = [
    pytest.param(HostDevice("cpu", "bfloat16"), 0.05, id="cpu-bfloat16"),
    pytest.param(HostDevice("cuda"), 1e-3, id="cuda"),
    pytest.param(HostDevice("cuda", "bfloat16"), 0.05, id="cuda-bfloat16"),
    pytest.param(HostDevice("mps"), 1e-3, id="mps"),
]
BACKBONES = ("random-bert", "random-llama")
other_devices = pytest.mark.parametrize(("other", "slack"), OTHERS)


@pytest.fixture(autouse=True)
def on_the_cpu_again():
    yield
    compute_on(CPU)


def go_to(host):
    try:
        compute_on(host)
    except HostDeviceError as error:
        pytest.skip(str(error))


def texts(count, longest=20, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(2, 2000, rng.integers(2, longest)).astype(np.int32) for _ in range(count)]
    return Tokens(ids)


def off(found, wanted):
    """How far a result is off, as a share of the right one."""
    found, wanted = (np.asarray(x, dtype=np.float64) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def flat(state):
    return np.concatenate([tensor.numpy().ravel() for tensor in state.values()])


# --- equal results


@other_devices
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("readout", ["first", "last", "mean"])
def test_a_frozen_backbone_reads_the_same(name, readout, other, slack):
    tokens = texts(40)
    here = Backbone(find(name)).readouts(tokens, readout)
    go_to(other)
    there = Backbone(find(name)).readouts(tokens, readout)
    assert there.dtype == np.float32
    assert off(there, here) < slack
    assert (there != here).any(), "it was computed there"


@other_devices
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_device_trains_the_same(kind, other, slack):
    tokens, labels = texts(24), np.arange(24) % 3
    settings = LocalTraining(epochs=2, batch=8, learning_rate=0.05, optimiser="sgd", dropout=0)
    model = TrainableClassifier(find("random-bert"), kind, 3, head="dense")
    start = model.trainable()
    here = train(model, start, tokens, labels, settings, seed=4)
    logits = predict(model, here.state, tokens)
    go_to(other)
    model = TrainableClassifier(find("random-bert"), kind, 3, head="dense")
    assert all(t.equal(start[name]) for name, t in model.trainable().items())
    there = train(model, start, tokens, labels, settings, seed=4)
    assert {t.device.type for t in there.state.values()} == {"cpu"}
    assert {t.dtype for t in there.state.values()} == {torch.float32}
    moved = flat(here.state) - flat(start)
    assert off(flat(there.state) - flat(start), moved) < slack
    assert off(there.mean_loss, here.mean_loss) < slack
    assert off(predict(model, here.state, tokens), logits) < slack


@other_devices
def test_devices_train_the_same_together(other, slack):
    model = TrainableClassifier(find("random-bert"), "lora", 3)
    start = model.trainable()
    settings = LocalTraining(batch=8, learning_rate=0.05, optimiser="sgd", dropout=0)
    devices = [
        Holding(start, texts(count, seed=count), np.arange(count) % 3, count)
        for count in (20, 8, 13)
    ]
    alone = [train(model, d.state, d.tokens, d.labels, settings, d.seed) for d in devices]
    go_to(other)
    model = TrainableClassifier(find("random-bert"), "lora", 3)
    for one, wanted in zip(train_together(model, devices, settings), alone, strict=True):
        assert {t.device.type for t in one.state.values()} == {"cpu"}
        assert off(flat(one.state) - flat(start), flat(wanted.state) - flat(start)) < slack


def tuning():
    """A side network of two backbones of unlike width, with records to learn from."""
    rng, classes, widths = np.random.default_rng(0), 3, {"a": 24, "b": 16}
    shape = SideShape(2, 24, 6, classes, widths, "zeros")
    held = {
        name: HeldOut(
            rng.normal(0, 1, (30, 2, width)).astype(np.float32),
            np.full((30, classes), 1 / 3, np.float32),
            rng.integers(classes, size=30),
        )
        for name, width in widths.items()
    }
    made = SideNetworkTrainer(shape, SideNetworkConfig(), Training(), held, seed=1)
    records = []
    for name in widths:
        values = torch.from_numpy(held[name].values)
        made.observe(name, values)
        one_hot = F.one_hot(torch.from_numpy(held[name].labels), classes).float()
        records += [(name, *pair) for pair in zip(values, one_hot - 1 / 3, strict=True)]
    return made, records


@other_devices
def test_the_side_network_takes_the_same_steps(monkeypatch, other, slack):
    here, records = tuning()
    losses = [here.train(records[step::4]) for step in range(4)]
    go_to(other)
    monkeypatch.setattr(host_device, "_LEAST_SIDE_NETWORK", 0)
    there, _ = tuning()
    assert off([there.train(records[step::4]) for step in range(4)], losses) < slack
    saved = there.saved()
    assert {tensor.device.type for tensor in saved.values()} == {"cpu"}
    weights = [n for n in saved if n.startswith("averaged.") and "standard" not in n]
    mine = here.saved()
    assert off(flat({n: saved[n] for n in weights}), flat({n: mine[n] for n in weights})) < slack
    resumed = tuning()[0].load(saved)
    assert resumed.train(records[:8]) == pytest.approx(there.train(records[:8]), rel=1e-5)
    assert there.evaluate().keys() == here.evaluate().keys()


@pytest.mark.parametrize("other", [HostDevice("cuda"), HostDevice("mps")], ids=["cuda", "mps"])
def test_derivatives_and_split_passes_are_the_same(other):
    tokens, labels = texts(6), torch.arange(6) % 3
    ids, mask = pad(tokens.ids)

    def found():
        model = TrainableClassifier(find("random-bert"), "lora", 3)
        state = model.trainable()
        loss = forward_gradient.batch_loss(model, ids, mask, labels)
        v = forward_gradient.direction(state, 1)
        slope = forward_gradient.directional_derivative(loss, state, v)
        client, server = split.splitfed(model, 1)
        sent = split.forward(client, state, ids, mask)
        value, _, back = split.learn(server, state, sent.output, mask, labels)
        gradients, _ = sent.backward(back)
        return [*slope, value, *flat(gradients)]

    here = found()
    go_to(other)
    assert off(found(), here) < 1e-3


# --- what lies where


@pytest.fixture
def accelerator(monkeypatch):
    """Fake tensors on another device than the CPU: models that are made go there."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def place(self, model):
        with mode:
            for module in model.modules():
                for name, tensor in module._parameters.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                        module._parameters[name] = nn.Parameter(fake, tensor.requires_grad)
                for name, tensor in module._buffers.items():
                    if tensor is not None:
                        module._buffers[name] = torch.empty_like(tensor, device="meta")
        return model

    monkeypatch.setattr(HostDevice, "place", place)
    return mode


def classifier(kind):
    model = TrainableClassifier(find("random-llama"), kind, 3, head="dense")
    state = {name: torch.empty(p.shape) for name, p in model.trainable_parameters().items()}
    return model, state, *pad(texts(4).ids)


def test_a_frozen_backbone_takes_its_inputs_along(accelerator):
    backbone, given = Backbone(find("random-llama")), {}
    backbone.model.register_forward_pre_hook(
        lambda _, args, named: given.update(named), with_kwargs=True
    )
    with accelerator:
        states = backbone.states(*pad(texts(4).ids))
    inputs = [x for x in given.values() if isinstance(x, torch.Tensor)]
    assert len(inputs) == 2
    assert {x.device.type for x in [*inputs, *states]} == {"meta"}


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_a_classifier_takes_its_inputs_along_and_gives_its_state_back(accelerator, kind):
    model, state, ids, mask = classifier(kind)
    with accelerator:
        model.load_trainable(state)
        logits = model(ids, mask)
        F.cross_entropy(logits, torch.arange(4).to(logits.device) % 3).backward()
        back = model.trainable()
    assert logits.device.type == "meta"
    assert {p.grad.device.type for p in model.trainable_parameters().values()} == {"meta"}
    assert {tensor.device.type for tensor in back.values()} == {"cpu"}


def test_derivatives_along_a_direction_are_taken_there(accelerator):
    model, state, ids, mask = classifier("lora")
    v = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    loss = forward_gradient.batch_loss(model, ids, mask, torch.arange(4) % 3)
    with accelerator:
        value, slope = torch.func.jvp(loss, (state,), (v,))
    assert value.device.type == slope.device.type == "meta"


@pytest.mark.parametrize("form", ["gradient", "whole", "top-4"])
def test_differences_of_words_come_back_to_the_memory_of_the_cpu(accelerator, form):
    spec = find("random-llama")
    backbone = host_device.host_device().place(Backbone(spec).model)
    head = VocabularyHead(spec, backbone)
    last_MD, said_M = torch.zeros(3, head.in_features), torch.arange(3)
    with accelerator:
        told = difference.told(head, last_MD, said_M, form_of(form))
        came = [told[0]]
        if form != "gradient":
            came.append(difference.gradient_of(head, last_MD, *told))
        came += [*difference.losses(head, last_MD, said_M), difference.curvature(head, last_MD)]
        came += _partition(head, last_MD)
    assert head.weight.device.type == "meta"
    assert {tensor.device.type for tensor in came} == {"cpu"}


def test_parts_meet_in_the_memory_of_the_cpu(accelerator, monkeypatch):
    # else meta means that a pass is counted
    monkeypatch.setattr(split, "_in_memory", torch.Tensor.cpu)
    model, state, ids, mask = classifier("lora")
    client, server = split.splitfed(model, 1)
    with accelerator:
        sent = split.forward(client, state, ids, mask)
        ran = split.forward(server, state, sent.output, mask)
        gradients, back = ran.backward(ran.output)
        own, _ = sent.backward(back)
    crossed = [sent.output, ran.output, back, *gradients.values(), *own.values()]
    assert {tensor.device.type for tensor in crossed} == {"cpu"}


# --- the choice


@pytest.mark.parametrize(("process", "card"), [(0, 0), (2, 2), (3, 0), (7, 1)])
def test_processes_take_turns_at_several_cards(process, card, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(host_device, "_process", 0)
    host_device.take_turns(process)
    compute_on(HostDevice("cuda"))
    assert chosen == [card]


@pytest.mark.parametrize(("name", "precision"), [("tpu", "float32"), ("cpu", "float64")])
def test_an_unknown_device_or_precision_is_refused(name, precision):
    with pytest.raises(HostDeviceError, match="one of"):
        HostDevice(name, precision)


@pytest.mark.parametrize(
    ("name", "is_there"),
    [("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)],
)
def test_a_device_that_is_not_there_is_refused_and_changes_nothing(name, is_there):
    if is_there():
        pytest.skip("it is there")
    with pytest.raises(HostDeviceError, match=f"--host {name}.*--host cpu"):
        compute_on(HostDevice(name))
    assert host_device.host_device() == CPU


def test_the_store_keeps_apart_what_each_precision_computed():
    plain = arithmetic()
    compute_on(HostDevice("cpu", "bfloat16"))
    assert arithmetic() == f"{plain}, on cpu, bfloat16"
    compute_on(CPU)
    assert arithmetic() == plain


@pytest.mark.parametrize("name", ["random-bert", "random-gpt2"])
def test_weights_in_int8_have_255_values_an_output(name):
    """GPT-2's maps lie in memory the other way round."""
    spec = find("random-bert")
    if name == "random-gpt2":
        fields = {"model_type": "gpt2", "vocab_size": 2048, "n_embd": 64, "n_layer": 2, "n_head": 2}
        spec = find(name, {name: {"random": fields}})
    exact, texts_seen = Backbone(spec), texts(20)
    compute_on(HostDevice("cpu", "int8"))
    rounded = Backbone(spec)
    ones = [
        (n, m.weight.data)
        for n, m in rounded.model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D")
    ]
    assert len(ones) > 7
    for name, weights in ones:
        before = exact.model.get_submodule(name).weight.data
        outputs = (
            weights.T if type(exact.model.get_submodule(name)).__name__ == "Conv1D" else weights
        )
        largest = outputs.abs().amax(1)
        assert all(len(row.unique()) <= 255 for row in outputs)
        assert torch.all((weights - before).abs().amax() <= largest.max() / 127 / 2 * 1.001)
    read, plain = rounded.readouts(texts_seen), exact.readouts(texts_seen)
    assert 0 < np.abs(read - plain).max() < 0.05 * np.abs(plain).max()
    assert isinstance(rounded.host.products(), nullcontext)
    compute_on(CPU)


def test_batches_of_another_size_read_the_same(monkeypatch):
    tokens, backbone = texts(70), Backbone(find("random-bert"))
    here = backbone.readouts(tokens)
    monkeypatch.setattr(HostDevice, "rows", lambda self, length, width: 512 // length)
    assert np.allclose(backbone.readouts(tokens), here, rtol=1e-5, atol=1e-6)


def test_batches_on_a_card_are_as_large_as_its_memory_holds(monkeypatch):
    for gigabytes, width, tokens in (
        (85, 2048, 65_536),
        (85, 768, 131_072),
        (24, 2048, 16_384),
        (8, 384, 32_768),
    ):
        card = type("Card", (), {"total_memory": gigabytes * 10**9})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert HostDevice("cuda").rows(8, width) == tokens // 8
        assert HostDevice("cuda").rows(4096, width) == max(16, tokens // 4096)
    assert CPU.rows(8, 384) == CPU.rows(512, 2048) == 16


def test_a_small_side_network_stays_on_the_cpu(accelerator):
    small, large = nn.Linear(10, 10), nn.Linear(1000, 1000)
    place = HostDevice("cuda").place_side_network
    assert place(small).weight.device.type == "cpu"
    assert place(large).weight.device.type == "meta"
    assert HostDevice("mps").place_side_network(nn.Linear(1000, 1000)).weight.device.type == "cpu"
