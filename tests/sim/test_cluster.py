"""Runs on the nodes of a Ray cluster: what comes back, and what a lost node costs."""

import io
import json
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sim.kernel.ray_cluster import Cluster
from sim.methods.federated_peft.client_updates import made_elsewhere
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.sweep import cluster
from sim.sweep.engine import failure, is_done, run_all
from sim.sweep.grid import cells_of, planned

ALERT = {"health_check_period_ms": 500, "health_check_failure_threshold": 10}


@pytest.fixture
def nodes(monkeypatch):
    """Two nodes of one core each on this machine: `lose()` one of them, and `add()` one again."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # or they starve beside other tests
    how = {"num_cpus": 1, "object_store_memory": 10**8}
    head = {**how, "include_dashboard": False, "_system_config": ALERT}
    made = Cluster(initialize_head=True, head_node_args=head)
    others = [made.add_node(**how)]
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield SimpleNamespace(
        lose=lambda: made.remove_node(others.pop(), allow_graceful=False),
        add=lambda: others.append(made.add_node(**how)),
    )
    ray.shutdown()
    made.shutdown()


def plan(scenario_file, out, **changes):
    path = scenario_file(**changes)
    scenario = load(str(path), Scenario)
    grid = cells_of({"task.train": [30, 40]})
    return planned(scenario, grid, [], 2, out), path.parent


def digests(entries):
    return [json.loads((e.folder / "summary.json").read_text())["digest"] for e in entries]


@pytest.mark.thorough
def test_a_cluster_changes_nothing_and_a_node_that_is_lost_in_the_middle_loses_nothing(
    nodes, scenario_file, tmp_path, simulate, mark, monkeypatch
):
    """One test, as a cluster takes as long to start as all of it to run."""
    inline = mark(simulate())
    with monkeypatch.context() as context:
        context.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache-ray"))
        assert mark(simulate(workers="ray")) == inline

    method = {"kind": "fedavg-lora", "rounds": 3, "participation": 1.0}
    inline = mark(simulate(method=method))
    calls, really = [], Cluster.call

    def call(self, function, *arguments):
        calls.append(function)
        if len(calls) == 2:
            nodes.lose()
        return really(self, function, *arguments)

    with monkeypatch.context() as context:
        context.setattr(Cluster, "call", call)
        assert mark(simulate(method=method, workers="ray")) == inline
    assert calls == [made_elsewhere] * len(calls) and len(calls) > 3
    nodes.add()

    here, folder = plan(scenario_file, tmp_path / "here")
    run_all(here, folder, False, 1, lambda *_: None)
    there, _ = plan(scenario_file, tmp_path / "there")
    ended = []

    def end(entry, count, of):
        if not ended:
            nodes.lose()
        ended.append((entry.folder, count, of))

    run_all(there, folder, False, "ray", end)
    assert [count for _, count, _ in ended] == [1, 2, 3, 4]
    assert {folder for folder, _, _ in ended} == {entry.folder for entry in there}
    assert digests(there) == digests(here) and len(set(digests(here))) == 4
    assert all(is_done(entry, False, folder) for entry in there)
    names = [sorted(p.name for p in e.folder.iterdir()) for e in (here[0], there[0])]
    assert names[0] == names[1]
    assert not list(tmp_path.glob("there/**/.coming-*"))

    broken = replace(there[0], folder=tmp_path / "broken" / "run")
    (folder / "texts.csv").unlink()
    run_all([broken], folder, False, "ray", lambda *_: None, keep_going=True)
    assert "texts.csv" in failure(broken)
    with pytest.raises(ValueError, match=r"texts\.csv"):
        run_all([broken], folder, False, "ray", lambda *_: None)


def test_a_node_is_sent_the_files_that_scenarios_name_and_lays_them_out(scenario_file, tmp_path):
    entries, folder = plan(scenario_file, tmp_path / "out")
    files = cluster.files_of(entries, folder)
    assert files == {"texts.csv": (folder / "texts.csv").read_bytes()}
    deep = {**files, "models/a/config.json": b"{}"}
    place = cluster._laid_out(deep, tmp_path / "files")
    assert {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    } == deep


def test_a_run_comes_back_whole_or_not_at_all(tmp_path):
    sent, folder = tmp_path / "sent", tmp_path / "runs" / "one"
    (sent / "figures").mkdir(parents=True)
    (sent / "figures" / "a.png").write_bytes(b"a")
    (sent / "manifest.json").write_text("{}")
    (sent / ".lock").write_text("process 1")
    packed = cluster._packed(sent)
    for _ in range(2):  # into nothing, and over what is there
        cluster._put_in_place(packed, folder)
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        assert found == ["figures/a.png", "manifest.json"]
        (folder / "old.txt").write_text("of the one before")
    with pytest.raises(tarfile.TarError):
        cluster._put_in_place(packed[:700], folder)
    assert (folder / "old.txt").exists()
    outside = io.BytesIO()
    with tarfile.open(fileobj=outside, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside"))
    with pytest.raises(tarfile.TarError):
        cluster._put_in_place(outside.getvalue(), folder)
    assert [p.name for p in folder.parent.iterdir()] == ["one"]


def test_cores_of_a_cluster_and_processes_are_not_both_asked_for(mobifleet, scenario_file):
    done = mobifleet(
        "sweep", scenario_file(), "--grid", "seed=0,1", "--engine", "ray", "--workers", 2
    )
    assert done.code == 2 and "leave --workers out" in done.err
