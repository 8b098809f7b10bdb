"""Fleet: counts, proportions, and that one device's draws never depend on another device."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from devices.fleet import Group, Member, draw

MIX = {"jetson-tx2": 1, "jetson-xavier-nx": 2, "jetson-agx-xavier": 5}


def rng_of(member_id: str) -> np.random.Generator:
    return np.random.default_rng(list(member_id.encode()))


mixes = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10), min_size=1, max_size=4)
choices = st.one_of(st.sampled_from("abcdef"), mixes)
groups = st.builds(
    Group, count=st.integers(0, 4), device=choices, backbone=choices, link=choices, cell=choices
)


def test_single_values_pass_through():
    group = Group(2, "jetson-tx2", "minilm-l2", "lte", "cell-1", memory_bytes=4, name="boards")
    expected = Member(
        "device-0000", "jetson-tx2", "simple", "minilm-l2", "lte", "cell-1", 4, "boards"
    )
    assert draw([group], rng_of) == [expected, replace(expected, id="device-0001")]


def test_ids_run_through_all_groups_and_unnamed_groups_get_a_name():
    members = draw([Group(2, "a", "x"), Group(0, "b", "x"), Group(1, "c", "x")], rng_of)
    assert [(m.id, m.group, m.device) for m in members] == [
        ("device-0000", "group-0", "a"),
        ("device-0001", "group-0", "a"),
        ("device-0002", "group-2", "c"),
    ]


def test_mixes_come_out_in_proportion():
    members = draw(
        [Group(4_000, MIX, {"small": 0.7, "large": 0.3}, link={"lte": 1, "wifi": 1})], rng_of
    )
    for attribute, mix in (
        ("device", MIX),
        ("backbone", {"small": 0.7, "large": 0.3}),
        ("link", {"lte": 1, "wifi": 1}),
    ):
        seen = Counter(getattr(m, attribute) for m in members)
        expected = [len(members) * weight / sum(mix.values()) for weight in mix.values()]
        assert stats.chisquare([seen[value] for value in mix], expected).pvalue > 0.001


def test_fields_are_drawn_independently():
    members = draw([Group(4_000, {"a": 1, "b": 1}, {"x": 1, "y": 2})], rng_of)
    table = Counter((m.device, m.backbone) for m in members)
    counts = [[table[device, backbone] for backbone in "xy"] for device in "ab"]
    assert stats.chi2_contingency(counts).pvalue > 0.001


def test_a_weight_of_zero_is_never_drawn():
    members = draw([Group(500, {"never": 0, "a": 1, "nor": 0}, "x")], rng_of)
    assert {m.device for m in members} == {"a"}


@settings(max_examples=50)
@given(fleet=st.lists(groups, min_size=1, max_size=4), more=groups)
def test_adding_devices_leaves_the_others_alone(fleet, more):
    before = draw(fleet, rng_of)
    assert draw([*fleet, more], rng_of)[: len(before)] == before
    grown = [*fleet[:-1], replace(fleet[-1], count=fleet[-1].count + 1)]
    assert draw(grown, rng_of)[: len(before)] == before


@settings(max_examples=50)
@given(group=groups, mix=mixes)
def test_turning_one_field_into_a_mix_leaves_the_other_fields_alone(group, mix):
    before, after = draw([group], rng_of), draw([replace(group, link=mix)], rng_of)
    assert [replace(m, link=None) for m in after] == [replace(m, link=None) for m in before]


@settings(max_examples=50)
@given(group=groups, factor=st.floats(0.5, 20))
def test_only_the_ratio_of_weights_counts(group, factor):
    mix = {"a": 1.0, "b": 2.0}
    scaled = {value: weight * factor for value, weight in mix.items()}
    assert draw([replace(group, device=mix)], rng_of) == draw(
        [replace(group, device=scaled)], rng_of
    )


@pytest.mark.parametrize("mix", [{}, {"a": 0}, {"a": -1, "b": 2}, {"a": float("nan")}])
def test_a_senseless_mix_is_refused(mix):
    with pytest.raises(ValueError, match=r"boards\.device: a mix needs weights"):
        draw([Group(1, mix, "x", name="boards")], rng_of)


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="group-0: count is -1"):
        draw([Group(-1, "a", "x")], rng_of)
