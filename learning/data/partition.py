"""Divide labelled texts among clients: evenly, by skewed label shares, by shards of sorted labels,
or as they came.

Every function returns one index array per client, in random order, into the labels (or clients) it
was given: to divide a train part, pass `labels[train]` and read `train[indices]`. All but `natural`
hand out each index exactly once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MOST_SHARES = 20_000_000  # a second or two


BINS = 5


def bins(labels: np.ndarray, number: int = BINS) -> np.ndarray:
    """What real-valued ratings are divided by, in place of classes: the number [N] of each one's
    quantile bin; ratings that are equal are in one bin.
    """
    edges = np.quantile(labels, np.arange(1, number) / number)
    return np.searchsorted(edges, labels, side="left")


class PartitionError(ValueError):
    """The data cannot be divided as asked; the message says what would fit."""


def iid(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, min_size: int = 1
) -> list[np.ndarray]:
    """Deal a random order out into equal parts (sizes differ by one at most); the labels play no
    role.
    """
    _check(len(labels), n_clients, min_size)
    return np.array_split(rng.permutation(len(labels)), n_clients)


def dirichlet(
    labels: np.ndarray,
    n_clients: int,
    rng: np.random.Generator,
    min_size: int = 1,
    *,
    alpha: float,
    equal: bool = False,
) -> list[np.ndarray]:
    """Skew the label shares of the clients; the smaller alpha > 0, the fewer classes a client sees.

    equal=False, as Flower's DirichletPartitioner (and Yurochkin et al. 2019, arXiv 1905.12022):
    each class is cut among all clients in proportions drawn from Dir(alpha, ..., alpha), so sizes
    differ too. Clients left below min_size then take random texts from whichever client is largest
    at that moment, where Flower draws everything anew and gives up after ten tries. equal=True, as
    Hsu et al. 2019 (arXiv 1909.06335): each client draws its own class shares from Dir(alpha x the
    class's share of the data) and the clients fill up in turns to equal sizes, over what is left.
    """
    if not 0 < alpha < np.inf:
        raise PartitionError(f"alpha must be above 0 and finite, got {alpha}")
    _check(len(labels), n_clients, min_size)
    _check_classes(len(labels), n_clients, len(np.unique(labels)), equal)
    if equal:
        return [rng.permutation(part) for part in _equal_dirichlet(labels, n_clients, rng, alpha)]
    order, owners = [], []
    for of_class in _groups(labels):
        order.append(rng.permutation(of_class))
        shares = rng.dirichlet(np.full(n_clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(of_class)).astype(np.int64)
        owners.append(np.searchsorted(cuts, np.arange(len(of_class)), side="right"))
    owner, texts = np.concatenate(owners), np.concatenate(order)
    ends = np.cumsum(np.bincount(owner, minlength=n_clients))[:-1]
    mixed = [
        rng.permutation(part) for part in np.split(texts[np.argsort(owner, kind="stable")], ends)
    ]
    return [rng.permutation(part) for part in _top_up(mixed, min_size)]


def by_class_shards(
    labels: np.ndarray,
    n_clients: int,
    rng: np.random.Generator,
    min_size: int = 1,
    *,
    shards: int = 2,
) -> list[np.ndarray]:
    """Sort by label, cut into n_clients x shards equal pieces, give each client `shards` of them at
    random.

    The "pathological" division of McMahan et al. 2017 (arXiv 1602.05629): most clients see `shards`
    classes.
    """
    if shards < 1:
        raise PartitionError(f"shards must be at least 1, got {shards}")
    _check(len(labels), n_clients, max(min_size, shards))
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, n_clients * shards)
    dealt = rng.permutation(n_clients * shards).reshape(n_clients, shards)
    return _checked(
        [rng.permutation(np.concatenate([pieces[i] for i in mine])) for mine in dealt], min_size
    )


def natural(
    clients: np.ndarray,
    n_clients: int | None,
    rng: np.random.Generator,
    min_size: int = 1,
    *,
    largest: bool = False,
) -> list[np.ndarray]:
    """Give each client the texts that are its own: n_clients of those with min_size or more, at
    random or the largest.

    clients: [N], whose each text is. n_clients=None takes all that qualify. Texts of the others are
    left out.
    """
    owners, owner_of, sizes = np.unique(clients, return_inverse=True, return_counts=True)
    qualified = np.flatnonzero(sizes >= min_size)
    n_clients = len(qualified) if n_clients is None else n_clients
    if not 1 <= n_clients <= len(qualified):
        raise PartitionError(
            f"{len(qualified)} of {len(owners)} natural clients have {min_size} or more texts; "
            f"{n_clients} asked for"
        )
    if largest:
        chosen = qualified[np.argsort(-sizes[qualified], kind="stable")][:n_clients]
    else:
        chosen = rng.permutation(qualified)[:n_clients]
    of_owner = _groups(owner_of)
    return [rng.permutation(of_owner[owner]) for owner in chosen]


def own(
    divide: Callable[..., object],
    name: str,
    labels: np.ndarray,
    n_clients: int,
    rng: np.random.Generator,
    min_size: int,
    settings: Mapping[str, object],
) -> list[np.ndarray]:
    """As `divide(labels, n_clients, rng, min_size, **settings)` has it, which has to give an array
    of indices a client, none of them twice; PartitionError, with its `name`, where it does not.
    """
    _check(len(labels), n_clients, min_size)
    try:
        given: Any = divide(labels.copy(), n_clients, rng, min_size, **settings)
        parts = [np.asarray(part) for part in given]
        held = np.concatenate(parts)
    except Exception as error:
        raise PartitionError(f"{name}: {type(error).__name__}: {error}") from error
    if len(parts) != n_clients:
        raise PartitionError(f"{name} gives {len(parts)} parts for {n_clients} clients")
    if any(part.ndim != 1 or part.dtype.kind not in "iu" for part in parts):
        raise PartitionError(f"{name} gives something else than arrays [n] of whole numbers")
    if len(held) and not 0 <= held.min() <= held.max() < len(labels):
        raise PartitionError(f"{name} gives indices outside the {len(labels)} labels")
    if len(np.unique(held)) < len(held):
        raise PartitionError(f"{name} gives a text to two clients, or twice to one")
    return _checked(parts, min_size)


def _groups(values: np.ndarray) -> list[np.ndarray]:
    """The indices of each distinct value, values and indices in rising order."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _equal_dirichlet(
    labels: np.ndarray, n_clients: int, rng: np.random.Generator, alpha: float
) -> list[np.ndarray]:
    """Each client's indices in the order it drew them: while no class is used up, by its own shares
    alone.
    """
    left = [list(rng.permutation(of_class)) for of_class in _groups(labels)]
    counts = np.array([len(of_class) for of_class in left])
    n_left = counts.astype(np.float64)
    shares = rng.dirichlet(alpha * counts / counts.sum(), size=n_clients)
    parts: list[list[int]] = [[] for _ in range(n_clients)]
    for turn in range(
        0, len(labels), n_clients
    ):  # one text per client and turn; the last turn serves whom it can
        for client in rng.permutation(n_clients)[: len(labels) - turn]:
            weights = shares[client] * (n_left > 0)
            if weights.sum() == 0:  # every class this client wants is used up
                weights = n_left
            bounds = np.cumsum(weights)
            c = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
            c = min(
                c, int(np.flatnonzero(weights)[-1])
            )  # a share too small for a fraction of it rounds up to all of it
            parts[client].append(left[c].pop())
            n_left[c] -= 1
    return [np.array(part, dtype=np.int64) for part in parts]


def _top_up(parts: list[np.ndarray], min_size: int) -> list[np.ndarray]:
    """Move texts one by one from the largest part to those below min_size (parts are in random
    order, so any will do).

    The largest always has more than min_size while another has less, because _check made sure of
    the mean.
    """
    sizes = np.array([len(part) for part in parts])
    for small in np.flatnonzero(sizes < min_size):
        while sizes[small] < min_size:
            big = int(np.argmax(sizes))
            parts[small] = np.append(parts[small], parts[big][-1])
            parts[big] = parts[big][:-1]
            sizes[small] += 1
            sizes[big] -= 1
    return parts


def _check(n: int, n_clients: int, min_size: int) -> None:
    if n_clients < 1:
        raise PartitionError(f"at least one client is needed, got {n_clients}")
    if n_clients * min_size > n:
        fewer = f", or for {n // n_clients} texts a client" if n >= n_clients else ""
        raise PartitionError(
            f"{n} texts do not give {n_clients} clients {min_size} each: "
            f"that is enough for {n // max(min_size, 1)} clients{fewer}"
        )


def _check_classes(n: int, n_clients: int, n_classes: int, equal: bool) -> None:
    """A Dirichlet division draws a share for each client and class; if sizes are equal, it looks at
    all for each text.
    """
    if n_clients * n_classes > MOST_SHARES or (equal and n * n_classes > 100 * MOST_SHARES):
        raise PartitionError(
            f"{n_classes:,} classes are too many for a Dirichlet division of {n:,} texts among "
            f"{n_clients:,}"
        )


def _checked(parts: list[np.ndarray], min_size: int) -> list[np.ndarray]:
    if (smallest := min(len(part) for part in parts)) < min_size:
        raise PartitionError(
            f"the smallest of {len(parts)} clients gets {smallest} texts, {min_size} were asked for"
        )
    return parts
