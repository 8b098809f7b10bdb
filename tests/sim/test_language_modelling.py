"""Next-token tasks on the clock: every method that takes them, dry beside real, bytes beside
payloads, less being better, replies, and what is refused.
"""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from learning.metrics import merit, score_responses
from sim.results.generations import cost_of
from sim.results.run import open_run
from sim.results.summary import device_table
from sim.world.replies import cost_of_a_reply, peak_with_replies

responses = runpy.run_path(str(Path(__file__).with_name("responses.py")))
TASK, WORLD, METHODS, SIDE, UNTIED, with_untied = (
    responses[name] for name in ("TASK", "WORLD", "METHODS", "SIDE", "UNTIED", "with_untied")
)
SPLIT = ("splitfed-v1", "splitfed-v2", "fedbert")
FAST = ("fed-mobillm-lm", "fedavg-lora", "spry", "splitfed-v1", "fedbert")


@pytest.fixture(autouse=True)
def _talk(tmp_path):
    responses["write_talk"](tmp_path)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.thorough) for n in METHODS]
)
def test_every_method_learns_and_a_dry_run_is_charged_alike(name, simulate):
    real = simulate(method=METHODS[name], **WORLD)
    again = simulate(method=METHODS[name], **WORLD)
    dry = simulate(dry=True, method=METHODS[name], **WORLD)
    assert math.isfinite(real.score) and real.score > 1
    assert real.method.learner.digest() == again.method.learner.digest()
    assert real.recorder.digest("", "") == again.recorder.digest("", "")
    gated = name == "fwdllm"  # whose gate reads gradients, which a dry run has not
    if not gated:
        assert dry.recorder.spans().equals(real.recorder.spans())
    assert {d.outcome for d in real.devices} == {"ok"}


def test_side_tuning_lowers_the_perplexity_of_every_depth(simulate):
    sim = simulate(method={**SIDE, "passes": 3}, **WORLD)
    metrics = sim.recorder.metrics()
    for backbone in ("random-llama", "random-llama-l2"):
        mine = metrics.filter(
            pc.and_(pc.equal(metrics["name"], "perplexity"), pc.equal(metrics["group"], backbone))
        )
        values = mine["value"].to_pylist()
        assert values[0] > 1.5 * values[1] and values[1] >= values[-1]
    assert 1 <= len(sim.method.learner.chosen) <= 3  # a round that helps nobody is none


@pytest.mark.parametrize(
    "settings",
    [
        {"wire": "float32"},
        {"wire": "int8"},
        {"difference": "whole"},
        {"difference": "top-16", "positions": 2},
        {"positions": "last", "wire": "bfloat16"},
    ],
)
def test_what_is_sent_is_as_long_as_what_is_charged(settings, simulate, monkeypatch):
    from sim.methods.side_tuning.next_token import NextTokenSideTuning

    sent = {}
    held = NextTokenSideTuning.held

    def noting(self, device, first):
        contents = held(self, device, first)
        sent[device.id, first] = contents.nbytes
        return contents

    monkeypatch.setattr(NextTokenSideTuning, "held", noting)
    sim = simulate(method={**SIDE, **settings}, **WORLD)
    dry = simulate(dry=True, method={**SIDE, **settings}, **WORLD)
    assert dry.recorder.spans().equals(sim.recorder.spans())
    learner, states = sim.method.learner, {}
    for device in sim.devices:
        for first in (True, False):
            data = learner._answered(
                sim.method.client_update, device.backbone, device.samples, states, first
            )
            assert len(data) == sent[device.id, first]


def test_who_missed_passes_downloads_the_moves_of_all_of_them(simulate, payloads, spans):
    method = {**SIDE, "passes": 4, "participation": 0.4}
    sim = simulate(dry=True, method=method, seed=1, **WORLD)
    last = {}
    for payload in payloads:
        last[payload.sender] = max(last.get(payload.sender, 0), payload.version)
    assert max(last.values()) == 3
    downloads = [s["actor"] for s in spans(sim, "download")]
    assert any(downloads.count(device.id) < version for device, version in last.items())
    for device in sim.devices:
        got = sum(s["nbytes"] for s in spans(sim, "download", actor=device.id))
        assert got == sim.method.moves_bytes(device, 1) * last.get(device, 0)


def test_every_form_of_a_difference_teaches_what_its_gradient_does(simulate):
    found = {
        difference: simulate(method={**SIDE, "difference": difference, "wire": "float32"}, **WORLD)
        for difference in ("gradient", "whole", "top-1")
    }
    scores = {difference: sim.score for difference, sim in found.items()}
    for difference in ("whole", "top-1"):
        assert scores[difference] == pytest.approx(scores["gradient"], rel=0.02)
    sent = {difference: sim.recorder.uplink_bytes for difference, sim in found.items()}
    assert sent["whole"] > 5 * sent["gradient"] > 5 * sent["top-1"]


def test_fewer_places_teach_less(simulate):
    scores = [
        simulate(method={**SIDE, "positions": positions}, **WORLD).score
        for positions in ("response", 2, "last")
    ]
    assert scores[0] < scores[1] < scores[2]


def test_a_device_whose_first_pass_was_not_finite_sends_its_states_again(simulate, monkeypatch):
    from sim.methods.side_tuning.next_token_learner import NextTokenLearner

    answered, broken = NextTokenLearner._answered, []

    def once_broken(self, update, backbone, samples, side, first):
        if not broken:
            broken.append(samples)
            return b""
        return answered(self, update, backbone, samples, side, first)

    monkeypatch.setattr(NextTokenLearner, "_answered", once_broken)
    sim = simulate(method={**SIDE, "passes": 3}, **WORLD)
    (device,) = (d for d in sim.devices if d.samples is broken[0])
    assert len(sim.method.learner._kept[device.id].value) > 0
    spans = sim.recorder.spans().to_pylist()
    sent = [s["nbytes"] for s in spans if s["kind"] == "upload" and s["actor"] == device.id]
    assert sent[0] == sent[1] > sent[2]
    assert sim.tally.diverged["device"] == device.id


def test_no_label_text_or_token_is_uploaded(simulate):
    sim = simulate(method=SIDE, **WORLD)
    table = sim.ledger.table(sim.recorder.bytes_to).to_pylist()
    kinds = {row["kind"] for row in table if row["receiver"] == "server" and row["nbytes"]}
    assert kinds == {"activation", "prediction difference", "frame"}


def test_a_device_needs_room_for_the_logits_of_its_batch(simulate):
    small, large = (
        simulate(dry=True, method={**SIDE, "device_batch": n}, **WORLD) for n in (1, 16)
    )
    peaks = [max(device_table(sim)["peak_memory_bytes"].to_pylist()) for sim in (small, large)]
    said = large.response_lengths(large.devices[0], large.devices[0].samples)
    assert peaks[1] - peaks[0] >= 3 * 4 * 2048 * (np.sort(said)[-16:].sum() - said.max()) * 0.5


def test_a_target_of_perplexity_is_reached_from_above(simulate):
    plain = simulate(method=SIDE, **WORLD)
    curve = plain.recorder.metrics()
    is_whole = pc.and_(pc.equal(curve["name"], "perplexity"), pc.equal(curve["group"], ""))
    first, *_, last = curve.filter(is_whole)["value"].to_pylist()
    target = (first + last) / 2
    sim = simulate(method=SIDE, stop={"target": target}, **WORLD)
    assert sim.target_reached and sim.ended.target["reached_at_s"] > 0
    assert not simulate(method=SIDE, stop={"target": 1.5}, **WORLD).target_reached


def test_perplexity_is_of_all_tokens_and_less_is_better():
    found_NS = np.array([[2.0, 1, 2], [10.0, 0, 4]])
    score = score_responses("perplexity", found_NS)
    assert score["loss"] == 2.0 and score["value"] == pytest.approx(math.e**2)
    share = score_responses("next-token-accuracy", found_NS)
    assert share["value"] == pytest.approx(1 / 6)
    assert merit("perplexity", 10) > merit("perplexity", 20)
    assert merit("accuracy", 0.3) == 0.3
    assert score_responses("perplexity", np.array([[np.nan, 0, 1]])) is None


def test_a_run_keeps_what_its_models_say(scenario_file, tmp_path, mobifleet):
    shown = mobifleet("run", scenario_file(method=SIDE, **WORLD), "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    assert "what random-llama-l2 says" in shown.out and "ROUGE-L" in shown.out
    assert (tmp_path / "out" / "figures" / "perplexity.png").is_file()
    done = open_run(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "generations.json").read_text())
    for name in ("random-llama", "random-llama-l2"):
        assert [one["prompt"] for one in said["replies"][name]] and len(said["replies"][name]) == 4
        assert {*said["replies"][name][0]} == {"prompt", "reference", "before", "after"}
        assert any(one["before"] != one["after"] for one in said["replies"][name])
        costs = said["costs"][name]
        assert costs["seconds"] == pytest.approx(
            costs["prefill_s"] + costs["tokens"] * costs["decode_s_a_token"]
        )
        assert 0 <= done.summary["generations"][name]["after"]["rouge_l"] <= 1
    assert done.summary["best"] == min(done.curve("perplexity")[1])  # the least is the best


def test_devices_that_learn_alone_say_what_one_of_each_backbone_has_learned(
    scenario_file, tmp_path, mobifleet
):
    method = {"kind": "local-lora", "rounds": 3, "learning_rate": 0.05, "device_batch": 4}
    file = scenario_file(method=method, **{**WORLD, "task": {**TASK, "device_replies": 2}})
    shown = mobifleet("run", file, "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    assert "replies of devices" in shown.out and "2 of each over" in shown.out
    said = json.loads((tmp_path / "out" / "generations.json").read_text())["replies"]
    assert {*said} == {"random-llama", "random-llama-l2"}
    for replies in said.values():
        assert any(one["before"] != one["after"] for one in replies)


def test_a_device_needs_room_for_its_replies(simulate):
    method = {"kind": "splitfed-v1", "rounds": 1, "peft": "lora", "device_batch": 1}
    plain = simulate(dry=True, method=method, **WORLD)
    asked = {**WORLD, "task": {**TASK, "device_replies": 1}}
    needs = [peak_with_replies(plain.method, device) for device in plain.devices]
    trains = [plain.method.peak_bytes(device) for device in plain.devices]
    assert needs[0] > trains[0]
    small = [{**WORLD["fleet"][0], "memory": f"{(needs[0] + trains[0]) // 2} B"}]
    assert simulate(dry=True, method=method, **{**WORLD, "fleet": small}).devices
    with pytest.raises(ValueError, match="with this method"):
        simulate(dry=True, method=method, **{**asked, "fleet": small})


def test_moves_that_are_there_or_were_never_made_are_not_delivered(simulate):
    method = {**SIDE, "passes": 4, "evaluate_every": 1}
    whole = simulate(method=method, **WORLD)
    curve = whole.recorder.metrics()
    is_whole = pc.and_(pc.equal(curve["name"], "perplexity"), pc.equal(curve["group"], ""))
    before, once, *_ = curve.filter(is_whole)["value"].to_pylist()
    early = simulate(method=method, stop={"target": (before + once) / 2}, **WORLD)
    assert early.target_reached and early.method.rounds_done == 1
    for sim, rounds in ((whole, 4), (early, 1)):
        for device in sim.devices:
            there = sim.method.rounds_there.get(device.id, 0)
            assert there == rounds - 1
            assert sim.method.delivery_bytes(device) == sim.method.moves_bytes(device, 1)
            one = sim.method.said_token_cost(device)
            assert one.bytes_moved == sim.method.moves_bytes(device, rounds)


def test_a_model_cannot_be_asked_for_more_entries_than_learn(scenario_file, mobifleet):
    world = {**WORLD, "cost_as": {"backbone": "opt-125m", "tokens": 16}}
    method = {**SIDE, "difference": "top-4096"}
    shown = mobifleet("run", scenario_file(method=method, **world))
    assert shown.code == 2 and "2,048 words" in shown.err


@pytest.mark.parametrize("name", ["fed-mobillm-lm", "fedavg-lora", "splitfed-v1"])
def test_attacks_on_responses_say_what_applies(name, scenario_file, tmp_path, mobifleet):
    path = scenario_file(method=METHODS[name], **WORLD)
    assert mobifleet("run", path, "--out", tmp_path / "out").code == 0
    shown = mobifleet("privacy", tmp_path / "out", "--folder", tmp_path)
    assert shown.code == 0, shown.err
    if name == "fed-mobillm-lm":
        assert "reads every token" in " ".join(shown.out.split())
    else:
        assert "AUC" in shown.out


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_replies_stay_within_a_models_positions(kind, simulate):
    sizes = {"vocab_size": 300, "max_position_embeddings": 16, "hidden_size": 24}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48}
    if kind == "gpt2":
        sizes = {"vocab_size": 300, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2}
    fleet = [{"count": 2, "device": "jetson-tx2", "backbone": "short", "link": "lte"}]
    backbones = {"short": {"random": {"model_type": kind, **sizes}}}
    sim = simulate(method=SIDE, **{**WORLD, "fleet": fleet, "backbones": backbones})
    for most in (4, 32):
        said = sim.method.learner.replies(sim.task.test[:4], most)
        assert len(said["short"]) == 4


@pytest.mark.parametrize("is_loose", [False, True])
def test_full_training_sends_the_vocabulary_where_it_is_a_table_of_its_own(
    is_loose, simulate, payloads
):
    world = with_untied() if is_loose else WORLD
    method = {"kind": "fedavg-full", "rounds": 1, "participation": 1.0}
    sim = simulate(method=method, **world)
    assert payloads
    for payload in payloads:
        assert payload.nbytes == len(sim.host.value_of(payload.data))


def test_a_vocabulary_that_is_a_table_of_its_own_takes_memory(simulate):
    tied = {**UNTIED, "tie_word_embeddings": True}
    loose, other = (
        simulate(dry=True, method=SIDE, **{**with_untied(), "backbones": {"loose": {"random": r}}})
        for r in (UNTIED, tied)
    )
    for one, two in zip(loose.devices, other.devices, strict=True):
        assert one.held_bytes(0) - two.held_bytes(0) == 4 * 300 * 24


@pytest.mark.parametrize("kind", ["fed-mobillm-lm", "fedavg-lora", "local-lora", "fedbuff"])
def test_devices_say_replies_on_the_clock_after_training(kind, simulate):
    world = {**WORLD, "task": {**TASK, "device_replies": 3}}
    plain = simulate(dry=True, method=METHODS[kind], **WORLD)
    sim = simulate(dry=True, method=METHODS[kind], **world)
    assert sim.trained_at_s == plain.trained_at_s and sim.ended.at_s > plain.ended.at_s
    before, after = (one.recorder.spans().to_pylist() for one in (plain, sim))
    for device in sim.devices:
        mine = [[s for s in spans if s["actor"] == device.id] for spans in (before, after)]
        more = mine[1][len(mine[0]) :]
        assert mine[1][: len(mine[0])] == mine[0]
        assert all(s["start_s"] >= sim.trained_at_s for s in more)
        delivered = sim.method.delivery_bytes(device)
        assert [s["kind"] for s in more] == ["download"] * bool(delivered) + ["compute"] * 6
        assert sum(s["nbytes"] for s in more) == delivered
        reply = cost_of_a_reply(sim, sim.method, device)
        assert sum(s["flop"] for s in more) == pytest.approx(
            3 * (reply.prefill.flop + 16 * reply.decode.flop)
        )
        prefill_s, *_, decode_s = (s["end_s"] - s["start_s"] for s in more[-2:])
        one = cost_of(sim, device)  # as told in the run's files
        assert prefill_s == pytest.approx(one["prefill_s"], rel=0.2)  # jitter
        assert decode_s == pytest.approx(16 * one["decode_s_a_token"], rel=0.2)
        # a token at a time reads all weights, which no prompt read at once does so often
        assert reply.decode.bytes_moved >= reply.prefill.bytes_moved > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"kind": "centralised"}}, "learns classes"),
        ({"method": {"kind": "splitfed-v1"}}, "one tensor; choose lora or adapter, or fedbert"),
        ({"method": {"kind": "splitfed-v1", "peft": "lora", "head": "dense"}}, "own vocabulary"),
        ({"method": {"kind": "splitfed-v2", "peft": "lora", "readout": "mean"}}, "token by token"),
        ({"method": {"kind": "fedbert", "head": "linear"}}, "own vocabulary"),
        ({"method": {"kind": "fed-mobillm"}}, "fed-mobillm-lm"),
        ({"method": {"kind": "fedavg-lora", "head": "dense"}}, "own vocabulary"),
        ({"method": {"kind": "fedavg-bitfit", "readout": "first"}}, "token by token"),
        ({"method": {**SIDE, "wire": ["pca-8", "int8"]}}, "one number format"),
        ({"method": {**SIDE, "difference": "top"}}, "as in top-64"),
        ({"method": {**SIDE, "difference": "top-4096"}}, "2,048 words"),
        ({"method": {**SIDE, "positions": 0}}, "1 or more"),
        ({"method": {**SIDE, "taps": []}}, "different layers"),
        ({"method": {**SIDE, "taps": [-1, 3]}}, "different layers"),
        ({"method": {**SIDE, "taps": [3, 3]}}, "different layers"),
        ({"method": {**SIDE, "taps": 0}}, "1 or more"),
        ({"task": {**TASK, "template": "{text}"}}, "{prompt}"),
        ({"task": {**TASK, "metric": "accuracy"}}, "perplexity"),
        ({"task": {**TASK, "dataset": {"classes": 3, "tokens": 20}}}, "response_tokens"),
        ({"task": {**TASK, "kind": "classification"}}, "prompt"),
    ],
)
def test_what_cannot_be_is_told(changes, said, scenario_file, mobifleet):
    told = mobifleet("check", scenario_file(**{**WORLD, "method": SIDE, **changes}))
    assert told.code == 2 and said in " ".join(told.err.split())


def test_side_tuning_of_responses_is_for_responses_alone(scenario_file, mobifleet):
    told = mobifleet("check", scenario_file(method=SIDE))
    assert told.code == 2 and "task.kind: language-modelling" in " ".join(told.err.split())


def test_an_encoder_says_nothing(simulate):
    fleet = [{"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    with pytest.raises(ValueError, match="no head that says the next word"):
        simulate(method=SIDE, **{**WORLD, "fleet": fleet})


def test_responses_of_a_stated_size_are_charged_without_texts(simulate):
    task = {"kind": "language-modelling", "train": 40, "test": 8}
    sized = {**task, "dataset": {"tokens": 60, "response_tokens": 20}}
    sim = simulate(dry=True, method=SIDE, **{**WORLD, "task": sized})
    device = sim.devices[0]
    assert sim.response_lengths(device, device.samples).tolist() == [20] * len(device.samples)
    assert sim.recorder.uplink_bytes > 20 * 40 * 48 * 2 * 2
