"""`mobifleet sweep`: check all combinations, run what is missing, write the tables and figures."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from inputs.units import format_bytes, format_seconds, format_si
from learning.host_device import CPU, HostDevice
from sim.kernel.writing import write_json
from sim.privacy.measures import SAID, require_attacks
from sim.results.run_directory import held
from sim.scenario.schema import Scenario
from sim.sweep import table
from sim.sweep.effects import OUTCOMES, Effect, effects_of, left_out, metrics_of
from sim.sweep.engine import NO_ATTACKS, Processes, is_whole, require_replaceable
from sim.sweep.front import FrontPoint, points_of
from sim.sweep.grid import Grid, cells_of, planned, value_text
from sim.sweep.planned_run import PlannedRun
from sim.sweep.progress import run_shown
from sim.sweep.remarks import remarks_of
from sim.sweep.trial import try_all
from sim.views.terminal_tables import fitted

if TYPE_CHECKING:
    from pandas import DataFrame

ON_TERMINAL = 4  # outcomes
COLUMN = 11  # characters, at least
MOST_SHOWN = 10  # failures
AS_WRITTEN = {"cost": "bytes", "cost_least": "bytes_least", "cost_most": "bytes_most"}
"""Of a point of the front, in front.csv."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been made: its folder, its long table (one row a run, as in sweep.csv), and
    the effect of each factor.
    """

    folder: Path
    rows: list[dict[str, Any]]
    effects: list[Effect]
    metric: str
    notes: list[str]
    """What the runs noted, and how many are in no effect, in sentences."""

    @property
    def frame(self) -> DataFrame:
        """The long table as a pandas frame, in SI units."""
        return table.table_of(self.rows).to_pandas()

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of the runs that failed, or attacks on them; the next call tries them again, and
        them alone.
        """
        return [row for row in self.rows if row["error"] is not None]

    def tables_for(self, width: int) -> list[Table]:
        """The effects for a terminal of so many characters: a row a value, its outcomes' means and
        differences to the first value.
        """
        if not self.effects:
            return []
        known = dict.fromkeys(effect.outcome for effect in self.effects)
        attacked = [name for name in known if name in SAID]
        outcomes = [*[name for name in known if name not in SAID][:ON_TERMINAL], *attacked]
        view = Table(
            title="effect of each factor: means over everything else, differences to the first "
            "value with 95 % intervals over seeds",
            title_justify="left",
            box=None,
            header_style="bold",
            padding=(0, 1),
        )
        names = [value_text(effect.value) for effect in self.effects]
        view.add_column("", min_width=min(24, 2 + max(map(len, names))))
        for outcome in outcomes:
            heading = OUTCOMES[outcome].format(metric=self.metric)
            view.add_column(heading, justify="right", min_width=COLUMN)
        found = {(e.factor, value_text(e.value), e.outcome): e for e in self.effects}
        for factor in dict.fromkeys(effect.factor for effect in self.effects):
            view.add_row(factor)
            for value in dict.fromkeys(v for f, v, _ in found if f == factor):
                cells = [_cell(found.get((factor, value, outcome))) for outcome in outcomes]
                view.add_row(f"  {value}", *cells)
        return [*fitted(view, width)]


def sweep_scenario(
    scenario: Scenario,
    folder: Path,
    out: Path,
    grid: Grid,
    methods: Sequence[str],
    seeds: int,
    dry: bool,
    processes: Processes,
    console: Console,
    host: HostDevice = CPU,
    attacks: str = NO_ATTACKS,
) -> Sweep:
    """Run the sweep into `out`, saying on the console how far it is; SweepError for what cannot be.

    Runs that fail are noted and the others go on. Whatever ends it, what has been run is kept and
    the tables of it are written; the same call goes on.
    """
    cells = cells_of(grid)
    entries = planned(scenario, cells, methods, seeds, out, folder)
    missing = [entry for entry in entries if not is_whole(entry, dry, folder, host, attacks)]
    require_attacks(attacks, dry)
    labels = list(dict.fromkeys(entry.label for entry in entries))
    console.print(
        f"{_count(len(cells), 'combination')} x {_count(len(labels), 'method')} x "
        f"{_count(seeds, 'seed')} = {_count(len(entries), 'run')}, "
        f"{len(entries) - len(missing)} of them finished",
        highlight=False,
    )
    require_replaceable(missing, dry)
    try_all(missing, dry, folder)
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        asked = {"scenario": scenario.name, "grid": dict(grid), "methods": labels, "seeds": seeds}
        write_json(out / "sweep.json", {**asked, "first_seed": scenario.seed, "dry": dry})
        try:
            run_shown(entries, folder, out, dry, processes, console, "run", host, True, attacks)
        except KeyboardInterrupt:
            _write(entries, list(grid), out, dry, folder, host)
            raise
        return _write(entries, list(grid), out, dry, folder, host, figures=True)


def _write(
    entries: list[PlannedRun],
    keys: list[str],
    out: Path,
    dry: bool,
    folder: Path,
    host: HostDevice,
    figures: bool = False,
) -> Sweep:
    rows = table.rows_of(entries, out, dry, folder, host)
    table.write(rows, out, "sweep")
    done = [entry for entry, row in zip(entries, rows, strict=True) if row["status"] == "finished"]
    effects = effects_of(rows, keys)
    names = [field.name for field in dataclasses.fields(Effect)]
    table.write_csv(
        names,
        ({**vars(effect), "value": value_text(effect.value)} for effect in effects),
        out / "effects.csv",
    )
    front = [
        {
            **{key: value_text(value) for key, value in point.values.items()},
            **{AS_WRITTEN.get(name, name): value for name, value in vars(point).items()},
        }
        for point in points_of(rows, keys)
    ]
    fields = [f.name for f in dataclasses.fields(FrontPoint) if f.name != "values"]
    of_point = [AS_WRITTEN.get(name, name) for name in fields]
    table.write_csv([*keys, *of_point], _only(front, [*keys, *of_point]), out / "front.csv")
    metric, *others = metrics_of(rows) or ["accuracy"]
    if figures:
        from sim.sweep.plots import draw

        curves = table.curves_of(done)
        if curves:
            table.write(curves, out, "curves")
        draw(rows, [] if others else curves, keys, metric, out / "figures")
    notes = [*remarks_of(done), *_in_no_effect(rows)]
    if others:
        several = ", ".join([metric, *others])
        notes.append(
            f"scores are of several metrics ({several}), so there is no mean of them: they are in "
            "sweep.csv, and in no effect, front or figure"
        )
    return Sweep(out, rows, effects, metric, notes)


def _only(rows: list[dict[str, Any]], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {name: row[name] for name in names}


def _in_no_effect(rows: list[dict[str, Any]]) -> Iterator[str]:
    whys = Counter(why for row in rows if (why := left_out(row)))
    if whys:
        said = ", ".join(f"{count} {why}" for why, count in whys.items())
        yield f"{whys.total()} of {_count(len(rows), 'run')} are in no effect: {said}"


def failures(sweep: Sweep) -> list[str]:
    """The failed runs and why, a line each."""
    lines = [f"{row['folder']}: {row['error']}" for row in sweep.failed]
    more = len(lines) - MOST_SHOWN
    return [*lines[:MOST_SHOWN], *([f"... and {more} more, in sweep.csv"] if more > 0 else [])]


def _cell(effect: Effect | None) -> str:
    if effect is None or effect.mean is None:
        return "–"
    write = _writer(effect.outcome)
    mean = write(effect.mean)
    if effect.difference is None:
        return mean
    sign = "-" if effect.difference < 0 else "+"
    half = f" ± {write(effect.half_width)}" if effect.half_width is not None else ""
    return f"{mean}\n{sign}{write(math.fabs(effect.difference))}{half}"


def _writer(outcome: str) -> Any:
    if "bytes" in outcome:
        return format_bytes
    if outcome.endswith("_s"):
        return format_seconds
    unit = {"per_device.flop.mean": "FLOP", "per_device.energy_j.mean": "J"}.get(outcome)
    return (lambda value: f"{value:.3f}") if unit is None else lambda value: format_si(value, unit)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
