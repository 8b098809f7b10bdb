"""What a user can do wrong, and what a machine can: one message that says what to do, never a
traceback.
"""

import errno
import json
import os

import pytest

from sim.cli import faults
from sim.results.run import open_run

PLAIN = ("-q", "--no-figures", "--workers", "1")
ONE = "fleet=[{count: 1, device: jetson-tx2, backbone: random-bert, link: lte}]"
TOGETHER = "arrivals={kind: at-once}"


def sets(overrides) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


# Scenarios that are mad but mean something: they run.
RUNS = [
    ("task.train=1", "task.test=1", ONE, TOGETHER, "method.replay=8"),
    ("task.train=3", "method.server_batch=15"),
    ("fleet.0.count=59", TOGETHER),
    ("task.test=1",),
    ("task.max_tokens=4",),
    ("task.partition={kind: dirichlet, alpha: 1e-9}",),
    ("task.partition={kind: dirichlet, alpha: 1e9}",),
    ("stop.horizon=1 ns",),
    ("stop.target=1e-9",),
    ("stop.target=1",),
    ("method.update_share_on_arrival=0",),
    ("method.device_batch=1000",),
    ("method.server_batch=1",),
    ("method.taps=[0, 1]",),
    ("method.side_network={start: zero, projection: always, dropout: 0, averaging: 0}",),
    ("method.side_network={width: 8, bottleneck: 1}",),
    ("method.learning_rate=1e30",),
    ("server.ingress=1 bit/s",),
    ("server.ingress=0", "stop.horizon=1 h"),
    ("server.step_overhead=0 s",),
    ("server.device=jetson-nano",),
    ("evaluate_every=1000000",),
    ("seed=99999999999999999999999999999999",),
    ("fresh_data={kind: poisson, rate: 1e300}",),
    ("traces={ingress: {times: [0, 1], capacity: [1e6, 2e6], period: 2}}",),
    ("cells={a: {up: 1 Mbit/s, down: 1 bit/s}}", "fleet.0.cell=a"),
    ("cost_as={backbone: opt-1.3b}",),
    ("fleet.0.memory=1 KiB", "fleet.1.memory=1 KiB", "out_of_memory=record"),
]
# Scenarios that cannot be run, and a word of the message.
REFUSED = [
    (("fleet.0.count=0",), "at least 1"),
    (("fleet.0.count=-1",), "at least 1"),
    (("fleet.0.count=70",), "joining times"),
    (("fleet.0.count=70", TOGETHER), "60 texts do not give 71 clients"),
    (("fleet.0.count=1000000", TOGETHER), "60 texts do not give"),
    (("fleet.0.count=1000000000000", TOGETHER), "must be at most 2000000"),
    (("fleet=[]",), "fleet"),
    (("task.train=0",), "at least 1"),
    (("seed=1e30",), "seed: expected a smaller whole number"),
    (("task.train=2",), "do not give 3 clients"),
    (("task.train=100000",), "do not fit"),
    (("task.test=119",), "do not fit"),
    (("task.max_tokens=1000000",), "at most 8192"),
    (("task.partition={kind: iid, min_size: 1000}",), "1000 each"),
    (("task.partition={kind: dirichlet, alpha: .nan}",), "alpha"),
    (("task.partition={kind: shards, shards: 1000}",), "1000 each"),
    (("task.partition={kind: natural}",), "client column"),
    (("stop.horizon=0 s",), "greater than 0"),
    (("stop.horizon=-1 s",), "negative"),
    (("stop.horizon=.nan",), "finite"),
    (("stop.horizon=.inf",), "finite"),
    (("stop.target=2",), "at most 1"),
    (("method.replay=.nan",), "finite"),
    (("method.replay=-3",), "greater than 0"),
    (("method.replay=.inf",), "finite"),
    (("method.replay=0.0001",), "replay 0.0001 x 60 samples"),
    (("task.train=3", "method.server_batch=16"), "no update is ever granted"),
    (("method={kind: single-side-network, replay: 0.7}",), "replay 0.7 x 40 samples"),
    (("method={kind: centralised, replay: 0.5}",), "replay 0.5 x 60 samples"),
    (("method={kind: pae-mobillm, epochs: 1, server_batch: 61}",), "replay 1 x 60 samples"),
    (("method={kind: fedbuff, answers: 12, buffer: 50}",), "12 in all (`answers`)"),
    (("method.learning_rate=.inf",), "finite"),
    (("method.update_share_on_arrival=1.5",), "at most 1"),
    (("method.device_batch=100000000",), "GiB short"),
    (("method.taps=99",), "the shallowest backbone of the fleet, has 1: set"),
    (("method.taps=0",), "0 blocks"),
    (("method.taps=[]",), "increasing list"),
    (("method.taps=[2]",), "has 1 layers"),
    (("method.kind=fedavg",), "fed-mobillm"),
    (("server.ingress=-1",), "negative"),
    (("server.engine=nope",), "no engine"),
    (("server.step_overhead=.nan",), "finite"),
    (("arrivals={kind: poisson, mean_gap: 0 s}",), "0"),
    (("arrivals={kind: poisson, mean_gap: 1e300}",), "sooner"),
    (("arrivals={kind: list, times: []}",), "0 joining times for 3"),
    (("arrivals={kind: list, times: [1e300, 0, 0]}",), "sooner"),
    (("fresh_data={kind: poisson, rate: 0}",), "0"),
    (("fresh_data={kind: poisson, rate: 1e-300}",), "sooner"),
    (("evaluate_every=0",), "at least 1"),
    (("seed=-1",), "at least 0"),
    (("fleet.0.memory=0",), "short"),
    (("fleet.0.memory=-1",), "negative"),
    (("fleet.0.device={}",), "weights"),
    (("fleet.0.device={jetson-tx2: 0}",), "weights"),
    (("fleet.0.device=jetson-tx3",), "jetson-tx2"),
    (("fleet.0.backbone=random-bert-l9",), "2 layers"),
    (("fleet.0.backbone=roberta-base",), "without weights"),
    (("fleet.0.link=lte2",), "lte"),
    (("fleet.0.cell=nope",), "no cell"),
    (("traces={ingress: {times: [0, 1], capacity: [1]}}",), "2 times for 1"),
    (("cost_as={backbone: {random-bert: bert-base}}",), "random-bert-l1"),
    (("cost_as={backbone: opt-1.3b, tokens: 100000}",), "GiB short"),
    (("backbones={mine: {path: no/where}}", "fleet.0.backbone=mine"), "config.json not found"),
    (("backbones={mine: {}}", "fleet.0.backbone=mine"), "exactly one of"),
    (("task.dataset={path: nope.csv}",), "nope.csv"),
    (("task.dataset={path: texts.csv, label: nope}",), "its columns: text, label"),
    (("task.dataset={classes: 3, tokens: 10}",), "--dry"),
    (("task.dataset=trec-question",), "trec-questions"),
    (("name=../x",), "name: expected letters, digits"),
]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(one, id=" ".join(one), marks=[pytest.mark.thorough] * (number % 3 > 0))
        for number, one in enumerate(RUNS)
    ],
)
def test_a_mad_scenario_that_means_something_runs(overrides, mobifleet, scenario_file, tmp_path):
    outcome = mobifleet("run", scenario_file(), "--out", "run", *PLAIN, *sets(overrides))
    assert outcome.code == 0 and all(line.startswith("note: ") for line in outcome.err.splitlines())
    run = open_run(tmp_path / "run")
    assert run.summary["virtual_time_s"] < 1e9
    assert all(s["end_s"] >= s["start_s"] >= 0 for s in run.spans().to_pylist())


@pytest.mark.parametrize(
    ("overrides", "says"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_what_cannot_be_run_is_refused_in_one_message(
    overrides, says, mobifleet, scenario_file, tmp_path
):
    outcome = mobifleet("run", scenario_file(), "--out", "run", *PLAIN, *sets(overrides))
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.strip()
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) <= 3
    assert not (tmp_path / "run").exists()  # nothing ran, so nothing is left


@pytest.mark.thorough
def test_the_same_holds_in_a_process_of_its_own(shell, scenario_file):
    path = scenario_file()
    for overrides, says in (REFUSED[0], REFUSED[8], REFUSED[-4]):
        process = shell(
            "-c",
            "from sim.cli import main as cli; cli.main()",
            "run",
            path,
            "--dry",
            *PLAIN,
            *sets(overrides),
        )
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 2
        assert says in errors
        assert "Traceback" not in errors


def test_a_link_that_never_opens_ends_the_run_as_stalled(mobifleet, scenario_file, tmp_path):
    assert (
        mobifleet("run", scenario_file(), "--out", "run", *PLAIN, "--set", "server.ingress=0").code
        == 0
    )
    run = open_run(tmp_path / "run")
    assert run.summary["ended"] == "stalled"
    assert run.summary["outcomes"] == {"stalled": 3}
    assert run.summary["totals"]["uplink_bytes"] == 0


# --- memory


def test_too_little_memory_is_an_error_that_says_by_how_much_and_what_would_fit(
    mobifleet, scenario_file
):
    fleet = [
        {
            "count": 1,
            "device": "jetson-tx2",
            "backbone": "random-bert",
            "link": "lte",
            "memory": "950 KiB",
        },
        {"count": 2, "device": "jetson-tx2", "backbone": "random-bert-l1", "link": "lte"},
    ]
    outcome = mobifleet("check", scenario_file(fleet=fleet))
    assert outcome.code == 2
    for word in ("random-bert needs", "KiB short", "would fit: random-bert-l1", "device-0000"):
        assert word in outcome.err


def test_recorded_out_of_memory_takes_that_device_alone_out(simulate):
    fleet = [
        {
            "count": 1,
            "device": "jetson-tx2",
            "backbone": "random-bert",
            "link": "lte",
            "memory": "800 KiB",
        },
        {"count": 2, "device": "jetson-tx2", "backbone": "random-bert-l1", "link": "lte"},
    ]
    sim = simulate(fleet=fleet, out_of_memory="record")
    assert [device.outcome for device in sim.devices] == ["oom", "ok", "ok"]
    spans = sim.recorder.spans().to_pylist()
    assert [(s["kind"], s["outcome"]) for s in spans if s["actor"] == "device-0000"] == [
        ("load", "oom")
    ]
    assert sim.devices[0].finished_at_s is None
    assert sim.devices[1].finished_at_s > 0
    assert sim.updates == 40 * 5 // 8  # the records of the other two
    assert {s["actor"] for s in spans if s["kind"] == "download"} == {"device-0001", "device-0002"}


def test_the_peak_that_is_recorded_never_exceeds_what_was_checked(simulate):
    sim = simulate(dry=True)
    for device in sim.devices:
        lengths = sim.lengths(device, device.samples)
        batch = sim.costing.forward(device.member, lengths[:4])
        assert device.peak_memory_bytes > sim.costing.weight_bytes(device.member)
        assert device.peak_memory_bytes < device.profile.memory_bytes
        assert (
            device.peak_memory_bytes >= sim.costing.weight_bytes(device.member) + batch.peak_bytes
        )


# --- the run directory


def test_an_existing_directory_is_never_written_over(mobifleet, scenario_file, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    outcome = mobifleet("run", scenario_file(), "--dry", "--out", "mine", *PLAIN)
    assert outcome.code == 2
    assert "--out" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert (
        "mine" in mobifleet("run", scenario_file(), "--dry", "--out", "mine/thesis.txt", *PLAIN).err
    )


def test_by_default_runs_are_numbered(mobifleet, scenario_file, tmp_path):
    for _ in range(3):
        assert mobifleet("run", scenario_file(), "--dry", *PLAIN).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "tiny",
        "tiny-2",
        "tiny-3",
    ]
    digests = {open_run(path).summary["digest"] for path in (tmp_path / "runs").iterdir()}
    assert len(digests) == 1


def test_a_place_that_cannot_be_written_is_named(mobifleet, scenario_file, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = mobifleet("run", scenario_file(), "--dry", "--out", "file/run", *PLAIN)
    assert outcome.code == 2
    assert "--out" in outcome.err
    assert "file/run" in outcome.err


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "writer",
    [
        "sim.kernel.writing.pq.write_table",
        "sim.kernel.writing.json.dump",
        "sim.runner.device_table",
    ],
)
def test_a_full_disk_is_one_message(writer, mobifleet, scenario_file, monkeypatch):
    path = scenario_file()
    monkeypatch.setattr(writer, full_disk)
    outcome = mobifleet("run", path, "--dry", "--out", "run", *PLAIN)
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "name", ["spans.parquet", "devices.parquet", "summary.json", "manifest.json"]
)
def test_a_truncated_file_is_named_by_plot(name, mobifleet, scenario_file, tmp_path):
    assert mobifleet("run", scenario_file(), "--dry", "--out", "run", *PLAIN).code == 0
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    outcome = mobifleet("plot", "run")
    assert outcome.code == 2
    assert name in outcome.err
    assert "Traceback" not in outcome.err


def test_a_run_that_breaks_is_marked_as_failed_and_keeps_its_traceback(
    mobifleet, scenario_file, tmp_path, monkeypatch
):
    def broken(self):
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr("sim.simulation.Simulation.run", broken)
    monkeypatch.setenv(faults.TRACEBACK, "1")
    with pytest.raises(ZeroDivisionError):
        mobifleet("run", scenario_file(), "--dry", "--out", "run", *PLAIN)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["error"] == "ZeroDivisionError: a defect of ours"


def test_a_finished_run_leaves_no_temporary_files(mobifleet, scenario_file, tmp_path):
    assert mobifleet("run", scenario_file(), "--out", "run", *PLAIN).code == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *(
            "devices.parquet",
            "ledger.parquet",
            "manifest.json",
            "metrics.parquet",
            "model",
            "spans.parquet",
            "summary.json",
        ),
        "timeline.pftrace",
    ]
