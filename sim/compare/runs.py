"""Several methods on one scenario: which runs that takes. `sim.sweep.engine` runs them.

Every method runs with the same named random streams, so what is not the method's doing is the same
for all: fleet, data, arrivals, links. With `compare.over` the same is done at each value of one of
the scenario's own numbers; with `compare.tune` every method's dials are first chosen on texts held
out of training, with one equal budget of runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from learning.data.texts import DataError
from learning.metrics import merit
from sim.compare.planned_run import CompareError, PlannedRun
from sim.compare.protocol import like_with_like
from sim.compare.table import rows
from sim.kernel.streams import Streams
from sim.scenario.complaints import nearest
from sim.scenario.schema import Compare, Scenario
from sim.sweep.grid import cells_of, folder_name, planned
from sim.sweep.planned_run import SweepError
from sim.sweep.trial import try_all
from sim.world.task import load_task


def plan(
    scenario: Scenario,
    out: Path,
    seeds: int = 1,
    only: Iterable[str] = (),
    folder: Path | None = None,
    alike: bool = True,
) -> list[PlannedRun]:
    """The runs of a comparison; CompareError if the scenario lists no methods, or `only` names one
    that it lacks.

    With the `folder` in which the scenario's relative paths start, each is checked. `alike` gives
    all of them the texts to choose by and the looks of a comparison (`protocol.py`).
    """
    compare, only = compare_of(scenario), list(only)
    if unknown := [label for label in only if label not in compare.methods]:
        raise CompareError(
            f"no method of {scenario.name} is labelled {unknown[0]!r} (there are: "
            f"{', '.join(compare.methods)}){nearest(unknown[0], compare.methods)}"
        )
    over = {} if compare.over is None else {compare.over.key: compare.over.values}
    try:
        methods = only or list(compare.methods)
        world = like_with_like(scenario) if alike else scenario
        entries = planned(world, cells_of(over), methods, seeds, out, folder)
    except SweepError as error:
        raise (_at("compare.over", error) if over else CompareError(str(error))) from None
    if alike:
        _come_to(target_of(scenario), entries)
    return entries


def _come_to(target: float | None, entries: Iterable[PlannedRun]) -> None:
    """Raise CompareError where runs stop before they can come to the target."""
    stops = [stop for entry in entries if (stop := entry.scenario.stop.target) is not None]
    if target is not None and stops and min(stops) < target:
        raise CompareError(
            f"compare.target: no run comes to {target:g}, for `stop.target` ends it at "
            f"{min(stops):g}: leave that out, or raise it"
        )


def try_plan(
    entries: Iterable[PlannedRun], trials: list[PlannedRun], dry: bool, folder: Path
) -> None:
    """Build the worlds of a comparison, and then of its tuning, once; SweepError with all that
    cannot be.
    """
    try_all(entries, dry, folder)
    for trial in trials[:1]:  # its texts are divided as those of the others
        try:
            load_task(trial.scenario, Streams(trial.scenario.seed), folder, dry=True)
        except DataError as error:  # which the comparison's own texts were not
            raise CompareError(f"compare.tune.validation: {error}") from None
    try:
        try_all(trials, dry, folder)
    except SweepError as error:
        raise _at("compare.tune", error) from None


def try_comparison(scenario: Scenario, folder: Path) -> None:
    """Plan what a scenario says of a comparison and build its worlds, as `mobifleet compare` does
    before anything runs; SweepError with what cannot be.
    """
    out, seeds = Path(), compare_of(scenario).seeds
    entries, trials = plan(scenario, out, seeds, (), folder), tuning_plan(scenario, out)
    try_plan(entries, trials, False, folder)


def _at(where: str, error: SweepError) -> CompareError:
    return CompareError(
        "\n".join(f"{where}: {line.removeprefix('grid: ')}" for line in str(error).splitlines())
    )


def compare_of(scenario: Scenario) -> Compare:
    """What a scenario says of its comparison; CompareError if it says nothing."""
    if scenario.compare is None:
        raise CompareError(
            f"{scenario.name} lists no methods: give it `compare: "
            f"{{methods: {{label: {{kind: ...}}}}}}`"
        )
    return scenario.compare


# --- every method's own dials, chosen with one equal budget


def tuning_plan(scenario: Scenario, out: Path, only: Iterable[str] = ()) -> list[PlannedRun]:
    """The runs that choose dials: each method's candidates, judged on texts held out of training,
    up to the target.
    """
    compare, target = compare_of(scenario), target_of(scenario)
    tune = compare.tune
    if tune is None:
        return []
    task = scenario.task.model_copy(
        update={"validation": tune.validation, "judge_on": "validation"}
    )
    stop = scenario.stop.model_copy(update={"target": target})
    world = like_with_like(scenario).model_copy(update={"task": task, "stop": stop})
    entries = []
    for label, dials in tune.dials.items():
        if only and label not in only:
            continue
        try:
            chosen = candidates(dials, tune.budget, Streams(scenario.seed), label)
            cells = [{f"method.{key}": one[key] for key in one} for one in chosen]
            found = planned(world, cells, [label], 1, out)
        except SweepError as error:
            raise _at(f"compare.tune.dials.{label}", error) from None
        entries += [
            replace(
                entry,
                folder=out / "tuning" / f"{folder_name(label)}-{number}",
                at=json.dumps(settings),
            )
            for number, (entry, settings) in enumerate(zip(found, chosen, strict=True))
        ]
    return entries


def candidates(
    dials: dict[str, list[Any]], budget: int, streams: Streams, label: str
) -> list[dict[str, Any]]:
    """At most `budget` combinations of the dials' values: all of them, or a random sample of a
    larger grid. SweepError for a value that is there twice, or a grid that is larger than can be
    drawn from.
    """
    grid = cells_of(dials)
    chosen = sorted(streams.rng("compare/tuning", label).permutation(len(grid))[:budget])
    return [grid[i] for i in chosen]


def tuned(scenario: Scenario, entries: list[PlannedRun], out: Path, seeds: int) -> list[PlannedRun]:
    """The runs of the tuned methods, to the target, judged on the test texts; `tuned.json` says
    what was chosen.

    Chosen is the candidate that reached the target soonest, or, where none did, the most accurate.
    """
    compare, target = compare_of(scenario), target_of(scenario)
    methods = dict(compare.methods)
    choices: dict[str, Any] = {}
    for label in dict.fromkeys(entry.label for entry in entries):
        mine = [entry for entry in entries if entry.label == label]
        scores = [rows([entry], "target", target)[0] for entry in mine]
        best = min(range(len(mine)), key=lambda i: _rank(scores[i]))
        methods[label] = mine[best].scenario.method
        each = [
            {
                "dials": json.loads(entry.at),
                "reached_after_s": score["time_s"],
                score["metric"]: score["chosen"],
            }
            for entry, score in zip(mine, scores, strict=True)
        ]
        choices[label] = {"chosen": each[best]["dials"], "candidates": each}
    (out / "tuned.json").write_text(json.dumps(choices, indent=2) + "\n", encoding="utf-8")
    compare = compare.model_copy(update={"methods": methods})
    stop = scenario.stop.model_copy(update={"target": target})
    return plan(
        scenario.model_copy(update={"compare": compare, "stop": stop}),
        out / "tuned",
        seeds,
        choices,
    )


def nothing_chosen(trials: Sequence[PlannedRun]) -> Iterator[str]:
    """Of which methods every candidate diverged, in sentences."""
    for label in dict.fromkeys(trial.label for trial in trials):
        if all(rows([trial], "own")[0]["diverged"] for trial in trials if trial.label == label):
            yield (
                f"Every candidate of {label} diverged, so none could be chosen: give "
                f"`compare.tune.dials.{label}` other values."
            )


def _rank(score: dict[str, Any]) -> tuple[float, bool, float]:
    reached_s = score["time_s"] if score["time_s"] is not None else float("inf")
    return (
        reached_s,
        score["final"] is None,
        -float("-inf" if score["chosen"] is None else merit(score["metric"], score["chosen"])),
    )  # a model that diverged is nobody's choice


def target_of(scenario: Scenario) -> float | None:
    """The common accuracy of the second protocol."""
    return compare_of(scenario).target or scenario.stop.target
