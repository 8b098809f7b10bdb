"""The side network against its equations written out on plain tensors, its counted cost, and its
file.
"""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from learning.side.config import SideNetworkConfig, SideNetworkSettings, shape_for
from learning.side.network import SideNetwork, Standardiser, load_side_network, save_side_network

DOCUMENT = Path(__file__).parents[2] / "docs" / "fed_mobillm.md"
WIDTHS = {"small": 24, "same": 32, "large": 48}
CONFIGS = {
    "standard": SideNetworkConfig(normalise="standard", dropout=0.0),
    "layer": SideNetworkConfig(normalise="layer"),
    "zero start": SideNetworkConfig(normalise="layer", start="zero"),
    "all projected": SideNetworkConfig(normalise="layer", projection="always", bottleneck=5),
    "not normalised": SideNetworkConfig(normalise="none", width=40),
}


def network_of(config, blocks=3, classes=4, widths=WIDTHS, seed=0, stirred=True):
    network = SideNetwork(shape_for(config, blocks, widths, classes), config, seed)
    for backbone in widths:
        network.observe(vectors(network, backbone, 50, seed=1) + 2, backbone)
    if stirred:  # away from the start, where most of it is zero
        generator = torch.Generator().manual_seed(seed + 1)
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def vectors(network, backbone, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(
        count, network.shape.vectors, network.shape.backbone_widths[backbone], generator=generator
    )


def by_the_equations(network, a_BVM, backbone, mask=1.0):
    """y_s of the module's docstring, in numbers of a state dictionary and elementary functions."""
    w, config = network.state_dict(), network.config

    def norm(x, gain, bias):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * gain + bias

    if config.normalise == "layer":
        a_BVM = norm(a_BVM, 1.0, 0.0)
    elif config.normalise == "standard":
        seen = vectors(network, backbone, 50, seed=1) + 2
        a_BVM = (a_BVM - seen.mean(0)) / seen.std(0, correction=0)
    if f"projections.of {backbone}" in w:
        matrices = w[f"projections.of {backbone}"]
        a_BVM = torch.stack([a_BVM[:, v] @ matrices[v] for v in range(a_BVM.shape[1])], dim=1)
    a = list((a_BVM * mask).unbind(1))
    h = a.pop(0) if config.start == "embedding" else torch.zeros_like(a[0])
    for k, a_k in enumerate(a):
        mu = 1 / (1 + torch.exp(-w[f"adapters.{k}.alpha"] / config.gate_temperature))
        s = (1 - mu) * a_k + mu * h
        inner = norm(s, w[f"adapters.{k}.norm.weight"], w[f"adapters.{k}.norm.bias"])
        inner = inner @ w[f"adapters.{k}.down.weight"].T + w[f"adapters.{k}.down.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        h = s + inner @ w[f"adapters.{k}.up.weight"].T + w[f"adapters.{k}.up.bias"]
    return norm(h, w["norm.weight"], w["norm.bias"]) @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backbone", WIDTHS)
def test_equals_its_equations(name, backbone):
    network = network_of(CONFIGS[name])
    a = vectors(network, backbone)
    with torch.no_grad():
        assert torch.allclose(
            network(a, backbone), by_the_equations(network, a, backbone), atol=2e-5, rtol=1e-4
        )


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 99),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_a_standardiser_knows_mean_and_deviation_of_all_it_saw(sizes, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    seen = scale * (5 + torch.randn(sum(sizes), 2, 7, generator=generator))
    standardiser = Standardiser(2, 7)
    for part in seen.split(sizes):
        standardiser.observe(part)
    got = standardiser(seen)
    if len(seen) < 2:
        assert torch.equal(got, seen)
        return
    spread = (seen.double() - seen.double().mean(0)).pow(2).mean(0).sqrt()
    wide = spread > 0.02 * scale  # hardly varying numbers are kept from being blown up
    assert torch.allclose(got.mean(0)[wide], torch.zeros(()), atol=1e-3)
    assert torch.allclose(got.std(0, correction=0)[wide], torch.ones(()), atol=1e-3)
    assert torch.isfinite(got).all() and got.abs().max() < 2 * len(seen) ** 0.5


def test_a_number_that_never_varies_becomes_nothing():
    standardiser = Standardiser(1, 3)
    seen = torch.randn(50, 1, 3, generator=torch.Generator().manual_seed(0))
    seen[..., 1] = 7.0
    standardiser.observe(seen)
    assert torch.count_nonzero(standardiser(seen)[..., 1]) == 0
    assert standardiser(seen + 1e-7)[..., 1].abs().max() < 1e-3


def test_each_backbone_is_standardised_by_its_own_records():
    network = network_of(
        SideNetworkConfig(normalise="standard", projection="always"), widths={"a": 32, "b": 32}
    )
    inputs = vectors(network, "a")
    with torch.no_grad():
        a, b = network(inputs, "a"), network(inputs, "b")
        network.observe(
            100 * torch.randn(90, 4, 32, generator=torch.Generator().manual_seed(3)), "a"
        )
        assert torch.equal(network(inputs, "b"), b) and not torch.allclose(
            network(inputs, "a"), a, atol=0.01
        )


def test_dropout_masks_the_incoming_vectors_and_keeps_their_mean():
    network = network_of(SideNetworkConfig(normalise="layer", dropout=0.4))
    a = vectors(network, "same")
    mask = (torch.rand(a.shape, generator=torch.Generator().manual_seed(3)) < 0.6) / 0.6
    with torch.no_grad():
        got = network.training_forward([("same", a)], torch.Generator().manual_seed(3))
        assert torch.allclose(got, by_the_equations(network, a, "same", mask), atol=2e-5, rtol=1e-4)
        assert not torch.allclose(got, network(a, "same"))
        untouched = network_of(SideNetworkConfig(dropout=0.0))
        got = untouched.training_forward([("same", a)], torch.Generator())
        assert torch.equal(got, untouched(a, "same"))
    big = torch.ones(200_000)
    kept = (torch.rand(big.shape, generator=torch.Generator().manual_seed(0)) < 0.6) / 0.6
    assert kept.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_pass_over_several_backbones_says_what_a_pass_each_says(name):
    network = network_of(CONFIGS[name])
    parts = [(backbone, vectors(network, backbone, seed=i)) for i, backbone in enumerate(WIDTHS)]
    with torch.no_grad():
        together = network.training_forward(parts, torch.Generator().manual_seed(3))
        each, masks = [], torch.Generator().manual_seed(3)
        for backbone, a in parts:  # which share one stream of masks
            shape = (*a.shape[:-1], network.shape.width)
            rate = network.config.dropout
            drawn = torch.rand(shape, generator=masks) if rate else torch.ones(shape)
            mask = (drawn < 1 - rate) / (1 - rate) if rate else drawn
            each.append(by_the_equations(network, a, backbone, mask))
    assert torch.allclose(together, torch.cat(each), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_begins_at_the_backbones_own_prediction(name):
    network = network_of(CONFIGS[name], stirred=False)
    for backbone in WIDTHS:
        assert torch.count_nonzero(network(vectors(network, backbone), backbone)) == 0
    for adapter in network.adapters:  # and every adapter is nearly the identity, its gate half open
        a = torch.randn(5, network.shape.width)
        assert torch.allclose(adapter(a, a), a, atol=0.05) and torch.allclose(
            adapter(a, -a), 0 * a, atol=0.05
        )


@given(st.lists(st.integers(1, 400), min_size=1, max_size=7), st.integers(1, 300))
def test_width_rules(widths, number):
    named = {f"b{i}": width for i, width in enumerate(widths)}
    median, largest, given_ = (
        shape_for(SideNetworkConfig(width=rule), 2, named, 3) for rule in ("median", "max", number)
    )
    assert largest.width == max(widths) and given_.width == number
    assert median.width in widths  # one backbone at least needs no projection
    assert 2 * sum(w <= median.width for w in widths) >= len(widths)
    assert 2 * sum(w >= median.width for w in widths) >= len(widths)
    assert median.bottleneck == max(1, median.width // 8)
    for shape in (median, largest, given_):
        assert all(
            shape.is_projected(name) == (width != shape.width) for name, width in named.items()
        )
        assert shape.vectors == 3
    assert shape_for(SideNetworkConfig(start="zero"), 2, named, 3).vectors == 2
    assert all(
        shape_for(SideNetworkConfig(projection="always"), 2, named, 3).is_projected(name)
        for name in named
    )


def test_projections_begin_as_identity_or_with_orthonormal_rows_or_columns():
    network = network_of(SideNetworkConfig(projection="always"), stirred=False)
    assert torch.equal(network.projection("same"), torch.eye(32).expand(4, 32, 32))
    for name in ("small", "large"):
        for matrix in network.projection(name):
            small = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
            assert torch.allclose(small, torch.eye(len(small)), atol=1e-5)
    default = network_of(SideNetworkConfig())
    assert {name for name in WIDTHS if default.projection(name) is not None} == {"small", "large"}


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(list(CONFIGS)),
    st.integers(1, 5),
    st.integers(2, 9),
    st.dictionaries(st.sampled_from("abc"), st.integers(8, 40), min_size=1),
)
def test_parameters_and_flop_are_the_counted_ones(name, blocks, classes, widths):
    network = network_of(CONFIGS[name], blocks, classes, widths)
    shape = network.shape
    assert shape.parameters() == sum(p.numel() for p in network.parameters())
    shared = sum(
        p.numel() for n, p in network.named_parameters() if not n.startswith("projections")
    )
    for backbone in widths:
        own = 0 if network.projection(backbone) is None else network.projection(backbone).numel()
        assert shape.parameters(backbone) == shared + own
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            network(vectors(network, backbone, 7), backbone)
        assert forward.get_total_flops() == 7 * shape.forward_flop(backbone)
    with FlopCounterMode(display=False) as step:
        sum(
            network(vectors(network, backbone, 5), backbone).sum() for backbone in widths
        ).backward()
    charged = shape.training_step(dict.fromkeys(widths, 5))
    extra = 0 if all(map(shape.is_projected, widths)) else _first_gradient_slack(shape, widths)
    assert 0 <= charged.flop - step.get_total_flops() <= extra
    assert (
        charged.bytes_moved == 28 * shape.parameters()
        and charged.peak_bytes == 16 * shape.parameters()
    )


def _first_gradient_slack(shape, widths):
    """Autograd leaves out the gradient towards unprojected vectors at the first adapter's `down`,
    which the rule charges.
    """
    return sum(
        0 if shape.is_projected(name) else 5 * 2 * shape.width * shape.bottleneck for name in widths
    )


def test_the_papers_sizes():
    shape = shape_for(SideNetworkConfig(bottleneck=16, start="zero"), 12, {"roberta-base": 768}, 2)
    weights = 12 * (2 * 768 * 16 + 1)  # L(2dr + 1), without norms, biases and head
    assert weights == 294_924
    assert shape.parameters() == weights + 12 * (768 + 16 + 2 * 768) + 2 * 768 + 768 * 2 + 2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_network_predicts_the_same_bits(name, tmp_path):
    network = network_of(CONFIGS[name]).eval()
    save_side_network(
        network, tmp_path / "side.safetensors", readout="mean", taps=json.dumps([1, 2])
    )
    again, notes = load_side_network(tmp_path / "side.safetensors")
    assert notes == {"readout": "mean", "taps": "[1, 2]"}
    assert again.shape == network.shape and again.config == network.config and not again.training
    for backbone in WIDTHS:
        a = vectors(network, backbone)
        assert torch.equal(again(a, backbone), network(a, backbone))


@pytest.mark.parametrize("name", ["a b", "ö/ä", "llama-3.2", "keys"])
def test_a_backbone_may_have_any_name(name, tmp_path):
    network = network_of(CONFIGS["layer"], widths={name: 24, "plain": 32, "other": 32})
    save_side_network(network, tmp_path / "side.safetensors")
    again, _ = load_side_network(tmp_path / "side.safetensors")
    assert torch.equal(again(vectors(network, name), name), network(vectors(network, name), name))


def test_the_start_follows_from_the_seed_and_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, three = (network_of(CONFIGS["layer"], seed=seed, stirred=False) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.adapters[0].down.weight, three.adapters[0].down.weight)


def test_the_documentation_has_every_setting_with_its_default():
    from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
    from sim.methods.side_tuning.shipping import Shipping

    section = DOCUMENT.read_text(encoding="utf-8").split("\n## Settings")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    documented = {row[0].strip("| `"): row[1].strip(" `|") for row in rows}
    settings = {
        name: f.default for name, f in FedMobiLLM.Config.model_fields.items() if name != "kind"
    }
    settings |= {field.name: field.default for field in dataclasses.fields(SideNetworkSettings)}
    assert settings.keys() == documented.keys()
    for name, default in settings.items():
        if default is not None and name != "side_network":
            written = documented[name]
            value = json.loads(written) if isinstance(default, bool | int | float) else written
            if isinstance(default, Shipping):
                value = Shipping(**yaml.safe_load(written))
            said = default[0] if name == "wire" else default  # a list of one
            assert value == said, name


def test_the_documentations_snippet_is_python_and_names_what_there_is():
    import inspect

    from learning.side.inference import SidePredictor

    snippet = DOCUMENT.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    compile(snippet, "snippet", "exec")
    assert "SidePredictor.load(" in snippet and ".predict(" in snippet
    assert list(inspect.signature(SidePredictor.load).parameters) == [
        "run_dir_or_file",
        "backbone",
        "own",
    ]


def test_what_is_shipped_holds_the_statistics_too():
    shape = network_of(CONFIGS["standard"]).shape
    plain = dataclasses.replace(shape, normalise="layer")
    for backbone, width in WIDTHS.items():
        assert plain.shipped_bytes(backbone, "float32") == 4 * plain.parameters(backbone)
        assert (
            shape.shipped_bytes(backbone, "float32") - plain.shipped_bytes(backbone, "float32")
            == 4 * 2 * shape.vectors * width
        )


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"averaging": -0.1}, {"bottleneck": 0}, {"width": -5}]
)
def test_settings_that_make_no_network_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SideNetworkConfig(**wrong)


def test_vectors_are_scaled_by_the_statistics_of_now_however_these_came():
    rng = np.random.default_rng(0)

    def fresh(*batches):
        standardiser = Standardiser(3, 8)
        for batch in batches:
            standardiser.observe(batch)
        return standardiser

    parts = [torch.from_numpy(rng.normal(k, k, (10, 3, 8)).astype(np.float32)) for k in (1, 2, 3)]
    one = fresh()
    assert torch.equal(one(parts[0]), parts[0])
    for count in (1, 2, 3):
        one.observe(parts[count - 1])
        with torch.inference_mode():
            assert torch.equal(one(parts[0]), fresh(*parts[:count])(parts[0]))
        assert torch.equal(one(parts[0]), fresh(*parts[:count])(parts[0]))
    other = fresh(parts[2])
    other(parts[0])
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(parts[0]), one(parts[0]))
    twin = copy.deepcopy(one)
    twin.observe(parts[0])
    assert torch.equal(twin(parts[0]), fresh(*parts, parts[0])(parts[0]))
    assert torch.equal(one(parts[0]), fresh(*parts)(parts[0]))
