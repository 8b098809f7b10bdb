"""The frozen backbone: what a device runs. Forward passes only, in eval mode, without gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from inputs.files import first_line, is_ours
from learning.backbones.batches import batches, padded
from learning.backbones.catalogue import BackboneError, BackboneSpec, config_of, depth_of, too_long
from learning.backbones.huggingface import has_segments
from learning.backbones.layers import ends_with_its_layers, hidden_states, positions_of
from learning.backbones.loading import load_model
from learning.backbones.tokens import Tokens
from learning.host_device import host_device

READOUTS = ("first", "last", "mean")


class Backbone:
    """A pre-trained transformer with its first `layers` layers, frozen; gives one vector a layer
    for each text.

    `readouts` reduces every layer's output h_BTD to one vector a text: the first token, the last
    real token, or the mean over the real tokens. For a given backbone and text the result is the
    same bits whatever other texts are computed with it (with one torch thread), so it can be stored
    and shared.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        self.host = host_device()
        self.layers = depth_of(config_of(spec))
        self.model = self.host.place_frozen(load_model(spec))
        self.hidden_size = int(self.model.config.hidden_size)
        self.positions = positions_of(self.model)
        self._reads_alone = self.model._can_set_experts_implementation()
        self._segments = has_segments(self.model.config)

    @property
    def vocabulary(self) -> int | None:
        """The number of token ids that the embedding has a row for; None where it has no table of
        ids.
        """
        try:
            return getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        except NotImplementedError:  # CANINE hashes characters
            return None

    @functools.cached_property
    def is_prefix(self) -> bool:
        """Whether all its states are those of any deeper cut of the same model, its last one among
        them: nothing, such as a norm, follows its layers.
        """
        ids_BT, mask_BT = (tensor.to(self.model.device) for tensor in pad([np.array([1, 2])]))
        with torch.inference_mode():
            return ends_with_its_layers(self.model, input_ids=ids_BT, attention_mask=mask_BT)

    def readouts(
        self, tokens: Tokens, readout: str = "mean", progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Pooled hidden states, float32 [n, layers + 1, hidden_size]; index 0 is the embedding
        output.

        A text is always computed in the same shape (`learning/backbones/batches.py`): in a batch of
        so many rows; alone, where experts get tokens of all rows at once. `progress` is called with
        the texts done.
        """
        out = np.empty((len(tokens), self.layers + 1, self.hidden_size), dtype=np.float32)
        padded_N = self.padded_lengths(tokens.lengths())
        begun = (
            (
                chosen,
                self._begin(tokens, self._filled(chosen, length), length, readout, len(chosen)),
            )
            for length, chosen in batches(padded_N, self.rows)
        )
        done = 0
        for chosen, result in _one_ahead(begun):
            out[chosen] = result().numpy()
            done += len(chosen)
            if progress:
                progress(done)
        return out

    def _filled(self, chosen: np.ndarray, length: int) -> np.ndarray:
        return np.resize(chosen, self.rows(length))  # which repeats them

    def rows(self, length: int) -> int:
        """How many texts of a padded length are read at once."""
        return 1 if self._reads_alone else self.host.rows(length, self.hidden_size)

    def read_alone(self, ids_T: np.ndarray) -> None:
        """Let the model read one text, as long as `readouts` would make it; BackboneError where it
        cannot.
        """
        self.states(*pad([ids_T], int(self.padded_lengths(np.array([len(ids_T)]))[0])))

    def padded_lengths(self, lengths_N: np.ndarray) -> np.ndarray:
        """To how many tokens texts of these lengths are padded; BackboneError where it has not so
        many positions.
        """
        most = self.positions or 1 << 30
        if lengths_N.max(initial=0) > most:
            raise too_long(self.spec.name, int(lengths_N.max()), most)
        return padded(lengths_N, self.host.length_step, most)

    def _forward(self, tokens: Tokens, chosen: Sequence[int], length: int, readout: str) -> Tensor:
        return self._begin(tokens, chosen, length, readout, len(chosen))()

    def _begin(
        self,
        tokens: Tokens,
        chosen: Sequence[int] | np.ndarray,
        length: int,
        readout: str,
        wanted: int,
    ) -> Callable[[], Tensor]:
        """Begin a pass; gives what waits for its first `wanted` rows [wanted, layers + 1, D], which
        an accelerator may still be computing.
        """
        ids_BT, mask_BT = pad([tokens.ids[i] for i in chosen], length)
        segments_BT = (
            None
            if tokens.segments is None
            else pad([tokens.segments[i] for i in chosen], length)[0]
        )
        states = self.states(ids_BT, mask_BT, segments_BT)
        with torch.inference_mode():
            mask_BT = mask_BT.to(states[0].device)
            out_BLD = torch.stack([_read(h_BTD, mask_BT, readout) for h_BTD in states], dim=1)
            is_finite = self.host.fetch(torch.isfinite(out_BLD).all())
            fetched = self.host.fetch(out_BLD[:wanted].float())

        def result() -> Tensor:
            if not is_finite():
                raise BackboneError(
                    f"backbone {self.spec.name!r} turns a text of {length} tokens into NaN or "
                    "infinity"
                )
            return fetched()

        return result

    def states(
        self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None = None
    ) -> list[Tensor]:
        """What enters each layer, and the output, each [B, T, D], of right-padded ids and the mask
        of real tokens; on the model's device and in its format.
        """
        device = self.model.device
        inputs: dict[str, Tensor | bool] = {
            "input_ids": ids_BT.to(device),
            "attention_mask": mask_BT.to(device),
        }
        if self._segments and segments_BT is not None:
            inputs["token_type_ids"] = segments_BT.to(device)
        if hasattr(self.model.config, "use_cache"):
            inputs["use_cache"] = (
                False  # keys and values are kept for generation; a single pass has no use for them
            )
        try:
            with torch.inference_mode():
                states = hidden_states(self.model, **inputs)
        except Exception as error:
            if is_ours(error) or isinstance(error, MemoryError):
                raise
            at = f"{ids_BT.shape[1]} tokens, ids up to {int(ids_BT.max())}"
            raise BackboneError(
                f"backbone {self.spec.name!r}: its forward pass fails ({at}): {first_line(error)}"
            ) from error
        self._require_even(states, ids_BT.shape)
        return states

    def _require_even(self, states: Sequence[Tensor], texts_BT: torch.Size) -> None:
        """A state of one width for each token, from the embedding and from each layer; else nothing
        can be read out, and a side network has nothing to stand beside.
        """
        widths = sorted({h_BTD.shape[-1] for h_BTD in states})
        if len(states) != self.layers + 1 or widths != [self.hidden_size]:
            raise BackboneError(
                f"backbone {self.spec.name!r} has {self.layers} layers of width "
                f"{self.hidden_size}, but gives {len(states)} "
                f"states of width {' and '.join(map(str, widths))}: take another backbone, with a "
                "state for each layer"
            )
        if odd := next((h.shape[:2] for h in states if h.shape[:2] != texts_BT), None):
            raise BackboneError(
                f"backbone {self.spec.name!r} ({self.model.config.model_type}): a layer gives "
                f"{odd[0]} x {odd[1]} states for {texts_BT[0]} texts of {texts_BT[1]} tokens: take "
                "another backbone, with a state for each token"
            )


Item = TypeVar("Item")


def _one_ahead(begun: Iterator[Item]) -> Iterator[Item]:
    """Each item after the next one has been begun, too: so an accelerator never waits for us."""
    for item, _ in pairwise(chain(begun, (None,))):
        assert item is not None
        yield item


def pad(sequences: Sequence[np.ndarray], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-pad to `length`, or to the longest: ids [B, T] and the mask of real tokens [B, T]."""
    lengths_B = np.array([len(ids) for ids in sequences])
    is_real_BT = np.arange(length or int(lengths_B.max())) < lengths_B[:, None]
    ids_BT = np.zeros(is_real_BT.shape, dtype=np.int64)
    ids_BT[is_real_BT] = np.concatenate(sequences)
    return torch.from_numpy(ids_BT), torch.from_numpy(is_real_BT.astype(np.int64))


def _read(h_BTD: Tensor, mask_BT: Tensor, readout: str) -> Tensor:
    """One vector a text, [B, D]."""
    if readout == "first":
        return h_BTD[:, 0]
    if readout == "last":
        return h_BTD[torch.arange(len(h_BTD)), mask_BT.sum(dim=1) - 1]
    if readout == "mean":
        return (h_BTD * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)
    raise ValueError(f"readout {readout!r} is not one of {', '.join(READOUTS)}")
