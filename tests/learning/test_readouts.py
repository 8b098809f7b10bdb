"""Pooled activations through the store: computed once, in pieces that survive an interruption, the
same bits ever after.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.backbones import batches, catalogue
from learning.backbones.tokens import Tokens
from learning.host_device import HostDevice
from learning.side import readouts
from learning.side.activation_store import ActivationStore
from learning.side.readouts import pooled_activations

CHUNK = HostDevice().texts

SPEC = catalogue.find("random-bert")


def pooled(*asked):
    return pooled_activations(SPEC, *asked).take()


def plain_map(function, items):
    return (function(*item) for item in items)


def texts(count, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return Tokens(
        [rng.integers(2, 2048, rng.integers(1, longest)).astype(np.int32) for _ in range(count)]
    )


def some_of(tokens, chosen):
    return Tokens([tokens.ids[i] for i in chosen])


def test_cold_and_warm_are_the_same_bits_and_warm_computes_nothing(plain_store, monkeypatch):
    tokens = texts(300)
    cold = pooled(tokens, "mean", plain_store, plain_map)
    monkeypatch.setattr(readouts, "compute", lambda *_: pytest.fail("computed again"))
    warm = pooled(tokens, "mean", plain_store, plain_map)
    assert cold.shape == (300, 3, 64) and np.array_equal(cold, warm)
    chosen = np.random.default_rng(1).permutation(300)[:50]
    assert np.array_equal(
        pooled(some_of(tokens, chosen), "mean", plain_store, plain_map),
        cold[chosen],
    )


def test_values_belong_to_their_texts(plain_store, get, some_tokens):
    tokens = texts(CHUNK + 40)
    got = pooled(tokens, "last", plain_store, plain_map)
    for index in (0, 17, CHUNK, CHUNK + 39):
        alone = get("random-bert").readouts(some_of(tokens, [index]), "last")[0]
        assert np.allclose(got[index], alone, atol=1e-5)


def test_progress_counts_what_has_to_be_computed(plain_store):
    tokens, seen = texts(300), []
    pooled(some_of(tokens, range(100)), "mean", plain_store, plain_map)
    pooled_activations(
        SPEC, tokens, "mean", plain_store, plain_map, lambda done, total: seen.append((done, total))
    )
    assert [total for _, total in seen] == [200] * 3
    assert seen[0][0] == 0 and CHUNK <= seen[1][0] < CHUNK + 16 and seen[2][0] == 200


def test_an_interrupted_computation_goes_on_where_it_stopped(plain_store):
    tokens, done = texts(300), []

    def interrupted(function, items):
        for item in items:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(len(item[1]))
            yield function(*item)

    with pytest.raises(KeyboardInterrupt):
        pooled(tokens, "mean", plain_store, interrupted)
    _, missing = plain_store.load(catalogue.fingerprint(SPEC), "mean", tokens)
    assert len(done) == 2 and all(CHUNK <= texts < CHUNK + 16 for texts in done)
    assert len(missing) == 300 - sum(done)
    total = []
    pooled(tokens, "mean", plain_store, plain_map, lambda _, of: total.append(of))
    assert total[0] == 300 - sum(done)


def test_depth_and_readout_have_their_own_entries(plain_store):
    tokens = texts(5)
    whole = pooled(tokens, "mean", plain_store, plain_map)
    first = pooled(tokens, "first", plain_store, plain_map)
    cut = pooled_activations(
        catalogue.find("random-bert-l1"), tokens, "mean", plain_store, plain_map
    ).take()
    assert whole.shape == first.shape == (5, 3, 64) and cut.shape == (5, 2, 64)
    assert not np.array_equal(whole, first)
    assert len({path.parent for path in plain_store.root.rglob("*.safetensors")}) == 3


def test_workers_give_the_same_bits(plain_store, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    tokens = texts(400)
    inline = pooled(tokens, "mean", plain_store, plain_map)
    with ThreadPoolExecutor(2) as pool:
        other = ActivationStore(tmp_path / "other")
        spread = pooled(
            tokens,
            "mean",
            other,
            lambda function, items: pool.map(lambda item: function(*item), items),
        )
    assert np.array_equal(inline, spread)


def test_what_the_store_already_held_does_not_show(plain_store, tmp_path):
    tokens = texts(300)
    cold = pooled(tokens, "mean", plain_store, plain_map)
    warmed = ActivationStore(tmp_path / "warmed")
    pooled(some_of(tokens, range(0, 300, 3)), "mean", warmed, plain_map)
    assert np.array_equal(pooled(tokens, "mean", warmed, plain_map), cold)


def test_a_model_that_does_not_fit_or_gives_no_numbers_leaves_nothing_in_the_store(
    plain_store, own_model
):
    def some_nan_for_one_word(tensors):  # its other words are fine
        tensors["embeddings.word_embeddings.weight"][7] = 1e38
        return tensors

    missing = own_model(
        tensors=lambda tensors: {n: t for n, t in tensors.items() if "layer.1" not in n}
    )
    for folder in (missing, own_model(tensors=some_nan_for_one_word)):
        spec = catalogue.find("mine", {"mine": {"path": str(folder)}})
        with pytest.raises(catalogue.BackboneError):
            pooled_activations(
                spec, Tokens([np.array([4, 7, 5], np.int32)]), "mean", plain_store, plain_map
            )
    assert not list(plain_store.root.rglob("*.safetensors"))


def test_a_set_fills_its_batches_before_it_is_divided():
    lengths, rows = np.random.default_rng(0).integers(1, 33, 700), 8
    parts = [*batches.pieces(lengths, 2, lambda length: rows, 128)]
    assert sorted(np.concatenate(parts)) == list(range(700))
    assert all(128 <= len(part) < 128 + rows for part in parts[:-1])
    computed = [
        (int(length), len(chosen))
        for part in parts
        for length, chosen in batches.batches(batches.padded(lengths[part], 2), lambda length: rows)
    ]
    assert all(length % 2 == 0 for length, _ in computed)
    not_full = [length for length, texts in computed if texts < rows]
    assert len(not_full) == len(set(not_full)) <= 16  # one a padded length


@given(st.lists(st.integers(1, 5000), min_size=1), st.sampled_from([1, 2, 8]))
def test_a_padded_text_is_hardly_longer_and_lengths_are_few(lengths, step):
    lengths = np.array(lengths)
    padded = batches.padded(lengths, step)
    assert np.all(padded >= lengths) and np.all(padded % step == 0)
    assert np.all(padded - lengths < np.maximum(step, lengths / 8))
    assert np.array_equal(batches.padded(padded, step), padded)
    assert np.all(batches.padded(lengths, step, 100)[lengths <= 100] <= 100)
    octave = np.unique(batches.padded(np.arange(1024, 2048), 2))
    assert len(octave) <= 9


def read_by(monkeypatch):
    """The names of the backbones and the numbers of the texts that are really computed."""
    seen, really = [], readouts.compute

    def compute(spec, tokens, readout):
        seen.append((spec.name, len(tokens)))
        return really(spec, tokens, readout)

    monkeypatch.setattr(readouts, "compute", compute)
    return seen


@pytest.mark.parametrize("readout", ["first", "last", "mean"])
def test_a_cut_takes_what_a_deeper_one_has_read_with_the_same_bits(
    plain_store, tmp_path, monkeypatch, readout
):
    cut, tokens = catalogue.find("random-bert-l1"), texts(60)
    own = ActivationStore(tmp_path / "own")
    expected = pooled_activations(cut, tokens, readout, own, plain_map).take()
    seen = read_by(monkeypatch)
    pooled(some_of(tokens, range(0, 60, 2)), readout, plain_store, plain_map)
    got = pooled_activations(cut, tokens, readout, plain_store, plain_map, deeper=[SPEC])
    assert np.array_equal(got.take(), expected)
    assert seen == [("random-bert", 30), ("random-bert-l1", 30)]
    again = pooled_activations(cut, tokens, readout, plain_store, plain_map)
    assert np.array_equal(again.take(), expected) and len(seen) == 2


def test_a_cut_whose_last_state_is_its_own_takes_nothing(plain_store, monkeypatch):
    """A decoder ends with a norm, which a deeper one's states below do not show."""
    whole, cut = catalogue.find("random-llama"), catalogue.find("random-llama-l1")
    seen, tokens = read_by(monkeypatch), texts(10)
    pooled_activations(whole, tokens, "last", plain_store, plain_map)
    pooled_activations(cut, tokens, "last", plain_store, plain_map, deeper=[whole])
    assert seen == [("random-llama", 10), ("random-llama-l1", 10)]


def test_cuts_are_of_one_model_whatever_they_are_called():
    own = {
        "a": {"path": "/models/a"},
        "b": {"path": "/models/a", "layers": 2},
        "c": {"path": "/models/c"},
        "d": {"random": SPEC.config, "seed": 1},
        "e": {"random": SPEC.config, "seed": 2},
    }
    found = {name: catalogue.find(name, own) for name in [*own, "a-l3", "d-l1", "random-bert"]}
    alike = {
        (one, other)
        for one in found
        for other in found
        if one < other and catalogue.are_cuts_of_one(found[one], found[other])
    }
    assert alike == {("a", "a-l3"), ("a", "b"), ("a-l3", "b"), ("d", "d-l1")}
