"""Intervals and powers against theory: coverage by simulation, values from tables and by hand."""

import math

import numpy as np
import pytest

from sim.results.statistics import (
    Costs,
    between_looks,
    of_accuracy,
    over_seeds,
    paired_difference,
    paired_ratio,
    seeds_needed,
)

DRAWS = 2000
MONTE_CARLO = 3 * math.sqrt(0.95 * 0.05 / DRAWS)  # three standard errors of a coverage of 95 %


def coverage(truth, interval_of, draws=DRAWS):
    """The share of seeded draws whose interval holds the truth."""
    rng = np.random.default_rng(7)
    found = [interval_of(rng) for _ in range(draws)]
    return np.mean([one.low <= truth <= one.high for one in found])


def exact(values):
    return Costs(values, values, values)


def test_a_mean_over_seeds_worked_by_hand():
    found = over_seeds([1.0, 2.0, 3.0])  # t(2) = 4.302653, deviation 1
    assert found.value == 2 and found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert over_seeds([5.0]) == (5.0, None, None)  # one seed says nothing of others


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_over_seeds_cover_as_often_as_they_say(seeds):
    found = coverage(0.0, lambda rng: over_seeds(rng.normal(size=seeds).tolist()))
    assert found == pytest.approx(0.95, abs=MONTE_CARLO)


def test_one_seeds_accuracy_has_wilsons_interval():
    found = of_accuracy([0.9], 100)  # (p + z2/2n -+ z sqrt(p q/n + z2/4n2)) / (1 + z2/n)
    assert (found.low, found.high) == pytest.approx((0.82563, 0.94477), abs=2e-5)
    right = of_accuracy([1.0], 50)
    assert right.high == 1 and right.low == pytest.approx(1 / (1 + 1.959964**2 / 50))


def test_accuracy_over_seeds_worked_by_hand():
    """Without a common text the texts' error is in the seeds' own spread, else on top of it."""
    values = [0.78, 0.80, 0.82]  # deviation 0.02, S^2 / k = 1.3333e-4
    alone = of_accuracy(values, 400, overlap=0.0)
    assert alone.high - 0.8 == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    both = of_accuracy(values, 400, overlap=1.0)  # p q / n = 4e-4, 32 degrees of freedom
    assert both.high - 0.8 == pytest.approx(2.036933 * math.sqrt(4e-4 + 4e-4 / 3), rel=1e-5)
    same = of_accuracy([0.8, 0.8, 0.8], 400)  # quantised: no zero width
    assert same.high - 0.8 == pytest.approx(1.96 * 0.02, rel=1e-3)
    lucky = of_accuracy([0.799, 0.801], 100, overlap=0.0)  # as 200 texts: 1.96 sqrt(0.16 / 200)
    assert lucky.high - lucky.value == pytest.approx(0.0554, abs=1e-4)
    none = of_accuracy([1.0, 1.0], 50)
    assert none.low < 0.95 and none.high == 1


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_accuracy_covers_what_all_seeds_and_all_texts_would_give(overlap):
    """Every text is right or wrong for good, and seeds add noise: the bound on difficulties is
    met.
    """
    p, n, k = 0.8, 200, 4

    def draw(rng):
        shared = rng.random(n) < p
        texts = [shared if overlap else rng.random(n) < p for _ in range(k)]
        return of_accuracy([t.mean() + rng.normal(0, 0.02) for t in texts], n, overlap)

    assert coverage(p, draw) == pytest.approx(0.95, abs=MONTE_CARLO + 0.005)


def test_accuracy_is_never_covered_too_rarely():
    """Texts of all difficulties: seeds differ in which of them they get right."""
    n, k = 200, 3

    def draw(rng):
        difficulty = rng.beta(4, 1, size=n)  # mean 0.8
        return of_accuracy([(rng.random(n) < difficulty).mean() for _ in range(k)], n)

    assert coverage(0.8, draw) >= 0.95 - MONTE_CARLO


@pytest.mark.thorough
def test_one_seed_covers_by_its_texts():
    found = coverage(0.8, lambda rng: of_accuracy([rng.binomial(300, 0.8) / 300], 300))
    assert found == pytest.approx(0.95, abs=MONTE_CARLO + 0.01)  # whole numbers of texts


def test_a_difference_is_paired():
    """What seeds have in common goes; what is left is that of the differences."""
    found = paired_difference([0.70, 0.80, 0.90], [0.68, 0.77, 0.88], 10**9)
    deviation = np.std([0.02, 0.03, 0.02], ddof=1)
    assert found.value == pytest.approx(0.07 / 3)
    assert found.high - found.value == pytest.approx(4.302653 * deviation / 3**0.5, rel=1e-4)
    assert over_seeds([0.70, 0.80, 0.90]).low < 0.6  # one by one they would say nothing
    on_texts = paired_difference([0.8, 0.8], [0.7, 0.7], 100)  # Wilson's ends, by hand
    arms = (0.8 - 0.711170, 0.781051 - 0.7), (0.866633 - 0.8, 0.7 - 0.604151)
    below, above = (math.hypot(*ends) for ends in arms)
    assert on_texts[1:] == pytest.approx((0.1 - below, 0.1 + above), abs=2e-6)


def test_a_difference_of_shares_is_newcombes():
    """His table II, method 10: 9/10 - 3/10 and 10/10 - 0/10."""
    assert paired_difference([0.9], [0.3], 10)[1:] == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert paired_difference([1.0], [0.0], 10)[1:] == pytest.approx((0.6075, 1.0), abs=5e-5)
    assert paired_difference([1.0], [1.0], 60)[1:] == pytest.approx((-0.0602, 0.0602), abs=5e-5)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (1.0, 0.96), (0.99, 0.99), (0.98, 0.9)])
def test_differences_near_the_ends_are_covered(seeds, overlap, p, q):
    """60 texts, all or nearly all of them right: seen without an error, there is one to come."""
    n = 60

    def draw(rng):
        each = rng.binomial(n, [[p], [q]], size=(2, 1 if overlap else seeds)) / n
        ours, others = (values.repeat(seeds // len(values)).tolist() for values in each)
        found = paired_difference(ours, others, n, overlap)
        assert found.low < found.value < found.high
        return found

    assert coverage(p - q, draw, 500) >= 0.95 - 2 * MONTE_CARLO


def test_a_ratio_is_the_geometric_mean_over_seeds():
    found = paired_ratio(exact([1.0, 4.0]), exact([2.0, 2.0]))  # 0.5 and 2
    assert found.value == pytest.approx(1)
    assert found.high == pytest.approx(math.exp(12.706205 * math.log(2)), rel=1e-6)
    turned = paired_ratio(exact([2.0, 2.0]), exact([1.0, 4.0]))
    assert turned.low == pytest.approx(1 / found.high)  # the arithmetic mean would not turn round
    same = paired_ratio(exact([1.0, 1.0]), exact([4.0, 4.0]))
    assert (same.low, same.value, same.high) == pytest.approx((0.25, 0.25, 0.25))
    assert paired_ratio(exact([0.0, 0.0]), exact([4.0, 4.0])) == (0, 0, 0)


def test_ratios_cover_as_often_as_they_say():
    def draw(rng):
        world = rng.lognormal(0, 1, size=5)
        noise = rng.lognormal(0, 0.3, size=(2, 5))
        return paired_ratio(exact(0.25 * world * noise[0]), exact(world * noise[1]))

    assert coverage(0.25, draw) == pytest.approx(0.95, abs=MONTE_CARLO)


def test_looks_bound_what_lies_between_them():
    found = between_looks([10.0], [12.0], [20.0])
    assert found == (12, 10, 20)
    found = between_looks([10.0, 10.0], [15.0, 15.0], [20.0, 20.0])  # no zero width
    assert found == (15, 10, 20)
    ratio = paired_ratio(Costs([1.0], [2.0], [4.0]), Costs([10.0], [20.0], [40.0]))
    assert ratio == pytest.approx((0.1, 1 / 40, 0.4))
    assert paired_ratio(Costs([0.0], [2.0], [4.0]), Costs([0.0], [20.0], [40.0])) == pytest.approx(
        (0.1, 0, math.inf)
    )


@pytest.mark.parametrize(("effect", "needed"), [(1.0, 10), (0.8, 15), (0.5, 34)])
def test_seeds_needed_are_those_of_the_tables(effect, needed):
    """A paired t test, two-sided at 5 %, with a power of 80 %: Cohen's tables."""
    differences = [effect - math.sqrt(0.5), effect + math.sqrt(0.5)]  # deviation 1
    assert seeds_needed(differences) == needed


def test_seeds_needed_do_what_they_promise():
    rng = np.random.default_rng(3)
    found = [over_seeds(rng.normal(1.0, 1.0, size=10).tolist()) for _ in range(DRAWS)]
    assert np.mean([one.low > 0 for one in found]) == pytest.approx(0.8, abs=0.03)


def test_no_number_of_seeds_makes_up_for_few_texts():
    assert seeds_needed([0.01, 0.02, 0.03], stays=0.02**2) is None
    assert seeds_needed([0.0, 0.0]) is None
    assert seeds_needed([0.02, 0.02]) == 2


def test_differences_that_are_alike_but_for_rounding_need_few_seeds():
    alike = math.log(45 / 53)
    assert seeds_needed([alike, alike, math.nextafter(alike, 0)]) == 2


def test_many_seeds_are_found_to_within_a_twentieth():
    """An effect of 0.2 deviations takes 199 (G*Power's paired t test, and Cohen's tables)."""
    assert 199 <= seeds_needed([0.2 - math.sqrt(0.5), 0.2 + math.sqrt(0.5)]) <= 209


def test_what_cannot_be_is_in_no_interval():
    assert between_looks([0.0, 10.0], [5.0, 15.0], [9.0, 19.0]).low == 0
    assert of_accuracy([0.96, 1.0], 20).high == 1 and of_accuracy([0.0, 0.04], 20).low == 0


def test_one_seed_has_no_other_to_share_its_texts_with():
    alone = paired_difference([0.8], [0.7], 100, overlap=0.05)
    assert alone == pytest.approx(paired_difference([0.8], [0.7], 100))


def test_no_difference_of_shares_is_beyond_one():
    low, high = paired_difference([0.99, 0.1], [0.2, 0.6], 60)[1:]
    assert (low, high) == (-1.0, 1.0)


def test_seeds_of_one_value_have_an_interval_of_no_width_however_sums_are_rounded():
    value = 3_200_000.1
    rounded = [value, value * (1 + 2**-52), value]
    assert rounded[0] != rounded[1]
    found = over_seeds(rounded)
    assert found.low == found.value == found.high == pytest.approx(value)
    assert over_seeds([1.0, 1.0 + 1e-6, 1.0]).low < 1.0
