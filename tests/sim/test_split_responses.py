"""Split learning of responses: who says the words, what crosses the cut, and what it costs."""

import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from learning.backbones.catalogue import config_of, find
from learning.cost.count_training import count_step
from learning.cost.meter import CostMeter
from learning.cost.vocabulary import vocabulary_of
from learning.federated import split
from learning.federated.local_training import LocalTraining, inputs, train
from sim.kernel.device import Device
from sim.kernel.journal import Journal
from sim.kernel.learned import with_values
from sim.methods.split.shared import SplitTraining
from sim.methods.split.targets import packed_said, unpacked_said
from sim.simulation import RunCallbacks

responses = runpy.run_path(str(Path(__file__).with_name("responses.py")))
TASK, WORLD, METHODS, with_untied = (
    responses[name] for name in ("TASK", "WORLD", "METHODS", "with_untied")
)
SPLIT = ("splitfed-v1", "splitfed-v2", "fedbert")


@pytest.fixture(autouse=True)
def _talk(tmp_path):
    responses["write_talk"](tmp_path)


ONE = [{"count": 1, "device": "laptop-m1-pro", "backbone": "random-llama", "link": "wifi-home"}]


@pytest.fixture
def crossed(monkeypatch):
    """Payloads that go up, and bytes of every gradient that comes down, by device."""
    up, down, send, keep = [], {}, Device.send, SplitTraining.keep

    def sending(self, *args, **kwargs):
        payload = yield from send(self, *args, **kwargs)
        up.append(payload)
        return payload

    def keeping(self, device, done):
        gradient = keep(self, device, done)
        down[device.id] = down.get(device.id, 0) + len(with_values(gradient))
        return gradient

    monkeypatch.setattr(Device, "send", sending)
    monkeypatch.setattr(SplitTraining, "keep", keeping)
    return up, down


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_what_split_learning_sends_of_responses_is_what_is_charged(name, wire, simulate, crossed):
    up, down = crossed
    sim = simulate(method={**METHODS[name], "wire": wire, "rounds": 1}, **WORLD)
    for payload in up:
        assert len(with_values(payload.data)) == payload.nbytes
    for device in sim.devices:
        lengths = sim.lengths(device, device.samples)
        said = int(sim.response_lengths(device, device.samples).sum())
        vectors = int(lengths.sum()) * (4 * 48 if wire == "float32" else 48 + 4)
        texts, own = len(lengths), sim.method.charging.device_bytes(device)
        more = 4 * texts if name == "fedbert" else 8 * texts + 4 * said
        times = 2 if name == "fedbert" else 1
        mine = sum(p.nbytes for p in up if p.sender is device)
        assert mine == times * vectors + more + own
        assert down[device.id] == vectors
        trained = sim.method.learner.models[device.backbone].trainable()
        at_server = sim.method.learner._server_names
        assert own == 4 * sum(t.numel() for n, t in trained.items() if n not in at_server)


@pytest.mark.parametrize("name", SPLIT)
def test_tokens_to_be_said_go_up_in_splitfed_and_stay_in_fedbert(name, simulate):
    sim = simulate(method=METHODS[name], **WORLD)
    table = sim.ledger.table(sim.recorder.bytes_to).to_pylist()
    kinds = {row["kind"]: row for row in table if row["receiver"] == "server" and row["nbytes"]}
    stay = {"text", "label"} | ({"token ids"} if name == "fedbert" else set())
    assert sim.method.keeps_on_device == stay and not stay & kinds.keys()
    assert ("token ids" in kinds) == (name != "fedbert")
    if name != "fedbert":
        rounds = METHODS[name]["rounds"]
        said = sum(sim.response_lengths(d, d.samples).sum() for d in sim.devices)
        assert kinds["token ids"]["nbytes"] == 4 * rounds * said
        assert kinds["length"]["records"] == rounds * sum(len(d.samples) for d in sim.devices)


def test_the_server_rebuilds_what_is_to_be_said(simulate):
    sim = simulate(method=METHODS["splitfed-v1"], **WORLD)
    learner = sim.method.learner
    for device in sim.devices:
        tokens = learner.tokens(device.backbone, device.samples)
        ids_BT, mask_BT, segments_BT = inputs(tokens, range(len(tokens)))
        data = packed_said(tokens)
        found = unpacked_said(data + b"vectors", mask_BT)
        model = learner.models[device.backbone]
        wanted_M = model.targets(ids_BT, mask_BT, segments_BT, None)
        assert found.nbytes == len(data) and found.wanted.equal(wanted_M)
        assert model.targets(ids_BT, mask_BT, found.segments_BT, None).equal(wanted_M)


def test_split_learning_of_responses_is_local_training(simulate):
    """One device whose texts are one batch: with both sides' steps it trains what `fedavg-lora`
    would.
    """
    own = {"optimiser": "sgd", "learning_rate": 0.5, "dropout": 0, "device_batch": 1000}
    method = {"kind": "splitfed-v1", "peft": "lora", "rounds": 3, **own}
    sim = simulate(method=method, **{**WORLD, "fleet": ONE})
    learner, (device,) = sim.method.learner, sim.devices
    how = LocalTraining(3, 1000, 0.5, optimiser="sgd", schedule="constant", dropout=0)
    tokens = learner.tokens(device.backbone, device.samples)
    model = learner.models[device.backbone]
    labels = np.zeros(len(tokens), int)
    local = train(model, learner.initial, tokens, labels, how, 0)
    for name, tensor in local.state.items():
        assert np.allclose(learner.state.value[name], tensor, atol=1e-5), name
        assert not learner.initial[name].equal(tensor)


def test_a_fleet_of_cuts_learns_in_parts_what_it_learns_whole(simulate):
    """Texts of a device in one batch, whose order is another else."""
    how = {"rounds": 2, "learning_rate": 2e-3, "dropout": 0, "device_batch": 1000}
    split_up = simulate(method={"kind": "splitfed-v1", "peft": "lora", **how}, **WORLD)
    whole = simulate(method={"kind": "fedavg-lora", "participation": 1.0, **how}, **WORLD)
    learned, start = (split_up.method.learner.state.value, split_up.method.learner.initial)
    for name, tensor in whole.method.learner.state.value.items():
        assert np.allclose(learned[name], tensor, atol=1e-6) and not tensor.equal(start[name])
    assert split_up.score == pytest.approx(whole.score, rel=1e-5)


@pytest.mark.parametrize("name", SPLIT)
def test_all_words_are_charged_once_and_where_they_are_said(name, simulate):
    peft = METHODS[name].get("peft", "full")
    how = {"rounds": 1, "device_batch": 1000}
    sim = simulate(dry=True, jitter=False, method={**METHODS[name], **how}, **WORLD)
    spans = sim.recorder.spans().to_pylist()
    whole = words = 0
    for device in sim.devices:
        said = int(sim.response_lengths(device, device.samples).sum())
        lengths, config = sim.lengths(device, device.samples), config_of(find(device.backbone))
        options = {"bottleneck": 16, "adapters": "houlsby"} if peft == "adapter" else {}
        # counted with a head of two classes, of which a text takes three products
        step = count_step(config, peft, len(lengths), int(lengths.max()), **options)[0].flop
        whole += step - 3 * 2 * 2 * 48 * len(lengths)
        mine = vocabulary_of(config).training(said, peft == "full").flop
        assert mine == said * (6 if peft == "full" else 4) * 48 * 2048
        words += mine
        own = sum(s["flop"] for s in spans if s["actor"] == device.id and s["kind"] == "compute")
        of, shape = sim.method.charging, (len(lengths), int(lengths.max()))
        parts = [of.parts[device.backbone][part] for part in of.own]
        below = sum(p.forward(*shape).flop + p.backward(*shape).flop for p in parts)
        assert own == pytest.approx(below + mine * (name == "fedbert"), rel=1e-9)
    total = sum(s["flop"] for s in spans if s["kind"] in ("compute", "train"))
    assert total == pytest.approx(whole + words, rel=1e-9)


@pytest.mark.parametrize(("name", "part"), [("splitfed-v1", 1), ("fedbert", 2)])
def test_the_part_with_the_words_costs_what_a_real_step_does(name, part, simulate):
    """Texts of one length, so that no padding is charged: the pass, the loss and both gradients."""
    plain = {"path": "talk.jsonl", "prompt": "ask", "response": "reply"}
    task = {**TASK, "dataset": plain, "max_tokens": 4}
    sim = simulate(method=METHODS[name], **{**WORLD, "task": task})
    learner, device = sim.method.learner, sim.devices[0]
    tokens = learner.tokens(device.backbone, device.samples)
    assert set(tokens.lengths()) == {4}
    batch = inputs(tokens, range(len(tokens)))
    model, piece = learner.models[device.backbone], learner.parts[device.backbone][part]
    wanted_M, state = model.targets(*batch, None), piece.trainable()
    h_BTD = model.backbone.get_input_embeddings()(batch[0]).detach()
    meter = CostMeter()
    meter.ignore([h_BTD, *batch, wanted_M, *piece.parameters(), *piece.buffers(), *state.values()])
    with meter:
        split.learn(piece, state, h_BTD, batch[1], wanted_M, segments_BT=batch[2])
    parts, shape = sim.method.charging.parts[device.backbone], (len(tokens), 4)
    charged = sim.method.charging.backward(device, device.samples, part)
    assert charged.flop + parts[part].forward(*shape).flop == meter.flop
    peak = charged.peak_bytes
    if name == "fedbert":  # a device's has what it holds as well, less the backbone's weights
        kept = sum(parts[own].kept_bytes() for own in (0, 2))
        peak -= kept - sim.costing.weight_bytes(device.member)
    assert peak == pytest.approx(meter.peak_bytes, rel=0.1)


def test_fedbert_needs_room_for_the_vocabulary_its_gradients_and_the_logits(simulate):
    sim = simulate(dry=True, method=METHODS["fedbert"], **WORLD)
    words = 4 * 2048 * 48
    for device in sim.devices:
        assert device.peak_memory_bytes == sim.method.peak_bytes(device)
        # weights with two moments of one tensor, which is both; then two gradients of it
        assert sim.method.charging.device_bytes(device) == words
        assert sim.method.peak_bytes(device) >= 5 * words
    loose = simulate(dry=True, method=METHODS["fedbert"], **with_untied())
    for device in loose.devices:
        assert loose.method.charging.device_bytes(device) == 2 * 4 * 300 * 24


def test_a_vocabulary_of_its_own_is_trained_at_the_server(simulate, crossed):
    full = {"kind": "splitfed-v1", "rounds": 2, "learning_rate": 1e-2, "device_batch": 8}
    world = with_untied()
    sim = simulate(method=full, **world)
    learner, charging = sim.method.learner, sim.method.charging
    (name,) = (n for n in learner.initial if n.startswith("head."))
    assert name in learner._server_names
    assert not learner.initial[name].equal(learner.state.value[name])
    assert all(len(with_values(payload.data)) == payload.nbytes for payload in crossed[0])
    both = charging.device_bytes(sim.devices[0]) + charging.server_bytes(sim.devices[0])
    assert both == sum(4 * t.numel() for t in learner.initial.values())


def test_a_dry_run_charges_a_vocabulary_of_its_own_alike(simulate):
    full = {"kind": "splitfed-v1", "rounds": 1, "device_batch": 8}
    real, dry = (simulate(dry=is_dry, method=full, **with_untied()) for is_dry in (False, True))
    assert dry.recorder.spans().equals(real.recorder.spans())


@pytest.mark.parametrize(
    "name", ["splitfed-v1", pytest.param("fedbert", marks=pytest.mark.thorough)]
)
def test_split_learning_lowers_the_perplexity_of_every_depth(name, simulate):
    rate = {"learning_rate": 2e-2 if name == "splitfed-v1" else 5e-3}
    sim = simulate(method={**METHODS[name], **rate, "rounds": 6, "device_batch": 4}, **WORLD)
    metrics = sim.recorder.metrics()
    for backbone in ("random-llama", "random-llama-l2"):
        mine = metrics.filter(
            pc.and_(
                pc.equal(metrics["name"], "validation_perplexity"),
                pc.equal(metrics["group"], backbone),
            )
        )
        first, *_, last = mine["value"].to_pylist()
        assert first > (1.25 if name == "splitfed-v1" else 50) * last


def test_a_split_run_keeps_replies_and_lora_as_peft_reads_it(scenario_file, tmp_path, mobifleet):
    method = {**METHODS["splitfed-v1"], "learning_rate": 2e-2}
    shown = mobifleet("run", scenario_file(method=method, **WORLD), "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    said = json.loads((tmp_path / "out" / "generations.json").read_text())
    assert {*said["replies"]} == {"random-llama", "random-llama-l2"}
    assert any(one["before"] != one["after"] for one in said["replies"]["random-llama"])
    kept = tmp_path / "out" / "model" / "peft"
    assert json.loads((kept / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize(
    "name", ["splitfed-v1", pytest.param("fedbert", marks=pytest.mark.thorough)]
)
def test_a_split_run_that_was_interrupted_goes_on_to_the_same_bits(name, simulate, mark, tmp_path):
    straight, looks = simulate(method=METHODS[name], **WORLD), []
    callbacks = RunCallbacks(on_progress=looks.append, should_stop=lambda: len(looks) >= 3)
    journal = Journal(tmp_path, False)
    stopped = simulate(method=METHODS[name], journal=journal, callbacks=callbacks, **WORLD)
    assert stopped.ended.reason == "interrupted"
    resumed = simulate(method=METHODS[name], journal=Journal(tmp_path, resume=True), **WORLD)
    assert resumed.ended.reason == "exhausted" and mark(resumed) == mark(straight)


def test_split_learning_of_stated_sizes_reads_no_text(simulate):
    task = {"kind": "language-modelling", "train": 40, "test": 8}
    sized = {**task, "dataset": {"tokens": 60, "response_tokens": 20}}
    method = {"kind": "splitfed-v1", "peft": "lora", "rounds": 1}
    sim = simulate(dry=True, method=method, **{**WORLD, "task": sized})
    own = sum(sim.method.charging.device_bytes(device) for device in sim.devices)
    assert sim.recorder.uplink_bytes == 40 * (60 * 48 * 4 + 8 + 4 * 20) + own
