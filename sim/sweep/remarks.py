"""What the runs of a sweep or a comparison noted of themselves, for whoever reads the table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from sim.results.run import open_run
from sim.sweep.planned_run import PlannedRun

MOST_SHOWN = 10
NUMBER = re.compile(r"\d[\d.,]*")


def remarks_of(entries: Sequence[PlannedRun]) -> Iterator[str]:
    """Each remark of these finished runs once, with the methods that it is of, unless it is of all
    runs; remarks that differ in their numbers alone are one.
    """
    runs = Counter(entry.label for entry in entries)
    is_by_seed = {*runs.values()} == {len({entry.scenario.seed for entry in entries})}
    what = "seeds" if is_by_seed else "runs"
    found: dict[str, dict[str, set[int]]] = {}
    words: dict[str, dict[str, None]] = {}
    for number, entry in enumerate(entries):
        for remark in open_run(entry.folder).summary.get("remarks", ()):
            alike = NUMBER.sub("0", remark)
            words.setdefault(alike, {})[remark] = None
            found.setdefault(alike, {}).setdefault(entry.label, set()).add(number)
    for alike in list(found)[:MOST_SHOWN]:
        counts = {label: len(some) for label, some in found[alike].items()}
        who = ", ".join(
            label if count == runs[label] else f"{label} ({count} of {runs[label]} {what})"
            for label, count in counts.items()
        )
        first, *others = words[alike]
        text = first + " (in others with other numbers)" * bool(others)
        yield text if counts == runs else f"{who}: {text}"
    if (more := len(found) - MOST_SHOWN) > 0:
        yield f"... and {more} more remarks, in the runs' summary.json"
