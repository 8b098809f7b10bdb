"""A comparison's tables for a paper: LaTeX floats with caption and label (booktabs), one unit a
column, the best in bold, at the width of a column or of a page, and below what the columns mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from learning.metrics import LESS_IS_BETTER
from sim.compare.costs import COLUMNS
from sim.compare.planned_run import CompareError
from sim.compare.reductions import has_learned
from sim.compare.write import (
    ACCURACIES,
    DIVERGED,
    divergence,
    half_width,
    is_cut_off,
    why_costless,
)
from sim.privacy.measures import SAID
from sim.scenario.complaints import nearest
from sim.views import escaping

HEADINGS = {  # short, and what each number is of
    "final": "Accuracy at the end",  # or whatever the metric is
    "chosen": "Accuracy",
    "device_p10": "Devices' 10th",
    "device_worst": "Worst device",
    "time_s": "Time",
    "flop": "Compute",
    "uplink_bytes": "Up",
    "downlink_bytes": "Down",
    "training_bytes": "Up, down",
    "delivery_bytes": "Delivery",
    "communication_bytes": "Bytes",
    "peak_memory_bytes": "Memory",
    "energy_j": "Energy",
    "waiting_s": "Waiting",
    "wasted_bytes": "Wasted",
    "updates": "Updates",
    **SAID,
}
NOTES = {  # what a heading does not say
    "chosen": "at the evaluation that validation texts choose",
    "device_p10": "percentile of {metric} by device at the end, each on its own mix of classes",
    "device_worst": "its {metric} at the end, on its own mix of classes",
    "time_s": "on the simulated clock",
    "training_bytes": "what a device sends and receives until then",
    "delivery_bytes": "what a device downloads once, to predict by itself",
    "communication_bytes": "up, down and delivery",
    "peak_memory_bytes": "a device's peak in the whole run",
    "wasted_bytes": "the whole fleet's transfers that came to nothing",
    "updates": "of the server's model",
}
UNITS: dict[str, tuple[tuple[str, float], ...]] = {
    "s": (("h", 3600.0), ("min", 60.0), ("s", 1.0)),
    "bytes": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
    "flop": (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("FLOP", 1.0)),
    "j": (("kJ", 1e3), ("J", 1.0)),
}
IN_COLUMN = ("chosen", "time_s", "communication_bytes")
PAGE = (
    *("chosen", "time_s", "flop", "training_bytes", "delivery_bytes", "communication_bytes"),
    *("peak_memory_bytes", "energy_j"),
)
"""What fits 3.3 in and 7 in."""


def tables_for_paper(
    tables: Mapping[str, list[dict[str, Any]]],
    columns: Sequence[str],
    is_page: bool,
    learned: float = 0.0,
    costed_as: str | None = None,
) -> str:
    """The tables as LaTeX floats, one below the other: `table*` for a page, `table` for a column.

    They need `\\usepackage{booktabs,graphicx}`; what is wider than its line is drawn smaller.
    `columns` are names of `COLUMNS`; CompareError for others. A method whose accuracy stays below
    `learned` is in no column the best. `costed_as` is whose costs the clock charged, where that is
    not what learned.
    """
    check_columns(columns)
    how = (columns, is_page, learned, costed_as)
    floats = [_float(title, table, *how) for title, table in tables.items()]
    return "\n\n".join(floats) + "\n"


def check_columns(columns: Iterable[str]) -> None:
    """Raise CompareError for a name that is no column's, and for one that is there twice."""
    seen = set()
    for name in columns:
        if name not in COLUMNS:
            near = nearest(name, COLUMNS)
            raise CompareError(f"{name!r} is no column; there are {', '.join(COLUMNS)}{near}")
        if name in seen:
            raise CompareError(f"column {name!r} is given twice")
        seen.add(name)


def _float(
    title: str,
    table: list[dict[str, Any]],
    columns: Sequence[str],
    is_page: bool,
    learned: float,
    costed_as: str | None,
) -> str:
    if is_cut_off(table):
        columns = [name for name in columns if name not in ACCURACIES]
    units = {name: _unit(name, table) for name in columns}
    best = {name: _best(name, table, learned) for name in columns}
    lines: list[str] = []
    for row in table:
        if row.get("reference") and lines and r"\midrule" not in lines:
            lines.append(r"\midrule")
        cells = [_cell(name, row, units[name][1], row["method"] in best[name]) for name in columns]
        lines.append(" & ".join([escaping.latex(row["method"]), *cells]) + r" \\")
    metric = table[0].get("metric") or "accuracy"
    named = "Accuracy" if metric == "accuracy" else metric
    head = [HEADINGS[name].replace("Accuracy", named) for name in columns]
    note = _note(table, dict(zip(columns, head, strict=True)), metric, "\n".join(lines))
    said = [f"[{units[name][0]}]" if units[name][0] else "" for name in columns]
    environment = "table*" if is_page else "table"
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"\centering",
            rf"\caption{{{_caption(title, table, costed_as)}}}",
            rf"\label{{tab:{_slug(title)}}}",
            r"\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\sbox{{0}}{{\begin{{tabular}}{{@{{}}l{'r' * len(columns)}@{{}}}}",
            r"\toprule",
            " & ".join(["", *head]) + r" \\",
            " & ".join(["Method", *(f"{{{text}}}" if text else "" for text in said)]) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}%",
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox{0}}\else\usebox{0}\fi",
            rf"\par\vspace{{3pt}}\parbox{{\linewidth}}{{\scriptsize\raggedright {note}}}",
            rf"\end{{{environment}}}",
        ]
    )


def _caption(title: str, table: list[dict[str, Any]], costed_as: str | None) -> str:
    """What the numbers are: whose means, with which intervals."""
    seeds = sorted({row["seeds"] for row in table})
    of = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else "several seeds"
    sentences = [
        f"{escaping.latex(title[:1].upper() + title[1:])}.",
        f"Means a device over {of}" + (", with 95 \\% intervals;" if seeds[-1] > 1 else ";"),
        "the best of each column in bold, references below the line.",
        *([f"Costed as {escaping.latex(costed_as)}."] if costed_as else []),
    ]
    return " ".join(sentences)


def _note(table: list[dict[str, Any]], heads: Mapping[str, str], metric: str, cells: str) -> str:
    """What stands below: what columns, intervals and signs mean that do not say so themselves."""
    meant = "; ".join(
        rf"\emph{{{escaping.latex(head)}}}: {NOTES[name].format(metric=escaping.latex(metric))}"
        for name, head in heads.items()
        if name in NOTES
    )
    texts, has_scores = table[0].get("test_texts"), any(name in ACCURACIES for name in heads)
    sentences = {
        meant: bool(meant),
        f"Test texts: $n={texts}$": bool(texts) and has_scores,
        _of_intervals(table, heads, escaping.latex(metric)): r"\tiny" in cells,
        r"$\geq$: not reached in every seed, counted until its end": r"$\geq$" in cells,
        "--: never above its untrained start": any(row.get("never_above_start") for row in table),
        r"1\,MB is $10^6$ bytes": any(name.endswith("bytes") for name in heads),
    }
    return " ".join(f"{sentence}." for sentence, is_needed in sentences.items() if is_needed)


def _of_intervals(table: list[dict[str, Any]], columns: Iterable[str], metric: str) -> str:
    is_score = {name in ACCURACIES for name in columns}
    one, texts = all(row["seeds"] == 1 for row in table), table[0].get("test_texts")
    over = [*(["seeds"] if not one else []), *(["test texts"] if texts else [])]
    scores = f"{metric} over {' and '.join(over)}{' alone' * one}"
    costs = f"costs {'over seeds and ' * (not one)}between the evaluations before and after"
    said = [*([scores] if True in is_score and over else []), *([costs] * (False in is_score))]
    return f"Intervals (95 \\%): {', '.join(said)}"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _unit(name: str, table: list[dict[str, Any]]) -> tuple[str, float]:
    """The unit of a column: the largest in which the least value of its methods is at least a
    tenth, so that the greatest stays short; of times at least 1, as their units are no thousands.
    """
    methods = [row for row in table if not row.get("reference")] or table
    values = [row.get(name) or row.get(f"{name}_at_least") for row in methods]
    units = UNITS.get(name.rsplit("_", 1)[-1], (("", 1.0),))
    least = min((value for value in values if value), default=0.0)
    share = 1.0 if name.endswith("_s") else 0.1
    return next((unit for unit in units if least >= share * unit[1]), units[-1])


def _best(name: str, table: list[dict[str, Any]], learned: float) -> set[str]:
    """The methods with the best value of a column, references and what has not learned left out;
    none among equals.
    """
    values = {
        row["method"]: row[name]
        for row in table
        if row.get(name) is not None and not row.get("reference") and has_learned(row, learned)
    }
    if name == "updates" or len(set(values.values())) < 2:
        return set()
    more_is_better = name in ACCURACIES and table[0].get("metric") not in LESS_IS_BETTER
    chosen = max(values.values()) if more_is_better else min(values.values())
    return {method for method, value in values.items() if value == chosen}


def _cell(name: str, row: Mapping[str, Any], unit: float, is_best: bool) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        why = divergence(row) if name in ACCURACIES else why_costless(row)
        if why.startswith(DIVERGED):
            return escaping.latex(why)
        least = row.get(f"{name}_at_least")
        return "--" if least is None else rf"$\geq${_number(least / unit)}"
    decimals = 3 if name in ACCURACIES else _decimals(value / unit)
    text = _number(value / unit, decimals)
    text = rf"\textbf{{{text}}}" if is_best else text
    if low is None or high is None or low == high:
        return text
    if (half := half_width(value, low, high)) is not None:
        return rf"{text}\,{{\tiny$\pm${_number(half / unit, decimals)}}}"
    ends = "--".join(_number(end / unit, decimals) for end in (low, high))
    return rf"{text}\,{{\tiny({ends})}}"


def _number(value: float, decimals: int | None = None) -> str:
    places = _decimals(value) if decimals is None else decimals
    return f"{value:,.{places}f}".replace(",", "{,}")


def _decimals(value: float) -> int:
    """Digits behind the point of a number in three digits."""
    return max(0, min(4, 2 - math.floor(math.log10(abs(value))))) if value else 0
