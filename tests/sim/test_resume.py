"""A run that was killed, stopped or torn goes on to the very result of one that ran straight through."""

import json
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import sim.learners.side_tuning
from sim import faults
from sim.journal import CannotResume, Journal
from sim.results import open_run

# A run whose updates take their time on the host, so that it has a middle, and whose every evaluation is a checkpoint.
SLOW_RUN = """
import functools, time
from sim import cli, runner
from sim.learners.side_tuning import SideTuningLearner
runner.Journal = functools.partial(runner.Journal, seconds_between_checkpoints=0)
step = SideTuningLearner.step
SideTuningLearner.step = lambda self, records: (time.sleep(0.1), step(self, records))[1]
cli.main()
"""
PLAIN = ("--quiet", "--no-figures", "--workers", "1")


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
    """Starts a slow run into tmp_path/run, sends it a signal after a few evaluations; returns (exit code, stderr)."""

    def stop(number: signal.Signals) -> tuple[int, str]:
        process = shell("-c", SLOW_RUN, "run", scenario_file(), "--out", "run", *PLAIN)
        journal, deadline = tmp_path / "run" / "journal.jsonl", time.monotonic() + 60
        while not journal.is_file() or len(journal.read_text().splitlines()) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    return stop


def resume(mobifleet, scenario_file, tmp_path) -> str:
    outcome = mobifleet("run", scenario_file(), "--out", "run", "--resume", *PLAIN)
    assert outcome.code == 0, outcome.err
    return open_run(tmp_path / "run").summary["digest"]


def test_a_killed_run_resumes_to_the_same_digest(straight, stopped, mobifleet, scenario_file, tmp_path, monkeypatch):
    code, _ = stopped(signal.SIGKILL)
    assert code == -signal.SIGKILL
    folder = tmp_path / "run"
    assert json.loads((folder / "manifest.json").read_text())["status"] == "running"
    assert (folder / "checkpoint.safetensors").is_file()
    trained = []
    step = sim.learners.side_tuning.SideTuningLearner.step

    def counted(self, records):
        trained.append(self._behind)
        return step(self, records)

    monkeypatch.setattr(sim.learners.side_tuning.SideTuningLearner, "step", counted)
    assert resume(mobifleet, scenario_file, tmp_path) == straight
    assert trained.count(True) >= 5  # so many updates came from the journal instead of being computed again
    assert not (folder / "journal.jsonl").exists()
    assert not (folder / "checkpoint.safetensors").exists()


def test_ctrl_c_leaves_a_readable_run_that_resumes(straight, stopped, mobifleet, scenario_file, tmp_path):
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


def half_done(mobifleet, scenario_file, tmp_path, monkeypatch, after: int = 12, every_s: float = 0.0) -> None:
    """Leave tmp_path/run as a run that died at update `after`; checkpoints at least `every_s` apart."""
    step, steps = sim.learners.side_tuning.SideTuningLearner.step, []

    def dying(self, records):
        steps.append(1)
        if len(steps) > after:
            raise RuntimeError("the host died")
        return step(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(sim.learners.side_tuning.SideTuningLearner, "step", dying)
        patch.setattr("sim.runner.Journal", lambda *args: Journal(*args, seconds_between_checkpoints=every_s))
        with pytest.raises(RuntimeError, match="the host died"):
            mobifleet("run", scenario_file(), "--out", "run", *PLAIN)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("after", [0, 1, 4, 5, 9, 30])
def test_a_run_that_died_anywhere_resumes_to_the_same_digest(
    after, straight, mobifleet, scenario_file, tmp_path, monkeypatch
):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch, after)
    assert resume(mobifleet, scenario_file, tmp_path) == straight


def test_dying_twice_with_a_torn_line_between_is_survived(straight, mobifleet, scenario_file, tmp_path, monkeypatch):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch, after=12)
    journal = tmp_path / "run" / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"key": "0123", "sco')
    lines = len(journal.read_text().splitlines())
    with monkeypatch.context() as patch:
        patch.setattr("sim.runner._write", lambda *args: (_ for _ in ()).throw(RuntimeError("again")))
        patch.setattr("sim.runner.Journal", lambda *args: Journal(*args, seconds_between_checkpoints=0))
        with pytest.raises(RuntimeError, match="again"):
            mobifleet("run", scenario_file(), "--out", "run", "--resume", *PLAIN)
    assert len(journal.read_text().splitlines()) > lines
    assert resume(mobifleet, scenario_file, tmp_path) == straight


def test_without_a_checkpoint_the_learning_is_computed_again(straight, mobifleet, scenario_file, tmp_path, monkeypatch):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch, every_s=1e9)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert resume(mobifleet, scenario_file, tmp_path) == straight


def test_a_damaged_checkpoint_is_computed_again(straight, mobifleet, scenario_file, tmp_path, monkeypatch):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch)
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"\x00" * 100)
    assert resume(mobifleet, scenario_file, tmp_path) == straight


@pytest.mark.parametrize("after", [12, 37])
def test_a_checkpoint_from_elsewhere_is_refused(after, mobifleet, scenario_file, tmp_path, monkeypatch):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch, min(after, 36))
    if after == 37:  # a journal that knows every evaluation, so that only the checkpoint tells
        with monkeypatch.context() as patch:
            patch.setattr("sim.runner._write", lambda *args: (_ for _ in ()).throw(RuntimeError("late")))
            with pytest.raises(RuntimeError, match="late"):
                mobifleet("run", scenario_file(), "--out", "run", "--resume", *PLAIN)
    save_file({"x": np.zeros(1)}, tmp_path / "run" / "checkpoint.safetensors", {"key": "of another history"})
    outcome = mobifleet("run", scenario_file(), "--out", "run", "--resume", *PLAIN)
    assert outcome.code == 2
    assert "run the scenario anew, without --resume" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("change", [("--seed", "1"), ("--set", "method.replay=6"), ("--set", "task.train=50")])
def test_resuming_with_another_scenario_is_refused(change, mobifleet, scenario_file, tmp_path, monkeypatch):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch)
    outcome = mobifleet("run", scenario_file(), "--out", "run", "--resume", *change, *PLAIN)
    assert outcome.code == 2
    assert "another scenario, seed or setting" in outcome.err
    assert (tmp_path / "run" / "journal.jsonl").is_file()  # nothing was lost by the attempt


def test_there_must_be_something_to_resume(mobifleet, scenario_file, tmp_path):
    path = scenario_file()
    assert "no unfinished run of tiny" in mobifleet("run", path, "--resume", *PLAIN).err
    assert mobifleet("run", path, "--dry", *PLAIN).code == 0
    assert "is finished" in mobifleet("run", path, "--resume", "--out", "runs/tiny", *PLAIN).err
    assert "no unfinished run" in mobifleet("run", path, "--resume", *PLAIN).err
    assert "not a run directory" in mobifleet("run", path, "--resume", "--out", "nowhere", *PLAIN).err


def test_the_newest_unfinished_run_is_found_without_out(mobifleet, scenario_file, tmp_path, monkeypatch):
    half_done(mobifleet, scenario_file, tmp_path, monkeypatch)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "tiny-2")
    outcome = mobifleet("run", scenario_file(), "--resume", *PLAIN)
    assert outcome.code == 0, outcome.err
    assert open_run(tmp_path / "runs" / "tiny-2").manifest["status"] == "finished"


def test_a_journal_recalls_what_it_was_told_and_refuses_what_it_was_not(tmp_path):
    journal = Journal(tmp_path, seconds_between_checkpoints=1e9)
    journal.remember("a", {"x": 1 / 3}, 0.1 + 0.2, lambda path: pytest.fail("too early for a checkpoint"))
    journal.remember("b", {"x": 0.5}, None, lambda path: pytest.fail("too early for a checkpoint"))
    again = Journal(tmp_path, resume=True)
    assert again.recall("a") == {"x": 1 / 3}
    assert (again.loss("a"), again.loss("b"), again.loss("c")) == (0.1 + 0.2, None, None)
    with pytest.raises(CannotResume, match="without --resume"):
        again.recall("c")
    assert Journal(tmp_path)._entries == {}  # a fresh run forgets an older one's journal
    assert not (tmp_path / "journal.jsonl").exists()
