"""Backbones by name, cut, path and hub id; what is refused and how it is said; and texts into
tokens.
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learning.backbones import catalogue
from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import BackboneError, config_of, find, fingerprint
from learning.backbones.tokens import Tokens, tokenise
from learning.cost.forward_pass import architecture

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "who",
    "wrote",
    "hamlet",
    "?",
    "how",
    "far",
    "is",
    "the",
    "moon",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A user's own model: a small BERT of 3 layers by save_pretrained, and its tokenizer.json."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("my-model")
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    BertModel(BertConfig(vocab_size=len(WORDS), num_hidden_layers=3, **size)).save_pretrained(
        folder
    )
    tokenizer = BertWordPieceTokenizer({word: i for i, word in enumerate(WORDS)})
    tokenizer.enable_padding(length=40)  # as many published files have it
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Counts of the models made here stay out of the user's cache."""
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))


def test_every_name_of_the_catalogue_is_found():
    for name in catalogue.names():
        spec = find(name)
        assert spec.name == name and catalogue.depth_of(config_of(spec)) >= 1
        assert spec.has_weights == (spec.kind != "shape")
    assert find("minilm").kind == "asset" and find("roberta-base").kind == "shape"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("minlm", "minilm"), ("minilm-l-2", "minilm"), ("roberta_base", "roberta-base")],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(
        BackboneError, match=f"no backbone is called '{wrong}'; did you mean '{near}'"
    ):
        find(wrong)


def test_a_name_unlike_any_other_points_to_the_list_and_own_names_are_near_too():
    with pytest.raises(
        BackboneError,
        match=r"no backbone is called 'xyzzy' \(`mobifleet list backbones` shows all\)",
    ):
        find("xyzzy")
    with pytest.raises(BackboneError, match="did you mean 'our-model'"):
        find("our-modl", {"our-model": {"path": "here"}})


@given(st.integers(1, 30))
def test_a_suffix_cuts_to_the_first_layers(layers):
    spec = find(f"smollm2-l{layers}")
    assert spec.layers == layers and config_of(spec)["num_hidden_layers"] == layers
    assert (
        config_of(find("smollm2"))["num_hidden_layers"] == 30
    )  # the catalogue itself is left alone
    assert config_of(find("distilbert-cased-l2"))["n_layers"] == 2


@pytest.mark.parametrize("name", ["minilm-l7", "minilm-l0", "random-bert-l3"])
def test_a_cut_deeper_than_the_model_is_refused(name):
    with pytest.raises(BackboneError, match="layers, so it cannot be cut to"):
        find(name)


def test_an_own_definition_needs_exactly_one_source():
    for given_ in ({}, {"path": "a", "hub": "b"}, {"path": None}):
        with pytest.raises(BackboneError, match="'mine' needs exactly one of path, hub, random"):
            find("mine", {"mine": given_})
    assert (
        find("minilm", {"minilm": {"path": "my/own"}}).kind == "path"
    )  # an own name goes before the catalogue's


def test_a_path_without_a_model_is_named(tmp_path):
    spec = find("mine", {"mine": {"path": str(tmp_path / "nowhere")}})
    with pytest.raises(
        BackboneError,
        match=r"backbone 'mine': no model in .*nowhere \(config.json not found there\)",
    ):
        Backbone(spec)


def test_a_hub_name_without_network_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BackboneError,
        match=r"neither in the local hub cache nor reachable .* give its directory as `path:`",
    ):
        catalogue.directory(find("mine", {"mine": {"hub": "nobody/no-such-model"}}))


def test_an_architecture_can_be_costed_but_not_run():
    spec = find("roberta-base")
    assert architecture(spec).layers == 12
    with pytest.raises(
        BackboneError, match="an architecture without weights: it can be costed, not run"
    ):
        Backbone(spec)


def test_a_model_of_your_own_loads_from_its_directory(saved, own_cache):
    from transformers import AutoModel

    spec = find("mine", {"mine": {"path": str(saved)}})
    backbone = Backbone(spec)
    tokens = tokenise(spec, ["Who wrote Hamlet ?", "How far is the moon ?"])
    assert [ids.tolist() for ids in tokens.ids] == [[2, 4, 5, 6, 7, 3], [2, 8, 9, 10, 11, 12, 7, 3]]
    assert tokens.segments is None and tokens.lengths().tolist() == [6, 8]
    ids = torch.tensor(tokens.ids[0].tolist())[None]
    with torch.no_grad():
        states = (
            AutoModel.from_pretrained(saved).eval()(ids, output_hidden_states=True).hidden_states
        )
    expected = torch.cat(states).mean(dim=1).numpy()
    assert np.allclose(backbone.readouts(tokens)[0], expected, atol=1e-5)
    counted = architecture(spec)
    assert counted.parameters == sum(p.numel() for p in backbone.model.parameters())


def test_a_model_of_your_own_can_be_cut(saved):
    own = {
        "mine": {"path": str(saved)},
        "two": {"path": str(saved), "layers": 2},
        "nine": {"path": str(saved), "layers": 9},
    }
    whole, cut, suffix = (Backbone(find(name, own)) for name in ("mine", "two", "mine-l2"))
    tokens = tokenise(whole.spec, ["who wrote the moon"])
    assert np.array_equal(whole.readouts(tokens)[:, :3], cut.readouts(tokens))
    assert np.array_equal(suffix.readouts(tokens), cut.readouts(tokens))
    with pytest.raises(BackboneError, match="'nine': 3 layers, so it cannot be cut to 9"):
        Backbone(find("nine", own))
    marks = {fingerprint(find(name, own)) for name in ("mine", "two", "mine-l1")}
    assert len(marks) == 3 and fingerprint(cut.spec) == fingerprint(suffix.spec)


def test_a_model_whose_configuration_uses_other_words(tmp_path, own_cache):
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(
        GPT2Config(vocab_size=50, n_positions=128, n_embd=24, n_layer=3, n_head=2)
    ).eval()
    model.save_pretrained(tmp_path)
    own = {"mine": {"path": str(tmp_path)}, "two": {"path": str(tmp_path), "layers": 2}}
    ids = np.array([3, 9, 4, 7], np.int32)
    with torch.no_grad():
        states = model(torch.tensor(ids.tolist())[None], output_hidden_states=True).hidden_states
    got = Backbone(find("mine", own)).readouts(Tokens([ids]), "last")[0]
    assert np.allclose(got, torch.cat(states)[:, -1].numpy(), atol=1e-5)
    assert Backbone(find("two", own)).layers == 2
    counted = architecture(find("mine", own))
    assert (counted.layers, counted.hidden_size) == (3, 24)


def test_a_model_of_a_short_context_can_be_costed(own_cache):
    config = {**config_of(find("random-bert")), "max_position_embeddings": 64}
    counted = architecture(find("mine", {"mine": {"random": config}}))
    assert counted.forward(1, 50).flop == architecture(find("random-bert")).forward(1, 50).flop


def test_other_weights_have_another_fingerprint(saved, tmp_path):
    from safetensors.numpy import load_file, save_file

    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    copy = find("copy", {"copy": {"path": str(tmp_path)}})
    assert fingerprint(copy) == fingerprint(find("mine", {"mine": {"path": str(saved)}}))
    tensors = load_file(tmp_path / "model.safetensors")
    next(iter(tensors.values())).flat[0] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert fingerprint(copy) != fingerprint(find("mine", {"mine": {"path": str(saved)}}))


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickled_weights_are_refused_and_never_read(saved, tmp_path):
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    torch.save(Bomb(), tmp_path / "pytorch_model.bin")
    spec = find("mine", {"mine": {"path": str(tmp_path)}})
    with pytest.raises(
        BackboneError,
        match=r"no model.safetensors in .* pytorch_model.bin\); pickled weights are never read",
    ):
        Backbone(spec)
    with pytest.raises(BackboneError, match="pickled weights are never read"):
        fingerprint(spec)


def test_a_configuration_without_depth_is_refused():
    with pytest.raises(BackboneError, match="without a number of layers"):
        catalogue.depth_of({"hidden_size": 8})


# --- tokens


def test_texts_are_cut_and_never_padded(saved):
    spec = find("mine", {"mine": {"path": str(saved)}})
    tokens = tokenise(spec, ["who wrote hamlet ? " * 20, "moon", ""], max_tokens=16)
    assert tokens.lengths().tolist() == [16, 3, 2]
    assert all(ids.dtype == np.int32 for ids in tokens.ids)


def test_pairs_become_one_sequence_with_segments(saved):
    spec = find("mine", {"mine": {"path": str(saved)}})
    tokens = tokenise(spec, ["who wrote hamlet"], ["how far"])
    assert tokens.ids[0].tolist() == [2, 4, 5, 6, 3, 8, 9, 3]
    assert tokens.segments[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_tokenizer_without_tokenizer_json_is_used_too(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    plain, fast = (find("m", {"m": {"path": str(folder)}}) for folder in (tmp_path, saved))
    texts, others = ["Who wrote Hamlet ?", "the moon"], ["how far", "is the moon ?"]
    for second in (None, others):
        a, b = (tokenise(spec, texts, second, max_tokens=8) for spec in (plain, fast))
        assert [i.tolist() for i in a.ids] == [i.tolist() for i in b.ids]
        assert (a.segments is None) == (b.segments is None) == (second is None)


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(1, 9))
def test_a_random_backbone_reads_any_text(texts, max_tokens):
    tokens = tokenise(find("random-bert"), texts, max_tokens=max_tokens)
    assert len(tokens) == len(texts)
    for text, ids in zip(texts, tokens.ids, strict=True):
        assert (
            1 <= len(ids) == min(max_tokens, 1 + len(text.split()))
            and ids.min() >= 0
            and ids.max() < 2048
        )
    pairs = tokenise(find("random-bert"), texts, texts, max_tokens)
    assert [len(s) for s in pairs.segments] == [len(i) for i in pairs.ids]


@pytest.mark.fetched
def test_packaged_tokenizers_open_and_close_a_text_as_their_model_expects(get):
    spec = get("minilm").spec
    ids = tokenise(spec, ["Who wrote Hamlet ?"]).ids[0]
    assert ids[0] == 101 and ids[-1] == 102  # [CLS] ... [SEP]
    assert tokenise(spec, ["a " * 99], max_tokens=32).lengths()[0] == 32
