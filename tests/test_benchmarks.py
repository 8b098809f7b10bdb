"""The benchmarks run, and give the figures that they say: counts and results, never times."""

import gc
import json
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from learning.backbones.assets import AssetMissing
from learning.backbones.tokens import tokenise
from learning.federated.local_training import LocalTraining, train
from learning.host_device import CPU, compute_on

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = """
name: small
task: {dataset: {path: texts.csv}, train: 40, test: 20, max_tokens: 8}
fleet:
  - {count: 1, device: jetson-tx2, backbone: random-bert, link: wifi-home}
  - {count: 1, device: jetson-tx2, backbone: random-llama, link: wifi-home}
method: {kind: fed-mobillm}
"""


@pytest.fixture
def gpu():
    spec = spec_from_file_location("gpu_benchmark", FOLDER / "gpu.py")
    module = sys.modules["gpu_benchmark"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    compute_on(CPU)


@pytest.mark.thorough
def test_a_rehearsal_of_the_accelerator_gives_every_figure(gpu, tmp_path):
    out = tmp_path / "found.json"
    found = gpu.main(["--rehearse", "--out", str(out), "--only", "card,forward,stacked,side"])
    assert not [part for part, figures in found.items() if "failed" in figures]
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    for precision in ("float32", "bfloat16"):
        assert {*found["forward"]["random-bert"][precision]} == {"states_by_rows", "readouts"}
        round_ = found["stacked"][precision]
        assert round_["steps"] == gpu.TINY.devices * 2
        slack = 1e-4 if precision == "float32" else 0.05
        assert all(round_[f"{k}_at_once"]["update_off_max"] < slack for k in gpu.TINY.at_once)


def test_a_part_that_fails_leaves_the_others(gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "forward", lambda bench: 1 / 0)
    found = gpu.main(["--rehearse", "--out", str(tmp_path / "f.json"), "--only", "forward,card"])
    assert "ZeroDivisionError" in found["forward"]["failed"]
    assert "failed" not in found["card"]


def test_products_are_counted_as_published(gpu):
    """At 128 tokens, by torch's own counter; OPT-1.3B less its head of 50,272 words."""
    head = 2 * 128 * 2048 * 50272 / 1e9
    for name, gflop in (("roberta-base", 22.348), ("opt-1.3b", 338.816 - head)):
        counted = gpu.forward_flop(gpu.catalogue.find(name), 128) / 1e9
        assert counted == pytest.approx(gflop, rel=1e-3)


def test_own_predictions_are_measured_and_every_label_is_read(tmp_path):
    spec = spec_from_file_location("own_predictions", FOLDER / "own_predictions.py")
    module = sys.modules["own_predictions"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "found.json"
    small = ["--texts", "40", "--public", "15", "--devices", "2", "--out", str(out)]
    try:
        found = module.main(
            ["--backbone", "random-bert", "--data", "hutto-tweets,hutto-films", *small]
        )
        decoder = module.main(["--backbone", "random-llama", "--data", "hutto-films", *small])
    except AssetMissing as missing:
        pytest.skip(str(missing))
    assert json.loads(out.read_text()) == decoder
    assert {*decoder["hutto-films"]["choices"]} == {*module.PREDICTIONS}
    softer = [row["squared"] for row in decoder["hutto-films"]["by_temperature"].values()]
    assert abs(softer[-1] - 0.5) < 0.01  # nearly uniform: one minus a half, squared, twice
    for figures in found.values():
        assert len(figures["by_layer"]) == 3 and not figures["by_temperature"]
        assert figures["choices"]["uniform"]["squared"] == pytest.approx(0.5)
        assert {*module.PREDICTIONS} - {*figures["choices"]} == {*module.VERBALISERS}
        for kind, choice in figures["choices"].items():
            assert choice["restored_with_y_b"] == (None if kind == "own-head" else 1.0)
            # a fitted head may be certain; of what is right and certain no difference is left
            assert kind.endswith("-head") or choice["read_by_argmax"] == 1.0


def test_attacks_on_vectors_are_measured_in_every_cell(tmp_path):
    module, out = module_of("attacks"), tmp_path / "found.json"
    asked = ["--backbone", "random-bert", "--data", "hutto-films", "--out", str(out)]
    try:
        found = module.main([*asked, "--public", "60", "--private", "20"])
    except AssetMissing as missing:
        pytest.skip(str(missing))
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert len(found["cells"]) == 3 * 3 + 3 * len(module.BITS) + 3 * len(module.NOISES)
    for figures in found["cells"].values():
        assert [*figures] == ["precision", "recall", "F1", "text in top 1", "text in top 10"]
        assert all(low <= value <= high for value, low, high, _ in figures.values())
    assert found["cells"]["mean, layer 0"]["text in top 1"][0] == 1.0  # its own vector is nearest
    assert found["rotated"]["layer 0"]["as it is"]["text in top 1"][0] < 0.5


def test_the_quickstart_is_held_against_its_passes_and_steps(monkeypatch, tmp_path):
    texts = tmp_path / "texts.csv"
    lines = [f"w{n % 7} w{n % 5} w{n},{'ab'[n % 2]}" for n in range(80)]
    texts.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    file = tmp_path / "small.yaml"
    file.write_text(SMALL, encoding="utf-8")
    monkeypatch.syspath_prepend(FOLDER)  # it stands on two other benchmarks
    module = module_of("quickstart")
    found = module.main(["--scenario", str(file), "--repeat", "1"])
    assert found["texts_read"] == 40 + 2 * 20  # of devices, and by each backbone of the test
    assert found["updates"] > 0 and found["cold_s"] > 0 < found["warm_s"]
    assert 0 < found["ridge_solutions"] < found["updates"]


def test_what_is_sent_of_a_decoders_differences_is_measured(tmp_path):
    module, out = module_of("next_token_differences"), tmp_path / "found.json"
    small = ["--train", "40", "--test", "10", "--epochs", "1", "--hidden", "8", "--out", str(out)]
    try:
        found = module.main(["--backbone", "random-llama", "--projections", "8", *small])
    except AssetMissing as missing:
        pytest.skip(str(missing))
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert [found[form]["bytes_a_token"] for form in module.FORMS] == [96, 4096, 4, 256]
    for form in module.FORMS:  # who has the head reads the token off any of them
        assert found[form]["tokens_named"] == 1.0
        assert found[form]["perplexity"] == pytest.approx(found["gradient"]["perplexity"], rel=0.01)
    assert found["gradient"]["perplexity"] < 0.9 * found["untrained"]["perplexity"]
    assert 0 <= found["secret rotation, named by length"]["tokens_named"] < 1
    assert found["tokens, linear map"]["chosen"]["epoch"] == 1


def test_a_side_network_is_measured_at_every_size_and_precision(tmp_path):
    spec = spec_from_file_location("sizes", FOLDER / "side_network_size.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64)
    values = (rng.standard_normal((64, 3, 16)) + 4 * labels[:, None, None]).astype(np.float32)
    found = {
        "shipped_bytes": {
            "4": {p: module.shipped_bytes(4, p) for p in ("float32", "float16", "int8")}
        },
        "cells": {"own/l2/4/0": module.trained(values, labels, 48, 4, 0)},
    }
    accuracy = found["cells"]["own/l2/4/0"]["accuracy"]
    assert [*accuracy] == ["float32", "float16", "int8"]
    assert all(value * 16 == round(value * 16) > 8 for value in accuracy.values())
    assert module.table(found).count("\n") == 4
    assert found["shipped_bytes"]["4"]["int8"] == 174_084


def test_projections_of_every_kind_are_measured_as_they_are_called(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # it stands on another benchmark
    module = module_of("projections")
    monkeypatch.setattr(module, "REPLAY", 8)
    rng = np.random.default_rng(0)

    def vectors(labels, width):
        around = 4 * labels[:, None, None] * np.linspace(0.5, 1, width)
        return (rng.standard_normal((len(labels), 2, width)) + around).astype(np.float32)

    widths = dict(zip(module.FLEET, (8, 24, 24), strict=True))
    labels = rng.integers(0, 2, 80)
    data = {
        name: (vectors(labels[place::3], width), labels[place::3])
        for place, (name, width) in enumerate(widths.items())
    }
    for kind in module.KINDS:
        assert module.trained(data, 60, (12, kind, "where-needed"), 0) > 0.8
        projection = torch.randn(2, 24, 12).requires_grad_()
        uploads = torch.from_numpy(data["minilm"][0])
        module.set_up(projection, kind, uploads)
        assert projection.requires_grad == (kind in ("trained", "shared"))
        if kind == "shared":
            (projection**2 * torch.arange(2)[:, None, None]).sum().backward()
            assert torch.equal(projection[0], projection[1])
            assert torch.equal(projection.grad[0], projection.grad[1])
            assert torch.allclose(projection.grad[0], 2 * projection[0])
        if kind == "pca":  # orthonormal, the first along what tells the classes apart
            assert torch.allclose(projection[0].T @ projection[0], torch.eye(12), atol=1e-4)
            first = (uploads[:, 0] - uploads[:, 0].mean(0)) @ projection[0].detach()
            assert abs(np.corrcoef(first[:, 0], data["minilm"][1])[0, 1]) > 0.9


def test_a_fleet_costs_as_many_calls_an_event_however_large_it_is(tmp_path):
    spec = spec_from_file_location("fleet_benchmark", FOLDER / "fleet.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.A_CELL = 10
    found = module.measured("cells", 40)
    assert found["updates"] >= 20 * 40 * 8 / 32  # of replay, texts and a batch; the rest are fits
    assert 40 * (4 + 4 + 1) + found["updates"] < found["spans"] < found["events"] / 2

    def calls_an_event(kind, devices):
        sim, calls = module.simulation(kind, devices, tmp_path), Counter()

        def note(frame, event, what):
            calls[event] += 1

        sys.setprofile(note)
        try:
            sim.run()
        finally:
            sys.setprofile(None)
        return (calls["call"] + calls["c_call"]) / next(sim.env._eid)

    for kind in ("fedasync", "cells"):
        few, many = (calls_an_event(kind, devices) for devices in (40, 160))
        assert many < 1.1 * few


def test_a_fleet_at_work_is_not_looked_through_for_garbage(tmp_path):
    module = module_of("fleet")
    sim, seen, before = module.simulation("fed-mobillm", 160, tmp_path), [], gc.get_threshold()

    def note(phase, _):
        seen.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    try:
        sim.run()
    finally:
        gc.callbacks.remove(note)
    assert seen.count("start") <= 2 < sim.recorder.spans().num_rows / 700
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0


def test_frozen_forwards_are_measured_and_every_computed_token_counts():
    module = module_of("forwards")
    asked = ["--backbone", "random-bert", "--data", "hutto-films", "--texts", "40", "--cuts", "1"]
    try:
        found = module.main([*asked, "--repeat", "1"])
    except AssetMissing as missing:
        pytest.skip(str(missing))
    assert found["texts"] == 40 and found["off_most"] < 1e-5
    assert 1 <= found["plain_computed_a_token"] < found["ours_computed_a_token"]
    # whole batches of 16 rows, each of a multiple of 4 tokens
    assert round(found["ours_computed_a_token"] * found["tokens"]) % (16 * 4) == 0
    assert found["fleet_layer_texts_saved"] == 10 / (2 * 25 + 25) and found["fleet_same_bits"]
    beside = module.main([*asked, "--repeat", "1", "--threads"])
    assert beside.keys() == {"one_s", "two_s", "gain", "same_bits"} and beside["same_bits"]


def test_a_plain_loop_of_side_network_steps_ends_where_ours_does():
    found = module_of("side_steps").main(["--steps", "6", "--repeat", "1"])
    assert found["numbers"] == 2 * 384 * 48 + 48 + 384 + 2 * 384 + 1 + 2 * 384 + 6 * 385
    assert found["off_most"] < 1e-5


def module_of(name):
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client_update():
    return module_of("client_update")


def test_the_plain_loop_beside_our_client_updates_trains_the_same(client_update):
    """From the same state on the same texts in the same order it comes to the same numbers."""
    loop, seed = client_update.PlainLoop("tiny", devices=2), 5
    own = slice(client_update.TEXTS, 2 * client_update.TEXTS)
    tokens = tokenise(loop.model.spec, client_update.TEXT.texts[own], None, client_update.TOKENS)
    settings = LocalTraining(
        1, client_update.BATCH, client_update.RATE, 0.0, "sgd", schedule="constant", dropout=0.0
    )
    labels = client_update.TEXT.labels[own]
    ours = train(loop.model, loop.model.trainable(), tokens, labels, settings, seed)
    assert ours.steps == client_update.TEXTS // client_update.BATCH
    loop.train(loop.devices[1], np.random.default_rng(seed))
    plain = loop.model.trainable()
    assert all(torch.equal(plain[name], tensor) for name, tensor in ours.state.items())
    assert not torch.equal(plain["head.weight"], loop.state[0])


@pytest.mark.thorough
def test_client_updates_are_measured_over_the_rounds_that_are_said(client_update):
    run = client_update.ours_of("tiny", 2, workers=2)
    updates = 2 * client_update.A_ROUND
    assert run.summary["host"]["pieces_of_learning"] == updates + 2  # and a mean a round
    found = client_update.main(["--rounds", "1", "--repeat", "1", "--only", "tiny"])
    assert {*found["tiny"]} == {"ours_ms", "plain_ms", "above_ms", "ratio"}
    gains = client_update.main(["--rounds", "1", "--repeat", "1", "--only", "tiny", "--threads"])
    assert {*gains["tiny"]} == {"one_s", "two_s", "gain"}


def test_protections_of_differences_are_measured_in_every_way(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module, out = module_of("protection"), tmp_path / "found.json"
    monkeypatch.setattr(
        module,
        "WAYS",
        {"open": {}, "words": {"words": 2}, "offset": {"offset": 10.0, "axes": 8, "noise": 0.1}},
    )
    asked = ["--backbone", "random-bert", "--data", "hutto-films", "--out", str(out)]
    try:
        found = module.main(
            [*asked, "--train", "60", "--judge", "20", "--public", "20", "--seeds", "1"]
        )
    except AssetMissing as missing:
        pytest.skip(str(missing))
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert [*found["ways"]] == ["open", "words", "offset"]
    [open_] = found["ways"]["open"]
    assert (
        open_["alike"] == 1.0 and "solved" not in open_
    )  # equal differences, nothing to solve for
    assert found["ways"]["offset"][0]["alike"] < 0.9
    assert found["ways"]["offset"][0]["solved"] > 0.9  # who made the axes solves for the offset
