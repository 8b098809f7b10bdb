"""What side-tuning's passes cost: of a device over its texts, of the server over public ones, and
of both over what is said of the classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learning.cost.costs import Cost
from learning.side.prediction_difference import VERBALISERS
from sim.kernel.device import Device
from sim.kernel.world import World

SERVER_TEXTS = 128  # that it passes over at once


def device_pass(config: Any, world: World, device: Device, lengths: np.ndarray) -> Cost:
    """A device's pass over a batch of texts of these lengths; and what a verbaliser says of each:
    the logits of the classes' words alone, as the rest of the vocabulary cancels among them.
    """
    cost = world.costing.forward(device.member, lengths)
    if config.backbone_prediction in VERBALISERS:
        cost += world.costing.next_word(device.member, len(lengths), world.task.classes)
    return cost


def class_pass(config: Any, world: World, device: Device) -> Cost:
    """A device's passes over what is said of the classes, a batch at a time."""
    spec = world.costing.learned[device.backbone]
    lengths = world.task.said_lengths(spec, config.backbone_prediction)
    batches = in_batches(lengths, config.device_batch)
    return sum((device_pass(config, world, device, batch) for batch in batches), Cost())


def server_pass(config: Any, world: World, backbone: str, lengths: np.ndarray) -> Cost:
    """The server's passes of a backbone over texts of these lengths."""
    tokens, cost = world.costing.fixed_tokens, Cost()
    for batch in in_batches(lengths, SERVER_TEXTS):
        longest = tokens or int(batch.max())
        cost += server_cost(config, world, backbone, len(batch), longest)
    return cost


def server_cost(config: Any, world: World, backbone: str, texts: int, tokens: int) -> Cost:
    """One pass of the server's, as `device_pass` is one of a device's."""
    architecture = world.costing.architectures[backbone]
    cost = architecture.forward(texts, tokens)
    if config.backbone_prediction in VERBALISERS:
        cost += architecture.next_word(texts, world.task.classes)
    return cost


def in_batches(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Texts of these lengths, alike ones together, so many at a time."""
    return np.split(np.sort(lengths), range(size, len(lengths), size))
