"""One tiny random model of every architecture that docs/models.md speaks of: a configuration of a
few kilobytes each.
"""


def _sized(model_type, **more):
    """The names of BERT's and Llama's configurations, which most others share."""
    size = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {
        "model_type": model_type,
        **size,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        **more,
    }


_GROUPED = {"num_key_value_heads": 1}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_RELATIVE = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
}
_OPT = {
    "model_type": "opt",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_OPT |= {"ffn_dim": 32, "max_position_embeddings": 64}

CONFIGS = {
    "BERT": _sized("bert", type_vocab_size=2),
    "RoBERTa": _sized("roberta", type_vocab_size=1),
    "XLM-R": _sized("xlm-roberta", type_vocab_size=1),
    "DistilBERT": {
        "model_type": "distilbert",
        "vocab_size": 64,
        "dim": 16,
        "n_layers": 3,
        "n_heads": 2,
    }
    | {"hidden_dim": 32, "max_position_embeddings": 64},
    "ALBERT": _sized("albert", embedding_size=8),
    "ELECTRA": _sized("electra", embedding_size=8),
    "MobileBERT": _sized(
        "mobilebert", embedding_size=8, intra_bottleneck_size=8, num_feedforward_networks=2
    ),
    "MPNet": _sized("mpnet"),
    "DeBERTa-v2": _sized("deberta-v2", **_RELATIVE, norm_rel_ebd="layer_norm", type_vocab_size=0)
    | {"position_biased_input": False},
    "ModernBERT": _sized("modernbert", **_IDS, cls_token_id=1, sep_token_id=2, local_attention=8),
    "T5 (encoder)": {
        "model_type": "t5",
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 3,
    }
    | {"num_heads": 2},
    "GPT-2": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 2,
        "n_positions": 64,
    },
    "GPT-Neo": {
        "model_type": "gpt_neo",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_layers": 3,
        "num_heads": 2,
    }
    | {
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
    },
    "GPT-NeoX": _sized("gpt_neox"),
    "OPT": {**_OPT, "word_embed_proj_dim": 16},
    "OPT (narrow embeddings)": {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    "BLOOM": {
        "model_type": "bloom",
        "vocab_size": 64,
        "hidden_size": 16,
        "n_layer": 3,
        "n_head": 2,
    },
    "Llama": _sized("llama", **_GROUPED),
    "SmolLM2": _sized("llama", **_GROUPED, tie_word_embeddings=True, rope_theta=100_000.0),
    "Mistral": _sized("mistral", **_GROUPED, head_dim=8),
    "Qwen2": _sized("qwen2", **_GROUPED, layer_types=["full_attention"] * 3),
    "Qwen3": _sized("qwen3", **_GROUPED, head_dim=8, layer_types=["full_attention"] * 3),
    "Gemma 2": _sized("gemma2", **_GROUPED, head_dim=8, sliding_window=8, layer_types=_SLIDING),
    "Gemma 3": _sized(
        "gemma3_text", **_GROUPED, head_dim=8, sliding_window=8, layer_types=_SLIDING
    ),
    "Phi-3": _sized("phi3", num_key_value_heads=2, **_IDS),
    "Mamba": {
        "model_type": "mamba",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "state_size": 4,
    }
    | {"intermediate_size": 32, "time_step_rank": 2},
    "Mixtral": _sized("mixtral", **_GROUPED, num_local_experts=4, num_experts_per_tok=2),
}
