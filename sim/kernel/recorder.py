"""What happened: spans and metrics, buffered in columns, digested, and written as Parquet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
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


Span = tuple[str, str, float, float, int, float, float, str, tuple[int, ...]]


class Recorder:
    """Collects a run's spans (who did what from when to when) and metrics (a number at a
    moment).
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._metrics: list[tuple[float, str, float, str]] = []
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
        self._spans.append(
            (actor, kind, start_s, end_s, nbytes, flop, joules, outcome, tuple(flows))
        )
        if kind == "upload":
            self.uplink_bytes += nbytes
        elif kind == "download":
            self.downlink_bytes += nbytes

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
        self._metrics.append((time_s, name, float(value), group))

    def bytes_by_actor(self, kind: str) -> Counter[str]:
        """Bytes that each actor's spans of that kind come to."""
        nbytes: Counter[str] = Counter()
        for actor, its_kind, _, _, its_bytes, *_ in self._spans:
            if its_kind == kind:
                nbytes[actor] += its_bytes
        return nbytes

    def spans(self) -> pa.Table:
        """All spans in the order in which they ended."""
        return _table(self._spans, _SPAN_TYPES)

    def metrics(self) -> pa.Table:
        """All metrics in the order in which they were taken."""
        return _table(self._metrics, _METRIC_TYPES)

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
                    digest.update("\x00".join(column.to_pylist()).encode())
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


def _table(rows: Sequence[tuple[object, ...]], types: dict[str, pa.DataType]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(types)
    return pa.table(
        {
            name: pa.array(col, type_)
            for (name, type_), col in zip(types.items(), columns, strict=True)
        }
    )
