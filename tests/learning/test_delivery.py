"""A side network on its way to a device: bytes by hand, rounding, and what arrives."""

import runpy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from learning.side.config import Precision, SideNetworkConfig, shape_for
from learning.side.delivery import decode, delivered, encode
from learning.side.network import SideNetwork

networks = runpy.run_path(str(Path(__file__).with_name("test_side_network.py")))
network_of, vectors, CONFIGS, WIDTHS = (
    networks[name] for name in ("network_of", "vectors", "CONFIGS", "WIDTHS")
)
CONFIGS = {
    **CONFIGS,
    "ridge": SideNetworkConfig(skip="ridge"),
    "no adapters": SideNetworkConfig(skip="ridge", adapters=0),
}
PRECISIONS = get_args(Precision)


def trained(name):
    """A side network that has learned something, its skip too."""
    network = network_of(CONFIGS[name])
    if network.shape.skip != "none":
        generator = torch.Generator().manual_seed(3)
        seen = {backbone: vectors(network, backbone, 60, seed=4) for backbone in WIDTHS}
        network.fit({b: (a, torch.randn(60, 4, generator=generator)) for b, a in seen.items()})
    return network


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_bytes_as_the_shape_says(name, precision):
    network = trained(name)
    for backbone in WIDTHS:
        sent = encode(network, backbone, precision)
        assert len(sent) == network.shape.shipped_bytes(backbone, precision)


def test_the_bytes_by_hand():
    """One block of width 4, bottleneck 2, three classes. Matrices: 2 x 4, 4 x 2, 3 x 4. Others:
    biases 2 + 4 + 3, two norms of 8, one gate, and the mean and deviation of two vectors of 4.
    """
    config = SideNetworkConfig(bottleneck=2)
    shape = shape_for(config, 1, {"own": 4}, 3)
    matrices, others = 8 + 8 + 12, 9 + 16 + 1 + 16
    scales = 2 + 2 + 3  # a line runs the longer way
    by_hand = {
        "float32": 4 * (matrices + others),
        "float16": 2 * (matrices + others),
        "int8": matrices + 4 * scales + 2 * others,
    }
    network = SideNetwork(shape, config)
    for precision, nbytes in by_hand.items():
        assert shape.shipped_bytes("own", precision) == nbytes
        assert len(encode(network, "own", precision)) == nbytes


def test_a_projection_goes_along_line_by_line():
    shape = shape_for(SideNetworkConfig(normalise="none", width=4), 1, {"own": 6}, 3)
    plain = shape_for(SideNetworkConfig(normalise="none", width=4), 1, {"own": 4}, 3)
    more = {p: shape.shipped_bytes("own", p) - plain.shipped_bytes("own", p) for p in PRECISIONS}
    assert more == {"float32": 4 * 48, "float16": 2 * 48, "int8": 48 + 4 * 2 * 4}  # 2 of 6 x 4


def test_rounding_by_hand():
    """127 steps to the largest of a line: 2.54 is 127, and 0.031 is one and a half, thus two."""
    network = SideNetwork(
        shape_for(SideNetworkConfig(bottleneck=1), 1, {"own": 4}, 2),
        SideNetworkConfig(bottleneck=1),
    )
    network.adapters[0].down.weight.data = torch.tensor([[2.54, -0.031, 0.0, -1.27]])
    network.adapters[0].up.weight.data.zero_()  # a line of zeros stays one
    there = delivered(network, "int8")
    got = there.adapters[0].down.weight.detach().numpy()
    np.testing.assert_allclose(got, [[2.54, -0.04, 0.0, -1.28]], rtol=1e-6)
    assert not there.adapters[0].up.weight.any()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("precision", "slack"), [("float32", 1e-6), ("float16", 2e-3), ("int8", 4e-2)]
)
def test_what_arrives_predicts_as_what_was_sent(name, precision, slack):
    network = trained(name)
    there = delivered(network, precision)
    with torch.no_grad():
        for backbone in WIDTHS:
            a = vectors(network, backbone)
            want, got = network(a, backbone), there(a, backbone)
            assert float((got - want).abs().max()) <= slack * float(want.abs().max())


def test_a_device_gets_its_own_projections_and_statistics_alone():
    network = network_of(CONFIGS["standard"])
    mine, other = encode(network, "small", "float16"), encode(network, "large", "float16")
    network.projection("large").data += 1
    network.observe(vectors(network, "large", seed=7), "large")
    assert encode(network, "small", "float16") == mine
    assert encode(network, "large", "float16") != other


def test_a_network_that_saw_no_record_of_a_backbone_standardises_nothing_there_either():
    config = CONFIGS["standard"]
    network = SideNetwork(shape_for(config, 2, {"own": 8}, 3), config)
    torch.nn.init.normal_(network.head.weight)
    a = vectors(network, "own")
    with torch.no_grad():
        assert torch.allclose(delivered(network, "float32")(a, "own"), network(a, "own"))


def test_a_skip_that_was_never_solved_arrives_as_none():
    network = network_of(CONFIGS["ridge"])
    a = vectors(network, "same")
    with torch.no_grad():
        assert torch.allclose(delivered(network, "float32")(a, "same"), network(a, "same"))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_other_bytes_are_refused(change):
    network = network_of(CONFIGS["layer"])
    with pytest.raises(ValueError, match="bytes"):
        decode(change(encode(network, "same", "int8")), network, "same", "int8")


def test_what_half_precision_cannot_hold_arrives_as_its_largest():
    network = network_of(CONFIGS["layer"])
    network.head.bias.data[:2] = torch.tensor([1e6, -1e6])
    for precision in ("float16", "int8"):
        there = delivered(network, precision)
        assert there.head.bias[:2].tolist() == [65504.0, -65504.0]


def test_one_record_standardises_nothing_there_either():
    config = CONFIGS["standard"]
    network = SideNetwork(shape_for(config, 2, {"own": 8}, 3), config)
    torch.nn.init.normal_(network.head.weight)
    network.observe(vectors(network, "own", 1, seed=5), "own")
    a = vectors(network, "own")
    with torch.no_grad():
        assert torch.allclose(delivered(network, "float32")(a, "own"), network(a, "own"))
