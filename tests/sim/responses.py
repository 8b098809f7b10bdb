"""A world of three devices that learn responses, and settings of every method that takes them; for
`runpy.run_path`.
"""

import json

import numpy as np

WORDS = [f"w{i}" for i in range(12)]
TASK = {
    "kind": "language-modelling",
    "dataset": {"path": "talk.jsonl", "prompt": "ask", "response": "reply", "label": "topic"},
    "train": 60,
    "validation": 12,
    "test": 18,
    "max_tokens": 16,
    "generate": 4,
}
WORLD = {
    "task": TASK,
    "fleet": [
        {"count": 2, "device": "laptop-m1-pro", "backbone": "random-llama", "link": "wifi-home"},
        {"count": 1, "device": "jetson-tx2", "backbone": "random-llama-l2", "link": "lte"},
    ],
    "arrivals": {"kind": "at-once"},
}
SIDE = {"kind": "fed-mobillm-lm", "passes": 2, "taps": 2}
METHODS = {
    "fed-mobillm-lm": SIDE,
    "fedavg-lora": {"kind": "fedavg-lora", "rounds": 2, "participation": 1.0},
    "fedavg-full": {"kind": "fedavg-full", "rounds": 1, "participation": 1.0},
    "fedavg-adapter": {"kind": "fedavg-adapter", "rounds": 1, "participation": 1.0},
    "flexlora": {"kind": "flexlora", "rounds": 1, "ranks": {"jetson-tx2": 2}},
    "fedbuff": {"kind": "fedbuff", "answers": 4, "buffer": 2, "peft": "lora"},
    "local-lora": {"kind": "local-lora", "rounds": 1},
    "fwdllm": {"kind": "fwdllm", "rounds": 1, "peft": "lora", "participation": 1.0},
    "fedmezo": {"kind": "fedmezo", "rounds": 1, "local_steps": 2},
    "spry": {"kind": "spry", "rounds": 1, "participation": 0.4},
    "splitfed-v1": {"kind": "splitfed-v1", "rounds": 2, "peft": "lora", "device_batch": 8},
    "splitfed-v2": {"kind": "splitfed-v2", "rounds": 1, "peft": "adapter", "layers": 2},
    "fedbert": {"kind": "fedbert", "rounds": 1, "learning_rate": 1e-3},
}

UNTIED = {"model_type": "llama", "vocab_size": 300, "hidden_size": 24, "num_hidden_layers": 3} | {
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def with_untied(**world):
    """`WORLD` with a decoder whose vocabulary is a tensor of its own."""
    fleet = [{"count": 2, "device": "jetson-tx2", "backbone": "loose", "link": "lte"}]
    return {**WORLD, "backbones": {"loose": {"random": UNTIED}}, "fleet": fleet, **world}


def write_talk(folder):
    """120 prompts, and in reverse what is to be said to them."""
    rng = np.random.default_rng(0)
    with (folder / "talk.jsonl").open("w", encoding="utf-8") as file:
        for number in range(120):
            asked = [*rng.choice(WORDS, rng.integers(2, 5)), f"n{number}"]
            row = {"ask": " ".join(asked), "reply": " ".join(asked[1::-1]), "topic": number % 2}
            file.write(json.dumps({**row, "topic": "ab"[row["topic"]]}) + "\n")
