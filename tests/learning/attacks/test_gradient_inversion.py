"""Labels and tokens from the gradients of real classifiers: exact where theory says so."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.attacks.bags import judged_tokens
from learning.attacks.gradient_inversion import (
    OBJECTIVES,
    EmbeddingGradients,
    gradients_of_step,
    judged_labels,
    label_counts,
    label_of_one,
    label_of_one_by_weights,
    matched,
    tokens_in_span,
    tokens_of_table,
)
from learning.backbones.assets import AssetMissing
from learning.backbones.catalogue import find
from learning.backbones.tokens import tokenise
from learning.federated.local_training import LocalTraining, inputs, train
from learning.federated.trainable import TrainableClassifier

torch.set_num_threads(1)
CLASSES = 4
TABLE = "backbone.embeddings.word_embeddings.weight"
QUERY = "backbone.{}.0.attention.self.query.{}"
TEXTS = ["Who wrote Hamlet ?", "How far is the moon from here ?"]


def classifier(name="random-bert", kind="full", classes=CLASSES):
    try:
        model = TrainableClassifier(find(name), kind, classes)
    except AssetMissing as missing:
        pytest.skip(str(missing))
    if kind == "lora":  # as after a first step: B is no longer zero
        generator = torch.Generator().manual_seed(0)
        state = model.trainable()
        moved = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
        model.load_trainable({n: moved[n] if "lora_B" in n else t for n, t in state.items()})
    return model


def batch_of(model, texts):
    tokens = tokenise(model.spec, texts)
    return tokens, *inputs(tokens, range(len(texts)))[:2]


def uploaded(model, ids_BT, mask_BT, labels):
    parameters = model.trainable_parameters()
    loss = F.cross_entropy(model(ids_BT, mask_BT), torch.tensor(labels))
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("kind", ["full", "lora", "bitfit", "adapter", "head"])
@pytest.mark.parametrize("label", range(CLASSES))
def test_the_label_of_one_text_is_exact(kind, label):
    model = classifier(kind=kind)
    found = uploaded(model, *batch_of(model, TEXTS[:1])[1:], [label])
    assert label_of_one(found["head.bias"]) == label
    assert label_of_one_by_weights(found["head.weight"]) == label


def test_the_labels_of_a_batch_are_counted():
    model, rng = classifier(), np.random.default_rng(0)
    guesses, truths = [], []
    for size in (1, 2, 4):
        labels = rng.integers(0, CLASSES, size)
        found = uploaded(model, *batch_of(model, (TEXTS * 2)[:size])[1:], labels)
        guesses.append(label_counts(found["head.bias"], size))
        truths.append(np.bincount(labels, minlength=CLASSES))
    outcome = judged_labels("bias", np.array(guesses), np.array(truths), rng)
    assert outcome.success == outcome.low == 1.0 and outcome.n == 3
    certain = torch.tensor([0.97, 0.01, 0.01, 0.01])  # of a model that says class 0 of all
    gradient = certain - torch.tensor([0.25, 0.75, 0, 0])
    assert label_counts(gradient, 4, certain).tolist() == [1, 3, 0, 0]
    assert label_counts(gradient, 4).tolist() != [1, 3, 0, 0]


def test_half_of_the_labels_by_hand():
    found = judged_labels(
        "any", np.array([[2, 0], [1, 1]]), np.array([[1, 1], [1, 1]]), np.random.default_rng(0)
    )
    assert found.success == 0.75 and found.chance == 0.5


def test_one_step_of_sgd_gives_its_gradient():
    model = classifier()
    tokens, ids, mask = batch_of(model, TEXTS)
    state, labels = model.trainable(), np.array([1, 3])
    settings = LocalTraining(1, 2, 0.5, optimiser="sgd", schedule="constant", dropout=0.0)
    after = train(model, state, tokens, labels, settings, seed=0).state
    found = gradients_of_step(state, after, 0.5)
    model.load_trainable(state)
    for name, gradient in uploaded(model, ids, mask, labels).items():
        assert torch.allclose(found[name], gradient, atol=1e-5)
    assert {*tokens_of_table(found[TABLE])} == {*ids[mask == 1].tolist()}


@pytest.mark.fetched
@pytest.mark.parametrize("texts", [1, 2])
def test_a_trained_table_and_a_trained_query_name_the_tokens_of_minilm_exactly(texts):
    model = classifier("minilm")
    tokens, ids, mask = batch_of(model, TEXTS[:texts])
    found = uploaded(model, ids, mask, [2, 0][:texts])
    assert {*tokens_of_table(found[TABLE])} == {*ids[mask == 1].tolist()}
    query = found[QUERY.format("encoder.layer", "weight")]
    among = np.union1d(np.arange(0, 30522, 10), ids[mask == 1].numpy())
    length = int(tokens.lengths().max())
    placed = tokens_in_span(query, model.backbone.embeddings, among, length)
    for place, fits in enumerate(placed):
        assert {*fits} == {int(one[place]) for one in tokens.ids if len(one) > place}
    rounded = tokens_in_span(query.half(), model.backbone.embeddings, among, length, 1e-2)
    assert all({*fits} >= {*exactly} for fits, exactly in zip(rounded, placed, strict=True))
    assert texts > 1 or all(len(fits) == 1 for fits in rounded)


@pytest.mark.fetched
def test_lora_of_minilm_names_the_tokens_of_a_text_no_longer_than_its_rank():
    model = classifier("minilm", "lora")
    tokens, ids, mask = batch_of(model, TEXTS[:1])
    found = uploaded(model, ids, mask, [2])
    query = found[QUERY.format("encoder.layer", "lora_A.default.weight")]
    among = np.union1d(np.arange(0, 30522, 10), tokens.ids[0])
    placed = tokens_in_span(query, model.backbone.embeddings, among, ids.shape[1])
    assert ids.shape[1] <= query.shape[0] == 8
    assert [fits.tolist() for fits in placed] == [[token] for token in tokens.ids[0]]


def test_gradients_by_embeddings_are_those_by_ids():
    model = classifier(kind="bitfit")
    _, ids, mask = batch_of(model, TEXTS)
    gradient_of = EmbeddingGradients(model, mask)
    table = model.backbone.get_input_embeddings()
    ours = gradient_of(table(ids), torch.tensor([0, 2]))
    found = uploaded(model, ids, mask, [0, 2])
    assert gradient_of.names == tuple(found)
    for name, gradient in zip(gradient_of.names, ours, strict=True):
        assert torch.allclose(gradient, found[name], atol=1e-6)


def invert(model, texts, labels, seed=0, **how):
    _, ids, mask = batch_of(model, texts)
    gradient_of = EmbeddingGradients(model, mask)
    found = uploaded(model, ids, mask, labels)
    table = model.backbone.get_input_embeddings().weight
    gradients = [found[name] for name in gradient_of.names]
    shape = (*ids.shape, table.shape[1])
    rng = np.random.default_rng(seed)
    result = matched(gradients, gradient_of, torch.tensor(labels), shape, table, rng, **how)
    outcomes = judged_tokens(
        "matching", [*result.ids_BT], [*ids.numpy()], np.arange(ids.shape[1]), rng
    )
    return result, outcomes


def test_matching_gradients_finds_the_tokens_that_gave_them():
    model = classifier()
    result, (precision, recall, _) = invert(model, TEXTS[:1], [1], steps=150)
    assert precision.success > 0.5 and recall.success > 0.5 and recall.chance < 0.3
    assert result.objective < 0.1
    again, _ = invert(model, TEXTS[:1], [1], steps=10)
    once, _ = invert(model, TEXTS[:1], [1], steps=10)
    assert np.array_equal(once.ids_BT, again.ids_BT) and once.objective == again.objective


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_zero_for_the_same_and_falls(objective):
    model = classifier(kind="bitfit")
    few, many = (
        invert(model, TEXTS[:1], [1], steps=steps, objective=objective)[0].objective
        for steps in (1, 40)
    )
    assert many < 0.7 * few
    theirs = [torch.tensor([1.0, -2.0]), torch.zeros(2)]
    assert float(OBJECTIVES[objective](theirs, theirs)) == 0.0
    with pytest.raises(ValueError, match="dlg, tag"):
        invert(model, TEXTS[:1], [1], objective="cosine")


@pytest.mark.thorough
@pytest.mark.fetched
def test_matching_gradients_of_a_fully_trained_minilm_finds_tokens():
    model = classifier("minilm")
    _, (_, recall, _) = invert(model, TEXTS[:1], [1], steps=300)
    assert recall.success > 0.4
