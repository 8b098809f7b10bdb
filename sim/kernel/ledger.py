"""What crosses the wire, by what it says: the contents of every payload, and who has seen them.

A method names what its payloads hold, byte by byte (`Contents`), and what no upload of its may hold
(`keeps_on_device`); a payload that breaks this fails the run before a byte of it is sent.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import pyarrow as pa

KINDS = {
    "activation": "states of the backbone at a layer",
    "prediction difference": "the truth less the backbone's own prediction",
    "prediction": "what the backbone predicts by itself",
    "label": "the truth itself",
    "text": "texts as they are",
    "token ids": "texts as a backbone's tokens",
    "length": "how many tokens a text has",
    "sample number": "which text of the run it is",
    "gradient": "of the loss by activations or trained numbers",
    "derivative": "of the loss along a direction that a seed gives: one number",
    "parameters": "trained numbers, or how they have moved",
    "side network": "the side network with what belongs to a backbone",
    "head": "a fitted head",
    "layer choice": "which layers to sample",
    "public axes": "statistics of public texts' activations",
    "seed": "what random directions follow from",
    "frame": "the format's header",
    "undeclared": "whatever a method sends without saying what it is",
}
"""What a part of a payload may be, and what it says."""
DATA_KINDS = frozenset({"text", "token ids", "label"})
"""What the texts and their labels are by themselves."""
PER_TEXT_KINDS = DATA_KINDS | {"activation", "prediction difference", "prediction"}
"""What there is of each text: nothing of the kind leaves a device that sends what it has trained.
"""


Plain: TypeAlias = tuple[str, int, list[int], str]
"""An item as JSON has it."""


class BrokenDeclaration(RuntimeError):
    """A payload holds what its method declares to keep on the device."""


@dataclass(frozen=True)
class Item:
    """One part of a payload: its kind (of `KINDS`), its bytes and, of activations, which layers
    they are of (0 is the embedding) and at which token: first, last, mean (of all), each.

    Raises ValueError for another kind, or fewer than 0 bytes.
    """

    kind: str
    nbytes: int
    layers: tuple[int, ...] = ()
    token: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of content: say one of {', '.join(KINDS)}")
        if self.nbytes < 0:
            raise ValueError(f"{self.kind} of {self.nbytes} bytes")


class Contents:
    """What one payload holds, part by part; parts of no bytes are none.

    contents = Contents(Item("label", 4 * n), Item("activation", 1536 * n, (6,), "mean"))
    """

    __slots__ = ("items", "kinds", "nbytes")

    def __init__(self, *items: Item) -> None:
        self.items = tuple(
            (item, (item.kind, item.layers, item.token)) for item in items if item.nbytes
        )
        self.nbytes = sum(item.nbytes for item in items)
        self.kinds = frozenset(item.kind for item, _ in self.items)

    def plain(self) -> list[Plain]:
        """As JSON has it, for a header that travels with the bytes."""
        return [(i.kind, i.nbytes, list(i.layers), i.token) for i, _ in self.items]

    @classmethod
    def of_plain(cls, given: Iterable[Plain]) -> Contents:
        """What `plain` gave."""
        return cls(*(Item(kind, n, tuple(layers), token) for kind, n, layers, token in given))


@functools.lru_cache(4096)
def only(kind: str, nbytes: int) -> Contents:
    """Contents of one kind alone."""
    return Contents(Item(kind, nbytes))


def contents_of(given: Contents | int) -> Contents:
    """What a method gave: contents, or bytes that it says nothing about."""
    return given if isinstance(given, Contents) else only("undeclared", int(given))


class Ledger:
    """Who has seen how much of what: counts of everything that has arrived whole."""

    def __init__(self) -> None:
        self.keeps: frozenset[str] = frozenset()
        self._barred: frozenset[str] = frozenset()
        self._seen: dict[tuple[str, tuple[str, tuple[int, ...], str]], list[int]] = {}
        self._held: list[tuple[str, str, int]] = []

    def declare(self, keeps: Collection[str]) -> None:
        """No upload may hold any of these kinds. ValueError for one that is none."""
        if unknown := [kind for kind in keeps if kind not in KINDS]:
            raise ValueError(f"keeps_on_device: {unknown[0]!r} is none of {', '.join(KINDS)}")
        self.keeps = frozenset(keeps)
        self._barred = self.keeps | {"undeclared"} if keeps else self.keeps

    def require_kept(self, sender: str, contents: Contents) -> None:
        """Raise BrokenDeclaration for an upload that holds what is to stay on the device, or what
        nobody says, where something is to stay there.
        """
        if not contents.kinds.isdisjoint(self._barred):
            broken = contents.kinds & self._barred
            what, kept = ", ".join(sorted(broken)), ", ".join(sorted(self.keeps))
            hint = (
                ": say what it holds by `Contents` (sim/kernel/ledger.py)"
                if "undeclared" in broken
                else ""
            )
            raise BrokenDeclaration(
                f"{sender} would upload {what}, and the method declares to keep {kept} on the "
                f"device (`keeps_on_device`){hint}"
            )

    def hold(self, who: str, kind: str, records: int) -> None:
        """Note what a party has from the start, without anybody sending it."""
        if records:
            self._held.append((who, kind, records))

    def note(self, receiver: str, contents: Contents, records: int) -> None:
        """Note what has arrived whole at the "server" or at "devices"."""
        seen = self._seen
        for item, what in contents.items:
            row = seen.get((receiver, what))
            if row is None:
                row = seen[receiver, what] = [0, 0, 0]
            row[0] += item.nbytes
            row[1] += 1
            row[2] += records

    def table(self, sent_bytes: dict[str, int]) -> pa.Table:
        """One row a receiver, kind, layer and token; `sent_bytes`, all that was on its way to each
        receiver, tells what was cut off and never arrived whole.

        Bytes of several layers are divided evenly among them, the rest to the first.
        """
        rows: Counter[tuple[_Row, str]] = Counter()
        left = dict(sent_bytes)
        for who, kind, records in self._held:
            rows[_Row(who, "start", kind), "records"] += records
        for (who, (kind, layers, token)), (nbytes, payloads, records) in self._seen.items():
            share, rest = divmod(nbytes, len(layers) or 1)
            left[who] -= nbytes
            for layer in layers or (-1,):
                row = _Row(who, "sent", kind, layer, token)
                rows[row, "payloads"] += payloads
                rows[row, "records"] += records
                rows[row, "nbytes"] += share + rest
                rest = 0
        for who, nbytes in left.items():
            if nbytes:
                rows[_Row(who, "cut off", "undeclared"), "nbytes"] += nbytes
        found = [
            {
                **row._asdict(),
                "layer": None if row.layer < 0 else row.layer,
                **{name: rows[row, name] for name in _COUNTS},
            }
            for row in sorted({row for row, _ in rows}, key=_place)
        ]
        return pa.Table.from_pylist(found, _SCHEMA)


class _Row(NamedTuple):
    receiver: str
    way: str
    kind: str
    layer: int = -1
    token: str = ""


_COUNTS = ("payloads", "records", "nbytes")
_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("receiver", "way", "kind"), pa.string()),
        "layer": pa.int64(),
        "token": pa.string(),
        **dict.fromkeys(_COUNTS, pa.int64()),
    }
)
_WAYS, _KINDS = ("start", "sent", "cut off"), tuple(KINDS)


def _place(row: _Row) -> tuple[object, ...]:
    who, way, kind, layer, token = row
    return who != "server", _WAYS.index(way), _KINDS.index(kind), layer, token
