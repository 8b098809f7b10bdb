"""What all runs of a comparison have in common beside their world: texts to choose looks by, and
how often they are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim.compare.planned_run import PlannedRun
from sim.results.looks import CONVERGED_WITHIN, was_still_improving
from sim.results.run import Run, open_run
from sim.scenario.data import SizedData
from sim.scenario.schema import Scenario

VALIDATION = 0.1
GROWTH = 1.1


def like_with_like(scenario: Scenario) -> Scenario:
    """The scenario with texts held out to choose by (a tenth of those to train on, unless it says
    how many) and looks whenever virtual time has grown by a tenth (unless it says by how much).
    """
    task = scenario.task
    if not task.validation and not isinstance(task.dataset, SizedData):
        task = task.model_copy(update={"validation": VALIDATION})
    growth = scenario.evaluate_growth or GROWTH
    return scenario.model_copy(update={"task": task, "evaluate_growth": growth})


def how_made(entries: Sequence[PlannedRun]) -> Iterator[str]:
    """How the numbers of a comparison came about, in sentences."""
    run = open_run(entries[0].folder)
    if costed_as := run.summary["costed_as"]:
        yield f"Costs are those of {costed_as}, and not of the models that learned."
    if run.summary["dry"]:
        return
    judged, seeds = run.summary["judged_on"], len({entry.scenario.seed for entry in entries})
    held = entries[0].scenario.task.validation
    share = f", {held:.0%} of those to train on" if isinstance(held, float) else ""
    yield (
        f"{run.metric.capitalize()} is that of {judged['test']:,} test texts at the first look "
        f"within {_near(run)} of a run's best on {judged['validation']:,} validation texts{share}, "
        "the same for every method, and at the end. Costs of own convergence are up to that look."
    )
    growth = entries[0].scenario.evaluate_growth
    yield (
        f"Every method is looked at whenever its virtual time has grown {growth:g} times; a target "
        "is reached in a line between two looks."
    )
    # other metrics are no shares of texts, whose sampling error has a formula
    by_texts = run.metric == "accuracy"
    looks = "between the looks before and after"
    if seeds > 1:
        texts = " and over the test texts" if by_texts else ""
        yield (
            f"Intervals are of 95 %: {run.metric} over {seeds} seeds{texts}, costs over seeds and "
            f"{looks}."
        )
    else:
        texts = "over the test texts alone, and " if by_texts else ""
        yield (f"One seed: intervals are {texts}{looks}; what other seeds would give is not known.")


def _near(run: Run) -> str:
    """`CONVERGED_WITHIN`, in words."""
    is_perplexity = run.metric == "perplexity"
    return f"{CONVERGED_WITHIN:g} nats" if is_perplexity else "half a point"


def still_improving(entries: Sequence[PlannedRun]) -> Iterator[str]:
    """Which methods were better on validation texts at their last look than at any before, by more
    than `CONVERGED_WITHIN`.
    """
    found: dict[str, list[bool]] = {}
    for entry in entries:
        run = open_run(entry.folder)
        if entry.scenario.stop.target is None and not run.summary["dry"]:
            found.setdefault(entry.label, []).append(was_still_improving(run))
    who = [
        label if all(seeds) else f"{label} ({sum(seeds)} of {len(seeds)} seeds)"
        for label, seeds in found.items()
        if any(seeds)
    ]
    if who:
        yield (
            f"Better on the validation texts at the last look than at any before: "
            f"{', '.join(who)}. Trained for longer, they might come further."
        )
