"""A run's folder has one writer at a time, and what stands in the way of a run leaves a folder that
can be used again.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from learning.backbones import assets
from learning.host_device import HostDevice
from sim.compare.planned_run import PlannedRun
from sim.kernel.journal import Journal
from sim.results.run import RunError, open_run
from sim.results.run_directory import (
    LOCK,
    RunDirectoryError,
    folder_to_resume,
    held,
    is_held,
    new_folder,
)
from sim.runner import STOPPING, run_scenario
from sim.scenario.checks import problems
from sim.scenario.file import load
from sim.scenario.named_files import digests
from sim.scenario.schema import Scenario
from sim.simulation import Interrupted, RunCallbacks, Simulation
from sim.sweep.engine import run_all
from sim.sweep.planned_run import SweepError

PLAIN = ("--quiet", "--no-figures", "--workers", "1")
HOLD = """
import sys, time
from pathlib import Path
from sim.results.run_directory import held
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
with held(folder):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def scenario(scenario_file) -> Scenario:
    return load(str(scenario_file()), Scenario, [], [], problems)


@pytest.fixture
def holder(shell, tmp_path):
    """Another process that holds tmp_path/run, until the test ends."""
    process = shell("-c", HOLD, tmp_path / "run")
    assert process.stdout.readline() == "held\n", process.communicate()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("argv", [("run",), ("run", "--resume"), ("run", "--dry")])
def test_a_folder_that_another_process_writes_is_refused_by_its_name(
    argv, holder, mobifleet, scenario_file, tmp_path
):
    verb, *more = argv
    outcome = mobifleet(verb, scenario_file(), "--out", "run", *more, *PLAIN)
    assert outcome.code == 2
    assert f"is being written by process {holder.pid} on " in outcome.err
    assert "started 2" in outcome.err
    assert "name another --out" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_compare_and_validate_hold_their_folders_too(holder, mobifleet, scenario_file):
    compare = {"methods": {"ours": {"kind": "fed-mobillm"}}}
    for verb in ("compare", "validate"):
        outcome = mobifleet(verb, scenario_file(compare=compare), "--out", "run")
        assert (outcome.code, f"process {holder.pid}" in outcome.err) == (2, True), outcome.err


def test_a_lock_dies_with_its_process(holder, mobifleet, scenario_file, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / LOCK).is_file()
    assert not is_held(tmp_path / "run")
    assert mobifleet("run", scenario_file(), "--dry", "--out", "run", *PLAIN).code == 0
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.thorough
def test_two_processes_that_begin_at_once_never_share_a_folder(tmp_path, scenario_file, shell):
    scenario_file()
    start = "from sim.cli import main as cli; cli.main()"
    runs = [
        shell("-c", start, "run", "tiny.yaml", "--dry", "--out", "run", *PLAIN) for _ in range(4)
    ]
    codes = []
    for process in runs:
        _, errors = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert (
            process.returncode == 0 or "is being written by" in errors or "is not empty" in errors
        )
        assert "Traceback" not in errors
    assert codes.count(0) == 1
    assert open_run(tmp_path / "run").manifest["status"] == "finished"


def test_numbered_folders_are_each_given_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def take(_: int) -> str:
        with new_folder("study", None) as folder:
            (folder / "result").touch()
            return folder.name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(take, range(24)))
    assert len(set(names)) == 24


def test_a_folder_in_which_nothing_happened_goes_again_unless_it_was_there(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with new_folder("study", tmp_path / name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("left", [(LOCK,), (LOCK, "manifest.json.tmp")])
@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_kill_before_the_first_manifest_blocks_nothing(
    left, more, mobifleet, scenario_file, tmp_path
):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text('{"scen')
    assert mobifleet("run", scenario_file(), "--dry", "--out", "run", *more, *PLAIN).code == 0
    assert open_run(tmp_path / "run").manifest["status"] == "finished"


KILLED_AT_THE_MANIFEST = """
import os, signal, sys
from sim.cli import main as cli
from sim.kernel import writing
def dump(data, file, **how):
    file.write("{")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
writing.json.dump = dump
cli.main()
"""


def test_a_real_kill_in_the_first_manifest_blocks_nothing(
    shell, mobifleet, scenario_file, tmp_path
):
    path = scenario_file()
    process = shell("-c", KILLED_AT_THE_MANIFEST, "run", path, "--dry", "--out", "run", *PLAIN)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert {file.name for file in (tmp_path / "run").iterdir()} == {LOCK, "manifest.json.tmp"}
    assert mobifleet("run", path, "--dry", "--out", "run", *PLAIN).code == 0


def test_a_comparison_recovers_what_a_kill_left_of_its_runs(scenario, tmp_path):
    entry = PlannedRun("ours", scenario, tmp_path / "ours-seed0")
    (tmp_path / "ours-seed0").mkdir()
    (tmp_path / "ours-seed0" / LOCK).touch()
    run_all([entry], tmp_path, True, 1, lambda *_: None)
    assert open_run(entry.folder).manifest["status"] == "finished"


def test_a_comparison_leaves_a_strangers_folder_alone(scenario, tmp_path):
    (tmp_path / "ours-seed0").mkdir()
    (tmp_path / "ours-seed0" / "thesis.txt").write_text("years of work")
    with pytest.raises(SweepError, match="holds what is no run"):
        run_all(
            [PlannedRun("ours", scenario, tmp_path / "ours-seed0")],
            tmp_path,
            True,
            1,
            lambda *_: None,
        )
    assert [path.name for path in (tmp_path / "ours-seed0").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"scenario": 1}', '{"status": []}', "{" * 50_000, "\x00\xff"]
)
def test_a_damaged_or_foreign_manifest_is_one_line(content, mobifleet, scenario_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(content)
    for more in (("--resume",), ()):
        outcome = mobifleet("run", scenario_file(), "--dry", "--out", "run", *more, *PLAIN)
        assert outcome.code == 2
        assert "run" in outcome.err
        assert "Traceback" not in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_of_two_unfinished_runs_the_one_that_is_not_running_is_resumed(
    scenario, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "tiny-2"):
        with pytest.raises(Interrupted):
            run_scenario(
                scenario, tmp_path / "runs" / name, tmp_path, dry=True, callbacks=stopping_at_once()
            )
    with (
        held(tmp_path / "runs" / "tiny-2"),
        folder_to_resume(scenario, None, digests(scenario, tmp_path)) as folder,
    ):
        assert folder.name == "tiny"


# --- told to stop


def stopping_at_once() -> RunCallbacks:
    """Asks this process to stop as soon as the clock runs."""
    asked = []

    def look(sim: Simulation) -> None:
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    return RunCallbacks(on_progress=look)


SWEEP = """
import sys
from pathlib import Path
from sim.runner import run_scenario
from sim.scenario.schema import Scenario
from sim.scenario.checks import problems
from sim.scenario.file import load
from sim.simulation import Simulation
run = Simulation.run
def told(self):
    print("running", flush=True)
    return run(self)
Simulation.run = told
for seed in range(200):
    scenario = load("tiny.yaml", Scenario, [f"seed={seed}", "method.replay=200"], [], problems)
    run_scenario(scenario, Path(f"seed{seed}"), workers=1, figures=False)
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_loop_of_runs_after_writing_the_one_that_it_met(
    number, shell, scenario_file, tmp_path
):
    scenario_file()
    process = shell("-c", SWEEP)
    assert process.stdout.readline() == "running\n", process.communicate()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors or "Interrupted" in errors
    (folder,) = [path for path in tmp_path.iterdir() if path.name.startswith("seed")]
    assert open_run(folder).manifest["status"] == "interrupted"


def test_the_exception_carries_what_was_written(scenario, tmp_path):
    stages: list[str] = []
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_scenario(
            *(scenario, tmp_path / "run", tmp_path),
            dry=True,
            callbacks=stopping_at_once(),
            on_stage=stages.append,
        )
    assert stopped.value.run.summary["ended"] == "interrupted"
    assert str(stopped.value).endswith("`--resume` begins a dry run anew")
    assert stages.count(STOPPING) == 1 and stages.index(STOPPING) < stages.index("writing")


def test_who_is_killed_is_not_waited_for(scenario, tmp_path):
    run_scenario(scenario, tmp_path / "run", tmp_path, dry=True, figures=False)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert open_run(tmp_path / "run").title.endswith(" · killed")  # as it was to say so
    with held(tmp_path / "run"):
        assert open_run(tmp_path / "run").title.endswith(" · running")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(RunError, match=r"status: killed; no summary.*--resume"):
        open_run(tmp_path / "run")
    with held(tmp_path / "run"), pytest.raises(RunError, match=r"running.*wait for it to end"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("workers", [1, 2])
def test_where_the_time_went_is_told_of_the_clock_however_many_work(workers, scenario, tmp_path):
    run = run_scenario(scenario, tmp_path / "run", tmp_path, workers=workers, figures=False)
    spent, whole_s = run.summary["host"]["seconds"], run.summary["host"]["wall_s"]
    assert 0 < spent["events"] < 30 and spent["torch"] > 0
    assert sum(s for what, s in spent.items() if what != "torch") < whole_s  # figures among them


def test_a_second_ctrl_c_stops_at_once_and_leaves_what_can_be_resumed(scenario, tmp_path):
    def look(sim: Simulation) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run_scenario(
            scenario, tmp_path / "run", tmp_path, dry=True, callbacks=RunCallbacks(on_progress=look)
        )
    assert isinstance(stopped.value, Interrupted) and stopped.value.run is None
    assert str(stopped.value) == f"at once, in {tmp_path / 'run'}; `--resume` begins anew"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"
    assert (
        run_scenario(scenario, tmp_path / "run", tmp_path, dry=True, resume=True).manifest["status"]
        == "finished"
    )


@pytest.mark.parametrize("where", ["sim.views.plots.draw", "sim.kernel.journal.Journal.forget"])
def test_who_is_stopped_once_all_is_written_has_the_whole_run(
    where, scenario, tmp_path, monkeypatch
):
    def asked(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, asked)
    with pytest.raises(Interrupted, match="the whole run, but for figures: `mobifleet plot`"):
        run_scenario(scenario, tmp_path / "run", tmp_path, dry=True)
    monkeypatch.undo()
    left = open_run(tmp_path / "run")
    assert left.manifest["status"] == "finished"
    again = run_scenario(scenario, tmp_path / "again", tmp_path, dry=True)
    assert left.summary["digest"] == again.summary["digest"]


def test_who_is_stopped_before_the_clock_begins_simulates_nothing(scenario, tmp_path, monkeypatch):
    build, stages = Simulation._devices, []

    def asked_meanwhile(sim, *what):
        os.kill(os.getpid(), signal.SIGINT)
        return build(sim, *what)

    monkeypatch.setattr(Simulation, "_devices", asked_meanwhile)
    with pytest.raises(Interrupted, match="before the clock began; `--resume` goes on") as stopped:
        run_scenario(
            scenario, tmp_path / "run", tmp_path, dry=True, on_stage=stages.append, figures=False
        )
    assert stopped.value.run is None and stages == ["preparing", STOPPING]
    monkeypatch.undo()
    done = run_scenario(scenario, tmp_path / "run", tmp_path, dry=True, resume=True, figures=False)
    assert done.manifest["status"] == "finished"


# --- a full disk, at every stage

STAGES = {
    "manifest": ("sim.kernel.writing.json.dump", "nothing"),
    "checkpoint": ("sim.kernel.checkpoint.save_file", "failed"),
    "tables": ("sim.kernel.writing.pq.write_table", "failed"),
    "model": ("sim.methods.side_tuning.learner.SideTuningLearner.save", "failed"),
    "summary": ("sim.kernel.writing.json.dump", "failed"),
    "timeline": ("sim.views.timeline.TraceWriter.track", "finished"),
    "figures": ("matplotlib.figure.Figure.savefig", "finished"),
}
dump = json.dump


def a_full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def full_at_the_summary(data, file, **how):
    return a_full_disk() if "summary" in file.name else dump(data, file, **how)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_with_the_path_and_the_run_is_marked_as_it_stands(
    stage, mobifleet, scenario_file, tmp_path, monkeypatch
):
    path, (writer, status) = scenario_file(), STAGES[stage]
    with monkeypatch.context() as patch:
        patch.setattr(writer, full_at_the_summary if stage == "summary" else a_full_disk)
        patch.setattr(
            "sim.runner.Journal", functools.partial(Journal, seconds_between_checkpoints=0)
        )
        outcome = mobifleet("run", path, "--out", "run", "--quiet", "--workers", "1")
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert "run/" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    if status == "nothing":
        assert not (tmp_path / "run").exists()
        return
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == status
    assert not list((tmp_path / "run").rglob("*.tmp"))
    if status == "finished":
        assert open_run(tmp_path / "run").summary["final"] is not None
    else:
        with pytest.raises(RunError, match="--resume"):
            open_run(tmp_path / "run")
        assert mobifleet("run", path, "--out", "run", "--resume", *PLAIN).code == 0


LIMITED = """
import resource, sys
from sim.cli import main as cli
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
cli.main()
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    "limit", [1_000, 5_000, 12_900]
)  # the manifest, a table, the model (or a checkpoint)
def test_files_that_may_not_grow_are_named(limit, mobifleet, shell, scenario_file, tmp_path):
    path = scenario_file()
    assert mobifleet("run", path, "--out", "before", *PLAIN).code == 0  # fills the cache
    process = shell("-c", LIMITED, limit, "run", path, "--out", "run", *PLAIN)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert f"run{os.sep}" in errors
    assert "cannot be written" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    if limit == 1_000:
        assert not (tmp_path / "run").exists()
    else:
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many bytes, e.g. "36k", at tmp_path/small; skips where that is not
    allowed.
    """
    small = tmp_path / "small"
    small.mkdir()

    def mount(size: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], capture_output=True
        )
        if done.returncode:
            pytest.skip("cannot mount a small disk here")
        return small

    yield mount
    subprocess.run(["umount", small], capture_output=True)


@pytest.mark.parametrize(
    ("stage", "size"), [("tables of a dry run", "24k"), ("tables", "24k"), ("model", "36k")]
)
def test_a_really_full_disk_marks_the_run_as_failed(
    stage, size, small_disk, mobifleet, scenario_file
):
    out = small_disk(size) / "run"
    outcome = mobifleet(
        "run", scenario_file(), *(["--dry"] if "dry" in stage else []), "--out", out, *PLAIN
    )
    assert outcome.code == 2
    assert f"{out}/" in outcome.err
    assert "No space left on device" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert json.loads((out / "manifest.json").read_text())["status"] == "failed"


# --- a cache that keeps nothing


@pytest.mark.parametrize("cache", ["a file", "no home", "full"])
def test_a_cache_that_keeps_nothing_is_told_of_once_and_the_run_goes_on(
    cache, mobifleet, scenario_file, tmp_path, small_disk, monkeypatch
):
    path = scenario_file()
    assert mobifleet("run", path, "--out", "usual", *PLAIN).code == 0
    (tmp_path / "file").write_text("")
    places = {
        "a file": lambda: tmp_path / "file" / "cache",
        "no home": lambda: "~nobody-of-this-name/cache",
    }
    monkeypatch.setenv("MOBIFLEET_CACHE", str(places.get(cache, lambda: small_disk("8k"))()))
    assets._homeless_cache.cache_clear()
    outcome = mobifleet("run", path, "--out", "run", *PLAIN)
    assert outcome.code == 0, outcome.err
    (remark,) = open_run(tmp_path / "run").summary["remarks"]
    assert "set MOBIFLEET_CACHE" in remark
    assert outcome.err.replace("\n", " ").count("note: ") == 1
    assert (
        open_run(tmp_path / "run").summary["digest"]
        == open_run(tmp_path / "usual").summary["digest"]
    )


# --- of a sweep or a comparison


@pytest.fixture
def swept(mobifleet, scenario_file, tmp_path):
    """A sweep of one run, as the command line leaves it, and the run's folder."""
    path = scenario_file()

    def run(*more):
        done = mobifleet("sweep", path, "--workers", 1, "--out", "out", *more)
        [folder] = (tmp_path / "out").glob("*seed0")
        return done, folder

    return run


@pytest.mark.parametrize(
    ("part", "keep"),
    [
        ("summary.json", 0.5),
        ("spans.parquet", 0.9),
        ("metrics.parquet", None),
        ("devices.parquet", 0),
    ],
)
def test_a_finished_run_that_is_damaged_is_made_again(swept, part, keep):
    done, folder = swept("--dry")
    assert done.code == 0, done.err
    whole = (folder / part).read_bytes()
    if keep is None:
        (folder / part).unlink()
    else:
        (folder / part).write_bytes(whole[: int(keep * len(whole))])
    done, _ = swept("--dry")
    assert done.code == 0, done.err
    assert "finished, but a file is missing or damaged: 1 run is made again" in done.out
    assert part == "summary.json" or (folder / part).read_bytes() == whole
    done, _ = swept("--dry")
    assert "again" not in done.out and "1 run, 1 of them finished" in done.out


def test_what_other_settings_replace_is_said_and_a_dry_run_replaces_nothing_learned(swept):
    done, folder = swept("--dry")
    done, _ = swept("--dry", "--set", "task.max_tokens=15")
    assert "of other settings before: 1 run is made again" in done.out
    done, _ = swept()
    assert "of other settings before: 1 run is made again" in done.out
    learned = (folder / "manifest.json").read_bytes()
    for more in ((), ("--set", "task.max_tokens=15")):
        done, _ = swept("--dry", *more)
        assert done.code == 2 and "has learned" in done.err and "another --out" in done.err
        assert "made again" not in done.out
    assert json.loads((folder.parent / "sweep.json").read_text())["dry"] is False
    assert (folder / "manifest.json").read_bytes() == learned
    assert "1 of them finished" in swept()[0].out

    manifest = json.loads(learned)  # one that was interrupted, with what it has learned
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    (folder / "checkpoint.safetensors").write_bytes(b"learned")
    assert "has learned" in swept("--dry")[0].err
    assert (folder / "checkpoint.safetensors").read_bytes() == b"learned"
    done, _ = swept("--set", "task.max_tokens=15")
    assert "of other settings before: 1 run is made again" in done.out


@pytest.mark.parametrize(
    "before", ["cpu, bfloat16", "cuda (NVIDIA H100 80GB HBM3, CUDA 13.0), float32"]
)
@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_what_was_computed_on_another_host_is_made_again(swept, before, status):
    done, folder = swept()
    assert done.code == 0, done.err
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["host"] == "cpu, float32"
    made = json.dumps({**manifest, "status": status, "host": before, "digest": "theirs"})
    (folder / "manifest.json").write_text(made)
    done, _ = swept()
    assert f"computed on {before} before: 1 run is made again" in " ".join(done.out.split())
    again = json.loads((folder / "manifest.json").read_text())
    assert (again["host"], again["digest"]) == (manifest["host"], manifest["digest"])
    assert "1 of them finished" in swept()[0].out


def test_host_and_precision_tell_what_was_computed_where():
    card = "cuda (NVIDIA A100-SXM4, 80GB, CUDA 12.4), bfloat16"
    assert HostDevice("cuda", "bfloat16").is_that_of(card)
    others = [HostDevice("cuda"), HostDevice("cpu", "bfloat16"), HostDevice("mps", "bfloat16")]
    assert not any(other.is_that_of(card) for other in others)
    assert HostDevice().is_that_of(HostDevice().describe())


@pytest.mark.parametrize("verb", ["sweep", "compare"])
@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_strangers_folder_stays_as_it_is_and_is_named(
    mobifleet, scenario_file, tmp_path, verb, name
):
    theirs = tmp_path / "out" / "fed-mobillm-seed0"
    theirs.mkdir(parents=True)
    (theirs / name).write_text("{")
    compare = {"methods": {"fed-mobillm": {"kind": "fed-mobillm"}}}
    done = mobifleet(verb, scenario_file(compare=compare), "--dry", "--out", "out")
    assert done.code == 2 and "fed-mobillm-seed0 holds what is no run" in done.err
    assert "or name another --out" in done.err and "--resume" not in done.err
    assert [(path.name, path.read_text()) for path in theirs.iterdir()] == [(name, "{")]


def test_a_folder_whose_run_was_killed_before_it_had_begun_is_used_again(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    left = json.dumps({"status": "running", "begun_at": "long ago"})
    (place / "manifest.json").write_text(left)
    with new_folder("run", place):
        assert not (place / "manifest.json").exists()
    (place / "manifest.json").write_text(left)
    with held(place), pytest.raises(RunDirectoryError), new_folder("run", place):
        pass
    (place / "journal.jsonl").write_text("")
    with pytest.raises(RunDirectoryError, match="--resume"), new_folder("run", place):
        pass
    assert (place / "manifest.json").read_text() == left


def test_resuming_is_advised_where_there_is_something_to_resume(tmp_path, scenario):
    place = tmp_path / "run"
    place.mkdir()
    for status in (None, "finished", "interrupted"):
        (place / "manifest.json").write_text(json.dumps({"status": status} if status else {}))
        with pytest.raises(RunDirectoryError) as refused, new_folder("run", place):
            pass
        assert ("--resume" in str(refused.value)) == (status == "interrupted")
