"""What crosses the link: sizes known without the numbers, precision by its step, and traps of
memory layout.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from learning.codecs.chain import CodecError
from learning.side.activations import Activations, decode, encode, encoded_nbytes

WIRES = ("float32", "float16", "int8", "int4")

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 13), st.integers(1, 300), st.integers(1, 20))


def records(shape, seed=0, scale=1.0):
    n, vectors, hidden, classes = shape
    rng = np.random.default_rng(seed)
    values = (scale * rng.normal(size=(n, vectors, hidden))).astype(np.float32)
    return Activations(
        values, rng.uniform(-1, 1, (n, classes)).astype(np.float32), rng.integers(0, 2**31 - 1, n)
    )


@settings(deadline=None)
@given(SHAPES, st.sampled_from(WIRES), st.integers(0, 99))
def test_the_size_follows_from_the_shape_alone(shape, wire, seed):
    payload = encode(records(shape, seed, 10.0 ** (seed % 7 - 3)), wire)
    assert len(payload) == encoded_nbytes(wire, *shape)


@settings(deadline=None)
@given(SHAPES, st.sampled_from(WIRES))
def test_the_size_is_that_of_the_numbers_and_a_small_header(shape, wire):
    n, vectors, hidden, classes = shape
    number, target = {"float32": (4, 4), "float16": (2, 2), "int8": (1, 2), "int4": (0.5, 2)}[wire]
    body = n * (vectors * math.ceil(hidden * number) + classes * target + 4) + (
        2 * n * vectors if wire.startswith("int") else 0
    )
    assert 0 < encoded_nbytes(wire, *shape) - body < 400


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_what_comes_back_is_within_the_wires_step(wire, scale):
    sent = records((9, 3, 64, 6), scale=scale)
    got = decode(encode(sent, wire))
    assert got.values.dtype == got.targets.dtype == np.float32 and got.samples.dtype == np.int64
    assert np.array_equal(got.samples, sent.samples) and len(got) == 9
    if wire == "float32":
        assert np.array_equal(got.values, sent.values) and np.array_equal(got.targets, sent.targets)
        return
    assert np.all(np.abs(got.targets - sent.targets) <= 2.0**-11)
    largest = np.abs(sent.values).max(axis=-1, keepdims=True)
    if wire == "float16":  # half a unit in the last place of 11 bits, or of the smallest subnormal
        assert np.all(
            np.abs(got.values - sent.values) <= np.maximum(2.0**-11 * np.abs(sent.values), 2.0**-25)
        )
    # half a step of 1/127 (or 1/7) of the vector's largest, and the scale's own rounding to half
    # precision
    else:
        step = np.maximum(
            largest / {"int8": 127, "int4": 7}[wire], np.finfo(np.float16).tiny
        )  # no scale is below half precision's normal range
        assert np.all(np.abs(got.values - sent.values) <= 0.5 * step + 1.1 * 2.0**-10 * largest)


@given(
    hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-60_000, 60_000, width=32)),
    st.sampled_from(WIRES),
)
def test_arbitrary_finite_numbers_come_back_finite_and_near(values, wire):
    sent = Activations(values, np.zeros((2, 2), np.float32), np.arange(2))
    got = decode(encode(sent, wire), hidden=5).values  # an odd width
    largest = np.abs(values).max(axis=-1, keepdims=True)
    off = largest / (13.9 if wire == "int4" else 200) + 0.01
    assert np.isfinite(got).all() and np.all(np.abs(got - values) <= off)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "view", [lambda v: v[:, ::2], lambda v: v[::-1], lambda v: v.swapaxes(0, 1), np.asfortranarray]
)
def test_strides_do_not_matter(wire, view):
    values = view(records((8, 8, 16, 1)).values)
    assert not (values.flags.c_contiguous and values.base is None)
    targets = np.asfortranarray(np.random.default_rng(1).uniform(-1, 1, (8, 6)).astype(np.float32))
    sent = Activations(values, targets, np.arange(16)[::2])
    plain = Activations(values.copy("C"), targets.copy("C"), np.arange(0, 16, 2))
    assert encode(sent, wire) == encode(plain, wire)
    off = 0.03 if wire != "int4" else np.abs(values).max() / 13.9
    assert np.allclose(decode(encode(sent, wire)).values, values, atol=off)


def test_half_precision_saturates_instead_of_overflowing():
    values = np.array([[[1e6, -1e6, 65504, 1.0]]], np.float32)
    got = decode(
        encode(Activations(values, np.zeros((1, 2), np.float32), np.zeros(1)), "float16")
    ).values
    assert np.array_equal(got, [[[65504, -65504, 65504, 1.0]]])


def test_int8_gives_each_vector_its_own_scale_and_keeps_zeros():
    values = np.zeros((2, 2, 4), np.float32)
    values[0, 0] = [1000, -1000, 500, 0]
    values[1, 1] = [1e-3, -1e-3, 5e-4, 0]
    got = decode(
        encode(Activations(values, np.zeros((2, 2), np.float32), np.arange(2)), "int8")
    ).values
    assert np.all(got[0, 1] == 0) and np.all(got[1, 0] == 0)
    assert np.allclose(got[0, 0], values[0, 0], rtol=0.01, atol=4.0)
    assert np.allclose(
        got[1, 1] * 1e3, values[1, 1] * 1e3, atol=0.5
    )  # below half precision's normal range: coarse


def test_an_unknown_wire_is_refused():
    with pytest.raises(
        CodecError, match=r"'int2' is no part of a wire \(did you mean int8\?\): a wire is"
    ):
        encode(records((1, 1, 1, 1)), "int2")


def test_the_worked_number_of_the_documentation():
    # RoBERTa-base, 12 sampled layers and the embedding output, two classes, float32
    assert (
        encoded_nbytes("float32", 2, 13, 768, 2) - encoded_nbytes("float32", 1, 13, 768, 2)
        == 39_936 + 2 * 4 + 4
    )
    assert 13 * 768 * 4 == 39_936 and 12 * 768 * 4 == 36_864
    assert encoded_nbytes("float32", 8, 13, 768, 2) == 319_800
    assert encoded_nbytes("float16", 8, 13, 768, 2) == 160_016
    assert encoded_nbytes("int8", 8, 13, 768, 2) == 80_416
