"""What a backbone's forward pass costs: counted, and looked up.

`architecture` answers from `costs.json`, else from the user's cache, else counts; only counting
imports torch. `python -m learning.cost.count` recounts the shipped ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learning.backbones.catalogue import BackboneSpec, config_of
from learning.cost.cost_cache import cost_key, counted
from learning.cost.costs import Architecture

_SHIPPED = Path(__file__).with_name("costs.json")


def architecture(spec: BackboneSpec) -> Architecture:
    """The counted cost of the backbone's forward pass.

    Raises BackboneError or FileProblem for a backbone that is not there or cannot be counted.
    """
    config = config_of(spec)
    if shipped := _shipped().get(cost_key(config)):
        return architecture_from_json(shipped)

    def count() -> dict[str, Any]:
        from learning.cost.count import count_architecture

        return dataclasses.asdict(count_architecture(config))

    return architecture_from_json(counted(spec.name, "a forward pass", config, count))


@functools.cache
def _shipped() -> dict[str, Any]:
    return json.loads(_SHIPPED.read_text(encoding="utf-8")) if _SHIPPED.is_file() else {}


def architecture_from_json(fields: Mapping[str, Any]) -> Architecture:
    """An `Architecture` from its JSON form (lists become tuples)."""
    counted: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in fields.items() if key != "name"
    }
    return Architecture(**counted)
