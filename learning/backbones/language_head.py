"""What a language model says next: the logits of a few words, from the last token's final state.

Only the rows of these words are taken out of the output embedding (which is the input's, where the
two are tied). What else the architecture does to its logits (a bias, a scale, Gemma's soft cap) is
done by transformers' own class around a stand-in for the model below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inputs.files import reading
from learning import kept
from learning.backbones.catalogue import (
    BackboneError,
    BackboneSpec,
    config_of,
    directory,
    fingerprint,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor


_LIBRARIES = ("transformers",)


def require_language_model(spec: BackboneSpec) -> None:
    """Raise BackboneError for a backbone that says no next word: an encoder, or one whose weights
    lack an output embedding. What was found is kept, so that torch is not needed twice.
    """
    kind = str(config_of(spec)["model_type"])
    if not _kept("language-model", kind, lambda: _says_next_words(kind)):
        raise BackboneError(
            f"backbone {spec.name!r}: a {kind} model has no head that says the next word, which "
            "language modelling and verbalisers need: take a decoder (smollm2, GPT-2, Llama, "
            "Qwen), or, of classes, another `backbone_prediction`"
        )
    if spec.kind in ("path", "hub"):
        _kept("output-embedding", fingerprint(spec), lambda: bool(WordHead(spec, np.zeros(1, int))))


class OutputEmbedding(NamedTuple):
    """Whether a decoder's output embedding is the input's, and how many numbers it has besides:
    all of its own, or a bias.
    """

    is_tied: bool
    numbers: int


def output_embedding(spec: BackboneSpec) -> OutputEmbedding:
    """Of a decoder, by its configuration alone; of what has no vocabulary, no numbers. What was
    found is kept, so that torch is not needed twice.
    """
    return OutputEmbedding(*_kept("own-numbers", config_of(spec), lambda: _own_numbers(spec)))


def _own_numbers(spec: BackboneSpec) -> tuple[bool, int]:
    whole = without_numbers(spec)
    head, words = whole.get_output_embeddings(), whole.get_input_embeddings()
    if head is None:
        return True, 0
    is_tied = head.weight is words.weight
    numbers = sum(p.numel() for p in head.parameters())
    return is_tied, numbers - is_tied * head.weight.numel()


def tied(spec: BackboneSpec, kind: str) -> BackboneError:
    """Why a decoder cannot have its embeddings on one side and its vocabulary on the other, where
    both would be trained: they are one tensor, of which either side's gradient is a part.
    """
    return BackboneError(
        f"backbone {spec.name!r} ({config_of(spec)['model_type']}): {kind} training cannot be "
        "split, for the embeddings on the device and the vocabulary at the server are one tensor; "
        "choose lora or adapter, or fedbert, which has both on the device"
    )


def _kept(what: str, of: Any, find: Callable[[], Any]) -> Any:
    place = kept.place("trials", what, of, kept.finder(("backbones/language_head",), _LIBRARIES))
    if (found := kept.recall(place)) is None:
        found = find()
        kept.keep(place, found)
    return found


def _says_next_words(kind: str) -> bool:
    """A decoder's; masked language models have a class for that, too, which nobody has trained."""
    from transformers.models.auto import modeling_auto as known

    masked = known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in masked


class WordHead:
    """The output embedding's rows of a few tokens.

    Raises BackboneError or FileProblem where the weights have no output embedding, or one of
    another width than the last state.
    """

    def __init__(self, spec: BackboneSpec, tokens_W: np.ndarray) -> None:
        import torch
        from torch import nn

        self.spec, self._whole = spec, without_numbers(spec)
        rows = _rows(spec, self._whole, torch.from_numpy(tokens_W))
        words = nn.Linear(rows["weight"].shape[1], len(tokens_W), bias="bias" in rows)
        words.load_state_dict(rows)
        self._whole.set_output_embeddings(words)
        self._below = standing_in()
        setattr(self._whole, self._whole.base_model_prefix, self._below)

    def __call__(self, last_ND: np.ndarray) -> np.ndarray:
        """Logits float32 [N, W] of the words after texts whose last token has this final state."""
        import torch

        with torch.inference_mode(), reading(f"backbone {self.spec.name!r}", "what says a word"):
            self._below.states = torch.from_numpy(last_ND)[None]
            ids = torch.zeros(1, len(last_ND), dtype=torch.long)
            return self._whole(input_ids=ids).logits[0].float().numpy()


def without_numbers(spec: BackboneSpec) -> Any:
    """transformers' language model of this configuration, without numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    from learning.backbones.huggingface import hf_config

    with torch.device("meta"), reading(f"backbone {spec.name!r}", "a language model"):
        return AutoModelForCausalLM.from_config(hf_config(config_of(spec))).eval()


def standing_in() -> Any:
    """The model below a head: whatever it is asked, it gives the states that it was given."""
    from torch import nn

    class Output(tuple):
        def __getattr__(self, name: str) -> Any:
            return self[0] if name == "last_hidden_state" else None

    class Below(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Output:
            return Output([self.states])

        @property
        def decoder(self) -> Below:  # which OPT's head asks
            return self

    return Below()


def _rows(spec: BackboneSpec, whole: Any, tokens_W: Tensor) -> dict[str, Tensor]:
    """The rows of the output embedding, and of its bias where it has one."""
    import torch

    head, words = whole.get_output_embeddings(), whole.get_input_embeddings()
    is_tied = head.weight is words.weight
    if head.weight.shape[1] != whole.config.hidden_size:
        raise BackboneError(
            f"backbone {spec.name!r}: its output embedding is {head.weight.shape[1]} wide and its "
            f"last state {whole.config.hidden_size}, so no word can be read off that"
        )
    if spec.kind == "random":
        rows = _drawn(spec, whole, is_tied, tokens_W)
    else:
        wanted = dict(head.named_parameters())
        named = dict(whole.named_parameters(remove_duplicate=False))
        rows = {
            key: stored(spec, whole, [n for n, p in named.items() if p is value], tokens_W)
            for key, value in wanted.items()
        }
    if not all(torch.isfinite(row).all() for row in rows.values()):
        raise BackboneError(f"backbone {spec.name!r}: NaN or infinity in its output embedding")
    return rows


def _drawn(spec: BackboneSpec, whole: Any, is_tied: bool, tokens_W: Tensor) -> dict[str, Tensor]:
    """Of a random model: its input embedding's, or drawn as the architecture begins one."""
    import torch

    from learning.backbones.loading import load_model

    if is_tied:
        words: Any = load_model(spec).get_input_embeddings()
        return {"weight": words.weight.detach()[tokens_W]}
    deviation = getattr(whole.config, "initializer_range", 0.02)
    draw = torch.Generator().manual_seed(spec.seed + 1)  # not the stream of the input embedding
    shape = whole.get_output_embeddings().weight.shape
    return {"weight": deviation * torch.randn(shape, generator=draw)[tokens_W]} | (
        {} if whole.get_output_embeddings().bias is None else {"bias": torch.zeros(len(tokens_W))}
    )


def stored(
    spec: BackboneSpec, whole: Any, names: Sequence[str], tokens_W: Tensor | None = None
) -> Tensor:
    """These rows (None: all) of a tensor of the weights that is called one of these, with the
    model's prefix or without (GPT-NeoX's head is called embed_out there). BackboneError where there
    is none.
    """
    import torch
    from safetensors import safe_open

    prefix = f"{whole.base_model_prefix}."
    wanted = {*names, *(n.removeprefix(prefix) for n in names)}
    wanted |= {n.replace("lm_head", "embed_out") for n in names}
    for file in weight_files(spec):
        with reading(file, "safetensors weights"), safe_open(file, framework="pt") as held:
            for name in wanted & {*held.keys()}:
                if tokens_W is None:
                    return held.get_tensor(name).float()
                rows = held.get_slice(name)
                return torch.stack([rows[i] for i in tokens_W.tolist()]).float()
    raise BackboneError(
        f"backbone {spec.name!r}: no output embedding ({names[-1]}) in {directory(spec)}, and its "
        "config.json does not tie it to the input embedding: save the whole language model there"
    )
