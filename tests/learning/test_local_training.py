"""What a device does in a round, against loops written out in plain PyTorch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.backbones.catalogue import find
from learning.backbones.tokens import Tokens
from learning.federated.local_training import LocalTraining, inputs, predict, train
from learning.federated.trainable import KINDS, TrainableClassifier
from learning.metrics import accuracy

torch.set_num_threads(1)


def toy(count=40, seed=0, classes=2, longest=9):
    """Texts in which every word belongs to the label's share of the vocabulary, padded by common
    words: separable.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    ids = [
        np.concatenate(
            [
                [1],
                rng.integers(100, 130, rng.integers(1, 3)),
                rng.integers(0, 20, longest // 2) + 200 * (c + 1),
            ]
        )
        for c in labels
    ]
    return Tokens([i.astype(np.int32) for i in ids]), labels


def classifier(kind, name="random-bert", **options):
    return TrainableClassifier(find(name), kind, classes=2, **options)


def plain_loop(model, state, tokens, labels, settings, seed):
    """The same round with no code of ours but the forward pass: its own optimisers, its own loop,
    one text at a time.
    """
    model = copy.deepcopy(model)
    w = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            w[name].copy_(tensor)
    moments = {name: [torch.zeros_like(t), torch.zeros_like(t)] for name, t in state.items()}
    rng, step, losses = np.random.default_rng(seed), 0, []
    steps = settings.epochs * -(-len(labels) // settings.batch)
    for _ in range(settings.epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), settings.batch):
            chosen, step = order[start : start + settings.batch], step + 1
            loss = torch.zeros(())
            for i in chosen:
                ids = torch.from_numpy(tokens.ids[i].astype(np.int64))[None]
                logits = model(ids, torch.ones_like(ids))
                losses.append(-torch.log_softmax(logits, 1)[0, labels[i]].item())
                loss = loss - torch.log_softmax(logits, 1)[0, labels[i]] / len(chosen)
            pull = sum(((w[name] - state[name]) ** 2).sum() for name in state)
            loss = loss + settings.proximal_mu / 2 * pull
            gradients = torch.autograd.grad(loss, [w[name] for name in state])
            rate = settings.learning_rate
            if settings.schedule == "linear":
                rate *= (steps - step + 1) / steps
            with torch.no_grad():
                for name, g in zip(state, gradients, strict=True):
                    decay = settings.weight_decay if state[name].ndim >= 2 else 0.0
                    m, v = moments[name]
                    if settings.optimiser == "sgd":
                        m.mul_(settings.momentum).add_(g + decay * w[name])
                        w[name] -= rate * m
                        continue
                    w[name] *= 1 - rate * decay
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
                    w[name] -= rate * m_hat / (v_hat.sqrt() + 1e-8)
    return {name: w[name].detach() for name in state}, float(np.mean(losses)), step


@pytest.mark.parametrize(
    "settings",
    [
        LocalTraining(epochs=2, batch=7, learning_rate=0.05, weight_decay=0.1, optimiser="sgd"),
        LocalTraining(epochs=1, batch=8, learning_rate=0.05, optimiser="sgd", proximal_mu=0.5),
        LocalTraining(
            epochs=2, batch=7, learning_rate=0.02, weight_decay=0.1, optimiser="sgd", momentum=0.9
        ),
        LocalTraining(epochs=2, batch=7, learning_rate=0.05, optimiser="sgd", schedule="constant"),
        LocalTraining(epochs=2, batch=7, learning_rate=2e-3, weight_decay=0.1),
        LocalTraining(epochs=2, batch=7, learning_rate=2e-3, schedule="constant"),
        LocalTraining(epochs=1, batch=8, learning_rate=2e-3, proximal_mu=1.0),
    ],
    ids=[
        *("sgd", "sgd-fedprox", "momentum", "sgd-constant"),
        *("adamw", "adamw-constant", "adamw-fedprox"),
    ],
)
@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_round_is_that_of_a_plain_loop(kind, settings):
    model, (tokens, labels) = classifier(kind), toy(20)
    settings = replace(settings, dropout=0)
    generator = torch.Generator().manual_seed(0)  # off the zeros, where Adam divides tiny by tiny
    state = {
        n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in model.trainable().items()
    }
    ours = train(model, state, tokens, labels, settings, seed=4)
    theirs, mean_loss, steps = plain_loop(model, state, tokens, labels, settings, seed=4)
    assert ours.steps == steps and ours.mean_loss == pytest.approx(mean_loss, abs=1e-5)
    for name in state:
        assert not torch.equal(ours.state[name], state[name])
        assert torch.allclose(ours.state[name], theirs[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("schedule", "lengths"), [("linear", [4, 3, 2, 1]), ("constant", [4, 4, 4, 4])]
)
def test_steps_of_a_round_shrink_to_nothing(schedule, lengths, monkeypatch):
    """Four steps of SGD along gradients of all ones, at a rate of 0.4: 0.4, 0.3, 0.2 and 0.1 under
    FedPETuning's schedule (linear, no warm-up), and in the next round again.
    """
    model, (tokens, labels) = classifier("head"), toy(16)
    settings = LocalTraining(batch=4, learning_rate=0.4, optimiser="sgd", schedule=schedule)
    made, step = [], torch.optim.SGD.step

    def along_ones(optimiser):
        before = model.head.bias.detach().clone()
        for parameter in model.trainable_parameters().values():
            parameter.grad = torch.ones_like(parameter)
        step(optimiser)
        made.append((before - model.head.bias.detach()).tolist())

    monkeypatch.setattr(torch.optim.SGD, "step", along_ones)
    state = model.trainable()
    for seed in (0, 1):
        state = train(model, state, tokens, labels, settings, seed=seed).state
    assert np.allclose(made, [[length / 10] * 2 for length in lengths * 2], atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_a_separable_task(kind):
    model, (tokens, labels), (unseen, their_labels) = classifier(kind), toy(96), toy(60, seed=1)
    rate = {"full": 2e-3, "head": 0.05}.get(kind, 1e-2)
    start, still = model.trainable(), LocalTraining(learning_rate=0.0)
    fast = {"learning_rate": rate, "schedule": "constant", "dropout": 0.0}
    how = LocalTraining(epochs=8, batch=8, **fast)
    trained = train(model, start, tokens, labels, how, seed=0).state
    assert accuracy(predict(model, trained, unseen).argmax(axis=1), their_labels) >= 0.9
    before, after = (
        train(model, state, unseen, their_labels, still, seed=0) for state in (start, trained)
    )
    assert after.mean_loss < 0.5 * before.mean_loss
    assert all(
        torch.equal(after.state[n], trained[n]) for n in start
    )  # a rate of zero moves nothing


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_same_bits_every_time_whatever_came_before(kind):
    (tokens, labels), settings = toy(24), LocalTraining(batch=8, learning_rate=1e-2)
    model = classifier(kind)
    state = model.trainable()
    first = train(model, state, tokens, labels, settings, seed=1)
    other = train(
        model, first.state, *toy(16, seed=9), settings, seed=2
    )  # another device in between
    torch.manual_seed(123)
    again = train(model, state, tokens, labels, settings, seed=1)
    afresh = train(classifier(kind), state, tokens, labels, settings, seed=1)
    assert first.mean_loss == again.mean_loss == afresh.mean_loss
    for n in state:
        assert torch.equal(first.state[n], again.state[n]) and torch.equal(
            first.state[n], afresh.state[n]
        )
    assert any(not torch.equal(first.state[n], other.state[n]) for n in state)
    reordered = train(model, state, tokens, labels, settings, seed=3)
    assert any(not torch.equal(first.state[n], reordered.state[n]) for n in state)


def test_what_is_given_stays_as_it_is_and_nothing_lingers():
    model, (tokens, labels) = classifier("lora"), toy(10)
    state = model.trainable()
    kept = {n: t.clone() for n, t in state.items()}
    frozen = {n: t.clone() for n, t in model.state_dict().items() if n not in state}
    trained = train(model, state, tokens, labels, LocalTraining(learning_rate=0.1), seed=0).state
    assert all(torch.equal(state[n], kept[n]) for n in state)
    assert all(p.grad is None for p in model.parameters())
    model.load_trainable(state)
    assert any(
        not torch.equal(trained[n], state[n]) for n in state
    )  # the result is no view of the model
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in frozen.items())


def test_the_proximal_term_holds_the_state_back():
    model, (tokens, labels) = classifier("head"), toy(32)
    state = model.trainable()

    def distance(mu):
        settings = LocalTraining(
            epochs=5, batch=8, learning_rate=0.1, optimiser="sgd", proximal_mu=mu
        )
        trained = train(model, state, tokens, labels, settings, seed=0).state
        return sum(((trained[n] - state[n]) ** 2).sum().item() for n in state)

    assert distance(0.0) > distance(1.0) > distance(5.0) > 0


def test_predictions_do_not_depend_on_order_or_batch():
    model, (tokens, labels) = classifier("adapter"), toy(30)
    state = model.trainable()
    logits = predict(model, state, tokens, batch=7)
    for i in (0, 11, 29):
        assert np.allclose(logits[i], model(*inputs(tokens, [i])).detach().numpy()[0], atol=1e-5)
    right = np.mean(
        [
            F.softmax(torch.from_numpy(row), 0).argmax().item() == c
            for row, c in zip(logits, labels, strict=True)
        ]
    )
    found = predict(model, state, tokens, batch=13).argmax(axis=1)
    assert accuracy(found, labels) == pytest.approx(right)


@pytest.mark.parametrize("shares", [1, 2, 3, 9])
def test_shares_of_the_batches_are_together_the_predictions_to_the_bit(shares):
    model, (tokens, _) = classifier("adapter"), toy(30)
    state = model.trainable()
    whole = predict(model, state, tokens, batch=7)
    parts = [predict(model, state, tokens, batch=7, share=(k, shares)) for k in range(shares)]
    assert np.array_equal(sum(parts), whole)
    known = np.array([part.any(axis=1) for part in parts])
    assert (known.sum(axis=0) == 1).all()  # each text is in one of them


def test_segments_of_pairs_are_padded_with_their_texts():
    ids = [np.arange(2, 2 + n, dtype=np.int32) for n in (3, 5)]
    segments = [(np.arange(n) >= 2).astype(np.int32) for n in (3, 5)]
    ids_BT, mask_BT, segments_BT = inputs(Tokens(ids, segments), [1, 0])
    assert ids_BT.tolist() == [[2, 3, 4, 5, 6], [2, 3, 4, 0, 0]]
    assert mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert segments_BT.tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]


def test_errors_say_what_is_wrong():
    model = classifier("head")
    with pytest.raises(ValueError, match="nothing to train on"):
        train(model, model.trainable(), Tokens([]), np.array([]), LocalTraining(), seed=0)
    with pytest.raises(ValueError, match="not one of adamw, sgd"):
        train(model, model.trainable(), *toy(4), LocalTraining(optimiser="lion"), seed=0)
