"""Named streams: a draw depends on (seed, purpose, entity) and on nothing else, in any process."""

import os
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.kernel.streams import Normals, Streams


def test_golden_draws():
    streams = Streams(7)
    assert streams.rng("arrivals").integers(0, 2**32, 3).tolist() == [
        1476410373,
        3940824341,
        4173780714,
    ]
    assert streams.rng("availability", 17).random(2).tolist() == [
        0.038444241414417935,
        0.3954591383046695,
    ]
    assert streams.seed64("side-network", "device-3") == 4131782024567024513


def test_each_call_starts_the_stream_anew_whatever_was_drawn_before():
    streams = Streams(1)
    first = streams.rng("jitter", "a").random(5)
    for other in range(100):
        streams.rng("jitter", other).random(other)
    assert streams.rng("jitter", "a").random(5).tolist() == first.tolist()
    assert Streams(1).rng("jitter", "a").random(5).tolist() == first.tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**64 + 3, 2**128 - 1, 2**128, 2**200 + 5])
def test_a_stream_is_that_of_a_seed_and_a_spawn_key_as_numpy_spawns(seed):
    words = np.frombuffer(blake2b(b"6:jitter:device-3", digest_size=16).digest(), dtype="<u4")
    spawned = np.random.SeedSequence(seed, spawn_key=tuple(map(int, words)))
    theirs = np.random.Generator(np.random.PCG64(spawned))
    ours = Streams(seed).rng("jitter", "device-3")
    assert ours.integers(0, 2**63, 4).tolist() == theirs.integers(0, 2**63, 4).tolist()


def test_normals_are_those_of_the_generator_one_by_one():
    normals, rng = Normals(Streams(3), "jitter", "a"), Streams(3).rng("jitter", "a")
    drawn = [normals.standard_normal() for _ in range(100)]
    assert drawn == [rng.standard_normal() for _ in range(100)]


names = st.tuples(st.integers(0, 2**70), st.text(max_size=8), st.text(max_size=8))


@given(st.lists(names, min_size=2, max_size=6, unique=True))
def test_different_names_are_different_streams(distinct):
    draws = {
        tuple(Streams(seed).rng(purpose, entity).integers(0, 2**63, 2).tolist())
        for seed, purpose, entity in distinct
    }
    seeds = {Streams(seed).seed64(purpose, entity) for seed, purpose, entity in distinct}
    assert len(draws) == len(seeds) == len(distinct)


def test_the_border_between_purpose_and_entity_counts():
    pairs = [("ab", "c"), ("a", "bc"), ("a:b", "c"), ("a", "b:c"), ("abc", ""), ("", "abc")]
    assert len({Streams(0).seed64(*pair) for pair in pairs}) == len(pairs)


def test_numbers_and_their_text_name_the_same_entity():
    assert Streams(0).seed64("link", 3) == Streams(0).seed64("link", "3")


def test_streams_are_uncorrelated_and_uniform():
    count, length = 60, 4000
    draws = np.array(
        [Streams(5).rng("availability", device).random(length) for device in range(count)]
    )
    correlation = np.corrcoef(draws)[np.triu_indices(count, k=1)]
    # Of 1770 independent pairs, each with standard deviation 1/sqrt(length), none lies beyond 5
    # sigma (p = 0.001).
    assert np.abs(correlation).max() < 5 / np.sqrt(length)
    assert correlation.std() == pytest.approx(1 / np.sqrt(length), rel=0.1)
    assert np.abs(draws.mean(axis=1) - 0.5).max() < 5 * np.sqrt(1 / 12 / length)


def test_first_draws_across_entities_are_uniform():
    first = np.array([Streams(5).rng("arrivals", device).random() for device in range(4000)])
    counts = np.histogram(first, bins=20, range=(0, 1))[0]
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 43.8  # the 0.999 quantile of chi-squared with 19 degrees of freedom


def test_neighbouring_seeds_are_uncorrelated():
    one, two = (Streams(seed).rng("arrivals").random(10_000) for seed in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_draws_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "from sim.kernel.streams import Streams; s = Streams(7); print(s.seed64('a', 'b'), "
        "s.rng('a', 'b').random(3).tolist())"
    )
    root = Path(__file__).parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    here = Streams(7)
    assert outputs == {f"{here.seed64('a', 'b')} {here.rng('a', 'b').random(3).tolist()}\n"}


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_a_seed_that_is_no_natural_number_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
        Streams(seed)


def test_numpy_integers_and_large_seeds_are_seeds():
    assert Streams(np.int64(9)).seed64("a") == Streams(9).seed64("a")
    assert 0 <= Streams(2**200).seed64("a") < 2**64
