"""Several methods on one scenario: the same fleet, data, arrivals and links, side by side in one table.

Every method runs with the same named random streams, so what is not the method's doing is the same for all. Costs are
counted up to two moments: the end of a method's own convergence (the first time within half a point of its own best, as
the papers count) and the time it reaches the common target. A method that never reaches it says so and stays in the table.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sim.results import Run, open_run
from sim.run_directory import read_manifest
from sim.scenario import Scenario
from sim.scenario_file import digest, resolved

CONVERGED_WITHIN = 0.005


class CompareError(ValueError):
    """A comparison cannot be made; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One run of the comparison: which method (by its label), which seed, from which scenario, into which folder."""

    label: str
    scenario: Scenario
    folder: Path


def plan(scenario: Scenario, out: Path, seeds: int = 1, only: Iterable[str] = ()) -> list[Entry]:
    """The runs of a comparison; CompareError if the scenario lists no methods, or `only` names one that it lacks."""
    if scenario.compare is None:
        raise CompareError(
            f"{scenario.name} lists no methods: give it `compare: {{methods: {{label: {{kind: ...}}}}}}`"
        )
    methods = scenario.compare.methods
    if unknown := [label for label in only if label not in methods]:
        raise CompareError(f"no method of {scenario.name} is labelled {unknown[0]!r} (there are: {', '.join(methods)})")
    entries = []
    for label in only or methods:
        for seed in range(scenario.seed, scenario.seed + seeds):
            changed = scenario.model_copy(update={"method": methods[label], "compare": None, "seed": seed})
            entries.append(Entry(label, changed, out / f"{label}-seed{seed}"))
    return entries


def is_done(entry: Entry) -> bool:
    """Whether the folder already holds a finished run of exactly this scenario."""
    manifest = read_manifest(entry.folder)
    return manifest.get("status") == "finished" and manifest.get("scenario_digest") == digest(resolved(entry.scenario))


def run_all(
    entries: list[Entry], folder: Path, dry: bool, processes: int, on_done: Callable[[Entry, int, int], None]
) -> None:
    """Run what is not done yet, in so many processes; an interrupted comparison goes on where it stopped."""
    missing = [entry for entry in entries if not is_done(entry)]
    done = len(entries) - len(missing)
    if processes <= 1 or len(missing) <= 1:
        for entry in missing:
            _run_one(entry, folder, dry)
            done += 1
            on_done(entry, done, len(entries))
        return
    spawn = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(min(processes, len(missing)), mp_context=spawn) as pool:
        pending = {pool.submit(_run_one, entry, folder, dry): entry for entry in missing}
        try:
            for future in as_completed(pending):
                future.result()
                done += 1
                on_done(pending[future], done, len(entries))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(entry: Entry, folder: Path, dry: bool) -> None:
    import shutil

    from sim.runner import run_scenario

    if entry.folder.exists():
        shutil.rmtree(entry.folder)  # of another scenario, or unfinished
    run_scenario(entry.scenario, entry.folder, folder, dry, workers=1, figures=False)


# --- the table

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
REDUCED = ("time_s", "flop", "communication_bytes", "peak_memory_bytes", "energy_j")


def converged_at_s(run: Run) -> float | None:
    """The first time within half a point of the run's own best accuracy; None without any accuracy."""
    time_s, accuracy = run.curve("accuracy")
    if not len(accuracy):
        return None
    return float(time_s[np.argmax(accuracy >= accuracy.max() - CONVERGED_WITHIN)])


def costs_until(run: Run, until_s: float) -> dict[str, float]:
    """Mean costs a device of everything that had ended by a moment, and the whole fleet's wasted bytes."""
    spans, devices = run.spans(), len(run.devices())
    spans = spans.filter(pc.less_equal(spans["end_s"], until_s))
    of_devices = spans.filter(pc.starts_with(spans["actor"], "device-"))

    def total(kind: str | None, name: str) -> float:
        chosen = of_devices if kind is None else of_devices.filter(pc.equal(of_devices["kind"], kind))
        return float(np.sum(chosen[name].to_numpy())) if len(chosen) else 0.0

    waits = of_devices.filter(pc.equal(of_devices["kind"], "wait"))
    waiting_s = float(np.sum(waits["end_s"].to_numpy() - waits["start_s"].to_numpy())) if len(waits) else 0.0
    up, down = total("upload", "nbytes"), total("download", "nbytes")
    failed = of_devices.filter(
        pc.and_(pc.is_in(of_devices["kind"], _array("upload", "download")), pc.not_equal(of_devices["outcome"], "ok"))
    )
    peak = run.devices()["peak_memory_bytes"].to_numpy()
    return {
        "time_s": until_s,
        "flop": total("compute", "flop") / devices,
        "uplink_bytes": up / devices,
        "downlink_bytes": down / devices,
        "communication_bytes": (up + down) / devices,
        "peak_memory_bytes": float(peak.mean()) if len(peak) else 0.0,
        "energy_j": total(None, "joules") / devices,
        "waiting_s": waiting_s / devices,
        "wasted_bytes": float(np.sum(failed["nbytes"].to_numpy())) if len(failed) else 0.0,
        "updates": _at(run, "updates", until_s),
    }


def _array(*values: str):
    import pyarrow as pa

    return pa.array(values)


def _at(run: Run, name: str, until_s: float) -> float:
    time_s, value = run.curve(name)
    before = value[time_s <= until_s]
    return float(before[-1]) if len(before) else 0.0


def rows(entries: list[Entry], protocol: str, target: float | None = None) -> list[dict[str, Any]]:
    """One row a method: means over its seeds, and half-widths (`..._pm`) of 95 % intervals where there are several.

    `protocol` is "own" (up to the end of its own convergence) or "target" (up to the common target). A method of which
    some seed does not reach the moment has None in its costs.
    """
    table = []
    for label in dict.fromkeys(entry.label for entry in entries):
        runs = [open_run(entry.folder) for entry in entries if entry.label == label]
        each = [_row(run, protocol, target) for run in runs]
        row: dict[str, Any] = {"method": label, "kind": runs[0].method, "seeds": len(runs)}
        for name in COLUMNS:
            values = [r.get(name) for r in each]
            row[name], row[f"{name}_pm"] = _interval(values)
        row["by_backbone"] = {
            b: float(np.mean([r.summary["by_backbone"][b] for r in runs])) for b in runs[0].summary["by_backbone"]
        }
        row["reached"] = sum(r["time_s"] is not None for r in each)
        table.append(row)
    return table


def _row(run: Run, protocol: str, target: float | None) -> dict[str, Any]:
    accuracies = {"final": run.summary["final"], "best": run.summary["best"]}
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
    if any(value is None for value in values):
        return None, None
    if len(values) == 1:
        return float(values[0]), None
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


def reductions(
    table: list[dict[str, Any]], ours: str, baselines: Iterable[str] | None = None
) -> dict[str, dict[str, Any]]:
    """How much less our method needs than the best baseline (default: any other method), column by column."""
    mine = next((row for row in table if row["method"] == ours), None)
    if mine is None:
        raise CompareError(f"the table has no method labelled {ours!r}")
    found = {}
    for name in REDUCED:
        others = [
            row
            for row in table
            if row["method"] != ours and row[name] is not None and (baselines is None or row["method"] in baselines)
        ]
        if mine[name] is None or not others:
            continue
        best = min(others, key=lambda row: row[name])
        factor = best[name] / mine[name] if mine[name] else math.inf
        found[name] = {"ours": mine[name], "best_other": best[name], "of": best["method"], "factor": factor}
        found[name]["reduction"] = 1 - 1 / factor if factor else -math.inf
    return found


# --- what is written


def write_csv(table: list[dict[str, Any]], path: Path, reference: str | None) -> None:
    """Every number of the table, in SI units, and each as a ratio to the reference method."""
    base = next((row for row in table if row["method"] == reference), None)
    names = [n for c in COLUMNS for n in (c, f"{c}_pm", *([f"{c}_ratio"] if base else []))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["method", "kind", "seeds", "reached", *names], extrasaction="ignore")
        writer.writeheader()
        for row in table:
            ratios = {f"{c}_ratio": _ratio(row[c], base[c]) for c in COLUMNS} if base else {}
            writer.writerow({**row, **ratios})


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def shown(table: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Rows for people: the method and its cells in the order of COLUMNS."""
    for row in table:
        yield row["method"], [_cell(name, row[name], row[f"{name}_pm"]) for name in COLUMNS]


def _cell(name: str, value: float | None, pm: float | None) -> str:
    from sim.units import format_bytes, format_seconds, format_si

    if value is None:
        return "–" if name in ("final", "best") else "not reached"
    if name in ("final", "best"):
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
        head = ["method", *COLUMNS.values()]
        lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join([name, *cells]) + " |" for name, cells in shown(table)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def latex(tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """The tables as LaTeX tabulars (booktabs)."""
    parts = []
    for title, table in tables.items():
        head = " & ".join(["method", *COLUMNS.values()])
        body = [" & ".join(_escaped(c) for c in [name, *cells]) + r" \\" for name, cells in shown(table)]
        spec = "l" + "r" * len(COLUMNS)
        lines = [f"% {title}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head + r" \\", r"\midrule", *body]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for plain, tex in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$"), ("µ", r"\textmu{}")):
        text = text.replace(plain, tex)
    return text
