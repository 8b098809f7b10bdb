"""Counting what is unlike BERT and Llama: experts, recurrences, what a batch computes once, layers
of several kinds.
"""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from learning.backbones.catalogue import cut
from learning.backbones.huggingface import bare_model, hf_config
from learning.cost.count import count_architecture, count_forward
from learning.cost.count_split import count_part
from learning.cost.count_training import count_training, measure_step
from learning.cost.weightless import alike, of_depth
from learning.cost.weightless_classifier import weightless_classifier

torch.set_num_threads(1)
CONFIGS = runpy.run_path(str(Path(__file__).with_name("architectures.py")))["CONFIGS"]
ODD = ("DeBERTa-v2", "Gemma 3", "Mamba", "Mixtral", "OPT (narrow embeddings)", "T5 (encoder)")
MIXED = {
    "model_type": "lfm2",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
}
MIXED |= {
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "block_multiple_of": 8,
    "max_position_embeddings": 64,
}
MIXED |= {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]}


@pytest.mark.parametrize("name", ODD)
def test_a_fitted_forward_pass_is_a_fresh_count(name):
    fitted = count_architecture(CONFIGS[name])
    assert fitted.forward(1, 20).flop == count_forward(CONFIGS[name], 1, 20).flop
    fresh = count_forward(CONFIGS[name], 6, 33)
    assert fitted.forward(6, 33).flop == fresh.flop
    # what a batch shares, as positions do, weighs much beside 16 numbers a token
    assert fitted.forward(6, 33).peak_bytes == pytest.approx(fresh.peak_bytes, rel=0.25)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["DeBERTa-v2", "Mamba", "Mixtral"])
def test_a_fitted_step_is_a_fresh_count(name):
    config, batch, tokens = {**CONFIGS[name], "num_hidden_layers": 4}, 50, 40  # fitted from 2 and 3
    fitted = count_training(config, "adapter", bottleneck=4)
    read = measure_step(weightless_classifier(config, "adapter", 2, bottleneck=4), batch, tokens)
    assert fitted.step(batch, tokens).flop == read.flop
    assert fitted.saved_bytes(batch, tokens) == pytest.approx(read.saved_bytes, rel=0.02)
    assert fitted.step(batch, tokens).peak_bytes == pytest.approx(read.peak_bytes, rel=0.05)


def test_a_token_costs_its_active_experts_and_memory_holds_all():
    """Three products of d x f for each of K experts, two FLOP a multiplication and addition; the
    router's is d x E.
    """
    layers, d, f, experts, active = 3, 16, 32, 4, 2
    mixture = count_architecture(CONFIGS["Mixtral"])
    dense = count_architecture({**CONFIGS["Llama"], "intermediate_size": f})
    a_token = 2 * layers * (active * 3 * d * f + d * experts) - 2 * layers * 3 * d * f
    for batch, tokens in ((1, 8), (3, 20)):
        more = mixture.forward(batch, tokens).flop - dense.forward(batch, tokens).flop
        assert more == batch * tokens * a_token
    in_memory = layers * (experts * 3 * d * f + d * experts) - layers * 3 * d * f
    assert mixture.parameters - dense.parameters == in_memory
    assert mixture.weight_bytes_read - dense.weight_bytes_read == pytest.approx(
        4 * in_memory, rel=0.1
    )
    twice = count_architecture({**CONFIGS["Mixtral"], "num_experts_per_tok": 4})
    assert twice.parameters == mixture.parameters
    assert twice.forward(1, 8).flop - mixture.forward(1, 8).flop == 8 * 2 * layers * 2 * 3 * d * f


def test_what_a_batch_computes_once_is_not_charged_to_every_text():
    """DeBERTa's 16 relative positions pass two square maps in each of three layers; a batch of 50
    does it once.
    """
    config = CONFIGS["DeBERTa-v2"]
    made = hf_config(config)
    model, ids_BT = bare_model(made).from_config(made).eval(), torch.full((50, 7), 3)
    with torch.no_grad(), FlopCounterMode(display=False) as real:
        model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    counted = count_architecture(config)
    assert counted.forward(50, 7).flop == real.get_total_flops()
    assert counted.flop_per_batch == 3 * 2 * 2 * 16 * 16 * 16
    assert count_architecture(CONFIGS["BERT"]).flop_per_batch == 0


@pytest.mark.thorough
def test_layers_of_several_kinds_are_counted_one_and_all():
    assert not alike(MIXED) and alike(CONFIGS["Gemma 2"])
    fitted = count_training(MIXED, "full")
    read = measure_step(weightless_classifier(MIXED, "full", 2), 4, 24)
    assert fitted.step(4, 24).flop == read.flop
    counted = of_depth(MIXED, lambda config: count_architecture(config).parameters)
    assert (
        counted
        == count_architecture(MIXED).parameters
        != 2 * count_architecture(cut(MIXED, 3)).parameters
    )
    server = count_part(
        MIXED, 2, False, True, "full", 2, is_cut=True
    )  # a convolution and attention, the last two
    device = count_part(cut(MIXED, 3), 3, True, False, "full", 2, is_cut=True)
    assert device.parameters + server.parameters == fitted.parameters
    both = sum(
        cost.flop
        for part in (device, server)
        for cost in (part.forward(4, 24), part.backward(4, 24))
    )
    assert both == read.flop


@pytest.mark.thorough
def test_what_is_counted_first_changes_no_count(monkeypatch, tmp_path):
    """Torch derives an operator's forward-mode rule at its first use, which is no pass's work."""
    count = (
        "import sys; from learning.backbones.catalogue import find;"
        "from learning.cost.count_forward_only import forward_architecture, jvp_pass;"
        "spec, more = find('random-bert'), (3, 1, 48);"
        "names = [n for n in forward_architecture(spec, 'lora', *more).tensors if 'lora' in n];"
        "hands = [(names[0], names[1]), (names[-2], names[-1])];"
        "order = [int(i) for i in sys.argv[1]];"
        "found = {i: jvp_pass(spec, 'lora', hands[i], *more) for i in order};"
        "print(found[0], found[1])"
    )
    said = set()
    for order in ("01", "10"):
        monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / order))
        done = subprocess.run(
            [sys.executable, "-c", count, order], capture_output=True, text=True, check=True
        )
        said.add(done.stdout)
    assert len(said) == 1
