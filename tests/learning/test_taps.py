"""Layer sampling: the average-interval rule by its properties, and what is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.side.taps import average_interval, sample


@given(
    st.integers(1, 200).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers)))
)
def test_one_layer_a_block_rising_to_the_last_evenly(case):
    layers, blocks = case
    chosen = average_interval(layers, blocks)
    assert len(chosen) == blocks and chosen[-1] == layers and chosen[0] >= 1
    assert all(b > a for a, b in itertools.pairwise(chosen))
    assert all(abs(layer - k * layers / blocks) <= 0.5 for k, layer in enumerate(chosen, 1))
    gaps = {b - a for a, b in itertools.pairwise((0, *chosen))}
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(1, 200))
def test_as_many_blocks_as_layers_takes_them_all(layers):
    assert average_interval(layers, layers) == tuple(range(1, layers + 1))


def test_worked_examples():
    assert average_interval(24, 12) == tuple(range(2, 25, 2))
    assert average_interval(6, 4) == (2, 3, 5, 6)  # 1.5, 3, 4.5, 6, halves up
    assert sample({"small": 12, "large": 24}) == {
        "small": tuple(range(1, 13)),
        "large": tuple(range(2, 25, 2)),
    }
    assert sample({"a": 6, "b": 4}, 2) == {"a": (3, 6), "b": (2, 4)}
    assert sample({"a": 6, "b": 4}, [0, 3]) == {"a": (0, 3), "b": (0, 3)}


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 60), min_size=1))
def test_every_backbone_of_a_fleet_gives_as_many_vectors(depths):
    sampled = sample(depths)
    assert {len(layers) for layers in sampled.values()} == {min(depths.values())}
    assert all(layers[-1] == depths[name] for name, layers in sampled.items())


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (5, "5 sampled layers, but b, the shallowest backbone of the fleet, has 4"),
        ([1, 5], "layer 5 does not exist in b, which has 4 layers"),
        ([2, 1], "not an increasing list"),
        ([1, 1], "not an increasing list"),
        ([-1, 1], "not an increasing list"),
        ([], "not an increasing list"),
        (0, "0 blocks cannot be cut"),
    ],
)
def test_what_cannot_be_sampled_is_refused(taps, message):
    with pytest.raises(ValueError, match=message):
        sample({"a": 6, "b": 4}, taps)
