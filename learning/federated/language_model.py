"""A decoder of which a part can be trained to say what comes next: federated fine-tuning on
next-token tasks.

As `learning.federated.trainable.TrainableClassifier`, with the model's own vocabulary in place of a
new head. What is to be said is marked by the segment of a token (1: of the response, 0: of the
prompt); each such token is predicted at the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.backbones.catalogue import BackboneError, BackboneSpec
from learning.backbones.language_head import require_language_model
from learning.backbones.tokens import Tokens
from learning.backbones.vocabulary_head import VocabularyHead
from learning.federated.local_training import WHOLE, Share, inputs
from learning.federated.trainable import TrainableClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORED = ("nll", "right", "tokens")
"""What is known of each text's response: the sum of -log p of its tokens, how many of them were the
likeliest, how many there are.
"""
_AT_ONCE = 512  # tokens whose logits are in memory at a time, when texts are scored


class TrainableLanguageModel(TrainableClassifier):
    """A frozen decoder with a trainable part of one of `trainable.KINDS` but `head`, which says the
    next token.

    The trainable part, its names and its start are those of `TrainableClassifier`, without a head;
    `full` trains the output embedding with the rest. Raises BackboneError for a backbone that says
    no next word, and what that class raises.
    """

    head: VocabularyHead

    def __init__(
        self,
        spec: BackboneSpec,
        kind: str,
        rank: int = 8,
        alpha: float = 8,
        bottleneck: int = 16,
        seed: int = 0,
        backbone: PreTrainedModel | None = None,
        target_modules: Sequence[str] | str | None = None,
        adapters: str = "houlsby",
        lora_dropout: float = 0.0,
    ) -> None:
        if kind == "head":
            raise BackboneError(
                f"backbone {spec.name!r}: the head of a language model is its own vocabulary, so "
                "training the head alone leaves nothing to train; choose lora, adapter or full"
            )
        require_language_model(spec)
        super().__init__(
            *(spec, kind, 0, "last", rank, alpha, bottleneck, seed, backbone),
            target_modules=target_modules,
            adapters=adapters,
            lora_dropout=lora_dropout,
        )

    def _new_head(self, head: str, width: int, device: torch.device) -> VocabularyHead:
        made = VocabularyHead(self.spec, self.backbone)
        return made.requires_grad_(self.kind == "full")

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [M, V] at each place that a token of a response follows, text after text, of
        right-padded token ids, their mask and segments, each [B, T], on the model's device.
        """
        ids_BT, mask_BT = ids_BT.to(self.device), mask_BT.to(self.device)
        h_BTD = self.backbone(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=False
        ).last_hidden_state
        return self.read_off(h_BTD, mask_BT, segments_BT)

    @property
    def embeds_segments(self) -> bool:
        """No: they tell what is to be said."""
        return False

    def read_off(self, h_BTD: Tensor, mask_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Logits [M, V] at these places, of tokens with these last states."""
        return self.head(h_BTD[:, :-1][_is_next_said(mask_BT, segments_BT)])

    def targets(
        self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None, labels_B: Tensor
    ) -> Tensor:
        """The tokens [M] that follow at these places."""
        return ids_BT[:, 1:][_is_next_said(mask_BT, segments_BT)]

    def texts_of(self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Which text of the batch each of these places is in [M]."""
        return _is_next_said(mask_BT, segments_BT).nonzero()[:, 0]


def _is_next_said(mask_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Of all places but the last [B, T - 1]: whether a token of a response follows. Of texts
    without segments all tokens but the first are to be said.
    """
    said_BT = mask_BT if segments_BT is None else segments_BT.to(mask_BT.device) * mask_BT
    return said_BT[:, 1:].bool()


def score_texts(
    model: TrainableLanguageModel,
    state: Mapping[str, Tensor],
    tokens: Tokens,
    share: Share = WHOLE,
) -> np.ndarray:
    """What a model with this state makes of each text's response, float64 [n, 3]: `SCORED`. Of a
    share of the batches, 0 for the texts of the others.
    """
    torch.set_num_threads(1)
    model.load_trainable(state)
    found_NS = np.zeros((len(tokens), len(SCORED)))
    said = tokens.said_lengths()
    order = np.argsort(tokens.lengths(), kind="stable")
    with torch.inference_mode(), model.host.products():
        for chosen in _by_tokens(order, said, _AT_ONCE)[share[0] :: share[1]]:
            batch = inputs(tokens, chosen)
            logits_MV = model(*batch).float()
            wanted_M = model.targets(*batch, torch.empty(0)).to(logits_MV.device)
            nll_M = F.cross_entropy(logits_MV, wanted_M, reduction="none").cpu().double().numpy()
            right_M = (logits_MV.argmax(dim=1) == wanted_M).cpu().numpy()
            counts = said[chosen]
            text_M = np.repeat(np.arange(len(chosen)), counts)
            for place, values_M in enumerate((nll_M, right_M)):
                found_NS[chosen, place] = np.bincount(text_M, values_M, len(chosen))
            found_NS[chosen, 2] = counts
    return found_NS


def _by_tokens(order: np.ndarray, said: np.ndarray, most: int) -> list[np.ndarray]:
    """Texts in this order, as many at once as have so many tokens to be said, one at least."""
    ends = np.cumsum(said[order]) // most
    return np.split(order, np.flatnonzero(np.diff(ends)) + 1)
