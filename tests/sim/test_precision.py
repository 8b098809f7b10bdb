"""The number format in which devices hold their frozen backbone: its bytes in memory and in a pass,
by arithmetic, and what does not follow it.
"""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from learning.backbones.catalogue import find
from learning.backbones.loading import load_model
from learning.cost.count import count_architecture
from learning.cost.forward_pass import architecture
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario

# OPT-1.3B: 24 layers of four maps 2048 x 2048 and two of 2048 x 8192; outputs of the four, the two
LINEAR = 24 * (4 * 2048 * 2048 + 2 * 2048 * 8192)
OUTPUTS = 24 * (4 * 2048 + 8192 + 2048)
NUMBERS = 1_315_758_080
TABLES = (50272 + 2050) * 2048  # of words and positions: rows are taken out of them
REST = NUMBERS - LINEAR - TABLES  # biases and norms
HELD = {
    "float32": 4 * NUMBERS,
    "float16": 2 * NUMBERS,
    "bfloat16": 2 * NUMBERS,
    "int8": LINEAR + 4 * OUTPUTS + 2 * (NUMBERS - LINEAR),
}
READ = {
    "float32": 4 * (LINEAR + REST),
    "float16": 2 * (LINEAR + REST),
    "bfloat16": 2 * (LINEAR + REST),
    "int8": LINEAR + 4 * OUTPUTS + 2 * REST,
}
WORLD = {
    "task": {"dataset": {"classes": 4, "tokens": 20}, "train": 40, "test": 10},
    "arrivals": {"kind": "at-once"},
}


def fleet(precision, backbone="opt-1.3b"):
    group = {"count": 1, "device": "jetson-agx-orin", "backbone": backbone, "link": "lte"}
    return [{**group, "precision": precision}]


@pytest.mark.parametrize("precision", HELD)
def test_memory_and_bytes_read_follow(precision, simulate):
    assert HELD["int8"] == 1_425_326_080  # 1.43 GB; float16 has 2.63 GB
    sim = simulate(fleet=fleet(precision), dry=True, **WORLD)
    [device] = sim.devices
    assert sim.costing.weight_bytes(device.member) == HELD[precision]
    lengths = sim.lengths(device, device.samples)
    one = sim.costing.forward(device.member, lengths)
    exact = architecture(find("opt-1.3b")).forward(len(lengths), 20)
    assert one.flop == exact.flop
    # what is read in float32 is counted, and holds a little besides the weights
    assert exact.bytes_moved == pytest.approx(READ["float32"], rel=1e-3)
    assert one.bytes_moved / exact.bytes_moved == pytest.approx(
        READ[precision] / READ["float32"], rel=1e-12
    )
    width = 4 if precision == "float32" else 2
    assert one.peak_bytes == pytest.approx(exact.peak_bytes * width / 4, abs=1)
    word = sim.costing.next_word(device.member, 3, 5)
    assert word.bytes_moved == width * 5 * 2048
    batch = sim.costing.forward(device.member, lengths[:4])  # of four texts
    assert device.peak_memory_bytes >= HELD[precision] + batch.peak_bytes


@pytest.mark.parametrize("name", ["random-bert", "random-llama", "gpt-2"])
def test_int8_holds_the_weights_that_are_rounded_to_it(name):
    """Those of every linear map, as `--precision int8` rounds them, and a scale for each output."""
    fields = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 2}
    spec = find(name, {"gpt-2": {"random": fields}})
    model, held = load_model(spec), 0
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            inputs = 0 if isinstance(module, Conv1D) else 1
            rounded = torch.zeros_like(module.weight, dtype=torch.int8)
            scales = module.weight.abs().amax(dim=inputs)
            held += rounded.nbytes + scales.nbytes + (0 if module.bias is None else 2 * len(scales))
        else:
            held += sum(2 * p.numel() for p in module.parameters(recurse=False))
    assert architecture(spec).weight_bytes("int8") == held < model.get_memory_footprint()


def test_layers_that_share_their_weights_read_them_as_often():
    config = {"model_type": "albert", "vocab_size": 64, "embedding_size": 8, "hidden_size": 16}
    config |= {"num_attention_heads": 2, "intermediate_size": 32}
    once, often = (count_architecture({**config, "num_hidden_layers": n}) for n in (1, 4))
    assert once.weight_bytes("int8") == often.weight_bytes("int8")
    read = [one.forward(1, 8, "int8").bytes_moved for one in (once, often)]
    assert read[1] > 2 * read[0]


def test_passes_with_what_is_trained_follow_as_well(simulate):
    method = {"kind": "fwdllm", "rounds": 1, "peft": "lora", "rank": 4}
    plain, small = (
        simulate(fleet=fleet(precision, "random-bert"), method=method, dry=True, **WORLD)
        for precision in ("float32", "int8")
    )
    [before], [after] = plain.devices, small.devices
    saved = 4 * 235_200 - (69_632 + 4 * 960 + 2 * (235_200 - 69_632))
    weights = [one.costing.weight_bytes(one.devices[0].member) for one in (plain, small)]
    assert weights[0] - weights[1] == saved
    least = [
        one.peak_memory_bytes - nbytes for one, nbytes in zip((before, after), weights, strict=True)
    ]
    kept = least[0] - 2 * (least[0] - least[1])  # activations are halved, states are not
    assert kept == 4 * plain.method.costs["random-bert"].nbytes()


@pytest.mark.parametrize("kind", ["fedavg-full", "splitfed-v1"])
def test_what_trains_all_of_a_backbone_does_not_hold_it_in_int8(kind, scenario_file):
    path = scenario_file(fleet=fleet("int8", "random-bert"), method={"kind": kind}, **WORLD)
    with pytest.raises(ScenarioError, match=rf"fleet.0.precision: .*frozen, and {kind} trains all"):
        load(path, Scenario, check=problems)
    path = scenario_file(
        fleet=fleet("int8", "random-bert"), method={"kind": "fedavg-lora"}, **WORLD
    )
    assert load(path, Scenario, check=problems).fleet[0].precision == "int8"


def test_an_unknown_format_is_answered_with_those_there_are(scenario_file):
    with pytest.raises(ScenarioError, match=r"precision: .*'float32', 'float16', 'bfloat16'.*int8"):
        load(scenario_file(fleet=fleet("int4")), Scenario)
