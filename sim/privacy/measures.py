"""What attacks on a run found, as a few numbers: of each kind the most that any attack got."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from typing import Any

from inputs.files import FileProblem, read_text
from learning.attacks.outcome import AttackOutcome
from sim.kernel.writing import write_json
from sim.results.run import Run


class PrivacyError(ValueError):
    """A run cannot be looked at as asked; the message says why."""


FILE = "privacy.json"
TARGETS = {"labels": "labels", "texts": "texts", "model": "the trained model"}
"""What attacks are on -> in words."""
WHATS = {
    "labels": ("labels",),
    "label_counts": ("labels of a batch",),
    "groups": ("grouping (adjusted Rand index)",),
    "tokens": ("tokens, F1",),
    "texts": ("text in top 1",),
    "members": ("AUC",),
}
"""Measure -> what of `AttackOutcome` it is."""
SAID = {
    "privacy.labels": "labels named by the server",
    "privacy.labels_known": "labels named, some known",
    "privacy.label_counts": "labels of a device counted",
    "privacy.groups": "labels grouped by the server",
    "privacy.tokens": "tokens of texts, F1",
    "privacy.texts": "texts found among candidates",
    "privacy.members": "members told, AUC",
}
"""Column -> what it is; each has another with `_chance`, what a guess gets."""


def measures_of(outcomes: Iterable[AttackOutcome]) -> dict[str, float]:
    """Of each measure the largest success of attacks without known labels or texts, and what a
    guess gets there; `labels_known` is that of attacks with some.

    measures_of(report(run).outcomes)["privacy.labels"]
    """
    found: dict[str, AttackOutcome] = {}
    for one in outcomes:
        for measure, whats in WHATS.items():
            if one.what not in whats:
                continue
            name = f"privacy.{measure}" + "_known" * bool(one.known)
            if name in SAID and (name not in found or one.success > found[name].success):
                found[name] = one
    numbers: dict[str, float] = {}
    for name in SAID:
        if name in found:
            numbers |= {name: found[name].success, f"{name}_chance": found[name].chance}
    return numbers


def require_attacks(attacks: str, dry: bool) -> None:
    """Raise PrivacyError for attacks that cannot be tried: on dry runs, or without scikit-learn."""
    if attacks == "none":
        return
    if attacks not in (*TARGETS, "all"):
        known = ", ".join(("none", *TARGETS, "all"))
        raise PrivacyError(f"attacks: {attacks!r} is none of {known}")
    if dry:
        raise PrivacyError("attacks read what was sent, and a dry run sends nothing: leave out one")
    if importlib.util.find_spec("sklearn") is None:
        raise PrivacyError("attacks need scikit-learn: pip install 'mobifleet[privacy]'")


def targets_of(attacks: str) -> list[str]:
    """What these attacks are on."""
    return [name for name in TARGETS if attacks in (name, "all")]


def found_in(run: Run) -> dict[str, Any]:
    """What `mobifleet privacy` left in a run's folder; {} where it left nothing whole, or what it
    left is of another run.
    """
    try:
        found = json.loads(read_text(run.path / FILE))
        rows = found["outcomes"]
        plain = [{name: one[name] for name in one if name != "on"} for one in rows]
        found |= {"rows": rows, "outcomes": [AttackOutcome(**one) for one in plain]}
    except (FileProblem, ValueError, TypeError, KeyError):
        return {}
    return found if found.get("digest") == run.summary.get("digest") else {}


def measures_in(run: Run) -> dict[str, float]:
    """Those of what was found in a run's folder; none where nothing was tried on this very run."""
    return measures_of(found_in(run).get("outcomes", ()))


def write_found(run: Run, tried: Sequence[str], rows: list[dict[str, Any]], remarks: Any) -> None:
    """Into RUN/privacy.json what was tried now, beside what was found of the rest before."""
    before = found_in(run)
    kept = [one for one in before.get("rows", ()) if one.get("on") not in tried]
    names = {*tried, *before.get("tried", ())}
    found = {"digest": run.summary.get("digest"), "tried": [n for n in TARGETS if n in names]}
    write_json(run.path / FILE, {**found, "outcomes": [*kept, *rows], "remarks": list(remarks)})


def is_attacked(run: Run, attacks: str) -> bool:
    """Whether these attacks have been tried on this very run."""
    return {*targets_of(attacks)} <= {*found_in(run).get("tried", ())}
