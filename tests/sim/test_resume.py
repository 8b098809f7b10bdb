"""A run that was killed, stopped or torn goes on to the result of one that ran straight through;
little is learned twice.
"""

import json
import signal
import time
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from learning.backbones.assets import AssetMissing
from sim.cli import faults
from sim.kernel.checkpoint import Checkpoint
from sim.kernel.host import Host
from sim.kernel.journal import CannotResume, Journal
from sim.kernel.learned import Piece
from sim.results.run import open_run
from sim.simulation import RunCallbacks, Simulation

PLAIN = ("--quiet", "--no-figures", "--workers", "1")
SIDE = {"device_batch": 4, "ship_side_network": False}
ROUNDS = {"rounds": 3, "participation": 1.0, "device_batch": 8, "evaluate_every": 1}
METHODS = {
    "fed-mobillm": {
        "kind": "fed-mobillm",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        **SIDE,
    },
    "single-side-network": {
        "kind": "single-side-network",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        **SIDE,
    },
    "centralised": {
        "kind": "centralised",
        "backbone": "random-bert",
        "replay": 5,
        "server_batch": 8,
    },
    "upload-raw-text": {
        "kind": "upload-raw-text",
        "replay": 5,
        "server_batch": 8,
        "device_batch": 4,
    },
    "pae-mobillm": {"kind": "pae-mobillm", "epochs": 3, "server_batch": 8, **SIDE},
    "pae-mobillm, matrices": {
        "kind": "pae-mobillm",
        "epochs": 2,
        "server_batch": 8,
        "shortcut": "matrix",
        **SIDE,
    },
    "pae-mobillm, no cache": {"kind": "pae-mobillm", "epochs": 2, "cache": False, **SIDE},
    "mobillm": {"kind": "mobillm", "epochs": 2, "ship_side_network": False},
    "local-lst": {"kind": "local-lst", "epochs": 3, "device_batch": 8},
    "local-lora": {"kind": "local-lora", "rounds": 3, "device_batch": 8},
    "fedavg-lora": {"kind": "fedavg-lora", **ROUNDS},
    "fedavg-full": {
        "kind": "fedavg-full",
        "server_optimiser": {"kind": "fedadam", "learning_rate": 0.01},
        **ROUNDS,
    },
    "fedavg-adapter, late": {
        "kind": "fedavg-adapter",
        **ROUNDS,
        "participation": 0.3,
        "over_selection": 2,
    },
    "flexlora": {"kind": "flexlora", "ranks": {"jetson-tx2": 2}, "rank": 4, **ROUNDS},
    "fedasync": {
        "kind": "fedasync",
        "answers": 12,
        "concurrency": 1.0,
        "device_batch": 8,
        "evaluate_every": 2,
    },
    "fedbuff": {
        "kind": "fedbuff",
        "answers": 12,
        "buffer": 2,
        "concurrency": 1.0,
        "device_batch": 8,
        "rank": 4,
    },
    "fwdllm": {"kind": "fwdllm", **ROUNDS, "variance_threshold": 1e-9, "most_asks": 3},
    "fwdllm, shared seeds": {
        "kind": "fwdllm",
        "peft": "lora",
        **ROUNDS,
        "shared_seeds": True,
        "most_asks": 2,
    },
    "fedmezo": {"kind": "fedmezo", **ROUNDS, "local_steps": 2, "rank": 4, "alpha": 8},
    "spry": {"kind": "spry", **ROUNDS},
    "splitfed-v1": {"kind": "splitfed-v1", **ROUNDS},
    "splitfed-v2": {"kind": "splitfed-v2", "peft": "lora", **ROUNDS},
    "fedbert": {"kind": "fedbert", "learning_rate": 1e-3, **ROUNDS},
}


# `make test` takes one of each family; `make thorough` all
ONE_OF_EACH = ("fed-mobillm", "fedavg-lora", "fedmezo")
EVERY_METHOD = [
    pytest.param(method, id=name, marks=[] if name in ONE_OF_EACH else pytest.mark.thorough)
    for name, method in METHODS.items()
]


class TheHostDied(Exception):
    """In place of a power cut."""


@pytest.fixture
def dying_after(monkeypatch):
    """Lets the host die before it begins a piece of learning beyond so many (None: it lives);
    counts what it computes.
    """
    limit, computed, learn, run = [None], Counter(), Host.learn, Piece.run

    def dying(host, *what, **how):
        if limit[0] is not None and host.pieces >= limit[0]:
            raise TheHostDied
        return learn(host, *what, **how)

    def counted(piece):
        computed[piece._function.__name__] += 1
        return run(piece)

    def set_to(pieces: int | None) -> Counter:
        limit[0] = pieces
        computed.clear()
        return computed

    monkeypatch.setattr(Host, "learn", dying)
    monkeypatch.setattr(Piece, "run", counted)
    return set_to


# --- every method


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_a_run_that_died_goes_on_to_the_same_digest_and_computes_only_what_is_left(
    method, simulate, mark, dying_after, tmp_path
):
    straight = simulate(method=method)
    total, expected = straight.host.pieces, mark(straight)
    for number, (after, workers) in enumerate([(total // 3, 2), (total - 2, 1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        dying_after(after)
        with pytest.raises(TheHostDied):
            simulate(
                method=method,
                workers=workers,
                journal=Journal(folder, seconds_between_checkpoints=0),
            )
        computed = dying_after(None)
        resumed = simulate(method=method, workers=workers, journal=Journal(folder, True))
        assert mark(resumed) == expected
        assert resumed.host.pieces == total
        assert (
            resumed.host.recalled == after - 1
        )  # the last checkpoint is that before the last piece
    # what cannot be written, a pass that waits for its gradient, is computed once more for each of
    # three devices
    again = computed.total() - (total - (after - 1))
    assert 0 <= again <= 3
    assert again == 0 or method["kind"].startswith(("splitfed", "fedbert"))


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_a_run_that_was_interrupted_goes_on_to_the_same_digest(method, simulate, mark, tmp_path):
    straight = simulate(method=method)
    looks, enough = (
        [],
        1 if method["kind"].startswith("local") else 3,
    )  # at each, twenty events have passed
    callbacks = RunCallbacks(on_progress=looks.append, should_stop=lambda: len(looks) >= enough)
    stopped = simulate(method=method, journal=Journal(tmp_path, False), callbacks=callbacks)
    assert stopped.ended.reason == "interrupted"
    resumed = simulate(method=method, journal=Journal(tmp_path, resume=True))
    assert resumed.ended.reason == "exhausted"
    assert mark(resumed) == mark(straight)


@pytest.mark.thorough
def test_a_run_that_died_anywhere_resumes_to_the_same_digest(simulate, mark, dying_after, tmp_path):
    method = METHODS["fedbuff"]
    expected = mark(simulate(method=method))
    for after in range(1, 18):
        folder = tmp_path / str(after)
        folder.mkdir()
        dying_after(after)
        with pytest.raises(TheHostDied):
            simulate(method=method, journal=Journal(folder, seconds_between_checkpoints=0))
        dying_after(None)
        assert mark(simulate(method=method, journal=Journal(folder, True))) == expected


@pytest.mark.thorough
def test_dying_again_and_again_comes_to_the_same_end(simulate, mark, dying_after, tmp_path):
    method = METHODS["splitfed-v1"]
    straight = simulate(method=method)
    dying_after(4)
    with pytest.raises(TheHostDied):
        simulate(method=method, journal=Journal(tmp_path, False, 0))
    for after in range(9, straight.host.pieces, 7):
        dying_after(after)
        with pytest.raises(TheHostDied):
            simulate(method=method, journal=Journal(tmp_path, True, 0))
    dying_after(None)
    resumed = simulate(method=method, journal=Journal(tmp_path, True, 0))
    assert mark(resumed) == mark(straight)
    assert resumed.host.recalled == after - 1


def test_only_what_somebody_may_still_ask_for_is_written(simulate, dying_after, tmp_path):
    state = 4 * sum(
        t.numel() for t in simulate(method=METHODS["fedavg-lora"]).method.learner.initial.values()
    )
    dying_after(10)  # of twelve: three rounds of three answers and their mean
    with pytest.raises(TheHostDied):
        simulate(method=METHODS["fedavg-lora"], journal=Journal(tmp_path, False, 0))
    written = sum(array.nbytes for array in load_file(tmp_path / "checkpoint.safetensors").values())
    assert (
        state < written < 2.1 * state
    )  # the server's state and an answer that is on its way; no older ones


# --- real kills

SLOWLY = """
import functools, sys, time
from sim.cli import main as cli
from sim import runner
from sim.kernel.learned import Piece
runner.Journal = functools.partial(runner.Journal, seconds_between_checkpoints=0)
run = Piece.run
Piece.run = lambda piece: (time.sleep(0.05), run(piece))[1]
cli.main()
"""


@pytest.fixture(autouse=True)
def _tracebacks(monkeypatch):
    """A run that dies of what no user did shows how."""
    monkeypatch.setenv(faults.TRACEBACK, "1")


@pytest.fixture
def straight(mobifleet, scenario_file, tmp_path):
    """The digest of the run that nobody disturbs."""
    assert mobifleet("run", scenario_file(), "--out", "straight", *PLAIN).code == 0
    return open_run(tmp_path / "straight").summary["digest"]


@pytest.fixture
def stopped(shell, scenario_file, tmp_path):
    """Starts a slow run into tmp_path/run, sends it a signal after a few evaluations; returns (exit
    code, stderr).
    """

    def stop(number: signal.Signals) -> tuple[int, str]:
        process = shell("-c", SLOWLY, "run", scenario_file(), "--out", "run", *PLAIN)
        journal, deadline = tmp_path / "run" / "journal.jsonl", time.monotonic() + 600
        while not journal.is_file() or len(journal.read_text().splitlines()) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
        return process.returncode, errors

    return stop


def resume(mobifleet, scenario_file, tmp_path) -> str:
    outcome = mobifleet("run", scenario_file(), "--out", "run", "--resume", *PLAIN)
    assert outcome.code == 0, outcome.err
    return open_run(tmp_path / "run").summary["digest"]


@pytest.mark.thorough
def test_a_killed_run_resumes_to_the_same_digest(
    straight, stopped, mobifleet, scenario_file, tmp_path
):
    code, _ = stopped(signal.SIGKILL)
    assert code == -signal.SIGKILL
    folder = tmp_path / "run"
    assert json.loads((folder / "manifest.json").read_text())["status"] == "running"
    position = Checkpoint(folder / "checkpoint.safetensors").position
    assert position > 10
    outcome = mobifleet(
        "run", scenario_file(), "--out", "run", "--resume", "--no-figures", "--workers", "1"
    )
    assert outcome.code == 0, outcome.err
    assert open_run(folder).summary["digest"] == straight
    host = open_run(folder).summary["host"]
    assert position == host["pieces_recalled"] < host["pieces_of_learning"]
    assert (
        f"{position} of {host['pieces_of_learning']} pieces of learning from the interrupted"
        in " ".join(outcome.out.split())
    )
    assert not (folder / "journal.jsonl").exists()
    assert not (folder / "checkpoint.safetensors").exists()


@pytest.mark.thorough
def test_ctrl_c_leaves_a_readable_run_that_resumes(
    straight, stopped, mobifleet, scenario_file, tmp_path
):
    code, errors = stopped(signal.SIGINT)
    assert code == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    run = open_run(tmp_path / "run")
    assert run.manifest["status"] == "interrupted"
    assert run.summary["ended"] == "interrupted"
    spans = run.spans().to_pylist()
    assert 0 < len(spans) < len(open_run(tmp_path / "straight").spans())
    assert max(span["end_s"] for span in spans) <= run.summary["virtual_time_s"]
    assert resume(mobifleet, scenario_file, tmp_path) == straight
    assert open_run(tmp_path / "run").manifest["status"] == "finished"


# --- what is damaged, foreign or of another course


@pytest.fixture
def half_done(simulate, dying_after, tmp_path):
    """Leaves tmp_path with the journal of a run that died late; returns a function that resumes
    it.
    """
    dying_after(30)
    with pytest.raises(TheHostDied):
        simulate(journal=Journal(tmp_path, False, 0))
    dying_after(None)
    return lambda: simulate(journal=Journal(tmp_path, True))


DAMAGES = {
    "no checkpoint": lambda folder: (folder / "checkpoint.safetensors").unlink(),
    "checkpoint cut": lambda folder: cut(folder / "checkpoint.safetensors"),
    "checkpoint of zeros": lambda folder: (folder / "checkpoint.safetensors").write_bytes(
        bytes(100)
    ),
    "a bit of the checkpoint": lambda folder: flip(folder / "checkpoint.safetensors", -100),
    "another's checkpoint": lambda folder: save_file(
        {"x": np.zeros(1)}, folder / "checkpoint.safetensors"
    ),
    "no journal": lambda folder: (folder / "journal.jsonl").unlink(),
    "a line of another type": lambda folder: insert(
        folder / "journal.jsonl", '{"key": 3, "value": []}'
    ),
    "a list for a line": lambda folder: insert(folder / "journal.jsonl", "[1, 2]"),
    "a bottomless line": lambda folder: insert(folder / "journal.jsonl", "[" * 100_000),
    "a number changed": lambda folder: change(folder / "journal.jsonl", '"value": ', '"value": 1'),
    "not text": lambda folder: (folder / "journal.jsonl").write_bytes(b"\xff\xfe\x00\x01"),
}


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def insert(file, line):
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, line, *others]) + "\n")


def change(file, old, new):
    file.write_text(file.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    "damage",
    [pytest.param(d, marks=[pytest.mark.thorough] * (i % 3 > 0)) for i, d in enumerate(DAMAGES)],
)
def test_what_is_damaged_is_computed_again_and_said(damage, half_done, simulate, mark, tmp_path):
    expected = mark(simulate())
    DAMAGES[damage](tmp_path)
    journal = Journal(tmp_path, True)
    assert journal.position == 0
    assert len(journal.remarks) == (damage != "no checkpoint")
    assert all(
        "is computed again" in remark and str(tmp_path) in remark and "\n" not in remark
        for remark in journal.remarks
    )
    assert mark(half_done()) == expected


def test_a_torn_last_line_is_what_a_kill_leaves(half_done, simulate, mark, tmp_path):
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"key": "0123", "val')
    assert mark(half_done()) == mark(simulate())
    assert Journal(tmp_path, True).remarks == []


@pytest.mark.parametrize("value", [0.0, "0.5", None])
def test_a_remark_reaches_the_summary(value, half_done, tmp_path, mobifleet, scenario_file):
    out = tmp_path / "run"
    assert mobifleet("run", scenario_file(), "--dry", "--out", out, *PLAIN).code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "failed", "dry": False}))
    (out / "journal.jsonl").write_text(json.dumps({"key": "k", "value": value, "sum": "?"}) + "\n")
    outcome = mobifleet("run", scenario_file(), "--out", out, "--resume", *PLAIN)
    assert outcome.code == 0, outcome.err
    assert "journal.jsonl, line 1: damaged" in " ".join(outcome.err.split())
    assert "journal.jsonl, line 1: damaged" in open_run(out).summary["remarks"][0]


def test_a_replay_on_another_course_is_refused(half_done, simulate, monkeypatch, tmp_path):
    from sim.methods.side_tuning.learner import SideTuningLearner

    step = SideTuningLearner.step
    monkeypatch.setattr(
        SideTuningLearner,
        "step",
        lambda self, update, records: step(self, update, records[:-1]),
    )  # other code
    with pytest.raises(CannotResume, match="run the scenario anew, without --resume"):
        half_done()


def test_a_refused_resume_says_what_is_other_and_changes_nothing(
    mobifleet, scenario_file, tmp_path, monkeypatch
):
    path, run = scenario_file(), tmp_path / "runs" / "tiny"
    assert mobifleet("run", path, "-q").code == 0
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    refused = mobifleet("run", path, "--resume", "--precision", "bfloat16", *PLAIN)
    assert (refused.code, "was begun with --precision float32" in refused.err) == (2, True)
    refused = mobifleet("run", path, "--resume", "--set", "task.train=50", *PLAIN)
    other = tmp_path / "runs" / "tiny-other"  # of a scenario that only begins alike
    other.mkdir()
    named = {**manifest, "status": "interrupted", "scenario": {"name": "tiny-other"}}
    (other / "manifest.json").write_text(json.dumps(named))
    said = "with these settings and this seed (runs/tiny: with others)"
    assert (refused.code, said in " ".join(refused.err.split())) == (2, True)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    with monkeypatch.context() as context:

        def not_there(*_, **__):
            raise AssetMissing("the weights are not there")

        context.setattr(Simulation, "prepare", not_there)
        assert mobifleet("run", path, "--resume", *PLAIN).code == 2
    left = json.loads((run / "manifest.json").read_text())
    assert left == json.loads(before[run / "manifest.json"])
    with monkeypatch.context() as context:

        def other_course(sim):
            raise CannotResume.other_course()

        context.setattr(Simulation, "run", other_course)
        refused = mobifleet("run", path, "--resume", *PLAIN)
        assert refused.code == 2 and "the replay differs" in " ".join(refused.err.split())
    assert json.loads((run / "manifest.json").read_text()) == json.loads(
        before[run / "manifest.json"]
    )

    assert (run / "figures").is_dir()
    assert mobifleet("run", path, "--resume", *PLAIN).code == 0  # without figures
    assert not (run / "figures").exists()  # those of the interrupted run
    assert open_run(run).summary["digest"] == manifest["digest"]


@pytest.mark.thorough
def test_resuming_with_another_scenario_is_refused(stopped, mobifleet, scenario_file, tmp_path):
    stopped(signal.SIGKILL)
    for change in (("--seed", "1"), ("--set", "method.replay=6"), ("--set", "task.train=50")):
        outcome = mobifleet("run", scenario_file(), "--out", "run", "--resume", *change, *PLAIN)
        assert outcome.code == 2
        assert "another scenario, seed or setting" in outcome.err
        assert (tmp_path / "run" / "journal.jsonl").is_file()  # nothing was lost by the attempt


def test_there_must_be_something_to_resume(mobifleet, scenario_file):
    path = scenario_file()
    assert "no unfinished run of tiny" in mobifleet("run", path, "--resume", *PLAIN).err
    assert mobifleet("run", path, "--dry", *PLAIN).code == 0
    assert "is finished" in mobifleet("run", path, "--resume", "--out", "runs/tiny", *PLAIN).err
    assert "no unfinished run" in mobifleet("run", path, "--resume", *PLAIN).err
    assert (
        "not a run directory" in mobifleet("run", path, "--resume", "--out", "nowhere", *PLAIN).err
    )


@pytest.mark.thorough
def test_the_newest_unfinished_run_is_found_without_out(
    stopped, mobifleet, scenario_file, tmp_path
):
    stopped(signal.SIGKILL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "tiny-2")
    noted = "note: runs/tiny-2 holds an unfinished run of this scenario: --resume goes on with it"
    assert noted in " ".join(mobifleet("run", scenario_file(), *PLAIN).err.split())
    outcome = mobifleet("run", scenario_file(), "--resume", *PLAIN)
    assert outcome.code == 0, outcome.err
    assert open_run(tmp_path / "runs" / "tiny-2").manifest["status"] == "finished"
