"""Decoys among texts: a point between two others is told, what is sent hardly."""

import numpy as np
import pytest

from learning.attacks.decoys import Imitated, by_place
from learning.attacks.membership import auc
from learning.side.protection import decoy_shares


def payloads(spread: bool, count=60, texts=8, decoys=8, seed=0):
    """Texts in 40 dimensions that vary along some more than along others, and decoys of them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x_ND = rng.normal(size=(texts, 40)) * np.geomspace(3, 0.3, 40)
        between, about = decoy_shares(texts, decoys, rng)
        yield x_ND, (about if spread else between) @ x_ND


def told(scores_of, spread: bool) -> float:
    found = [(scores_of(np.concatenate(pair)), len(pair[0])) for pair in payloads(spread)]
    decoys = np.concatenate([scores[n:] for scores, n in found])
    return auc(decoys, np.concatenate([scores[:n] for scores, n in found]))


def test_shares_are_of_two_texts_and_sum_to_one():
    between, about = decoy_shares(3, 200, np.random.default_rng(0))
    assert (np.count_nonzero(between, axis=1) == 2).all()
    assert between.sum(axis=1) == pytest.approx(1) and about.sum(axis=1) == pytest.approx(1)
    assert len(np.unique(between.max(axis=1))) == 200  # no midpoints


def test_a_point_between_two_others_is_told_and_a_decoy_as_it_is_sent_hardly():
    assert told(by_place, spread=False) > 0.99
    assert told(by_place, spread=True) < 0.65
    assert by_place(np.eye(2)).tolist() == [0, 0]


def test_who_has_texts_of_the_kind_imitates_them():
    public = np.concatenate([texts for texts, _ in payloads(True, count=30, seed=9)])
    imitated = Imitated.fit(public, 8, 8, decoy_shares, np.random.default_rng(1))
    assert 0.5 < told(imitated.scores, spread=True) < 0.75
    with pytest.raises(ValueError, match="5 public texts make no payload of 8"):
        Imitated.fit(public[:5], 8, 8, decoy_shares, np.random.default_rng(1))
