"""Conversions: readers against tiny files made here, real models against their own graphs and a
known answer.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from learning.backbones import assets, convert


def fetched(*names: str) -> None:
    for name in names:
        try:
            assets.path(name)
        except assets.AssetMissing as error:
            pytest.skip(str(error))


def built(name: str, folder):
    """Build afresh: a folder from the cache would test yesterday's code."""
    fetched(*convert.needs(name))
    convert._RECIPES[name].build(folder)
    return folder


def reference_permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What a GGUF writer does to rotary projections: the two halves of each head's rows,
    interleaved one by one.
    """
    size = len(weight) // heads
    rows = [
        h * size + half * size // 2 + i
        for h in range(heads)
        for i in range(size // 2)
        for half in (0, 1)
    ]
    return weight[rows]


@pytest.mark.parametrize(("heads", "size"), [(9, 64), (3, 64), (1, 2), (2, 6)])
def test_unpermute_undoes_the_writers_interleaving(heads, size):
    weight = np.random.default_rng(0).normal(size=(heads * size, 5))
    assert np.array_equal(convert._unpermute(reference_permute(weight, heads), heads), weight)


def test_onnx_matrices_are_named_by_their_bias_and_dequantised(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    codes, other = (
        rng.integers(-128, 128, (4, 2)).astype(np.int8),
        rng.normal(size=2).astype(np.float32),
    )
    scale, zero = np.float32(0.03), np.int8(-5)
    stored = {
        "m.first.bias": bias,
        "onnx::MatMul_7": weight,
        "m.second.bias": other,
        "onnx::MatMul_8_quantized": codes,
        "onnx::MatMul_8_scale": np.array(scale),
        "onnx::MatMul_8_zero_point": np.array(zero),
        "head.bias": other,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["a"]),
        helper.make_node("Add", ["m.first.bias", "a"], ["b"]),
        helper.make_node(
            "DequantizeLinear",
            ["onnx::MatMul_8_quantized", "onnx::MatMul_8_scale", "onnx::MatMul_8_zero_point"],
            ["onnx::MatMul_8_DequantizeLinear_Output"],
        ),
        helper.make_node("MatMul", ["b", "onnx::MatMul_8_DequantizeLinear_Output"], ["c"]),
        helper.make_node("Add", ["c", "m.second.bias"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y")
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)),
        tmp_path / "m.onnx",
    )
    read = convert._read_onnx(tmp_path / "m.onnx", "m.")
    assert set(read) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert np.array_equal(read["first.weight"], weight.T)
    assert np.allclose(read["second.weight"], (0.03 * (codes.astype(float) + 5)).T, atol=1e-6)


def test_byte_level_tokenizer_merges_splits_digits_and_comes_back(tmp_path):
    from transformers import AutoTokenizer

    tokens = ["<|end|>", "l", "o", "w", "Ġ", "1", "2", "lo", "low", "Ġl", "Ġlow", "Ã", "¶"]
    merges = ["l o", "lo w", "Ġ low"]
    convert._write_gpt2_tokenizer(
        tmp_path, tokens, merges, [3] + [1] * 12, {"eos": 0, "pad": 0}, "{{ x }}", 64
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer("low low12ö<|end|>")["input_ids"]
    assert [tokens[i] for i in ids] == ["low", "Ġlow", "1", "2", "Ã", "¶", "<|end|>"]
    assert tokenizer.decode(ids) == "low low12ö<|end|>"
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == (
        "<|end|>",
        "<|end|>",
        64,
    )


def test_a_tensor_that_does_not_fit_the_architecture_stops_the_build(tmp_path):
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
    }
    config |= {
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 11,
        "max_position_embeddings": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = convert._expected_shapes(tmp_path)
    assert shapes["embeddings.word_embeddings.weight"] == (11, 8) and not any(
        "pooler" in name for name in shapes
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    convert._write(tmp_path, config, tensors)
    (tmp_path / "model.safetensors").unlink()
    missing = {name: value for name, value in tensors.items() if "query.weight" not in name}
    with pytest.raises(
        assets.AssetError, match=r"self\.query\.weight should be \(8, 8\) and is None"
    ):
        convert._write(tmp_path, config, missing)
    turned = tensors | {"encoder.layer.0.output.dense.weight": np.zeros((16, 8), np.float32)}
    with pytest.raises(assets.AssetError, match=r"should be \(8, 16\) and is \(16, 8\)"):
        convert._write(tmp_path, config, turned)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_failed_build_leaves_no_folder_and_a_good_one_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(assets.AssetMissing, match="run `mobifleet fetch smollm2`"):
        convert.model_dir("smollm2")
    monkeypatch.setattr(assets, "path", lambda name: tmp_path / f"{name}-12ab")
    calls = []

    def build(folder):
        (folder / "config.json").write_text("{}")
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(
        convert._RECIPES, "toy", convert.Recipe("a toy", ("minilm",), version=3, build=build)
    )
    with pytest.raises(KeyboardInterrupt):
        convert.model_dir("toy")
    assert list((tmp_path / "cache").iterdir()) == []
    folder = convert.model_dir("toy")
    assert folder == convert.model_dir("toy") == tmp_path / "cache" / "models" / "toy-v3-12ab"
    assert [file.name for file in folder.iterdir()] == ["config.json"] and len(calls) == 2


def test_unknown_models_and_absent_converters_are_named(monkeypatch):
    with pytest.raises(assets.AssetError, match="Did you mean 'minilm-narrow'"):
        convert.model_dir("minilm-narow")
    with pytest.raises(convert.MissingPackage, match=r"pip install 'mobifleet\[models\]'"):
        convert._package("a_package_that_nobody_has")


@pytest.mark.fetched
def test_minilm_is_used_as_published():
    fetched("minilm")
    folder = convert.model_dir("minilm")
    assert folder == assets.path("minilm")
    tensors = load_file(folder / "model.safetensors")
    assert tensors["embeddings.word_embeddings.weight"].shape == (30_522, 384)


@pytest.mark.fetched
def test_the_narrow_model_keeps_the_geometry_of_minilms_words(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = built("minilm-narrow", tmp_path)
    wide = load_file(assets.path("minilm") / "model.safetensors")[
        "embeddings.word_embeddings.weight"
    ].astype(float)
    narrow = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].astype(
        float
    )
    wide -= wide.mean(axis=0)
    # Eckart-Young: no 128 dimensions hold more of the variance than the first 128 singular values
    values = np.linalg.svd(wide.T @ wide, compute_uv=False)
    assert (narrow**2).sum() == pytest.approx(values[:128].sum(), rel=1e-5)
    off_diagonal = narrow.T @ narrow - np.diag((narrow**2).sum(axis=0))
    assert np.abs(off_diagonal).max() < 1e-3 * values[127]
    model = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        "a good film", return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(1, 5, 128)] * 3
    first, last = states[0].flatten(), states[-1].flatten()
    assert (
        torch.cosine_similarity(first, last, dim=0) > 0.9
    )  # untrained layers hardly move the residual stream


@pytest.mark.fetched
def test_the_l3_folder_computes_what_its_onnx_graph_computes(tmp_path):
    onnx = pytest.importorskip("onnx")
    import torch
    from onnx.reference import ReferenceEvaluator
    from transformers import AutoModel, AutoTokenizer

    folder = built("minilm-l3", tmp_path)
    texts = ["a film that is good", "what is the capital of France , the country of wine ?"]
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        texts, return_tensors="pt", padding=True
    )
    model = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
    with torch.no_grad():
        ours = model(**tokens).last_hidden_state.numpy()
    graph = ReferenceEvaluator(onnx.load(assets.path("minilm-l3") / "paraphrase-MiniLM-L3-v2.onnx"))
    theirs = graph.run(
        None, {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    )
    (states,) = [output for output in theirs if output.shape == ours.shape]
    assert np.abs(states - ours).max() < 1e-5


@pytest.mark.fetched
def test_the_distilbert_folder_computes_its_graph_without_the_rounding_of_activations(tmp_path):
    onnx = pytest.importorskip("onnx")
    import torch
    from onnx import helper
    from onnx.reference import ReferenceEvaluator
    from transformers import AutoModel, AutoTokenizer

    folder = built("distilbert-cased", tmp_path)
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        "She go to school .", return_tensors="pt"
    )
    tokens.pop("token_type_ids", None)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        ours = model(**tokens).last_hidden_state.numpy()
    proto = onnx.load(assets.path("distilbert-cased") / "tagger.onnx")
    proto.opset_import[
        0
    ].version = 19  # the evaluator knows these operators from 19 on, unchanged since 17
    rounded = {
        node.output[0]: node.input[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
    }
    exact = {
        n.output[0]: rounded[n.input[0]]
        for n in proto.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in rounded
    }
    for node in proto.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = exact.get(name, name)
    last = "/distilbert/transformer/layer.5/output_layer_norm/LayerNormalization_output_0"
    proto.graph.output.append(helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    feeds = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    theirs = ReferenceEvaluator(proto).run([last], feeds)[0]
    assert len(exact) > 50 and np.abs(ours - theirs).max() < 1e-4


@pytest.mark.thorough
@pytest.mark.fetched
def test_smollm2_knows_the_capital_of_france(tmp_path):
    pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = built("smollm2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    assert model.dtype == torch.float32 and model.config.num_hidden_layers == 30
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
    assert tokenizer("in 2024  7")["input_ids"][-2:] == tokenizer.convert_tokens_to_ids(["ĠĠ", "7"])
