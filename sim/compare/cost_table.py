"""One table of what methods cost: means over seeds with intervals, ratios, reductions, as CSV,
Markdown and LaTeX.

Costs are counted up to two moments: the end of a method's own convergence (the first time within
half a point of its own best, as the papers count) and the time it reaches the common target. A
method that never reaches it says so and stays.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.compare.planned_run import CompareError, PlannedRun
from sim.results.run import Run, encode, open_run
from sim.results.span_table import is_waste, of_devices
from sim.views import escaping

CONVERGED_WITHIN = 0.005


COLUMNS = {
    "final": "accuracy, final",
    "best": "accuracy, best",
    "time_s": "time",
    "flop": "compute a device",
    "uplink_bytes": "uplink a device",
    "downlink_bytes": "downlink a device",
    "communication_bytes": "communication a device",
    "peak_memory_bytes": "peak memory a device",
    "energy_j": "energy a device",
    "waiting_s": "waiting a device",
    "wasted_bytes": "wasted bytes",
    "updates": "updates",
}
OF_BACKBONE = "accuracy, final, "
REDUCED = ("time_s", "flop", "communication_bytes", "peak_memory_bytes", "energy_j")


def converged_at_s(run: Run) -> float | None:
    """The first time within half a point of the run's own best accuracy; None without any
    accuracy.
    """
    time_s, accuracy = run.curve("accuracy")
    if not len(accuracy):
        return None
    return float(time_s[np.argmax(accuracy >= accuracy.max() - CONVERGED_WITHIN)])


def costs_until(run: Run, until_s: float) -> dict[str, float]:
    """Mean costs a device of everything that had ended by a moment, and the whole fleet's wasted
    bytes.
    """
    return {name: float(values[0]) for name, values in costs_at(run, np.array([until_s])).items()}


def costs_at(run: Run, times_s: np.ndarray) -> dict[str, np.ndarray]:
    """The same at each of some moments [n], each cost as float64 [n].

    Peak memory is of the whole run, the mean over the devices that did any work.
    """
    spans = run.spans(["actor", "kind", "start_s", "end_s", "nbytes", "flop", "joules", "outcome"])
    spans = of_devices(spans)
    end_s, devices = spans["end_s"].to_numpy(), run.devices()
    order = np.argsort(end_s, kind="stable")
    ended = np.searchsorted(end_s[order], times_s, side="right")
    code, kinds = encode(spans["kind"])
    kind = np.array(kinds, dtype=object)[code]

    def until(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(np.where(chosen, values, 0.0)[order])])[ended]

    nbytes = spans["nbytes"].to_numpy().astype(float)
    everything = np.ones(len(end_s), dtype=bool)
    up, down = (until(nbytes, kind == way) / len(devices) for way in ("upload", "download"))
    peak = devices["peak_memory_bytes"].to_numpy()
    peak = peak[peak > 0]
    return {
        "time_s": np.asarray(times_s, dtype=float),
        "flop": until(spans["flop"].to_numpy(), kind == "compute") / len(devices),
        "uplink_bytes": up,
        "downlink_bytes": down,
        "communication_bytes": up + down,
        "peak_memory_bytes": np.full(
            len(times_s), math.fsum(peak) / len(peak) if len(peak) else 0.0
        ),
        "energy_j": until(spans["joules"].to_numpy(), everything) / len(devices),
        "waiting_s": until(end_s - spans["start_s"].to_numpy(), kind == "wait") / len(devices),
        "wasted_bytes": until(nbytes, is_waste(spans)),
        "updates": _last_before(*run.curve("updates"), times_s),
    }


def _last_before(at_s: np.ndarray, value: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """What a metric had last been noted as at each moment; 0 before its first note."""
    return np.concatenate([[0.0], value])[np.searchsorted(at_s, times_s, side="right")]


def rows(
    entries: list[PlannedRun], protocol: str, target: float | None = None
) -> list[dict[str, Any]]:
    """One row a method: means over its seeds, and half-widths (`..._pm`) of 95 % intervals where
    there are several.

    `protocol` is "own" (up to the end of its own convergence) or "target" (up to the common
    target). A method of which some seed does not reach the moment has None in its costs.
    """
    table = []
    for label in dict.fromkeys(entry.label for entry in entries):
        runs = [open_run(entry.folder) for entry in entries if entry.label == label]
        each = [_row(run, protocol, target) for run in runs]
        row: dict[str, Any] = {"method": label, "kind": runs[0].method, "seeds": len(runs)}
        for name in each[0]:
            values = [r.get(name) for r in each]
            row[name], row[f"{name}_pm"] = _interval(values)
            row[f"{name}_each"] = values
        row["accuracies"] = [name for name in each[0] if name.startswith(OF_BACKBONE)]
        row["diverged"] = sum(
            run.summary["final"] is None and bool(run.summary.get("diverged")) for run in runs
        )
        row["reached"] = sum(r["time_s"] is not None for r in each)
        table.append(row)
    return table


def _row(run: Run, protocol: str, target: float | None) -> dict[str, Any]:
    by_backbone = run.summary["by_backbone"] if len(run.summary["by_backbone"]) > 1 else {}
    accuracies = {"final": run.summary["final"], "best": run.summary["best"]}
    accuracies |= {f"{OF_BACKBONE}{name}": score for name, score in by_backbone.items()}
    until_s = converged_at_s(run) if protocol == "own" else _reached_at_s(run, target)
    if run.summary["dry"]:
        until_s = run.summary["virtual_time_s"]
    if until_s is None:
        return {**accuracies, **dict.fromkeys(set(COLUMNS) - {"final", "best"})}
    return {**accuracies, **costs_until(run, until_s)}


def _reached_at_s(run: Run, target: float | None) -> float | None:
    time_s, accuracy = run.curve("accuracy")
    if target is None or not len(accuracy) or accuracy.max() < target:
        return None
    return float(time_s[np.argmax(accuracy >= target)])


def _interval(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    if len(known) == 1:
        return float(known[0]), None
    from scipy import stats

    half = stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known))
    return math.fsum(known) / len(known), float(half)


def has_learned(row: Mapping[str, Any], learned: float) -> bool:
    """Whether a method's best accuracy has come up to that: else it has no part in reductions."""
    return (row["best"] or 0.0) >= learned


def reductions(
    table: list[dict[str, Any]],
    ours: str,
    baselines: Iterable[str] | None = None,
    learned: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """How much less our method needs than the best baseline (default: any other method), column by
    column.

    A method whose best accuracy stays below `learned` has no part in it: what never learns is
    cheap. With several seeds `reduction` is that of the means and `reduction_pm` the half-width of
    a 95 % interval over the reductions seed by seed (the seeds' worlds are common to both methods).
    """
    mine = next((row for row in table if row["method"] == ours), None)
    if mine is None:
        raise CompareError(f"the table has no method labelled {ours!r}")
    found = {}
    for name in REDUCED:
        others = [
            row
            for row in table
            if row["method"] != ours and row[name] is not None and has_learned(row, learned)
            if baselines is None or row["method"] in baselines
        ]
        if mine[name] is None or not others:
            continue
        best = min(others, key=lambda row: row[name])
        factor = best[name] / mine[name] if mine[name] else math.inf
        found[name] = {
            "ours": mine[name],
            "best_other": best[name],
            "of": best["method"],
            "factor": factor,
        }
        found[name]["reduction"] = 1 - 1 / factor if factor else -math.inf
        pairs = zip(mine.get(f"{name}_each", ()), best.get(f"{name}_each", ()), strict=True)
        found[name]["reduction_pm"] = _interval(
            [1 - ours_ / other for ours_, other in pairs if other] or [0.0]
        )[1]
    return found


# --- what is written


def headings(table: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The columns and their headings: accuracies (of each backbone too, where there are several),
    then costs.
    """
    of_backbones = {name: name for row in table for name in row["accuracies"]}
    accuracies = {name: COLUMNS[name] for name in ("final", "best")}
    return (
        accuracies
        | of_backbones
        | {name: text for name, text in COLUMNS.items() if name not in accuracies}
    )


def write_csv(table: list[dict[str, Any]], path: Path, reference: str | None) -> None:
    """Every number of the table, in SI units, and each as a ratio to the reference method."""
    base = next((row for row in table if row["method"] == reference), None)
    columns = headings(table)
    names = [n for c in columns for n in (c, f"{c}_pm", *([f"{c}_ratio"] if base else []))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, ["method", "kind", "seeds", "reached", *names], extrasaction="ignore"
        )
        writer.writeheader()
        for row in table:
            ratios = (
                {f"{c}_ratio": _ratio(row.get(c), base.get(c)) for c in columns} if base else {}
            )
            writer.writerow({**row, **ratios})


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def shown(table: list[dict[str, Any]], columns: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Rows for people: the method and its cells in the order of `columns`."""
    for row in table:
        lost = row.get("diverged") and (
            "diverged" if row["diverged"] == row["seeds"] else f"{row['diverged']} diverged"
        )
        yield (
            row["method"],
            [_cell(name, row.get(name), row.get(f"{name}_pm"), lost or "–") for name in columns],
        )


def _cell(name: str, value: float | None, pm: float | None, lost: str = "–") -> str:
    from inputs.units import format_bytes, format_seconds, format_si

    is_accuracy = name in ("final", "best") or name.startswith(OF_BACKBONE)
    if value is None:
        return lost if is_accuracy else "not reached"
    if is_accuracy:
        return f"{value:.3f}" + (f" ± {pm:.3f}" if pm is not None else "")
    write = {
        "time_s": format_seconds,
        "waiting_s": format_seconds,
        "flop": lambda v: format_si(v, "FLOP"),
        "energy_j": lambda v: format_si(v, "J"),
        "updates": lambda v: f"{v:,.0f}",
    }.get(name, format_bytes)
    return write(value) + (f" ± {write(pm)}" if pm is not None else "")


def markdown(tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables as Markdown, one below the other."""
    parts = []
    for title, table in tables.items():
        columns = headings(table)
        head = ["method", *(escaping.markdown(heading) for heading in columns.values())]
        lines = [
            f"## {escaping.markdown(title)}",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
        ]
        lines += [
            "| " + " | ".join([escaping.markdown(name), *cells]) + " |"
            for name, cells in shown(table, columns)
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def latex(tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables as LaTeX tabulars (booktabs)."""
    parts = []
    for title, table in tables.items():
        columns = headings(table)
        head = " & ".join(escaping.latex(heading) for heading in ["method", *columns.values()])
        body = [
            " & ".join(escaping.latex(cell) for cell in [name, *cells]) + r" \\"
            for name, cells in shown(table, columns)
        ]
        spec = "l" + "r" * len(columns)
        lines = [
            f"% {escaping.latex(title)}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
        ]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"
