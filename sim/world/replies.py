"""What it takes a device to say a reply with what was learned, and devices that do so on the clock
once training is over (`task.device_replies`).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import simpy

from learning.backbones.catalogue import config_of
from learning.cost.costs import FORMATS, Cost
from learning.cost.vocabulary import kv_cache_bytes, vocabulary_of
from sim.kernel.device import Device
from sim.kernel.ledger import only
from sim.kernel.method import Method
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.scenario.own_code import generator_of

MOST_TOKENS = 32  # of a reply


class ReplyCost(NamedTuple):
    """Of a prompt that is read at once, of each token that is said after it, and of the cache of
    keys and values at the end.
    """

    prompt_tokens: int
    prefill: Cost
    decode: Cost
    cache_bytes: int


def most_tokens(world: World) -> int:
    """Of a reply of this run."""
    return min(MOST_TOKENS, world.task.max_tokens)


def cost_of_a_reply(world: World, method: Method, device: Device) -> ReplyCost:
    """To a prompt of the device's texts' mean length: each token that is said reads all weights,
    the output embedding, the cache, and what the method has beside them (`said_token_cost`), and
    attends to as many tokens as half-way through the reply.
    """
    member, costing = device.member, world.costing
    lengths = world.lengths(device, device.samples)
    prompts = lengths - world.response_lengths(device, device.samples)
    prompt = max(1, round(float(prompts.mean())))
    config = config_of(costing.charged[device.backbone])
    width = FORMATS[costing.precision[member.group]].other
    words = vocabulary_of(config).forward(1, width)
    beside = getattr(method, "said_token_cost", lambda device: Cost())(device)
    architecture, most = costing.architectures[device.backbone], most_tokens(world)
    cache = kv_cache_bytes(config, prompt + most, width)
    read = costing.forward(member, np.array([prompt]))
    read = Cost(read.flop, read.bytes_moved, read.peak_bytes + cache)
    # with n tokens before it a token attends to n of them: a + c n of a pass's a T + c T^2, whose
    # growth from T - 1 to T is a + c (2 T - 1)
    half = (prompt + most // 2 + 1) // 2
    longer, shorter = (architecture.forward(1, n) for n in (half, half - 1))
    one = costing.forward(member, np.array([1]))
    decode = Cost(longer.flop - shorter.flop, one.bytes_moved + cache, one.peak_bytes + cache)
    return ReplyCost(prompt, read + words + beside, decode + words + beside, cache)


def peak_with_replies(method: Method, device: Device) -> int:
    """The most memory that the method takes on the device, or a reply after it, weights included; a
    whole backbone says it, whatever part of it was trained there.
    """
    reply = cost_of_a_reply(device.world, method, device)
    replying = device.held_bytes(max(reply.prefill.peak_bytes, reply.decode.peak_bytes))
    return max(method.peak_bytes(device), replying)


def after(world: World, method: Method, count: int) -> Generator[simpy.Event, Any, None]:
    """All that the server does and then, where some are asked for, so many replies of every device
    that is there. MethodError for a method whose `server` is no generator.
    """
    process = generator_of("server", method.server(world.server))
    return _with_replies(process, world, method, count) if count else process


def _with_replies(
    process: Generator[simpy.Event, Any, None], world: World, method: Method, count: int
) -> Generator[simpy.Event, Any, None]:
    yield from process
    saying = [
        world.start(device, _replies(world, method, device, count))
        for device in world.present_devices()
    ]
    yield world.env.all_of(saying)


def _replies(
    world: World, method: Method, device: Device, count: int
) -> Generator[simpy.Event, Any, None]:
    """With the model as it was trained, which a device downloads first."""
    if delivered := method.delivery_bytes(device):
        yield from device.download(only("parameters", delivered))
    reply, tokens = cost_of_a_reply(world, method, device), most_tokens(world)
    one = reply.decode
    said = Cost(tokens * one.flop, tokens * one.bytes_moved, one.peak_bytes)
    for _ in range(count):
        yield from device.compute(Work(reply.prefill))
        yield from device.compute(Work(said, passes=tokens))
