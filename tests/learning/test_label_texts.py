"""The sentences about classes: one for each class of every data set of ours, and what is wrong with
a user's.
"""

import pytest

from learning.backbones.assets import AssetMissing
from learning.data import texts
from learning.data.label_texts import problems, shipped


@pytest.mark.parametrize("info", texts.names(), ids=lambda info: info.name)
def test_every_class_has_a_sentence_of_its_own(info):
    if info.asset is None:
        pytest.skip("of an installed package")
    if info.has_responses:
        pytest.skip("its classes are topics, which nobody predicts")
    said = shipped(info.name)
    assert len(said) == info.classes == len(set(said.values()))
    assert all(text.endswith(".") and len(text.split()) > 4 for text in said.values())
    try:
        assert set(said) == set(texts.load(info.name).class_names)
    except AssetMissing:
        pass  # then their number has to do


def test_of_other_data_nothing_is_said():
    assert shipped("tickets") == {}


def test_unknown_missing_and_blank_classes_are_named():
    found = dict(problems({"brokn": "It broke.", "fine": "  "}, ["broken", "fine", "new"]))
    assert found["brokn"] == "no class is called 'brokn'; did you mean 'broken'?"
    assert found["fine"].startswith("is blank")
    assert found[""] == "says nothing of 'broken', 'new': every class needs a sentence"
    assert not list(problems({"a": "One.", "b": "Two."}, ["a", "b"]))
