"""Choosing layers by a sample of texts: worth finds a planted layer, likeness its rotated copy."""

import itertools
import math

import numpy as np
import pytest

from learning.side.heads import SHRINKAGES
from learning.side.layer_choice import (
    choose,
    choosing,
    error,
    likeness,
    linear_cka,
    most_alike,
    most_worth,
    standardised,
)
from learning.side.taps import TapRule, average_interval, rule_of, sample


def rotation(width, rng):
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def planted(rng, layers, telling, n=60, width=12, classes=3, noise=0.3):
    """Vectors [n, layers + 1, width] of noise, but of each layer in `telling` a direction of its
    own says how far a text is in the classes that this layer knows.
    """
    labels = rng.integers(0, classes, n)
    vectors = rng.normal(size=(n, layers + 1, width))
    for layer, known in telling.items():
        which = np.where(np.isin(labels, known), labels, -1)
        vectors[:, layer] += np.eye(classes + 1)[which] @ rng.normal(size=(classes + 1, width)) * 3
    return vectors.astype(np.float32), np.eye(classes, dtype=np.float32)[labels]


# --- worth


@pytest.mark.parametrize("telling", range(1, 7))
def test_a_planted_layer_is_found(telling):
    vectors, targets = planted(np.random.default_rng(telling), 6, {telling: [0, 1, 2]})
    assert most_worth(vectors, targets, 1) == (telling,)


def test_layers_that_know_different_things_are_worth_more_than_copies_of_the_best():
    rng = np.random.default_rng(1)
    vectors, targets = planted(rng, 5, {2: [0, 1], 5: [1, 2]}, classes=4, n=120)
    for copy in (3, 4):  # as good as layer 2, and nothing beside it
        vectors[:, copy] = vectors[:, 2] @ rotation(12, rng)
    assert set(most_worth(vectors, targets, 2)) in ({2, 5}, {3, 5}, {4, 5})


def test_what_is_uploaded_anyway_is_no_layers_worth():
    rng = np.random.default_rng(2)
    vectors, targets = planted(rng, 3, {1: [0, 1, 2], 3: [0]})
    vectors[:, 0] = vectors[:, 1]  # the embedding knows all that layer 1 knows
    assert most_worth(vectors, targets, 1) == (1,)
    vectors, targets = planted(rng, 3, {1: [0, 1], 3: [2]}, noise=0.1)
    vectors[:, 0] = vectors[:, 1]
    assert most_worth(vectors, targets, 1, given=[0]) == (3,)


def test_the_error_out_of_sample_is_that_of_fitting_again_without_each_text():
    rng = np.random.default_rng(3)
    vectors, targets = planted(rng, 1, {1: [0, 1, 2]}, n=25, width=40)
    z = standardised(vectors[:, 1])
    x, scale = z / np.sqrt(40), float((z**2).sum()) / 40 / 25
    errors = []
    for shrinkage in SHRINKAGES:
        left = []
        for i in range(25):
            others = np.delete(x, i, 0), np.delete(targets, i, 0)
            mean, base = (one.mean(axis=0) for one in others)
            inner = (others[0] - mean).T @ (others[0] - mean) + shrinkage * scale * np.eye(40)
            weights = np.linalg.solve(inner, (others[0] - mean).T @ (others[1] - base))
            left.append(base + (x[i] - mean) @ weights - targets[i])
        errors.append(float((np.array(left) ** 2).sum()) / 25)
    assert math.isclose(error(z @ z.T / 40, targets), min(errors), rel_tol=1e-6)


def test_ratings_have_layers_too():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(50, 4, 10)).astype(np.float32)
    assert most_worth(vectors, vectors[:, 2] @ rng.normal(size=(10, 1)), 1) == (2,)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_next_to_no_texts_the_first_layers_are_as_good_as_any(n):
    vectors, targets = planted(np.random.default_rng(5), 3, {}, n=n)
    chosen = most_worth(vectors, targets, 2)
    assert len(chosen) == 2 and set(chosen) <= {1, 2, 3}
    assert math.isfinite(error(np.zeros((n, n)), targets))


# --- likeness


def test_a_rotated_scaled_and_moved_copy_is_the_same():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(30, 8))
    assert math.isclose(linear_cka(x, x), 1.0)
    assert math.isclose(linear_cka(x, 5 * x @ rotation(8, rng) + 3), 1.0)
    wide = np.concatenate([x @ rotation(8, rng), np.zeros((30, 4))], axis=1)
    assert math.isclose(linear_cka(x, wide), 1.0)  # of another width


def test_what_has_nothing_in_common_is_unlike():
    labels = np.repeat([0, 1], 20)
    own, other = np.eye(2)[labels], np.eye(2)[np.tile([0, 1], 20)]
    assert abs(linear_cka(own, other)) < 1e-12
    assert linear_cka(own, np.ones((40, 3))) == 0.0  # which does not vary


def test_likeness_is_as_published_in_the_space_of_features():
    """||Y'X||^2 / (||X'X|| ||Y'Y||), equation 4 of Kornblith et al., of centred X and Y."""
    rng = np.random.default_rng(7)
    x, y = (z - z.mean(axis=0) for z in (rng.normal(size=(20, 5)), rng.normal(size=(20, 9))))
    y[:, :5] += x
    by_features = np.linalg.norm(y.T @ x) ** 2
    by_features /= np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    assert math.isclose(linear_cka(x, y), by_features, rel_tol=1e-12)


def test_every_layer_finds_its_rotated_copy():
    rng = np.random.default_rng(8)
    deep = rng.normal(size=(40, 7, 10)).cumsum(axis=1)
    wanted = (1, 2, 5)
    shallow = np.stack([deep[:, 0], *(deep[:, layer] @ rotation(10, rng) for layer in wanted)], 1)
    rule, targets = TapRule("interval", 3, align="cka"), np.zeros((40, 1))
    assert choose(rule, 3, {"a": shallow, "b": deep}, targets)["b"] == average_interval(6, 3)
    assert most_alike([_gram(shallow[:, k]) for k in (1, 2, 3)], deep) == wanted


def _gram(x):
    x = x - x.mean(axis=0)
    return x @ x.T


def test_the_most_alike_are_the_best_of_all_rising_choices():
    rng = np.random.default_rng(9)
    own = rng.normal(size=(15, 6, 4)).cumsum(axis=1)
    leading = [_gram(rng.normal(size=(15, 4)) + own[:, k]) for k in (4, 1, 3)]  # not in order
    total = {
        layers: sum(
            likeness(gram, _gram(own[:, layer]))
            for gram, layer in zip(leading, layers, strict=True)
        )
        for layers in itertools.combinations(range(1, 6), 3)
    }
    found = most_alike(leading, own)
    assert math.isclose(total[found], max(total.values()))
    assert most_alike([leading[0]] * 5, own) == (1, 2, 3, 4, 5)


def test_the_deepest_leads_with_its_worthiest_and_the_others_follow():
    rng = np.random.default_rng(10)
    deep, targets = planted(rng, 6, {3: [0, 1, 2]}, n=80)
    shallow, _ = planted(rng, 2, {}, n=80)
    shallow[:, 1] = deep[:, 3] @ rotation(12, rng)
    backbones = {"shallow": shallow, "deep": deep}
    found = choose(TapRule("importance", 1, align="cka"), 1, backbones, targets)
    assert found == {"shallow": (1,), "deep": (3,)}


# --- how many, and what it costs


def test_how_many_layers_the_bytes_allow():
    depths = {"a": 6, "b": 12}
    count = {
        given: len(sample(depths, rule_of(given), 1, 768)["b"])
        for given in (
            "interval",
            "importance",
            3,
            TapRule("importance", 5),
            TapRule("importance", bytes_a_text=768 * 4.5),
            TapRule("interval", bytes_a_text=1e9),
        )
    }
    # seven vectors by the interval rule, two thirds of which are four, one of them the embedding
    assert list(count.values()) == [6, 3, 3, 5, 3, 6]
    assert len(sample({"a": 1}, "importance")["a"]) == 1
    assert len(sample(depths, "importance", 0)["a"]) == 4
    with pytest.raises(ValueError, match=r"1000 B hold no layer: 2 vectors .* take 1536 B"):
        sample(depths, TapRule(bytes_a_text=1000), 1, 768)
    with pytest.raises(ValueError, match="7 sampled layers, but"):
        sample(depths, TapRule("importance", 7), 1, 768)


def test_the_cost_is_that_of_the_products_and_decompositions_that_are_made(monkeypatch):
    """Counted: every Gram matrix, every layer that is tried, every likeness."""
    import learning.side.layer_choice as module

    done = {"gram": 0, "tried": 0, "alike": 0}

    def counting(name, function):
        def counted(*given):
            done[name] += 1
            return function(*given)

        return counted

    for key, name in (("gram", "_gram"), ("tried", "error"), ("alike", "likeness")):
        monkeypatch.setattr(module, name, counting(key, getattr(module, name)))
    rng, n = np.random.default_rng(11), 10
    vectors = {"a": rng.normal(size=(n, 4, 5)), "b": rng.normal(size=(n, 6, 7))}
    depths, widths = {"a": 3, "b": 5}, {"a": 5, "b": 7}
    for rule in (
        TapRule("importance", 2),
        TapRule("interval", 2, align="cka"),
        TapRule("importance", 2, align="cka"),
    ):
        done.update(gram=0, tried=0, alike=0)
        choose(rule, 2, vectors, rng.normal(size=(n, 3)))
        cost = choosing(rule, 2, depths, widths, n, 3)
        tried = 9 * n**3 + len(SHRINKAGES) * 2 * n**2 * 4
        grams = 2 * n**2 * (4 * 5 + 6 * 7)  # all layers of both
        assert cost.flop == grams + done["tried"] * tried + done["alike"] * 2 * n**2
        assert cost.peak_bytes > 8 * 6 * n**2
