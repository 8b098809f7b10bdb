"""Trained LoRA in the format of the `peft` library: `PeftModel.from_pretrained` loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from learning.federated.trainable import TrainableClassifier

FILES = ("adapter_config.json", "adapter_model.safetensors")


def save_peft(model: TrainableClassifier, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors of a model's LoRA with this state.

    They belong to transformers' language model of the backbone where this says the next token
    (`AutoModelForCausalLM`), else to the bare model (`AutoModel`); of a backbone that is cut, to
    one that is cut as well (`num_hidden_layers`). A head that was trained beside it is no part of
    them. ValueError for a model that trains no LoRA.
    """
    if model.lora is None:
        raise ValueError(f"{model.spec.name!r} is trained by {model.kind}, which is no LoRA")
    from learning.federated.language_model import TrainableLanguageModel

    says_words = isinstance(model, TrainableLanguageModel)
    stem = "base_model.model." + (f"{model.backbone.base_model_prefix}." if says_words else "")
    tensors = {
        stem + name.removeprefix("backbone.").replace(".default.", "."): tensor.contiguous()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    model.lora.task_type = "CAUSAL_LM" if says_words else "FEATURE_EXTRACTION"
    model.lora.base_model_name_or_path = model.spec.source
    model.lora.inference_mode = True
    folder.mkdir(exist_ok=True)
    model.lora.save_pretrained(str(folder))
    config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    if isinstance(modules := config["target_modules"], list):
        config["target_modules"] = sorted(modules)  # a set until now, in an order of the process
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / FILES[0]).write_text(text, encoding="utf-8")
    save_file(tensors, folder / FILES[1], {"format": "pt"})
