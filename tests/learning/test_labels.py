"""Labels: which spellings are one class, which are refused, and what is remarked on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.data.labels import MOST_CLASSES, check_labels, doubts, number_classes
from learning.data.tables import DataError


def classes(*labels: str) -> tuple[tuple[str, ...], list[int]]:
    names, numbers = number_classes(labels, lambda index: f"row {index + 1}")
    assert numbers.dtype == np.int64
    return names, numbers.tolist()


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (("warm", "cold", "warm"), ("cold", "warm"), [1, 0, 1]),
        (("1.0", "0.0", "1", "0", "1.00", "+1", "1."), ("0", "1"), [1, 0, 1, 0, 1, 1, 1]),
        (
            ("1.000000000000000000e+00", "0.000000000000000000e+00", "1"),
            ("0", "1"),
            [1, 0, 1],
        ),  # as NumPy writes
        (("10", "9", "-1", "-1.0", "\u22121"), ("-1", "9", "10"), [2, 1, 0, 0, 0]),
        (("-0", "0", "5"), ("0", "5"), [0, 0, 1]),
        (("007", "12", "007.0"), ("007", "12"), [0, 1, 0]),  # codes keep their zeros
        (("True", "false", "TRUE", "False"), ("False", "True"), [1, 0, 1, 0]),
        (("1", "one", "1.0"), ("1", "1.0", "one"), [0, 2, 1]),  # not all are numbers: as they are
        (("None", "null"), ("None", "null"), [0, 1]),
        (("\u00b2", "2", "x"), ("2", "x", "\u00b2"), [2, 0, 1]),
        (("18-25", "26-35"), ("18-25", "26-35"), [0, 1]),
        (("++", "--", "+"), ("+", "++", "--"), [1, 2, 0]),
        (("9" * 200, "1" * 200), ("1" * 200, "9" * 200), [1, 0]),
        (("1e3", "1000", "7"), ("7", "1000"), [1, 1, 0]),
    ],
)
def test_which_spellings_are_one_class(labels, names, numbers):
    assert classes(*labels) == (names, numbers)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("3", "--5"), "row 2: the label '--5' looks like a number and is none"),
        (("+-3", "x"), "row 1: the label '\\+-3' looks like a number"),
        (("1", "0", "01"), "row 3: the label '01' and the label '1' are equal as numbers"),
        (("\u0663", "3"), "row 2: the label '3' and the label '\u0663' are equal as numbers"),
        (("0.5", "1.0"), "row 1: the label '0.5' is a fraction"),
        (("1", "2", "1e-3"), "row 3: the label '1e-3' is a fraction"),
        (("1", "0", "nan"), "row 3: the label 'nan' stands among numbers or truth values"),
        (("1.0", "None", "0.0"), "row 2: the label 'None' stands among numbers"),
        (("True", "<NA>", "False"), "row 2: the label '<NA>' stands among numbers or truth values"),
        (("1", "0", "True"), "row 3: the label 'True' stands among numbers, such as '1'"),
        (("0.0", "Infinity"), "row 2: the label 'Infinity' stands among numbers"),
        (("1,0", "0,0", "1"), "row 1: the label '1,0' may be a number with a decimal comma"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused_by_its_place(labels, said):
    with pytest.raises(DataError, match=said):
        classes(*labels)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(-(10**20), 10**20), min_size=1, max_size=20),
    form=st.sampled_from(["{}", "{}.0", "{}.", "{:+d}", "{}e0", "{}.000"]),
)
def test_whole_numbers_are_classes_by_value_however_each_is_spelled(values, form):
    names, numbers = classes(*map(str, values), *(form.format(value) for value in values))
    assert numbers[: len(values)] == numbers[len(values) :]
    assert [int(name) for name in names] == sorted(set(values))
    assert [int(names[number]) for number in numbers[: len(values)]] == values


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(max_size=6) | st.sampled_from(["1", "1.0", "01", "nan", "true", "0.5", "--1"]),
        min_size=1,
    )
)
def test_any_labels_give_classes_or_one_clear_line(labels):
    try:
        names, numbers = classes(*labels)
    except DataError as error:
        assert str(error).startswith("row ") and "\n" not in str(error)
        return
    assert sorted(set(numbers)) == list(range(len(names))) and len(set(names)) == len(names)
    of = {}
    for label, number in zip(labels, numbers, strict=True):
        assert of.setdefault(label, number) == number  # a spelling is one class


def test_a_column_that_is_none_of_labels_is_refused_by_name():
    for counts, said in (
        ([3], "column 'kind': every label is '0'; at least two classes"),
        ([1] * 10, "column 'kind': 10 classes for 10 texts, 10 of them with a single text"),
        ([1] * 6 + [5], "7 classes for 11 texts, 6 of them with a single text"),
        ([2] * (MOST_CLASSES + 1), "100,001 classes, more than the 100,000"),
    ):
        with pytest.raises(DataError, match=said):
            check_labels([str(n) for n in range(len(counts))], np.array(counts), "d.csv", "kind")
    for counts in ([2] * 5000, [1] * 5 + [5], [1, 1], [1] * MOST_CLASSES + [MOST_CLASSES]):
        check_labels(
            [str(n) for n in range(min(len(counts), MOST_CLASSES))],
            np.array(counts),
            "d.csv",
            "kind",
        )


def test_what_is_allowed_and_perhaps_not_meant_is_said():
    assert doubts(["cold", "warm"], np.array([5, 6])) == []
    said = doubts(["1", "1.0", "NaN", "Warm", "warm ", "x"], np.array([5, 6, 7, 2, 2, 1]))
    assert said == [
        "classes that look alike are kept apart: '1' and '1.0', 'Warm' and 'warm '",
        "a class that is perhaps a missing value: 'NaN' (7)",
        "classes with a single text, which cannot be both learned and tested: 'x'",
    ]
