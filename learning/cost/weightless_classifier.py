"""The classifier that a device trains, without numbers: what counting runs in its stead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from learning.backbones.catalogue import BackboneSpec
from learning.cost.cost_cache import NAMELESS
from learning.cost.weightless import weightless
from learning.federated.trainable import TrainableClassifier


def weightless_classifier(
    config: Mapping[str, Any],
    kind: str,
    classes: int,
    *,
    positions: int | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> TrainableClassifier:
    """The classifier of `learning.federated.trainable` around a model without numbers; `options`
    are that class's.
    """
    bare = weightless(config, positions, dropout)
    spec = BackboneSpec(NAMELESS, "shape", NAMELESS, config=config)
    with torch.device("meta"):
        model = TrainableClassifier(spec, kind, classes, backbone=bare, **options)
    return model.train(dropout > 0)
