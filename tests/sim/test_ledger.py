"""Who has seen what: every byte of every method is accounted for by kind, what a method declares to
keep stays on the device, and no payload of PAE or Fed MobiLLM carries a label or a token.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as tensors_of

from learning.backbones.tokens import tokenise
from learning.side.activations import decode
from sim.kernel.device import Device, Payload
from sim.kernel.learned import with_values
from sim.kernel.ledger import (
    DATA_KINDS,
    BrokenDeclaration,
    Contents,
    Item,
    Ledger,
    contents_of,
    only,
)
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.scenario.checks import problems
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.simulation import Simulation
from sim.testing import check_method

every = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, small, CALM = (every[name] for name in ("KINDS", "small", "CALM"))
REAL = {name: value for name, value in CALM.items() if name != "cost_as"}


@pytest.fixture
def build(scenario_file):
    """As `simulate`, but not run yet."""

    def built(dry=False, **changes) -> Simulation:
        path = scenario_file(**changes)
        return Simulation(load(str(path), Scenario, (), [], problems), path.parent, dry)

    return built


def sums(sim) -> dict[str, int]:
    """Bytes by receiver that the ledger knows of."""
    under_way = {"server": sim.recorder.uplink_bytes, "devices": sim.recorder.downlink_bytes}
    rows = sim.ledger.table(under_way).to_pylist()
    return {
        who: sum(row["nbytes"] for row in rows if row["receiver"] == who and row["way"] == "sent")
        for who in under_way
    }


def seen_by(sim, receiver: str) -> set[str]:
    rows = sim.ledger.table({"server": 0, "devices": 0}).to_pylist()
    return {row["kind"] for row in rows if row["receiver"] == receiver and row["way"] != "cut off"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_calm_run_is_some_kind(simulate, kind):
    sim = simulate(dry=True, **CALM, method=small(kind))
    under_way = {"server": sim.recorder.uplink_bytes, "devices": sim.recorder.downlink_bytes}
    if kind in ("fedasync", "fedbuff"):  # which end while devices still send
        assert all(0 < there <= under_way[who] for who, there in sums(sim).items())
    else:
        assert sums(sim) == under_way
    assert "undeclared" not in seen_by(sim, "server") | seen_by(sim, "devices")


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_that_breaks_the_declaration_fails_the_run(build, monkeypatch, kind):
    sim = build(dry=True, **CALM, method=small(kind))
    keeps = sorted(getattr(sim.method, "keeps_on_device", ()))
    if not keeps or kind.startswith("local-"):  # nothing is kept, or nothing is sent at all
        return
    make = Device.payload

    def with_more(self, samples, contents, data=None, version=0):
        items = [item for item, _ in contents.items]
        return make(self, samples, Contents(*items, Item(keeps[0], 4)), data, version)

    monkeypatch.setattr(Device, "payload", with_more)
    with pytest.raises(BrokenDeclaration, match=f"would upload {keeps[0]}"):
        sim.run()
    assert sim.recorder.uplink_bytes == 0  # before anything is sent


def test_who_says_nothing_of_his_bytes_keeps_no_declaration(simulate, monkeypatch):
    make = Device.payload
    monkeypatch.setattr(
        Device,
        "payload",
        lambda self, samples, contents, *more: make(self, samples, contents.nbytes, *more),
    )
    with pytest.raises(BrokenDeclaration, match=r"undeclared.*say what it holds"):
        simulate(dry=True, **CALM, method=small("fedavg-lora"))


def test_what_is_declared_in_the_papers_words(simulate):
    """PAE MobiLLM: no label; MobiLLM and cross-entropy: labels; FedBert: none; SplitFed: labels."""
    said = {
        kind: seen_by(simulate(dry=True, **CALM, method=small(kind)), "server")
        for kind in ("pae-mobillm", "fed-mobillm", "mobillm", "fedbert", "splitfed-v1", "fedmezo")
    }
    assert not said["pae-mobillm"] & DATA_KINDS and not said["fed-mobillm"] & DATA_KINDS
    assert "label" in said["mobillm"] and "label" in said["splitfed-v1"]
    assert "label" not in said["fedbert"] and "gradient" in said["fedbert"]
    assert said["fedmezo"] == {"seed", "derivative"}
    cross = {**small("fed-mobillm"), "loss": "cross-entropy"}
    assert "label" in seen_by(simulate(dry=True, **CALM, method=cross), "server")
    texts = simulate(dry=True, **CALM, method=small("upload-raw-text"))
    assert {"text", "label"} <= seen_by(texts, "server")
    assert seen_by(simulate(dry=True, **CALM, method=small("centralised")), "server") >= {
        "text",
        "label",
    }


def test_what_is_cut_off_is_told_apart_from_what_arrived(simulate):
    sim = simulate(dry=True, **CALM, method=small("fedavg-lora"), stop={"horizon": "100 ms"})
    arrived = sums(sim)
    under_way = {"server": sim.recorder.uplink_bytes, "devices": sim.recorder.downlink_bytes}
    rows = sim.ledger.table(under_way).to_pylist()
    cut = {row["receiver"]: row["nbytes"] for row in rows if row["way"] == "cut off"}
    assert cut and all(arrived[who] + cut.get(who, 0) == under_way[who] for who in under_way)


def test_bytes_of_several_layers_are_divided_to_the_last_one():
    ledger = Ledger()
    ledger.note("server", Contents(Item("activation", 10, (0, 2, 4), "mean")), 7)
    ledger.note(
        "server", Contents(Item("activation", 3, (2,), "mean"), only("label", 4).items[0][0]), 1
    )
    rows = ledger.table({"server": 20}).to_pylist()
    assert [(r["kind"], r["layer"], r["nbytes"], r["payloads"], r["records"]) for r in rows] == [
        ("activation", 0, 4, 1, 7),
        ("activation", 2, 6, 2, 8),
        ("activation", 4, 3, 1, 7),
        ("label", None, 4, 1, 1),
        ("undeclared", None, 3, 0, 0),
    ]


@pytest.mark.parametrize("wrong", [("labels", 4), ("label", -1)])
def test_an_item_of_no_kind_or_of_negative_size_is_refused(wrong):
    with pytest.raises(ValueError, match=r"no kind|bytes"):
        Item(*wrong)


class Silent(FedMobiLLM):
    """Says nothing of what it sends, and declares nothing."""

    keeps_on_device = ()

    def payload(self, device, samples, activations):
        made = super().payload(device, samples, activations)
        return Payload(made.number, device, samples, contents_of(made.nbytes), made.data)


def test_check_method_asks_what_is_sent():
    with pytest.raises(AssertionError, match="of which nothing is said"):
        check_method(Silent, "silent")


# --- what the bytes themselves hold


def payloads_of(sim) -> list:
    made = []
    for device in sim.devices:
        make = device.payload

        def noted(*what, make=make):
            made.append(make(*what))
            return made[-1]

        vars(device)["payload"] = noted
    sim.run()
    return made


METHOD = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("fed-mobillm"),
            "wire": st.sampled_from(["float32", "int8", ["random-4", "top-0.5", "float16"]]),
            "taps": st.sampled_from(["interval", 1, [1]]),
            "readout": st.sampled_from(["first", "last", "mean"]),
            "backbone_prediction": st.sampled_from(["uniform", "random-head", "own-head"]),
            "device_batch": st.integers(1, 9),
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("pae-mobillm"),
            "wire": st.sampled_from(["float32", "bfloat16", "int8"]),
            "shortcut": st.sampled_from(["pivot", "matrix"]),
            "cache": st.just(False),
            "epochs": st.integers(1, 2),
            "device_batch": st.integers(1, 9),
        }
    ),
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(method=METHOD, seed=st.integers(0, 2**16))
def test_no_payload_of_pae_or_fed_mobillm_carries_a_label_or_a_token(build, method, seed):
    settings_ = {**method, "side_network": {"skip": "none"}}
    if method["kind"] == "fed-mobillm":
        settings_ |= {"replay": 2, "server_batch": 4}
    sim = build(seed=seed, **REAL, method=settings_)
    labels, texts = sim.task.labels, sim.task.texts
    spec = sim.costing.learned["random-bert"]
    for payload in payloads_of(sim):
        tensors = tensors_of(with_values(payload.data))
        of_activations = {"values", "scale", "places"}
        assert set(tensors) <= {"samples", "targets", "lengths"} | of_activations
        whole = {n: t for n, t in tensors.items() if n not in of_activations | {"targets"}}
        truth = labels[payload.samples]
        words = tokenise(spec, [texts.texts[i] for i in payload.samples], None, 16)
        for name, numbers in whole.items():
            if name == "samples":
                assert numbers.tolist() == payload.samples.tolist()
            else:
                assert name == "lengths" and numbers.tolist() == words.lengths().tolist()
        # neither a class's number nor its one-hot vector; the difference is a real number
        targets = tensors["targets"].astype(np.float32)
        assert targets.shape == (len(truth), len(sim.task.class_names))
        assert not np.array_equal(targets, np.eye(targets.shape[1], dtype=np.float32)[truth])
        if "lengths" not in tensors:
            assert np.array_equal(decode(with_values(payload.data)).samples, payload.samples)
