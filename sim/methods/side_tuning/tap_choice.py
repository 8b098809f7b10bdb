"""Which layers are sampled where public texts decide: how many, what the choice costs on the clock,
and the choice itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from learning.codecs.chain import chain_of
from learning.cost.costs import Cost
from learning.side.layer_choice import choose, choosing
from learning.side.prediction_difference import difference
from learning.side.taps import TapRule, rule_of, sample
from sim.kernel.world import World

LAYER_BYTES = 2
"""Of a layer's number, on its way to a device."""


def asking_rule(settings: Any) -> TapRule | None:
    """The rule of sampled layers, where it asks public texts."""
    rule = rule_of(settings.taps)
    return rule if rule is not None and rule.asks_texts else None


def require_texts_to_choose_by(settings: Any, world: World, backbones: Iterable[str]) -> None:
    """Raise ValueError where a rule asks texts that the server has not got, aligns what is alone,
    or counts bytes of vectors where matrices are sent.
    """
    rule = rule_of(settings.taps)
    if rule is None:
        return
    if rule.asks_texts and not len(world.task.public):
        raise ValueError(
            "method.taps: layers that texts choose need `task.public: N`, so many labelled texts "
            "at the server"
        )
    if rule.align != "position" and len(list(backbones)) < 2:
        raise ValueError(
            f"method.taps.align: {rule.align} aligns unlike backbones that share a side network, "
            "and here is one alone: leave it out"
        )
    if rule.bytes_a_text is not None and getattr(settings, "shortcut", "pivot") == "matrix":
        raise ValueError(
            "method.taps.bytes_a_text: counts single vectors, and `shortcut: matrix` sends "
            "matrices: say how many `layers`"
        )


def sampled(settings: Any, world: World, depths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The sampled layers of backbones of these depths; where texts choose them, as many as they
    will choose.
    """
    first = int(settings.side_network.start == "embedding")
    if (rule := rule_of(settings.taps)) is None or rule.bytes_a_text is None:
        return sample(depths, settings.taps, first)
    widths = world.costing.widths()
    widest = max(chain_of(settings.wire).vector_bytes(widths[name]) for name in depths)
    return sample(depths, rule, first, widest)


def choice_cost(rule: TapRule, blocks: int, world: World, widths: Mapping[str, int]) -> Cost:
    """At the server, of the layers of these backbones, by vectors that it has."""
    known = world.costing.depths()
    depths = {name: known[name] for name in widths}
    return choosing(rule, blocks, depths, widths, len(world.task.public), world.task.classes)


def chosen(
    rule: TapRule,
    blocks: int,
    world: World,
    vectors: Mapping[str, np.ndarray],
    with_embedding: bool,
) -> dict[str, tuple[int, ...]]:
    """The layers of every backbone, by its vectors [N, layers + 1, D_m] of the public texts."""
    labels = world.task.labels[world.task.public]
    nothing = np.zeros((len(labels), world.task.classes), dtype=np.float32)
    return choose(rule, blocks, vectors, difference(labels, nothing), with_embedding)
