"""The decoders of the catalogue: their numbers against what is published of them, and their FLOP
against a formula written here. Run as a script, it writes their table in docs/models.md.

Published are the numbers of the whole language model, as model cards of the Hugging Face hub state
them from the weights' safetensors; where the output embedding is the input's, it counts once. OPT's
have none: their numbers are those that users of the published weights count.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import config_of, find
from learning.backbones.huggingface import hf_config
from learning.backbones.tokens import Tokens
from learning.cost.count import count_forward
from learning.cost.forward_pass import architecture

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- decoders -->\n", "<!-- end of decoders -->"
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,  # the file holds the tied output embedding again: 751,632,384
    "qwen3-1.7b": 1_720_574_976,  # and here 2,031,739,904
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "smollm2": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "phi-3-mini": 3_821_079_552,
    "tinyllama-1.1b": 1_100_048_384,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
}


def whole(config):
    """The language model with its output embedding, without numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(hf_config(config))


def shape(name):
    """Layers, width, query heads, key and value heads, numbers of a head, width of the feed-forward
    block, of the embeddings, and how many words.
    """
    config = config_of(find(name))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return (
        config["num_hidden_layers"],
        width,
        heads,
        config.get("num_key_value_heads", heads),
        config.get("head_dim", width // heads),
        config.get("intermediate_size") or config["ffn_dim"],
        config.get("word_embed_proj_dim", width),
        config["vocab_size"],
    )


def flop_by_hand(name, tokens):
    """Two FLOP a multiplication and addition. Queries and what attention gives go through maps of
    D x (heads x numbers of a head), keys and values through ones of D x (their heads x the same);
    scores and their sums are of every query head, over all tokens; a gated feed-forward block has
    three maps, OPT's two. The output embedding is not in it.
    """
    layers, width, heads, kv_heads, each, wide, narrow, _ = shape(name)
    maps = 2 if name.startswith("opt") else 3
    weights = 2 * width * heads * each + 2 * width * kv_heads * each + maps * width * wide
    scores = 2 * heads * each * tokens
    around = 0 if narrow == width else 2 * width * narrow  # OPT-350M's embeddings are narrower
    return 2 * tokens * (layers * (weights + scores) + around)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_language_model_has_the_published_numbers(name):
    config, counted = config_of(find(name)), architecture(find(name))
    assert sum(p.numel() for p in whole(config).parameters()) == PUBLISHED[name]
    is_tied = config.get("tie_word_embeddings", True)  # what Gemma and OPT are by default
    head = 0 if is_tied else config["vocab_size"] * config["hidden_size"]
    assert counted.parameters + head == PUBLISHED[name]


@pytest.mark.parametrize("tokens", [16, 128, 1000, 2000])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_forward_pass_has_the_flop_of_the_formula(name, tokens):
    assert architecture(find(name)).forward(3, tokens).flop == 3 * flop_by_hand(name, tokens)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "gemma-3-1b", "phi-3-mini", "opt-350m"])
def test_what_is_shipped_is_what_is_counted(name):
    fresh = count_forward(config_of(find(name)), 2, 100)
    assert architecture(find(name)).forward(2, 100).flop == fresh.flop
    assert architecture(find(name)).forward(2, 100).peak_bytes == pytest.approx(
        fresh.peak_bytes, rel=0.01
    )


def test_fewer_heads_of_keys_and_values_save_their_maps_alone():
    """Llama-3.2-1B with a key and value head for each of its 32 query heads, instead of 8."""
    config, tokens = config_of(find("llama-3.2-1b")), 100
    grouped, full = (
        count_forward({**config, "num_key_value_heads": heads}, 1, tokens) for heads in (8, 32)
    )
    assert full.flop - grouped.flop == 2 * tokens * 16 * 2 * 2048 * (32 - 8) * 64


# MrYxJ/calculate-flops.pytorch (calflops), README: GFLOP of a text of 128 tokens; its Llama has the
# output embedding in it, its BLOOM has not
LLAMA_2 = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096}
LLAMA_2 |= {"num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
BLOOM = {"model_type": "bloom", "vocab_size": 250880}


@pytest.mark.parametrize(
    ("config", "parameters", "gflop", "words"),
    [
        (LLAMA_2, 6_738_415_616, 1700.06, 32000),
        ({**BLOOM, "hidden_size": 2048, "n_layer": 24, "n_head": 16}, 1_722_408_960, 310.92, 0),
        ({**BLOOM, "hidden_size": 4096, "n_layer": 30, "n_head": 32}, 7_069_016_064, 1550.39, 0),
    ],
    ids=["Llama-2-7B", "BLOOM-1b7", "BLOOM-7b1"],
)
def test_published_flop(config, parameters, gflop, words, tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path))
    counted = architecture(find("it", {"it": {"random": config}}))
    assert sum(p.numel() for p in whole(config).parameters()) == parameters
    flop = counted.forward(1, 128).flop + counted.next_word(128, words).flop
    assert flop / 1e9 == pytest.approx(gflop, rel=0.01)


# what their config.json says besides
AS_PUBLISHED = {
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
        | {"original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    "qwen3-0.6b": {"rope_scaling": None, "rope_theta": 1000000, "use_sliding_window": False}
    | {"max_window_layers": 28, "sliding_window": None, "attention_bias": False},
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "query_pre_attn_scalar": 256,
        "cache_implementation": "hybrid",
    },
    "phi-3-mini": {
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "original_max_position_embeddings": 4096,
        "rope_scaling": None,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
}


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_a_folder_with_the_published_configuration_costs_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    fields = {**config_of(find(name)), **AS_PUBLISHED[name]}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    own = architecture(find("own", {"own": {"path": str(tmp_path)}}))
    known = architecture(find(name))
    assert (own.parameters, own.forward(2, 100)) == (known.parameters, known.forward(2, 100))
    cut = architecture(find("own-l2", {"own": {"path": str(tmp_path)}}))
    assert cut.forward(2, 100).flop == known.forward(2, 100).flop / known.layers * 2


FAMILIES = ("llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b", "gemma-2-2b", "gemma-3-1b")
FAMILIES += ("phi-3-mini", "tinyllama-1.1b", "opt-350m")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_a_small_one_of_the_family_is_read_as_transformers_reads_it(name, tmp_path):
    """In bfloat16 and with its output embedding, as they are published."""
    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    small |= {"num_attention_heads": 4, "intermediate_size": 48, "ffn_dim": 48, "head_dim": 8}
    config = config_of(find(name))
    small |= {"num_key_value_heads": 2, "word_embed_proj_dim": 16}
    config |= {key: value for key, value in small.items() if key in config or "pad" in key}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(hf_config(config)).bfloat16().eval()
    made.save_pretrained(tmp_path)
    backbone = Backbone(find("own", {"own": {"path": str(tmp_path)}}))
    tokens = Tokens([np.array([3, 9, 27, 50, 2], np.int32)])
    with torch.no_grad():
        ids_BT = torch.from_numpy(tokens.ids[0])[None].long()
        states = made.float()(ids_BT, output_hidden_states=True).hidden_states
    read = backbone.readouts(tokens, "last")[0]
    widest = [
        state[0, -1] for state in states if state.shape[-1] == 32
    ]  # OPT-350M narrows its last
    assert len(widest) >= 2
    for ours, theirs in zip(read, widest, strict=False):
        assert np.allclose(ours, theirs.numpy(), atol=1e-4)


def table():
    """What a scenario is charged, by the shipped counts."""
    head = "| | layers x width | heads (of keys and values) | words | parameters, published "
    head += "| held by a device | GFLOP of 128 tokens | output embedding, besides "
    head += "| GB in float16 | GB in int8 |"
    lines = [head, "|---" * 10 + "|"]
    for name, published in PUBLISHED.items():
        layers, width, heads, kv_heads, each, *_, words = shape(name)
        counted = architecture(find(name))
        gflop, head = counted.forward(1, 128).flop / 1e9, 2 * 128 * words * shape(name)[6] / 1e9
        lines.append(
            f"| `{name}` | {layers} x {width} | {heads} ({kv_heads}) x {each} | {words:,} "
            f"| {published:,} | {counted.parameters:,} | {gflop:.1f} | {head:.1f} "
            f"| {counted.weight_bytes('float16') / 1e9:.3f} "
            f"| {counted.weight_bytes('int8') / 1e9:.3f} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + start + table() + rest[rest.index(END) :], encoding="utf-8")
