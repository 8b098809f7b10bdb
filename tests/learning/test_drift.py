"""Drift: the mix over time against its formula, and what it leaves alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.data.drift import late_groups, order


def late_share(strength: float, kind: str, bins: int = 10, n: int = 40_000) -> np.ndarray:
    """The share of late texts in each tenth of the order, with as many late texts as early ones."""
    is_late = np.arange(n) % 2 == 1
    mixed = is_late[order(is_late, np.random.default_rng(0), strength, kind)]
    return mixed.reshape(bins, -1).mean(axis=1)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_a_gradual_drift_is_a_line_between_the_mixes(strength):
    middles = (np.arange(10) + 0.5) / 10
    expected = (1 - strength) / 2 + strength * middles
    assert late_share(strength, "gradual") == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(4_000))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_sudden_drift_is_a_step_in_the_middle(strength):
    expected = np.repeat([(1 - strength) / 2, (1 + strength) / 2], 5)
    assert late_share(strength, "sudden") == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(4_000))


def test_the_worked_number_of_the_docs():
    """At strength 1 the last tenth of the texts is late by 95 %, the first by 5 %."""
    share = late_share(1.0, "gradual")
    assert [share[0], share[-1]] == pytest.approx([0.05, 0.95], abs=0.02)


@given(
    st.lists(st.integers(0, 6), max_size=40),
    st.integers(0, 100),
    st.sampled_from(["gradual", "sudden"]),
)
def test_every_text_comes_once_and_the_seed_decides_when(labels, seed, kind):
    groups = np.array(labels, dtype=np.int64)
    late = late_groups(groups, np.random.default_rng(seed))
    first, again = (order(late, np.random.default_rng(seed), 0.7, kind) for _ in range(2))
    assert sorted(first) == list(range(len(labels)))
    assert first.tolist() == again.tolist()
    names = set(labels)
    assert all(len({bool(late[i]) for i in np.flatnonzero(groups == name)}) == 1 for name in names)
    assert len({name for name in names if late[groups == name].all()}) == len(names) // 2


def test_domains_may_have_names():
    late = late_groups(np.array(["film", "news", "film", "shop", "mail"]), np.random.default_rng(0))
    assert late[0] == late[2]
    assert 1 <= late.sum() <= 3


def test_no_drift_is_a_random_order():
    late = np.repeat([False, True], 5_000)
    mixed = order(late, np.random.default_rng(1), 0.0)
    assert np.corrcoef(np.arange(10_000), late[mixed])[0, 1] == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_beyond_its_bounds_is_refused(strength):
    with pytest.raises(ValueError, match="allowed: from 0 to 1"):
        order(np.ones(3, dtype=bool), np.random.default_rng(0), strength)
