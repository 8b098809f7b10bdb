"""Which runs a sweep takes: every combination of the grid's values, with every method and seed.

A combination has a folder of its own, whose name depends on nothing but its values, so that a grid
can be widened and what is there stays. Everything is checked before anything runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.scenario import registry
from sim.scenario.checks import problems
from sim.scenario.complaints import nearest
from sim.scenario.file import ScenarioError, changed, digest, dotted_path, plain, resolved
from sim.scenario.schema import AnyMethod, Scenario
from sim.scenario.settings import unread
from sim.scenario.yaml_tree import Node, Place, Problem, dotted, read, shown
from sim.sweep.planned_run import PlannedRun, SweepError

LONGEST_NAME = 80  # of a folder
MOST_SHOWN = 10  # combinations that cannot be
MOST_RUNS = 100_000
EXPECTED = "expected key=value,value,..., such as task.partition.alpha=0.1,1,10"

NOT_FOR_A_GRID = {
    "name": "",
    "seed": ": `--seeds 5` repeats every combination",
    "method": ": `--methods` names several",
    "method.kind": ": `--methods` names several",
    "compare": ": `--methods` names its labels",
}
"""Settings that a grid cannot vary, and what to say instead."""

Grid = Mapping[str, Sequence[Any]]
"""Dotted path of a setting -> the values that it is to have."""
Values = Mapping[str, Any]
"""A combination: dotted path of a setting -> its value."""


# --- what a user says


def grid_of(options: Iterable[str]) -> dict[str, list[Any]]:
    """The grid that `key=value,value` texts say, values as YAML: commas within brackets and quotes
    part nothing.
    """
    grid: dict[str, list[Any]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip():
            raise SweepError(f"--grid {shown(option)}: {EXPECTED}")
        if key.strip() in grid:
            raise SweepError(f"--grid: {key.strip()} is given twice: name its values in one")
        try:
            grid[key.strip()] = [_value(part) for part in parts_of(text)]
        except Problem as problem:
            raise SweepError(f"--grid {shown(option)}: {problem.text}") from None
    return grid


def plain_grid(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The same from Python: values are what JSON can hold, numpy's numbers, and paths."""
    if not isinstance(grid, Mapping):
        raise SweepError(f"grid: expected a dict of dotted paths to lists (got {shown(grid)})")
    found = {}
    for key, values in grid.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise SweepError(f"grid {key!r}: expected a list of values (got {shown(values)})")
        try:
            text = json.dumps(list(values), allow_nan=False, default=plain)
        except (TypeError, ValueError) as error:
            raise SweepError(f"grid {key!r}: {error}") from None
        found[key] = json.loads(text)
    return found


def parts_of(text: str) -> list[str]:
    """The text between commas; those within brackets, braces and quotes that begin a part stay."""
    parts, depth, quote, part = [], 0, "", ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" and (not part.strip() or depth):
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth <= 0:
            parts.append(part.strip())
            part = ""
            continue
        part += sign
    return [*parts, part.strip()]


def _value(text: str) -> Any:
    if not text:
        raise Problem(Place(""), "there is no value between two commas, or none at all")
    found: list[Problem] = []
    node = read(text, "", found)
    if found:
        raise found[0]
    return None if node is None else node.plain()


# --- combinations, and their folders


def cells_of(grid: Grid) -> list[dict[str, Any]]:
    """Every combination of the values, the first key's varying slowest; one without any for none.

    Raises SweepError for what is no grid: keys that a sweep sets itself, no values, the same twice.
    """
    for key, values in grid.items():
        if key in NOT_FOR_A_GRID:
            raise SweepError(f"grid: {key} is no setting to vary{NOT_FOR_A_GRID[key]}")
        if not values:
            raise SweepError(f"grid: {key} has no values")
        said = [json.dumps(value, sort_keys=True) for value in values]
        if twice := [value for value in said if said.count(value) > 1]:
            raise SweepError(f"grid: {key} has the value {twice[0]} twice")
    _hold_to_most(math.prod(map(len, grid.values())))
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _hold_to_most(runs: int) -> None:
    if runs > MOST_RUNS:
        raise SweepError(f"these are {runs:,} runs, and {MOST_RUNS:,} is the most: name fewer")


def title(values: Values) -> str:
    """A combination in words: `task.partition.alpha=0.1, method.replay=20`."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A value as people read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def folder_of(values: Values) -> str:
    """What the folder of a combination is called, whatever the order of its keys; "" for none."""
    return folder_name(",".join(f"{key}={values[key]}" for key in sorted(values)))


def folder_name(text: str) -> str:
    """What a user named, as a folder's name on every system: the text itself where that can be one,
    else what is left of it with a mark of its own.
    """
    clean = re.sub(r"[^\w=.,+-]+", "-", text, flags=re.ASCII)[:LONGEST_NAME]
    if clean == text:
        return clean
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean[: LONGEST_NAME - 9]}-{mark}"


# --- runs


def planned(
    scenario: Scenario,
    cells: Iterable[Values],
    methods: Sequence[str],
    seeds: int,
    out: Path,
    folder: Path | None = None,
) -> list[PlannedRun]:
    """The runs of all combinations, methods and seeds, in this order; `seeds` count from the
    scenario's. `folder` is where its relative paths start; without it nothing is checked.

    Settings below `method` are those of each of the methods (`methods_of`). Raises SweepError with
    every combination that the scenario cannot have.
    """
    if seeds < 1:
        raise SweepError(f"seeds: at least 1 (got {seeds})")
    cells = list(cells)
    _hold_to_most(len(cells) * max(1, len(methods)) * seeds)
    entries, refused = [], []
    for values in cells:
        at = folder_of(values)
        own = {key: value for key, value in values.items() if key.startswith("method.")}
        try:
            world = with_values(scenario, {k: v for k, v in values.items() if k not in own})
        except ScenarioError as error:
            refused += [(values, "", problem) for problem in error.problems]
            continue
        for label, method in methods_of(world, methods):
            one = world.model_copy(update={"method": method, "compare": None})
            try:
                one = with_values(one, own)
                found = [
                    f"{dotted(where)}: {what}" for where, what in _against(one, values, folder)
                ]
            except ScenarioError as error:
                found = list(error.problems)
            refused += [(values, label, what) for what in found]
            entries += [
                PlannedRun(
                    label,
                    one.model_copy(update={"seed": seed}),
                    out / at / f"{folder_name(label)}-seed{seed}",
                    at,
                    values,
                )
                for seed in range(scenario.seed, scenario.seed + seeds)
            ]
    if refused:
        raise SweepError(_refusal(refused))
    if len(cells) > 1:
        _differ([entry for entry in entries if entry.scenario.seed == scenario.seed])
    return _apart(entries)


def _differ(entries: Iterable[PlannedRun]) -> None:
    """Raise SweepError where two combinations are the same runs: 60 and 60.0, or a setting that
    none of the methods reads.
    """
    runs: dict[str, tuple[Values, list[str]]] = {}
    for entry in entries:
        _, mine = runs.setdefault(json.dumps(entry.values), (entry.values, []))
        mine.append(digest(resolved(entry.scenario)))
    seen: dict[tuple[str, ...], Values] = {}
    for values, digests in runs.values():
        other = seen.setdefault(tuple(digests), values)
        if other is not values:
            raise SweepError(f"grid: {title(other)} and {title(values)} are the same runs")


def methods_of(scenario: Scenario, names: Sequence[str]) -> Iterator[tuple[str, AnyMethod]]:
    """The methods of these names, or the scenario's own for none: labels of `compare.methods`, the
    kind of the scenario's own method, or any kind with the settings that it has by default.
    """
    labelled = {} if scenario.compare is None else scenario.compare.methods
    own = scenario.method.kind
    for name in dict.fromkeys(names or [own]):
        if name in labelled and names:
            yield name, labelled[name]
        elif name == own:
            yield name, scenario.method
        elif name in registry.known():
            scenario.recall_names()
            yield name, changed(scenario, "method", {"kind": name}).method
        else:
            known = [*labelled, own, *registry.known()]
            there = f"labels: {', '.join(labelled)}; " if labelled else ""
            raise SweepError(
                f"no method of {scenario.name} is called {name!r} ({there}kinds: `mobifleet list "
                f"methods`){nearest(name, known)}"
            )


def with_values(scenario: Scenario, values: Values) -> Scenario:
    """The scenario with other values; ScenarioError if it cannot have one of them."""
    for key, value in values.items():
        scenario.recall_names()
        scenario = changed(scenario, key, value)
    return scenario


def _against(
    scenario: Scenario, values: Values, folder: Path | None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What stands against a combination: what nothing would read, and names that do not exist.

    What a method does not heed of a world that it shares with others is a remark of its run.
    """
    if folder is None:
        return
    for key, value in values.items():
        node = Node.of(value, Place(""))
        for step in reversed(dotted_path(key)):
            node = Node({str(step): node}, Place(""))
        yield from unread(scenario, node)
    remarks = list(scenario.ignored())
    yield from (problem for problem in problems(scenario, folder) if problem not in remarks)


def _refusal(refused: list[tuple[Values, str, str]]) -> str:
    lines = dict.fromkeys(
        f"{', '.join(part for part in (title(values), label) if part)}: {what}"
        for values, label, what in refused
    )
    more = [f"... and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    return "\n".join([*itertools.islice(lines, MOST_SHOWN), *more])


def _apart(entries: list[PlannedRun]) -> list[PlannedRun]:
    """The runs, no two in one folder: values and labels may differ in their kind alone (1 and "1"),
    and some systems take capital letters for small ones.
    """
    taken: set[str] = set()
    apart = []
    for entry in entries:
        if str(entry.folder).casefold() in taken:
            mark = hashlib.sha256(json.dumps([entry.label, entry.values]).encode()).hexdigest()[:8]
            entry = replace(entry, folder=entry.folder.with_name(f"{entry.folder.name}-{mark}"))
        taken.add(str(entry.folder).casefold())
        apart.append(entry)
    return apart
