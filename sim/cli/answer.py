"""What `mobifleet check` says: what was read, who holds what, and what the scenario comes to if its
dry run is a short one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from inputs.units import format_bytes, format_seconds
from sim.compare.runs import try_comparison
from sim.scenario.data import SizedData
from sim.scenario.schema import Scenario
from sim.simulation import STEPS_BETWEEN_LOOKS, Simulation, building
from sim.world.links import described
from sim.world.preflight import preflight

MOST_EVENTS = 10_000  # of a dry run that `check` waits for: a quarter of a second
_SHOWN = 8  # kinds of one thing


@dataclass(frozen=True)
class Answer:
    """What a scenario comes to: facts as (name, what), and what its reader has to know besides."""

    name: str
    facts: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]

    def table(self) -> Table:
        """The facts for a terminal."""
        table = Table(
            title=f"{self.name}: fine",
            title_justify="left",
            show_header=False,
            box=None,
            padding=(0, 2),
        )
        for name, what in self.facts:
            table.add_row(name, Text(what))  # Text: what users named is no markup
        return table

    def __str__(self) -> str:
        lines = [f"{self.name}: fine", *(f"{name}: {what}" for name, what in self.facts)]
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def answer(scenario: Scenario, folder: Path) -> Answer:
    """Build the scenario's world dry, and those of its comparison, and run its own clock to the end
    where that is soon.

    `folder` is where its relative paths start. Raises what stands against the scenario, as a run or
    a comparison would.
    """
    with building(scenario) as heard:
        preflight(scenario, folder)
        sim = Simulation(scenario, folder, dry=True)
    if scenario.compare is not None:
        try_comparison(scenario, folder)
    sim.remark(*heard)
    facts = (*_about_data(sim), *_about_fleet(sim), *_expected(sim))
    return Answer(scenario.name, facts, tuple(sim.remarks))


def _about_data(sim: Simulation) -> Iterator[tuple[str, str]]:
    task = sim.task
    held = np.concatenate(sim.task.parts)
    sized = sim.scenario.task.dataset
    if task.texts is None and isinstance(sized, SizedData):
        said = (
            f"{sized.classes:,} classes, {sized.tokens:,} tokens a text"
            if sized.classes is not None
            else f"{sized.tokens:,} tokens a text, {sized.response_tokens:,} of them to be said"
        )
        yield "data", f"by size alone: {said}"
    elif task.texts is not None:
        yield (
            "data",
            "\n".join(task.texts.sources or [f"{task.texts.name}: {len(task.texts):,} texts"]),
        )
        first, second = task.parts[0][0], task.texts.second_texts
        words = [
            _short(column[first]) for column in (task.texts.texts, second) if column is not None
        ]
        label = task.labels[first]
        said = f"{label:.4g}" if task.has_ratings else _printable(task.class_names[label])
        if task.texts.responses is None:
            yield "a text", f"{' and '.join(words)}: {said}"
        else:
            yield "said", _short(task.texts.responses[first])
            yield "to", words[0] if task.texts.texts[first] else "nothing"
    yield "texts", f"{len(held):,} to train on, {len(task.test):,} to test on"
    if task.has_ratings:
        ratings = task.labels[held]
        yield (
            "ratings",
            f"from {ratings.min():.4g} to {ratings.max():.4g}, mean {ratings.mean():.4g}",
        )
        return
    names = task.class_names
    trained, tested = (
        np.bincount(task.labels[part], minlength=len(names)) for part in (held, task.test)
    )
    order = np.argsort(-(trained + tested), kind="stable")
    counts = [f"{_printable(names[c])}: {trained[c]:,} + {tested[c]:,}" for c in order]
    what = "topics" if sim.scenario.task.kind == "language-modelling" else "classes"
    if what == "classes" or len(names) > 1:
        yield what, f"{len(names):,} (training + test): {_some(counts)}"


def _about_fleet(sim: Simulation) -> Iterator[tuple[str, str]]:
    sizes = np.array([len(device.samples) for device in sim.devices])
    low, high = sizes.min(), sizes.max()
    spread = (
        f"{low} to {high} texts each (median {np.median(sizes):g})"
        if low < high
        else f"{low} texts each"
    )
    yield "devices", f"{len(sim.devices):,}, with {spread}"
    yield "device kinds", _mix(device.member.device for device in sim.devices)
    yield "links", _mix(device.member.link or "none" for device in sim.devices)
    if any(device.member.cell for device in sim.devices):
        yield "cells", _mix(device.member.cell or "none" for device in sim.devices)
    for read in described(sim.traces):
        yield "trace", read
    for name, architecture in sim.costing.architectures.items():
        count = sum(device.backbone == name for device in sim.devices)
        yield (
            f"backbone {name}",
            f"{count:,} devices, {architecture.layers} x {architecture.hidden_size}",
        )
    if sim.costing.charged_as:
        yield "costed as", sim.costing.charged_as


class _TooLong(Exception):
    """The dry run has had more events than `check` waits for."""


def _expected(sim: Simulation) -> Iterator[tuple[str, str]]:
    """What the method does, and what that takes: bytes and time do not depend on what is
    learned.
    """
    yield "method", sim.scenario.method.kind
    if not _ran(sim):
        yield "it takes", f"more than {MOST_EVENTS:,} events: `mobifleet run --dry` says how long"
        return
    unless = ", or once the target is reached" if sim.scenario.stop.target is not None else ""
    yield (
        "it takes",
        f"{format_seconds(sim.ended.at_s)} of virtual time ({sim.ended.reason}{unless}), "
        f"{sim.updates:,} updates",
    )
    sums = sim.recorder.sums_by_kind([device.id for device in sim.devices])
    for name, kind in (("uplink", "upload"), ("downlink", "download")):
        nbytes = sums[kind][0]
        spread = f"{format_bytes(nbytes.mean())} a device (largest {format_bytes(nbytes.max())})"
        yield name, f"{format_bytes(nbytes.sum())}, {spread}"


def _ran(sim: Simulation) -> bool:
    """Run the clock to the end, or give up after so many events."""
    if len(sim.devices) > MOST_EVENTS:
        return False
    looks = 0

    def give_up() -> bool:
        nonlocal looks
        looks += 1
        if looks * STEPS_BETWEEN_LOOKS > MOST_EVENTS:
            raise _TooLong
        return False

    sim.callbacks.should_stop = give_up
    try:
        sim.run()
    except _TooLong:
        return False
    return True


def _mix(names: Iterable[str]) -> str:
    return _some([f"{count:,} {_printable(name)}" for name, count in Counter(names).most_common()])


def _some(words: list[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (
        f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
