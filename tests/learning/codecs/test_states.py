"""Changes of models on the wire: sizes, what comes back, and what error feedback makes up for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.codecs import states
from learning.codecs.chain import CodecError, chain_of

WIRES = ["float32", "float16", "bfloat16", "int8", "int4", "top-0.1,int8", "top-7,float32"]
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=4)


def change_of(sizes, seed=0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randn(size, generator=draws) for i, size in enumerate(sizes)}


def numbers_of(change) -> np.ndarray:
    return torch.cat([tensor.flatten() for tensor in change.values()]).numpy()


@settings(deadline=None)
@given(SIZES, st.sampled_from(WIRES), st.integers(0, 9))
def test_what_comes_back_is_near_and_as_many_bytes_as_said(sizes, wire, seed):
    change, chain = change_of(sizes, seed), chain_of(wire)
    if wire == "top-7,float32" and sum(sizes) < 7:
        return
    data = states.to_bytes(change, chain)
    assert len(data) == states.nbytes(sum(sizes), chain)
    back = states.from_bytes(data, change, chain)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in change.items()}
    sent, got = numbers_of(change), numbers_of(back)
    kept = got != 0 if chain.top is not None else np.ones(len(sent), dtype=bool)
    step = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 250, "int4": 1 / 13.8}
    assert np.all(np.abs(got - sent)[kept] <= step[chain.number] * np.abs(sent).max() + 1e-6)
    if chain.top is not None and 0 < kept.sum() < len(sent):
        assert np.abs(sent[~kept]).max() <= np.abs(sent[kept]).min() + 1e-2


def test_a_worked_size():
    # 1,000 numbers: four blocks of 256 of a byte each, and a scale of four bytes a block; a tenth
    # of them in bytes, one scale, and a bit for each place
    assert states.nbytes(1000, chain_of("int8")) == 4 * 256 + 4 * 4
    assert states.nbytes(1000, chain_of("top-0.1,int8")) == 100 + 4 + 125


def test_the_smallest_changes_keep_their_precision():
    change = {name: 1e-9 * tensor for name, tensor in change_of([300], 3).items()}
    chain = chain_of("int8")
    back = states.from_bytes(states.to_bytes(change, chain), change, chain)
    off = np.abs(numbers_of(back) - numbers_of(change)).max()
    assert off <= np.abs(numbers_of(change)).max() / 250


def test_errors_that_are_fed_back_are_made_up_for():
    """The mean of many changes that arrive comes to the mean of those that were meant (Karimireddy
    et al. 2019, lemma 3): what is lost stays bounded, so its share falls with their number.
    """
    chain, meant, arrived = chain_of("top-0.1,int8"), np.zeros(300), np.zeros(300)
    lost, unfed = None, np.zeros(300)
    for round_ in range(100):
        change = {"t0": change_of([300], 0)["t0"] + 0.2 * change_of([300], round_ + 1)["t0"]}
        meant += numbers_of(change)
        unfed += numbers_of(states.from_bytes(states.to_bytes(change, chain), change, chain))
        if lost is not None:
            change = {"t0": change["t0"] + lost["t0"]}
        back = states.from_bytes(states.to_bytes(change, chain), change, chain)
        lost = {"t0": change["t0"] - back["t0"]}
        arrived += numbers_of(back)
    assert np.allclose(arrived + lost["t0"].numpy(), meant, atol=1e-2)
    assert np.linalg.norm(arrived - meant) < 0.2 * np.linalg.norm(unfed - meant)


@pytest.mark.parametrize("wire", ["pca-4,int8", "int8-channel", "int8,zstd"])
def test_what_no_change_is_sent_by_is_refused(wire):
    with pytest.raises(CodecError, match="a change of a model is sent by a number format"):
        states.require_by_shape(chain_of(wire), "a change of a model is sent")


def test_bytes_of_another_size_are_refused():
    with pytest.raises(ValueError, match="5 bytes are not 256 numbers as int8"):
        states.from_bytes(b"12345", change_of([3]), chain_of("int8"))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_change_that_is_not_finite_does_not_arrive_as_one_that_is(wire, bad):
    change, chain = change_of([300, 20], 0), chain_of(wire)
    change["t0"][7] = bad
    data = states.to_bytes(change, chain)
    assert len(data) == states.nbytes(320, chain)
    assert not np.isfinite(numbers_of(states.from_bytes(data, change, chain))).all()
