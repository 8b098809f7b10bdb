"""Texts held out to choose by: nobody trains on them, and every method is looked at on them."""

import itertools

import numpy as np
import pytest

from tests.sim.every_method import small

KINDS = ("fed-mobillm", "single-side-network", "centralised", "flexlora", "local-lora", "local-lst")


@pytest.mark.parametrize(
    "kind",
    [
        *KINDS[::3],
        *(pytest.param(k, marks=pytest.mark.thorough) for k in KINDS if k not in KINDS[::3]),
    ],
)
def test_a_look_at_them_is_what_a_run_that_is_judged_on_them_sees(kind, simulate, curve):
    """The same accuracies as where they are the test part; and the test part's are untouched."""
    world = {"method": small(kind), "evaluate_every": 2}
    beside = simulate("task.validation=12", **world)
    judged = simulate("task.validation=12", "task.judge_on=validation", **world)
    without = simulate(**world)
    seen = [
        row["value"]
        for row in beside.recorder.metrics().to_pylist()
        if (row["name"], row["group"]) == ("validation_accuracy", "")
    ]
    assert len(beside.task.validation) == len(judged.task.test) == 12
    assert seen[-len(curve(judged)) :] == curve(judged) and len(seen) == len(curve(judged)) + 1
    assert curve(beside) == curve(without) and len(curve(without)) > 1


def test_a_share_comes_out_of_the_training_texts(simulate):
    held, whole = simulate("task.validation=0.2", dry=True), simulate(dry=True)
    assert len(held.task.validation) == 12 and len(np.concatenate(held.task.parts)) == 48
    assert held.task.test.tolist() == whole.task.test.tolist()
    everything = np.concatenate([*held.task.parts, held.task.validation, held.task.test])
    assert len(np.unique(everything)) == len(everything)


def test_looks_follow_the_growth_of_virtual_time(simulate):
    """Whatever `evaluate_every` is; and by the number of updates where nothing is said."""
    grown = simulate("evaluate_growth=1.5", "evaluate_every=1", dry=True)
    rows = grown.recorder.metrics().to_pylist()
    looks_s = [row["time_s"] for row in rows if row["name"] == "updates" and row["time_s"] > 0]
    assert len(looks_s) > 2
    assert all(b >= 1.5 * a for a, b in itertools.pairwise(looks_s[:-1]))
