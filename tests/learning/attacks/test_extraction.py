"""Stolen outputs: good where they are classes or keep classes apart, worth nothing where they do
not.
"""

import numpy as np

from learning.attacks.extraction import best, extraction

CLASSES = 3


def outputs_of(seed, noise=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, 240, p=[0.5, 0.3, 0.2])
    return np.eye(CLASSES)[labels] + noise * rng.normal(size=(240, CLASSES)), labels, rng


def test_outputs_that_are_classes_are_read_directly():
    outputs, labels, rng = outputs_of(0)
    found = {one.attack: one for one in extraction(outputs, labels, CLASSES, rng)}
    assert found["stolen outputs, largest component"].success == 1.0
    assert {one.what for one in found.values()} == {"accuracy"} and len(found) == 1 + 3 + 4
    assert best(list(found.values())).success > 0.98


def test_secret_codes_need_a_label_of_each_class_and_no_more():
    outputs, labels, rng = outputs_of(1)
    codes = outputs @ np.random.default_rng(9).normal(size=(CLASSES, 7))
    found = {one.attack: one for one in extraction(codes, labels, CLASSES, rng)}
    assert not any("largest" in attack for attack in found)
    assert found["stolen outputs, clustering, named by 1 known a class"].low > 0.9
    assert found["stolen outputs, logistic regression, 10 known a class"].low > 0.9


def test_shuffled_names_make_direct_reading_useless_but_not_grouping():
    outputs, labels, rng = outputs_of(2)
    turned = outputs[:, [1, 2, 0]]
    found = {one.attack: one for one in extraction(turned, labels, CLASSES, rng)}
    assert found["stolen outputs, largest component"].success < 0.05
    assert best(list(found.values())).low > 0.9


def test_outputs_that_know_nothing_are_worth_nothing():
    _, labels, rng = outputs_of(3)
    found = extraction(rng.normal(size=(240, CLASSES)), labels, CLASSES, rng)
    assert not any(one.above_chance for one in found)
