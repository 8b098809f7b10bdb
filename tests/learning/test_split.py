"""Split learning computes what the whole model computes: outputs and gradients, at every cut, and
after many steps.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.backbones import catalogue
from learning.backbones.catalogue import BackboneError
from learning.backbones.language_head import output_embedding
from learning.backbones.tokens import Tokens
from learning.federated import split
from learning.federated.language_model import TrainableLanguageModel
from learning.federated.local_training import LocalTraining, inputs, train
from learning.federated.trainable import TrainableClassifier

torch.set_num_threads(1)
CLASSES = 3
OWN = {
    "tiny-distilbert": {
        "model_type": "distilbert",
        "vocab_size": 256,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 2,
    }
    | {"hidden_dim": 64, "max_position_embeddings": 64},
    "tiny-roberta": {
        "model_type": "roberta",
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
    }
    | {
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
    },
    "tiny-opt": {
        "model_type": "opt",
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
    }
    | {"num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "tiny-opt-narrow": {
        "model_type": "opt",
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
    }
    | {"num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 16}
    | {"do_layer_norm_before": False},
}
DEPTHS = {
    "random-bert": 2,
    "random-llama": 3,
    "tiny-distilbert": 3,
    "tiny-roberta": 2,
    "tiny-opt": 2,
}
DEPTHS |= {"tiny-opt-narrow": 2}
CUTS = [(name, layers) for name, depth in DEPTHS.items() for layers in range(depth + 1)]


def classifier_of(name, kind="full", readout="mean"):
    own = {key: {"random": value} for key, value in OWN.items()}
    return TrainableClassifier(catalogue.find(name, own), kind, CLASSES, readout, seed=1)


def batch_of(seed=0, lengths=(5, 9, 1, 7)):
    generator = torch.Generator().manual_seed(seed)
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids_BT = torch.randint(3, 256, mask_BT.shape, generator=generator) * mask_BT
    segments_BT = (torch.arange(max(lengths)) >= 3).long() * mask_BT
    return (
        ids_BT,
        mask_BT,
        segments_BT,
        torch.randint(CLASSES, (len(lengths),), generator=generator),
    )


def whole_gradients(classifier, ids_BT, mask_BT, segments_BT, labels_B):
    """Loss and gradients of the uncut classifier, by ordinary backpropagation."""
    parameters = classifier.trainable_parameters()
    loss = F.cross_entropy(classifier(ids_BT, mask_BT, segments_BT), labels_B)
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return float(loss.detach()), dict(zip(parameters, gradients, strict=True))


def splitfed_gradients(
    classifier, layers, ids_BT, mask_BT, segments_BT, labels_B, wire=lambda h, mask: h
):
    client, server = split.splitfed(classifier, layers)
    sent = split.forward(client, client.trainable(), ids_BT, mask_BT, segments_BT)
    assert not sent.output.requires_grad
    up = wire(sent.output, mask_BT)
    loss, server_gradients, back = split.learn(server, server.trainable(), up, mask_BT, labels_B)
    assert back.shape == sent.output.shape == (*ids_BT.shape, sent.output.shape[-1])
    client_gradients, nothing = sent.backward(wire(back, mask_BT))
    assert nothing is None
    return loss, client_gradients, server_gradients


def fedbert_gradients(classifier, ids_BT, mask_BT, segments_BT, labels_B):
    embedding, body, end = split.fedbert(classifier)
    device_state = {**embedding.trainable(), **end.trainable()}
    e = split.forward(embedding, device_state, ids_BT, mask_BT, segments_BT)
    b = split.forward(body, body.trainable(), e.output, mask_BT)
    loss, end_gradients, gradient_b = split.learn(end, device_state, b.output, mask_BT, labels_B)
    body_gradients, gradient_e = b.backward(gradient_b)
    embedding_gradients, _ = e.backward(gradient_e)
    crossing = [e.output, b.output, gradient_b, gradient_e]
    return loss, {**embedding_gradients, **end_gradients}, body_gradients, crossing


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(
            got[name], expected[name], rtol=1e-5, atol=1e-5 * float(expected[name].abs().max())
        ), name


@pytest.mark.parametrize(("name", "layers"), CUTS)
def test_split_gradients_are_the_unsplit_ones_at_every_cut(name, layers):
    classifier, batch = classifier_of(name), batch_of()
    expected_loss, expected = whole_gradients(classifier, *batch)
    loss, client, server = splitfed_gradients(classifier, layers, *batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert not client.keys() & server.keys()
    assert_same({**client, **server}, expected)
    assert any(gradient.abs().max() > 1e-6 for gradient in client.values())


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("readout", ["mean", "first", "last"])
def test_fedberts_gradients_are_the_unsplit_ones(name, readout):
    classifier, batch = classifier_of(name, readout=readout), batch_of()
    expected_loss, expected = whole_gradients(classifier, *batch)
    loss, device, body, crossing = fedbert_gradients(classifier, *batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same({**device, **body}, expected)
    assert {name.split(".")[0] for name in body} == {"backbone"} and {
        "head.weight",
        "head.bias",
    } <= device.keys()
    assert all(
        tensor.shape[:2] == batch[0].shape and not tensor.requires_grad for tensor in crossing
    )


@pytest.mark.parametrize("kind", ["lora", "adapter", "bitfit", "head"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_parameter_efficient_kinds_can_be_split_too(kind, layers):
    classifier, batch = classifier_of("random-bert", kind), batch_of()
    with torch.no_grad():  # away from the start, where half of LoRA's gradients are zero
        for parameter in classifier.trainable_parameters().values():
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    _, expected = whole_gradients(classifier, *batch)
    _, client, server = splitfed_gradients(classifier, layers, *batch)
    assert_same({**client, **server}, expected)
    assert bool(client) == (
        kind == "bitfit" or (kind != "head" and layers > 0)
    )  # BERT's embeddings have a bias


@pytest.mark.parametrize("name", ["random-bert", "random-llama"])
def test_padding_need_not_cross_the_wire(name):
    classifier, batch = classifier_of(name), batch_of()
    _, expected = whole_gradients(classifier, *batch)

    def wire(h_BTD, mask_BT):
        rows_ND = split.pack_rows(h_BTD, mask_BT)
        assert rows_ND.shape == (22, h_BTD.shape[-1])
        return split.unpack_rows(rows_ND, mask_BT)

    _, client, server = splitfed_gradients(classifier, 1, *batch, wire=wire)
    assert_same({**client, **server}, expected)


def test_a_lossy_wire_gives_the_gradient_at_what_arrived():
    classifier, batch = classifier_of("random-bert"), batch_of()
    ids_BT, mask_BT, segments_BT, labels_B = batch
    client, server = split.splitfed(classifier, 1)
    sent = split.forward(client, client.trainable(), ids_BT, mask_BT, segments_BT).output
    arrived = sent.half().float()
    _, _, back = split.learn(server, server.trainable(), arrived, mask_BT, labels_B)
    leaf = arrived.clone().requires_grad_()
    F.cross_entropy(server(leaf, mask_BT), labels_B).backward()
    assert torch.allclose(back, leaf.grad, atol=1e-7)
    _, _, without_loss = split.learn(server, server.trainable(), sent, mask_BT, labels_B)
    assert not torch.equal(back, without_loss)


def test_parts_together_are_the_classifier_and_share_its_weights():
    classifier = classifier_of("random-llama")
    for layers in range(4):
        client, server = split.splitfed(classifier, layers)
        assert sorted((*client.names, *server.names)) == sorted(classifier.trainable())
        assert {i for i in range(3) if any(f"layers.{i}." in name for name in client.names)} == set(
            range(layers)
        )
        assert {p.data_ptr() for p in (*client.parameters(), *server.parameters())} == {
            p.data_ptr() for p in classifier.parameters()
        }
    state = {**client.trainable(), **server.trainable()}
    classifier.load_trainable(state)
    before = classifier.trainable()
    split.learn(
        server,
        server.trainable(),
        torch.zeros(1, 2, 48),
        torch.ones(1, 2).long(),
        torch.tensor([0]),
    )
    assert all(torch.equal(before[n], t) for n, t in classifier.trainable().items())


def test_many_split_steps_are_many_unsplit_steps():
    classifier = classifier_of("random-bert")
    client, server = split.splitfed(classifier, 1)
    optimiser = split.AdamW(1e-3, weight_decay=0.1)
    states, moments = [client.trainable(), server.trainable()], [None, None]
    reference = classifier_of("random-bert")
    torch_optimiser = torch.optim.AdamW(
        reference.trainable_parameters().values(), lr=1e-3, weight_decay=0.1
    )
    losses = []
    for step in range(4):
        ids_BT, mask_BT, segments_BT, labels_B = batch_of(step % 2)
        sent = split.forward(client, states[0], ids_BT, mask_BT, segments_BT)
        loss, server_gradients, back = split.learn(
            server, states[1], sent.output, mask_BT, labels_B
        )
        client_gradients, _ = sent.backward(back)
        for i, gradients in enumerate((client_gradients, server_gradients)):
            states[i], moments[i] = optimiser.step(states[i], gradients, moments[i])
        expected = F.cross_entropy(reference(ids_BT, mask_BT, segments_BT), labels_B)
        torch_optimiser.zero_grad()
        expected.backward()
        torch_optimiser.step()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
        losses.append(loss)
    assert losses[-1] < losses[1] and losses[2] < losses[0]
    for name, tensor in reference.trainable().items():
        # a gradient that is zero but for rounding has a sign of its own in Adam's first steps: key
        # biases in softmax
        if not name.endswith("key.bias"):
            assert torch.allclose({**states[0], **states[1]}[name], tensor, atol=2e-4), name


@settings(max_examples=30, deadline=None)
@given(
    lr=st.floats(1e-5, 1e-1),
    decay=st.floats(0, 0.5),
    gradients=st.lists(
        st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=5
    ),
)
def test_adamw_is_torchs(lr, decay, gradients):
    leaf = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    reference = torch.optim.AdamW([leaf], lr=lr, weight_decay=decay)
    state, moments = {"w": leaf.detach().clone()}, None
    for gradient in map(torch.tensor, gradients):
        leaf.grad = gradient.clone()
        reference.step()
        state, moments = split.AdamW(lr, weight_decay=decay).step(state, {"w": gradient}, moments)
    assert torch.allclose(state["w"], leaf.detach(), rtol=1e-4, atol=1e-5)


def test_sgd_leaves_its_input_alone():
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}
    stepped = split.sgd_step(state, {"a": torch.tensor([10.0, -10.0])}, 0.1)
    assert (
        stepped["a"].tolist() == [0.0, 3.0]
        and stepped["b"].tolist() == [5.0]
        and state["a"].tolist() == [1.0, 2.0]
    )


def test_cuts_that_cannot_be_made_are_refused():
    classifier = classifier_of("random-bert")
    with pytest.raises(
        ValueError, match="a model of 2 layers can be cut after 0 to 2 of them, not after 3"
    ):
        split.splitfed(classifier, 3)


# --- language models
# ------------------------------------------------------------------------------------------

SMOLLM2 = {  # its proportions: heads that share keys and values, one tensor in and out
    "model_type": "llama",
    "vocab_size": 211,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
DECODERS = {
    "tied": SMOLLM2,
    "untied": {**SMOLLM2, "tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", "vocab_size": 211, "n_embd": 24, "n_layer": 3, "n_head": 3},
    "opt": {**OWN["tiny-opt"], "num_hidden_layers": 3, "vocab_size": 211},
}


def speaker_of(name, kind):
    own = {key: {"random": value} for key, value in DECODERS.items()}
    model = TrainableLanguageModel(catalogue.find(name, own), kind, seed=1)
    with torch.no_grad():  # away from the start, where half of LoRA's gradients are zero
        for parameter in model.trainable_parameters().values() if kind != "full" else ():
            draw = torch.Generator().manual_seed(parameter.numel())
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model


def talk(seed=0, lengths=(5, 9, 2, 7), said=(2, 4, 1, 6)):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, 211, n).astype(np.int32) for n in lengths]
    ends = zip(lengths, said, strict=True)
    return Tokens(ids, [np.repeat(np.int32([0, 1]), [n - last, last]) for n, last in ends])


def what_is_said(model, tokens):
    """Ids, mask and segments, and the tokens to be said, as local training has them."""
    batch = inputs(tokens, range(len(tokens)))
    return *batch, model.targets(*batch, torch.empty(0))


def split_words(model, layers, state, ids_BT, mask_BT, segments_BT, wanted_M):
    client, server = split.splitfed(model, layers)
    sent = split.forward(client, state, ids_BT, mask_BT, segments_BT)
    loss, at_server, back = split.learn(
        server, state, sent.output, mask_BT, wanted_M, segments_BT=segments_BT
    )
    return loss, {**sent.backward(back)[0], **at_server}


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("tied", "lora"), ("untied", "lora"), ("tied", "adapter"), ("untied", "full")],
)
def test_a_split_language_models_gradients_are_the_unsplit_ones_at_every_cut(name, kind, layers):
    model = speaker_of(name, kind)
    batch = what_is_said(model, talk())
    expected_loss, expected = whole_gradients(model, *batch)
    loss, found = split_words(model, layers, model.trainable(), *batch)
    assert len(batch[-1]) == 13 and loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_other_decoders_can_be_split_by_lora(name):
    model = speaker_of(name, "lora")
    batch = what_is_said(model, talk())
    expected_loss, expected = whole_gradients(model, *batch)
    loss, found = split_words(model, 1, model.trainable(), *batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(found, expected)


def test_a_split_step_is_a_step_of_local_training():
    model, tokens = speaker_of("tied", "lora"), talk()
    start = model.trainable()
    how = LocalTraining(epochs=1, batch=4, learning_rate=1e-2, optimiser="sgd", dropout=0.0)
    local = train(model, start, tokens, np.zeros(4, int), how, 0)
    loss, gradients = split_words(model, 1, start, *what_is_said(model, tokens))
    stepped, _ = split.Sgd(1e-2).step(start, gradients)
    assert loss == pytest.approx(local.mean_loss, rel=1e-6)
    for name, tensor in local.state.items():
        assert torch.allclose(stepped[name], tensor, atol=1e-7) and (tensor != start[name]).any()


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_fedberts_vocabulary_is_on_the_device_also_where_it_is_the_embeddings(name):
    model = speaker_of(name, "full")
    ids_BT, mask_BT, segments_BT, wanted_M = batch = what_is_said(model, talk())
    expected_loss, expected = whole_gradients(model, *batch)
    embedding, body, end = split.fedbert(model)
    assert ({*embedding.names} == {*end.names}) == (name == "tied")
    e = split.forward(embedding, embedding.trainable(), ids_BT, mask_BT, segments_BT)
    b = split.forward(body, body.trainable(), e.output, mask_BT)
    loss, at_end, back = split.learn(
        end, end.trainable(), b.output, mask_BT, wanted_M, segments_BT=segments_BT
    )
    at_body, back = b.backward(back)
    below, _ = e.backward(back)
    both = {n: below.get(n, 0) + at_end.get(n, 0) for n in {**below, **at_end}}
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same({**both, **at_body}, expected)


def test_one_tensor_cannot_be_trained_on_both_sides():
    with pytest.raises(BackboneError, match=r"are one tensor; choose lora or adapter, or fedbert"):
        split.splitfed(speaker_of("tied", "full"), 1)


@pytest.mark.parametrize(
    ("name", "is_tied", "numbers"), [("tied", True, 0), ("untied", False, 211 * 24)]
)
def test_what_a_vocabulary_has_beside_the_embeddings_follows_from_the_configuration(
    name, is_tied, numbers
):
    model = speaker_of(name, "lora")
    assert output_embedding(model.spec) == (is_tied, numbers)
    of_head = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.backbone.parameters()
    )
    assert of_head == numbers
