"""What `mobifleet privacy` shows and writes."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from inputs.units import format_bytes
from learning.attacks.outcome import AttackOutcome
from sim.kernel.ledger import KINDS
from sim.kernel.writing import write_json
from sim.privacy.uploads import PrivacyError, refuse_others, scenario_of, uploads_of
from sim.results.run import Run

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
    first: privacy.json has all.
    """
    table = Table(
        title="Attacks on what the server was sent", title_justify="left", box=None, pad_edge=False
    )
    for name in ("attack", "judged by"):
        table.add_column(name)
    for name in ("success", "95 % interval", "chance", "texts"):
        table.add_column(name, justify="right")
    for one in outcomes:
        if one.what in ("tokens, precision", "tokens, recall", "text in top 10"):
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
    """Run the attacks ("labels", "texts" or "all") on a run's uploads and write RUN/privacy.json.

    What an attack does not apply to is a remark. Raises as `uploads_of`, and PrivacyError where
    what attacks need is not installed.
    """
    from sim.privacy.attacks import labels, texts

    if importlib.util.find_spec("sklearn") is None:
        raise PrivacyError("attacks need scikit-learn: pip install 'mobifleet[privacy]'")
    refuse_others(scenario_of(run))
    uploads = uploads_of(run, folder)
    found = Report([], [])
    if not uploads.is_same:
        found.remarks.append(
            "simulated again it came to another digest: other last bits than the run's (another "
            "machine, or another version)"
        )
    for name, attack in (("labels", labels), ("texts", texts)):
        if attacks in (name, "all"):
            on_stage(f"attacking {name}")
            try:
                found.outcomes.extend(attack(uploads, untried=found.remarks))
            except PrivacyError as error:
                found.remarks.append(f"no attack on {name}: {error}")
    rows = [dataclasses.asdict(outcome) for outcome in found.outcomes]
    write_json(run.path / "privacy.json", {"outcomes": rows, "remarks": found.remarks})
    return found
