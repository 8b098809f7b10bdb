"""What happened: spans and metrics, buffered in columns, digested, and written as Parquet."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sim.kernel.writing import replacing

_SPAN_TYPES = {
    "actor": pa.string(),
    "kind": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "nbytes": pa.int64(),
    "flop": pa.float64(),
    "joules": pa.float64(),
    "outcome": pa.string(),
    "flows": pa.list_(pa.int64()),
}
_METRIC_TYPES = {
    "time_s": pa.float64(),
    "name": pa.string(),
    "value": pa.float64(),
    "group": pa.string(),
}


_PACKED = {pa.string(): "i", pa.float64(): "d", pa.int64(): "q", pa.list_(pa.int64()): "i"}


class _Rows:
    """Rows of one table as they come, packed: 8 bytes a number, 4 a text, whose number in `codes`
    it is, or a list, whose length it is (its numbers are in `listed`).

    A row that were an object would weigh five times as much, and be looked at by every collection
    of garbage.
    """

    def __init__(self, types: dict[str, pa.DataType]) -> None:
        self.codes = _Codes()
        self.packed = bytearray()
        self.listed = array("q")
        self.pack = struct.Struct("=" + "".join(_PACKED[type_] for type_ in types.values())).pack
        self._tables: list[pa.Table] = []
        self._types = types
        self._dtype = np.dtype([(name, f"={_PACKED[type_]}") for name, type_ in types.items()])

    def table(self) -> pa.Table:
        """All rows so far; what is in it is no longer kept packed."""
        if self.packed or not self._tables:
            rows = np.frombuffer(self.packed, self._dtype)
            columns = {
                name: self._column(type_, rows[name].copy()) for name, type_ in self._types.items()
            }
            self._tables = [pa.concat_tables([*self._tables, pa.table(columns)])]
            self.packed, self.listed = bytearray(), array("q")
        return self._tables[0]

    def _column(self, type_: pa.DataType, values: np.ndarray) -> pa.Array:
        if pa.types.is_string(type_):
            return pa.array(list(self.codes), pa.string()).take(pa.array(values))
        if pa.types.is_list(type_):
            ends = np.cumsum(values, dtype=np.int32)
            return pa.ListArray.from_arrays(np.append(np.int32(0), ends), np.array(self.listed))
        return pa.array(values)


class _Codes(dict[str, int]):
    """A number for each text, in the order in which they are first asked for."""

    def __missing__(self, text: str) -> int:
        self[text] = code = len(self)
        return code


class Recorder:
    """Collects a run's spans (who did what from when to when) and metrics (a number at a
    moment).
    """

    def __init__(self) -> None:
        self._spans, self._metrics = _Rows(_SPAN_TYPES), _Rows(_METRIC_TYPES)
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

    def bytes_by_actor(self, kind: str) -> Counter[str]:
        """Bytes that each actor's spans of that kind come to."""
        spans = self.spans()
        spans = spans.filter(pc.equal(spans["kind"], kind))
        nbytes: Counter[str] = Counter()
        for actor, its_bytes in zip(
            spans["actor"].to_pylist(), spans["nbytes"].to_pylist(), strict=True
        ):
            nbytes[actor] += its_bytes
        return nbytes

    def spans(self) -> pa.Table:
        """All spans in the order in which they ended."""
        return self._spans.table()

    def metrics(self) -> pa.Table:
        """All metrics in the order in which they were taken."""
        return self._metrics.table()

    def digest(self, *also: str) -> str:
        """SHA-256 over every span, every metric and whatever else is named (scenario, learned
        weights); no host fact.
        """
        digest = hashlib.sha256("\x00".join(also).encode())
        for table in (self.spans(), self.metrics()):
            for name in table.column_names:
                column = table.column(name).combine_chunks()
                digest.update(name.encode())
                if pa.types.is_list(column.type):
                    digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
                    column = column.flatten()
                if pa.types.is_string(column.type):
                    digest.update(_joined(column))
                else:
                    digest.update(
                        np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes()
                    )
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write spans.parquet and metrics.parquet, each atomically."""
        write_table(self.spans(), folder / "spans.parquet")
        write_table(self.metrics(), folder / "metrics.parquet")


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table under a temporary name, then rename: a reader never sees half a file."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _joined(texts: pa.StringArray) -> memoryview:
    """All texts in UTF-8 with a zero byte between each two: as they lie in memory, when each has
    got one behind it.
    """
    ended = pc.binary_join_element_wise(texts, "", "\x00")
    content, nbytes = ended.buffers()[2], pc.sum(pc.binary_length(ended)).as_py()
    return memoryview(content)[: nbytes - 1] if nbytes else memoryview(b"")
