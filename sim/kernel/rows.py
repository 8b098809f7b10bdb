"""Rows of a table as they come: packed, then blocks of columns, in memory or in a Parquet file that
grows with them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sim.kernel.writing import CannotWrite, remove, replacing, write_table, writing

LISTED = pa.list_(pa.int64())
_PACKED = {pa.string(): "i", pa.float64(): "d", pa.int64(): "q", LISTED: "i"}


class Texts(dict[str, int]):
    """A number for each text, in the order in which they are first asked for."""

    def __missing__(self, text: str) -> int:
        self[text] = code = len(self)
        return code


class Blocks:
    """A table that grows block by block: in memory, or, from `spill` on, in a file.

    Who reads a table that still grows ends its file; what comes later goes into a further one.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._held: list[pa.Table] = []
        self._place: Path | None = None  # where the files are,
        self._files: list[Path] = []  # each after what is in the one before
        self._writer: pq.ParquetWriter | None = None  # of the last, while it grows

    def spill(self, place: Path) -> None:
        """Put all that there is, and what comes from now on, into files called as `place`, a number
        and ".tmp".
        """
        self._place = place
        held, self._held = self._held, []
        for block in held:
            self.append(block)

    def append(self, block: pa.Table) -> None:
        """One more block; CannotWrite where the disk does not take it, RuntimeError where the file
        is written to its end.
        """
        if self._place is None and self._files:
            raise RuntimeError(f"{self._files[0]} is written: no more can come")
        if self._place is None:
            self._held.append(block)
            return
        if self._writer is None:
            name = f"{self._place.name}.{len(self._files)}.tmp"
            self._files.append(self._place.with_name(name))
            with writing(self._files[-1]):
                self._writer = self._new(self._files[-1])
        with writing(self._files[-1]):
            self._writer.write_table(block, row_group_size=len(block))

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """One block after another, all of its columns or these; if there is none, an empty one."""
        if not self._files:
            held = self._held or [self.schema.empty_table()]
            yield from (block.select(columns or block.column_names) for block in held)
            return
        self._end()
        for path in [*self._files]:  # while who reads lets more come
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)

    def write(self, path: Path) -> None:
        """Leave a Parquet file of that name, atomically: a reader never sees half of it."""
        self._end()
        if not self._files:
            write_table(self.table(), path)
        elif len(self._files) == 1:
            with writing(path):
                self._files[0].replace(path)
        else:
            with replacing(path) as temporary, self._new(temporary) as whole:
                for block in self.read():
                    whole.write_table(block)
            self._remove()
        if self._place is not None:
            self._place, self._files = None, [path]

    def _new(self, path: Path) -> pq.ParquetWriter:
        return pq.ParquetWriter(path, self.schema, compression="zstd")

    def table(self) -> pa.Table:
        """All of it."""
        return pa.concat_tables(self.read())

    def _end(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with writing(self._files[-1]):
                writer.close()

    def discard(self) -> None:
        """Remove the files of a table that has not been written to its end."""
        if self._place is not None:
            with suppress(CannotWrite):
                self._end()
            self._remove()
            self._place = None

    def _remove(self) -> None:
        for path in self._files:
            with suppress(OSError):
                remove(path)
        self._files = []


class Rows:
    """Rows of one table, packed: 8 bytes a number, 4 a text, whose number in `codes` it is, or a
    list, whose length it is (its numbers are in `listed`).

    A row that were an object would weigh five times as much, and be looked at by every collection
    of garbage.
    """

    def __init__(self, types: Mapping[str, pa.DataType]) -> None:
        self.codes = Texts()
        self.packed = bytearray()
        self.listed = array("q")
        row = struct.Struct("=" + "".join(_PACKED[type_] for type_ in types.values()))
        self.pack, self.row_bytes = row.pack, row.size
        self.blocks = Blocks(pa.schema(dict(types)))
        self._dtype = np.dtype([(name, f"={_PACKED[type_]}") for name, type_ in types.items()])
        self._texts: list[str] = []

    def end_block(self) -> np.ndarray:
        """Make the rows since the last call one more block; returns them as they were packed."""
        rows = np.frombuffer(self.packed, self._dtype)
        self._texts += islice(self.codes, len(self._texts), None)
        listed = np.array(self.listed)
        schema = self.blocks.schema
        columns = [self._column(field.type, rows[field.name], listed) for field in schema]
        self.packed, self.listed = bytearray(), array("q")
        if len(rows):
            self.blocks.append(pa.table(columns, schema=schema))
        return rows

    def _column(self, type_: pa.DataType, values: np.ndarray, listed: np.ndarray) -> pa.Array:
        if pa.types.is_string(type_):
            codes, places = np.unique(values, return_inverse=True)
            return pa.array([self._texts[code] for code in codes.tolist()], type_).take(
                pa.array(places)
            )
        if pa.types.is_list(type_):
            ends = np.cumsum(values, dtype=np.int32)
            return pa.ListArray.from_arrays(np.append(np.int32(0), ends), listed)
        return pa.array(values.copy())
