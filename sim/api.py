"""What Python code of a user's calls, and `mobifleet` passes on: load a scenario, check it, run it,
compare methods on it.

The command line does the same things with the same words; here what it prints are values, and only
progress is shown, on the standard error stream, once something takes over two seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from learning.host_device import HostDevice
from sim.kernel.host import AUTO
from sim.scenario import SCENARIOS, file, partitions, registry
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError
from sim.scenario.own_code import in_own_code
from sim.scenario.schema import Scenario

if TYPE_CHECKING:
    from pandas import DataFrame

    from learning.data.texts import TextDataset
    from sim.cli.answer import Answer
    from sim.compare.verb import Comparison
    from sim.results.run import Run

Source = Scenario | str | os.PathLike[str] | Mapping[str, Any]
"""What may be given as a scenario: a loaded one, a path or name, or what YAML would give."""

PATIENCE_S = 2.0  # what is over sooner shows no progress


def load(
    scenario: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] = (),
    seed: int | None = None,
    allow_code: bool = False,
) -> Scenario:
    """A scenario of one's own by its path, a shipped one by its name, or a dict as YAML would give
    it, checked as `mobifleet check` checks it.

    `overrides` change single values, as `--set` does: a mapping of dotted paths, or texts such as
    `"stop.target=0.75"`. What comes back is frozen, knows its folder (`scenario.folder`), and goes
    to `run`, `check` and `compare`; paths in a dict start in the working directory. `allow_code`
    lets the scenario name a method or a partition in a file or module of its own
    (`kind: my_file.py:MyMethod`), whose code is run. Raises ScenarioError with every mistake and
    its place.

        scenario = mobifleet.load("my_study.yaml", {"stop.target": 0.75, "fleet.0.count": 20})
    """
    changes = (
        [_as_text(*pair) for pair in overrides.items()]
        if isinstance(overrides, Mapping)
        else [overrides]
        if isinstance(overrides, str)
        else [*overrides]
    )
    changes += [f"seed={seed}"] if seed is not None else []
    folder = folder_of(scenario)
    check = partial(problems, folder=folder)

    def before(plain: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for kind in (registry, partitions):
            yield from kind.register_named(plain, folder, allow_code)

    with in_own_code():
        loaded = file.load(scenario, Scenario, changes, [SCENARIOS], check, before)
    loaded._folder = folder
    return loaded


def folder_of(scenario: str | os.PathLike[str] | Mapping[str, Any]) -> Path:
    """Where a scenario's relative paths start: its file's folder, or that of the shipped ones; of
    what is no file the working directory.
    """
    if not isinstance(scenario, str | os.PathLike):
        return Path()
    for path in (Path(f"{os.fspath(scenario)}{suffix}") for suffix in file.SUFFIXES):
        if os.path.isfile(path):  # False for a name that is too long, too
            return path.parent
    return SCENARIOS


def _as_text(key: str, value: Any) -> str:
    try:
        text = json.dumps(value, allow_nan=False, default=file.plain)
        return f"{key}={text}"  # JSON is YAML, too
    except (TypeError, ValueError) as error:
        raise ScenarioError([f"override {key!r}: {error}"]) from None


def run(
    scenario: Source,
    *,
    out: str | os.PathLike[str] | None = None,
    dry: bool = False,
    resume: bool = False,
    workers: int | str = AUTO,
    figures: bool = True,
    quiet: bool = False,
    texts: TextDataset | None = None,
    host: str = "cpu",
    precision: str = "float32",
) -> Run:
    """Run a scenario and return the finished run: its summary, its tables, its folder.

    `scenario` is what `load` gave, or what `load` takes. The run directory is `out`, or a fresh
    `runs/<name>`; `dry` leaves the learning out (timing, bytes, FLOP and joules alone); `resume`
    goes on with the unfinished run of this scenario; `workers`, a number, "auto" or "ray", moves
    the host's time only, and so does `host`, the torch device of the learning ("cpu", "cuda" or
    "mps"; `precision` "bfloat16" is faster and coarser); `texts` takes the place of the
    scenario's data set. `quiet` silences progress and notes; the notes are in
    `run.summary["remarks"]`. Ctrl-C
    ends it in good order and raises Interrupted; ValueErrors of mobifleet's say what stands against
    the scenario.

        run = mobifleet.run("quickstart", dry=True)
        run.summary["virtual_time_s"], run.devices().to_pandas()
    """
    from sim.cli.live import LiveView
    from sim.runner import run_scenario

    scenario, place = _loaded(scenario), Path(out) if out is not None else None
    console = _console(quiet)
    with LiveView(console, quiet, patience_s=PATIENCE_S) as view:
        done = run_scenario(
            scenario,
            place,
            scenario.folder,
            dry,
            resume,
            workers,
            view.callbacks,
            figures,
            view.stage,
            texts,
            HostDevice(host, precision),
        )
    for remark in done.summary.get("remarks", ()):
        console.print(f"note: {remark}", style="yellow")
    return done


def check(scenario: Source) -> Answer:
    """What a scenario was read as, who holds what and what it will take, without learning anything.

    The answer has `facts` (name, what) and `remarks`; printed, it is what `mobifleet check` shows.
    Raises what `run`, and `compare` of a scenario that lists methods, would raise before a clock
    starts.

        print(mobifleet.check("my_study.yaml"))
    """
    from sim.cli.answer import answer

    scenario = _loaded(scenario)
    return answer(scenario, scenario.folder)


def compare(
    scenario: Source,
    *,
    out: str | os.PathLike[str] | None = None,
    methods: Iterable[str] = (),
    seeds: int | None = None,
    dry: bool = False,
    tune: bool = True,
    processes: int | Literal["ray"] = 1,
    quiet: bool = False,
    host: str = "cpu",
    precision: str = "float32",
    attacks: str = "none",
) -> Comparison:
    """Run the methods that a scenario lists under `compare` and return their tables, as `mobifleet
    compare` does.

    What comes back has `frames` (title of a table -> pandas.DataFrame, one row a method),
    `reductions` and the `folder`, which is `out` or `runs/<name>-compare`; finished runs in it are
    kept. `methods` chooses labels, `seeds` repeats (default: as the scenario says, or once);
    `host` and `precision` are those of `run`, `attacks` ("labels", "texts", "model", "all") those
    of `mobifleet privacy`, which then have columns. With `processes="ray"` runs are made on a Ray
    cluster; with more than one, a script has to start under `if __name__ == "__main__":`, for each
    process imports it again.

        comparison = mobifleet.compare("table1_small", dry=True)
        next(iter(comparison.frames.values()))[["time_s", "uplink_bytes"]]
    """
    from sim.compare.runs import compare_of
    from sim.compare.verb import compare_scenario

    scenario = _loaded(scenario)
    place = Path(out) if out is not None else Path("runs") / f"{scenario.name}-compare"
    return compare_scenario(
        scenario,
        scenario.folder,
        place,
        compare_of(scenario).seeds if seeds is None else seeds,
        [methods] if isinstance(methods, str) else [*methods],
        dry,
        processes,
        _console(quiet),
        tune,
        HostDevice(host, precision),
        attacks=attacks,
    )


def sweep(
    scenario: Source,
    grid: Mapping[str, Iterable[Any]] | None = None,
    *,
    methods: Iterable[str] = (),
    seeds: int = 1,
    out: str | os.PathLike[str] | None = None,
    dry: bool = False,
    workers: int | Literal["ray"] = 1,
    quiet: bool = False,
    host: str = "cpu",
    precision: str = "float32",
    attacks: str = "none",
) -> DataFrame:
    """Run a scenario at every combination of the grid's values, methods and seeds and return the
    long table, one row a run, as `mobifleet sweep` writes it.

    `grid` maps dotted paths to values, `methods` are labels of `compare.methods` or kinds (default:
    the scenario's own method). Runs lie in `out` or `runs/<name>-sweep`; finished ones are kept,
    failed ones tried again: a row says so under `status` and `error`. `attacks` are those of
    `compare`. With `workers="ray"` runs
    are made on a Ray cluster; with more than one, a script has to start under `if __name__ ==
    "__main__":`, for each process imports it again.

        frame = mobifleet.sweep("quickstart", {"method.replay": [5, 20]}, seeds=3, dry=True)
        frame.groupby("method.replay")["virtual_time_s"].mean()
    """
    from sim.sweep.grid import plain_grid
    from sim.sweep.verb import sweep_scenario

    scenario = _loaded(scenario)
    place = Path(out) if out is not None else Path("runs") / f"{scenario.name}-sweep"
    console = _console(quiet)
    made = sweep_scenario(
        scenario,
        scenario.folder,
        place,
        plain_grid(grid or {}),
        [methods] if isinstance(methods, str) else [*methods],
        seeds,
        dry,
        workers,
        console,
        HostDevice(host, precision),
        attacks,
    )
    for sentence in made.notes:
        console.print(f"note: {sentence}", style="yellow")
    return made.frame


def _loaded(scenario: Source) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else load(scenario)


def _console(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet, soft_wrap=True, markup=False, emoji=False)
