"""The trainable part of a backbone: its names and sizes, its start, and that swapping it leaves no
trace.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import BackboneError, config_of, find
from learning.backbones.tokens import Tokens
from learning.cost.count_training import training_architecture
from learning.federated.local_training import inputs
from learning.federated.trainable import KINDS, TrainableClassifier

torch.set_num_threads(1)
DEEP = {"deep": {"random": {**config_of(find("random-bert")), "num_hidden_layers": 6}}}
D, FEED_FORWARD, LAYERS, WORDS = 64, 128, 2, 2048 + 512 + 2  # of random-bert
OPT = {
    "own": {
        "random": {
            "model_type": "opt",
            "vocab_size": 300,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        }
    }
}


def texts(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [
        torch.randint(2, 300, (4 + 3 * k,), generator=generator).int().numpy() for k in range(count)
    ]
    return inputs(Tokens(ids), range(count))


def classifier(kind, name="random-bert", own=None, **options):
    return TrainableClassifier(find(name, own), kind, classes=3, **options)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [  # embeddings and their norm; a layer's four square maps, two feed-forward maps, two norms
        (
            "full",
            WORDS * D
            + 2 * D
            + LAYERS * (4 * (D * D + D) + 2 * D * FEED_FORWARD + FEED_FORWARD + D + 4 * D),
        ),
        ("lora", LAYERS * 2 * 8 * (D + D)),
        ("adapter", 2 * LAYERS * (2 * D * 16 + 16 + D)),
        ("bitfit", D + LAYERS * (4 * D + FEED_FORWARD + D + 2 * D)),
        ("head", 0),
    ],
)
def test_trainable_numbers_follow_their_formula(kind, numbers):
    model = classifier(kind)
    head = 3 * (D + 1)
    assert sum(t.numel() for t in model.trainable().values()) == numbers + head
    assert model.trainable_bytes == 4 * (numbers + head)


def test_published_sizes_of_roberta_base():
    """294,912 numbers of LoRA at rank 8; FedPETuning's 0.9 M are these and RoBERTa's own head of
    0.59 M, and its 1.2 M those of two adapters of width 16 in each of twelve layers and that head.
    """
    width, layers = 768, 12
    own = {
        "r": {
            "random": {**config_of(find("roberta-base")), "vocab_size": 50, "num_hidden_layers": 1}
        }
    }
    lora = TrainableClassifier(find("r", own), "lora", 2)
    assert layers * (lora.trainable_bytes // 4 - 2 * (width + 1)) == 294_912
    own_head = width * (width + 1) + 2 * (width + 1)
    assert (294_912 + own_head) / 1e6 == pytest.approx(0.887, abs=5e-4)
    one_adapter = 768 * 16 + 16 + 16 * 768 + 768
    for form, a_layer, published in (("houlsby", 2, 1.2), ("pfeiffer", 1, 0.9)):
        model = TrainableClassifier(find("r", own), "adapter", 2, head="dense", adapters=form)
        assert model.trainable_bytes == 4 * (a_layer * one_adapter + own_head)
        counted = training_architecture(
            find("roberta-base"), "adapter", head="dense", adapters=form
        )
        assert counted.trainable == layers * a_layer * one_adapter + own_head
        assert counted.trainable / 1e6 == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("form", ["houlsby", "pfeiffer"])
def test_adapters_stand_where_their_papers_put_them(form):
    """BERT written out: each projection back to the width, plus its adapter, before the residual
    sum and the norm.
    """
    model, batch = classifier("adapter", adapters=form), texts()
    state = {n: t + 0.1 * torch.randn_like(t) for n, t in model.trainable().items()}
    model.load_trainable(state)
    plain, w = (
        classifier("head").backbone,
        {n.removeprefix("backbone."): t for n, t in state.items()},
    )

    def adapted(path, h):
        if f"{path}.adapter.down.weight" not in w:
            return h
        down, up = (
            (w[f"{path}.adapter.{which}.weight"], w[f"{path}.adapter.{which}.bias"])
            for which in ("down", "up")
        )
        z = nn.functional.linear(h, *down)
        # GELU by its tanh (Hendrycks & Gimpel 2016) in Houlsby's code, ReLU in Pfeiffer's
        cubed = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
        z = z.clamp(min=0) if form == "pfeiffer" else 0.5 * z * (1 + torch.tanh(cubed))
        return h + nn.functional.linear(z, *up)

    ids, mask, _ = batch
    h = plain.embeddings(input_ids=ids)
    masked = torch.where(mask[:, None, None].bool(), 0.0, torch.finfo(torch.float32).min)
    for i, layer in enumerate(plain.encoder.layer):
        attended = layer.attention.self(h, attention_mask=masked)[0]
        out, path = layer.attention.output, f"encoder.layer.{i}.attention.output.dense"
        h = out.LayerNorm(adapted(path, out.dense(attended)) + h)
        path = f"encoder.layer.{i}.output.dense"
        fed = adapted(path, layer.output.dense(layer.intermediate(h)))
        h = layer.output.LayerNorm(fed + h)
    mean = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.allclose(model(*batch), model.head(mean), atol=1e-5)
    assert not torch.allclose(
        model(*batch), model.head(classifier("head").backbone(ids, mask)[0].mean(1)), atol=1e-2
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_has_the_first_tensors_of_the_deeper_model(kind):
    deep, cut = (classifier(kind, name, DEEP, seed=3).trainable() for name in ("deep", "deep-l2"))
    assert list(deep)[: len(cut)] == list(cut) and (len(cut) < len(deep) or kind == "head")
    for name in cut:
        assert cut[name].shape == deep[name].shape
        if ".lora_" in name or ".adapter." in name or name.startswith("head."):
            assert torch.equal(
                cut[name], deep[name]
            )  # every new tensor starts from a stream of its own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["random-bert", "random-llama", "own"])
def test_every_trainable_tensor_moves_the_loss_and_no_other_gets_a_gradient(name, kind):
    if (name, kind) == ("random-llama", "bitfit"):
        pytest.skip("no biases")
    model, batch = classifier(kind, name, OPT), texts()
    state = {
        n: t + 0.05 * torch.randn_like(t) for n, t in model.trainable().items()
    }  # off LoRA's zeros
    model.load_trainable(state)
    model(*batch).square().sum().backward()
    trained = model.trainable_parameters()
    for n, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (n in trained)
    assert all(p.grad.abs().sum() > 0 for n, p in trained.items() if not n.endswith("k_proj.bias"))


@pytest.mark.parametrize("name", ["random-bert", "random-llama"])
@pytest.mark.parametrize("kind", ["lora", "adapter", "head"])
def test_forward_mode_derivatives_exist_and_agree_with_backward(name, kind):
    model, batch = classifier(kind, name), texts()
    state = {n: t + 0.05 * torch.randn_like(t) for n, t in model.trainable().items()}
    direction = {n: torch.randn_like(t) for n, t in state.items()}
    _, along = jvp(lambda s: functional_call(model, s, batch).sum(), (state,), (direction,))
    model.load_trainable(state)
    model(*batch).sum().backward()
    slope = sum((p.grad * direction[n]).sum() for n, p in model.trainable_parameters().items())
    assert along.item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("readout", ["first", "last", "mean"])
@pytest.mark.parametrize("kind", ["full", "lora", "bitfit", "head"])
def test_before_training_it_is_the_backbone_with_a_head(kind, readout):
    spec, model = find("random-bert"), classifier(kind, readout=readout)
    ids = [torch.arange(2, 9 + k).int().numpy() for k in range(3)]
    z = torch.from_numpy(Backbone(spec).readouts(Tokens(ids), readout)[:, -1])
    logits = model(*inputs(Tokens(ids), range(3)))
    assert torch.allclose(logits, z @ model.head.weight.T + model.head.bias, atol=1e-5)


def test_adapters_start_near_the_identity():
    model, plain, batch = classifier("adapter"), classifier("head"), texts()
    far = (model(*batch) - plain(*batch)).abs().max()
    assert 0 < far < 0.02 * plain(*batch).abs().max()


def test_peft_computes_the_lora_written_by_hand():
    model, batch = classifier("lora", rank=4, alpha=12), texts()
    state = {n: torch.randn_like(t) * 0.1 for n, t in model.trainable().items()}
    model.load_trainable(state)
    by_hand = classifier("head")
    weights = dict(by_hand.backbone.named_parameters())
    with torch.no_grad():
        by_hand.head.weight.copy_(state["head.weight"])
        by_hand.head.bias.copy_(state["head.bias"])
        for name in [n for n in state if ".lora_A." in n]:
            a_RD, b_DR = state[name], state[name.replace("lora_A", "lora_B")]
            place = name.removeprefix("backbone.").split(".lora_A.")[0]
            weights[f"{place}.weight"] += 12 / 4 * b_DR @ a_RD
    assert torch.allclose(model(*batch), by_hand(*batch), atol=1e-5)


def test_lora_starts_as_peft_starts_it():
    """A uniform within sqrt(3) / sqrt(3 d) = 1 / sqrt(d) (Kaiming with a = sqrt 5), B zero."""
    state = classifier("lora", rank=32).trainable()
    a = torch.cat([t.flatten() for n, t in state.items() if ".lora_A." in n])
    bound = 1 / math.sqrt(D)
    assert a.abs().max() <= bound and a.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert all(t.count_nonzero() == 0 for n, t in state.items() if ".lora_B." in n)


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_states_leaves_no_trace(kind):
    model, batch = classifier(kind), texts()
    one = model.trainable()
    before, frozen = (
        model(*batch),
        copy.deepcopy({n: t for n, t in model.state_dict().items() if n not in one}),
    )
    other = {n: torch.randn_like(t) for n, t in one.items()}
    model.load_trainable(other)
    assert not torch.equal(model(*batch), before)
    model.load_trainable(one)
    assert torch.equal(model(*batch), before)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in frozen.items())


def test_a_state_is_a_copy():
    model = classifier("bitfit")
    state, again = model.trainable(), model.trainable()
    for tensor in state.values():
        tensor.add_(1)
    assert all(torch.equal(t, again[n]) for n, t in model.trainable().items())


def test_the_start_depends_on_the_seed_alone():
    a, b, c = (classifier("lora", seed=seed).trainable() for seed in (1, 1, 2))
    torch.manual_seed(5)
    mark = torch.get_rng_state()
    d = classifier("adapter", seed=1).trainable()
    assert torch.equal(mark, torch.get_rng_state())  # nothing was drawn from the global stream
    assert all(torch.equal(a[n], b[n]) for n in a) and not torch.equal(
        a["head.weight"], c["head.weight"]
    )
    assert torch.equal(a["head.weight"], d["head.weight"])


def test_segments_reach_a_model_that_knows_them():
    model = classifier("head")
    ids, mask, _ = texts()
    segments = (torch.arange(ids.shape[1]) > 3).long().expand_as(ids)
    assert not torch.allclose(model(ids, mask, segments), model(ids, mask))
    llama = classifier("head", "random-llama")
    assert torch.equal(llama(ids, mask, segments), llama(ids, mask))


def test_padding_does_not_show():
    model = classifier("lora")
    ids, mask, _ = texts()
    wider = nn.functional.pad(ids, (0, 5)), nn.functional.pad(mask, (0, 5))
    assert torch.allclose(model(ids, mask), model(*wider), atol=1e-6)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="choose one of full, lora"):
        classifier("prefix")
    with pytest.raises(ValueError, match="'parallel' are not one of houlsby, pfeiffer"):
        classifier("adapter", adapters="parallel")
    with pytest.raises(
        ValueError, match=r"'random-llama' \(llama\) has no biases, so bitfit has nothing to train"
    ):
        classifier("bitfit", "random-llama")
    with pytest.raises(
        ValueError, match=r"lora_A.default.weight is \(4, 64\) in the state and \(8, 64\)"
    ):
        classifier("lora").load_trainable(classifier("lora", rank=4).trainable())
    with pytest.raises(ValueError, match="absent in the state"):
        classifier("lora").load_trainable(classifier("head").trainable())


def bert_like(model_type):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    return {"own": {"random": {"model_type": model_type, "num_attention_heads": 2, **sizes}}}


def test_a_model_that_calls_its_pooler_come_what_may_trains_without_it():
    model = classifier("full", "own", bert_like("layoutlm"))
    ids, mask, _ = texts()
    model(ids, mask).sum().backward()
    assert not [name for name in model.trainable() if "pooler" in name]
    counted = training_architecture(find("own", bert_like("layoutlm")), "full", 3)
    assert counted.trainable == sum(t.numel() for t in model.trainable().values())


@pytest.mark.parametrize("target_modules", [None, "all-linear", ["query"]])
def test_a_model_whose_linear_maps_are_its_own_has_no_lora(target_modules):
    with pytest.raises(BackboneError, match=r"\(ibert\) has no linear map that LoRA could stand"):
        classifier("lora", "own", bert_like("ibert"), target_modules=target_modules)
