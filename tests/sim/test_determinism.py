"""The same seed gives the same bits: however often, on however many workers, from whatever store,
in whatever process.
"""

import hashlib
import json
import shutil
from importlib.metadata import version

import numpy as np
import pytest

from learning.arithmetic import arithmetic
from learning.backbones import assets
from sim.kernel.recorder import Recorder
from sim.results.run import open_run

DATA = {"partition": {"kind": "dirichlet", "alpha": 0.5, "min_size": 4}}


def spans_of(sim) -> list[dict]:
    return sim.recorder.spans().to_pylist()


def without_learning(sim) -> list[tuple]:
    """Everything about spans; what is learned shows nowhere in them."""
    return [tuple(map(str, span.values())) for span in spans_of(sim)]


def test_the_same_seed_gives_the_same_digest_and_another_another(simulate, mark):
    first = mark(simulate())
    assert mark(simulate()) == first
    assert mark(simulate("seed=1")) != first


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_nothing(workers, simulate, mark, tmp_path, monkeypatch):
    marks = set()
    for count in (1, workers):
        monkeypatch.setenv(
            "MOBIFLEET_CACHE", str(tmp_path / f"cache-{count}")
        )  # so that each computes for itself
        marks.add(mark(simulate(workers=count)))
    assert len(marks) == 1


@pytest.mark.thorough
def test_python_hash_seeds_change_nothing(shell, scenario_file, tmp_path):
    path, processes = scenario_file(), []
    for seed in ("0", "12345"):
        argv = ("run", path, "-q", "--no-figures", "--workers", "1", "--out", f"run-{seed}")
        start = "from sim.cli import main as cli; cli.main()"
        processes.append(shell("-c", start, *argv, PYTHONHASHSEED=seed))
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    summaries = [
        json.loads((tmp_path / f"run-{seed}" / "summary.json").read_text())
        for seed in ("0", "12345")
    ]
    assert summaries[0]["digest"] == summaries[1]["digest"]
    assert summaries[0]["final"] is not None


def test_a_cold_a_warm_and_a_partly_warm_store_give_the_same(simulate, mark, tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cold"))
    cold = mark(simulate())
    shards = sorted((assets.cache_dir() / "activations").rglob("*.safetensors"))
    assert shards
    assert mark(simulate()) == cold
    assert (
        sorted((assets.cache_dir() / "activations").rglob("*.safetensors")) == shards
    )  # nothing was computed again
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "partly"))
    simulate("task.train=17", "seed=3")
    assert mark(simulate()) == cold
    shard = sorted((assets.cache_dir() / "activations").rglob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-40] + b"\x01" * 40)
    assert mark(simulate()) == cold  # a damaged shard is noticed


# --- another kind of machine


@pytest.fixture
def on_a_lesser_machine(shell):
    """Runs a command line where torch may not use what this processor has beyond the oldest of its
    kind.
    """
    if arithmetic().split(",")[0].endswith("DEFAULT"):
        pytest.skip("this machine has no lesser kind to be")

    def run(*argv: object) -> str:
        more = (
            ("-q", "--no-figures", "--workers", "1") if argv[0] == "run" else ("--processes", "1")
        )
        process = shell(
            "-c",
            "from sim.cli import main as cli; cli.main()",
            *argv,
            *more,
            ATEN_CPU_CAPABILITY="default",
        )
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return " ".join((out + errors).split())

    return run


@pytest.mark.thorough
def test_what_another_kind_of_machine_stored_is_not_taken(
    on_a_lesser_machine, mobifleet, scenario_file, session_cache, tmp_path, monkeypatch
):
    path, digests = scenario_file(), {}
    for cache in ("own", "shared"):
        shutil.copytree(
            session_cache, tmp_path / f"cache-{cache}", ignore=shutil.ignore_patterns("activations")
        )
        monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / f"cache-{cache}"))
        if cache == "shared":
            on_a_lesser_machine("run", path, "--out", "lesser")
        assert (
            mobifleet("run", path, "--out", cache, "-q", "--no-figures", "--workers", "1").code == 0
        )
        digests[cache] = open_run(tmp_path / cache).summary["digest"]
    assert digests["own"] == digests["shared"]
    assert open_run(tmp_path / "own").manifest["arithmetic"] == [arithmetic()]
    (lesser,) = open_run(tmp_path / "lesser").manifest["arithmetic"]
    assert "DEFAULT" in lesser and lesser != arithmetic()
    assert f"torch {version('torch')}" in lesser


@pytest.mark.thorough
def test_a_run_that_goes_on_elsewhere_says_so(
    on_a_lesser_machine, mobifleet, scenario_file, tmp_path
):
    path, plain = scenario_file(), ("-q", "--no-figures", "--workers", "1")
    assert mobifleet("run", path, "--out", "run", *plain).code == 0
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "interrupted"}))
    said = on_a_lesser_machine("run", path, "--out", "run", "--resume")
    run = open_run(tmp_path / "run")
    assert f"begun on {arithmetic()}, resumed on {run.manifest['arithmetic'][1]}" in said
    assert run.manifest["arithmetic"][0] == arithmetic()
    assert run.summary["remarks"][0].startswith("begun on ")
    assert mobifleet("run", path, "--out", "plain", *plain).code == 0
    assert open_run(tmp_path / "plain").summary["remarks"] == []


@pytest.mark.thorough
def test_a_comparison_of_runs_from_several_machines_says_so(
    on_a_lesser_machine, mobifleet, scenario_file
):
    method = {"kind": "fed-mobillm", "server_batch": 8, "device_batch": 4}
    path = scenario_file(
        compare={"methods": {"a": {**method, "replay": 5}, "b": {**method, "replay": 4}}}
    )
    assert "several kinds of machine" not in on_a_lesser_machine(
        "compare", path, "--out", "out", "--methods", "a"
    )
    said = " ".join(mobifleet("compare", path, "--out", "out", "--processes", "1").out.split())
    assert "these runs come from several kinds of machine or library" in said
    assert f"1 by {arithmetic()}" in said


@pytest.mark.parametrize(
    "change", [{}, {"stop": {"horizon": "1100 ms"}}, {"cost_as": {"backbone": "bert-base"}}]
)
def test_a_dry_run_has_the_very_spans_of_the_real_one(change, simulate):
    assert without_learning(simulate(dry=True, **change)) == without_learning(simulate(**change))


def test_a_dry_run_is_the_real_one_for_every_loss_wire_and_tap(simulate):
    for overrides in (
        ("method.wire=int8", "method.taps=[0, 1]"),
        ("method.loss=cross-entropy", "method.wire=float32"),
        ("method.side_network.start=zero", "method.update_share_on_arrival=0.3"),
    ):
        assert without_learning(simulate(*overrides, dry=True)) == without_learning(
            simulate(*overrides)
        )


SIZED = {"dataset": {"classes": 3, "tokens": 16}, "train": 400, "test": 10, "max_tokens": 16}
MIXED = {
    "device": {"jetson-tx2": 1, "raspberry-pi-5": 1, "jetson-nano": 2},
    "backbone": "random-bert",
}
LINKS = {"lte": 1, "wifi-home": 2}


def test_a_device_added_at_the_end_leaves_the_others_draws_alone(simulate):
    def fleet(count: int):
        return simulate(
            dry=True,
            task=SIZED,
            fleet=[{**MIXED, "link": LINKS, "count": count}],
            arrivals={"kind": "at-once"},
        )

    few, more = fleet(8), fleet(9)
    assert [d.member for d in more.devices][:8] == [d.member for d in few.devices]
    # jitter: the factor of each device's n-th piece of equal work
    for before, after in zip(few.devices, more.devices, strict=False):
        assert [before._model.seconds(1e9) for _ in range(3)] != [
            before._model.seconds(1e9) for _ in range(3)
        ]
        first, second = (
            [
                s["end_s"] - s["start_s"]
                for s in spans_of(sim)
                if (s["actor"], s["kind"]) == (before.id, "compute")
            ]
            for sim in (few, more)
        )
        assert first[:4] == pytest.approx(
            second[:4], rel=1e-9
        )  # the same draws, at other moments of the clock
        assert after.id == before.id


def test_a_poisson_arrival_added_at_the_end_keeps_the_others_in_their_order(simulate):
    def joined(count: int) -> np.ndarray:
        sim = simulate(
            dry=True,
            task=SIZED,
            fleet=[
                {"count": count, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}
            ],
            arrivals={"kind": "poisson", "mean_gap": "2 s"},
        )
        return np.array([device.joined_at_s for device in sim.devices])

    few, more = joined(10), joined(11)
    assert np.argsort(few).tolist() == [i for i in np.argsort(more).tolist() if i < 10]
    assert np.sort(more)[:10] == pytest.approx(np.sort(few))


def test_two_settings_of_the_method_meet_the_same_world(simulate):
    common = {"arrivals": {"kind": "poisson", "mean_gap": "1 s"}, "task": {**SIZED, "train": 60}}
    fresh = {"fresh_data": {"kind": "poisson", "rate": "2 Hz"}}
    one = simulate("method.replay=2", dry=True, **common, **fresh)
    other = simulate("method.wire=bfloat16", "method.server_batch=4", dry=True, **common, **fresh)
    for a, b in zip(one.devices, other.devices, strict=True):
        assert (a.member, a.joined_at_s) == (b.member, b.joined_at_s)
        assert np.array_equal(a.samples, b.samples)
        assert np.array_equal(a._ready_s, b._ready_s)
        first, second = (
            [
                s["end_s"] - s["start_s"]
                for s in spans_of(sim)
                if (s["actor"], s["kind"]) == (a.id, "compute")
            ]
            for sim in (one, other)
        )
        assert first == pytest.approx(second, rel=1e-9)
    assert one.updates != other.updates


ROW = ("device-0000", "upload", 1.0, 2.0, 100, 5.0, 3.0, "ok", (1, 2))
OTHER = ("device-0001", "compute", 1.5, 2.5, 101, 6.0, 3.5, "horizon", (1, 3))


@pytest.mark.parametrize("column", range(9))
def test_the_digest_sees_every_column_of_a_span(column):
    def digest(row: tuple) -> str:
        recorder = Recorder()
        recorder.span("server", "train", 0.0, 1.0)
        recorder.span(*row)
        return recorder.digest("scenario")

    changed = (*ROW[:column], OTHER[column], *ROW[column + 1 :])
    assert digest(ROW) == digest(ROW)
    assert digest(changed) != digest(ROW)


def test_the_digest_is_of_the_columns_one_after_the_other():
    recorder = Recorder()
    recorder.span(*ROW)
    recorder.span("é", "wait", 0.0, 1.5)
    recorder.metric(2.0, "accuracy", 0.5, "bert")
    content = hashlib.sha256(b"x\0y")
    for name, column in {
        "actor": "device-0000\0é".encode(),
        "kind": b"upload\0wait",
        "start_s": np.array([1.0, 0.0]),
        "end_s": np.array([2.0, 1.5]),
        "nbytes": np.array([100, 0]),
        "flop": np.array([5.0, 0.0]),
        "joules": np.array([3.0, 0.0]),
        "outcome": b"ok\0ok",
        "flows": np.array([2, 0], dtype=np.int32).tobytes() + np.array([1, 2]).tobytes(),
        "time_s": np.array([2.0]),
        "name": b"accuracy",
        "value": np.array([0.5]),
        "group": b"bert",
    }.items():
        content.update(name.encode())
        content.update(column)
    assert recorder.digest("x", "y") == content.hexdigest()


def test_a_recorder_may_be_looked_at_while_it_grows():
    recorder, seen = Recorder(), []
    for number in range(3):
        recorder.span(f"device-{number}", "upload", number, number + 1, number, flows=(number,) * 2)
        recorder.metric(number, "loss", number)
        seen.append((recorder.spans(), recorder.metrics()))
    assert [(len(spans), len(metrics)) for spans, metrics in seen] == [(1, 1), (2, 2), (3, 3)]
    assert seen[-1][0].slice(0, 1).equals(seen[0][0])
    assert seen[-1][0].to_pylist()[2] == {
        **{"actor": "device-2", "kind": "upload", "start_s": 2.0, "end_s": 3.0, "nbytes": 2},
        **{"flop": 0.0, "joules": 0.0, "outcome": "ok", "flows": [2, 2]},
    }
    sums = recorder.sums_by_kind(["device-2", "nobody", "device-1"])
    assert sums["upload"].tolist() == [[2, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 1]]


def test_the_digest_sees_flows_metrics_order_and_what_else_is_named():
    def digest(*also: str, flows=((1,), (2,)), metrics=(0.5,), order=(0, 1)) -> str:
        recorder = Recorder()
        for index in order:
            recorder.span("a", "upload", index, index + 1, flows=flows[index])
        for value in metrics:
            recorder.metric(1.0, "accuracy", value)
        return recorder.digest(*also)

    marks = [
        digest(),
        digest("x"),
        digest("x", "y"),
        digest(flows=((1, 2), ())),
        digest(flows=((), (1, 2))),
        digest(metrics=()),
        digest(metrics=(0.5, 0.5)),
        digest(metrics=(0.25,)),
        digest(order=(1, 0)),
    ]
    assert len(set(marks)) == len(marks)


def test_the_hosts_own_time_is_not_in_the_digest(simulate, mark):
    sim = simulate()
    before = mark(sim)
    sim.host.torch_s, sim.build_s = 1e6, 1e6
    assert mark(sim) == before


@pytest.mark.fetched
def test_a_small_real_study_gives_the_same_bits_on_one_and_two_workers(simulate, mark):
    for name in ("minilm", "trec-questions"):
        try:
            assets.path(name)
        except assets.AssetMissing as missing:
            pytest.skip(str(missing))
    real = {
        "task": {"dataset": "trec-questions", "train": 60, "test": 40, "max_tokens": 16},
        "fleet": [
            {"count": 2, "device": "jetson-tx2", "backbone": "minilm-l2", "link": "lte"},
            {"count": 1, "device": "raspberry-pi-5", "backbone": "minilm-l1", "link": "wifi-home"},
        ],
    }
    one, two = simulate(**real), simulate(workers=2, **real)
    assert mark(one) == mark(two)
    assert one.score > 0.25
