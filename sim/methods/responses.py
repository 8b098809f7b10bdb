"""What methods of every family charge for saying a response's tokens: the whole vocabulary."""

from __future__ import annotations

import dataclasses

from learning.backbones.catalogue import config_of
from learning.backbones.language_head import require_language_model
from learning.cost.costs import Cost
from learning.cost.vocabulary import Vocabulary, vocabulary_of
from sim.kernel.world import World


def vocabularies(world: World) -> dict[str, Vocabulary]:
    """Of each backbone, as it is charged; empty where what is learned are no responses.

    BackboneError for a backbone that says no next word.
    """
    if not world.task.has_responses:
        return {}
    for spec in world.costing.learned.values():
        require_language_model(spec)
    return {name: vocabulary_of(config_of(s)) for name, s in world.costing.charged.items()}


def with_words(step: Cost, saved_bytes: int, words: Cost) -> Cost:
    """A step of training with its words: while they are in memory, so is all that the pass below
    keeps for its way back.
    """
    whole = step + words
    peak = max(step.peak_bytes, saved_bytes + words.peak_bytes)
    return dataclasses.replace(whole, peak_bytes=peak)
