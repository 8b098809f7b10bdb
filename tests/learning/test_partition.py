"""Partitions: properties for any data, and the Dirichlet skew against its theory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.data import partition
from learning.data.partition import PartitionError

METHODS = {
    "iid": lambda labels, n, rng, least: partition.iid(labels, n, rng, least),
    "dirichlet": lambda labels, n, rng, least: partition.dirichlet(
        labels, n, rng, least, alpha=0.1
    ),
    "equal": lambda labels, n, rng, least: partition.dirichlet(
        labels, n, rng, least, alpha=0.1, equal=True
    ),
    "shards": lambda labels, n, rng, least: partition.by_class_shards(
        labels, n, rng, least, shards=1
    ),
}


def shares(parts: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """[clients, classes] share of each class in each client's texts."""
    counts = np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])
    return counts / counts.sum(axis=1, keepdims=True)


def distance_from_iid(parts: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean total-variation distance of the clients' label shares from the whole's."""
    whole = np.bincount(labels) / len(labels)
    return float(np.abs(shares(parts, labels) - whole).sum(axis=1).mean() / 2)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32),
    n_classes=st.integers(1, 6),
    n_clients=st.integers(1, 30),
)
def test_every_index_once_and_everyone_has_enough(method, data, seed, n_classes, n_clients):
    least = data.draw(st.integers(1, 5))
    n = data.draw(st.integers(n_clients * least, n_clients * least + 200))
    labels = np.random.default_rng(seed).integers(0, n_classes, n)
    parts = METHODS[method](labels, n_clients, np.random.default_rng(seed), least)
    assert len(parts) == n_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert min(map(len, parts)) >= least
    if method in ("iid", "equal"):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again = METHODS[method](labels, n_clients, np.random.default_rng(seed), least)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_owners=st.integers(1, 40),
    least=st.integers(1, 5),
    largest=st.booleans(),
    data=st.data(),
)
def test_natural_clients_keep_all_their_own(seed, n_owners, least, largest, data):
    owners = np.random.default_rng(seed).integers(0, n_owners, 120).astype(str)
    names, sizes = np.unique(owners, return_counts=True)
    qualified = set(names[sizes >= least])
    n_clients = data.draw(st.integers(1, len(qualified)) if qualified else st.just(1))
    rng = np.random.default_rng(seed)
    if not qualified:
        with pytest.raises(PartitionError, match="0 of"):
            partition.natural(owners, n_clients, rng, least, largest=largest)
        return
    parts = partition.natural(owners, n_clients, rng, least, largest=largest)
    chosen = [owners[part[0]] for part in parts]
    assert len(set(chosen)) == n_clients and set(chosen) <= qualified
    for owner, part in zip(chosen, parts, strict=True):
        assert np.array_equal(np.sort(part), np.flatnonzero(owners == owner))
    if largest:
        assert sorted(map(len, parts)) == sorted(sizes)[-n_clients:]
    everyone = partition.natural(owners, None, rng, least)
    assert len(everyone) == len(qualified)


@pytest.mark.thorough
def test_dirichlet_proportions_have_the_moments_of_theory():
    """A client's portion of a class is a Dirichlet component: mean 1/n, variance (1/n)(1 - 1/n)/(n
    alpha + 1).
    """
    n_clients, alpha, rng = 8, 0.7, np.random.default_rng(1)
    labels = np.zeros(20_000, dtype=np.int64)
    portions = np.array(
        [
            [
                len(part) / 20_000
                for part in partition.dirichlet(labels, n_clients, rng, 0, alpha=alpha)
            ]
            for _ in range(800)
        ]
    )
    mean = 1 / n_clients
    assert portions.mean(axis=0) == pytest.approx(np.full(n_clients, mean), rel=0.12)
    assert portions.var() == pytest.approx(mean * (1 - mean) / (n_clients * alpha + 1), rel=0.06)


@pytest.mark.thorough
def test_equal_dirichlet_shares_have_the_moments_of_theory():
    """With plenty of every class left, shares follow Dir(alpha p): mean p, variance p(1 - p)/(alpha
    + 1).

    Classes get used up towards the end of the dealing, so only what a client drew first shows its
    own shares.
    """
    alpha, rng, p = 1.5, np.random.default_rng(2), np.array([0.5, 0.3, 0.2])
    labels = np.repeat(np.arange(3), (p * 6_000).astype(int))
    first = []
    for _ in range(12):
        for part in partition._equal_dirichlet(labels, 40, rng, alpha):
            first.append(np.bincount(labels[part[:60]], minlength=3) / 60)  # of 150
    first = np.array(first)
    assert first.mean(axis=0) == pytest.approx(p, abs=0.03)
    expected = p * (1 - p) / (alpha + 1)
    sampling = (p * (1 - p) - expected) / 60  # 60 multinomial draws add their own scatter
    assert first.var(axis=0) == pytest.approx(expected + sampling, rel=0.15)


@pytest.mark.parametrize("equal", [False, True])
def test_skew_falls_with_alpha_and_the_whole_stays_whole(equal):
    labels = np.random.default_rng(3).choice(6, 6_000, p=[0.3, 0.25, 0.2, 0.15, 0.07, 0.03])
    skews = []
    for alpha in (0.1, 1, 10, 1_000):
        parts = partition.dirichlet(
            labels, 30, np.random.default_rng(4), 10, alpha=alpha, equal=equal
        )
        skews.append(distance_from_iid(parts, labels))
        weighted = np.average(shares(parts, labels), axis=0, weights=[len(part) for part in parts])
        assert weighted == pytest.approx(np.bincount(labels) / 6_000)
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5 and skews[-1] < 0.12
    iid = distance_from_iid(partition.iid(labels, 30, np.random.default_rng(4)), labels)
    assert skews[-1] == pytest.approx(iid, abs=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("equal", [False, True])
def test_a_thousand_clients_and_a_tiny_alpha(equal):
    labels = np.random.default_rng(5).integers(0, 2, 67_349)
    parts = partition.dirichlet(
        labels, 1_000, np.random.default_rng(6), 10, alpha=0.001, equal=equal
    )
    assert len(parts) == 1_000 and min(map(len, parts)) >= 10
    assert len(np.unique(np.concatenate(parts))) == 67_349


def test_shards_bound_the_classes_of_a_client():
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 600))
    parts = partition.by_class_shards(labels, 100, np.random.default_rng(8), shards=2)
    assert {len(part) for part in parts} == {60}
    assert (
        max(len(np.unique(labels[part])) for part in parts) == 2
    )  # 600 is a multiple of the 30 in a shard


@pytest.mark.parametrize("method", METHODS)
def test_orders_are_mixed(method):
    """A client's first half must look like its second half, or its first batches would hold one
    class only.
    """
    labels = np.repeat([0, 1], 5_000)
    (only,) = METHODS[method](labels, 1, np.random.default_rng(9), 1)
    assert 0.47 < labels[only][:5_000].mean() < 0.53


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda labels, rng: partition.iid(labels, 11, rng, 10),
            "enough for 10 clients, or for 9 texts a client",
        ),
        (lambda labels, rng: partition.iid(labels, 0, rng), "at least one client"),
        (lambda labels, rng: partition.dirichlet(labels, 4, rng, alpha=0), "alpha must be above 0"),
        (
            lambda labels, rng: partition.by_class_shards(labels, 4, rng, shards=0),
            "shards must be at least 1",
        ),
        (
            lambda labels, rng: partition.by_class_shards(labels, 40, rng, shards=3),
            "enough for 33 clients",
        ),
        (
            lambda labels, rng: partition.by_class_shards(labels, 33, rng, 3, shards=2),
            "smallest of 33 clients gets 2",
        ),
        (
            lambda labels, rng: partition.natural(labels, 6, rng, 20),
            "5 of 5 natural clients have 20 or more texts; 6",
        ),
    ],
)
def test_errors_say_what_would_fit(call, message):
    with pytest.raises(PartitionError, match=message):
        call(np.repeat(np.arange(5), 20), np.random.default_rng(0))


def test_the_smallest_shares_are_no_trap():
    """Where the classes a client wants are used up, what it is left with may be the smallest number
    that there is.
    """
    labels = np.arange(4000) % 300
    for alpha in (0.01, 1e-5, 1e-300, 5e-324):
        for equal in (False, True):
            parts = partition.dirichlet(
                labels, 20, np.random.default_rng(1), alpha=alpha, equal=equal
            )
            assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(4000))
    with pytest.raises(PartitionError, match="alpha must be above 0 and finite"):
        partition.dirichlet(labels, 20, np.random.default_rng(0), alpha=np.inf)


def test_the_cut_by_class_is_that_of_the_definition():
    """Class by class: a random order, cut at the running sums of the clients' shares; then
    everyone's own in random order.
    """
    labels, rng, same = (
        np.random.default_rng(0).integers(0, 7, 300),
        np.random.default_rng(1),
        np.random.default_rng(1),
    )
    wanted: list[list[int]] = [[] for _ in range(9)]
    for c in range(7):
        of_class = rng.permutation(np.flatnonzero(labels == c))
        cuts = np.cumsum(rng.dirichlet(np.full(9, 0.5)))[:-1] * len(of_class)
        for place, text in enumerate(of_class):
            wanted[sum(int(cut) <= place for cut in cuts)].append(text)
    wanted = [rng.permutation(part) for part in wanted]
    found = partition.dirichlet(labels, 9, same, min_size=0, alpha=0.5)
    assert [part.tolist() for part in found] == [rng.permutation(part).tolist() for part in wanted]


@pytest.mark.parametrize(
    ("clients", "classes", "equal"),
    [(30_000, 1000, False), (30_000, 1000, True), (10, 50_000, True)],
)
def test_shares_that_would_take_forever_are_refused(clients, classes, equal):
    labels = np.arange(100_000) % classes
    with pytest.raises(
        PartitionError,
        match=f"{classes:,} classes are too many for a Dirichlet division of 100,000 texts",
    ):
        partition.dirichlet(labels, clients, np.random.default_rng(0), alpha=0.1, equal=equal)


@pytest.mark.parametrize(
    ("clients", "said"), [(9, "for 8 clients$"), (4, "for 2 clients, or for 2 texts a client$")]
)
def test_too_few_texts_say_what_they_are_enough_for(clients, said):
    with pytest.raises(partition.PartitionError, match=said):
        partition.iid(np.zeros(8), clients, np.random.default_rng(0), 1 if clients > 8 else 4)
