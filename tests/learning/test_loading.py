"""Weights that do not fit are an error that says how many tensors and which first; those that fit
are the file's to the bit.
"""

import hashlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from inputs.files import FileProblem
from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import BackboneError, find, fingerprint
from learning.backbones.huggingface import bare_model, hf_config
from learning.backbones.loading import load_model
from learning.backbones.tokens import Tokens

CONFIGS = runpy.run_path(str(Path(__file__).with_name("architectures.py")))["CONFIGS"]


def spec_of(folder, **more):
    return find("mine", {"mine": {"path": str(folder), **more}})


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


FAMILIES = {
    "bert": ("embeddings.LayerNorm.bias", "encoder.layer.1."),
    "roberta": ("embeddings.LayerNorm.bias", "encoder.layer.1."),
    "llama": ("embed_tokens.weight", "layers.1."),
    "opt": ("decoder.embed_positions.weight", "decoder.layers.1."),
    "distilbert": ("embeddings.LayerNorm.bias", "transformer.layer.1."),
}


# --- what fits


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        *((kind, "Model") for kind in FAMILIES),
        *((kind, "ForSequenceClassification") for kind in FAMILIES),
        *(
            (kind, "ForMaskedLM") for kind in ("bert", "roberta", "distilbert")
        ),  # two of these have no pooler
        *(
            (kind, "ForCausalLM") for kind in ("llama", "opt")
        ),  # the second's output layer is tied to its embedding
    ],
)
def test_a_checkpoint_whose_head_is_not_needed_is_loaded_to_the_bit(own_model, kind, head):
    folder = own_model(kind, head)
    stored = load_file(folder / "model.safetensors")
    for layers in (None, 1):
        model = load_model(spec_of(folder, layers=layers))
        got = model.state_dict()
        assert got
        for name, tensor in got.items():
            mine = [
                stored[key] for key in (name, f"{model.base_model_prefix}.{name}") if key in stored
            ]
            assert len(mine) == 1 and torch.equal(mine[0], tensor), name
        assert not any(".1." in name for name in got) or layers is None


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_loaded_as_transformers_loads_it_whatever_its_head(name, tmp_path):
    import transformers

    made, ids = hf_config(CONFIGS[name]), torch.arange(3, 12)[None]
    heads = (
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForCausalLM,
        transformers.AutoModel,
    )
    for head, automatic in enumerate(heads):
        if type(made) not in automatic._model_mapping:
            continue
        torch.manual_seed(0)
        automatic.from_config(hf_config(CONFIGS[name])).save_pretrained(tmp_path / str(head))
        theirs = bare_model(made).from_pretrained(tmp_path / str(head), dtype=torch.float32).eval()
        with torch.inference_mode():
            got, expected = (
                m(input_ids=ids).last_hidden_state
                for m in (load_model(spec_of(tmp_path / str(head))), theirs)
            )
        assert torch.equal(got, expected)
    load_model(spec_of(tmp_path / str(head), layers=2))


def test_old_names_of_norms_are_understood(own_model):
    def old(tensors):
        renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {
            re.sub("|".join(renamed), lambda found: renamed[found[0]], name): t
            for name, t in tensors.items()
        }

    new = load_model(spec_of(own_model())).state_dict()
    assert all(
        torch.equal(t, new[name])
        for name, t in load_model(spec_of(own_model(tensors=old))).state_dict().items()
    )


def test_half_precision_is_read_as_float32(own_model):
    folder = own_model(
        tensors=lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()}
    )
    stored = load_file(folder / "model.safetensors")
    for name, tensor in load_model(spec_of(folder)).state_dict().items():
        assert torch.equal(tensor, stored[name].float())


def test_parts_of_a_model_are_put_together(own_model):
    folder = own_model()
    tensors = load_file(folder / "model.safetensors")
    split = {
        f"model-0000{i}-of-00002.safetensors": dict(list(tensors.items())[i - 1 :: 2])
        for i in (1, 2)
    }
    (folder / "model.safetensors").unlink()
    for name, part in split.items():
        save_file(part, folder / name, {"format": "pt"})
    index = {"weight_map": {key: name for name, part in split.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert all(
        torch.equal(t, tensors[name])
        for name, t in load_model(spec_of(folder)).state_dict().items()
    )
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileProblem, match=r"1 of 2 parts are missing, the first model-00002-of-00002.safetensors"
    ):
        load_model(spec_of(folder))
    for odd in (
        "[]",
        "{}",
        '{"weight_map": {"a": "../b.safetensors"}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map"',
    ):
        (folder / "model.safetensors.index.json").write_text(odd)
        with pytest.raises(FileProblem, match=r"index\.json"):
            fingerprint(spec_of(folder))


def test_buffers_that_a_model_computes_may_be_in_its_weights(own_model):
    positions = {"embeddings.position_ids": torch.arange(66)[None]}
    load_model(spec_of(own_model(tensors=lambda tensors: {**tensors, **positions})))


# --- what does not


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "my.encoder."])
def test_prefixed_names_are_an_error(own_model, kind, prefix):
    first = FAMILIES[kind][0]
    with pytest.raises(
        BackboneError,
        match=rf"of \d+ tensors \(the first {first}\) missing.* is {prefix}{first}: "
        f"take '{prefix}' off",
    ):
        load_model(spec_of(own_model(kind, tensors=prefixed(prefix))))


@pytest.mark.parametrize("kind", FAMILIES)
def test_half_of_the_layers_is_an_error_unless_that_half_is_asked_for(own_model, kind):
    layer = FAMILIES[kind][1]
    folder = own_model(kind, tensors=without(layer))
    with pytest.raises(
        BackboneError,
        match=rf"\d+ of \d+ tensors \(the first {layer}.*\) missing: `layers: 1` keeps those",
    ):
        load_model(spec_of(folder))
    load_model(spec_of(folder, layers=1))


@pytest.mark.parametrize("kind", FAMILIES)
def test_more_layers_than_the_configuration_has_are_an_error(own_model, kind):
    depth = "n_layers" if kind == "distilbert" else "num_hidden_layers"
    with pytest.raises(
        BackboneError, match=rf"tensors \(the first {FAMILIES[kind][1]}.*\) without a place"
    ):
        load_model(spec_of(own_model(kind, after={depth: 1})))


@pytest.mark.parametrize(
    ("part", "many"),
    [
        ("word_embeddings", "1 of 39 tensor"),
        ("query.bias", "2 of 39 tensors"),
        ("LayerNorm", "10 of 39 tensors"),
    ],
)
def test_every_missing_tensor_is_counted(own_model, part, many):
    with pytest.raises(BackboneError, match=rf"{many}s? \(the first .*{part}.*\) missing"):
        load_model(spec_of(own_model(tensors=without(part))))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_vocabulary_unlike_the_weights_is_an_error(own_model, kind):
    with pytest.raises(
        BackboneError,
        match=r"1 tensor .* of another shape: 16 x 32 in the weights, 20 x 32 in the model",
    ):
        load_model(spec_of(own_model(kind, after={"vocab_size": 20})))


def test_low_rank_updates_that_were_not_merged_are_an_error(own_model):
    extra = {"encoder.layer.0.attention.self.query.lora_A.default.weight": torch.zeros(2, 32)}
    with pytest.raises(
        BackboneError, match=r"1 tensor \(the first .*lora_A.default.weight\) without a place"
    ):
        load_model(spec_of(own_model(tensors=lambda tensors: {**tensors, **extra})))


def test_an_adapter_is_not_a_model(own_model, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "bert-base-uncased"})
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    beside = own_model()
    (beside / "adapter_config.json").write_text("{}")
    for folder in (tmp_path, beside):
        with pytest.raises(BackboneError, match=r"holds an adapter .* merge it into its model"):
            load_model(spec_of(folder))
    (beside / "adapter_config.json").unlink()
    (beside / "model.safetensors").rename(beside / "adapter_model.safetensors")
    with pytest.raises(
        BackboneError, match=r"no model.safetensors in .* \(there is adapter_model.safetensors\)"
    ):
        load_model(spec_of(beside))


@pytest.mark.parametrize("kept", [0, 7, 100, -4])
def test_cut_off_weights_are_an_error_that_names_the_file(own_model, kept):
    folder = own_model()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        FileProblem, match=r"model.safetensors: cannot be read as safetensors weights \("
    ):
        load_model(spec_of(folder))


def test_weights_of_whole_numbers_are_an_error(own_model):
    def rounded(tensors):
        return {n: t.mul(100).to(torch.int8) if "query" in n else t for n, t in tensors.items()}

    with pytest.raises(
        BackboneError,
        match=r"4 tensors .* of whole numbers \(torch.int8\), as a quantised model has",
    ):
        load_model(spec_of(own_model(tensors=rounded)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_an_error(own_model, value):
    def spoil(tensors):
        tensors["encoder.layer.1.output.dense.bias"][3] = value
        return tensors

    with pytest.raises(
        BackboneError,
        match=r"NaN or infinity in 1 tensor .the first encoder.layer.1.output.dense.bias",
    ):
        load_model(spec_of(own_model(tensors=spoil)))


def test_weights_that_overflow_are_an_error(own_model):
    def huge(tensors):
        return {n: t * 1e38 if "query" in n or "key" in n else t for n, t in tensors.items()}

    folder = own_model(tensors=huge)
    with pytest.raises(BackboneError, match="NaN or infinity"):
        backbone = Backbone(spec_of(folder))
        from learning.backbones.tokens import tokenise

        backbone.readouts(tokenise(backbone.spec, ["a1 b2 c3 d4 e5 f6 g7"]))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two', not a whole number"),
        ({"num_hidden_layers": 10**9}, "not a whole number from 1 to 1,000"),
        ({"num_attention_heads": 5}, "attention heads"),
        ({"vocab_size": -1}, "config"),
        ({"vocab_size": 10**12}, r"GB of weights, and this machine has"),
        (
            {"vocab_size": 10**7},
            r"holds 18,816 numbers, and the model of its config.json 320,0\d\d,\d+",
        ),
        ({"model_type": "no-such-kind"}, "has no model_type 'no-such-kind'"),
        ({"model_type": 7}, "not a model's configuration"),
        (
            {"model_type": "no-such-kind", "auto_map": {"AutoModel": "code.Model"}},
            "code that a model brings is never run",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights"),
        ({"hidden_act": "no-such-function"}, "no-such-function"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(own_model, fields, said):
    folder = own_model(after=fields)
    with pytest.raises((BackboneError, FileProblem), match=said) as caught:
        load_model(spec_of(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"bert"', b"\xff\xfe{", b"\0" * 50, b"[" * 100_000, b"1" * 5000],
)
def test_a_config_json_that_is_none_is_one_line(own_model, raw):
    folder = own_model()
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(FileProblem, match=r"config.json") as caught:
        load_model(spec_of(folder))
    assert "\n" not in str(caught.value)


def test_code_that_a_model_brings_is_never_run(own_model):
    folder = own_model(after={"auto_map": {"AutoModel": "code.Model", "AutoConfig": "code.Config"}})
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    load_model(spec_of(folder))  # bert is known without that code


# --- the same numbers every time


def digest_of(folder) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_model(spec_of(folder)).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.thorough
def test_another_process_loads_the_same_numbers(own_model):
    folder = own_model("roberta", "ForMaskedLM")  # it has no pooler, which would be drawn afresh
    again = f"import runpy; print(runpy.run_path({__file__!r})['digest_of']({str(folder)!r}))"
    outcome = subprocess.run(
        [sys.executable, "-c", again], capture_output=True, text=True, check=True
    )
    assert outcome.stdout.split() == [digest_of(folder)]


# of 64 rows: The RoBERTa family cannot use the two up to the padding's; rotary and relative ones
# never end
POSITIONS = {
    **dict.fromkeys(["RoBERTa", "XLM-R", "MPNet"], 62),
    **dict.fromkeys(
        [
            "DeBERTa-v2",
            "ModernBERT",
            "T5 (encoder)",
            "GPT-NeoX",
            "BLOOM",
            "Llama",
            "SmolLM2",
            "Mistral",
        ]
    ),
    **dict.fromkeys(["Qwen2", "Qwen3", "Gemma 2", "Gemma 3", "Phi-3", "Mamba", "Mixtral"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_are_as_many_as_a_text_can_have(name):
    positions = POSITIONS.get(name, 64)
    backbone = Backbone(find("mine", {"mine": {"random": CONFIGS[name]}}))
    assert backbone.positions == positions
    ids = torch.full((1, 100), 5)
    backbone.states(ids[:, : positions or 100], torch.ones_like(ids[:, : positions or 100]))
    if positions is not None:
        with pytest.raises(
            BackboneError, match=f"its forward pass fails .{positions + 1} tokens, ids up to 5"
        ):
            backbone.states(ids[:, : positions + 1], torch.ones_like(ids[:, : positions + 1]))
        with pytest.raises(
            BackboneError, match=f"{positions + 1} tokens, but mine has {positions} positions"
        ):
            backbone.readouts(Tokens([np.full(positions + 1, 5, np.int32)]))
