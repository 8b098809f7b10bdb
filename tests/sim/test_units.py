"""Quantities: what people write is what the simulator computes with, and what is ambiguous is
refused with advice.
"""

import math
import re
from fractions import Fraction
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from inputs.units import (
    UNITS,
    BitsPerSecond,
    Bytes,
    Flop,
    FlopPerSecond,
    Hertz,
    Joules,
    PerSecond,
    Quantity,
    Seconds,
    Watts,
    format_bytes,
    format_seconds,
    format_si,
    parse,
)

TYPES = {"s": Seconds, "B": Bytes, "bit/s": BitsPerSecond, "FLOP": Flop, "FLOP/s": FlopPerSecond}
TYPES |= {"W": Watts, "J": Joules, "Hz": Hertz}


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("20 Mbit/s", "bit/s", 20e6),
        ("20Mbps", "bit/s", 20e6),
        ("1 MB/s", "bit/s", 8e6),
        ("1 MiB/s", "bit/s", 8 * 1024**2),
        ("8 GiB", "B", 8 * 1024**3),
        ("500 kB", "B", 500_000),
        ("90 s", "s", 90),
        ("2 h", "s", 7200),
        ("1.5 min", "s", 90),
        ("30 ms", "s", 0.03),
        ("35 ms", "s", 0.035),
        ("7 µs", "s", 7e-6),  # micro sign
        ("7 \u03bcs", "s", 7e-6),  # Greek mu, which looks the same
        ("1e-3", "s", 0.001),
        (" .5 d ", "s", 43200),
        ("0.345 TFLOP/s", "FLOP/s", 0.345e12),
        ("3 EFLOP", "FLOP", 3e18),
        ("300 mW", "W", 0.3),
        ("15 Wh", "J", 54_000),
        ("6 /min", "Hz", 0.1),
        ("4 1/h", "Hz", 4 / 3600),
        ("1.3 GHz", "Hz", 1.3e9),
        (12, "W", 12),
        ("-0 s", "s", 0),
    ],
)
def test_texts_are_read_in_si(text, dimension, value):
    got = parse(text, dimension)
    assert got == value and type(got) is float and math.copysign(1, got) == 1


@pytest.mark.parametrize(
    ("text", "dimension", "advice"),
    [
        ("5 Mb/s", "bit/s", r"write 'MB/s' for bytes, 'Mbit/s' for bits"),
        ("5 MBps", "bit/s", r"did you mean 'MB/s'\?"),
        ("5 mbps", "bit/s", r"did you mean 'Mbps'\?"),
        ("8 Gb", "B", r"write 'GB' for bytes"),
        ("8 Gib", "B", r"did you mean 'GiB'\?"),
        ("1 KB", "B", r"did you mean 'kB' or 'KiB'\?"),
        ("5 m", "s", r"write 'min' or 'ms'"),
        ("2 TFLOPS", "FLOP/s", r"write 'TFLOP/s'"),
        ("2 TFLOPs", "FLOP", r"write 'TFLOP'"),
        ("8 GiB", "s", r"'GiB' is a unit of bytes, not of time"),
        ("3 parsec", "s", r"allowed: s, ms"),
        ("soon", "s", r"expected a number of s, or text such as '90 s'"),
        ("1,5 s", "s", r"unknown unit"),
        ("", "s", r"expected a number"),
        ("-3 s", "s", r"must not be negative"),
        (-3, "s", r"must not be negative"),
        (math.nan, "s", r"finite"),
        (math.inf, "s", r"finite"),
        ("nan", "s", r"expected a number"),
        ("1e999 s", "s", r"finite"),
        (10**400, "s", r"finite"),
        (True, "s", r"expected a number"),
        (None, "s", r"expected a number"),
        ("٣ s", "s", r"expected a number"),  # digits of another script
    ],
)
def test_what_is_wrong_or_ambiguous_is_refused_with_advice(text, dimension, advice):
    with pytest.raises(ValueError, match=advice):
        parse(text, dimension)


def test_a_unit_is_worth_what_its_prefix_says():
    decimal = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    for exponent, (prefix, factor) in enumerate(decimal.items()):
        assert parse(f"1 {prefix}B", "B") == factor
        assert (
            parse(f"1 {prefix}B/s", "bit/s") == 8 * parse(f"1 {prefix}bit/s", "bit/s") == 8 * factor
        )
        assert parse(f"1 {prefix}FLOP/s", "FLOP/s") == parse(f"1 {prefix}FLOP", "FLOP") == factor
        if prefix:
            assert parse(f"1 {prefix.upper()}iB", "B") == 1024**exponent


def test_no_unit_has_two_dimensions():
    every = [unit for units in UNITS.values() for unit in units]
    assert len(every) == len(set(every))


@given(st.data())
def test_a_quantity_is_the_float_nearest_to_number_times_unit(data):
    dimension = data.draw(st.sampled_from(sorted(UNITS)))
    unit = data.draw(st.sampled_from(sorted(UNITS[dimension])))
    number = data.draw(st.decimals(min_value=0, max_value=10**9, allow_nan=False, places=6))
    exact = Fraction(number) * Fraction(UNITS[dimension][unit])
    assert parse(f"{number} {unit}", dimension) == float(exact)


@given(
    st.floats(min_value=0, allow_nan=False, allow_infinity=False), st.sampled_from(sorted(UNITS))
)
def test_numbers_pass_unchanged_as_number_and_as_text(value, dimension):
    assert parse(value, dimension) == parse(repr(value), dimension) == value


@given(
    st.text(max_size=20)
    | st.from_regex(r"[0-9.eE+-]{1,12} ?[kKMGmbBitsFLOP/]{0,6}", fullmatch=True)
)
def test_any_text_is_a_finite_quantity_or_a_value_error(text):
    for dimension in UNITS:
        try:
            value = parse(text, dimension)
        except ValueError as error:
            assert str(error)
        else:
            assert math.isfinite(value) and value >= 0


class Link(BaseModel):
    uplink: BitsPerSecond
    gap: Annotated[Seconds, Field(gt=0)] = 1.0
    skew: Annotated[float, Quantity("s", signed=True)] = 0.0
    deadline: Seconds | None = None
    rate: PerSecond = 0.0


def test_fields_hold_si_floats_and_read_their_own_dump_back():
    link = Link(uplink="20 Mbit/s", gap="2 s", skew="-5 ms", deadline="1 h", rate="4/min")
    assert (link.uplink, link.gap, link.skew, link.deadline) == (20e6, 2.0, -0.005, 3600.0)
    assert link.rate == 4 / 60
    assert Link.model_validate(link.model_dump(mode="json")) == link


@pytest.mark.parametrize(
    ("field", "value"),
    [("gap", "0 s"), ("gap", 0), ("uplink", -1), ("skew", math.nan), ("deadline", "soon")],
)
def test_fields_refuse_what_their_limits_exclude(field, value):
    with pytest.raises(ValidationError) as caught:
        Link(**({"uplink": 1} | {field: value}))
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


@pytest.mark.parametrize("dimension", sorted(UNITS))
def test_the_json_schema_takes_exactly_the_texts_that_parse_takes(dimension):
    schema = TypeAdapter(TYPES[dimension]).json_schema()
    number, text = schema["anyOf"]
    assert number == {"type": "number", "minimum": 0}
    texts = [
        f"{n} {unit}"
        for n in ("3", "1.5e3", ".5", "-1", "1e", "x")
        for unit in [*UNITS[dimension], "", "furlong"]
    ]
    for candidate in [*texts, *schema["examples"]]:
        try:
            parse(candidate, dimension)
            parses = True
        except ValueError:
            parses = False
        assert bool(re.fullmatch(text["pattern"][1:-1], candidate)) == parses, candidate


def test_the_json_schema_of_a_model_carries_limits_and_defaults():
    fields = Link.model_json_schema()["properties"]
    assert fields["gap"]["anyOf"][0]["exclusiveMinimum"] == 0
    assert fields["gap"]["default"] == 1.0
    assert "minimum" not in fields["skew"]["anyOf"][0]
    assert Link.model_json_schema(mode="serialization")["properties"]["uplink"]["type"] == "number"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.21e-9, "3.21 ns"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (75, "1 min 15 s"),
        (3599.6, "1 h"),
        (7260, "2 h 1 min"),
        (86_399, "1 d"),
        (3 * 86_400 + 4 * 3600, "3 d 4 h"),
        (-75, "-1 min 15 s"),
        (math.inf, "inf s"),
    ],
)
def test_durations_for_people(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(min_value=60, max_value=1e8))
def test_a_formatted_duration_is_within_half_its_smaller_unit(seconds):
    words = format_seconds(seconds).split()
    total = sum(parse(f"{n} {unit}", "s") for n, unit in zip(words[::2], words[1::2], strict=True))
    half = 0.5 if seconds < 3599 else 30 if seconds < 86_000 else 1800
    assert abs(total - seconds) <= half


def test_sizes_and_rates_for_people():
    assert format_bytes(1_500_000) == "1.5 MB"
    assert format_bytes(999.9) == "1 kB"
    assert format_si(20e6, "bit/s") == "20 Mbit/s"
    assert format_si(0.0005, "J") == "500 µJ"
    assert format_si(-2500, "W") == "-2.5 kW"


@given(st.floats(min_value=1, max_value=9e20))
def test_a_formatted_size_reads_back_to_three_digits(nbytes):
    assert parse(format_bytes(nbytes), "B") == pytest.approx(nbytes, rel=0.00501)


def test_limits_hold_on_either_side_of_the_unit():
    class Model(BaseModel):
        beside: Seconds = Field(gt=0)
        within: Annotated[Seconds, Field(gt=0)] = 1.0

    for field in ("beside", "within"):
        for wrong in ("0 s", 0, "-1 s", "nan"):
            with pytest.raises(ValidationError):
                Model(**{"beside": "1 s", field: wrong})
    assert Model(beside="2 min").beside == 120
