"""A cut keeps the first layers of any architecture: hidden states of the uncut model, whatever its
configuration lists.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from learning.backbones.backbone import Backbone, pad
from learning.backbones.catalogue import BackboneError, config_of, cut, find, layer_of
from learning.backbones.huggingface import bare_model, hf_config
from learning.backbones.layers import hidden_states, leaving, stack

CONFIGS = runpy.run_path(str(Path(__file__).with_name("architectures.py")))["CONFIGS"]
IDS = [
    np.array(ids, dtype=np.int32)
    for ids in ([5, 9, 3, 17, 4, 33, 8, 2, 40, 21, 11], [7, 3, 60, 12])
]


def states(model):
    """Every hidden state [B, T, D], padding set to zero, and last what the last layer gives before
    any final norm.
    """
    ids_BT, mask_BT = pad(IDS)
    last = []
    hook = stack(model)[-1].register_forward_hook(
        lambda _, __, output: last.append(leaving(output))
    )
    with torch.no_grad():
        given = hidden_states(model, input_ids=ids_BT, attention_mask=mask_BT)
        theirs = model(
            input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True
        ).hidden_states
    hook.remove()
    if model.config.model_type != "mamba":  # whose hidden_states begin after the first layer
        assert len(given) == len(theirs) and all(map(torch.equal, given[:-1], theirs[:-1]))
    assert torch.equal(given[-1], theirs[-1]) or given[-1].shape != theirs[-1].shape
    assert {h_BTD.shape for h_BTD in given} == {(*ids_BT.shape, model.config.hidden_size)}
    return [h_BTD * mask_BT[..., None] for h_BTD in (*given, last[-1])]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the saved model of an architecture."""

    def save(name):
        folder = tmp_path_factory.mktemp("model")
        config = hf_config(CONFIGS[name])
        torch.manual_seed(0)
        bare_model(config).from_config(config).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_has_the_first_hidden_states_of_the_whole(saved, name):
    """The states of its first k layers; the last one, too, before what an architecture does after
    its last layer.
    """
    own = {"whole": {"path": str(saved(name))}}
    whole = states(Backbone(find("whole", own)).model)
    for layers in (1, 2):
        shallow = Backbone(find(f"whole-l{layers}", own))
        got = states(shallow.model)
        assert shallow.layers == layers and len(got) == layers + 2
        for ours, theirs in zip(got[:layers], whole[:layers], strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(got[-1], whole[layers])


@pytest.mark.parametrize("name", ["GPT-2", "GPT-Neo", "Gemma 2", "T5 (encoder)"])
def test_a_random_model_is_cut_as_a_saved_one(name):
    own = {"whole": {"random": CONFIGS[name], "seed": 3}}
    whole, shallow = (states(Backbone(find(n, own)).model) for n in ("whole", "whole-l2"))
    assert torch.equal(shallow[-1], whole[2])


def test_every_list_with_an_entry_a_layer_is_cut_and_no_other():
    config = {
        "num_hidden_layers": 2,
        "layer_types": ["a", "b"],
        "kv_heads": [4, 2],
        "pos_att_type": ["p2c", "c2p"],
    }
    config |= {
        "architectures": ["X"],
        "rope": {"factors": [1, 2]},
        "name": "ab",
        "buckets": [1, 2, 3],
    }
    expected = {**config, "num_hidden_layers": 1, "layer_types": ["a"], "kv_heads": [4]}
    assert cut(config, 1) == expected
    assert cut(config, 2) == config and cut(config, 3)["kv_heads"] == [4, 2, 2]
    runs = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    assert cut(runs, 3) == {
        "num_layers": 3,
        "attention_types": [[["global"], 1], [["local"], 1], [["global"], 1]],
    }


def test_the_first_number_of_a_name_is_its_layer():
    assert layer_of("backbone.encoder.block.7.layer.0.SelfAttention.q.weight") == 7
    assert layer_of("h.3.mlp.c_fc.bias") == 3 and layer_of("head.weight") is None


def test_a_decoder_with_an_encoder_is_refused_by_name(tmp_path):
    size = {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_hidden_layers": 2,
        "vocab_size": 64,
    }
    own = {
        "mine": {"random": {"model_type": "bart", **size}},
        "odd": {"random": {"model_type": "bert2", **size}},
    }
    with pytest.raises(
        BackboneError,
        match="a bart model is an encoder and a decoder, and transformers has no class",
    ):
        Backbone(find("mine", own))
    with pytest.raises(BackboneError, match="has no model_type 'bert2'"):
        Backbone(find("odd", own))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert2", **size}))
    assert config_of(find("m-l1", {"m": {"path": str(tmp_path)}}))["num_hidden_layers"] == 1
