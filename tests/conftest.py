"""Models of one's own, as a user would save them: two layers, random, with a tokenizer of words; a
few kB each.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

# `make test` tries the same examples every time; `pytest --hypothesis-profile explore` looks for
# new ones
settings.register_profile("explore", derandomize=False, deadline=None)
settings.register_profile("repeatable", derandomize=True, deadline=None)  # machines may be busy
settings.load_profile("repeatable")
# Hypothesis also draws numbers that stand in the modules imported so far, which are others in every
# process of a session: the same examples are the same without them alone
providers._get_local_constants = lambda: providers._local_constants

# a shell that starts the tests in the background lets them, and what they start, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The README's commands take minutes in a row: begun first, they end with the rest."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *(f"{letter}{number}" for letter in "abc" for number in range(4)),
]
_SIZES = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "roberta": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
}


def _save_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if "[CLS]" not in words:  # a decoder's, that puts nothing around a text
        made.save(str(folder / "tokenizer.json"))
        return
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    made.save(str(folder / "tokenizer.json"))


@pytest.fixture
def own_model(tmp_path_factory):
    """Saves a model and returns its folder: `own_model("bert")`.

    `head` is the end of the class's name (Model, ForMaskedLM, ...), `tensors` changes what is saved
    of it (a function of the dict of tensors), `config` and `after` set fields of the configuration
    before and after it is built, `words` None leaves the tokenizer out.
    """

    def save(
        kind: str = "bert",
        head: str = "Model",
        tensors: Callable[[dict], dict] | None = None,
        after: dict | None = None,
        words: list[str] | None = WORDS,
        **config,
    ) -> Path:
        import torch
        import transformers
        from safetensors.torch import load_file, save_file

        folder = tmp_path_factory.mktemp(kind)
        given = {
            "vocab_size": len(words or WORDS),
            "max_position_embeddings": 66,
            **_SIZES[kind],
            **config,
        }
        made = transformers.AutoConfig.for_model(kind, **given)
        torch.manual_seed(0)
        bare = {
            "bert": "Bert",
            "roberta": "Roberta",
            "llama": "Llama",
            "gpt2": "GPT2",
            "opt": "OPT",
            "distilbert": "DistilBert",
        }[kind]
        getattr(transformers, bare + head)(made).save_pretrained(folder)
        if after:
            fields = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**fields, **after}))
        if tensors:
            file = folder / "model.safetensors"
            save_file(tensors(load_file(file)), file, {"format": "pt"})
        if words:
            _save_tokenizer(folder, words)
        return folder

    return save
