"""Model folders in the Hugging Face layout, built on demand from the fetched weights and kept in
the cache.

`model_dir(name)` returns a folder with config.json, model.safetensors and tokenizer.json that
`from_pretrained` reads. What arrives in another format (ONNX, GGUF) is rewritten tensor by tensor,
once; every build checks its tensor names and shapes against the architecture before it counts as
done.
"""

import difflib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learning.backbones import assets
from learning.backbones.assets import AssetError, DownloadProgress

Tensors = dict[str, np.ndarray]


class MissingPackage(AssetError):
    """A conversion needs an optional package; the message says how to install it."""


@dataclass(frozen=True)
class Recipe:
    """How a folder is built: `version` changes with `build`, so that old folders are not mistaken
    for new ones.
    """

    description: str
    needs: tuple[str, ...]
    version: int = 1
    build: Callable[[Path], None] | None = None


def names() -> dict[str, str]:
    """Every model with its description."""
    return {name: recipe.description for name, recipe in _RECIPES.items()}


def needs(name: str) -> tuple[str, ...]:
    """The assets that a model is made of. Raises AssetError for an unknown name."""
    return _recipe(name).needs


def model_dir(name: str, progress: DownloadProgress | None = None) -> Path:
    """The model's folder; the first call builds it (seconds), in one rename, so it is whole or
    absent.

    Raises AssetError for an unknown name, assets.AssetMissing when weights are not fetched yet,
    MissingPackage when the optional converters are not installed.
    """
    recipe = _recipe(name)
    sources = [assets.path(need) for need in recipe.needs]
    if recipe.build is None:
        return sources[0]
    content = "-".join(source.name.rsplit("-", 1)[1] for source in sources)
    place = assets.cache_dir() / "models" / f"{name}-v{recipe.version}-{content}"
    if not place.is_dir():
        report = progress or (lambda *_: None)
        report(name, 0, 1, f"building from {', '.join(recipe.needs)}")
        with assets.scratch() as scratch:
            staging = scratch / name
            staging.mkdir()
            recipe.build(staging)
            assets.install(staging, place)
        report(name, 1, 1, "built")
    return place


def _recipe(name: str) -> Recipe:
    if name in _RECIPES:
        return _RECIPES[name]
    near = difflib.get_close_matches(name, _RECIPES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise AssetError(f"unknown model {name!r}.{hint} There are: {', '.join(_RECIPES)}")


def _package(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"this model's conversion needs the package {name!r}: run `pip install "
            "'mobifleet[models]'`"
        ) from error


# --- MiniLM, narrow: another hidden size with the same vocabulary
# -----------------------------------------------------


def _build_minilm_narrow(folder: Path, hidden: int = 128, layers: int = 2) -> None:
    """A PCA-initialised narrow relative of MiniLM: its word embeddings in fewer dimensions, random
    layers, no training.

    The axes are the leading principal components of MiniLM's word embeddings; the position
    embeddings are projected on them too, each table about its mean (token type 0 becomes zero, type
    1 keeps its difference). The layers have BERT's usual initialisation, whose small weights leave
    the residual stream almost as it is.
    """
    from safetensors.numpy import load_file

    source = assets.path("minilm")
    stored = load_file(source / "model.safetensors")
    words, positions, token_types = (
        stored[f"embeddings.{kind}_embeddings.weight"].astype(np.float64)
        for kind in ("word", "position", "token_type")
    )
    words -= words.mean(axis=0)
    _, axes = np.linalg.eigh(words.T @ words)  # [384, 384], least component first
    axes = axes[:, ::-1][:, :hidden]
    axes = axes * np.sign(
        axes[np.abs(axes).argmax(axis=0), np.arange(hidden)]
    )  # an eigenvector's sign is arbitrary
    tensors = {
        "embeddings.word_embeddings.weight": words @ axes,
        "embeddings.position_embeddings.weight": (positions - positions.mean(axis=0)) @ axes,
        "embeddings.token_type_embeddings.weight": (token_types - token_types[0]) @ axes,
        **_layer_norm("embeddings.LayerNorm", hidden),
    }
    rng = np.random.default_rng(0)  # part of the model's definition
    shapes = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
    shapes |= {"attention.output.dense": (hidden, hidden)}
    shapes |= {"intermediate.dense": (4 * hidden, hidden), "output.dense": (hidden, 4 * hidden)}
    for layer in (f"encoder.layer.{i}" for i in range(layers)):
        for part, shape in shapes.items():
            tensors[f"{layer}.{part}.weight"] = rng.normal(0, 0.02, shape)
            tensors[f"{layer}.{part}.bias"] = np.zeros(shape[0])
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= _layer_norm(f"{layer}.{part}", hidden)
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden}
    config |= {
        "num_attention_heads": hidden // 64,
        "_name_or_path": "PCA-initialised narrow relative of MiniLM",
    }
    _write(folder, config, {key: value.astype(np.float32) for key, value in tensors.items()})
    _copy_tokenizer(source, folder)


def _layer_norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": np.ones(width), f"{name}.bias": np.zeros(width)}


# --- ONNX: paraphrase-MiniLM-L3 and DistilBERT
# ------------------------------------------------------------------------


def _build_minilm_l3(folder: Path) -> None:
    minilm = assets.path("minilm")
    config = json.loads((minilm / "config.json").read_text())
    config |= {
        "num_hidden_layers": 3,
        "_name_or_path": "sentence-transformers/paraphrase-MiniLM-L3-v2",
    }
    tensors = _read_onnx(
        assets.path("minilm-l3") / "paraphrase-MiniLM-L3-v2.onnx", "model.0.auto_model."
    )
    _write(folder, config, tensors)
    _copy_tokenizer(minilm, folder)


def _build_distilbert_cased(folder: Path) -> None:
    source = assets.path("distilbert-cased")
    config = {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "vocab_size": 28996,
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    _write(folder, config, _read_onnx(source / "tagger.onnx", "distilbert."))
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    special = {
        f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "do_lower_case": False,
            "model_max_length": 512,
            **special,
        },
    )


def _read_onnx(file: Path, prefix: str) -> Tensors:
    """The weights of an exported encoder as float32 under their own names, those outside `prefix`
    left out.

    The exporter keeps the names of biases and tables but calls a linear layer's matrix MatMul_123
    and transposes it, so each gets its name from the bias that is added to its product. int8
    matrices (QDQ form) become scale x (q - zero).
    """
    onnx = _package("onnx")
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values = {name: value for name, value in stored.items() if value.dtype == np.float32}
    for name in stored:
        if name.endswith("_quantized"):
            base = name.removesuffix("_quantized")
            zero = stored[f"{base}_zero_point"].astype(np.float32)
            values[base] = stored[f"{base}_scale"] * (stored[name].astype(np.float32) - zero)

    def plain(name: str) -> str:
        return name.removesuffix("_DequantizeLinear_Output")

    weight_of_product = {
        n.output[0]: plain(n.input[1])
        for n in graph.node
        if n.op_type == "MatMul" and plain(n.input[1]) in values
    }
    for node in graph.node:
        if node.op_type == "Add":
            bias = next(
                (name for name in node.input if name.endswith(".bias") and name in values), None
            )
            product = next(
                (plain(name) for name in node.input if plain(name) in weight_of_product), None
            )
            if bias and product:
                values[bias.removesuffix(".bias") + ".weight"] = values.pop(
                    weight_of_product[product]
                ).T
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix) and value.ndim
    }


# --- GGUF: SmolLM2
# ------------------------------------------------------------------------------------------

_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def _build_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct out of 4-bit blocks: values stored as float16, computed in float32
    (config's dtype).
    """
    gguf = _package("gguf")
    reader = gguf.GGUFReader(assets.path("smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf")

    def field(name: str):
        return reader.fields[name].contents()

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "_name_or_path": "SmolLM2-135M-Instruct, dequantised from Q4_1",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": field("llama.rope.freq_base"),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")  # blk.7.attn_q.weight, or token_embd.weight
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            value = _unpermute(value, heads[kind])
        layer = f"layers.{block[1]}." if block else ""
        tensors[f"model.{layer}{_GGUF_NAMES[kind]}.weight"] = value.astype(np.float16)
    _write(folder, config, tensors)
    _write_gpt2_tokenizer(
        folder,
        field("tokenizer.ggml.tokens"),
        field("tokenizer.ggml.merges"),
        field("tokenizer.ggml.token_type"),
        {
            kind: field(f"tokenizer.ggml.{name}_token_id")
            for kind, name in (
                ("bos", "bos"),
                ("eos", "eos"),
                ("unk", "unknown"),
                ("pad", "padding"),
            )
        },
        field("tokenizer.chat_template"),
        config["max_position_embeddings"],
    )


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's interleaving of a head's two rotary halves: rows (head, pair, half) -> (head,
    half, pair).
    """
    rows, columns = weight.shape
    return (
        weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _write_gpt2_tokenizer(
    folder: Path,
    tokens: list[str],
    merges: list[str],
    types: list[int],
    special: dict[str, int],
    chat: str,
    length: int,
) -> None:
    """A byte-level BPE tokenizer with single digits, as SmolLM2 was trained with (GGUF's
    pre-tokenizer "smollm").
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    control = 3  # GGUF's token type for tokens that stand for no text
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [token for token, type_ in zip(tokens, types, strict=True) if type_ == control]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{kind}_token": tokens[i] for kind, i in special.items()}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": length,
            "chat_template": chat,
            **names,
        },
    )


# --- writing
# ------------------------------------------------------------------------------------------


def _write(folder: Path, config: dict, tensors: Tensors) -> None:
    """Write config.json and model.safetensors. Raises AssetError when the tensors are not the
    architecture's own.
    """
    from safetensors.numpy import save_file

    _write_json(folder / "config.json", config)
    expected = _expected_shapes(folder)
    found = {name: value.shape for name, value in tensors.items()}
    if wrong := sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    ):
        name = wrong[0]
        raise AssetError(
            f"conversion failed: {name} should be {expected.get(name)} and is {found.get(name)}"
        )
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def _expected_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the architecture in config.json stores (no memory is
    spent on values).
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        if architecture is transformers.BertModel:
            model = architecture(config, add_pooling_layer=False)
        else:
            model = architecture(config)
    tied = getattr(model, "all_tied_weights_keys", {})
    return {
        name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied
    }


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / file, folder / file)


_RECIPES = {
    "minilm": Recipe("all-MiniLM-L6-v2, 6 x 384, as published", ("minilm",)),
    "minilm-narrow": Recipe(
        "PCA-initialised narrow relative of MiniLM, 2 x 128, untrained layers",
        ("minilm",),
        build=_build_minilm_narrow,
    ),
    "minilm-l3": Recipe(
        "paraphrase-MiniLM-L3-v2, 3 x 384", ("minilm-l3", "minilm"), build=_build_minilm_l3
    ),
    "smollm2": Recipe(
        "SmolLM2-135M-Instruct, 30 x 576, from 4-bit weights", ("smollm2",), build=_build_smollm2
    ),
    "distilbert-cased": Recipe(
        "DistilBERT-base-cased of a grammar tagger, 6 x 768, from int8 weights",
        ("distilbert-cased",),
        build=_build_distilbert_cased,
    ),
}
