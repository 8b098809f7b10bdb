"""What one cell of a user's table says, the same for every format: as a CSV file would spell it,
nothing, or refused.

Texts are taken as they are; numbers, truth values and dates as they are written; bytes as UTF-8;
null, NaN and blanks say nothing; lists, objects and all else raise a ValueError that says what was
found, for whoever knows file, row and column.
"""

import datetime
import decimal
import math
from collections import Counter

import numpy as np

MOST_TEXT_CHARACTERS = 1_000_000
MOST_NAME_CHARACTERS = 200
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + _INVISIBLE


def text_of(cell: object) -> str:
    """The text that a cell holds; "" for none."""
    text = spelled(cell, "a text") or ""
    if len(text) > MOST_TEXT_CHARACTERS:
        raise ValueError(
            f"{len(text):,} characters, and a text may have {MOST_TEXT_CHARACTERS:,}: cut it"
        )
    return text if text.strip(_BLANKS) else ""


def name_of(cell: object) -> str:
    """The label or client that a cell names, without the blanks around it; "" for none."""
    name = (spelled(cell, "a word or a whole number") or "").strip(_BLANKS)
    if len(name) > MOST_NAME_CHARACTERS:
        raise ValueError(
            f"{name[:20]!r}... has {len(name):,} characters, too many for a name: is it the right "
            "column?"
        )
    return name


def spelled(cell: object, wanted: str) -> str | None:
    """What a cell says, or None where it says nothing; `wanted` is what the ValueError of a cell
    that is refused calls it.
    """
    text = (
        cell
        if isinstance(cell, str)
        else _written(cell.item() if isinstance(cell, np.generic) else cell, wanted)
    )
    if text is None or (text.isascii() and "\0" not in text):
        return text
    if "\0" in text:
        raise ValueError(f"holds a NUL character, which is not part of {wanted}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds half a character, {text[error.start]!a}, which is not part of {wanted}"
        ) from None
    return text


def _written(cell: object, wanted: str) -> str | None:
    kind = type(cell).__name__
    if cell is None or kind in ("NAType", "NaTType"):  # pandas' kinds of nothing
        return None
    if isinstance(cell, float | decimal.Decimal):
        return None if math.isnan(cell) else str(cell)
    if isinstance(cell, bool | int | datetime.date | datetime.time | datetime.timedelta):
        return str(cell)  # a whole number of more than 4,300 digits is a ValueError that says so
    if isinstance(cell, bytes | bytearray):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"holds binary data that is not UTF-8, {shown(cell[:30])}, not {wanted}"
            ) from None
    kind = {"list": "a list", "tuple": "a list", "dict": "an object"}.get(
        kind, f"a value of type {kind}"
    )
    raise ValueError(f"holds {kind}, {shown(cell)}, not {wanted}")


def unlike(kinds: Counter[type], are_texts: bool) -> str | None:
    """What to say of a column of several kinds of cells, or of a column of texts that are none;
    `kinds` counts their types.
    """
    found: Counter[str] = Counter()
    for kind, count in kinds.items():
        found[_kind(kind)] += count
    if not found:  # every cell is empty
        return None
    if len(found) < 2 and (not are_texts or "text" in found):
        return None
    return (
        f"holds {', '.join(f'{count:,} {name}' for name, count in found.most_common())}, read as "
        "they are spelled"
    )


def _kind(kind: type) -> str:
    if issubclass(kind, str | bytes | bytearray):
        return "text"
    if issubclass(kind, bool | np.bool_):
        return "truth values"
    return (
        "numbers" if issubclass(kind, int | float | decimal.Decimal | np.number) else kind.__name__
    )


def shown(cell: object) -> str:
    """A cell in a message, cut to the width of one."""
    try:
        return shortened("null" if cell is None else " ".join(repr(cell).split()))
    except RecursionError:
        return "nested too deeply to be shown"


def shortened(words: str) -> str:
    """The beginning of something long."""
    return words if len(words) <= 60 else f"{words[:57]}..."
