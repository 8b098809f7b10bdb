"""Memory: what is needed, what is missing, what would fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.memory import find_shortage, needed_bytes, shortage_bytes

GIB = 2**30
NEEDS = [("opt-125m", 1 * GIB), ("opt-1.3b", 6 * GIB), ("opt-350m", 2 * GIB)]


def test_worked_number_of_the_docs():
    """RoBERTa-base fp32 with full fine-tuning: weights 498 MB, AdamW and gradients 3 x 498 MB,
    activations 600 MB.
    """
    assert needed_bytes(498_000_000, 3 * 498_000_000, 600_000_000) == 2_592_000_000
    assert shortage_bytes(2 * 10**9, 2_592_000_000) == 592_000_000


def test_what_does_not_fit_says_by_how_much_and_what_would():
    shortage = find_shortage("opt-1.3b", 4 * GIB, NEEDS)
    assert shortage.short_bytes == 2 * GIB
    assert shortage.fitting == ("opt-350m", "opt-125m")
    assert str(shortage) == (
        "opt-1.3b needs 6.00 GiB but the device has 4.00 GiB: 2.00 GiB short; would fit: opt-350m, "
        "opt-125m"
    )


def test_what_fits_exactly_fits():
    assert find_shortage("opt-1.3b", 6 * GIB, NEEDS) is None
    assert find_shortage("opt-1.3b", 6 * GIB - 1, NEEDS).short_bytes == 1


def test_nothing_fits():
    assert str(find_shortage("opt-125m", 700, NEEDS)).endswith("no backbone of the list fits")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'bert'; known: opt-125m"):
        find_shortage("bert", GIB, NEEDS)
    with pytest.raises(ValueError, match="kept cannot take -1 bytes"):
        needed_bytes(1, -1, 1)


@pytest.mark.thorough
@given(
    needs=st.dictionaries(
        st.text(min_size=1, max_size=5), st.integers(0, 10**12), min_size=1, max_size=6
    ),
    memory=st.integers(0, 10**12),
    pick=st.integers(0, 5),
)
def test_fitting_is_exactly_what_has_no_shortage(needs, memory, pick):
    backbone = sorted(needs)[pick % len(needs)]
    shortage = find_shortage(backbone, memory, needs.items())
    fits = {name for name in needs if find_shortage(name, memory, needs.items()) is None}
    assert (shortage is None) == (backbone in fits)
    if shortage:
        assert set(shortage.fitting) == fits
        assert memory + shortage.short_bytes == needs[backbone]
