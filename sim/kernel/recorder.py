"""What happened: spans and metrics, buffered in columns, digested, and written as Parquet."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sim.kernel.rows import LISTED, Blocks, Rows

_SPAN_TYPES = {
    "actor": pa.string(),
    "kind": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "nbytes": pa.int64(),
    "flop": pa.float64(),
    "joules": pa.float64(),
    "outcome": pa.string(),
    "flows": LISTED,
}
_METRIC_TYPES = {
    "time_s": pa.float64(),
    "name": pa.string(),
    "value": pa.float64(),
    "group": pa.string(),
}


BLOCK_ROWS = 2**15  # of spans: 2 MB packed


class ActorSums:
    """Bytes, FLOP, joules and seconds of each actor by kind, added up in the order of the spans."""

    NAMES = ("nbytes", "flop", "joules", "seconds")

    def __init__(self) -> None:
        self._of_kind: dict[int, np.ndarray] = {}  # float64 (names, actors), by their codes

    def add(self, rows: np.ndarray, codes: int) -> None:
        """More spans, packed, that are named by so many codes."""
        for kind in np.unique(rows["kind"]).tolist():
            mine = rows[rows["kind"] == kind]
            sums = self._of_kind.get(kind, np.zeros((len(self.NAMES), 0)))
            if sums.shape[1] < codes:
                sums = np.pad(sums, ((0, 0), (0, codes - sums.shape[1])))
            parts = (mine["nbytes"], mine["flop"], mine["joules"], mine["end_s"] - mine["start_s"])
            for row, part in zip(sums, parts, strict=True):
                np.add.at(row, mine["actor"], part)
            self._of_kind[kind] = sums

    def of(self, actors: np.ndarray) -> dict[int, np.ndarray]:
        """Of each kind those of these actors (-1: of none): float64 of shape (names, actors)."""
        found = {}
        for kind, sums in self._of_kind.items():
            known = (actors >= 0) & (actors < sums.shape[1])
            found[kind] = np.zeros((len(self.NAMES), len(actors)))
            found[kind][:, known] = sums[:, actors[known]]
        return found


class Recorder:
    """Collects a run's spans (who did what from when to when) and metrics (a number at a
    moment).

    Spans are held in memory, but where `keep_in` names a folder for those of a large run.
    """

    def __init__(self) -> None:
        self._spans, self._metrics = Rows(_SPAN_TYPES), Rows(_METRIC_TYPES)
        self._sums = ActorSums()
        self._folder: Path | None = None
        self._block_bytes = math.inf
        self.uplink_bytes = 0
        self.downlink_bytes = 0

    def span(
        self,
        actor: str,
        kind: str,
        start_s: float,
        end_s: float,
        nbytes: int = 0,
        flop: float = 0.0,
        joules: float = 0.0,
        outcome: str = "ok",
        flows: Sequence[int] = (),
    ) -> None:
        """One thing that an actor did; `flows` are the payloads that it sent, or was the first to
        use.
        """
        rows = self._spans
        code = rows.codes
        who, what, how = code[actor], code[kind], code[outcome]
        rows.packed += rows.pack(
            who, what, start_s, end_s, int(nbytes), flop, joules, how, len(flows)
        )
        if flows:
            rows.listed.extend(flows)
        if kind == "upload":
            self.uplink_bytes += nbytes
        elif kind == "download":
            self.downlink_bytes += nbytes
        if len(rows.packed) >= self._block_bytes:
            self._end_block()

    @property
    def bytes_to(self) -> dict[str, int]:
        """All that was on its way to each party of the ledger."""
        return {"server": self.uplink_bytes, "devices": self.downlink_bytes}

    def record_link(self, link: str, busy_times: np.ndarray) -> None:
        """Spans of a shared link, one for each time without a gap in which transfers were on it.

        `busy_times` has a row of (from, until, bytes) for each; they are rounded so that their sum
        is the rounded sum.
        """
        nbytes = np.diff(np.rint(np.cumsum(busy_times[:, 2])), prepend=0.0)
        for (start_s, end_s, _), whole in zip(busy_times.tolist(), nbytes.tolist(), strict=True):
            self.span(link, "carry", start_s, end_s, int(whole))

    def metric(self, time_s: float, name: str, value: float, group: str = "") -> None:
        """A number at a moment, of one group or (group "") of the whole fleet."""
        rows = self._metrics
        rows.packed += rows.pack(time_s, rows.codes[name], float(value), rows.codes[group])

    def keep_in(self, folder: Path) -> None:
        """Keep spans in a file there, from the first full block of them on, until `write`."""
        self._folder, self._block_bytes = folder, BLOCK_ROWS * self._spans.row_bytes

    def discard(self) -> None:
        """Remove the file that `keep_in` made, of a run that comes to nothing; what its processes
        record as they are dropped stays in memory.
        """
        self._folder, self._block_bytes = None, math.inf
        self._spans.blocks.discard()

    def _end_block(self) -> None:
        if self._folder is not None:
            self._spans.blocks.spill(self._folder / "spans.parquet")
            self._folder = None  # it is open
        self._collected(self._spans)

    def _collected(self, rows: Rows) -> Blocks:
        """The blocks of all rows so far."""
        if rows.packed:
            packed = rows.end_block()
            if rows is self._spans:
                self._sums.add(packed, len(rows.codes))
        return rows.blocks

    def sums_by_kind(self, actors: Sequence[str]) -> defaultdict[str, np.ndarray]:
        """Of each kind, what these actors' spans come to: bytes, FLOP, joules and seconds; float64
        of shape (4, actors), zeros of a kind that there has not been.
        """
        self._collected(self._spans)
        codes = self._spans.codes
        places = np.array([codes.get(actor, -1) for actor in actors], dtype=np.int64)
        names, shape = list(codes), (len(ActorSums.NAMES), len(actors))
        found = {names[kind]: sums for kind, sums in self._sums.of(places).items()}
        return defaultdict(lambda: np.zeros(shape), found)

    def span_blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All spans in the order in which they ended, a block of them after another."""
        return self._collected(self._spans).read(columns)

    def spans(self) -> pa.Table:
        """All spans in the order in which they ended."""
        return self._collected(self._spans).table()

    def metrics(self) -> pa.Table:
        """All metrics in the order in which they were taken."""
        return self._collected(self._metrics).table()

    def digest(self, *also: str) -> str:
        """SHA-256 over every span, every metric and whatever else is named (scenario, learned
        weights); no host fact.
        """
        digest = hashlib.sha256("\x00".join(also).encode())
        for rows in (self._spans, self._metrics):
            blocks = self._collected(rows)
            for field in blocks.schema:
                digest.update(field.name.encode())
                for part in _PARTS.get(field.type, (_numbers,)):
                    for place, block in enumerate(blocks.read([field.name])):
                        if place and part is _joined:
                            digest.update(b"\x00")
                        digest.update(part(block.column(0).combine_chunks()))
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write spans.parquet and metrics.parquet, each atomically."""
        for rows, name in ((self._spans, "spans"), (self._metrics, "metrics")):
            self._collected(rows).write(folder / f"{name}.parquet")


def _numbers(column: pa.Array) -> bytes:
    numbers: np.ndarray = column.to_numpy(zero_copy_only=False)
    return numbers.tobytes()


def _lengths(column: pa.ListArray) -> bytes:
    return _numbers(column.value_lengths())


def _listed(column: pa.ListArray) -> bytes:
    return _numbers(column.flatten())


def _joined(texts: pa.StringArray) -> memoryview:
    """All texts in UTF-8 with a zero byte between each two: as they lie in memory, when each has
    got one behind it.
    """
    ended = pc.binary_join_element_wise(texts, "", "\x00")
    content, nbytes = ended.buffers()[2], pc.sum(pc.binary_length(ended)).as_py()
    return memoryview(content)[: nbytes - 1] if nbytes else memoryview(b"")


# what of a column is digested, one after the other, each of all blocks
_PARTS: dict[pa.DataType, tuple[Callable[[pa.Array], bytes | memoryview], ...]] = {
    pa.string(): (_joined,),
    LISTED: (_lengths, _listed),
}
