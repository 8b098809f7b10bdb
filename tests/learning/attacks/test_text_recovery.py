"""Texts from vectors: exact where the vectors are sums that can be taken apart, and on MiniLM as
layers, noise and rotations let them.
"""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from learning.attacks.bags import blind_guess, commonest, judged_tokens, measured
from learning.attacks.text_recovery import (
    Inverter,
    atoms,
    identify,
    taken_apart,
    turned_back,
    turned_by_axes,
)
from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import find
from learning.backbones.tokens import tokenise
from learning.data import texts

WORDS, WIDTH = 60, 128
MARKS = (101, 102)  # [CLS] and [SEP] of BERT


def mixtures(n, seed, words=WORDS, length=6):
    """Texts of different tokens, the means of their embeddings, and the table."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(9).normal(size=(words, WIDTH))
    ids = [rng.choice(words, length, replace=False) for _ in range(n)]
    return ids, np.array([table[i].mean(axis=0) for i in ids]), table


def test_precision_recall_and_f1_by_hand():
    assert measured({1, 2, 3}, {2, 3, 4, 5}) == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    assert measured(set(), {1}) == measured({2}, {1}) == (0.0, 0.0, 0.0)
    public = [np.array([5, 5, 7]), np.array([7, 9]), np.array([7, 5, 1])]
    assert commonest(public, ignore=(1,)).tolist() == [7, 5, 9]
    assert commonest(public, at_least=2).tolist() == [7, 5]
    found = judged_tokens(
        "any",
        [np.array([7, 9]), np.array([1])],
        [np.array([7, 8, 101]), np.array([101])],
        np.array([8, 3]),
        np.random.default_rng(0),
        ignore=(101,),
    )
    assert [one.n for one in found] == [1, 1, 1]  # a text of marks alone has nothing to find
    assert [one.success for one in found] == [0.5, 0.5, 0.5]
    assert [one.chance for one in found] == [0.5, 0.5, 0.5]  # of 8 and 3, too, one is right


def test_the_best_guess_that_is_the_same_of_every_text_by_hand():
    public = [np.array([101, 1, 2]), np.array([101, 1, 3]), np.array([101, 1, 2, 4, 5])]
    # {1}: 2/3, 2/3, 2/5; {1, 2}: 1, 1/2, 4/6; {1, 2, 3}: 4/5, 4/5, 4/7; all five: fewer
    assert blind_guess(public, ignore=(101,)).tolist() == [1, 2, 3]
    assert blind_guess(public[:1], ignore=(101,)).tolist() == [1, 2]
    assert blind_guess([], ignore=(101,)).tolist() == []


def test_who_knows_how_much_noise_there_is_learns_from_as_noisy_texts():
    ids, vectors, _ = mixtures(600, 3)
    rng = np.random.default_rng(4)
    noise = 1.5 * vectors.std() * rng.normal(size=(2, *vectors.shape))
    sent, alike = vectors[300:] + noise[0, 300:], vectors[:300] + noise[1, :300]

    def f1(inverter) -> float:
        guesses = inverter.guess(sent)
        pairs = zip(guesses, ids[300:], strict=True)
        return np.mean([measured(set(g.tolist()), set(t.tolist()))[2] for g, t in pairs])

    clean = f1(Inverter.fit(vectors[:300], ids[:300]))
    best = f1(Inverter.best([vectors[:300], alike], ids[:300]))
    assert best > clean + 0.05


def inverted(ids, vectors) -> list:
    """What an inverter that has learned from the first 300 texts finds in the others."""
    inverter = Inverter.fit(vectors[:300], ids[:300])
    guesses, rng = inverter.guess(vectors[300:]), np.random.default_rng(0)
    return judged_tokens("inverter", guesses, ids[300:], blind_guess(ids[:300]), rng)


def test_means_of_embeddings_give_every_word_to_a_linear_inverter():
    ids, vectors, _ = mixtures(400, 0)
    found = inverted(ids, vectors)
    assert all(one.success > 0.99 and one.above_chance for one in found)
    assert found[2].chance < 0.3


def test_vectors_that_know_nothing_give_what_the_commonest_tokens_give():
    ids, vectors, _ = mixtures(400, 1)
    noise = np.random.default_rng(2).normal(size=vectors.shape)
    *_, f1 = inverted(ids, noise)
    assert f1.success == pytest.approx(f1.chance, abs=0.01)  # all words are as common: any do
    with pytest.raises(ValueError, match="nothing to learn"):
        Inverter.fit(np.eye(3), [np.array([k]) for k in range(3)])


def test_a_mixture_of_known_embeddings_is_taken_apart():
    """Far more words than numbers in a vector: sparseness decides."""
    ids, vectors, table = mixtures(40, 3, words=1500)
    found = taken_apart(vectors, table, np.arange(1500))
    assert all(set(guess) == set(truth) for guess, truth in zip(found, ids, strict=True))


def test_candidates_are_told_apart_until_noise_drowns_them():
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(200, 3, 16))
    true = rng.integers(0, 200, 120)
    top1, top10 = identify(candidates[true], candidates, true)
    assert top1.success == top10.success == 1.0
    assert (top1.chance, top10.chance) == (1 / 200, 10 / 200)
    some = identify(candidates[true] + 2 * rng.normal(size=(120, 3, 16)), candidates, true)
    assert some[0].above_chance and 0.01 < some[0].success < 0.9 < 0.1 + some[1].success + 0.9
    dead = np.concatenate([candidates.reshape(200, 48), 1e-9 * rng.normal(size=(200, 9))], axis=1)
    sent = dead[true] + 1e-4 * rng.normal(size=(120, 57))  # drowns the columns that hardly vary
    assert identify(sent, dead, true)[0].success == 1.0
    none = identify(rng.normal(size=(120, 3, 16)), candidates, true)
    assert not none[0].above_chance and not none[1].above_chance
    alike = identify(np.ones((120, 48)), np.ones((200, 48)), true)
    assert alike[0].success == 0.0  # a tie tells nothing
    with pytest.raises(ValueError, match="48 numbers"):
        identify(candidates[true], candidates[:, :2], true)


def test_a_rotation_hides_a_text_until_enough_texts_are_known():
    rng = np.random.default_rng(0)
    axes = np.geomspace(4, 0.5, 16)
    candidates = rng.exponential(size=(400, 16)) * axes
    turned = candidates @ ortho_group.rvs(16, random_state=1)
    true = np.arange(400)
    assert identify(turned, candidates, true)[0].success < 0.05
    back = turned_back(turned, range(16), candidates[:16])
    assert np.allclose(back, candidates)
    few = turned_back(turned, range(4), candidates[:4])
    assert identify(few, candidates, true)[0].success < 0.9
    both = turned_by_axes(turned, candidates, axes=8)  # the same texts have the same axes
    assert identify(*both, true)[0].success == 1.0


@pytest.fixture(scope="module")
def minilm():
    """Layer vectors of 300 questions, their tokens, and the backbone."""
    from learning.backbones.assets import AssetMissing

    try:
        backbone = Backbone(find("minilm"))
    except AssetMissing as error:
        pytest.skip(str(error))
    chosen = np.random.default_rng(7).permutation(5000)[:300]
    questions = [texts.load("trec-questions").texts[i] for i in chosen]
    tokens = tokenise(backbone.spec, questions, max_tokens=32)
    torch.set_num_threads(1)
    return backbone.readouts(tokens, "mean"), tokens.ids, backbone


def scores(vectors, ids, public=200):
    inverter = Inverter.fit(vectors[:public], ids[:public], MARKS)
    guess = inverter.guess(vectors[public:])
    blind = blind_guess(ids[:public], MARKS)
    return judged_tokens("inverter", guess, ids[public:], blind, np.random.default_rng(0), MARKS)


@pytest.mark.fetched
def test_a_minilms_embedding_gives_words_away_and_its_last_layer_fewer(minilm):
    vectors, ids, _ = minilm
    first, last = scores(vectors[:, 0], ids), scores(vectors[:, 6], ids)
    for shallow, deep in zip(first, last, strict=True):
        assert shallow.success > deep.success
        assert shallow.above_chance
    assert first[1].low > last[1].high


@pytest.mark.fetched
def test_a_minilms_embedding_is_taken_apart_with_its_table(minilm):
    vectors, ids, backbone = minilm
    vocabulary = np.unique(np.concatenate(ids))
    table = atoms(backbone.model.embeddings, vocabulary, length=12)
    found = judged_tokens(
        "matching pursuit",
        taken_apart(vectors[:40, 0], table, vocabulary, MARKS),
        ids[:40],
        blind_guess(ids[40:], MARKS),
        np.random.default_rng(0),
        MARKS,
    )
    assert all(one.success > 0.95 for one in found)
