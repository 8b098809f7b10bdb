"""From the labels of a table to numbered classes: which spellings are one class, and what is no
label.

Whole numbers that are equal are one class, as `1.0` and `1`, if all labels are numbers; so are
`true` and `True`, if all are truth values. All else is words, each spelling a class of its own.
What could be meant in two ways is refused or remarked on.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np

from learning.data.tables import DataError

MOST_CLASSES = 100_000  # a head has a row for each
_NUMBER = re.compile(r"([+\-\u2212]?)(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?")
_COMMA = re.compile(r"[+\-\u2212]?\d+,\d+")
_NO_WORD = {
    "true",
    "false",
    *(sign + name for sign in ("", "+", "-") for name in ("inf", "infinity")),
}  # beside numbers
_NO_NUMBER = re.compile(r"[+\-\u2212]{2,}[\d.]+")
_NOTHING = {
    "nan",
    "none",
    "null",
    "na",
    "n/a",
    "<na>",
    "nat",
}  # how programs write that there is no value
_FEWEST_TEXTS = 10  # from which on it can be told that a column holds no labels

Refuse = Callable[[str, str], DataError]


def number_classes(
    labels: Sequence[str], place: Callable[[int], str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes in order (numbers by value, all else as text), and the class of each
    label, [N] int64.

    `place` says where the label of an index stands. Raises DataError for what is no label, or may
    be two.
    """
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        first.setdefault(label, index)

    def refuse(label: str, why: str) -> DataError:
        return DataError(f"{place(first[label])}: the label {label!r} {why}")

    if odd := next((label for label in first if _NO_NUMBER.fullmatch(label)), None):
        raise refuse(odd, "looks like a number and is none")
    names, order = {label: label for label in first}, sorted(first)
    some = [label for label in first if label.casefold() not in _NOTHING]
    _check_one_kind(some, refuse)
    values = _truth_values(some) or _whole_numbers(some, refuse)
    if values:
        if len(some) < len(first):
            missing = next(label for label in first if label not in values)
            raise refuse(missing, "stands among numbers or truth values: is it a missing one?")
        names = {label: _plain(label, value) for label, value in values.items()}
        _check_one_spelling(names, values, refuse)
        order = [names[label] for label in sorted(values, key=values.__getitem__)]
    number = {name: index for index, name in enumerate(dict.fromkeys(order))}
    return tuple(number), np.array([number[names[label]] for label in labels], dtype=np.int64)


def read_ratings(labels: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """Labels as real numbers, [N] float32; DataError for one that is none, or where all are
    alike.
    """
    values = []
    for index, label in enumerate(labels):
        if (value := _number(label)) is None:
            raise DataError(f"{place(index)}: the rating {label!r} is not a number")
        values.append(float(value))
    with np.errstate(over="ignore"):  # it is told below
        ratings = np.array(values, dtype=np.float32)
    if not np.isfinite(ratings).all():
        far = int(np.flatnonzero(~np.isfinite(ratings))[0])
        raise DataError(f"{place(far)}: the rating {labels[far]!r} is too large")
    if np.ptp(ratings) == 0:
        raise DataError(f"{place(0)}: every rating is {labels[0]!r}; there is nothing to learn")
    return ratings


def _truth_values(labels: list[str]) -> dict[str, int]:
    """What each label means, True or False, if all are truth values, else nothing."""
    are_all = all(label.casefold() in ("true", "false") for label in labels)
    return {label: label.casefold() == "true" for label in labels} if are_all else {}


def _whole_numbers(labels: list[str], refuse: Refuse) -> dict[str, int]:
    """What each label means if all are numbers, else nothing; DataError for a fraction."""
    values = {}
    for label in labels:
        if (value := _number(label)) is None:
            return {}
        values[label] = value
    if fraction := next((label for label, value in values.items() if value != int(value)), None):
        raise refuse(fraction, "is a fraction: labels are whole numbers or words")
    return {label: int(value) for label, value in values.items()}


def _check_one_kind(labels: list[str], refuse: Refuse) -> None:
    """Truth values or infinity among numbers are two ways to write one class, or none; a comma may
    be a decimal one.
    """
    numbers = [label for label in labels if _number(label) is not None]
    if numbers and (odd := next((label for label in labels if label.casefold() in _NO_WORD), None)):
        raise refuse(
            odd, f"stands among numbers, such as {numbers[0]!r}: write all labels in one way"
        )
    commas = [label for label in labels if _COMMA.fullmatch(label)]
    if commas and len(commas) + len(numbers) == len(labels):
        raise refuse(
            commas[0], "may be a number with a decimal comma: labels are whole numbers or words"
        )


def _number(label: str) -> Decimal | None:
    return Decimal(label.replace("\u2212", "-")) if _NUMBER.fullmatch(label) else None


def _plain(label: str, value: int | bool) -> str:
    """The name of a number or truth value: its digits as they are spelled, without a plus, a point
    or an exponent.
    """
    if isinstance(value, bool):
        return str(value)
    found = _NUMBER.fullmatch(label)
    assert found is not None, "a value that is no truth value was read as a number"
    _, digits, exponent = found.groups()
    digits = str(abs(value)) if exponent else digits.partition(".")[0] or "0"
    return f"-{digits}" if value < 0 else digits


def _check_one_spelling(names: dict[str, str], values: dict[str, int], refuse: Refuse) -> None:
    """`01` and `1` are one number and two codes, and nobody but the user knows which is meant."""
    seen: dict[int, str] = {}
    for label, value in values.items():
        other = seen.setdefault(value, label)
        if names[other] != names[label]:
            raise refuse(
                label,
                f"and the label {other!r} are equal as numbers, not as words: spell them alike or "
                "apart",
            )


def check_labels(names: Sequence[str], counts: np.ndarray, source: str, column: str | int) -> None:
    """Refuse a column that cannot be one of labels: a single class, an id for each text, or too
    many classes.
    """
    texts, alone = int(counts.sum()), int((counts == 1).sum())
    if len(names) < 2:
        raise DataError(
            f"{source}, column {column!r}: every label is {names[0]!r}; at least two classes are "
            "needed"
        )
    if texts >= _FEWEST_TEXTS and 2 * alone > texts:
        raise DataError(
            f"{source}, column {column!r}: {len(names):,} classes for {texts:,} texts, {alone:,} "
            "of them with a single text: "
            "it holds ids, texts or measurements, not labels"
        )
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{source}, column {column!r}: {len(names):,} classes, more than the {MOST_CLASSES:,} "
            "there may be"
        )


def doubts(names: Sequence[str], counts: np.ndarray, are_topics: bool = False) -> list[str]:
    """What somebody should know of classes that are allowed and perhaps not meant, a sentence
    each; of topics, which nobody learns, one may have a single text.
    """
    said: list[str] = []
    alike: dict[Decimal | str, list[str]] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        number = _number(key)
        alike.setdefault(key if number is None else number, []).append(name)
    if twins := [f"{group[0]!r} and {group[1]!r}" for group in alike.values() if len(group) > 1]:
        said.append(f"classes that look alike are kept apart: {_some(twins)}")
    if nothing := [
        f"{name!r} ({counts[i]})" for i, name in enumerate(names) if name.casefold() in _NOTHING
    ]:
        said.append(f"a class that is perhaps a missing value: {_some(nothing)}")
    alone = [repr(names[i]) for i in np.flatnonzero(counts == 1).tolist()]
    if alone and not are_topics:
        said.append(
            f"classes with a single text, which cannot be both learned and tested: {_some(alone)}"
        )
    return said


def _some(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
