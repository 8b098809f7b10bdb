"""Codecs: what a chain says, what comes back within which error, and how many bytes that takes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.codecs.chain import NUMBERS, CodecError, chain_of, place_bytes
from learning.codecs.numbers import (
    arrived,
    from_tensors,
    largest_places,
    read_note,
    shapes_of,
    to_tensors,
)
from learning.side.activations import Activations, decode, encode, encoded_nbytes

CHAINS = [
    [*top, number, *coder]
    for number, top, coder in itertools.product(
        NUMBERS, ([], ["top-3"], ["top-0.4"]), ([], ["zstd"])
    )
    if not (top and number.endswith("-channel"))
]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(3, 70))


def vectors(shape, seed=0, scale=1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def error_of(number: str, values: np.ndarray) -> np.ndarray:
    """What rounding may cost each number."""
    if number == "float32":
        return np.zeros_like(values)
    if number == "float16":
        return np.maximum(2.0**-11 * np.abs(values), 2.0**-25)
    if number == "bfloat16":
        return 2.0**-8 * np.abs(values)
    axis = 0 if number.endswith("-channel") else -1
    largest = np.abs(values).max(axis=axis, keepdims=True)
    step = np.maximum(largest / (127 if "8" in number else 7), 6.2e-5)
    return np.broadcast_to(0.5 * step + 2.0**-10 * largest, values.shape)


@settings(deadline=None)
@given(SHAPES, st.sampled_from(CHAINS), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 200.0]))
def test_what_is_kept_comes_back_within_its_precision_and_the_rest_is_zero(
    shape, words, seed, scale
):
    chain, sent = chain_of(words), vectors(shape, seed, scale)
    back = from_tensors(to_tensors(sent, chain), chain, shape)
    assert back.dtype == np.float32 and back.shape == shape
    if chain.top is not None:
        kept = arrived(sent, chain_of([words[0], "float32"]))
    else:
        kept = sent
    assert np.all(np.abs(back - kept) <= error_of(chain.number, kept) * (1 + 1e-5))
    assert not back[kept == 0].any()
    assert (np.count_nonzero(kept, axis=-1) <= chain.kept(shape[-1])).all()


@settings(deadline=None)
@given(SHAPES, st.sampled_from(CHAINS), st.integers(0, 9))
def test_bytes_follow_from_the_shape_but_for_entropy_coding(shape, words, seed):
    chain = chain_of(words)
    tensors = to_tensors(vectors(shape, seed), chain.without_coder)
    sizes = {"F32": 4, "F16": 2, "U16": 2, "I8": 1, "U8": 1}
    said = shapes_of(chain, shape)
    assert {n: (t.nbytes, t.shape) for n, t in tensors.items()} == {
        n: (sizes[kind] * math.prod(dims), dims) for n, (kind, dims) in said.items()
    }
    if not chain.by_channel:  # whose scales belong to no vector
        records, layers, width = shape
        total = sum(t.nbytes for t in tensors.values())
        assert total == records * layers * chain.vector_bytes(width)


@settings(deadline=None)
@given(SHAPES, st.sampled_from(CHAINS), st.integers(0, 9))
def test_a_payload_tells_by_itself_how_it_is_read(shape, words, seed):
    records = Activations(
        vectors(shape, seed), vectors((shape[0], 2), seed), np.arange(shape[0]) + 5
    )
    data, chain = encode(records, words), chain_of(words)
    got = decode(data, shape[-1])
    again = from_tensors(to_tensors(records.values, chain), chain, shape)
    assert np.array_equal(got.values, again) and np.array_equal(got.samples, records.samples)
    size = encoded_nbytes(tuple(words), *shape, 2)
    assert len(data) == size if chain.coder is None else len(data) < size + 96
    if chain.is_plain and chain.number in ("float32", "float16", "int8", "int4"):
        assert read_note(data) is None  # so that payloads are what they were


def test_bfloat16_is_torchs():
    drawn = [vectors((4, 500), 3), vectors((4, 500), 4, 1e-30), vectors((4, 9), 5, 1e30)]
    odd = np.array([[0.0, -0.0, 3.3895e38, -3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]], np.float32)
    for values in (np.concatenate(drawn, axis=1), odd):
        chain = chain_of("bfloat16")
        back = from_tensors(to_tensors(values, chain), chain, values.shape)
        expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
        finite = np.isfinite(expected)
        assert np.array_equal(back[finite], expected[finite]) and np.isfinite(back).all()


def test_of_equals_the_first_are_kept_and_by_size():
    values = np.array([[1.0, -3.0, 3.0, 0.5, -3.0]], np.float32)
    assert largest_places(values, 2).tolist() == [[1, 2]]
    assert arrived(values, chain_of(["top-3", "float32"])).tolist() == [[0, -3, 3, 0, -3]]
    assert arrived(values, chain_of(["top-0.2", "float32"])).tolist() == [[0, -3, 0, 0, 0]]


def test_places_take_whichever_is_less():
    assert place_bytes(5, 384) == 10 and place_bytes(24, 384) == place_bytes(200, 384) == 48
    assert place_bytes(5, 100_000) == 12_500  # two bytes do not reach so far


def test_a_worked_number():
    # 64 coordinates of 8 bits and a scale; a tenth of 384 numbers in half precision with 48 bytes
    # of bits; half a byte a number
    assert chain_of(["pca-64", "int8", "zstd"]).vector_bytes(384) == 66
    assert chain_of(["top-0.1", "float16"]).vector_bytes(384) == 38 * 2 + 48
    assert chain_of("int4").vector_bytes(385) == 193 + 2
    assert chain_of("int4-channel").vector_bytes(385) == 193


def test_entropy_coding_shortens_what_repeats_itself():
    chain = chain_of(["float32", "zstd"])
    flat = np.full((8, 3, 384), 0.1, np.float32)
    assert to_tensors(flat, chain)["values"].nbytes < flat.nbytes / 100
    assert np.array_equal(from_tensors(to_tensors(flat, chain), chain, flat.shape), flat)


@pytest.mark.parametrize(
    "words, said",
    [
        ("int2", "'int2' is no part of a wire (did you mean int8?): a wire is one number format"),
        (["pca-64"], "there is no number format"),
        ([], "there is no number format"),
        (["int8", "int4"], "'int4' is a second number"),
        (["zstd", "int8"], "'int8' comes too late"),
        (["int8", "pca-4"], "'pca-4' comes too late"),
        (["top-0", "int8"], "'top-0' is no part"),
        (["top-1.5", "int8"], "'top-1.5' is no part"),
        (["top-nan", "int8"], "'top-nan' is no part"),
        (["pca-0", "int8"], "'pca-0' is no part"),
        (["top-1.0", "int8"], "'top-1.0' is no part of a wire: a wire is"),
        (["tob-0.1", "int8"], "'tob-0.1' is no part of a wire (did you mean top-0.1?)"),
        (["random-\u0661\u0662", "int8"], "is no part of a wire"),
        (["top-\u0660.\u0661", "int8"], "is no part of a wire"),
        (["top-0_0.1", "int8"], "is no part of a wire"),
        (["top-" + 5000 * "9", "int8"], "is no part of a wire"),
        (["top-3", "int8-channel"], "has no scale for them: say int8"),
    ],
)
def test_what_is_no_wire_is_refused_in_words(words, said):
    with pytest.raises(CodecError) as caught:
        chain_of(words)
    assert said in str(caught.value)


def test_vectors_that_are_too_short_are_refused():
    with pytest.raises(CodecError, match="pca-64: vectors of 32 numbers have not so many coord"):
        chain_of(["pca-64", "int8"]).width(32)
    with pytest.raises(
        CodecError, match="top-9: of 8 numbers there are not so many: say at most 8"
    ):
        chain_of(["random-8", "top-9", "int8"]).vector_bytes(32)


@settings(deadline=None)
@given(SHAPES, st.sampled_from(CHAINS), st.integers(0, 9))
def test_what_has_arrived_is_sent_as_it_is(shape, words, seed):
    chain = chain_of(words)
    once = from_tensors(to_tensors(vectors(shape, seed), chain), chain, shape)
    again = from_tensors(to_tensors(once, chain), chain, shape)
    step = error_of(chain.number, once)
    assert np.all(np.abs(again - once) <= 0.05 * step + 1e-6)


@pytest.mark.parametrize("words", CHAINS, ids=",".join)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_comes_back_as_that(words, bad):
    chain, sent = chain_of(words), vectors((2, 3, 8))
    sent[1, 1, 5] = bad
    back = from_tensors(to_tensors(sent, chain), chain, sent.shape)
    assert not np.isfinite(back).all()
    shapes = {name: t.shape for name, t in to_tensors(vectors((2, 3, 8)), chain).items()}
    if chain.coder is None:  # as many bytes as ever
        assert {name: t.shape for name, t in to_tensors(sent, chain).items()} == shapes
