"""Write docs/comparison.md: its text with the numbers of committed comparisons in place.

    python benchmarks/comparison.py                              the page, of what is committed
    python benchmarks/comparison.py runs/table1_small-compare    take a comparison's numbers first

A comparison leaves `comparison.json` in its folder; taken, it stands in `benchmarks/results/
comparison/`. The text is `benchmarks/comparison.jinja`. Whether a paper's claim held is computed
here from the numbers, and so are the sentences that say it: none is typed. What the results do not
hold cannot be printed, and a table whose cells are of several commits or settings is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from inputs.units import format_bytes, format_seconds, format_si
from sim.compare.reductions import has_learned, reductions
from sim.compare.write import from_to, is_cut_off, shown
from sim.results.statistics import Costs, over_seeds, paired_difference, paired_ratio
from sim.views import escaping

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "comparison"
TEMPLATE = ROOT / "benchmarks" / "comparison.jinja"
PAGE = ROOT / "docs" / "comparison.md"

PEFT = ("fedavg-lora", "fedavg-adapter", "fedavg-bitfit", "flexlora", "fedasync", "fedbuff")
COLUMNS = {  # of the page's tables
    "chosen": "{metric}",
    "time_s": "time",
    "flop": "compute a device",
    "training_bytes": "up and down a device",
    "delivery_bytes": "delivery",
    "communication_bytes": "with delivery",
    "peak_memory_bytes": "peak memory",
    "energy_j": "energy a device",
    "updates": "updates",
}


class Refused(ValueError):
    """The results cannot be printed as one table; the message says why."""


# --- what was measured


@dataclass(frozen=True)
class Table:
    """One table of a comparison: rows by method, under the protocol that its costs are of."""

    title: str
    at: str
    rows: dict[str, dict[str, Any]]
    commit: str
    saved: dict[str, dict[str, Any]]
    """What ours saves against the best baseline, as in reductions.json."""
    saved_of_peft: dict[str, dict[str, Any]]
    """The same against the best that tunes few parameters on whole devices in federation."""

    @property
    def protocol(self) -> str:
        """(i) to own convergence, (ii) to the common target."""
        return "(i)" if next(iter(self.rows.values()))["target"] is None else "(ii)"


class Result:
    """A comparison as it is committed; Refused where a table is not of one piece."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.scenario, self.seeds, self.ours = data["scenario"], data["seeds"], data["ours"]
        self.baselines, self.tuned, self.notes = data["baselines"], data["tuned"], data["notes"]
        self.costed_as, self.learned = data["costed_as"], data["learned"]
        self.tables = [self._table(title, table) for title, table in data["tables"].items()]

    def _table(self, title: str, table: dict[str, Any]) -> Table:
        of_one_piece(f"{self.scenario}, {title}", table, self.seeds)
        rows = [
            {name: Costs(*v) if name.endswith("_looks") else v for name, v in row.items()}
            for row in table["rows"]
        ]
        methods = {row["method"] for row in rows}
        peft = [row["method"] for row in rows if row["kind"] in PEFT]
        saved = [
            reductions(rows, self.ours, some, self.learned) if self.ours in methods else {}
            for some in (self.baselines, [method for method in peft if method in self.baselines])
        ]
        commit = table["runs"][0]["commit"]
        return Table(title, table["at"], {row["method"]: row for row in rows}, commit, *saved)

    def table(self, protocol: str = "(i)", at: str = "") -> Table:
        """The table of a protocol, where a setting has that value."""
        for table in self.tables:
            if table.protocol == protocol and table.at.endswith(at):
                return table
        raise Refused(f"{self.scenario} has no table {protocol} {at}")


def of_one_piece(what: str, table: dict[str, Any], seeds: list[int]) -> None:
    """Raise Refused unless all cells are of one commit without changes, of one world, each method's
    of one set of settings, and of all seeds.
    """
    runs, methods = table["runs"], [row["method"] for row in table["rows"]]
    if sorted({run["method"] for run in runs}) != sorted(methods):
        raise Refused(f"{what}: its rows are not those of its runs")
    commits = sorted({str(run["commit"]) for run in runs})
    if len(commits) > 1:
        raise Refused(f"{what}: its cells are of several commits: {', '.join(commits)}")
    if not commits[0].isalnum() or commits == ["None"]:
        raise Refused(f"{what}: computed by no one commit as it stands: {commits[0]}")
    if len({run["world"] for run in runs}) > 1:
        raise Refused(f"{what}: its methods did not meet the same world")
    for method in methods:
        mine = [run for run in runs if run["method"] == method]
        if len({run["settings"] for run in mine}) > 1:
            raise Refused(f"{what}: {method} has several settings")
        if sorted(run["seed"] for run in mine) != sorted(seeds):
            raise Refused(f"{what}: {method} lacks seeds")


def committed(folder: Path = RESULTS) -> dict[str, Result]:
    """All committed comparisons, by the name of their scenario."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: Result(json.loads(file.read_text(encoding="utf-8"))) for file in files}


# --- what was claimed, and whether it held


VERDICTS = ("held", "not held", "cannot be told")


class Measured(NamedTuple):
    """What a claim came to, the ends of its interval (None where nothing is known of them), of
    which method, against which.
    """

    value: float
    low: float | None
    high: float | None
    of: str
    against: str


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how a comparison measures it; None where it does not."""

    paper: str
    says: str
    published: float
    kind: str
    """How numbers are written: a share, times, or points."""
    scenarios: tuple[str, ...]
    measure: Callable[[Result, Table], Measured | None]

    def verdict(self, found: Measured) -> str:
        """Whether it held: by the whole interval, or nobody can tell."""
        low, high = (found.value if end is None else end for end in (found.low, found.high))
        held, not_held, open_ = VERDICTS
        if low >= self.published:
            return held
        return not_held if high < self.published else open_

    def written(self, value: float) -> str:
        """A number as the claim has it."""
        return {
            "share": f"{100 * value:.1f} %",
            "times": f"{value:.3g}x",
            "points": f"{100 * value:+.1f} points",
        }[self.kind]

    def cell(self, found: Measured) -> str:
        """The measured value with its interval."""
        text = self.written(found.value)
        if found.low is None or found.high is None or found.low == found.high:
            return text
        return f"{text} ({from_to(found.low, found.high, self.written)})"


def saved(name: str, peft: bool = False) -> Callable[[Result, Table], Measured | None]:
    """The share that ours saves of a cost against the best baseline, or federated PEFT alone."""

    def measure(result: Result, table: Table) -> Measured | None:
        one = (table.saved_of_peft if peft else table.saved).get(name)
        if one is None:
            return None
        ends = (one[f"reduction{end}"] for end in ("", "_low", "_high"))
        return Measured(*ends, result.ours, one["of"])

    return measure


def times_less(name: str, peft: bool = False) -> Callable[[Result, Table], Measured | None]:
    """How many times less ours costs than the best baseline, or federated PEFT alone."""

    def measure(result: Result, table: Table) -> Measured | None:
        found = saved(name, peft)(result, table)
        if found is None:
            return None
        ends = [None if end is None or end >= 1 else 1 / (1 - end) for end in found[:3]]
        return None if ends[0] is None else Measured(ends[0], *ends[1:], result.ours, found.against)

    return measure


def more_accurate(result: Result, table: Table) -> Measured | None:
    """How much more accurate ours is than the most accurate baseline."""
    if table.protocol != "(i)" or (one := table.saved.get("accuracy")) is None:
        return None
    ends = (one[f"difference{end}"] for end in ("", "_low", "_high"))
    return Measured(*ends, result.ours, one["of"])


def _apart(table: Table, ours: str, other: str) -> Measured | None:
    a, b = table.rows[ours], table.rows[other]
    if None in a["chosen_each"] or None in b["chosen_each"]:
        return None
    found = paired_difference(
        a["chosen_each"], b["chosen_each"], a["test_texts"], a["test_overlap"]
    )
    return Measured(*found, ours, other)


def behind_reference(result: Result, table: Table) -> Measured | None:
    """How much more accurate ours is than the most accurate reference."""
    known = [r for r in table.rows.values() if r["reference"] and r["chosen"] is not None]
    if table.protocol != "(i)" or not known:
        return None
    return _apart(table, result.ours, max(known, key=lambda row: row["chosen"])["method"])


def beside(ours: str, other: str, at: str = "") -> Callable[[Result, Table], Measured | None]:
    """How much more accurate one method is than another, where a setting has that value."""

    def measure(result: Result, table: Table) -> Measured | None:
        is_there = {ours, other} <= set(table.rows) and table.at.endswith(at)
        return _apart(table, ours, other) if is_there and table.protocol == "(i)" else None

    return measure


def ratio(name: str, ours: str, other: str) -> Callable[[Result, Table], Measured | None]:
    """How many times more the other costs than ours."""

    def measure(result: Result, table: Table) -> Measured | None:
        rows = [table.rows.get(method, {}) for method in (other, ours)]
        a, b = (row.get(f"{name}_looks") for row in rows)
        if a is None or b is None or min(b.at) <= 0:
            return None
        return Measured(*paired_ratio(a, b), ours, other)

    return measure


def falls_less(low: str, high: str) -> Callable[[Result, Table], Measured | None]:
    """How much less accuracy ours loses than the baseline that loses least, from one value of the
    swept setting to another.
    """

    def measure(result: Result, table: Table) -> Measured | None:
        if table.protocol != "(i)" or not table.at.endswith(low):
            return None
        before = result.table("(i)", high)

        def lost(method: str) -> list[float]:
            each = (before.rows[method]["chosen_each"], table.rows[method]["chosen_each"])
            return [a - b for a, b in zip(*each, strict=True)]

        others = {method: lost(method) for method in result.baselines if method != result.ours}
        least = min(others, key=lambda method: sum(others[method]))
        each = [a - b for a, b in zip(others[least], lost(result.ours), strict=True)]
        return Measured(*over_seeds(each), result.ours, least)

    return measure


FED, PAE, MOBI = "Fed MobiLLM", "PAE MobiLLM", "MobiLLM"
FLEETS = ("table1", "table1_small")
CLAIMS = (
    Claim(FED, "compute: at least 95.2 % less", 0.952, "share", FLEETS, saved("flop")),
    Claim(
        *(FED, "compute: at least 95.2 % less, of federated PEFT alone", 0.952, "share", FLEETS),
        saved("flop", True),
    ),
    Claim(
        *(FED, "communication with delivery: at least 93.2 % less", 0.932, "share", FLEETS),
        saved("communication_bytes"),
    ),
    Claim(
        *(FED, "with delivery: at least 93.2 % less, of federated PEFT alone", 0.932, "share"),
        *(FLEETS, saved("communication_bytes", True)),
    ),
    Claim(
        *(FED, "communication in training alone: at least 93.2 % less", 0.932, "share", FLEETS),
        saved("training_bytes"),
    ),
    Claim(FED, "time: at least 5.1x shorter", 5.1, "times", FLEETS, times_less("time_s")),
    Claim(FED, "memory: 2.68x less", 2.68, "times", FLEETS, times_less("peak_memory_bytes")),
    Claim(
        *(FED, "memory: 2.68x less, of federated PEFT alone", 2.68, "times", FLEETS),
        times_less("peak_memory_bytes", True),
    ),
    Claim(
        *(FED, "accuracy: at least 0.3 points above every baseline", 0.003, "points", FLEETS),
        more_accurate,
    ),
    Claim(
        *(FED, "accuracy: at most 1.5 points below centralised", -0.015, "points", FLEETS),
        behind_reference,
    ),
    Claim(
        *(FED, "skew (alpha 10 to 0.1): falls at least 1.2 points less", 0.012, "points"),
        *(("noniid",), falls_less("=0.1", "=10.0")),
    ),
    Claim(
        *(FED, "alpha 0.1: one side network for all, at least 7.4 points above one each", 0.074),
        *("points", ("noniid",), beside("fed-mobillm", "single-side-network", "=0.1")),
    ),
    Claim(
        *(PAE, "one token instead of all: above 90 % fewer bytes", 10.0, "times"),
        *(("pae_single",), ratio("training_bytes", "pae-mobillm", "pae-matrices")),
    ),
    Claim(
        *(MOBI, "memory: 4x less than training on the phone", 4.0, "times"),
        *(("pae_single",), ratio("peak_memory_bytes", "mobillm-8bit", "local-lora")),
    ),
    Claim(
        *(MOBI, "time: 2.3x shorter than training on the phone", 2.3, "times"),
        *(("pae_single",), ratio("time_s", "mobillm-8bit", "local-lora")),
    ),
)


def judged(result: Result) -> Iterable[tuple[Claim, Table, Measured]]:
    """Every claim with every table of a comparison that measures it; where the best of federated
    PEFT is the best of all, once.
    """
    seen = set()
    for claim in CLAIMS:
        for table in result.tables if result.scenario in claim.scenarios else ():
            found = claim.measure(result, table)
            one = (claim.published, table.title, found)
            if found is not None and one not in seen:
                seen.add(one)
                yield claim, table, found


def verdicts(result: Result) -> str:
    """The claims as a table, a row for each protocol that measures one."""
    head = ("claim", "paper", "protocol", "found", "of", "against", "")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for claim, table, found in judged(result):
        cells = [claim.says, claim.paper, table.protocol, claim.cell(found)]
        cells += [escaping.markdown(found.of), escaping.markdown(found.against)]
        lines.append(f"| {' | '.join(cells)} | **{claim.verdict(found)}** |")
    return "\n".join(lines)


def sentence(results: dict[str, Result]) -> str:
    """How many claims held, in words."""
    all_of_them = [one for result in results.values() for one in judged(result)]
    found = Counter(claim.verdict(measured) for claim, _, measured in all_of_them)
    parts = [f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict]]
    return (
        f"Of {len(all_of_them)} measurements of the papers' claims {', '.join(parts)}. Both "
        "protocols read the same runs where nothing is tuned, and claims share baselines, so these "
        "are not so many independent findings."
    )


# --- the page


def cost_table(result: Result, table: Table, columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """A table of a comparison as Markdown, each value with its interval, references last."""
    rows = list(table.rows.values())
    if is_cut_off(rows):
        columns = [name for name in columns if name != "chosen"]
    named = [COLUMNS[name].format(metric=rows[0]["metric"]) for name in columns]
    lines = ["| | " + " | ".join(named) + " |", "|" + "---|" * (len(named) + 1)]
    for name, cells in shown(rows, columns):
        lines.append("| " + " | ".join([escaping.markdown(name), *cells]) + " |")
    return "\n".join(lines)


def left_out(result: Result) -> str:
    """Which baselines are in no saving of protocol (i), as they did not learn by the validation
    texts, and what would be saved of their bytes.
    """
    table = result.table("(i)")
    below = {
        method: row
        for method, row in table.rows.items()
        if method in result.baselines and not has_learned(row, result.learned)
    }
    said = []
    for method, row in below.items():
        found = reductions([table.rows[result.ours], row], result.ours)
        bytes_saved = found.get("communication_bytes")
        known = f"{row.get('validated') or row['chosen'] or 0:.3f}"
        if bytes_saved is None:
            said.append(f"{method} ({known})")
        else:
            said.append(
                f"{method} ({known}; {100 * bytes_saved['reduction']:.1f} % of its bytes would be "
                "saved)"
            )
    if not said:
        return ""
    return (
        f"In no saving, as they stay below {result.learned:g} on the validation texts: "
        f"{', '.join(said)}."
    )


def source(result: Result, table: Table) -> str:
    """From what a table is: seeds and commit."""
    tuned = "" if table.protocol == "(i)" or result.tuned else ", not tuned"
    return f"{_seeds(result)}, commit `{table.commit[:12]}`{tuned}"


def _seeds(result: Result) -> str:
    return f"{len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}"


def _known(write: Callable[[float], str]) -> Callable[[float | None], str]:
    def filtered(value: float | None) -> str:
        if value is None or isinstance(value, jinja2.Undefined):
            raise Refused("the results do not hold a number that the page prints")
        return write(value)

    return filtered


FILTERS = {
    "bytes": _known(format_bytes),
    "seconds": _known(format_seconds),
    "flop": _known(lambda value: format_si(value, "FLOP")),
    "joules": _known(lambda value: format_si(value, "J")),
    "percent": _known(lambda value: f"{100 * value:.1f} %"),
    "points": _known(lambda value: f"{100 * value:+.1f} points"),
    "accuracy": _known(lambda value: f"{value:.3f}"),
    "times": _known(lambda value: f"{value:.3g}"),
    "count": _known(lambda value: f"{value:,.0f}"),
}


def page(results: dict[str, Result], text: str | None = None) -> str:
    """The page's text with the numbers in place."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    template = environment.from_string(text or TEMPLATE.read_text(encoding="utf-8"))
    made = (verdicts, sentence, cost_table, left_out, source)
    return template.render(results=results, **{one.__name__: one for one in made})


def take(folder: Path, results: Path = RESULTS) -> Path:
    """Keep the numbers of a comparison's folder among the committed ones."""
    text = (folder / "comparison.json").read_text(encoding="utf-8")
    result = Result(json.loads(text))
    results.mkdir(parents=True, exist_ok=True)
    kept = results / f"{result.scenario}.json"
    kept.write_text(text, encoding="utf-8")
    return kept


def main(folders: Sequence[str]) -> None:
    """Take the comparisons that are named, then write the page."""
    for folder in folders:
        print(take(Path(folder)).relative_to(ROOT))
    PAGE.write_text(page(committed()), encoding="utf-8")
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("folders", nargs="*", help="of comparisons whose numbers are taken first")
    try:
        main(asked.parse_args().folders)
    except (Refused, OSError) as error:
        sys.exit(str(error))
