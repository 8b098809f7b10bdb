"""What trained language models say: greedy replies to a fixed sample of test prompts before and
after the training, how near they come to what was said, and what a reply costs a device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from devices import compute
from learning.backbones.catalogue import config_of
from learning.cost.costs import FORMATS, Cost
from learning.cost.vocabulary import kv_cache_bytes, vocabulary_of
from sim.kernel.device import Device
from sim.simulation import Simulation

GENERATIONS = "generations.json"
MOST_TOKENS = 32  # of a reply


def generations(sim: Simulation) -> dict[str, Any]:
    """Of every backbone its `replies` (prompt, reference, before, after), its `scores` and what a
    reply `costs` its first device; empty where nothing is said, or the method's models cannot be
    asked.
    """
    wanted, learner = sim.scenario.task.generate, sim.method.learner
    ask = getattr(learner, "replies", None) if learner.has_one_model else None
    if sim.dry or not sim.task.has_responses or not wanted or ask is None:
        return {}
    from learning.next_token.replies import nearness

    samples = sim.task.test[:wanted]
    most = min(MOST_TOKENS, sim.task.max_tokens)
    texts = sim.task.texts
    assert texts is not None and texts.responses is not None, "of data with responses"
    references = [texts.responses[i] for i in samples]
    found: dict[str, Any] = {"replies": {}, "scores": {}, "costs": {}}
    for name, said in ask(samples, most).items():
        befores, afters = ([pair[k] for pair in said] for k in (0, 1))
        found["replies"][name] = [
            {"prompt": texts.texts[i], "reference": r, "before": b, "after": a}
            for i, r, b, a in zip(samples, references, befores, afters, strict=True)
        ]
        found["scores"][name] = {
            "prompts": len(samples),
            "before": nearness(befores, references),
            "after": nearness(afters, references),
        }
    for name in sim.costing.learned:
        device = next(d for d in sim.devices if d.backbone == name)
        found["costs"][name] = cost_of_a_reply(sim, device, most)
    return found


def cost_of_a_reply(sim: Simulation, device: Device, most: int) -> dict[str, float]:
    """What it takes a device to read a prompt of its texts' mean length at once (prefill), and then
    to say a token at a time (decode): each reads all weights, the output embedding and the cache of
    keys and values.
    """
    member, costing = device.member, sim.costing
    lengths = sim.lengths(device, device.samples) - sim.response_lengths(device, device.samples)
    prompt = max(1, round(float(lengths.mean())))
    config = config_of(costing.charged[device.backbone])
    width = FORMATS[costing.precision[member.group]].other
    words = vocabulary_of(config).forward(1, width)
    prefill = costing.forward(member, np.array([prompt])) + words
    architecture = costing.architectures[device.backbone]
    context = prompt + most
    longer, shorter = (architecture.forward(1, n) for n in (context, context - 1))
    cache = kv_cache_bytes(config, context, width)
    moved = costing.forward(member, np.array([1])).bytes_moved + cache
    decode = Cost(longer.flop - shorter.flop, moved) + words
    prefill_s, decode_s = (
        compute.seconds(device.profile, member.engine, cost.flop, cost.bytes_moved)
        for cost in (prefill, decode)
    )
    return {
        "prompt_tokens": prompt,
        "prefill_s": prefill_s,
        "prefill_flop": prefill.flop,
        "decode_s_a_token": decode_s,
        "decode_flop_a_token": decode.flop,
        "kv_cache_bytes": cache,
        "seconds": prefill_s + most * decode_s,
        "joules": (prefill_s + most * decode_s) * device.power.compute_w,
        "tokens": most,
    }
