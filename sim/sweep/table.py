"""The long table of a sweep, one row a run, and its curves: what the folders hold, and nothing that
depends on when and where it was computed, so that a sweep in pieces gives the same bytes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from learning.host_device import HostDevice
from sim.kernel.writing import replacing, write_table
from sim.privacy.measures import measures_in
from sim.results.looks import chosen_score
from sim.results.run import Run, open_run
from sim.sweep.engine import failure, is_done
from sim.sweep.planned_run import PlannedRun

NOT_OF_THE_RUN = {"host", "remarks", "scenario", "method", "seed"}
"""Parts of a summary that say what is known already, or what took place on the host."""
MOST_WHOLE = 2**63 - 1  # that a column of numbers holds


def rows_of(
    entries: Sequence[PlannedRun], out: Path, dry: bool, folder: Path, host: HostDevice
) -> list[dict[str, Any]]:
    """One row a run, in the order of the plan: its settings, `method` (the label), `seed`,
    `folder`, `status` and `error`, then the numbers of its summary by their paths in it.
    """
    rows = []
    for entry in entries:
        done = is_done(entry, dry, folder, host)
        why = failure(entry)  # of a finished run: why an attack on it failed
        row = {
            **entry.values,
            "method": entry.label,
            "seed": entry.scenario.seed,
            "folder": entry.folder.relative_to(out).as_posix(),
            "status": "finished" if done else "failed" if why is not None else "not finished",
            "error": why,
        }
        numbers = _numbers_of(open_run(entry.folder)) if done else {}
        rows.append(
            row | {f"summary.{k}" if k in row else k: number for k, number in numbers.items()}
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _numbers_of(run: Run) -> dict[str, Any]:
    """Those of the summary; and, first, what it scored at the look that its validation texts chose,
    where it has some; last the most that attacks on it got, where any were tried.
    """
    chosen = {"chosen": chosen_score(run)} if run.summary["judged_on"]["validation"] else {}
    return chosen | dict(_numbers(run.summary)) | measures_in(run)


def _numbers(summary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in summary.items():
        if name in NOT_OF_THE_RUN:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", number) for inner, number in _numbers(value))
        elif not isinstance(value, list | tuple):
            yield name, value


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as a table: numbers where a column holds nothing else, text otherwise."""
    names = list(rows[0]) if rows else []
    return pa.table({name: _column([row[name] for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if any(isinstance(value, int) and abs(value) > MOST_WHOLE for value in values):
        kinds |= {str}
    if kinds <= {int, float} and kinds != {int}:  # nothing at all is a number that is not there
        return pa.array(values, pa.float64())
    if len(kinds) == 1 and kinds <= {int, bool, str}:
        return pa.array(values)
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array(texts, pa.string())


def write(rows: Sequence[Mapping[str, Any]], out: Path, name: str) -> pa.Table:
    """`NAME.parquet` and `NAME.csv`; returns the table."""
    table = table_of(rows)
    write_table(table, out / f"{name}.parquet")
    write_csv(table.column_names, table.to_pylist(), out / f"{name}.csv")
    return table


def write_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """The rows as CSV, its numbers such that they are read back to the bit."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def curves_of(entries: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """What these finished runs have noted of the whole fleet, one row a value: settings, `method`,
    `seed`, `time_s`, `name`, `value`.
    """
    found = []
    for entry in entries:
        noted = open_run(entry.folder).metrics().to_pylist()
        for row in noted:
            if row["group"] == "":
                found.append(
                    {
                        **entry.values,
                        "method": entry.label,
                        "seed": entry.scenario.seed,
                        **{name: row[name] for name in ("time_s", "name", "value")},
                    }
                )
    return found
