"""Counted costs against published numbers, closed formulas, fresh counts, and a live forward pass
on real tensors.
"""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from learning.backbones import catalogue
from learning.backbones.catalogue import config_of, find
from learning.backbones.huggingface import bare_model, hf_config
from learning.cost import cost_cache, count, forward_pass
from learning.cost.costs import Architecture, Cost
from learning.cost.forward_pass import architecture
from learning.cost.meter import CostMeter

BERT = dict(config_of(find("random-bert")))


def closed_form_flop(layers, d, d_ff, tokens):
    """2 P s + 4 L s^2 d with P = L (4 d^2 + 2 d d_ff): projections, feed-forward, and attention's
    two products.
    """
    return 2 * layers * (4 * d * d + 2 * d * d_ff) * tokens + 4 * layers * tokens**2 * d


@pytest.mark.parametrize(
    ("name", "batch", "tokens", "gflop"),
    [("roberta-base", 1, 128, 22.348), ("opt-1.3b", 1, 128, 312.46), ("bert-base", 4, 256, 183.6)],
)
def test_known_counts(name, batch, tokens, gflop):
    assert count.count_forward(config_of(find(name)), batch, tokens).flop / 1e9 == pytest.approx(
        gflop, rel=5e-4
    )
    assert architecture(find(name)).forward(batch, tokens).flop / 1e9 == pytest.approx(
        gflop, rel=5e-4
    )


@pytest.mark.parametrize(
    ("name", "layers", "d", "d_ff", "parameters", "gflop"),
    # section 4 of the facts behind the project: parameters, GFLOP a text at 64, 128, 256, 512
    # tokens
    [
        ("roberta-base", 12, 768, 3072, 124.6e6, (11.0, 22.3, 45.9, 96.6)),
        ("opt-125m", 12, 768, 3072, 125.2e6, (11.0, 22.3, 45.9, 96.6)),
        ("roberta-large", 24, 1024, 4096, 355.4e6, (39.1, 78.9, 161, 335)),
        ("opt-350m", 24, 1024, 4096, 331.2e6, (39.1, 78.9, 161, 335)),
        ("opt-1.3b", 24, 2048, 8192, 1315.8e6, (155, 312, 631, 1288)),
    ],
)
def test_architectures_of_the_papers(name, layers, d, d_ff, parameters, gflop):
    counted = architecture(find(name))
    assert (counted.layers, counted.hidden_size) == (layers, d)
    assert counted.parameters == pytest.approx(parameters, rel=5e-4)
    for tokens, published in zip((64, 128, 256, 512), gflop, strict=True):
        flop = counted.forward(1, tokens).flop
        assert flop / 1e9 == pytest.approx(published, rel=0.02)
        assert flop == pytest.approx(closed_form_flop(layers, d, d_ff, tokens), rel=0.02)


@pytest.mark.parametrize(
    "name", ["random-bert", "random-llama", "minilm", "smollm2-l4", "opt-125m"]
)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 17), (5, 200)])
def test_coefficients_give_what_a_fresh_count_gives(name, batch, tokens):
    config = config_of(find(name))
    fresh, fitted = (
        count.count_forward(config, batch, tokens),
        architecture(find(name)).forward(batch, tokens),
    )
    assert fitted.flop == fresh.flop
    # what a batch shares (rotary tables) shows in a model of 48 numbers a token only
    assert fitted.peak_bytes == pytest.approx(
        fresh.peak_bytes, rel=0.03 if name == "random-llama" else 0.01
    )


def test_every_layer_of_a_cut_costs_the_same():
    whole, cut = architecture(find("minilm")), architecture(find("minilm-l2"))
    pooler = 2 * 384 * 384
    assert (whole.forward(1, 64).flop - pooler) == 3 * (cut.forward(1, 64).flop - pooler)


def _live_peak(model, batch, tokens) -> int:
    ids = torch.randint(0, 2000, (batch, tokens))
    mask, memory = torch.ones_like(ids), CostMeter()
    mask[0, -1] = (
        # without any padding transformers leaves the attention mask out, which a count cannot
        # foresee
        0
    )
    memory.ignore([ids, mask, *model.parameters(), *model.buffers()])
    with torch.no_grad(), memory:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False)
    del out
    assert (
        memory.live_bytes <= 16 * batch * tokens
    )  # all that is left is small change (masks kept for reuse)
    return memory.peak_bytes


def real(config):
    """The bare model with real, untrained weights, and the attention that is counted."""
    made = hf_config(config)
    return bare_model(made).from_config(made, attn_implementation="eager").eval()


def test_the_counted_peak_is_that_of_a_live_forward_on_real_tensors():
    model = real(BERT)
    for batch, tokens in ((1, 32), (4, 128), (2, 400)):
        live = _live_peak(model, batch, tokens)
        assert architecture(find("random-bert")).forward(batch, tokens).peak_bytes == pytest.approx(
            live, rel=0.01
        )
    with torch.no_grad(), FlopCounterMode(display=False) as flop:
        model(input_ids=torch.zeros(4, 128, dtype=torch.long), use_cache=False)
    assert architecture(find("random-bert")).forward(4, 128).flop == flop.get_total_flops()


def test_the_memory_counter_sees_births_deaths_and_views():
    memory = CostMeter()
    with torch.no_grad(), memory:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        c = b.view(10, 100).transpose(0, 1)  # the same bytes
        del a  # 4,000
        d = torch.cat([b, b])  # 12,000: the peak
        del b, c
        assert memory.live_bytes == 8_000
        e = d.sum()
    assert memory.peak_bytes == 12_000 and memory.live_bytes == 8_004
    del d, e
    assert memory.live_bytes == 0


@pytest.mark.parametrize("name", ["random-bert", "minilm-l2"])
def test_shipped_costs_are_what_counting_gives_today(name):
    config = config_of(find(name))
    shipped = forward_pass.architecture_from_json(
        forward_pass._shipped()[cost_cache.cost_key(config)]
    )
    assert shipped == count.count_architecture(config)


def test_shipped_costs_cover_the_catalogue_and_the_common_cuts():
    names = [
        *catalogue.names(),
        *(f"minilm-l{k}" for k in range(1, 6)),
        *(f"smollm2-l{k}" for k in (4, 8, 12, 16, 24)),
    ]
    file = json.loads((Path(count.__file__).parent / "costs.json").read_text())
    assert {cost_cache.cost_key(config_of(find(name))) for name in names} == set(file)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_format_that_weights_are_published_in_changes_no_count(key):
    config = config_of(find("random-llama"))
    published = count.count_architecture({**config, key: "bfloat16"})
    assert published == count.count_architecture(config)


def test_parameters_are_the_models_own(backbone):
    own = sum(parameter.numel() for parameter in backbone.model.parameters())
    assert architecture(backbone.spec).parameters == own
    assert architecture(backbone.spec).weight_bytes() == 4 * own
    assert architecture(backbone.spec).weight_bytes("bfloat16") == 2 * own


def test_what_a_batch_reads_once_are_its_weights_but_not_the_table_of_words():
    for name in ("minilm", "roberta-base", "opt-1.3b"):
        counted, config = architecture(find(name)), config_of(find(name))
        table = 4 * config["vocab_size"] * config.get("word_embed_proj_dim", config["hidden_size"])
        assert counted.weight_bytes_read == pytest.approx(counted.weight_bytes() - table, rel=0.03)


def test_an_uncatalogued_architecture_is_counted_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path))
    own = {"mine": {"random": {**BERT, "hidden_size": 32, "num_attention_heads": 4}}}
    counted = architecture(find("mine", own))
    assert counted == count.count_architecture(config_of(find("mine", own)))
    monkeypatch.setattr(count, "count_architecture", lambda config: pytest.fail("counted twice"))
    assert architecture(find("mine", own)) == counted


@given(
    st.integers(1, 64),
    st.integers(1, 512),
    st.sampled_from([("float32", 4), ("float16", 2), ("bfloat16", 2)]),
)
def test_costs_scale_with_the_batch_and_the_width_of_numbers(batch, tokens, precision):
    a = architecture(find("minilm"))
    name, width = precision
    cost, one = a.forward(batch, tokens, name), a.forward(1, tokens)
    assert cost.flop == batch * one.flop
    assert cost.bytes_moved == pytest.approx(one.bytes_moved * width / 4)
    assert math.isclose(cost.peak_bytes, batch * one.peak_bytes * width / 4, abs_tol=1)


@settings(max_examples=50)
@given(*[st.builds(Cost, st.floats(0, 1e15), st.floats(0, 1e12), st.integers(0, 10**12))] * 2)
def test_one_after_the_other_adds_work_and_keeps_the_higher_peak(a, b):
    both = a + b
    assert (
        both == b + a
        and both.flop == a.flop + b.flop
        and both.peak_bytes in (a.peak_bytes, b.peak_bytes)
    )


def test_an_architecture_survives_json():
    counted = architecture(find("random-bert"))
    assert (
        forward_pass.architecture_from_json(json.loads(json.dumps(dataclasses.asdict(counted))))
        == counted
    )
    assert isinstance(counted, Architecture)
