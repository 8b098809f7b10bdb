"""The closed-form skip against least squares written out, beside the adapters and without them."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torch.utils.flop_counter import FlopCounterMode

from learning.side.activations import Activations, encode
from learning.side.config import EVALUATIONS, PENALTIES, SideNetworkConfig, shape_for
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


def by_hand(x, y, penalty):
    """Ridge regression with a free bias as plain least squares: weights, bias last."""
    count, d = x.shape
    # rows of the penalty below the records, and a last column of ones that none of it touches
    above = np.hstack([x, np.ones((count, 1))])
    below = np.hstack([np.sqrt(penalty) * np.eye(d), np.zeros((d, 1))])
    right = np.vstack([y, np.zeros((d, y.shape[1]))])
    return np.linalg.lstsq(np.vstack([above, below]), right, rcond=None)[0]


def scaled(x):
    """Vectors over their root mean square length, float64."""
    x = x.double().numpy()
    return x / np.sqrt((x**2).sum(1).mean())


@pytest.mark.parametrize("count", [1, 2, 15, 90, 2500])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_it_is_penalised_least_squares_with_a_free_bias(count, penalty):
    x, y, _ = data(count)
    skip = Skip(20, CLASSES)
    assert not skip.is_fitted
    assert skip.fit(x, y, [penalty]) == penalty
    solution = by_hand(scaled(x), y.double().numpy(), penalty)
    expected = np.hstack([scaled(x), np.ones((count, 1))]) @ solution
    assert skip.is_fitted and np.allclose(skip(x).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("count", [12, 45])
def test_the_penalty_is_the_one_whose_predictions_of_left_out_records_are_best(count):
    rng = np.random.default_rng(count)
    x, y, _ = data(count)
    y = y + torch.from_numpy(rng.normal(0, 0.5, y.shape).astype(np.float32))
    errors = {}
    for penalty in PENALTIES:
        errors[penalty] = 0.0
        for i in range(count):
            kept = np.arange(count) != i
            solution = by_hand(scaled(x)[kept], y.double().numpy()[kept], penalty)
            left_out = np.append(scaled(x)[i], 1) @ solution
            errors[penalty] += float(((left_out - y.double().numpy()[i]) ** 2).sum())
    best = min(errors, key=errors.__getitem__)
    assert PENALTIES[0] < best < PENALTIES[-1], "or the choice shows nothing"
    assert Skip(20, CLASSES).fit(x, y) == best


@pytest.mark.parametrize("count", [15, 1500])
def test_the_order_of_records_is_rounding_alone(count):
    x, y, _ = data(count)
    one, other = Skip(20, CLASSES), Skip(20, CLASSES)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    assert one.fit(x, y) == other.fit(x[order], y[order])
    assert torch.allclose(one.weights, other.weights, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_logistic_regression_is_at_its_minimum(penalty):
    """Against scipy's solver, beside log-probabilities that are not even."""
    x, y, _ = data(80)
    one_hot = y + 1 / CLASSES
    log_y_b = torch.log_softmax(torch.randn(80, CLASSES, generator=torch.Generator()), dim=1)
    skip = Skip(20, CLASSES)
    skip.fit_logistic(x, one_hot, log_y_b, [penalty])

    def loss(numbers):
        weights, bias = numbers[:-CLASSES].reshape(20, CLASSES), numbers[-CLASSES:]
        scores = log_y_b.double().numpy() + scaled(x) @ weights + bias
        p = scipy.special.softmax(scores, axis=1)
        off = p - one_hot.double().numpy()
        gradient = np.append(scaled(x).T @ off + penalty * weights, off.sum(axis=0))
        fit = -(one_hot.double().numpy() * scipy.special.log_softmax(scores, axis=1)).sum()
        return fit + penalty / 2 * (weights**2).sum(), gradient

    start = np.zeros(21 * CLASSES)
    least = scipy.optimize.minimize(loss, start, jac=True, method="BFGS").fun
    ours = np.append(skip.weights.double().numpy(), skip.bias.double().numpy())
    assert loss(ours)[0] == pytest.approx(least, rel=1e-4)


def test_logistic_regression_takes_the_penalty_that_is_best_on_every_fifth_record():
    x, y, _ = data(100)
    one_hot, even = y + 1 / CLASSES, torch.full((100, CLASSES), -np.log(CLASSES))
    wrong = one_hot.clone()
    wrong[::5] = one_hot[::5].roll(1, dims=1)  # what is left out says that nothing can be learned
    assert Skip(20, CLASSES).fit_logistic(x, one_hot, even) < PENALTIES[-1]
    assert Skip(20, CLASSES).fit_logistic(x, wrong, even) == PENALTIES[-1]


WIDTHS = {"narrow": 6, "wide": 10, "also wide": 10}


def trainer_of(skip="ridge", loss="squared-error", adapters=0.25):
    config = SideNetworkConfig(skip=skip, adapters=adapters, bottleneck=4)
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


@pytest.mark.parametrize("adapters", [0.0, 0.25])
@pytest.mark.parametrize(
    ("skip", "loss"),
    [("ridge", "squared-error"), ("ridge", "cross-entropy"), ("logistic", "cross-entropy")],
)
def test_every_backbone_predicts_what_was_solved(skip, loss, adapters):
    trainer = trainer_of(skip, loss, adapters)
    before = trainer.evaluate()
    error = trainer.fit(filled(trainer))
    after = trainer.evaluate()
    assert error > 0 and trainer.steps == 0
    assert all(after[name] > max(before[name], 0.75) for name in WIDTHS)


def test_uploads_in_any_order_give_numpys_ridge_of_them_all():
    """Payloads of two backbones of a width, as they cross the link, one after the other."""
    trainer, again = trainer_of(adapters=0.0), trainer_of(adapters=0.0)
    records = filled(trainer, 40)
    filled(again, 40)
    trainer.fit(records)
    order = np.random.default_rng(5).permutation(len(records))
    again.fit([records[i] for i in order])
    wide = [record for record in records if record[0] != "narrow"]
    standard = [
        ((v - mean) / deviation).flatten()
        for name in ("wide", "also wide")
        for stack in [torch.stack([v for of, v, _ in wide if of == name]).double()]
        for mean, deviation in [(stack.mean(dim=0), stack.std(dim=0, correction=0))]
        for v in stack
    ]
    x = scaled(torch.stack(standard))
    y = torch.stack([t for of in ("wide", "also wide") for n, _, t in wide if n == of])
    skip = trainer.network.skips["of width 10"]
    # the penalty that was taken is the one that gives these weights
    off = [np.abs(by_hand(x, y.double().numpy(), k)[:-1] - skip.weights.numpy()).max()
           for k in PENALTIES]  # fmt: skip
    assert min(off) < 1e-5 and sorted(off)[1] > 1e-3
    assert torch.allclose(again.network.skips["of width 10"].weights, skip.weights, atol=1e-5)


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


def test_the_adapters_have_their_share_and_are_trained_by_themselves():
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
        expected = 0.25 * plain.averaged(a, "wide") + 0.75 * skip(x)
        assert torch.allclose(trainer.averaged(a, "wide"), expected, atol=1e-6)


@pytest.mark.parametrize("adapters", [0.0, 0.25])
def test_it_goes_on_from_what_was_saved_and_reads_from_its_file(tmp_path, adapters):
    trainer, again = trainer_of(adapters=adapters), trainer_of(adapters=adapters)
    trainer.fit(filled(trainer))
    again.load({name: tensor.clone() for name, tensor in trainer.saved().items()})
    assert again.evaluate() == trainer.evaluate()
    save_side_network(trainer.averaged, tmp_path / "side.safetensors")
    read, _ = load_side_network(tmp_path / "side.safetensors")
    a = torch.from_numpy(data(5, 20)[0].numpy().reshape(5, 2, 10))
    with torch.no_grad():
        assert torch.equal(read(a, "wide"), trainer.averaged(a, "wide"))


def test_what_is_shipped_are_the_solved_numbers():
    config = SideNetworkConfig(skip="ridge", normalise="layer")
    shape = shape_for(config, 1, WIDTHS, CLASSES)
    network = SideNetwork(shape, config)
    solved = network.skips["of width 10"]
    numbers = solved.weights.numel() + solved.bias.numel() + solved.scale.numel()
    assert shape.shipped_bytes("wide", "float32") == 4 * (shape.parameters("wide") + numbers)


def test_without_adapters_none_are_there_sent_or_charged():
    """As RoBERTa-base with all layers and two classes: 9,984 inputs."""
    config = SideNetworkConfig(skip="ridge", adapters=0)
    shape = shape_for(config, 12, {"own": 768}, 2)
    assert shape.parameters() == 0 == len(list(SideNetwork(shape, config).parameters()))
    # weights and two scales; bias and scale of the skip; mean and deviation of every input
    assert shape.shipped_bytes("own", "int8") == 2 * 9984 + 2 * 4 + 2 * (2 + 1 + 2 * 9984)
    assert shape.forward_flop("own") == 2 * 9984 * 2


@pytest.mark.parametrize("adapters", [0.0, 0.25])
def test_the_forward_pass_is_charged_with_it(adapters):
    trainer = trainer_of(adapters=adapters)
    trainer.fit(filled(trainer, 20))
    a = torch.from_numpy(data(7, 20)[0].numpy().reshape(7, 2, 10))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        trainer.network(a, "wide")
    assert counted.get_total_flops() == 7 * trainer.network.shape.forward_flop("wide")


@pytest.mark.parametrize(("count", "slack"), [(20, 0.1), (60, 1e-9)])
def test_solving_is_charged_by_what_torch_counts_and_its_eigenvectors(count, slack):
    """Where records are not more than the 20 inputs, centring takes one axis from them."""
    x, y, _ = data(count)
    with FlopCounterMode(display=False) as counted:
        Skip(20, CLASSES).fit(x, y)
    shape = shape_for(SideNetworkConfig(skip="ridge"), 1, {"one": 10, "two": 10}, CLASSES)
    charged = shape.fitting({"one": count - 2, "two": 2}, len(PENALTIES)).flop
    uncounted = 9 * 20**3 + len(PENALTIES) * 2 * count * 20  # eigenvectors, products with a vector
    assert counted.get_total_flops() == pytest.approx(charged - uncounted, rel=slack)


def test_logistic_regression_is_charged_for_all_that_it_may_take():
    shape = shape_for(SideNetworkConfig(skip="logistic"), 1, {"one": 10}, 2)
    assert shape.fitting({"one": 7}, 1).flop == EVALUATIONS * 7 * (4 * 20 * 2)
    assert shape.fitting({"one": 7}, 13).flop == 14 * shape.fitting({"one": 7}, 1).flop
