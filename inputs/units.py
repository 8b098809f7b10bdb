"""Quantities as people write them: `20 Mbit/s`, `8 GiB`, `90 s` go in, plain floats in one SI unit
come out.

A dimension is named by the SI unit that numbers are kept in: "s", "B", "bit/s", "FLOP", "FLOP/s",
"W", "J", "Hz". The table is closed and case counts: kB is 1000 bytes, KiB is 1024, a byte is `B`
and a bit is `bit`. What could be read in two ways (`Mb`, `KB`, `TFLOPS`, `5 m`) is an error that
says what to write instead.
"""

import math
import re
from dataclasses import dataclass
from decimal import Context, Decimal
from numbers import Real
from typing import Annotated, Any

from pydantic_core import CoreSchema, core_schema

_PREFIXES = {"n": "1e-9", "µ": "1e-6", "u": "1e-6", "m": "1e-3", "": "1"}
_PREFIXES |= {"k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12", "P": "1e15", "E": "1e18"}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def _scaled(unit: str, prefixes: str, factor: int | str = 1) -> dict[str, Decimal]:
    """The unit bare and under each of the one-letter prefixes, each worth `factor` of the
    dimension's SI unit.
    """
    return {p + unit: Decimal(_PREFIXES[p]) * Decimal(factor) for p in ("", *prefixes)}


def _binary(unit: str, factor: int = 1) -> dict[str, Decimal]:
    return {p + unit: Decimal(scale * factor) for p, scale in _BINARY.items()}


_TIME = {"s": Decimal(1), "min": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
UNITS: dict[str, dict[str, Decimal]] = {
    "s": _scaled("s", "mµun") | _TIME,
    "B": _scaled("B", "kMGTPE") | _binary("B"),
    "bit/s": _scaled("bit/s", "kMGT")
    | _scaled("bps", "kMGT")
    | _scaled("B/s", "kMGT", 8)
    | _binary("B/s", 8),
    "FLOP": _scaled("FLOP", "kMGTPE"),
    "FLOP/s": _scaled("FLOP/s", "kMGTPE"),
    "W": _scaled("W", "mkM"),
    "J": _scaled("J", "mkMG") | _scaled("Wh", "mk", 3600),
    "Hz": _scaled("Hz", "mkMG")
    | {f"{one}/{t}": 1 / size for t, size in _TIME.items() for one in ("", "1")},
}
_MEANING = {
    "s": "time",
    "B": "bytes",
    "bit/s": "data rate",
    "FLOP": "computation",
    "FLOP/s": "compute rate",
}
_MEANING |= {"W": "power", "J": "energy", "Hz": "frequency"}
_EXAMPLES = {
    "s": ("90 s", "2 h", "30 ms"),
    "B": ("500 kB", "8 GiB"),
    "bit/s": ("20 Mbit/s", "1 MB/s"),
}
_EXAMPLES |= {"FLOP": ("3 GFLOP",), "FLOP/s": ("0.345 TFLOP/s",), "W": ("7.5 W", "300 mW")}
_EXAMPLES |= {"J": ("12 kJ", "15 Wh"), "Hz": ("1.3 GHz", "4/h")}

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*(\S.*?)?\s*", re.DOTALL)
_EXACT = Context(
    prec=60, traps=[]
)  # decimal arithmetic, so that 35 ms is 0.035 and not the next float


def parse(value: object, dimension: str, *, signed: bool = False) -> float:
    """The quantity in the SI unit that names its dimension, from a plain number (already SI) or a
    text with a unit.

    `parse("2 h", "s") == 7200.0`; `parse("1 MB/s", "bit/s") == 8e6`; `parse("1e-3", "s") ==
    parse(1e-3, "s")`. Raises ValueError for any other type, an unknown or ambiguous unit, NaN,
    infinity, and below zero unless `signed`.
    """
    units = UNITS[dimension]
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if not match or len(value) > 100:
            raise ValueError(_expected(dimension))
        # Greek mu, micro sign: one µs
        number = match[1]
        unit = match[2] and match[2].replace("\u03bc", "\u00b5")
        if unit is not None and unit not in units:
            raise ValueError(_unit_hint(unit, dimension))
        result = float(_EXACT.multiply(Decimal(number), units[unit or dimension]))
    elif isinstance(value, Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    else:
        raise ValueError(_expected(dimension))
    if not math.isfinite(result):
        raise ValueError(f"must be a finite number of {dimension}")
    if result < 0 and not signed:
        raise ValueError("must not be negative")
    return result + 0.0  # -0.0 becomes 0.0


def _expected(dimension: str) -> str:
    examples = " or ".join(f"'{example}'" for example in _EXAMPLES[dimension])
    return f"expected a number of {dimension}, or text such as {examples}"


def _unit_hint(unit: str, dimension: str) -> str:
    """Why this unit is refused here, and what to write instead."""
    for other, units in UNITS.items():
        if unit in units:
            return (
                f"'{unit}' is a unit of {_MEANING[other]}, not of {_MEANING[dimension]}: "
                f"{_expected(dimension)}"
            )
    bits = re.fullmatch(r"([kKMGTP]?)b(/s)?", unit)
    if bits and dimension in ("B", "bit/s"):
        prefix = bits[1].replace("K", "k")
        per_s = "/s" if dimension == "bit/s" else ""
        other = f", '{prefix}bit/s' for bits" if per_s else "; sizes are in bytes, not bits"
        return f"'{unit}' could mean bits or bytes: write '{prefix}B{per_s}' for bytes{other}"
    if unit == "m" and dimension == "s":
        return "'m' could mean minutes or milliseconds: write 'min' or 'ms'"
    flops = re.fullmatch(r"([kKMGTPE]?)FLOP(?:s|S|/S|ps|PS)", unit)
    if flops and dimension.startswith("FLOP"):
        return f"'{unit}' could mean a rate or an amount: write '{flops[1]}{dimension}'"
    if dimension == "bit/s" and re.fullmatch("[kKMGT]?Bps", unit):
        return f"unknown unit '{unit}'; did you mean '{unit[:-2].replace('K', 'k')}/s'?"
    folded = unit.casefold().replace(" ", "")
    near = [known for known in UNITS[dimension] if known.casefold() == folded]
    near += [f"Ki{unit[1:]}"] if unit.startswith("KB") and dimension in ("B", "bit/s") else []
    if near:
        return (
            f"unknown unit '{unit}' (upper and lower case count); did you mean "
            f"{' or '.join(map(repr, near))}?"
        )
    return f"unknown unit {unit[:30]!r} (allowed: {', '.join(UNITS[dimension])})"


@dataclass(frozen=True)
class Quantity:
    """Annotation that makes a pydantic field of type float read text with units; fields hold SI
    floats.

    `Annotated[float, Quantity("s", signed=True)]` also lets values below zero pass;
    `Annotated[Seconds, Field(gt=0)]` refuses zero. NaN and infinity never pass.
    """

    dimension: str
    signed: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        number = {**handler(source), "allow_inf_nan": False}  # with the limits of a Field beside it
        if not self.signed and "gt" not in number:
            number["ge"] = max(0, number.get("ge", 0))
        return core_schema.no_info_before_validator_function(
            lambda value: parse(value, self.dimension, signed=self.signed), number
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        keywords = {
            "gt": "exclusiveMinimum",
            "ge": "minimum",
            "lt": "exclusiveMaximum",
            "le": "maximum",
        }
        number = {keywords.get(key, key): limit for key, limit in handler(schema).items()}
        if handler.mode == "serialization":
            return number
        sign = r"[+-]?" if self.signed else r"\+?"
        units = "|".join(re.escape(unit).replace("/", r"\/") for unit in UNITS[self.dimension])
        pattern = rf"^\s*{_NUMBER.replace('[+-]?', sign, 1)}\s*({units})?\s*$"
        text = {"type": "string", "pattern": pattern}
        about = f"{_MEANING[self.dimension]}: a number of {self.dimension}, or text with a unit"
        return {
            "anyOf": [number, text],
            "description": about,
            "examples": list(_EXAMPLES[self.dimension]),
        }


Seconds = Annotated[float, Quantity("s")]
Bytes = Annotated[float, Quantity("B")]
BitsPerSecond = Annotated[float, Quantity("bit/s")]
Flop = Annotated[float, Quantity("FLOP")]
FlopPerSecond = Annotated[float, Quantity("FLOP/s")]
Watts = Annotated[float, Quantity("W")]
Joules = Annotated[float, Quantity("J")]
Hertz = Annotated[float, Quantity("Hz")]
PerSecond = Hertz


def format_si(value: float, unit: str) -> str:
    """Three significant digits under the decimal prefix that fits: `format_si(2e7, "bit/s") == "20
    Mbit/s"`.
    """
    return _with_prefix(value, unit, ("n", "µ", "m", "", "k", "M", "G", "T", "P", "E"))


def format_bytes(nbytes: float) -> str:
    """Three significant digits in B, kB, MB, ... (powers of 1000): `format_bytes(1_500_000) == "1.5
    MB"`.
    """
    return _with_prefix(nbytes, "B", ("", "k", "M", "G", "T", "P", "E"))


def format_score(score: float) -> str:
    """An accuracy, a perplexity or another score: `0.831`, `48.604`, `1.83e+10`."""
    return f"{score:.3f}" if abs(score) < 1e6 else f"{score:.2e}"


def format_seconds(seconds: float) -> str:
    """A duration for people: `12.3 ms`, `4.56 s`, `1 min 15 s`, `2 h 1 min`, `3 d 4 h`."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if seconds < 59.95:
        return _with_prefix(seconds, "s", ("n", "µ", "m", ""))
    if round(seconds) < 3600:
        large, small, count, rest = "min", "s", *divmod(round(seconds), 60)
    elif round(seconds / 60) < 24 * 60:
        large, small, count, rest = "h", "min", *divmod(round(seconds / 60), 60)
    else:
        large, small, count, rest = "d", "h", *divmod(round(seconds / 3600), 24)
    return f"{count} {large} {rest} {small}" if rest else f"{count} {large}"


def _with_prefix(value: float, unit: str, prefixes: tuple[str, ...]) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    rounded = float(f"{value:.3g}")  # first, so that 999.9 is 1 k and not 1000
    fits = [p for p in prefixes if abs(rounded) >= float(_PREFIXES[p])]
    prefix = fits[-1] if fits else prefixes[0]
    return f"{float(f'{value / float(_PREFIXES[prefix]):.3g}'):.12g} {prefix}{unit}"
