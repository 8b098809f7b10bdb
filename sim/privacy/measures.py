"""What attacks on a run found, as a few numbers: of each kind the most that any attack got."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inputs.files import FileProblem, read_text
from learning.attacks.outcome import AttackOutcome
from sim.kernel.writing import write_json
from sim.results.run import Run


class PrivacyError(ValueError):
    """A run cannot be looked at as asked; the message says why."""


FILE = "privacy.json"
SAID_OF = {"labels": "labels", "texts": "texts", "model": "the trained model"}
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
    if attacks not in (*SAID_OF, "all"):
        known = ", ".join(("none", *SAID_OF, "all"))
        raise PrivacyError(f"attacks: {attacks!r} is none of {known}")
    if dry:
        raise PrivacyError("attacks read what was sent, and a dry run sends nothing: leave out one")
    if importlib.util.find_spec("sklearn") is None:
        raise PrivacyError("attacks need scikit-learn: pip install 'mobifleet[privacy]'")


def written(folder: Path) -> dict[str, Any] | None:
    """What `mobifleet privacy` left in a run's folder; None where it left nothing whole."""
    try:
        found = json.loads(read_text(folder / FILE))
        rows = found["outcomes"]
        plain = [{name: one[name] for name in one if name != "on"} for one in rows]
        return {**found, "rows": rows, "outcomes": [AttackOutcome(**one) for one in plain]}
    except (FileProblem, ValueError, TypeError, KeyError):
        return None


def measures_in(run: Run) -> dict[str, float]:
    """Those of what was found in a run's folder; none where nothing was tried on this very run."""
    found = written(run.path)
    is_of_it = found is not None and found.get("digest") == run.summary.get("digest")
    return measures_of(found["outcomes"]) if found is not None and is_of_it else {}


def write_found(run: Run, tried: Sequence[str], rows: list[dict[str, Any]], remarks: Any) -> None:
    """Into RUN/privacy.json what was tried now, beside what was found of the rest before."""
    before = written(run.path) or {}
    is_of_it = before.get("digest") == run.summary.get("digest")
    kept = [one for one in before.get("rows", ()) if is_of_it and one.get("on") not in tried]
    names = {*tried, *(before.get("tried", ()) if is_of_it else ())}
    found = {"digest": run.summary.get("digest"), "tried": [n for n in SAID_OF if n in names]}
    write_json(run.path / FILE, {**found, "outcomes": [*kept, *rows], "remarks": list(remarks)})


def is_attacked(folder: Path, attacks: str, digest: str | None) -> bool:
    """Whether these attacks have been tried on the run of this digest in the folder."""
    found = written(folder)
    wanted = set(SAID_OF) if attacks == "all" else {attacks}
    return (
        found is not None
        and found.get("digest") == digest
        and wanted <= set(found.get("tried", ()))
    )
