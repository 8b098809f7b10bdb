"""The frozen backbone: what a device runs. Forward passes only, in eval mode, without gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from learning.catalogue import BackboneError, BackboneSpec, config_of, cut, depth_of, directory
from learning.huggingface import bare_model, hf_config
from learning.layers import hidden_states
from learning.tokens import Tokens

READOUTS = ("first", "last", "mean")
_ROWS, _LENGTH_STEP = 16, 8


class Backbone:
    """A pre-trained transformer with its first `layers` layers, frozen; gives one vector a layer for each text.

    `readouts` reduces every layer's output h_BTD to one vector a text: the first token, the last real token, or the mean
    over the real tokens. For a given backbone and text the result is the same bits whatever other texts are computed with
    it (with one torch thread), so it can be stored and shared.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        config = config_of(spec)
        self.layers, self.model = depth_of(config), _load(spec, config)
        self.hidden_size = int(self.model.config.hidden_size)
        self._segments = getattr(self.model.config, "type_vocab_size", 1) > 1

    def readouts(
        self, tokens: Tokens, readout: str = "mean", progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Pooled hidden states, float32 [n, layers + 1, hidden_size]; index 0 is the embedding output.

        Kernels round differently for another shape of their input. So a text is always computed in the same shape: padded
        to the next multiple of eight tokens, in a batch of exactly 16 rows. `progress` is called with the texts done.
        """
        out = np.empty((len(tokens), self.layers + 1, self.hidden_size), dtype=np.float32)
        lengths, most = tokens.lengths(), getattr(self.model.config, "max_position_embeddings", 1 << 30)
        padded = np.maximum(lengths, np.minimum(-(-lengths // _LENGTH_STEP) * _LENGTH_STEP, most))
        done = 0
        for length in np.unique(padded):
            same = np.flatnonzero(padded == length)
            for start in range(0, len(same), _ROWS):
                chosen = same[start : start + _ROWS]
                rows = np.resize(chosen, _ROWS)  # a batch that is not full repeats its texts
                out[chosen] = self._forward(tokens, rows, int(length), readout)[: len(chosen)].numpy()
                done += len(chosen)
                if progress:
                    progress(done)
        return out

    def _forward(self, tokens: Tokens, chosen: Sequence[int], length: int, readout: str) -> Tensor:
        ids_BT, mask_BT = pad([tokens.ids[i] for i in chosen], length)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if self._segments and tokens.segments is not None:
            inputs["token_type_ids"] = pad([tokens.segments[i] for i in chosen], length)[0]
        with torch.inference_mode():
            # the cache of keys and values is for generation; a single pass has no use for it
            states = hidden_states(self.model, **inputs, **self._no_cache())
            return torch.stack([_read(h_BTD, mask_BT, readout) for h_BTD in states], dim=1)

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}


def _load(spec: BackboneSpec, config: dict):
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if spec.kind == "random":
        model = _initialised(dict(spec.config), spec.seed)
        if spec.layers is not None:  # cut it as a checkpoint is cut, instead of drawing a shallower one
            shallow = _initialised(config, spec.seed)
            shallow.load_state_dict(model.state_dict(), strict=False)
            model = shallow
    else:
        path = directory(spec)
        whole = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kept = hf_config(cut(whole, depth_of(config)))  # the checkpoint's deeper layers are simply not loaded
        try:
            model = bare_model(kept).from_pretrained(
                path, config=kept, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise BackboneError(f"backbone {spec.name!r} could not be loaded from {path}: {error}") from error
    return model.eval().requires_grad_(False)


def _initialised(config: dict, seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = hf_config(config)
        return bare_model(made).from_config(made)


def pad(sequences: Sequence[np.ndarray], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-pad to `length`, or to the longest: ids [B, T] and the mask of real tokens [B, T]."""
    longest = length or max(len(ids) for ids in sequences)
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(sequences):
        ids_BT[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask_BT[row, : len(ids)] = 1
    return ids_BT, mask_BT


def _read(h_BTD: Tensor, mask_BT: Tensor, readout: str) -> Tensor:
    """One vector a text, [B, D]."""
    if readout == "first":
        return h_BTD[:, 0]
    if readout == "last":
        return h_BTD[torch.arange(len(h_BTD)), mask_BT.sum(dim=1) - 1]
    if readout == "mean":
        return (h_BTD * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)
    raise ValueError(f"readout {readout!r} is not one of {', '.join(READOUTS)}")
