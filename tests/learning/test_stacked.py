"""Devices trained together, against each trained alone."""

import functools
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from learning.backbones.catalogue import BackboneError, BackboneSpec, find
from learning.backbones.tokens import Tokens
from learning.cost.count_training import training_architecture
from learning.cost.vocabulary import Vocabulary
from learning.federated.language_model import TrainableLanguageModel
from learning.federated.local_training import LocalTraining, train
from learning.federated.stackable import Holding, Room, can_be_stacked
from learning.federated.stacked import train_together
from learning.federated.trainable import TrainableClassifier

torch.set_num_threads(1)
Undropped = functools.partial(LocalTraining, dropout=0)
CONFIGS = runpy.run_path(str(Path(__file__).with_name("architectures.py")))["CONFIGS"]
FEW = ("BERT", "ALBERT", "DeBERTa-v2", "BLOOM")
NOT_STACKED = {("DeBERTa-v2", None)}
NOT_STACKED |= {(name, "all-linear") for name in ("DeBERTa-v2", "MobileBERT", "Mixtral")}
TEXTS = (7, 12, 1, 8)  # of the devices: other numbers of steps, and batches that are not full


def devices_of(model, pairs=False, seed=3):
    """Devices with texts of their own, each from another state than the others'."""
    rng, devices = np.random.default_rng(seed), []
    for texts in TEXTS:
        ids = [rng.integers(2, 2000, rng.integers(2, 12)).astype(np.int32) for _ in range(texts)]
        segments = [(np.arange(len(i)) > 1).astype(np.int32) for i in ids] if pairs else None
        state = {
            name: tensor + torch.from_numpy(rng.normal(0, 0.02, tensor.shape)).float()
            for name, tensor in model.trainable().items()
        }
        labels = rng.integers(3, size=texts)
        devices.append(Holding(state, Tokens(ids, segments), labels, int(rng.integers(1 << 30))))
    return devices


@pytest.mark.parametrize("name", ["random-bert", "random-llama"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("lora", {"rank": 4, "head": "dense"}), ("adapter", {"bottleneck": 8}), ("head", {})],
)
@pytest.mark.parametrize(
    "settings",
    [
        Undropped(epochs=2, batch=4, learning_rate=1e-2, optimiser="sgd", proximal_mu=0.3),
        Undropped(
            epochs=2, batch=4, learning_rate=1e-2, optimiser="sgd", momentum=0.9, weight_decay=0.1
        ),
        Undropped(epochs=2, batch=4, learning_rate=1e-2, optimiser="sgd", schedule="constant"),
        Undropped(epochs=2, batch=4, learning_rate=1e-3, weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "constant", "adamw"],
)
def test_devices_trained_together_are_what_each_is_alone(name, kind, options, settings):
    model = TrainableClassifier(find(name), kind, classes=3, **options)
    devices = devices_of(model, pairs=name == "random-bert")
    together = train_together(model, devices, settings)
    for device, one in zip(devices, together, strict=True):
        alone = train(model, device.state, device.tokens, device.labels, settings, device.seed)
        assert one.steps == alone.steps
        assert one.mean_loss == pytest.approx(alone.mean_loss, rel=1e-5)
        assert list(one.state) == list(alone.state)
        for key, tensor in alone.state.items():
            moved = (tensor - device.state[key]).norm()
            # AdamW divides by a gradient's size: what is nearly zero is rounding
            slack = 1e-4 if settings.optimiser == "sgd" else 1e-2
            assert (one.state[key] - tensor).norm() <= slack * moved + 1e-7, key


def test_a_device_that_has_ended_keeps_what_it_had_then():
    model = TrainableClassifier(find("random-bert"), "head", classes=3)
    settings = Undropped(epochs=1, batch=4, learning_rate=1e-2)
    short, long = (devices_of(model)[k] for k in (2, 1))
    (alone,) = train_together(model, [short], settings)
    _, beside = train_together(model, [long, short], settings)
    assert beside.steps == 1
    for key, tensor in alone.state.items():
        assert torch.allclose(beside.state[key], tensor, atol=1e-6)


def test_the_model_itself_is_left_as_it_was():
    model = TrainableClassifier(find("random-bert"), "lora", classes=3)
    before = model.trainable()
    train_together(model, devices_of(model), Undropped(batch=4))
    assert all(tensor.equal(before[name]) for name, tensor in model.trainable().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["full", "bitfit"])
def test_what_is_no_linear_map_is_refused(kind):
    model = TrainableClassifier(find("random-bert"), kind, classes=3)
    assert not can_be_stacked(model)
    with pytest.raises(ValueError, match=kind):
        train_together(model, devices_of(model), Undropped())


def test_a_device_without_texts_is_refused():
    model = TrainableClassifier(find("random-bert"), "head", classes=3)
    empty = Holding(model.trainable(), Tokens([]), np.empty(0, int), 0)
    with pytest.raises(ValueError, match="without texts"):
        train_together(model, [empty], Undropped())


def test_dropout_is_drawn_by_the_seeds_of_all_and_ends_with_training():
    model = TrainableClassifier(find("random-bert"), "lora", classes=3)
    devices = devices_of(model)
    dropped = [train_together(model, devices, LocalTraining(dropout=0.3)) for _ in range(2)]
    whole = train_together(model, devices, Undropped())
    other = train_together(model, [d._replace(seed=d.seed + 1) for d in devices], LocalTraining())
    for one, again, without, else_ in zip(*dropped, whole, other, strict=True):
        assert one.mean_loss == again.mean_loss
        assert one.mean_loss not in (without.mean_loss, else_.mean_loss)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_decoders_that_learn_responses_are_what_each_is_alone(kind):
    """Each device's loss is the mean over its own tokens, of which all have other numbers."""
    model = TrainableLanguageModel(find("random-llama"), kind, rank=4)
    devices = devices_of(model, pairs=True)
    devices = [d._replace(tokens=said_somewhere(d.tokens)) for d in devices]
    settings = Undropped(epochs=2, batch=4, learning_rate=1e-2, optimiser="sgd")
    for device, one in zip(devices, train_together(model, devices, settings), strict=True):
        alone = train(model, device.state, device.tokens, device.labels, settings, device.seed)
        assert (one.steps, one.mean_loss) == (alone.steps, pytest.approx(alone.mean_loss, rel=1e-5))
        for key, tensor in alone.state.items():
            moved = (tensor - device.state[key]).norm()
            assert (one.state[key] - tensor).norm() <= 1e-3 * moved + 1e-7, key


def said_somewhere(tokens):
    """A text's last token is of the response, where nothing else is."""
    return Tokens(tokens.ids, [np.r_[s[:-1], 1].astype(np.int32) for s in tokens.segments])


def test_as_many_are_stacked_as_half_of_the_memory_holds():
    model = TrainableClassifier(find("random-bert"), "lora", classes=3)
    settings = Undropped(batch=4)
    devices = dict(enumerate(devices_of(model)))
    counted = training_architecture(model.spec, "lora", 3)
    # the two with most to do: 4 rows of at most 11 tokens, what came, what it is, two moments
    two = counted.step(8, max(int(devices[k].tokens.lengths().max()) for k in (1, 0)))
    needed = 2 * (two.peak_bytes + 2 * 4 * counted.trainable_bytes)
    assert Room(needed, counted).groups(devices, settings)[0] == [1, 0]
    assert Room(needed - 1, counted).groups(devices, settings)[0] == [1]
    assert Room(1, counted).groups(devices, settings) == [[1], [0], [3], [2]]
    assert Room(1e12, counted).groups(devices, settings) == [[1, 0, 3, 2]]
    assert Room.of(model).groups(devices, settings) == [[1, 0, 3, 2]]


def test_the_words_of_a_vocabulary_need_room():
    model = TrainableLanguageModel(find("random-llama"), "lora")
    devices = dict(enumerate(devices_of(model, pairs=True)))
    counted = training_architecture(model.spec, "lora", 1)
    few, many = Vocabulary(64, 100), Vocabulary(64, 10_000_000)
    assert len(Room(1e10, counted, few).groups(devices, Undropped(batch=4))) == 1
    assert len(Room(1e10, counted, many).groups(devices, Undropped(batch=4))) == 4


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.thorough) for n in CONFIGS]
)
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_every_architecture_is_stacked_as_each_alone_or_not_at_all(name, targets):
    """DeBERTa's maps read a table of positions that all texts share, beside the texts."""
    spec = BackboneSpec(name, "random", "", config=CONFIGS[name], seed=1)
    try:
        model = TrainableClassifier(spec, "lora", classes=3, rank=2, target_modules=targets)
    except BackboneError:
        pytest.skip("LoRA cannot be put there")
    if not can_be_stacked(model):
        assert (name, targets) in NOT_STACKED, "nothing speaks against it"
        return
    settings = Undropped(batch=4, learning_rate=0.1, optimiser="sgd")
    devices = [
        d._replace(tokens=Tokens([5 + i % 50 for i in d.tokens.ids])) for d in devices_of(model)
    ]
    for device, one in zip(devices, train_together(model, devices, settings), strict=True):
        alone = train(model, device.state, device.tokens, device.labels, settings, device.seed)
        assert one.mean_loss == pytest.approx(alone.mean_loss, rel=1e-4)
        for key, tensor in alone.state.items():
            moved = (tensor - device.state[key]).norm()
            assert (one.state[key] - tensor).norm() <= 1e-3 * moved + 1e-6, key
