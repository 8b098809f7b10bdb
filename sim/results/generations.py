"""What trained language models say: greedy replies to a fixed sample of test prompts before and
after the training, how near they come to what was said, and what a reply costs a device.
"""

from __future__ import annotations

from typing import Any

from devices import compute
from sim.kernel.device import Device
from sim.simulation import Simulation
from sim.world.replies import cost_of_a_reply, most_tokens

GENERATIONS = "generations.json"


def generations(sim: Simulation) -> dict[str, Any]:
    """Of every backbone its `replies` (prompt, reference, before, after), its `scores` and what a
    reply `costs` its first device; empty where nothing is said, or the method's models cannot be
    asked.
    """
    wanted = sim.scenario.task.generate
    ask = getattr(sim.method.learner, "replies", None)
    if sim.dry or not sim.task.has_responses or not wanted or ask is None:
        return {}
    from learning.next_token.replies import nearness

    samples = sim.task.test[:wanted]
    most = most_tokens(sim)
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
        found["costs"][name] = cost_of(sim, device)
    return found


def cost_of(sim: Simulation, device: Device) -> dict[str, float]:
    """What a reply takes a device: reading the prompt at once (prefill), then a token at a time
    (decode).
    """
    reply, most = cost_of_a_reply(sim, sim.method, device), most_tokens(sim)
    prefill_s, decode_s = (
        compute.seconds(device.profile, device.member.engine, cost.flop, cost.bytes_moved)
        for cost in (reply.prefill, reply.decode)
    )
    return {
        "prompt_tokens": reply.prompt_tokens,
        "prefill_s": prefill_s,
        "prefill_flop": reply.prefill.flop,
        "decode_s_a_token": decode_s,
        "decode_flop_a_token": reply.decode.flop,
        "kv_cache_bytes": reply.cache_bytes,
        "seconds": prefill_s + most * decode_s,
        "joules": (prefill_s + most * decode_s) * device.power.compute_w,
        "tokens": most,
    }
