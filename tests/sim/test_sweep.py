"""The sweep: every combination in one table, the same whatever happened on the way to it."""

import csv
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

import mobifleet as door
from sim.results.run import open_run
from sim.results.run_directory import is_held
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.sweep import engine
from sim.sweep.effects import effects_of
from sim.sweep.engine import FAILED
from sim.sweep.grid import cells_of, folder_name, folder_of, grid_of, parts_of, planned
from sim.sweep.planned_run import SweepError
from sim.sweep.progress import left_s
from sim.sweep.table import table_of

LORA = {"kind": "fedavg-lora", "rounds": 2, "participation": 1.0, "device_batch": 8}
OURS = {"kind": "fed-mobillm", "replay": 5, "server_batch": 8, "device_batch": 4}
COMPARE = {"methods": {"ours": OURS, "lora": LORA}}
GRID = ("--grid", "task.train=30,60", "--grid", "server.ingress=1 Mbit/s,1 Gbit/s")
TABLES = ("sweep.csv", "sweep.parquet", "effects.csv", "curves.csv", "curves.parquet")
START = "from sim.cli import main as cli; cli.main()"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bytes_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


# --- what a user says


def test_values_are_yaml_and_commas_within_brackets_and_quotes_part_nothing():
    assert grid_of(["a.b=1,1e-3, true ,null,x y", "c=[1, 2],{d: 'e,f', g: [3, 4]}"]) == {
        "a.b": [1, 1e-3, True, None, "x y"],
        "c": [[1, 2], {"d": "e,f", "g": [3, 4]}],
    }
    assert grid_of(['a="1,5",it\'s,"[",\'=\'']) == {"a": ["1,5", "it's", "[", "="]}
    assert grid_of(["a=k=v"]) == {"a": ["k=v"]}
    assert parts_of("fed-mobillm, 'a, b' ,c") == ["fed-mobillm", "'a, b'", "c"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("task.train", "expected key=value,value"),
        ("=1,2", "expected key=value,value"),
        ("a=1,,2", "no value between two commas"),
        ("a=", "no value"),
        ("a=[1,2", "not valid YAML"),
        ("a=!!python/object:os.system", "tags are not allowed"),
    ],
)
def test_what_is_no_grid(option, said):
    with pytest.raises(SweepError, match=said):
        grid_of([option])


def test_a_key_or_a_value_twice_and_what_a_sweep_sets_itself_are_no_grid():
    with pytest.raises(SweepError, match="a is given twice"):
        grid_of(["a=1", "a=2"])
    for grid, said in (
        ({"a": [0.1, 1e-1]}, "0.1 twice"),
        ({"a": []}, "no values"),
        ({"seed": [1]}, "--seeds"),
        ({"method": [{}]}, "--methods"),
        ({"method.kind": ["fedbert"]}, "--methods"),
        ({"a": range(400), "b": range(400)}, "160,000 runs"),
    ):
        with pytest.raises(SweepError, match=said):
            cells_of(grid)


def test_no_grid_is_one_combination_and_the_first_key_varies_slowest():
    assert cells_of({}) == [{}]
    assert cells_of({"b": [1, 2], "a": "xy"}) == [
        {"b": 1, "a": "x"},
        {"b": 1, "a": "y"},
        {"b": 2, "a": "x"},
        {"b": 2, "a": "y"},
    ]


# --- names


LABELS = [
    "plain-1.0",
    "a/b",
    "a:b",
    "../../up",
    "..",
    'say "100 %" & $x_1$ \\ {z}',
    "it's `code` | <b>",
    "Größe 大",
    "_hidden",
    "LoRA",
    "lora",
    "é" * 300,
    "é" * 299 + "e",
    "-",
]


def test_folders_have_names_of_their_own_that_every_system_takes():
    names = [folder_name(label) for label in LABELS]
    assert len(set(names)) == len(names)
    assert names[0] == "plain-1.0"
    for name in names:
        assert len(name) <= 80 and name.isascii() and not set(name) & set('/\\:*?"<>| ')
    assert folder_of({"b": 1, "a": 2}) == folder_of({"a": 2, "b": 1}) == "a=2,b=1"


def test_labels_of_any_characters_stand_in_the_table_and_share_no_folder(
    mobifleet, scenario_file, tmp_path
):
    path = scenario_file(compare={"methods": dict.fromkeys(LABELS, OURS)})
    scenario = load(str(path), Scenario)
    entries = planned(scenario, [{"name": "a"}], LABELS, 1, tmp_path, None)
    folders = {str(entry.folder).casefold() for entry in entries}
    assert len(folders) == len(LABELS)
    assert all(entry.folder.resolve().parent.parent == tmp_path.resolve() for entry in entries)
    chosen = ["a/b", "a:b", LABELS[5], "_hidden", "x, y"]
    path = scenario_file(compare={"methods": dict.fromkeys(chosen, OURS)})
    named = ",".join(chosen[:-1]) + ",'x, y'"
    done = mobifleet("sweep", path, "--dry", "--methods", named, "--workers", 1, "--out", "out")
    assert done.code == 0, done.err
    assert [row["method"] for row in read(tmp_path / "out" / "sweep.csv")] == chosen
    assert pandas.read_parquet(tmp_path / "out" / "sweep.parquet")["method"].tolist() == chosen
    assert all(label in done.out for label in chosen[:2])
    assert (tmp_path / "out" / "figures" / "effects.png").stat().st_size > 1000


# --- the table


def test_a_dry_sweep_is_one_long_table_of_what_its_folders_hold(mobifleet, scenario_file, tmp_path):
    path = scenario_file(compare=COMPARE)
    argv = ("sweep", path, *GRID, "--methods", "ours,lora", "--seeds", 2, "--dry", "--workers", 1)
    done = mobifleet(*argv, "--out", "out")
    assert done.code == 0, done.err
    assert "4 combinations x 2 methods x 2 seeds = 16 runs, 0 of them finished" in done.out
    rows = read(tmp_path / "out" / "sweep.csv")
    factors = [
        (row["task.train"], row["server.ingress"], row["method"], row["seed"]) for row in rows
    ]
    assert factors == [
        (train, rate, label, seed)
        for train in ("30", "60")
        for rate in ("1 Mbit/s", "1 Gbit/s")
        for label in ("ours", "lora")
        for seed in "01"
    ]
    for row in rows:
        run = open_run(tmp_path / "out" / row["folder"])
        assert row["status"] == "finished" and not row["error"]
        assert run.seed == int(row["seed"])
        assert run.manifest["scenario"]["task"]["train"] == int(row["task.train"])
        assert run.method == {"ours": "fed-mobillm", "lora": "fedavg-lora"}[row["method"]]
        assert row["digest"] == run.summary["digest"]
        assert float(row["virtual_time_s"]) == run.summary["virtual_time_s"]
        assert float(row["totals.uplink_bytes"]) == run.summary["totals"]["uplink_bytes"]
        mean_j = run.summary["per_device"]["energy_j"]["mean"]
        assert float(row["per_device.energy_j.mean"]) == mean_j
    assert not {"host", "wall_s"} & {part for name in rows[0] for part in name.split(".")}
    frame = pandas.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert frame["task.train"].dtype.kind == "i" and frame["virtual_time_s"].dtype.kind == "f"
    before = bytes_of(tmp_path / "out")
    again = mobifleet(*argv, "--out", "out")
    assert again.code == 0 and "16 of them finished" in again.out and "run 1/" not in again.out
    assert bytes_of(tmp_path / "out") == before
    turned = [argv[0], argv[1], *GRID[2:], *GRID[:2], *argv[6:]]
    assert "16 of them finished" in mobifleet(*turned, "--out", "out").out
    wider = ["task.train=20,30,60" if part == GRID[1] else part for part in argv]
    assert "24 runs, 16 of them finished" in mobifleet(*wider, "--out", "out").out


@pytest.mark.thorough
def test_two_workers_give_the_bytes_of_one(mobifleet, scenario_file, tmp_path):
    path = scenario_file(compare=COMPARE)
    for workers in (1, 2):
        argv = ("--methods", "ours,lora", "--workers", workers, "--out", f"out{workers}")
        done = mobifleet("sweep", path, *GRID[:2], *argv)
        assert done.code == 0, done.err
    one, two = (bytes_of(tmp_path / f"out{workers}") for workers in (1, 2))
    assert one == two
    assert (tmp_path / "out1" / "figures" / "curves.png").stat().st_size > 1000
    curves = read(tmp_path / "out1" / "curves.csv")
    run = open_run(tmp_path / "out1" / "task.train=30" / "ours-seed0")
    mine = [
        float(row["value"])
        for row in curves
        if (row["task.train"], row["method"], row["name"]) == ("30", "ours", "accuracy")
    ]
    assert mine == run.curve("accuracy")[1].tolist()


def test_from_python_it_is_a_frame(scenario_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = door.sweep(scenario_file(), {"method.replay": [5, 10]}, seeds=2, dry=True, quiet=True)
    assert frame["method.replay"].tolist() == [5, 5, 10, 10]
    assert frame["seed"].tolist() == [0, 1, 0, 1] and set(frame["method"]) == {"fed-mobillm"}
    assert (tmp_path / "runs" / "tiny-sweep" / frame["folder"][0] / "summary.json").is_file()
    with pytest.raises(SweepError, match="expected a list of values"):
        door.sweep(scenario_file(), {"method.replay": 5}, dry=True)


def test_a_kind_that_no_label_has_comes_with_its_own_settings(mobifleet, scenario_file, tmp_path):
    argv = ("--methods", "fed-mobillm,local-lora", "--dry", "--workers", 1, "--out", "out")
    assert mobifleet("sweep", scenario_file(), *argv).code == 0
    ours, other = (
        open_run(tmp_path / "out" / row["folder"]).manifest["scenario"]["method"]
        for row in read(tmp_path / "out" / "sweep.csv")
    )
    assert (ours["replay"], other["kind"]) == (5, "local-lora")  # 5 is the scenario's own
    wrong = mobifleet("sweep", scenario_file(), "--methods", "fedavg-lra", "--dry")
    assert wrong.code == 2 and "did you mean 'fedavg-lora'?" in wrong.err


# --- what cannot be


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("task.trian=1", "task.trian=1: nothing is called 'task.trian'; did you mean 'train'?"),
        ("fleet.7.count=1", "nothing is called 'fleet.7.count'"),
        ("task.train=60,many", "task.train=many: task.train: expected a whole number (got 'many')"),
        ("method.replay=5,true", "method.replay: expected a number (got true)"),
        ("fleet.0.device=jetson-tx2,jetson-tx3", "did you mean 'jetson-tx2'"),
        ("task.train=60,6000000", "task.train=6000000"),
        ("method.replay=5,-1", "method.replay=-1, fed-mobillm: method.replay: "),
        ("task.max_tokens=16,100000", "task.max_tokens=100000"),
    ],
)
def test_a_combination_that_cannot_be_is_named_before_anything_runs(
    mobifleet, scenario_file, tmp_path, grid, said
):
    done = mobifleet("sweep", scenario_file(), "--grid", grid, "--out", "out", "--workers", 1)
    assert done.code == 2 and "Traceback" not in done.err
    assert said in done.err, done.err
    assert "task.train=60:" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_setting_that_nothing_reads_is_no_factor(mobifleet, scenario_file, tmp_path):
    fedavg = {"kind": "fedavg-lora", "rounds": 1}
    done = mobifleet(
        "sweep", scenario_file(method=fedavg), "--grid", "method.most_asks=1,2", "--dry"
    )
    assert done.code == 2 and "method.most_asks" in done.err


def test_a_value_of_many_settings_is_looked_at_like_many_values(mobifleet, scenario_file):
    many = "method.side_network={adapters: 0.3},{skip: none, adapters: 0.2}"
    done = mobifleet("sweep", scenario_file(), "--grid", many, "--dry")
    assert done.code == 2
    assert "method.side_network.adapters: is for a `skip` alone" in done.err
    assert "adapters=0.3" not in done.err and "0.3" not in done.err


@pytest.mark.parametrize(
    ("grid", "methods"),
    [
        ({"task.train": [60, 60.0]}, []),
        ({"server.ingress": ["1 Gbit/s", "10 Mbit/s", "1000 Mbit/s"]}, ["ours", "lora"]),
        ({"compare.target": [0.5, 0.6]}, []),
        ({"compare.methods.ours.replay": [5, 10]}, ["lora"]),
    ],
)
def test_values_that_make_no_difference_to_any_run_are_told(scenario_file, tmp_path, grid, methods):
    scenario = load(str(scenario_file(compare=COMPARE)), Scenario)
    with pytest.raises(SweepError, match="are the same runs"):
        planned(scenario, cells_of(grid), methods, 1, tmp_path)


def test_values_that_make_a_difference_to_one_method_are_a_grid(scenario_file, tmp_path):
    scenario = load(str(scenario_file(compare=COMPARE)), Scenario)
    grid = {"compare.methods.ours.replay": [5, 10]}
    assert len(planned(scenario, cells_of(grid), ["ours", "lora"], 1, tmp_path)) == 4


def test_more_seeds_than_anybody_can_wait_for_are_told_at_once(mobifleet, scenario_file):
    for verb in ("sweep", "compare"):
        done = mobifleet(verb, scenario_file(compare=COMPARE), "--dry", "--seeds", 10**20)
        assert done.code == 2 and "runs, and 100,000 is the most" in done.err


def test_a_seed_that_no_column_of_numbers_holds_is_written_all_the_same():
    table = table_of([{"seed": 2**63 - 1, "a": 1}, {"seed": 2**63, "a": 10**400}])
    assert table["seed"].to_pylist() == [str(2**63 - 1), str(2**63)]
    assert table["a"].to_pylist() == ["1", str(10**400)]
    assert table_of([{"seed": 2**63 - 1}])["seed"].to_pylist() == [2**63 - 1]


@pytest.mark.parametrize("named", ["", ",", "ours,,lora"])
def test_a_comma_that_parts_nothing_is_no_name(mobifleet, scenario_file, named):
    for verb in ("sweep", "compare"):
        done = mobifleet(
            verb, scenario_file(compare=COMPARE), "--dry", "--methods", named, "--out", "out"
        )
        assert done.code == 2 and "expected names, with a comma between" in done.err


# --- what goes wrong on the way


def fail_at(monkeypatch, train: int):
    """Runs with so many texts fail, once they have begun."""
    from sim.simulation import Simulation

    whole = Simulation.run

    def run(sim):
        if sim.scenario.task.train == train:
            raise RuntimeError("the \n disk, say")
        whole(sim)

    monkeypatch.setattr(Simulation, "run", run)


@pytest.mark.thorough
def test_a_failure_is_noted_and_tried_again_alone(mobifleet, scenario_file, tmp_path, monkeypatch):
    argv = ("sweep", scenario_file(), "--grid", "task.train=30,40,60", "--dry", "--workers", 1)
    with monkeypatch.context() as broken:
        fail_at(broken, 40)
        done = mobifleet(*argv, "--out", "out")
    assert done.code == 1 and "Traceback" not in done.err
    assert "failed: task.train=40/fed-mobillm-seed0: RuntimeError: the disk, say" in done.err
    rows = read(tmp_path / "out" / "sweep.csv")
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert rows[1]["error"] == "RuntimeError: the disk, say" and not rows[1]["virtual_time_s"]
    failed = tmp_path / "out" / "task.train=40" / "fed-mobillm-seed0"
    assert (failed / FAILED).read_text() == "RuntimeError: the disk, say\n"
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/summary.json")}
    assert len(others) == 2
    again = mobifleet(*argv, "--out", "out")
    assert again.code == 0 and "3 runs, 2 of them finished" in again.out, again.err
    assert (
        others.items()
        <= {
            path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/summary.json")
        }.items()
    )
    assert not (failed / FAILED).exists()
    assert mobifleet(*argv, "--out", "whole").code == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


DEADLY = """import os

from sim.methods.side_tuning.fed_mobillm import FedMobiLLM


class Deadly(FedMobiLLM):
    def device(self, device):
        if self.config.replay == 6:
            os._exit(9)
        yield from super().device(device)
"""


@pytest.mark.thorough
def test_a_run_whose_process_dies_is_the_only_one_that_fails(mobifleet, scenario_file, tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY, encoding="utf-8")
    path = scenario_file(method={"kind": "deadly.py:Deadly"})
    argv = ("--grid", "method.replay=5,6,7,8", "--dry", "--allow-code", "--workers", 2)
    done = mobifleet("sweep", path, *argv, "--out", "out")
    assert done.code == 1 and "its process ended without a word" in done.err, done.err
    rows = read(tmp_path / "out" / "sweep.csv")
    assert [row["status"] for row in rows] == ["finished", "failed", "finished", "finished"]


def started(tmp_path: Path, *argv: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", START, "sweep", *map(str, argv)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its group is its own
    )


def wait_for(process: subprocess.Popen, out: Path, begun: int) -> None:
    """Until so many runs have left a manifest."""
    while process.poll() is None and len(list(out.glob("*/*/manifest.json"))) < begun:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_that_is_killed_goes_on_and_gives_the_same_bytes(
    workers, mobifleet, scenario_file, tmp_path
):
    argv = (scenario_file(compare=COMPARE), *GRID[:2], "--methods", "ours,lora", "--seeds", "2")
    assert mobifleet("sweep", *argv, "--workers", "1", "--out", "whole").code == 0
    before = bytes_of(tmp_path / "whole")
    rng, out = random.Random(workers), tmp_path / "out"
    for begun in sorted(rng.sample(range(1, 8), 2)):
        process = started(tmp_path, *argv, "--workers", workers, "--out", "out")
        wait_for(process, out, begun)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (out / "sweep.csv").exists()
    free = [folder for folder in out.glob("*/*") if not is_held(folder)]
    while len(free) < len(list(out.glob("*/*"))):  # its processes notice that it is gone
        time.sleep(0.01)
        free = [folder for folder in out.glob("*/*") if not is_held(folder)]
    done = mobifleet("sweep", *argv, "--workers", "1", "--out", "out")
    assert done.code == 0, done.err
    assert bytes_of(out) == before


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_says_so_and_loses_nothing(
    sign, workers, mobifleet, scenario_file, tmp_path
):
    argv = (scenario_file(), "--grid", "task.train=20,30,40,50,60,70", "--out", "out")
    process = started(tmp_path, *argv, "--workers", workers)
    wait_for(process, tmp_path / "out", 2)
    process.send_signal(sign)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    rows = read(tmp_path / "out" / "sweep.csv")
    assert len(rows) == 6 and "not finished" in {row["status"] for row in rows}
    folders = list((tmp_path / "out").glob("*/*"))
    assert len(folders) < 6 and not any(is_held(folder) for folder in folders)
    assert mobifleet("sweep", *argv, "--workers", 1).code == 0
    assert {row["status"] for row in read(tmp_path / "out" / "sweep.csv")} == {"finished"}


@pytest.mark.thorough
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_one_of_whose_processes_is_idle_is_stopped_by_one_signal(
    sign, scenario_file, tmp_path
):
    argv = (scenario_file(), "--grid", "method.replay=1,9000", "--out", "out", "--workers", 2)
    process = started(tmp_path, *argv)
    while not (done := list((tmp_path / "out").glob("*/*/summary.json"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    wait_for(process, tmp_path / "out", 2)
    time.sleep(0.5)  # so that it waits for more
    process.send_signal(sign)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in errors, errors
    assert [folder.parent.parent.name for folder in done] == ["method.replay=1"]
    left = [row["status"] for row in read(tmp_path / "out" / "sweep.csv")]
    assert left == ["finished", "not finished"]


def test_ctrl_c_in_one_run_ends_the_sweep_with_a_table_of_what_there_is(
    mobifleet, scenario_file, tmp_path, monkeypatch
):
    from sim.simulation import Simulation

    whole = Simulation.run

    def run(sim):
        if sim.scenario.task.train == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(sim)

    argv = ("sweep", scenario_file(), "--grid", "task.train=30,40,60", "--dry", "--workers", 1)
    with monkeypatch.context() as stopping:
        stopping.setattr(Simulation, "run", run)
        done = mobifleet(*argv, "--out", "out")
    assert done.code == 130 and "the same command goes on" in done.err
    rows = read(tmp_path / "out" / "sweep.csv")
    assert [row["status"] for row in rows] == ["finished", "not finished", "not finished"]
    assert mobifleet(*argv, "--out", "out").code == 0


# --- what it comes to


def row_of(a: int, method: str, seed: int, outcome: float | None) -> dict[str, object]:
    return {"a": a, "method": method, "seed": seed, "status": "finished", "final": outcome}


def test_an_effect_is_the_mean_difference_of_pairs_that_differ_in_nothing_else():
    """final = 0.1 a + (0.2 for y) + seed noise that is common to all + an interaction of 0.02, and
    noise of each method's own.
    """
    rows = [
        row_of(a, method, seed, 0.1 * a + 0.2 * (method == "y") + noise + step)
        for seed, noise in enumerate((0.0, 0.3, -0.1))
        for a in (1, 3)
        for method in ("x", "y")
        for step in [(a == 3) * (0.02 + 0.01 * seed if method == "y" else 0.01 * (seed - 1))]
    ]
    found = {(e.factor, e.value): e for e in effects_of(rows, ["a"])}
    first, second = found["a", 1], found["a", 3]
    assert (first.difference, first.half_width, first.pairs, first.runs) == (None, None, 0, 6)
    assert (second.pairs, second.runs) == (6, 6)
    assert second.difference == pytest.approx(0.2 + 0.03 / 2)
    # by seed 0.205, 0.215, 0.225: deviation 0.01, Student's t for two degrees of freedom 4.302653
    assert second.half_width == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    assert (second.least, second.most) == (pytest.approx(0.2), pytest.approx(0.23))
    assert found["method", "y"].difference == pytest.approx(0.2 + 0.03 / 2)
    assert second.mean - first.mean == pytest.approx(second.difference)


def test_what_never_reached_a_target_leaves_its_pairs_out():
    rows = [row_of(1, "x", 0, 2.0), row_of(3, "x", 0, 5.0), row_of(1, "x", 1, 9.0)]
    rows += [
        row_of(3, "x", 3, 4.0),
        row_of(3, "x", 1, None),
        {**row_of(3, "x", 2, 99.0), "status": "failed"},
    ]
    by_value = {effect.value: effect for effect in effects_of(rows, ["a"])}
    assert (by_value[1].runs, by_value[1].mean) == (2, 5.5)
    assert (by_value[3].runs, by_value[3].pairs, by_value[3].difference) == (2, 1, 3.0)
    assert by_value[3].half_width is None


@pytest.mark.parametrize(
    "ill",
    [
        {"ended": "stalled"},
        {"ended": "diverged", "final": None, "diverged.device": "server"},
        {"ended": "exhausted", "final": None, "diverged.device": "device-0001"},
    ],
)
def test_what_stalled_or_diverged_is_in_no_effect(ill):
    rows = [
        {**row_of(a, "x", seed, 0.5), "virtual_time_s": 10.0 * a + seed}
        for a in (1, 3)
        for seed in (0, 1)
    ]
    rows[0] |= {"diverged.device": "device-0001"}  # one answer of it, and it has learned
    rows[3] |= {"virtual_time_s": 1e-3, **ill}
    effects = [effect for effect in effects_of(rows, ["a"]) if effect.outcome == "virtual_time_s"]
    assert [(e.runs, e.mean, e.pairs, e.difference) for e in effects] == [
        (2, 10.5, 0, None),
        (1, 30.0, 1, 20.0),
    ]


def test_a_sweep_says_what_its_runs_noted_and_which_are_in_no_effect(
    mobifleet, scenario_file, tmp_path
):
    for name, rate in (("dead", 0), ("good", 10**6)):
        (tmp_path / f"{name}.csv").write_text(f"time_s,bit/s\n0,{rate}\n100,{rate}\n")
    fleet = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    argv = ("--grid", "fleet.0.trace=good.csv,dead.csv", "--seeds", 2, "--dry", "--workers", 1)
    done = mobifleet("sweep", scenario_file(fleet=fleet), *argv, "--out", "out")
    said = " ".join(done.out.split())
    assert done.code == 0, done.err
    assert "fed-mobillm (2 of 4 runs): no update was made: whoever was left waited" in said
    assert "2 of 4 runs are in no effect: 2 stalled" in said
    effects = read(tmp_path / "out" / "effects.csv")
    assert {row["runs"] for row in effects if row["value"] == "dead.csv"} == {"0"}
    assert {row["pairs"] for row in effects} == {"0"}


def test_what_does_not_vary_is_no_factor():
    rows = [row_of(1, "x", seed, 0.5) for seed in range(3)]
    assert effects_of(rows, ["a"]) == []


def test_the_time_left_follows_each_methods_own_runs():
    assert left_s({}, ["a"], 1) is None
    took_s = {"a": [2.0, 4.0], "b": [12.0]}
    assert left_s(took_s, ["a", "a", "b"], 1) == pytest.approx(3 + 3 + 12)
    assert left_s(took_s, ["a", "b", "new"], 2) == pytest.approx((3 + 12 + 6) / 2)
    assert left_s(took_s, ["b"], 8) == pytest.approx(12)
    assert left_s(took_s, [], 8) == 0


def test_help_shows_how(mobifleet):
    said = mobifleet("sweep", "--help").out
    assert "--grid" in said and "mobifleet sweep quickstart" in said


def test_compare_at_each_value_is_a_grid_of_one_key(scenario_file, tmp_path):
    from sim.compare.protocol import like_with_like
    from sim.compare.runs import plan

    over = {"key": "task.train", "values": [30, 60]}
    scenario = load(str(scenario_file(compare={**COMPARE, "over": over})), Scenario)
    grid = cells_of({over["key"]: over["values"]})
    fair = like_with_like(scenario)
    assert plan(scenario, tmp_path, 2) == planned(fair, grid, ["ours", "lora"], 2, tmp_path)
    assert [
        entry.folder.relative_to(tmp_path).as_posix() for entry in plan(scenario, tmp_path)
    ] == [
        "task.train=30/ours-seed0",
        "task.train=30/lora-seed0",
        "task.train=60/ours-seed0",
        "task.train=60/lora-seed0",
    ]


def test_every_process_has_a_number_of_its_own(monkeypatch):
    numbers = multiprocessing.get_context("spawn").Value("i", 0)
    taken = []
    monkeypatch.setattr(engine, "take_turns", taken.append)
    monkeypatch.setattr(engine, "_heed_parent", lambda ear: None)
    for _ in range(3):
        engine._begin(None, numbers)
    assert taken == [0, 1, 2]
