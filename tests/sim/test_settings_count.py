"""Every setting of every method reaches what it is for: with another value what is learned, or the
day alone, is another.
"""

import dataclasses
import runpy
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.scenario.settings import why_unread

every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, METHODS = every_method["KINDS"], every_method["METHODS"]
WORLD = {
    "task": {
        "dataset": {"path": "texts.csv"},
        "max_tokens": 16,
        "train": 22,
        "test": 12,
        "partition": {"kind": "dirichlet", "alpha": 0.5, "min_size": 6},
    },
    "fleet": [
        {"count": 2, "device": "jetson-tx2", "backbone": "random-bert-l1", "link": "lte"},
        {"count": 1, "device": "raspberry-pi-4", "backbone": "random-bert", "link": "lte-driving"},
    ],
    "arrivals": {"kind": "at-once"},
    "evaluate_every": 1,
}
SMALL = {
    "rounds": 2,
    "participation": 0.7,
    "epochs": 2,
    "local_epochs": 1,
    "device_batch": 4,
    "server_batch": 6,
    "replay": 4,
    "answers": 8,
    "buffer": 2,
    "concurrency": 1.0,
    "local_steps": 2,
    "evaluated_devices": 2,
}
# of several kinds of a method those that are looked at, and the settings that are a kind's alone
BESIDES = {
    "fedavg-adapter": {"bottleneck", "adapters"},
    "fedbuff": {"buffer", "server_optimiser", "wire", "wire_down", "error_feedback"},
    "upload-raw-text": {"update_share_on_arrival"},
}
LIKE_OTHERS = {"fedavg-bitfit", "fedavg-full", "splitfed-v2"}
# what a value is changed to where half of it, one more, or another of few words would be nothing to
# see
CHANGED = {
    "ship_side_network": False,
    "learning_rate": 2e-3,
    "weight_decay": 0.5,
    "proximal_mu": 0.5,
    "over_selection": 1.5,
    "deadline": 0.05,
    "taps": 1,
    "backbone": "random-bert-l1",
    "ranks": {"jetson-tx2": 2},
    "alpha": 3.0,
    "width": 24,
    "averaging": 0.0,
    "warm_up": 1.0,
    "variance_threshold": 1e9,
    "bottleneck": 5,
    "v_start": 1e-3,
    "momentum": 0.9,
    "penalty": 100.0,
    "protection": {"activation_noise": 0.5},
    "wire": "int4",
    "wire_down": "int4",
    "differential_privacy": {"clip": 0.01},
}
BASES = {  # settings that must hold for another to be seen
    **{
        (kind, "error_feedback"): {"wire": ["top-0.1", "int8"]}
        for kind in ("fedavg-lora", "fedavg-adapter", "fedbuff")
    },
    ("fwdllm", "asks"): {"variance_threshold": 1e9},
    ("fwdllm", "variance_threshold"): {"variance_threshold": 1e-12},
    ("fwdllm", "most_asks"): {"variance_threshold": 1e-12, "most_asks": 2},
    ("fwdllm", "warm_up"): {"warm_up": 0.0, "rounds": 4},
    **{
        (kind, "momentum"): {"optimiser": "sgd", "learning_rate": 0.05}
        for kind in ("fedavg-lora", "fedasync", "flexlora", "local-lora")
    },
    **{
        (kind, f"server_optimiser.{name}"): {"server_optimiser": {"kind": "fedadam"}}
        for kind in ("fedavg-lora", "fedbuff")
        for name in ("beta1", "beta2", "tau")
    },
    **{
        (kind, f"side_network.{name}"): {"side_network": {"skip": "ridge", **more}}
        for kind in ("fed-mobillm", "centralised", "single-side-network", "pae-mobillm")
        for name, more in (("penalty", {}), ("adapters", {"adapters": 0.0}))
    },
    ("fedasync", "staleness.b"): {"staleness": {"kind": "hinge", "b": 0}},
}
CLOCK = {
    "cache",
    "ship_side_network",
    "evaluate_every",
    "gradient_checkpointing",
    "overlap",
    "shared_seeds",
}  # not what is learned
OF_STEPS = {"learning_rate", "weight_decay", "replay", "update_share_on_arrival", "epochs"}
UNSEEN = {  # for what is not in this small world
    ("splitfed-v1", "layers"): "its shallowest backbone has one layer",
    **dict.fromkeys(
        (
            (kind, "taps")
            for kind in (
                "fed-mobillm",
                "pae-mobillm",
                "mobillm",
                "single-side-network",
                "local-lst",
            )
        ),
        "its shallowest backbone has one layer",
    ),
    **{
        (kind, f"side_network.{name}"): f"its {who} no records, so that nothing is solved"
        for kind, who in (("mobillm", "server keeps"), ("local-lst", "devices keep"))
        for name in ("skip", "penalty", "adapters")
    },
    ("pae-mobillm", "cache"): "test_pae_mobillm.py holds both ways",
    ("fedavg-lora", "differential_privacy"): "for fleets of one backbone: test_coded_updates.py",
    ("upload-raw-text", "bytes_per_token"): "texts are charged by their own bytes",
}


def config_of(kind: str) -> type:
    return next(
        m.Config
        for m in METHODS
        if kind in typing.get_args(m.Config.model_fields["kind"].annotation)
    )


def small(kind: str) -> dict:
    known = config_of(kind).model_fields.keys() - ({"buffer"} if kind == "fedasync" else set())
    return {"kind": kind, **{k: v for k, v in SMALL.items() if k in known}}


def another(name: str, annotation: object, value: object) -> object:
    """A value of the same type that is not this one; None if there is none."""
    if typing.get_origin(annotation) is typing.Literal:
        return next((other for other in typing.get_args(annotation) if other != value), None)
    if name in CHANGED and CHANGED[name] != value:
        return CHANGED[name]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        found = (another(name, part, value) for part in typing.get_args(annotation))
        return next((other for other in found if other is not None), None)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 if isinstance(value, float) else None


def settings_of(method: object) -> Iterator[tuple[str, object, object, object]]:
    """(dotted name, annotation, value, the settings that hold it) of all that can be set, one group
    deep.
    """
    for name, field in type(method).model_fields.items():
        value = getattr(method, name)
        if not dataclasses.is_dataclass(value):
            yield name, field.annotation, value, method
        elif not why_unread(method, name):
            hints = typing.get_type_hints(type(value))
            yield from (
                (f"{name}.{f.name}", hints[f.name], getattr(value, f.name), value)
                for f in dataclasses.fields(value)
            )


def with_setting(method: dict, name: str, value: object) -> dict:
    group, _, inner = name.rpartition(".")
    return (
        {**method, group: {**method.get(group, {}), inner: value}}
        if group
        else {**method, inner: value}
    )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LIKE_OTHERS])
def test_every_setting_changes_something(kind, simulate):
    def seen(method: dict) -> tuple[str, str, object]:
        if method.get("side_network", {}).get("adapters") == 0.0:  # there are no steps
            method = {k: v for k, v in method.items() if k not in OF_STEPS}
        sim = simulate(method=method, **WORLD)
        return sim.recorder.digest("", ""), sim.method.learner.digest(), sim.scenario.method

    plain, unheeded, unlearned, unknown = seen(small(kind)), [], [], []
    for name, annotation, value, holder in settings_of(plain[2]):
        own = BESIDES.get(kind)
        if name == "kind" or (kind, name) in UNSEEN or (own and name.partition(".")[0] not in own):
            continue
        base, group = BASES.get((kind, name)), name.rpartition(".")
        if base is None and why_unread(holder, group[2]):
            continue
        before, method = (
            (seen({**small(kind), **base}) if base else plain),
            {**small(kind), **(base or {})},
        )
        other = another(group[2], annotation, value)
        if other is not None:
            after = seen(with_setting(method, name, other))
            unheeded += [name] if after[:2] == before[:2] else []
            unlearned += [name] if after[1] == before[1] else []
        elif typing.get_origin(annotation) is not typing.Literal:
            unknown.append(name)
    assert not unheeded and not unknown and set(unlearned) <= CLOCK
