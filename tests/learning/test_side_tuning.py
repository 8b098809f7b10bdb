"""The server's learning against an independent AdamW, restored against straight through, and on a
task that can be learned.
"""

import numpy as np
import pytest
import torch

from learning.side.activations import Activations, encode
from learning.side.config import SideNetworkConfig, shape_for
from learning.side.network import SideNetwork
from learning.side.prediction_difference import difference
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

WIDTHS, CLASSES, BLOCKS = {"narrow": 16, "wide": 24}, 3, 2


class World:
    """Texts whose class shows in one direction of every vector, seen by two backbones of unlike
    width.
    """

    def __init__(self, seed=0, vectors=BLOCKS + 1):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, CLASSES, 400)
        self.y_b = rng.dirichlet(np.ones(CLASSES), 400).astype(np.float32)
        directions = {n: rng.normal(size=(CLASSES, vectors, width)) for n, width in WIDTHS.items()}
        self.values = {
            n: (d[self.labels] + 2 * rng.normal(size=(400, *d.shape[1:]))).astype(np.float32)
            for n, d in directions.items()
        }

    def payload(self, backbone, chosen, loss="squared-error"):
        targets = difference(self.labels[chosen], self.y_b[chosen])
        if loss == "cross-entropy":
            targets = np.concatenate([targets + self.y_b[chosen], self.y_b[chosen]], axis=1)
        return encode(
            Activations(self.values[backbone][chosen], targets, np.asarray(chosen)), "float32"
        )

    def held_out(self):
        uniform = np.full((100, CLASSES), 1 / CLASSES, np.float32)
        return {n: HeldOut(v[300:], uniform, self.labels[300:]) for n, v in self.values.items()}


WORLD = World()


def tuning_of(config=None, training=None, seed=7, world=WORLD):
    config = config or SideNetworkConfig(bottleneck=4)
    return SideNetworkTrainer(
        shape_for(config, BLOCKS, WIDTHS, CLASSES),
        config,
        training or Training(),
        world.held_out(),
        seed,
    )


def filled(tuning, per_backbone=100):
    loss = tuning.training.loss
    assert (
        tuning.ingest("narrow", WORLD.payload("narrow", range(per_backbone), loss)) == per_backbone
    )
    assert (
        tuning.ingest("wide", WORLD.payload("wide", range(100, 100 + per_backbone), loss))
        == per_backbone
    )
    return tuning


def batches(steps, seed=0, size=32, among=200):
    rng = np.random.default_rng(seed)
    return [rng.choice(among, size, replace=False).tolist() for _ in range(steps)]


def reference_loss(network, training, batch, generator):
    """Mean over the batch, written out; backbones in alphabetical order share one stream of
    masks.
    """
    total = 0.0
    for backbone, first in (("narrow", 0), ("wide", 100)):
        chosen = np.array(sorted(n for n in batch if n // 100 == (backbone == "wide")), dtype=int)
        texts = chosen - first + (100 if backbone == "wide" else 0)
        values = torch.from_numpy(WORLD.values[backbone][texts])
        y_s = network.training_forward([(backbone, values)], generator)
        y_b, one_hot = torch.from_numpy(WORLD.y_b[texts]), torch.eye(CLASSES)[WORLD.labels[texts]]
        if training.loss == "squared-error":
            total = total + ((y_s - (one_hot - y_b)) ** 2).sum()
        else:
            logits = torch.log(torch.clamp(y_b, min=1e-6)) + y_s
            total = total - (one_hot * (logits - torch.logsumexp(logits, 1, keepdim=True))).sum()
    return total / len(batch)


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize(
    ("averaging", "normalise"), [(0.99, "layer"), (0.0, "none"), (0.99, "standard")]
)
def test_steps_equal_adamw_written_out(loss, averaging, normalise):
    config = SideNetworkConfig(bottleneck=4, normalise=normalise, dropout=0.3, averaging=averaging)
    training = Training(learning_rate=3e-3, weight_decay=0.05, loss=loss)
    tuning = filled(tuning_of(config, training))
    other = SideNetwork(tuning.network.shape, config, 7)
    other.observe(torch.from_numpy(WORLD.values["narrow"][:100]), "narrow")
    other.observe(torch.from_numpy(WORLD.values["wide"][100:200]), "wide")
    weights = dict(other.named_parameters())
    first = {n: torch.zeros_like(p) for n, p in weights.items()}
    second = {n: torch.zeros_like(p) for n, p in weights.items()}
    mean = {n: p.detach().clone() for n, p in weights.items()}
    for t, batch in enumerate(batches(12), 1):
        value = reference_loss(
            other, training, batch, torch.Generator().manual_seed(7 * 1_000_003 + t)
        )
        assert tuning.step(batch) == pytest.approx(value.item(), rel=1e-5)
        gradients = torch.autograd.grad(value, list(weights.values()))
        decay = min(averaging, (1 + t) / (10 + t)) if averaging else 0.0
        with torch.no_grad():
            for (name, p), g in zip(weights.items(), gradients, strict=True):
                p *= 1 - training.learning_rate * (training.weight_decay if p.ndim >= 2 else 0.0)
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                corrected = second[name] / (1 - 0.999**t)
                p -= training.learning_rate * first[name] / (1 - 0.9**t) / (corrected.sqrt() + 1e-8)
                mean[name] = decay * mean[name] + (1 - decay) * p
    for name, parameter in tuning.network.named_parameters():
        assert torch.allclose(parameter, weights[name], atol=2e-6), name
    for name, parameter in tuning.averaged.named_parameters():
        assert torch.allclose(parameter, mean[name], atol=2e-6), name


def bits(tuning):
    return [
        p.detach().numpy().tobytes()
        for n in (tuning.network, tuning.averaged)
        for p in n.parameters()
    ]


@pytest.mark.parametrize("at", [0, 1, 17])
def test_saved_loaded_and_continued_is_straight_through(at):
    straight = filled(tuning_of())
    stopped, resumed = filled(tuning_of()), filled(tuning_of())
    steps = batches(30)
    for batch in steps:
        straight.step(batch)
    for batch in steps[:at]:
        stopped.step(batch)
    saved = {name: tensor.clone() for name, tensor in stopped.saved().items()}
    resumed.load(saved)
    for batch in steps[at:]:
        resumed.step(batch)
    assert bits(resumed) == bits(straight) and resumed.steps == straight.steps
    assert resumed.evaluate() == straight.evaluate()
    assert all(
        tensor.equal(stopped.saved()[name]) for name, tensor in saved.items()
    )  # training went on in copies


def test_the_same_calls_give_the_same_bits_and_the_order_within_a_batch_does_not_matter():
    one, two = filled(tuning_of()), filled(tuning_of())
    for batch in batches(5):
        one.step(batch)
        two.step(batch[::-1])
    assert bits(one) == bits(two)


@pytest.mark.thorough
@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
def test_learns_what_can_be_learned_for_every_backbone(loss):
    tuning = filled(tuning_of(training=Training(loss=loss)), 100)
    majority = max(np.bincount(WORLD.labels[300:])) / 100
    losses = [tuning.step(batch) for batch in batches(300)]
    scores = tuning.evaluate()
    assert set(scores) == set(WIDTHS) and all(score > majority + 0.3 for score in scores.values())
    assert np.mean(losses[-30:]) < 0.6 * np.mean(losses[:30])


def test_what_one_backbone_uploads_teaches_only_the_shared_part_to_the_other():
    tuning = tuning_of()
    tuning.ingest("wide", WORLD.payload("wide", range(100)))
    before = {n: p.detach().clone() for n, p in tuning.network.projections.items()}
    for batch in batches(3, among=100):
        tuning.step(batch)
    assert set(before) == {"of wide"}  # the median of two widths is the lower one, which needs none
    assert not torch.equal(before["of wide"], tuning.network.projection("wide"))
    assert torch.count_nonzero(tuning.network.head.weight) > 0


def test_evaluation_adds_the_backbones_own_prediction():
    world = World(3)
    y_b = np.eye(CLASSES, dtype=np.float32)[world.labels[300:]]
    right = {n: HeldOut(v[300:], y_b, world.labels[300:]) for n, v in world.values.items()}
    config = SideNetworkConfig()
    fresh = SideNetworkTrainer(
        shape_for(config, BLOCKS, WIDTHS, CLASSES), config, Training(), right, 0
    )
    assert fresh.evaluate() == {"narrow": 1.0, "wide": 1.0}  # y_s is zero at the start
