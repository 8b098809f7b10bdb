"""Full hidden states: equal to the backbone's own, quantised within half a scale, and as many bytes
as said.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from learning.backbones.tokens import Tokens
from learning.codecs.chain import CodecError
from learning.codecs.numbers import pack_nibbles, quantise, unpack_nibbles
from learning.side import full_activations as full
from learning.side.full_activations import FullActivations

LENGTHS = [5, 1, 17, 9]
NUMBERS = {32: "float32", 16: "float16", 8: "int8", 4: "int4"}
FORMATS = (*NUMBERS.values(), "bfloat16", "int8-channel", "int4-channel")


def batch_of(backbone, tokens, layers, classes=3):
    values, lengths = full.full_states(backbone, tokens, layers)
    rng = np.random.default_rng(0)
    return FullActivations(
        values, lengths, rng.random((len(tokens), classes), np.float32), np.arange(len(tokens))
    )


def noise(records_lengths, layers, hidden, classes=2, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((layers, sum(records_lengths), hidden)).astype(
        np.float32
    ) * np.float32(spread)
    n = len(records_lengths)
    return FullActivations(
        values, np.array(records_lengths), rng.random((n, classes), np.float32), np.arange(n) + 7
    )


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("readout", ["first", "last", "mean"])
def test_pooled_on_the_server_equals_the_backbones_readouts(backbone, some_tokens, readout, pairs):
    tokens = some_tokens(backbone, LENGTHS, pairs=pairs)
    layers = [0, 1, backbone.layers]
    got = full.pooled(batch_of(backbone, tokens, layers), readout)
    expected = backbone.readouts(tokens, readout)[:, layers]
    assert got.shape == expected.shape and got.dtype == np.float32 and got.flags["C_CONTIGUOUS"]
    assert np.all(np.abs(got - expected) <= 2e-5 * np.abs(expected).max(axis=-1, keepdims=True))


def test_padding_never_enters(backbone, some_tokens):
    tokens = some_tokens(backbone, LENGTHS)
    together, lengths = full.full_states(backbone, tokens, [backbone.layers])
    assert lengths.tolist() == LENGTHS and together.shape == (1, sum(LENGTHS), backbone.hidden_size)
    for index, (start, length) in enumerate(
        zip(np.cumsum([0, *LENGTHS[:-1]]), LENGTHS, strict=True)
    ):
        alone, _ = full.full_states(backbone, Tokens([tokens.ids[index]]), [backbone.layers])
        assert np.allclose(
            together[:, start : start + length], alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max()
        )


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_payload_brings_back_what_its_precision_keeps(get, some_tokens, bits):
    backbone = get("random-bert")
    sent = batch_of(backbone, some_tokens(backbone, LENGTHS), [1, 2])
    back = full.decode(full.encode(sent, NUMBERS[bits]), backbone.hidden_size, NUMBERS[bits])
    assert np.array_equal(back.lengths, sent.lengths) and np.array_equal(back.samples, sent.samples)
    peak = np.abs(sent.values).max(axis=-1, keepdims=True)
    allowed = {32: 0 * peak, 16: peak * 2**-11, 8: peak / 127 * 0.501, 4: peak / 7 * 0.501}[bits]
    assert np.all(np.abs(back.values - sent.values) <= allowed)
    assert np.allclose(back.targets, sent.targets, atol=0 if bits == 32 else 5e-4)
    if bits < 16:  # the bound is not slack: rounding to so few levels does lose something
        assert np.abs(back.values - sent.values).max() > 0.2 * allowed.max()


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(-4e5, 4e5, width=32),
    )
)
def test_rounding_errs_by_at_most_half_a_scale(values, bits):
    rounded, scale = quantise(values, bits)
    largest = {8: 127, 4: 7}[bits]
    assert scale.shape == (*values.shape[:-1], 1) and np.abs(rounded).max() <= largest
    exact = scale.astype(np.float64)
    error = np.abs(rounded * exact - values.astype(np.float64))
    assert np.all(error <= exact / 2 * (1 + 1e-5))
    peak = np.abs(values).max(axis=-1, keepdims=True)
    assert np.all(
        exact <= np.maximum(peak / largest, 6.104e-5) * (1 + 2**-10)
    )  # and no coarser than it need be


@given(
    values=hnp.arrays(
        np.int8, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(-7, 7)
    )
)
def test_nibbles_unpack_to_what_was_packed(values):
    packed = pack_nibbles(values)
    assert packed.dtype == np.uint8 and packed.shape[-1] == (values.shape[-1] + 1) // 2
    assert np.array_equal(unpack_nibbles(packed, values.shape[-1]), values)


def test_the_first_number_lies_in_the_low_half():
    assert pack_nibbles(np.array([[-7, 7, 0]], np.int8)).tolist() == [[0xF1, 0x88]]


@settings(max_examples=150, deadline=None)
@given(
    wire=st.sampled_from(FORMATS),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    layers=st.integers(1, 13),
    hidden=st.integers(1, 70),
    classes=st.integers(1, 12),
)
def test_bytes_follow_from_the_shapes(wire, lengths, layers, hidden, classes):
    payload = full.encode(noise(lengths, layers, hidden, classes), wire)
    assert len(payload) == full.encoded_nbytes(
        wire, len(lengths), sum(lengths), layers, hidden, classes
    )


@pytest.mark.parametrize("wire", FORMATS)
def test_any_memory_layout_gives_the_same_payload(wire):
    plain = noise([3, 4], 2, 6)
    strided = FullActivations(
        np.asfortranarray(plain.values), plain.lengths, plain.targets, plain.samples
    )
    assert full.encode(strided, wire) == full.encode(plain, wire)


def test_numbers_beyond_half_precision_saturate():
    huge = noise([2], 1, 4, spread=1e6)
    assert np.isfinite(full.decode(full.encode(huge, "float16"), 4, "float16").values).all()
    huge = noise([2], 1, 4, spread=1e9)
    assert np.isfinite(full.decode(full.encode(huge, "int4"), 4, "int4").values).all()


def test_zeros_stay_zeros():
    nothing = noise([2], 1, 4, spread=0.0)
    for wire in FORMATS:
        assert not full.decode(full.encode(nothing, wire), 4, wire).values.any()


def test_what_is_not_offered_is_refused():
    with pytest.raises(CodecError, match="'int2' is no part of a wire"):
        full.encode(noise([2], 1, 4), "int2")
    with pytest.raises(CodecError, match="whole matrices are sent in a number format alone"):
        full.encode(noise([2], 1, 4), ["int8", "zstd"])
    with pytest.raises(ValueError, match="readout 'middle' is not one of first, last, mean"):
        full.pooled(noise([2], 1, 4), "middle")
