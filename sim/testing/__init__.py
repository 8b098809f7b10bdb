"""Does a method keep what every method here promises? `check_method` tries it on a small fleet.

from sim.testing import check_method

def test_my_method():
    check_method(MyMethod, rounds=2)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from learning.data.texts import TextDataset
from sim.kernel.device import Payload
from sim.kernel.learned import with_values
from sim.scenario import registry
from sim.scenario.schema import Scenario
from sim.simulation import Simulation

_FLEET = [
    {"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
    {"count": 1, "device": "raspberry-pi-5", "backbone": "random-bert-l1", "link": "wifi-home"},
]
_WORDS = [["who", "where", "when"], ["red", "green", "blue"], ["one", "two", "three"]]


def check_method(method: type, kind: str | None = None, **settings: Any) -> None:
    """Raise AssertionError, saying which promise is broken, unless a method keeps all of these.

    A dry run has the very spans of a real one (where the schedule depends on what is learned, as
    by a gate on gradients, switch that off in `settings`). The same seed gives the same digest,
    with one worker and with two. Every payload is as many bytes as the clock was charged for it,
    and each lands. No device needs more memory than `peak_bytes` says, and what is sent to devices
    after the training is what `delivery_bytes` says. The run ends by itself, with updates, and it
    ends, too, where a device leaves in the middle.

    `kind` is the name to try it under, by default the first of its own; `settings` are the
    method's, e.g. few rounds. It takes some seconds and needs no fetched weights.
    """
    name = kind or _own_kind(method)
    if name not in registry.known():
        registry.register(method, name)
    given = {"kind": name, **settings}
    real, payloads = _run(given, dry=False)
    dry, _ = _run(given, dry=True)
    assert dry.recorder.spans().equals(real.recorder.spans()), (
        "a dry run has other spans than a real one: the schedule depends on what is learned"
    )
    again, _ = _run(given, dry=False, workers=2)
    assert _digest(again) == _digest(real), (
        "the same seed gave another digest with two workers: something random is not from "
        "`world.streams`, or an update is not a pure function"
    )
    for payload in payloads:
        data = with_values(payload.data)
        which = f"payload {payload.number} of {payload.sender.id}"
        assert data is None or isinstance(data, bytes), f"{which} is {data!r:.60}, and no bytes"
        assert data is None or len(data) == payload.nbytes, (
            f"{which} is {len(data)} bytes and is charged as {payload.nbytes}"
        )
    ids = [device.id for device in real.devices]
    nbytes = real.recorder.sums_by_kind(ids)["upload"][0].astype(int).tolist()
    sent = dict(zip(ids, nbytes, strict=True))
    for device in real.devices:
        made = sum(payload.nbytes for payload in payloads if payload.sender is device)
        assert device.outcome != "ok" or sent[device.id] == made, (
            f"{made} bytes of {device.id} were made to be sent and {sent[device.id]} were"
        )
        most = real.method.peak_bytes(device)
        assert device.peak_memory_bytes <= most, (
            f"{device.id} took {device.peak_memory_bytes} bytes of memory; `peak_bytes` says {most}"
        )
        said, delivered = real.method.delivery_bytes(device), _delivered(real, device.id)
        assert delivered in (0, said), (
            f"{delivered} bytes were sent to {device.id} after the training; `delivery_bytes` says "
            f"{said}"
        )
        assert device.outcome in ("ok", "ended"), f"{device.id} ended: {device.outcome}"
    assert real.updates > 0, "no update was made"
    assert "undeclared" not in real.ledger.table(real.recorder.bytes_to)["kind"].to_pylist(), (
        "bytes are sent of which nothing is said: make `Contents` of them (sim/kernel/ledger.py)"
    )
    shrunk, _ = _run(given, dry=True, dropout={"times": [0.3 * real.ended.at_s, None, None]})
    assert shrunk.ended.reason in ("exhausted", "target"), (
        f"where a device leaves in the middle, the run ended as {shrunk.ended.reason}"
    )


def _delivered(sim: Simulation, device: str) -> int:
    """Bytes that a device received after the training."""
    end_s = math.inf if sim.trained_at_s is None else sim.trained_at_s
    return sum(
        row["nbytes"]
        for row in sim.recorder.spans().to_pylist()
        if row["actor"] == device and row["kind"] == "download" and row["start_s"] >= end_s
    )


def _own_kind(method: Any) -> str:
    for kind, entry in registry.known().items():
        if entry.method is method:
            return kind
    return f"checked-{method.__name__}"


def _run(
    method: dict[str, Any], dry: bool, workers: int = 1, **more: Any
) -> tuple[Simulation, list[Payload]]:
    """A finished run, and the payloads that its devices made."""
    scenario = Scenario.model_validate(
        {
            "name": "checked",
            "task": {"dataset": "trec-questions", "max_tokens": 16, "partition": {"kind": "iid"}},
            "fleet": _FLEET,
            "method": method,
            **more,
        }
    )
    sim = Simulation(scenario, dry=dry, workers=workers, texts=_texts())
    made: list[Payload] = []
    for device in sim.devices:
        vars(device)["payload"] = _noting(device.payload, made)
    sim.run()
    return sim, made


def _noting(make: Callable[..., Payload], made: list[Payload]) -> Callable[..., Payload]:
    """The same, which notes what it makes."""

    def noted(*what: Any) -> Payload:
        made.append(make(*what))
        return made[-1]

    return noted


def _texts() -> TextDataset:
    """Ninety texts of three classes that one word tells apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    texts = [
        " ".join(rng.permutation([*rng.choice(["a", "b", "c", "d"], 5), rng.choice(_WORDS[c])]))
        for c in labels
    ]
    return TextDataset("checked", texts, None, labels, ("0", "1", "2"))


def _digest(sim: Simulation) -> str:
    return str(sim.recorder.digest("", sim.method.learner.digest()))
