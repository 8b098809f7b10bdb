"""`mobifleet compare`: run what is missing, then write and show the tables and figures of a
comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from inputs.files import read_json
from learning.host_device import CPU, HostDevice
from sim.compare.evidence import write_evidence
from sim.compare.latex import IN_COLUMN, PAGE, check_columns, tables_for_paper
from sim.compare.planned_run import PlannedRun
from sim.compare.protocol import how_made, still_improving
from sim.compare.reductions import has_learned, reductions
from sim.compare.runs import (
    compare_of,
    nothing_chosen,
    plan,
    target_of,
    try_plan,
    tuned,
    tuning_plan,
)
from sim.compare.table import rows
from sim.compare.write import (
    SAVED,
    divergence,
    headings,
    markdown,
    said_of,
    saved_cells,
    shown,
    why_none,
    write_csv,
)
from sim.privacy.measures import require_attacks
from sim.results.run import open_run
from sim.results.run_directory import computed_by, held, read_manifest
from sim.scenario.schema import Scenario
from sim.sweep.engine import NO_ATTACKS, Processes, is_done
from sim.sweep.grid import title as in_words
from sim.sweep.progress import run_shown
from sim.sweep.remarks import remarks_of
from sim.views.terminal_tables import fitted

if TYPE_CHECKING:
    from pandas import DataFrame

FIRST_COLUMN, COLUMN = 24, 14  # characters, at least
OWN = "cost to the end of each method's own convergence"

Tables = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Comparison:
    """A comparison that has been made: its folder, its runs, and its tables by title, one row a
    method.

    `reductions` holds, by title, what the scenario's own method saves against the best baseline.
    """

    folder: Path
    entries: list[PlannedRun]
    tables: Tables
    ours: str
    baselines: list[str]
    learned: float
    """The accuracy below which a baseline counts in no reduction."""
    runs: Mapping[str, list[PlannedRun]]
    """The runs behind each table, by its title."""
    trials: Sequence[PlannedRun] = ()
    """The runs that dials were chosen by."""

    @property
    def reductions(self) -> dict[str, dict[str, Any]]:
        """Title -> column -> reduction, factor and the baseline that they are taken against."""
        return {
            title: reductions(table, self.ours, self.baselines, self.learned)
            for title, table in self.tables.items()
            if self.ours in (labels := {row["method"] for row in table})
            and labels & set(self.baselines) - {self.ours}
        }

    @property
    def frames(self) -> dict[str, DataFrame]:
        """The tables as pandas frames: title -> one row a method, columns as in table.csv, in SI
        units.
        """
        from pandas import DataFrame

        return {title: DataFrame(table).set_index("method") for title, table in self.tables.items()}

    def tables_for(self, width: int) -> Iterator[Table]:
        """The tables and what was saved, for a terminal of so many characters."""
        savings = self.savings
        for title, table in self.tables.items():
            yield from fitted(_shown(title, table, self.entries), width)
            if title in savings:
                yield from fitted(_headline(self.ours, *savings[title]), width)

    @property
    def savings(self) -> dict[str, tuple[dict[str, Any], list[str]]]:
        """By title: what was saved, and which methods are in no reduction, and why."""
        how = (self.ours, self.baselines, self.learned)
        return {
            title: (found, _left_out(self.tables[title], *how))
            for title, found in self.reductions.items()
        }

    @property
    def notes(self) -> list[str]:
        """How the numbers came about, and what the runs noted, in sentences."""
        return [
            *how_made(self.entries),
            *self._ends(),
            *still_improving(self.entries),
            *nothing_chosen(self.trials),
            *self._unheld(),
            *remarks_of(
                list({run.folder: run for some in self.runs.values() for run in some}.values())
            ),
        ]

    def _ends(self) -> Iterator[str]:
        for title, (row, *_) in self.tables.items():
            if row["ends_at"] is not None:
                yield (
                    f'"{title}": runs end at {row["metric"]} {row["ends_at"]:g}, so what they '
                    "would come to is not known, and not compared."
                )

    def _unheld(self) -> Iterator[str]:
        if self.ours not in {entry.label for entry in self.entries}:
            yield f"Nothing is held against anything: {self.ours}, which is `ours`, was left out."


def compare_scenario(
    scenario: Scenario,
    folder: Path,
    out: Path,
    seeds: int,
    only: list[str],
    dry: bool,
    processes: Processes,
    console: Console,
    tune: bool = True,
    host: HostDevice = CPU,
    columns: Sequence[str] = (),
    attacks: str = NO_ATTACKS,
) -> Comparison:
    """Run the comparison into `out`, saying on the console how far it is; CompareError for none.

    `columns` are those of the LaTeX tables, where they are to be others than what fits.
    """
    check_columns(columns)
    require_attacks(attacks, dry)
    entries = plan(scenario, out, seeds, only, folder)
    trials = tuning_plan(scenario, out, only) if tune else []
    missing, untried = (
        [entry for entry in some if not is_done(entry, dry, folder, host)]
        for some in (entries, [] if dry else trials)
    )
    try_plan(missing, untried, dry, folder)  # what cannot be is told now
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        compared = _compared(
            scenario,
            entries,
            folder,
            out,
            seeds,
            only,
            dry,
            processes,
            console,
            tune,
            host,
            attacks,
        )
        reference = compare_of(scenario).reference or compared.ours
        _write(compared, reference, columns)
        if not dry:
            _write_evidence(compared, scenario)
        _figures(scenario, entries, out, compared.ours, compared.baselines, dry, folder, host)
    return compared


def _compared(
    scenario: Scenario,
    entries: list[PlannedRun],
    folder: Path,
    out: Path,
    seeds: int,
    only: list[str],
    dry: bool,
    processes: Processes,
    console: Console,
    tune: bool,
    host: HostDevice,
    attacks: str,
) -> Comparison:
    def run(some: list[PlannedRun], what: str, attacks: str = NO_ATTACKS) -> None:
        run_shown(some, folder, out, dry, processes, console, what, host, attacks=attacks)

    run(entries, "run", attacks)
    for sentence in (*_of_other_machines(entries), *_of_other_commits(entries)):
        console.print(sentence, highlight=False, soft_wrap=True)
    compare, target = compare_of(scenario), target_of(scenario)
    runs = {_title("totals" if dry else OWN, mine): mine for _, mine in _by_world(entries)}
    tables = {title: rows(mine, "own") for title, mine in runs.items()}
    trials: list[PlannedRun] = []
    if target is not None and not dry:
        to_target, how = entries, ""
        if compare.tune is not None and tune:
            trials = tuning_plan(scenario, out, only)
            run(trials, "tuning")
            to_target = tuned(scenario, trials, out, seeds)
            how = ", every method tuned"
            run(to_target, "tuned")
        for _, mine in _by_world(to_target):
            table = rows(mine, "target", target)
            title = _title(f"cost to {table[0]['metric']} {target}{how}", mine)
            tables[title], runs[title] = table, mine
    baselines = [
        label
        for label in compare.baselines or compare.methods
        if not getattr(compare.methods[label], "is_reference", False)
    ]
    learned = 0.0 if dry else target or 0.0
    ours = compare.label_of_ours
    return Comparison(out, entries, tables, ours, baselines, learned, runs, trials)


def _of_other_machines(entries: Iterable[PlannedRun]) -> Iterator[str]:
    """What to say where not all runs were computed by the same arithmetic."""
    runs = Counter("; then ".join(computed_by(read_manifest(entry.folder))) for entry in entries)
    del runs[""]  # dry runs, and those of older versions
    if len(runs) > 1:
        yield (
            "these runs come from several kinds of machine or library, and may differ in their "
            "last bits by that alone:"
        )
        yield from (f"  {count} by {kinds}" for kinds, count in runs.most_common())


def _of_other_commits(entries: Iterable[PlannedRun]) -> Iterator[str]:
    """What to say where not all runs were computed by the same code."""
    runs = Counter(read_manifest(entry.folder).get("git_revision") for entry in entries)
    if len(runs) > 1:
        yield (
            "these runs are of several commits, and may differ by that alone; without their "
            "folders they are computed anew:"
        )
        yield from (f"  {count} of {commit}" for commit, count in runs.most_common())


def _by_world(entries: Iterable[PlannedRun]) -> Iterator[tuple[str, list[PlannedRun]]]:
    for at in dict.fromkeys(entry.at for entry in entries):
        yield at, [entry for entry in entries if entry.at == at]


def _title(title: str, entries: Sequence[PlannedRun]) -> str:
    at = in_words(entries[0].values)
    return f"{title}; {at}" if at else title


def _write(compared: Comparison, reference: str, columns: Sequence[str]) -> None:
    out = compared.folder
    written = ("table-*.csv", "reductions.json", "comparison.json")  # not by every comparison
    for old in [path for name in written for path in out.glob(name)]:
        old.unlink()
    for number, (title, table) in enumerate(compared.tables.items(), 1):
        path = out / ("table.csv" if number == 1 else f"table-{number}.csv")
        write_csv(title, table, path, reference)
    savings = compared.savings
    text = markdown(compared.tables, compared.notes, compared.ours, savings)
    (out / "table.md").write_text(text, encoding="utf-8")
    costed_as = open_run(compared.entries[0].folder).summary["costed_as"]
    for name, default in (("table.tex", PAGE), ("table-column.tex", IN_COLUMN)):
        how = (columns or default, default is PAGE, compared.learned, costed_as)
        text = tables_for_paper(compared.tables, *how)
        (out / name).write_text(text, encoding="utf-8")
    if savings:
        saved = {title: found for title, (found, _) in savings.items()}
        # a baseline that needs nothing makes ratios infinite, for which JSON has no number
        encoded = to_json(saved, indent=2, inf_nan_mode="null")
        (out / "reductions.json").write_bytes(encoded + b"\n")


def _write_evidence(compared: Comparison, scenario: Scenario) -> None:
    chosen = compared.folder / "tuned.json"
    write_evidence(
        compared.tables,
        compared.runs,
        compared.folder,
        scenario=scenario.name,
        seeds=sorted({entry.scenario.seed for entry in compared.entries}),
        ours=compared.ours,
        baselines=compared.baselines,
        learned=compared.learned,
        notes=compared.notes,
        tuned=read_json(chosen) if len(compared.runs) > 1 and chosen.is_file() else None,
    )


def _figures(
    scenario: Scenario,
    entries: list[PlannedRun],
    out: Path,
    ours: str,
    baselines: list[str],
    dry: bool,
    folder: Path,
    host: HostDevice,
) -> None:
    from sim.compare import plots
    from sim.views.plots import draw

    compare, learned = compare_of(scenario), target_of(scenario) or 0.0
    for at, mine in _by_world(entries):
        (out / at / "figures" / "reductions.png").unlink(missing_ok=True)  # not of every comparison
        first = {
            e.label: open_run(e.folder) for e in mine if e.scenario.seed == mine[0].scenario.seed
        }
        each = [open_run(e.folder) for e in mine]
        draw(each, out / at / "figures", labels=[e.label for e in mine])
        against = [label for label in baselines if label in first and label != ours]
        if ours in first and against and not dry:
            claims = {str(column): saved for column, saved in compare.claims.items()}
            plots.draw_reductions(first, ours, against, claims, out / at / "figures", learned)
    (out / "figures" / "privacy.png").unlink(missing_ok=True)
    if not dry:
        plots.draw_privacy(entries, out, folder, host)
    if compare.over is not None and not dry:
        plots.draw_over(compare.over.key, entries, out / "figures")


def _shown(title: str, table: list[dict[str, Any]], entries: list[PlannedRun]) -> Table:
    costed_as = open_run(entries[0].folder).summary["costed_as"]
    note = f"; costed as {costed_as}" if costed_as else ""
    view = Table(
        title=f"{title}{note}", title_justify="left", box=None, header_style="bold", padding=(0, 1)
    )
    view.add_column("", min_width=FIRST_COLUMN)
    for row in table:
        name = row["method"] + (" (reference)" if row["reference"] else "")
        view.add_column(name, justify="right", min_width=COLUMN)
    columns = headings(table)
    rows_of = [cells for _, cells in shown(table, columns)]
    for number, heading in enumerate(columns.values()):
        view.add_row(heading, *(cells[number] for cells in rows_of))
    return view


def _left_out(
    table: list[dict[str, Any]], ours: str, baselines: list[str], learned: float
) -> list[str]:
    """Which methods are in no reduction, and why."""
    references = [row["method"] for row in table if row["reference"]]
    others = [row for row in table if row["method"] != ours and not row["reference"]]
    strangers = [row["method"] for row in others if row["method"] not in baselines]
    metric, is_own = table[0]["metric"], table[0]["target"] is None
    low = f"{metric} {learned:g} not reached" + " on validation texts" * is_own
    below: dict[str, list[str]] = {}
    for row in others:
        if row["method"] in baselines and not has_learned(row, learned):
            below.setdefault(divergence(row) or low, []).append(row["method"])
    named = {*references, *(method for methods in below.values() for method in methods)}
    costless: dict[str, list[str]] = {}
    for row in table:
        has_cost = row["time_s"] is not None or (
            row["reached"] and row.get("time_s_at_least") is not None
        )
        if not has_cost and row["method"] in {ours, *baselines} - named:
            costless.setdefault(why_none("time_s", row), []).append(row["method"])
    said = (
        (references, "references"),
        (strangers, "no baselines"),
        *((methods, why) for why, methods in below.items()),
        *((methods, f"no cost: {why}") for why, methods in costless.items()),
    )
    return [f"{', '.join(methods)} ({why})" for methods, why in said if methods]


def _headline(ours: str, found: dict[str, dict[str, Any]], left_out: list[str]) -> Table:
    view = Table(
        title=f"{ours} against the best baseline",
        title_justify="left",
        box=None,
        header_style="bold",
    )
    for heading in SAVED:
        view.add_column(heading, no_wrap=heading == "factor")
    for cells in saved_cells(found):
        view.add_row(*cells)
    view.caption = "\n".join(said_of(found, left_out)) or None
    view.caption_justify = "left"
    return view
