"""`mobifleet run`: a scenario to its end, and what it came to as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from learning.host_device import HostDevice
from sim.cli.faults import UserError
from sim.cli.options import AllowCode, Dry, HostName, Overrides, Precision, ScenarioName, Seed
from sim.cli.terminal import console, errors, show_remarks


def run(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default a fresh runs/NAME.")
    ] = None,
    dry: Dry = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run of this scenario.")
    ] = False,
    workers: Annotated[
        str,
        typer.Option(help="Host workers: a number, `auto`, or `ray`. Results do not depend on it."),
    ] = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, only the final table.")
    ] = False,
    figures: Annotated[bool, typer.Option(help="Draw the figures at the end.")] = True,
    host: HostName = "cpu",
    precision: Precision = "float32",
) -> None:
    """Run a scenario and leave a run directory.

    Examples:

        mobifleet run quickstart

        mobifleet run quickstart --seed 1 --set stop.target=0.75 --out runs/seed1

        mobifleet run ten_thousand --dry
    """
    from sim.api import load
    from sim.cli.live import LiveView
    from sim.results.run_directory import newest_unfinished
    from sim.runner import run_scenario
    from sim.simulation import Interrupted

    chosen = load(scenario, overrides or (), seed, allow_code)
    if not (resume or out or dry) and (left := newest_unfinished(chosen)) is not None:
        errors.print(
            f"note: {left} holds an unfinished run of this scenario: --resume goes on with it"
        )
    with LiveView(console, quiet) as view:
        try:
            done = run_scenario(
                chosen,
                out,
                chosen.folder,
                dry,
                resume,
                _workers(workers),
                view.callbacks,
                figures,
                view.stage,
                host=HostDevice(host, precision),
            )
        except Interrupted as stopped:
            if stopped.run is not None:
                _show_summary(stopped.run)
            errors.print(f"interrupted: {stopped}")
            raise typer.Exit(130) from None
    _show_summary(done)


def _workers(text: str) -> int | str:
    import re

    if text in ("auto", "ray"):
        return text
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) < 1:
        raise UserError(f"--workers: a number from 1, auto or ray (got {text!r})")
    return int(text)


def _show_summary(done) -> None:
    from inputs.units import format_bytes, format_seconds, format_si
    from sim.views.terminal_tables import show

    s = done.summary
    table = Table(
        title=done.title, title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    table.add_column(no_wrap=True)
    table.add_column()
    row = table.add_row
    row("ended", f"{s['ended']}, after {format_seconds(s['virtual_time_s'])} of virtual time")
    if not s["dry"]:
        row(done.metric, _score(s) + _before(done) + _looked_at(done))
        if (each := s.get("accuracy_by_device") or {}).get("mean") is not None:
            row("accuracy by device", _spread(each))
    for name, one in (s.get("generations") or {}).items():
        row(f"replies of {name}", _nearness(one))
    asked = done.manifest["scenario"]["task"].get("device_replies")
    if asked:
        since_s = s["trained_at_s"]  # None where each device ends by itself
        took = "" if since_s is None else f" over {format_seconds(s['virtual_time_s'] - since_s)}"
        row("replies of devices", f"{asked} of each{took} after training, counted below")
    if s["target"]["value"] is not None:
        at = s["target"]["reached_at_s"]
        reached = f"reached after {format_seconds(at)}" if at is not None else "not reached"
        row("target", f"{s['target']['value']}: {reached}")
    totals, each = s["totals"], s["per_device"]
    row("devices", ", ".join(f"{count} {name}" for name, count in sorted(s["outcomes"].items())))
    row(
        "uplink",
        f"{format_bytes(totals['uplink_bytes'])}, {format_bytes(each['uplink_bytes']['mean'])} a "
        "device",
    )
    row(
        "downlink",
        f"{format_bytes(totals['downlink_bytes'])}, {format_bytes(each['downlink_bytes']['mean'])} "
        "a device",
    )
    row(
        "device compute",
        f"{format_si(totals['device_flop'], 'FLOP')}, {format_si(each['flop']['mean'], 'FLOP')} a "
        "device",
    )
    row(
        "device energy",
        f"{format_si(totals['device_energy_j'], 'J')}, {format_si(each['energy_j']['mean'], 'J')} "
        "a device",
    )
    row(
        "device memory",
        f"{format_bytes(each['peak_memory_bytes']['mean'])} (largest "
        f"{format_bytes(each['peak_memory_bytes']['max'])})",
    )
    rounds = f" in {s['rounds']} rounds" if s.get("rounds") else ""
    row(
        "server",
        f"{totals['updates']} updates{rounds}, busy {format_seconds(totals['server_busy_s'])}",
    )
    if taps := s.get("taps"):
        row(
            "sampled layers",
            "; ".join(f"{name}: {', '.join(map(str, layers))}" for name, layers in taps.items()),
        )
    if s["costed_as"]:
        charged = Text.assemble(
            (s["costed_as"], "yellow"), " (time, bytes, FLOP and joules are that architecture's)"
        )
        row("costed as", charged)
    if s["dry"]:
        row("dry run", Text("nothing learned", "yellow"))
    workers = f", {s['host']['workers']}" if "workers" in s["host"] and not s["dry"] else ""
    row(
        "host",
        f"{s['host']['wall_s']:.1f} s, {s['host']['events']:,} events, "
        f"{format_bytes(s['host']['peak_rss_bytes'])}{workers}",
    )
    if spent := s["host"].get("seconds"):
        together = " (of all workers)" if spent["torch"] > s["host"]["wall_s"] else ""
        row(
            "time went to",
            ", ".join(
                f"{what} {took:.1f} s{together if what == 'torch' else ''}"
                for what, took in spent.items()
            ),
        )
    if recalled := s["host"].get("pieces_recalled"):
        row(
            "resumed",
            f"{recalled} of {s['host']['pieces_of_learning']} pieces of learning from the "
            "interrupted run",
        )
    row("digest", s["digest"][:16])
    row("written to", str(done.path))
    show(table, console)
    _show_replies(done.path)
    show_remarks(s.get("remarks", []))


def _nearness(one) -> str:
    """ROUGE-L and exact matches of a backbone's replies, before and after."""
    parts = []
    for key, name in (("rouge_l", "ROUGE-L"), ("exact_match", "exact")):
        before, after = one["before"][key], one["after"][key]
        if after is not None:
            parts.append(f"{name} {before:.3f} to {after:.3f}")
    if one["after"]["rouge_l"] is None:
        parts.append("ROUGE-L by `pip install 'mobifleet[models]'`")
    return f"{', '.join(parts)} ({one['prompts']} prompts)"


def _show_replies(folder) -> None:
    """Three prompts with what was said, and what the models say, before and after."""
    from inputs.files import read_json
    from sim.results.generations import GENERATIONS
    from sim.views.terminal_tables import show

    if not (folder / GENERATIONS).is_file():
        return
    for backbone, said in read_json(folder / GENERATIONS)["replies"].items():
        table = Table(title=f"what {backbone} says", title_justify="left", box=None)
        for heading in _SAID:
            table.add_column(heading, ratio=1)
        for one in said[:_SHOWN]:
            table.add_row(*(Text(_short(one[heading])) for heading in _SAID))
        show(table, console)


_SAID = ("prompt", "reference", "before", "after")
_SHOWN, _MOST_LETTERS = 3, 160


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."


def _spread(each) -> str:
    parts = (f"{name} {each[key]:.3f}" for name, key in _SPREAD.items())
    return f"{', '.join(parts)} (each on its own mix of classes)"


_SPREAD = {"mean": "mean", "10th percentile": "p10", "worst": "worst", "best": "best"}


def _before(done) -> str:
    """Where a perplexity came from."""
    time_s, perplexity = done.curve("perplexity")
    if done.metric != "perplexity" or not len(time_s) or time_s[0] > 0:
        return ""
    from inputs.units import format_score

    return f", untrained {format_score(perplexity[0])}"


def _looked_at(done) -> str:
    """When the score of a run that was interrupted was last looked at, if it has gone on since."""
    time_s, _ = done.curve(done.metric)
    end_s = done.summary["virtual_time_s"]
    if done.summary["ended"] != "interrupted" or not len(time_s) or time_s[-1] >= end_s:
        return ""
    from inputs.units import format_seconds

    return f", last looked at after {format_seconds(time_s[-1])}"


def _score(s) -> str:
    from inputs.units import format_score

    if s["final"] is not None:
        parts = ", ".join(
            f"{name} {format_score(value)}"
            for name, value in s["by_backbone"].items()
            if value is not None
        )
        return f"{format_score(s['final'])} (best {format_score(s['best'])}; {parts})"
    best = f" (best before {format_score(s['best'])})" if s["best"] is not None else ""
    if s.get("diverged"):
        return "diverged" + best
    why = (
        "nothing was trained" if not s["totals"]["updates"] else "nobody looked at what was trained"
    )
    return f"none: {why}" + best
