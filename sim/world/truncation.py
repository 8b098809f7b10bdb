"""How long the texts are that devices hold, as their backbones read them, and whether it matters
what is cut off.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from devices.fleet import Member
from learning.backbones.catalogue import BackboneSpec
from learning.backbones.tokens import Tokens
from sim.world.task import DividedTask

FEW = 0.05  # such a share of the texts may be cut without a word


def lengths_by_backbone(
    task: DividedTask, members: Sequence[Member], learned: Mapping[str, BackboneSpec], dry: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Tokens of each sample that a backbone's devices hold, 0 for the others; of these, the tokens
    that are to be said, where there are responses; and what to know of texts that are cut.

    A dry run that charges all at one length reads no text, so it knows of no cut.
    """
    lengths: dict[str, np.ndarray] = {}
    said: dict[str, np.ndarray] = {}
    names, held = defaultdict(list), Counter[BackboneSpec]()
    cut: dict[BackboneSpec, list[tuple[int, int]]] = defaultdict(list)
    for name, spec in learned.items():
        samples = np.concatenate(
            [p for m, p in zip(members, task.parts, strict=True) if m.backbone == name]
        )
        lengths[name] = np.zeros(len(task.labels), dtype=np.int64)
        said[name] = np.zeros(len(task.labels), dtype=np.int64)
        if task.fixed_response_tokens is not None:
            said[name][samples] = task.fixed_response_tokens
        if task.fixed_tokens is not None:
            lengths[name][samples] = task.fixed_tokens
        if task.fixed_tokens is None or not dry:
            tokens = task.tokens(spec, samples)
            if task.fixed_tokens is None:
                lengths[name][samples] = tokens.lengths()
            if task.has_responses:
                said[name][samples] = tokens.said_lengths()
            reader = dataclasses.replace(spec, name="", layers=None, title="")  # of all its cuts
            names[reader].append(name)
            held[reader] += len(samples)
            cut[reader] += _cut_texts(task, samples, tokens)
    remarks = [
        f"{what} as {' and '.join(names[reader])} read{'s' * (len(names[reader]) == 1)} them"
        if len(held) > 1
        else what
        for reader in held
        for what in _cuts(held[reader], cut[reader], task.max_tokens)
    ]
    return lengths, said, remarks


def _cut_texts(task: DividedTask, samples: np.ndarray, tokens: Tokens) -> Iterator[tuple[int, int]]:
    """Of each text that is cut: what stands for the tokens that are read, and for the whole."""
    assert task.texts is not None and tokens.is_cut is not None
    texts = task.texts
    columns = [c for c in (texts.texts, texts.second_texts, texts.responses) if c is not None]
    for i, ids, is_cut in zip(samples.tolist(), tokens.ids, tokens.is_cut, strict=True):
        if is_cut:
            yield hash(ids.tobytes()), hash(tuple(column[i] for column in columns))


def _cuts(texts: int, cut: Sequence[tuple[int, int]], max_tokens: int) -> Iterator[str]:
    texts_of: dict[int, set[int]] = defaultdict(set)
    for read, text in cut:
        texts_of[read].add(text)
    n_equal = sum(len(texts_of[read]) > 1 for read, _ in cut)
    if n_equal or len(cut) >= FEW * texts:
        equal = f", and {n_equal:,} of them become equal to another" if n_equal else ""
        at = f"{max_tokens} tokens (task.max_tokens)"
        yield f"{len(cut):,} of {texts:,} texts are cut at {at}{equal}"
