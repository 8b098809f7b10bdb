"""`mobifleet calibrate device`: tiny real measurements, tables from elsewhere, old profiles,
Ctrl-C, mistakes.
"""

import csv
import json
import re
import signal
import time

import numpy as np
import pytest
import torch

from devices import calibration, compute, profile
from learning.backbones import catalogue
from learning.cost.count_training import training_architecture
from learning.cost.forward_pass import architecture
from sim.calibrate import device as calibrate_device
from sim.calibrate import device_plan
from sim.calibrate import measure as measure_device
from sim.calibrate.device_plan import Plan
from sim.calibrate.measure import Bench, EnergyCounter, Shape, shape_of


@pytest.fixture
def tiny(monkeypatch):
    """A grid and budgets small enough for a test; the timings are real."""
    monkeypatch.setattr(device_plan, "QUICK_BATCHES", (1, 8))
    monkeypatch.setattr(device_plan, "QUICK_LENGTHS", (8, 16, 64, 128))
    monkeypatch.setattr(Plan, "budget_s", 0.7)
    monkeypatch.setattr(
        Plan, "warm_up_s", 60.0
    )  # however busy the machine is, no shape is left out
    counted = training_architecture(
        catalogue.find("minilm-narrow"), "lora"
    )  # shipped; counting takes seconds
    monkeypatch.setattr("learning.cost.count_training.training_architecture", lambda *_: counted)
    monkeypatch.setattr(Bench, "gemm_flop_per_s", lambda self: 1e11)
    monkeypatch.setattr(Bench, "copy_bytes_per_s", lambda self: 2e10)
    yield ("calibrate", "device", "--quick", "--threads", 1, "--sustained", 0.01, "--backbones")
    torch.set_num_threads(1)


@pytest.mark.thorough
def test_a_real_measurement_becomes_a_profile_that_a_scenario_uses(
    mobifleet, tiny, tmp_path, scenario_file
):
    made = mobifleet(*tiny, "random-bert", "--train", "--name", "here")
    assert made.code == 0, made.err
    folder = tmp_path / "calibrations" / "here"
    mine = profile.load(folder / "profile.yaml")
    report = json.loads((folder / "report.json").read_text())
    assert set(mine.engines) == {"simple", "training"}
    assert {p.basis for key, p in mine.provenance.items() if key.startswith("power")} == {
        "estimated"
    }
    assert mine.provenance["engines.simple.flop_per_s"].basis == "derived"
    assert "no counter" in made.out and "held-out error" in made.out
    held = [m for m in mine.measurements if not m.fitted and m.engine == "simple"]
    off = [
        abs(compute.seconds(mine, m.engine, m.flop, m.bytes_moved) / m.seconds - 1) for m in held
    ]
    assert 100 * np.mean(off) == pytest.approx(
        report["errors"]["simple"]["held_out"]["mean_pct"], abs=0.1
    )
    with (folder / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["work"] for row in rows} == {"forward", "lora"}
    assert min(list(map(int, (r["round"] for r in rows))).count(n) for n in range(3)) == len(
        mine.measurements
    )
    assert (folder / "fit.png").stat().st_size > 5000 and "held-out error" in (
        folder / "report.md"
    ).read_text()

    ran = mobifleet(
        "run",
        scenario_file(),
        "--dry",
        "--set",
        f"fleet.0.device={folder}/profile.yaml",
        "--quiet",
        "--no-figures",
    )
    assert ran.code == 0, ran.err

    again = mobifleet(
        "calibrate",
        "device",
        "--from",
        folder / "measurements.csv",
        "--name",
        "again",
        "--like",
        "a100",
    )
    assert again.code == 0, again.err
    same = profile.load(tmp_path / "calibrations" / "again" / "profile.yaml")
    for m in (
        mine.measurements
    ):  # the same timings; only the lent bandwidth, a bound of the fit, is another
        ratio = compute.seconds(same, m.engine, m.flop, m.bytes_moved) / compute.seconds(
            mine, m.engine, m.flop, m.bytes_moved
        )
        assert ratio == pytest.approx(1 / mine.sustained_factor, rel=0.1)


@pytest.mark.thorough
def test_validation_says_how_far_a_profile_is_off_and_may_fail(mobifleet, tiny, tmp_path):
    found = mobifleet(
        *tiny,
        "random-bert-l1,random-bert",
        "--validate",
        "jetson-tx2",
        "--name",
        "check",
        "--fail-above",
        0.5,
    )
    assert found.code == 1
    assert "jetson-tx2 is off by mean" in found.out and "overhead" in found.out
    report = json.loads((tmp_path / "calibrations" / "check" / "validation.json").read_text())
    assert len(report["shapes"]) == 16
    worst = report["shapes"][0]
    assert worst["off_pct"] == pytest.approx(100 * (worst["predicted_s"] / worst["measured_s"] - 1))
    assert found.out.count("random-bert") == 10
    assert (
        mobifleet(
            *tiny, "random-bert-l1,random-bert", "--validate", "jetson-tx2", "--name", "check"
        ).code
        == 0
    )


def test_the_flop_and_bytes_beside_a_timing_are_those_that_the_simulator_charges():
    spec = catalogue.find("minilm-narrow")
    forward = architecture(spec).forward(4, 32)
    step = training_architecture(spec, "lora", 2).step(4, 32, "adamw")
    shapes = [shape_of("minilm-narrow", work, 4, 32) for work in ("forward", "lora")]
    assert [(s.flop, s.bytes_moved) for s in shapes] == [
        (c.flop, c.bytes_moved) for c in (forward, step)
    ]
    assert [s.engine for s in shapes] == ["simple", "training"]


def test_a_bench_runs_what_it_says_and_training_really_trains():
    bench = Bench(threads=1)
    bench.load([Shape("random-bert", "bitfit", 2, 8, 0.0, 0.0)])
    step = bench._passes["random-bert", "bitfit"]
    ids_BT = torch.arange(16).reshape(2, 8)
    losses = [step(ids_BT).item() for _ in range(30)]
    assert losses[-1] < losses[0]
    out = Bench(threads=1)._forward(catalogue.find("random-bert"), "forward")(ids_BT)
    assert out.last_hidden_state.shape == (2, 8, 64) and len(out.hidden_states) == 3


def test_any_known_architecture_is_timed_whether_or_not_its_weights_are_there(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "empty"))
    bench = Bench(threads=1)
    for backbone in ("minilm-l1", "distilbert-cased-l1", "opt-125m-l1"):
        assert bench.time(Shape(backbone, "forward", 1, 4, 0.0, 0.0)).seconds > 0


def test_one_thread_is_timed_by_processor_time_and_several_by_the_clock():
    timed = Bench(threads=1)._timed(lambda: time.sleep(0.05))
    assert timed.seconds < 0.02 and timed.cpu_share < 0.4
    two = Bench(threads=2)
    torch.set_num_threads(1)
    assert two._timed(lambda: time.sleep(0.05)).seconds >= 0.05


def test_rounds_visit_every_shape_in_another_order_each_time():
    bench, shapes = (
        Bench(threads=1),
        [shape_of("random-bert-l1", "forward", b, 8) for b in (1, 2, 3, 4, 5, 6)],
    )
    seen = list(measure_device.round_robin(bench, shapes, np.random.default_rng(0), budget_s=0))
    orders = [[s.batch for s, _, number, _ in seen if number == n] for n in range(3)]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in orders) and len(seen) == 18
    assert orders[0] != orders[1]


# --- tables from elsewhere


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["jetson-tx2", "phone-2024-flagship", "phone-iphone-17-pro", "raspberry-pi-5"]
)
def test_a_table_of_a_shipped_profile_reproduces_its_rows_within_the_stated_error(
    mobifleet, tmp_path, name
):
    shipped = profile.load(name)
    seen = {
        m.engine for m in shipped.measurements if m.fitted
    }  # an engine may have its rate from elsewhere
    measurements = [m for m in shipped.measurements if m.engine in seen]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("workload", "engine", "flop", "bytes_moved", "seconds", "fitted"))
        rows.writerows(
            (m.workload, m.engine, m.flop, m.bytes_moved, m.seconds, m.fitted) for m in measurements
        )
    done = mobifleet("calibrate", "device", "--from", "rows.csv", "--name", "copy", "--like", name)
    assert done.code == 0, done.err
    copy = profile.load(tmp_path / "calibrations" / "copy" / "profile.yaml")
    stated = json.loads((tmp_path / "calibrations" / "copy" / "report.json").read_text())["errors"]
    assert copy.memory_bytes == shipped.memory_bytes
    for engine in copy.engines.values():
        lent = shipped.engine(engine.name)
        assert (engine.power, engine.power_mode) == (lent.power, lent.power_mode)
    for m in measurements:
        error_pct = 100 * abs(
            compute.seconds(copy, m.engine, m.flop, m.bytes_moved) / m.seconds - 1
        )
        assert (
            error_pct <= stated[m.engine]["fitted" if m.fitted else "held_out"]["worst_pct"] + 0.01
        )


def test_named_architectures_are_counted(tmp_path):
    rows = "".join(f"bert-base,{b},{t},{b * t / 1000}\n" for b in (1, 2, 4) for t in (32, 64, 128))
    timings, fitted = calibrate_device.read_timings(
        write(tmp_path / "t.csv", "backbone,batch,tokens,seconds\n" + rows)
    )
    cost = architecture(catalogue.find("bert-base")).forward(4, 128)
    assert fitted is None and (timings[-1].flop, timings[-1].bytes_moved) == (
        cost.flop,
        cost.bytes_moved,
    )
    assert timings[-1].workload == "bert-base forward 4 x 128"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "flop,time\n1,2\n",
            "columns must hold seconds, and flop or backbone, batch and tokens; found flop, time",
        ),
        ("", "columns must hold seconds"),
        ("flop,seconds\n", "no rows below the header"),
        (
            "flop,seconds\n1e9,0.1\n1e9,fast\n",
            r"t.csv:3: seconds: found 'fast', allowed: a number above 0",
        ),
        ("flop,seconds\n1e9,-1\n", r"t.csv:2: seconds: found '-1'"),
        (
            "backbone,batch,tokens,seconds\nbert-base,0,8,1\n",
            "t.csv:2: batch: found '0', allowed: a whole number above 0",
        ),
        ("backbone,batch,tokens,seconds\nbert-bse,1,8,1\n", "did you mean 'bert-base'"),
        (
            "backbone,work,batch,tokens,seconds\nbert-base,sing,1,8,1\n",
            "'sing' is not a kind of training; choose one of full, lora",
        ),
        (
            "backbone,precision,batch,tokens,seconds\nbert-base,int3,1,8,1\n",
            "precision: found 'int3', allowed: float32",
        ),
        (
            "flop,seconds,fitted\n1e9,1,maybe\n",
            "t.csv:2: fitted: found 'maybe', allowed: true, false",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_one_clear_message(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        calibrate_device.read_timings(write(tmp_path / "t.csv", text))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--from", "t.csv"), "--from needs --like PROFILE"),
        (("--from", "nowhere.csv", "--like", "a100"), "nowhere.csv: No such file"),
        (("--from", "t.csv", "--validate", "a100"), "--from and --validate exclude each other"),
        (("--fail-above", 5), "--fail-above belongs to --validate PROFILE"),
        (("--validate", "jetson-tx"), "did you mean .*jetson-tx2"),
        (("--like", "nonesuch"), "no device profile 'nonesuch'"),
        (("--backbones", "minilm-l9"), "cannot be cut to 9"),
        (("--device", "tpu"), "choose --device cpu or cuda"),
        (("--precision", "int4"), "choose --device cpu or cuda and --precision float32"),
        (("--precision", "bfloat16", "--train"), "--train is timed in float32 only"),
    ],
)
def test_a_mistake_is_one_clear_message(mobifleet, tmp_path, argv, message):
    write(tmp_path / "t.csv", "flop,seconds\n1e9,0.1\n")
    found = mobifleet("calibrate", "device", "--quick", *argv)
    assert found.code == 2 and re.search(message, found.err) and "Traceback" not in found.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_cuda_is_refused(mobifleet):
    assert "no CUDA device here" in mobifleet("calibrate", "device", "--device", "cuda").err


# --- Ctrl-C, energy


def test_an_interruption_keeps_every_timing_and_says_how_to_fit_them(
    mobifleet, tiny, tmp_path, monkeypatch
):
    real, calls = Bench.time, []

    def interrupted(self, shape):
        calls.append(shape)
        if len(calls) == 200:
            signal.raise_signal(signal.SIGINT)
        return real(self, shape)

    monkeypatch.setattr(Bench, "time", interrupted)
    monkeypatch.setattr(Plan, "load_s", 0.0)
    monkeypatch.setattr(Plan, "budget_s", 600)
    found = mobifleet(*tiny, "random-bert-l1,random-bert", "--name", "cut")
    assert found.code == 130 and "--from calibrations/cut/measurements.csv" in " ".join(
        found.out.split()
    )
    timings, _ = calibrate_device.read_timings(
        tmp_path / "calibrations" / "cut" / "measurements.csv"
    )
    assert len(timings) == 200 - 1 - 1 - 16  # one pass to load, sixteen to warm up, one cut off
    assert not (tmp_path / "calibrations" / "cut" / "profile.yaml").exists()
    assert calibration.fit(calibration.medians(timings), 2e10).engines["simple"].flop_per_s > 0


def test_rapl_counters_add_up_over_packages_and_wrap_around(tmp_path):
    for package, (joules, wraps) in {"0": (5, 100), "1": (90, 100)}.items():
        zone = tmp_path / f"intel-rapl:{package}"
        (zone / f"intel-rapl:{package}:0").mkdir(parents=True)
        (zone / "name").write_text(f"package-{package}\n")
        (zone / "energy_uj").write_text(f"{joules * 10**6}\n")
        (zone / "max_energy_range_uj").write_text(f"{wraps * 10**6}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, counted in it already
    counter = EnergyCounter(rapl=tmp_path)
    assert counter.sources == ["RAPL package-0", "RAPL package-1"]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text(f"{12 * 10**6}\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text(f"{3 * 10**6}\n")
    assert counter.joules() == pytest.approx(7 + 13)
    assert counter.joules() == pytest.approx(20)
    assert EnergyCounter(rapl=tmp_path / "none").sources == []


def test_measured_watts_replace_the_lent_ones_and_the_radio_keeps_its_share(tmp_path):
    from sim.calibrate.profile_report import write_device_profile

    rows = [
        calibration.Point(str(i), "simple", 1e9 * 2**i, 1e6, 0.01 * 2**i, repeats=3, cv=0.03)
        for i in range(8)
    ]
    lender = profile.load("laptop-ryzen-8945hs")
    measured = device_plan.DeviceMeasurements(
        rows,
        calibration.fit(rows, 1e10),
        "a machine",
        "here",
        "laptop",
        8e9,
        idle_w=3.0,
        compute_w=21.0,
        energy_sources=["RAPL package-0"],
        sustained=calibration.Sustained(0.8, 30.0, 5.0, 60.0, 0.9, 0.02),
    )
    made = write_device_profile(measured, lender, "mine", tmp_path / "profile.yaml")
    power, lent = made.engine("simple").power, lender.engine("simple").power
    assert (power.compute_w, power.idle_w) == (21.0, 3.0)
    assert power.uplink_w - 3.0 == pytest.approx(lent.uplink_w - lent.idle_w)
    origin = made.provenance["engines.simple.compute_w"]
    assert origin.basis == "measured" and "not the whole machine" in origin.conditions
    assert "power.compute_w" not in made.provenance
    assert (made.sustained_factor, made.sustained_tau_s, made.jitter_cv) == (0.8, 30.0, 0.03)


def test_shapes_that_do_not_fit_into_the_budget_are_left_out_with_a_word(
    mobifleet, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(Plan, "warm_up_s", 0.0)
    monkeypatch.setattr(Plan, "load_s", 0.0)
    found = mobifleet(*tiny, "random-bert-l1", "--validate", "jetson-tx2", "--name", "slow")
    assert found.code == 0 and "timing the 1 smallest of 8 shapes: more do not fit" in " ".join(
        found.out.split()
    )


def test_worked_number_of_the_docs():
    """MiniLM, 8 x 64 tokens, by the first calibration: 1.36 + 121.5 + 3.7 ms."""
    shape = shape_of("minilm", "forward", 8, 64)
    assert (shape.flop, shape.bytes_moved) == pytest.approx((11.18e9, 43.2e6), rel=1e-3)
    fit = calibration.ComputeFit(
        {"simple": calibration.EngineFit(1.36e-3, 92.0e9, False)}, 11.7e9, True
    )
    assert fit.seconds(
        calibration.Point("", "simple", shape.flop, shape.bytes_moved, 1.0)
    ) == pytest.approx(0.1265, abs=1e-4)
