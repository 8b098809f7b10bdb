"""What `mobifleet privacy` shows and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from inputs.units import format_bytes
from learning.attacks.outcome import AttackOutcome
from sim.kernel.ledger import KINDS
from sim.methods.federated_peft.shared import FederatedPeft
from sim.methods.side_tuning.shared import SideTuning
from sim.methods.split.shared import SplitTraining
from sim.privacy.measures import (
    TARGETS,
    PrivacyError,
    require_attacks,
    targets_of,
    write_found,
)
from sim.privacy.uploads import Uploads, require_server, scenario_of, uploads_of
from sim.results.run import Run

NOT_SHOWN = {"tokens, precision", "tokens, recall", "text in top 10", "advantage"}
PARTIES = {"server": "What the server saw", "devices": "What devices saw"}
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
    remarks = []
    if not uploads.is_same:
        remarks.append(
            "simulated again it came to another digest: other last bits than the run's (another "
            "machine, or another version)"
        )
    found = Report([], remarks)
    rows: list[dict[str, Any]] = []
    tried = targets_of(attacks)
    for name in tried:
        on_stage(f"attacking {TARGETS[name]}")
        outcomes = list(_attacked(name, uploads, remarks))
        found.outcomes.extend(outcomes)
        rows += [{**dataclasses.asdict(outcome), "on": name} for outcome in outcomes]
    write_found(run, tried, rows, remarks)
    return found


def _attacked(name: str, uploads: Uploads, remarks: list[str]) -> Iterator[AttackOutcome]:
    """What attacks on labels, texts or the model come to, as such a method's payloads allow."""
    from sim.privacy import attacks, of_models, of_tokens, of_updates

    if outcomes := attacks.as_they_are(uploads, name):  # which needs no attack
        yield from outcomes
        return
    tries: list[Callable[[], list[AttackOutcome]]]
    is_peft = isinstance(uploads.sim.method, FederatedPeft)
    if name == "model":
        tries = [lambda: of_models.members(uploads)]
        if isinstance(uploads.sim.method, SideTuning):
            tries.append(lambda: of_models.stolen(uploads))
    elif is_peft:
        tries = [lambda: (of_updates.labels if name == "labels" else of_updates.texts)(uploads)]
    else:
        of_uploads = attacks.labels if name == "labels" else attacks.texts
        tries = [lambda: of_uploads(uploads, untried=remarks)]
        if name == "texts" and of_tokens.sends_tokens(uploads):
            is_split = isinstance(uploads.sim.method, SplitTraining)
            tries = [*([] if is_split else tries), lambda: of_tokens.texts(uploads)]
    for attack_ in tries:
        try:
            yield from attack_()
        except PrivacyError as error:
            remarks.append(f"no attack on {TARGETS[name]}: {error}")
