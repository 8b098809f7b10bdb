"""What a run left behind, read back: `open_run(path)` checks the directory once, tables are read
when asked for.

Timelines, plots, comparisons and notebooks all start here, so that none of them has to know file
names or to guess whether a directory is whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inputs.files import FileProblem, read_json
from sim.kernel.vocabulary import FINE
from sim.results.run_directory import is_held

COLUMNS = {
    "spans": ("actor", "kind", "start_s", "end_s", "nbytes", "flop", "joules", "outcome", "flows"),
    "metrics": ("time_s", "name", "value", "group"),
    "devices": (
        *(
            "device",
            "device_class",
            "engine",
            "backbone",
            "link",
            "cell",
            "samples",
            "joined_at_s",
            "finished_at_s",
        ),
        *(
            "uplink_bytes",
            "downlink_bytes",
            "delivery_bytes",
            "flop",
            "energy_j",
            "peak_memory_bytes",
            "busy_s",
            "waiting_s",
            "outcome",
        ),
    ),
}
LEDGER_COLUMNS = ("receiver", "kind", "layer", "token", "way", "payloads", "records", "nbytes")
"""Of a table that runs of versions before it lack."""
AGAIN = "delete its folder and run the scenario again"
SAMPLE_REASONS = ("slowest", "failed", "median", "fastest", "random")


class RunError(ValueError):
    """A run directory cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A run directory: its manifest and summary in memory, its three tables on disk until asked
    for.
    """

    path: Path
    manifest: dict
    summary: dict
    label: str = ""
    """What its reader calls it, in headings."""

    def spans(self, columns: list[str] | None = None, coded: bool = False) -> pa.Table:
        """Who did what from when to when: one row a span (seconds, bytes, FLOP, joules), columns as
        in `COLUMNS`. `coded`: texts as numbers with a dictionary, as `encode` takes them.
        """
        return self._table("spans", columns, ["actor", "kind", "outcome"] if coded else None)

    def metrics(self) -> pa.Table:
        """Every value measured on the way: time_s, name, value, group ("" is the whole fleet)."""
        return self._table("metrics")

    def devices(self) -> pa.Table:
        """One row a device: what it is, when it finished (null if it did not), what it spent."""
        return self._table("devices")

    def ledger(self) -> pa.Table:
        """Who has seen what: one row a receiver (server, devices), kind of content, layer and
        token, with payloads, records (texts, each as often as it came) and bytes. `way` is sent,
        start (what a party had from the start) or cut off (what never arrived whole).
        """
        if not (self.path / "ledger.parquet").exists():
            raise RunError(
                f"{self.path} was made before there was a ledger: run its scenario again"
            )
        return self._table("ledger", list(LEDGER_COLUMNS))

    def curve(self, name: str, group: str = "") -> tuple[np.ndarray, np.ndarray]:
        """A metric over virtual time: (time_s, value), both float64 of shape (n,), in time order; n
        may be 0.
        """
        table = self.metrics()
        table = table.filter(
            pc.and_(pc.equal(table["name"], name), pc.equal(table["group"], group))
        )
        time_s = table["time_s"].to_numpy()
        order = np.argsort(time_s, kind="stable")
        return time_s[order], table["value"].to_numpy()[order]

    @property
    def name(self) -> str:
        """The scenario's name, or the directory's where the scenario has none."""
        return str(
            self.manifest["scenario"].get("name") or self.summary.get("scenario") or self.path.name
        )

    @property
    def method(self) -> str:
        """The kind of the method that was run, or "" where none is written down."""
        return str(
            self.summary.get("method")
            or (self.manifest["scenario"].get("method") or {}).get("kind")
            or ""
        )

    @property
    def seed(self) -> int | None:
        """The seed from which every random stream of the run was named."""
        return self.manifest.get("seed")

    @property
    def title(self) -> str:
        """The label, or name, method and seed, and what else a reader must know (dry, not finished)
        in one line, for headings.
        """
        status = self.manifest.get("status", "finished")
        dry = "dry run" if self.manifest.get("dry") else ""
        diverged = "diverged" if self.summary.get("ended") == "diverged" else ""
        parts = [
            *([self.label] if self.label else [self.name, self.method, f"seed {self.seed}"]),
            dry,
            diverged,
            "" if status == "finished" else status,
        ]
        return " · ".join(part for part in parts if part)

    @property
    def metric(self) -> str:
        """The name of the metric that the run is judged by."""
        return str(self.summary.get("metric") or "accuracy")

    @property
    def has_diverged(self) -> bool:
        """Whether it has no accuracy at its end for numbers that were not finite."""
        return self.summary.get("final") is None and bool(self.summary.get("diverged"))

    @property
    def is_reference(self) -> bool:
        """Whether its method is what others are held against, and no way for a fleet to learn."""
        return bool(self.summary.get("is_reference"))

    @property
    def target(self) -> dict:
        """The summary's target (value, reached_at_s, uplink_bytes, ...); empty where none was
        set.
        """
        target = self.summary.get("target") or {}
        return target if target.get("value") is not None else {}

    def _table(
        self, name: str, columns: list[str] | None = None, coded: list[str] | None = None
    ) -> pa.Table:
        file = self.path / f"{name}.parquet"
        try:
            wanted = list(columns or COLUMNS[name])
            return pq.read_table(file, columns=wanted, read_dictionary=coded)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{file} cannot be read ({_first_line(error)}): {AGAIN}") from error


def open_run(path: str | Path) -> Run:
    """Open a run directory; raises `RunError` when it is none, or when a part of it is missing or
    truncated.

    Only the two JSON files and the footers of the tables are read. An interrupted run opens if its
    parts are all there.

        run = mobifleet.open_run("runs/quickstart")
        run.summary["final"], run.spans().to_pandas()
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path} is not a directory: name the directory that `mobifleet run` wrote")
    if not (path / "manifest.json").exists():
        raise RunError(
            f"{path} is not a run (no manifest.json): name the directory that `mobifleet run` wrote"
        )
    manifest = _read_json(path / "manifest.json")
    if not isinstance(manifest.get("scenario"), dict):
        raise RunError(f"{path / 'manifest.json'} has no resolved scenario: {AGAIN}")
    if manifest.get("status") == "running" and not is_held(path):
        manifest["status"] = "killed"
    parts = ["summary.json", *(f"{name}.parquet" for name in COLUMNS)]
    missing = [part for part in parts if not (path / part).exists()]
    if missing:
        status = str(manifest.get("status", "unknown"))
        todo = {"running": "wait for it to end", "finished": AGAIN}.get(
            status, "finish it with `mobifleet run SCENARIO --resume`"
        )
        raise RunError(f"{path} is incomplete (status: {status}; no {', '.join(missing)}): {todo}")
    for name, columns in COLUMNS.items():
        _check_table(path / f"{name}.parquet", columns)
    return Run(path, manifest, _read_json(path / "summary.json"))


def sampling_order(devices: pa.Table, rng_seed: int = 0) -> Iterator[tuple[int, str]]:
    """Row numbers of `devices` in the order in which a drawing of limited size should take them,
    and why each is taken.

    Classes take turns; within a class so do the slowest (still at work at the horizon counts as
    slowest), the failed, those around the median, the fastest, and a random one. The random order
    of a class depends on `rng_seed` and the class's name only. Every row comes exactly once.
    """
    classes = np.asarray(devices["device_class"].to_pylist(), dtype=object)
    failed = np.array(
        [outcome not in FINE for outcome in devices["outcome"].to_pylist()], dtype=bool
    )
    finish_s = finish_times(devices)

    def one_class(name: str) -> Iterator[tuple[int, str]]:
        rows = np.flatnonzero(classes == name)
        fine = rows[~failed[rows]]
        fine = fine[np.argsort(finish_s[fine], kind="stable")]
        from_the_middle = np.argsort(
            np.abs(np.arange(len(fine)) - (len(fine) - 1) / 2), kind="stable"
        )
        rng = np.random.default_rng([rng_seed, *name.encode()])
        queues = (
            fine[::-1],
            rows[failed[rows]],
            fine[from_the_middle],
            fine,
            rng.permutation(rows),
        )
        turns = [iter(queue.tolist()) for queue in queues]
        taken: set[int] = set()
        while len(taken) < len(rows):
            for reason, turn in zip(SAMPLE_REASONS, turns, strict=True):
                row = next((row for row in turn if row not in taken), None)
                if row is not None:
                    taken.add(row)
                    yield row, reason

    waiting = [one_class(name) for name in sorted(set(classes.tolist()))]
    while waiting:
        for queue in list(waiting):
            item = next(queue, None)
            if item is None:
                waiting.remove(queue)
            else:
                yield item


def finish_times(devices: pa.Table) -> np.ndarray:
    """The finish time of each device in virtual seconds, float64 of shape (devices,); inf where it
    never finished.
    """
    finish_s = pc.fill_null(devices["finished_at_s"].cast(pa.float64()), float("inf")).to_numpy()
    return np.where(np.isnan(finish_s), np.inf, finish_s)


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A text column as (codes, names): codes int64 of shape (rows,), with `names[codes[i]]` the
    text of row i.
    """
    if pa.types.is_dictionary(column.type):
        encoded = column.unify_dictionaries().combine_chunks()
    else:
        encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _read_json(file: Path) -> dict:
    try:
        value = read_json(file)
    except FileProblem as problem:
        raise RunError(f"{problem}: {AGAIN}") from problem
    if not isinstance(value, dict):
        raise RunError(f"{file} does not hold a JSON object: {AGAIN}")
    return value


def _check_table(file: Path, columns: tuple[str, ...]) -> None:
    try:
        found = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file} is truncated ({_first_line(error)}): {AGAIN}") from error
    lacking = [column for column in columns if column not in found]
    if lacking:
        raise RunError(f"{file} has no column {', '.join(lacking)}: {AGAIN} with this version")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
