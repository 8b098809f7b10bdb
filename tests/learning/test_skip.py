"""The closed-form skip against least squares written out, against its kernel, and beside the
adapters.
"""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from learning.side.activations import Activations, encode
from learning.side.config import SideNetworkConfig, shape_for
from learning.side.network import SideNetwork, load_side_network, save_side_network
from learning.side.prediction_difference import difference
from learning.side.skip import Skip
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

CLASSES = 3


def data(count, inputs=20, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, inputs)).astype(np.float32)
    labels = x[:, :CLASSES].argmax(1)
    targets = np.eye(CLASSES, dtype=np.float32)[labels] - 1 / CLASSES
    return torch.from_numpy(x), torch.from_numpy(targets), labels


@pytest.mark.parametrize("count", [1, 2, 15, 90, 2500])
@pytest.mark.parametrize("random_features", [0, 40])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_it_is_penalised_least_squares_with_a_free_bias(count, random_features, ridge):
    x, y, _ = data(count)
    skip = Skip(20, CLASSES, random_features, 2.0)
    assert not skip.is_fitted
    skip.fit(x, y, ridge)
    phi = skip._phi(x).double().numpy()
    d = phi.shape[1]
    # rows of the penalty below the records, and a last column of ones that none of it touches
    above = np.hstack([phi, np.ones((count, 1))])
    below = np.hstack([np.sqrt(ridge) * np.eye(d), np.zeros((d, 1))])
    right = np.vstack([y.double().numpy(), np.zeros((d, CLASSES))])
    solution = np.linalg.lstsq(np.vstack([above, below]), right, rcond=None)[0]
    assert skip.is_fitted and np.allclose(skip(x).numpy(), above @ solution, atol=2e-5)


def test_products_of_random_features_are_the_gaussian_kernel():
    x, y, _ = data(30)
    skip = Skip(20, CLASSES, 20_000, 1.5)
    skip.fit(x, y, 1.0)
    waves = skip._phi(x)[:, 20:].numpy()
    scaled = x.numpy() / np.sqrt((x.numpy() ** 2).sum(1).mean())
    squares = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
    assert np.abs(waves @ waves.T - np.exp(-squares / (2 * 1.5**2))).max() < 0.04


def test_the_order_of_records_is_rounding_alone():
    x, y, _ = data(1500)
    one, other = Skip(20, CLASSES, 40, 2.0), Skip(20, CLASSES, 40, 2.0)
    one.fit(x, y, 0.1)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(1))
    other.fit(x[order], y[order], 0.1)
    assert torch.allclose(one.weights, other.weights, atol=1e-5)


WIDTHS = {"narrow": 6, "wide": 10, "also wide": 10}


def trainer_of(skip="random-features", loss="squared-error", ridge=0.1):
    config = SideNetworkConfig(skip=skip, features=50, ridge=ridge, bottleneck=4)
    held = {}
    for name, width in WIDTHS.items():
        x, _, labels = data(200, 2 * width, seed=9)
        uniform = np.full((200, CLASSES), 1 / CLASSES, np.float32)
        held[name] = HeldOut(x.numpy().reshape(200, 2, width), uniform, labels)
    return SideNetworkTrainer(
        shape_for(config, 1, WIDTHS, CLASSES), config, Training(loss=loss), held, 0
    )


def filled(trainer, count=150):
    records = []
    for seed, (name, width) in enumerate(WIDTHS.items()):
        x, _, labels = data(count, 2 * width, seed)
        y_b = np.full((count, CLASSES), 1 / CLASSES, np.float32)
        targets = difference(labels, y_b)
        if trainer.training.loss == "cross-entropy":
            targets = np.concatenate([targets + y_b, y_b], axis=1)
        values = x.numpy().reshape(count, 2, width)
        trainer.ingest(name, encode(Activations(values, targets, np.arange(count)), "float32"))
        records += [
            (name, torch.from_numpy(v), torch.from_numpy(t))
            for v, t in zip(values, targets, strict=True)
        ]
    return records


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("skip", ["ridge", "random-features"])
def test_every_backbone_predicts_what_was_solved(skip, loss):
    trainer = trainer_of(skip, loss)
    before = trainer.evaluate()
    error = trainer.fit(filled(trainer))
    after = trainer.evaluate()
    assert error > 0 and trainer.steps == 0
    assert all(after[name] > max(before[name], 0.75) for name in WIDTHS)


def test_backbones_of_one_width_share_a_skip_and_others_have_their_own():
    trainer = trainer_of()
    records = filled(trainer)
    trainer.fit([record for record in records if record[0] == "wide"])
    network = trainer.network
    assert set(network.skips) == {"of width 6", "of width 10"}
    assert network.skips["of width 10"].is_fitted and not network.skips["of width 6"].is_fitted
    trainer.evaluate()  # what has none yet is its adapters alone
    trainer.fit(records)
    assert network.skips["of width 10"].records == 300


def test_it_is_averaged_with_the_adapters_which_are_trained_by_themselves():
    trainer, plain = trainer_of(), trainer_of("none")
    records = filled(trainer)
    filled(plain)
    trainer.fit(records)
    for step in range(5):
        chosen = list(range(step, 450, 30))
        assert trainer.step(chosen) == plain.step(chosen)
    a = torch.from_numpy(data(5, 20)[0].numpy().reshape(5, 2, 10))
    with torch.no_grad():
        skip = trainer.network.skips["of width 10"]
        x = trainer.network._normalised(a, "wide").flatten(1)
        expected = (plain.averaged(a, "wide") + skip(x)) / 2
        assert torch.allclose(trainer.averaged(a, "wide"), expected, atol=1e-6)


def test_it_goes_on_from_what_was_saved_and_reads_from_its_file(tmp_path):
    trainer, again = trainer_of(), trainer_of()
    trainer.fit(filled(trainer))
    again.load({name: tensor.clone() for name, tensor in trainer.saved().items()})
    assert again.evaluate() == trainer.evaluate()
    save_side_network(trainer.averaged, tmp_path / "side.safetensors")
    read, _ = load_side_network(tmp_path / "side.safetensors")
    a = torch.from_numpy(data(5, 20)[0].numpy().reshape(5, 2, 10))
    with torch.no_grad():
        assert torch.equal(read(a, "wide"), trainer.averaged(a, "wide"))


def test_what_is_shipped_are_the_solved_numbers():
    config = SideNetworkConfig(skip="random-features", features=50, normalise="layer")
    shape = shape_for(config, 1, WIDTHS, CLASSES)
    network = SideNetwork(shape, config)
    solved = network.skips["of width 10"]
    numbers = solved.weights.numel() + solved.bias.numel() + solved.scale.numel()
    assert shape.shipped_bytes("wide", "float32") == 4 * (shape.parameters("wide") + numbers)


@pytest.mark.parametrize("skip", ["ridge", "random-features"])
def test_the_forward_pass_is_charged_with_it(skip):
    trainer = trainer_of(skip)
    trainer.fit(filled(trainer, 20))
    a = torch.from_numpy(data(7, 20)[0].numpy().reshape(7, 2, 10))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        trainer.network(a, "wide")
    assert counted.get_total_flops() == 7 * trainer.network.shape.forward_flop("wide")


def test_solving_is_charged_by_records_or_by_features_whichever_are_fewer():
    shape = shape_for(SideNetworkConfig(skip="ridge"), 1, {"one": 10, "two": 10}, 2)
    # 20 inputs: products of 5 records with each other, with 2 columns twice, a factor, two solves
    assert shape.fitting({"one": 3, "two": 2}).flop == 5 * 20 * (5 + 4) + 5**3 / 3 + 2 * 5**2 * 2
    assert shape.fitting({"one": 100}).flop == 100 * 20 * (20 + 4) + 20**3 / 3 + 2 * 20**2 * 2
