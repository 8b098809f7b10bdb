"""What `mobifleet privacy` shows and writes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from inputs.units import format_bytes
from learning.attacks.outcome import AttackOutcome
from sim.kernel.ledger import KINDS
from sim.kernel.writing import write_json
from sim.methods.federated_peft.shared import FederatedPeft
from sim.privacy.measures import FILE, PrivacyError, require_attacks
from sim.privacy.uploads import Uploads, require_server, scenario_of, uploads_of
from sim.results.run import Run

NOT_SHOWN = {"tokens, precision", "tokens, recall", "text in top 10", "advantage"}
PARTIES = {"server": "What the server saw", "devices": "What devices saw"}
SAID = {"labels": "labels", "texts": "texts", "model": "the trained model"}
"""What attacks are on -> in words."""
WAYS = {"sent": "", "start": "from the start", "cut off": "cut off on the way"}


def ledger_tables(run: Run) -> list[Table]:
    """One table a party: kind, layer, token, payloads, texts and bytes."""
    rows = run.ledger().to_pylist()
    tables = []
    for party, title in PARTIES.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in ("kind", "of"):
            table.add_column(name)
        for name in ("payloads", "texts", "bytes"):
            table.add_column(name, justify="right")
        for row in rows:
            if row["receiver"] != party:
                continue
            layer = "" if row["layer"] is None else f"layer {row['layer']}"
            of = ", ".join(part for part in (layer, row["token"] or "", WAYS[row["way"]]) if part)
            table.add_row(
                row["kind"],
                of or KINDS[row["kind"]],
                f"{row['payloads']:,}" if row["payloads"] else "",
                f"{row['records']:,}" if row["records"] else "",
                format_bytes(row["nbytes"]) if row["nbytes"] else "",
            )
        if table.row_count:
            tables.append(table)
    return tables


def outcome_table(outcomes: Sequence[AttackOutcome]) -> Table:
    """Each attack with its success, interval and chance. Of tokens F1 alone, of candidates the
    first, of members the area under the ROC curve: privacy.json has all.
    """
    table = Table(
        title="Attacks on what the server was sent", title_justify="left", box=None, pad_edge=False
    )
    for name in ("attack", "judged by"):
        table.add_column(name)
    for name in ("success", "95 % interval", "chance", "texts"):
        table.add_column(name, justify="right")
    for one in outcomes:
        if one.what in NOT_SHOWN or one.what.startswith("TPR"):
            continue
        table.add_row(
            one.attack,
            one.what,
            f"{one.success:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            f"{one.chance:.3f}",
            f"{one.n:,}",
        )
    return table


@dataclass(frozen=True)
class Report:
    """What attacks on a run found, and what a reader has to know beside it."""

    outcomes: list[AttackOutcome]
    remarks: list[str]


def report(
    run: Run,
    attacks: str = "all",
    folder: Path = Path(),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Run the attacks ("labels", "texts", "model" or "all") on a run and write RUN/privacy.json.

    What an attack does not apply to is a remark. Raises as `uploads_of`, and PrivacyError where
    what attacks need is not installed, or nothing is sent to a server.
    """
    require_attacks(attacks, dry=False)
    require_server(scenario_of(run))
    uploads = uploads_of(run, folder)
    found = Report([], [])
    if not uploads.is_same:
        found.remarks.append(
            "simulated again it came to another digest: other last bits than the run's (another "
            "machine, or another version)"
        )
    for name, tries in _attacks_on(uploads, found.remarks).items():
        if attacks not in (name, "all"):
            continue
        on_stage(f"attacking {SAID[name]}")
        for attack in tries:
            try:
                found.outcomes.extend(attack())
            except PrivacyError as error:
                found.remarks.append(f"no attack on {SAID[name]}: {error}")
    rows = [dataclasses.asdict(outcome) for outcome in found.outcomes]
    mark = {"attacks": attacks, "digest": run.summary.get("digest")}
    write_json(run.path / FILE, {**mark, "outcomes": rows, "remarks": found.remarks})
    return found


Attacks = Mapping[str, list[Callable[[], list[AttackOutcome]]]]


def _attacks_on(uploads: Uploads, untried: list[str]) -> Attacks:
    """By what they are on, the attacks that such a method's payloads and models allow."""
    from sim.privacy import attacks, of_models, of_updates

    on_model = [lambda: of_models.members(uploads)]
    if isinstance(uploads.sim.method, FederatedPeft):
        labels, texts = (lambda: of_updates.labels(uploads)), (lambda: of_updates.texts(uploads))
    else:
        labels = functools.partial(attacks.labels, uploads, untried=untried)
        texts = functools.partial(attacks.texts, uploads, untried=untried)
        on_model.append(lambda: of_models.stolen(uploads))
    return {
        "labels": [lambda: attacks.as_they_are(uploads, "labels"), labels],
        "texts": [lambda: attacks.as_they_are(uploads, "texts"), texts],
        "model": on_model,
    }
