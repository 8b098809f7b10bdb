"""Greedy replies of a decoder to prompts, as transformers' own `generate` makes them, and how near
they come to what was said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from learning.backbones.catalogue import BackboneSpec
from learning.backbones.language_head import without_numbers
from learning.backbones.layers import positions_of
from learning.backbones.responses import end_of_text, said
from learning.backbones.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from learning.backbones.vocabulary_head import VocabularyHead


def speaking_model(
    spec: BackboneSpec, backbone: PreTrainedModel, head: VocabularyHead
) -> PreTrainedModel:
    """transformers' language model around a bare one and its head, whose numbers it shares."""
    whole = without_numbers(spec)
    whole.set_output_embeddings(head.linear)
    setattr(whole, whole.base_model_prefix, backbone)
    return whole.eval()


def replies(model: PreTrainedModel, spec: BackboneSpec, tokens: Tokens, most: int) -> list[str]:
    """What the model says after each text's prompt (its tokens that are not to be said), greedily,
    in at most so many tokens. Prompts are padded on the left, so that each ends where its reply
    begins; where the model has positions for fewer, they lose their first tokens.
    """
    torch.set_num_threads(1)
    prompts = [ids[: int(np.argmax(tokens.said(i)))] for i, ids in enumerate(tokens.ids)]
    if (positions := positions_of(model)) is not None:
        prompts = [ids[-max(1, positions - most) :] for ids in prompts]
        most = min(most, positions - 1)
    longest = max(len(ids) for ids in prompts)
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        ids_BT[row, longest - len(ids) :] = torch.from_numpy(ids.astype(np.int64))
        mask_BT[row, longest - len(ids) :] = 1
    end = end_of_text(spec)
    with torch.inference_mode():
        whole_BT = model.generate(  # type: ignore[operator]  # a mixin that mypy does not see
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0 if end is None else end,
        )
    return [said(spec, row[longest:].tolist()) for row in whole_BT]


def nearness(replied: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
    """ROUGE-L (the F-measure of the longest common subsequence of words, Lin 2004; by google's
    rouge-score, None where that is not installed; words are runs of letters and digits of any
    script, in small letters), and the share that is word for word the reference.
    """
    pairs = zip(replied, references, strict=True)
    words = [(" ".join(reply.split()), " ".join(wanted.split())) for reply, wanted in pairs]
    exact = sum(a == b for a, b in words) / len(words)
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError:
        return {"rouge_l": None, "exact_match": exact}
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    scores = [scorer.score(reference, reply)["rougeL"].fmeasure for reply, reference in words]
    return {"rouge_l": float(np.mean(scores)), "exact_match": exact}


class _Words:
    """What rouge-score cuts a text into; its own way knows Latin letters and digits alone."""

    def tokenize(self, text: str) -> list[str]:
        """Words in small letters, without what stands around them."""
        return re.findall(r"\w+", text.lower())
