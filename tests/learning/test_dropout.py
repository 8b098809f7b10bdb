"""What is dropped out in training, against transformers' own models in train mode."""

import hashlib
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.backbones.catalogue import find
from learning.backbones.tokens import Tokens
from learning.federated import split
from learning.federated.dropout import dropping_out
from learning.federated.local_training import LocalTraining, predict, train
from learning.federated.trainable import TrainableClassifier

torch.set_num_threads(1)
CONFIGS = runpy.run_path(str(Path(__file__).with_name("architectures.py")))["CONFIGS"]
SETTINGS = LocalTraining(epochs=2, batch=4, learning_rate=0.05, optimiser="sgd")


def texts(count=10):
    """Of one length, so that nothing is padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 30, (count, 7)).astype(np.int32)
    return Tokens(list(ids)), rng.integers(3, size=count)


def bits(state):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_training_is_that_of_transformers_in_train_mode(own_model, rate):
    """RoBERTa with its own head in transformers' train mode, seeded once; in batches of 4, at rates
    that fall linearly.
    """
    from transformers import RobertaForSequenceClassification

    folder, (tokens, labels) = own_model("roberta", vocab_size=32, words=None), texts()
    ours = TrainableClassifier(
        find("own", {"own": {"path": str(folder)}}), "full", 3, readout="first", head="dense"
    )
    start = ours.trainable()
    settings = LocalTraining(epochs=2, batch=4, learning_rate=0.05, optimiser="sgd", dropout=rate)
    found = train(ours, start, tokens, labels, settings, seed=7)

    rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    theirs = RobertaForSequenceClassification.from_pretrained(
        folder, num_labels=3, attn_implementation="eager", **rates
    )
    theirs.load_state_dict({their_name(name): tensor for name, tensor in start.items()}, False)
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.05)
    order, losses, step = np.random.default_rng(7), [], 0
    theirs.train()
    torch.manual_seed(7)
    for _ in range(2):
        permuted = order.permutation(10)
        for chosen in (permuted[:4], permuted[4:8], permuted[8:]):
            optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 6)
            ids = torch.from_numpy(np.stack([tokens.ids[i] for i in chosen])).long()
            out = theirs(input_ids=ids, labels=torch.from_numpy(labels[chosen]))
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
            losses += [out.loss.item()] * len(chosen)
            step += 1
    wanted = theirs.state_dict()
    assert found.mean_loss == pytest.approx(np.mean(losses), abs=1e-6)
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, wanted[their_name(name)], atol=1e-6, rtol=0, msg=name)
    without = train(ours, start, tokens, labels, SETTINGS, seed=7).state
    assert (bits(without) == bits(found.state)) == (rate == 0.1)


def their_name(name):
    return name.replace("backbone.", "roberta.", 1).replace("head.", "classifier.", 1)


@pytest.mark.parametrize("kind", ["lora", "bitfit"])
def test_the_same_bits_whatever_others_draw(kind):
    """Another thread draws from PyTorch's one generator and drops out by it all the while."""
    model, (tokens, labels) = TrainableClassifier(find("random-bert"), kind, 3), texts()
    start, before = model.trainable(), torch.get_rng_state()
    first = train(model, start, tokens, labels, SETTINGS, seed=1)
    assert torch.get_rng_state().equal(before), "nobody else's draws are moved"
    done, drawn = threading.Event(), []

    def draw():
        while not done.wait(1e-3):
            drawn.append(float(F.dropout(torch.rand(100) + 1, 0.5).eq(0).float().mean()))

    other = threading.Thread(target=draw)
    other.start()
    try:
        again = train(model, start, tokens, labels, SETTINGS, seed=1)
    finally:
        done.set()
        other.join()
    assert bits(again.state) == bits(first.state) and again.mean_loss == first.mean_loss
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)
    assert bits(train(model, start, tokens, labels, SETTINGS, seed=2).state) != bits(first.state)


def test_predictions_are_without():
    model, (tokens, labels) = TrainableClassifier(find("random-bert"), "lora", 3), texts()
    start = model.trainable()
    before = predict(model, start, tokens)
    train(model, start, tokens, labels, SETTINGS, seed=1)
    assert np.array_equal(predict(model, start, tokens), before)
    with pytest.raises(ValueError, match="unpack"), dropping_out(model, 0.1, 0):
        model(torch.ones(1, 1, 1), torch.ones(1, 1))
    assert np.array_equal(predict(model, start, tokens), before)


def test_what_an_architecture_does_not_drop_out_stays():
    """Llama has a rate of 0 for its attention and none elsewhere: the head's inputs alone are
    dropped out.
    """
    model, (tokens, _) = TrainableClassifier(find("random-llama"), "lora", 3, head="dense"), texts()
    ids = torch.from_numpy(np.stack(tokens.ids)).long()
    inside = model.backbone(input_ids=ids).last_hidden_state
    plain = model(ids, torch.ones_like(ids))
    with dropping_out(model, 0.5, 0):
        assert model.backbone(input_ids=ids).last_hidden_state.equal(inside)
        assert not model(ids, torch.ones_like(ids)).equal(plain)


def test_parts_drop_out_what_the_whole_would():
    """A batch of SplitFed against the whole model in train mode, where the generator is seeded
    anew as the second layer begins.
    """
    model, (tokens, labels) = TrainableClassifier(find("random-bert"), "full", 3, "first"), texts(4)
    client, server = split.splitfed(model, 1)
    ids, labels = torch.from_numpy(np.stack(tokens.ids)).long(), torch.from_numpy(labels)
    mask, state = torch.ones_like(ids), model.trainable()

    sent = split.forward(client, state, ids, mask, dropout=(0.1, 5))
    loss, upper, back = split.learn(server, state, sent.output, mask, labels, (0.1, 6))
    found = sent.backward(back)[0] | upper
    assert not any(module.training for part in (client, server) for module in part.modules())

    cut = model.backbone.encoder.layer[1]
    cut.register_forward_pre_hook(lambda *_: torch.manual_seed(6) and None)
    model.train()
    torch.manual_seed(5)
    wanted = F.cross_entropy(model(ids, mask), labels)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), abs=1e-6)
    for name, parameter in model.trainable_parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)


NOISY = {  # whole layers at random, and experts that are chosen by chance
    "OPT": {"layerdrop": 0.5},
    "Mixtral": {"router_jitter_noise": 0.5},
}
FAST = ("OPT", "Mixtral", "T5 (encoder)", "ModernBERT")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FAST else pytest.mark.thorough) for n in sorted(CONFIGS)],
)
def test_of_any_architecture_it_follows_from_the_seed(name):
    config = {**CONFIGS[name], **NOISY.get(name, {})}
    model = TrainableClassifier(find("own", {"own": {"random": config}}), "full", 3)
    (tokens, labels), start = texts(4), model.trainable()
    before = torch.get_rng_state()
    found = [
        bits(train(model, start, tokens, labels, SETTINGS, seed=seed).state) for seed in (1, 1, 2)
    ]
    assert torch.get_rng_state().equal(before), "something draws from the common generator"
    assert found[0] == found[1] != found[2]
