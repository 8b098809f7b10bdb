"""The comparison: which runs, what they cost until when, and what is written of them."""

import csv
import json
import math
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest

from sim.compare.costs import COLUMNS, costs_until, reached
from sim.compare.planned_run import CompareError, PlannedRun
from sim.compare.reductions import REDUCED, reductions
from sim.compare.runs import candidates, plan
from sim.compare.table import rows
from sim.compare.write import ACCURACIES, from_to, shown
from sim.kernel.streams import Streams
from sim.privacy.measures import SAID
from sim.results.looks import chosen_score, converged, converged_at_s, was_still_improving
from sim.results.run import open_run
from sim.results.statistics import Costs
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.sweep.engine import is_done, run_all
from sim.views.saving_figures import save
from sim.world.task import load_task

METHODS = {
    "ours": {
        "kind": "fed-mobillm",
        "replay": 20,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        "device_batch": 4,
        "ship_side_network": False,
    },
    "lora": {
        "kind": "fedavg-lora",
        "rounds": 4,
        "participation": 1.0,
        "device_batch": 8,
        "evaluate_every": 1,
    },
}
LATE = {**METHODS["lora"], "deadline": "1 ms"}  # nobody can answer
LOST = {**METHODS["lora"], "kind": "fedavg-full", "learning_rate": 1e12}
OTHERS = [name for name in REDUCED if name != "flop"]
COMPARE = {"methods": METHODS, "target": 0.5}


@pytest.fixture
def compared(mobifleet, scenario_file, tmp_path):
    """The command on the tiny world, and its folder."""

    def run(*argv, **changes):
        path = scenario_file(compare={**COMPARE, **changes.pop("compare", {})}, **changes)
        return mobifleet(
            "compare", path, "--out", tmp_path / "out", "--processes", "1", *argv
        ), tmp_path / "out"

    return run


def test_it_runs_each_method_once_and_writes_every_form(compared):
    done, out = compared()
    assert done.code == 0, done.err
    with (out / "table.csv").open() as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert list(table) == ["ours", "lora"]
    assert float(table["ours"]["flop_ratio"]) == 1
    assert float(table["lora"]["flop_ratio"]) == pytest.approx(
        float(table["lora"]["flop"]) / float(table["ours"]["flop"])
    )
    for label, row in table.items():
        run = open_run(out / f"{label}-seed0")
        assert float(row["chosen"]) == chosen_score(run)
        assert float(row["time_s"]) == converged_at_s(run)
        known = pq.read_table(run.path / "devices.parquet")["accuracy"].to_pylist()
        assert float(row["device_worst"]) == min(known) <= float(row["device_p10"])
        ends = [row[f"{name}_{end}"] for name in ACCURACIES for end in ("low", "high")]
        assert all(0 <= float(end) <= 1 for end in ends if end)
    text = (out / "table.md").read_text()
    assert text.count("\n| lora |") == 2 and text.count("### ours against the best baseline") == 2
    assert text.count("| lora |\n") > 10  # whom each cost's reduction is against
    assert {row["table"] for row in table.values()} == {
        "cost to the end of each method's own convergence"
    }
    assert r"\begin{tabular}" in (out / "table.tex").read_text()
    assert (out / "figures" / "accuracy.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")}
    old = [out / name for name in ("table-7.csv", "reductions.json")]
    for path in old:
        path.write_text("of another target")
    again, _ = compared()
    assert not old[0].exists() and "another" not in old[1].read_text()
    assert again.code == 0 and "1/2" not in again.out  # nothing had to run again
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")}


def test_whose_costs_they_are_is_said_in_every_form(compared):
    done, out = compared("--dry", cost_as={"backbone": "roberta-base", "tokens": 128})
    said = "roberta-base at 128 tokens"
    assert f"Costs are those of {said}" in (out / "table.md").read_text()
    assert f"Costed as {said}." in (out / "table-column.tex").read_text()
    assert f"costed as {said}" in done.out


def test_what_cannot_be_built_is_told_before_anything_runs(compared):
    idle = {"kind": "fed-mobillm", "replay": 0.01, "side_network": {"skip": "none"}}
    done, out = compared("--dry", compare={"methods": {**METHODS, "idle": idle}})
    assert done.code == 2 and not out.exists()
    assert "idle: tiny cannot be built: method.replay: no update is ever granted" in done.err


def test_costs_are_sums_of_the_spans_until_that_moment(compared):
    _, out = compared("--methods", "ours")
    run = open_run(out / "ours-seed0")
    until_s = converged_at_s(run)
    spans = [
        s
        for s in run.spans().to_pylist()
        if s["end_s"] <= until_s and s["actor"].startswith("device-")
    ]
    found = costs_until(run, until_s)
    assert found["flop"] == pytest.approx(sum(s["flop"] for s in spans) / 3)
    assert found["uplink_bytes"] == sum(s["nbytes"] for s in spans if s["kind"] == "upload") / 3
    assert found["energy_j"] == pytest.approx(sum(s["joules"] for s in spans) / 3)
    whole = costs_until(run, run.summary["virtual_time_s"])
    assert whole["uplink_bytes"] * 3 == run.summary["totals"]["uplink_bytes"]


def test_every_cost_is_the_sum_of_its_own_spans(compared):
    """A round asks three of four for two answers: one waits, one is late, one is never asked."""
    asks = {"rounds": 1, "participation": 0.5, "over_selection": 1.5}
    _, out = compared(
        "--dry",
        compare={"methods": {"lora": {**METHODS["lora"], **asks}}},
        fleet=[
            {"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
            {"count": 1, "device": "raspberry-pi-5", "backbone": "random-bert", "link": "lte"},
        ],
        arrivals={"kind": "at-once"},
    )
    run = open_run(out / "lora-seed0")
    spans = [s for s in run.spans().to_pylist() if s["actor"].startswith("device-")]
    model = next(s["nbytes"] for s in spans if s["kind"] == "download")  # each needs the last one
    peaks = [peak for peak in run.devices()["peak_memory_bytes"].to_pylist() if peak]
    assert len(peaks) == 3
    update_s = next(t for t, count in zip(*run.curve("updates"), strict=True) if count == 1)
    for until_s, updates in ((update_s, 1), (np.nextafter(update_s, 0), 0), (update_s / 2, 0)):
        ended = [s for s in spans if s["end_s"] <= until_s]
        up, down = (
            sum(s["nbytes"] for s in ended if s["kind"] == way) / 4
            for way in ("upload", "download")
        )
        expected = {
            "time_s": until_s,
            "flop": sum(s["flop"] for s in ended) / 4,
            "uplink_bytes": up,
            "downlink_bytes": down,
            "training_bytes": up + down,
            "delivery_bytes": model,
            "communication_bytes": up + down + model,
            "peak_memory_bytes": sum(peaks) / 3,
            "energy_j": sum(s["joules"] for s in ended) / 4,
            "waiting_s": sum(s["end_s"] - s["start_s"] for s in ended if s["kind"] == "wait") / 4,
            "wasted_bytes": sum(s["nbytes"] for s in ended if s["outcome"] == "late"),
            "updates": updates,
        }
        assert costs_until(run, until_s) == pytest.approx(expected, rel=1e-12)
        if updates:
            assert min(expected.values()) > 0 and up != down


def test_peak_memory_is_the_mean_over_the_devices_that_worked(compared):
    names, like = ("random-bert", "random-bert", "random-bert-l1"), {"link": "lte"}
    fleet = [{"count": 1, "device": "jetson-tx2", "backbone": name, **like} for name in names]
    _, out = compared("--dry", "--methods", "lora", fleet=fleet)
    run = open_run(out / "lora-seed0")
    peaks = run.devices()["peak_memory_bytes"].to_pylist()
    assert min(peaks) < max(peaks)
    found = costs_until(run, run.summary["virtual_time_s"])["peak_memory_bytes"]
    assert found == pytest.approx(sum(peaks) / 3)


def test_the_time_to_a_target_lies_between_the_first_look_at_it_and_the_one_before(
    compared,
):
    _, out = compared("--methods", "lora")
    run = open_run(out / "lora-seed0")
    points = list(zip(*run.curve("accuracy"), strict=True))
    assert len({value for _, value in points}) > 1
    for target in {float(value) for _, value in points}:
        first_s = min(time_s for time_s, value in points if value >= target)
        [row] = rows([PlannedRun("lora", None, run.path)], "target", target)
        assert row["time_s_high"] == reached(run, target).after_s == first_s
        assert row["time_s_low"] == max([0, *(t for t, _ in points if t < first_s)])
        is_met = target in [value for time_s, value in points if time_s == first_s]
        assert row["time_s"] == pytest.approx(first_s) if is_met else row["time_s"] < first_s


@pytest.mark.thorough
def test_a_method_that_never_reaches_the_target_says_so_and_stays(compared):
    done, out = compared(
        compare={
            "target": 1.0,
            "methods": {**METHODS, "lora": {**METHODS["lora"], "learning_rate": 1e-9}},
        }
    )
    assert done.code == 0, done.err
    second = (out / "table.md").read_text().split("## cost to accuracy 1.0")[1]
    assert second.count("not reached") >= 10 and "| lora |" in second
    said = " ".join(done.out.split())
    assert "left out: lora (accuracy 1 not reached)" in said and f"written to {out}" in said


def test_several_seeds_give_means_and_intervals(compared, scenario_file):
    done, out = compared("--seeds", "3", "--methods", "ours", "--dry")
    assert done.code == 0, done.err
    scenario = load(str(scenario_file(compare=COMPARE)), Scenario)
    [row] = rows(plan(scenario, out, 3, ["ours"]), "own")
    each = [open_run(out / f"ours-seed{seed}").summary["virtual_time_s"] for seed in range(3)]
    assert row["time_s"] == pytest.approx(sum(each) / 3)
    deviation = (sum((value - row["time_s"]) ** 2 for value in each) / 2) ** 0.5
    half = pytest.approx(4.302653 * deviation / 3**0.5, rel=1e-5)
    assert row["time_s_high"] - row["time_s"] == half


def test_methods_meet_the_same_world(compared):
    _, out = compared("--dry")
    ours, lora = (open_run(out / f"{label}-seed0").devices().to_pylist() for label in METHODS)
    for key in ("device", "device_class", "backbone", "link", "samples", "joined_at_s"):
        assert [row[key] for row in ours] == [row[key] for row in lora]


def row_of(method, accuracy, **costs):
    """A row of a table of as many seeds as each cost has values, or of one."""
    row = {"method": method, "chosen": accuracy, "reference": False, "reached": 1, "target": None}
    for name, values in costs.items():
        each = values if isinstance(values, list) else [values]
        known = None not in each
        row |= {name: sum(each) / len(each) if known else None, f"{name}_each": each}
        row |= {f"{name}_looks": Costs(each, each, each)} if known else {}
    return row


def test_reductions_are_against_the_best_of_each_column():
    keys = REDUCED[:3] + REDUCED[4:]
    table = [
        row_of(m, 0.8 if m == "a" else 0.9, training_bytes=None, **dict(zip(keys, v, strict=True)))
        for m, v in (
            ("ours", (1, 2, 3, 4, 5)),
            ("a", (10, 4, 30, 2, 50)),
            ("b", (5, 40, 12, 8, None)),
        )
    ]
    found = reductions(table, "ours")
    assert found["time_s"]["of"] == "b"
    assert (found["time_s"]["factor"], found["time_s"]["reduction"]) == pytest.approx((5, 0.8))
    assert (found["flop"]["of"], found["flop"]["factor"]) == ("a", pytest.approx(2))
    assert found["peak_memory_bytes"]["reduction"] == pytest.approx(-1)  # ours needs more
    assert found["energy_j"]["of"] == "a"
    assert reductions(table, "ours", ["a"])["time_s"]["of"] == "a"
    for learned in (0.85, 0.9):  # a has not learned enough to count, b just so
        assert reductions(table, "ours", learned=learned)["flop"]["of"] == "b"


def test_a_typing_error_inside_a_method_has_its_place_and_the_nearest_name(
    mobifleet, scenario_file
):
    typo = {"kind": "fedavg-lora", "particpation": 0.5}
    said = mobifleet(
        "check", scenario_file(compare={"methods": {"a": typo, "b": {"kind": "fed-mobillm"}}})
    ).err
    assert (
        "compare.methods.a.particpation: unknown key" in said
        and "did you mean 'participation'?" in said
    )


def test_what_cannot_be_compared(mobifleet, scenario_file, tmp_path):
    scenario = load(str(scenario_file()), Scenario)
    with pytest.raises(CompareError, match="lists no methods"):
        plan(scenario, tmp_path)
    wrong = mobifleet("compare", scenario_file(compare=COMPARE), "--methods", "lara")
    assert wrong.code == 2 and "ours, lora" in wrong.err and "Traceback" not in wrong.err
    typo = mobifleet("compare", scenario_file(compare={**COMPARE, "ours": "our"}))
    assert typo.code == 2 and "did you mean 'ours'" in typo.err
    for columns, said in (("chosn", "did you mean 'chosen'"), ("flop,flop", "given twice")):
        wrong = mobifleet("compare", scenario_file(compare=COMPARE), "--columns", columns)
        assert wrong.code == 2 and said in wrong.err
    for claims in ({"flop": 1.0}, {"flop": -0.1}):
        wrong = mobifleet("check", scenario_file(compare={**COMPARE, "claims": claims}))
        assert wrong.code == 2 and "compare.claims.flop" in wrong.err


TYPO = "compare.over: task.tran=40: nothing is called 'task.tran'; did you mean 'train'?"
TOO_MANY = "compare.tune.validation: texts has 120 texts; train 360 (300 of them for validation"


def tuned_by(dials, validation=12):
    return {"tune": {"validation": validation, "dials": dials}}


@pytest.mark.parametrize("verb", ["check", "compare"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (tuned_by({"ours": {"repaly": [5]}}), "compare.tune.dials.ours.repaly: no setting is call"),
        (
            tuned_by({"ours": {"replay": [5, -1]}}),
            "compare.tune.dials.ours: method.replay=-1, ours",
        ),
        (tuned_by({"ours": {"side_network.skp": ["ridge"]}}), "did you mean 'skip'"),
        (
            tuned_by(
                {
                    "ours": {
                        name: list(range(1, 50))
                        for name in ("replay", "server_batch", "device_batch")
                    }
                }
            ),
            "most",
        ),
        (tuned_by({"lora": {"learning_rate": [1e-2, 1e-9, 1e-2]}}), "has the value 0.01 twice"),
        (tuned_by({"lora": {"rank": [2, 4]}}, 300), TOO_MANY),
        ({"over": {"key": "task.tran", "values": [40]}}, TYPO),
        (tuned_by({"ours": {"kind": ["mobillm"]}}), "compare.tune.dials.ours.kind: is another met"),
        (tuned_by({}), "compare.tune.dials: name no values"),
        (tuned_by({"ours": {}}), "compare.tune.dials: name no values"),
        ({"methods": {**METHODS, "all": {"kind": "centralised"}}, "ours": "all"}, "is a reference"),
        ({"baselines": ["lora", "ours"]}, "compare.baselines.1: 'ours' is `ours`"),
        (
            {"methods": {**METHODS, "all": {"kind": "centralised"}}, "baselines": ["all"]},
            "compare.baselines.0: 'all' is a reference",
        ),
        ({"baselines": []}, "compare.baselines: names none"),
        ({"methods": {"  ": METHODS["ours"]}}, "a label needs a sign that is seen"),
        ({"methods": {"\u200b": METHODS["ours"]}}, "a label needs a sign that is seen"),
        ({"methods": {"b": METHODS["ours"], "b ": METHODS["lora"]}}, "looks like 'b'"),
        ({"methods": {"e\u0301": METHODS["ours"], "é": METHODS["lora"]}}, "give it another label"),
        ({"methods": {"b\u200b c": METHODS["ours"], "b  c": METHODS["lora"]}}, "looks like 'b"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_runs(
    mobifleet, scenario_file, tmp_path, verb, more, said
):
    path = scenario_file(compare={**COMPARE, **more})
    out = ["--out", "out", "--processes", 1] if verb == "compare" else []
    done = mobifleet(verb, path, *out)
    assert done.code == 2 and said in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["check", "compare"])
def test_a_target_that_no_run_can_come_to_is_refused(mobifleet, scenario_file, verb):
    path = scenario_file(compare=COMPARE)
    refused = mobifleet(verb, path, "--set", "stop.target=0.45")
    assert refused.code == 2 and "no run comes to 0.5, for `stop.target` ends it at 0.45" in (
        refused.err
    )
    assert mobifleet("check", path, "--set", "stop.target=0.55").code == 0


def test_ours_is_by_default_no_reference(scenario_file):
    methods = {"all": {"kind": "centralised"}, **METHODS}
    for these, ours in ((methods, "ours"), ({"all": methods["all"]}, "all")):
        path = scenario_file(compare={"methods": these})
        assert load(str(path), Scenario).compare.label_of_ours == ours


def test_what_is_not_compared_is_said_under_the_tables(compared):
    """Tuned runs end at the target, here one that nobody comes to, and `ours` is left out."""
    done, out = compared(
        "--methods",
        "lora",
        compare={
            "methods": {**METHODS, "lora": {**METHODS["lora"], "rounds": 1}},
            "tune": {"validation": 12, "dials": {"lora": {"learning_rate": [1e30, 1e29]}}},
        },
    )
    own, to_target = (out / "table.md").read_text().split("## cost to accuracy 0.5, every method")
    assert "| accuracy, final |" in own and "| accuracy" not in to_target
    assert "Accuracy &" not in (out / "table.tex").read_text().partition("every method tuned")[2]
    for said in (
        '"cost to accuracy 0.5, every method tuned": runs end at accuracy 0.5',
        "Every candidate of lora diverged",
        "Nothing is held against anything: ours, which is `ours`, was left out",
    ):
        assert said in done.out.replace("\n", " ")


def test_what_diverged_however_it_was_tuned_says_so_wherever_it_is_named(compared):
    """To the common target, where it would be among those that did not come to it."""
    dials = {"ours": {"replay": [20]}, "lora": {"learning_rate": [1e30, 1e29]}}
    done, out = compared(compare={"tune": {"validation": 12, "dials": dials}})
    assert done.code == 0, done.err
    _, told = done.out.split("cost to accuracy 0.5, every method tuned", 1)
    assert "left out: lora (diverged)" in told and "not reached" not in told
    with (out / "table-2.csv").open() as file:
        said = {
            row["method"]: (row["no_cost"], row["time_s"] == "") for row in csv.DictReader(file)
        }
    assert said == {"ours": ("", False), "lora": ("diverged", True)}
    tex = (out / "table.tex").read_text().partition("every method tuned")[2]
    [line] = [line for line in tex.splitlines() if line.startswith("lora & ")]
    assert line == " & ".join(["lora", *["diverged"] * 7]) + r" \\"


def test_titles_have_the_value_as_it_was_written(compared):
    mix = {"lte": 0.5, "wifi-home": 0.5}
    done, out = compared(
        "--dry",
        compare={"methods": METHODS, "over": {"key": "fleet.0.link", "values": ["lte", mix]}},
    )
    assert 'totals; fleet.0.link={"lte": 0.5, "wifi-home": 0.5}' in done.out
    assert "totals; fleet.0.link=lte" in (out / "table.md").read_text()


def test_an_unfinished_run_is_not_taken_for_done(tmp_path, scenario_file):
    scenario = load(str(scenario_file(compare=COMPARE)), Scenario)
    entry = PlannedRun("ours", scenario, tmp_path / "somewhere")
    assert not is_done(entry, False, tmp_path)
    entry.folder.mkdir()
    (entry.folder / "manifest.json").write_text(
        json.dumps({"status": "finished", "scenario_digest": "another"})
    )
    assert not is_done(entry, False, tmp_path)


TUNE = {"budget": 2, "validation": 12, "dials": {"lora": {"learning_rate": [1e-9, 1e-2, 1e-8]}}}


@pytest.mark.thorough
def test_dials_are_chosen_on_texts_that_no_device_and_no_test_sees(compared, scenario_file):
    done, out = compared(
        "--methods", "lora", compare={"target": 0.5, "tune": {**TUNE, "budget": 3}}
    )
    assert done.code == 0, done.err
    choice = json.loads((out / "tuned.json").read_text())["lora"]
    assert choice["chosen"] == {"learning_rate": 1e-2} and len(choice["candidates"]) == 3
    assert "every method tuned" in (out / "table.md").read_text()
    assert (out / "tuned" / "lora-seed0" / "summary.json").is_file()
    scenario = load(str(scenario_file(compare=COMPARE)), Scenario)
    judged = scenario.model_copy(
        update={
            "task": scenario.task.model_copy(update={"validation": 12, "judge_on": "validation"})
        }
    )
    task, plain = (
        load_task(one, Streams(0), scenario_file().parent, True) for one in (judged, scenario)
    )
    assert len(task.test) == 12
    held, on_devices = set(task.test.tolist()), set(np.concatenate(task.parts).tolist())
    assert not held & on_devices and not held & set(plain.test.tolist())


def test_every_method_gets_the_same_budget():
    dials = {"learning_rate": [1, 2, 3], "rank": [4, 8]}
    chosen = candidates(dials, 4, Streams(0), "lora")
    assert len(chosen) == 4 == len({tuple(one.items()) for one in chosen})
    assert (
        chosen == candidates(dials, 4, Streams(0), "lora")
        and len(candidates(dials, 9, Streams(0), "a")) == 6
    )


@pytest.mark.thorough
def test_the_whole_comparison_at_each_value_of_a_setting(compared, mobifleet, scenario_file):
    done, out = compared(
        "--methods", "ours", compare={"over": {"key": "evaluate_growth", "values": [1.01, 3]}}
    )
    assert done.code == 0, done.err
    assert (out / "figures" / "over.png").stat().st_size > 1000
    often, seldom = (open_run(out / f"evaluate_growth={n}" / "ours-seed0") for n in (1.01, 3))
    assert len(often.curve("accuracy")[0]) > len(seldom.curve("accuracy")[0])
    wrong = mobifleet(
        "compare", scenario_file(compare={**COMPARE, "over": {"key": "task.alpa", "values": [1]}})
    )
    assert wrong.code == 2 and "task.alpa" in wrong.err and "Traceback" not in wrong.err


@pytest.mark.thorough
def test_another_metric_has_its_name_everywhere(compared):
    methods = {"ours": METHODS["ours"], "best": {"kind": "centralised", "replay": 5}}
    over = {"key": "evaluate_growth", "values": [1.05, 3]}
    done, out = compared(
        *("--set", "task.metric=macro-f1"),
        compare={"methods": methods, "over": over, "target": 0.1},
    )
    assert done.code == 0, done.err
    assert "cost to macro-f1 0.1" in done.out and "macro-f1, final" in done.out
    assert (out / "figures" / "over.png").stat().st_size > 1000
    for at in ("evaluate_growth=1.05", "evaluate_growth=3"):
        assert (out / at / "figures" / "macro-f1.png").stat().st_size > 1000
    text = (out / "table.md").read_text()
    said = [line for line in text.splitlines() if "ccuracy" in line]
    assert all(line.startswith("| method") and "accuracy by device" in line for line in said)
    assert "Macro-f1 is that of" in text
    assert "& macro-f1 &" in (out / "table.tex").read_text()


def test_reductions_over_seeds_are_paired_and_geometric():
    none = dict.fromkeys(OTHERS)
    table = [
        row_of("ours", 0.9, flop=[1.0, 3.0], **none),
        row_of("a", 0.9, flop=[10.0, 6.0], **none),
    ]
    found = reductions(table, "ours")["flop"]
    assert found["factor"] == pytest.approx(20**0.5)  # of 10 and 2
    half = 12.7062 * np.std(np.log([10, 2]), ddof=1) / 2**0.5
    assert found["reduction_high"] == pytest.approx(1 - np.exp(-half) / 20**0.5, rel=1e-4)
    assert found["reduction_low"] == pytest.approx(1 - np.exp(half) / 20**0.5, rel=1e-4)


def test_what_seeds_cannot_tell_is_said_and_how_many_would():
    none = {name: [None] * 3 for name in OTHERS}
    table = [
        row_of("ours", 0.9, flop=[1.0, 1.0, 1.0], **none),
        row_of("a", 0.9, flop=[1.5, 0.9, 1.2], **none),
    ]
    said = reductions(table, "ours")["flop"]["said"]
    assert "3 seeds cannot tell ours from a" in said and "0.45 to 1.61 times" in said
    assert "about 22 would" in said  # 0.161 with a deviation of 0.258 in logarithms
    table[1] = row_of("a", 0.9, flop=[10.0, 10.1, 10.2], **none)
    assert reductions(table, "ours")["flop"]["said"] is None
    table[1] = row_of("a", 0.9, flop=[2.0, 2.0, 2.0], **none)
    assert "the same in every seed" in reductions(table, "ours")["flop"]["said"]


@pytest.mark.parametrize(
    ("theirs", "known"),
    [((2.5, 3.0, 5.0), "0.20 to 1.60 times"), ((0.0, 3.0, 5.0), "at least 0.20 times")],
)
def test_one_seed_cannot_tell_what_lies_between_its_looks(theirs, known):
    table = [row_of("ours", 0.9, flop=2.0), row_of("a", 0.9, flop=theirs[1])]
    for row, looks in zip(table, ((1.0, 2.0, 4.0), theirs), strict=True):
        row |= {"flop_looks": Costs(*([cost] for cost in looks)), **dict.fromkeys(OTHERS)}
    said = f"1 seed cannot tell ours from a ({known}); the looks are too far apart"
    assert reductions(table, "ours")["flop"]["said"] == f"compute a device: {said}"
    table[1]["flop_looks"] = Costs([10.0], [11.0], [12.0])
    assert reductions(table, "ours")["flop"]["said"] is None


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.2, "10.0% to 20.0%"),
        (-math.inf, 0.019, "at most 1.9%"),
        (0.5, math.inf, "at least 50.0%"),
        (-math.inf, math.inf, "not known"),
    ],
)
def test_an_end_that_nothing_bounds_is_open(low, high, said):
    assert from_to(low, high, "{:.1%}".format) == said


def test_references_are_no_baselines():
    none = dict.fromkeys(OTHERS)
    table = [row_of("ours", 0.9, flop=2.0, **none), row_of("a", 0.9, flop=8.0, **none)]
    table.append({**row_of("raw", 0.9, flop=0.1, **none), "reference": True})
    assert reductions(table, "ours")["flop"]["of"] == "a"


def test_a_baseline_that_some_seeds_never_bring_to_the_target_is_bounded():
    table = [row_of("ours", 0.9, flop=[1.0, 1.0]), row_of("a", 0.6, flop=[4.0, 16.0])]
    for row in table:
        row |= {"target": 0.7, "seeds": 2, "reached": 2, **dict.fromkeys(OTHERS)}
    table[1] |= {"flop": None, "flop_at_least": 10.0, "reached": 1}
    found = reductions(table, "ours", learned=0.7)["flop"]
    assert found["at_least"] and found["factor"] == pytest.approx(8)
    table[1] |= {"reached": 0}
    assert "flop" not in reductions(table, "ours", learned=0.7)


class CurvesAlone:
    """A run of which only its curves are asked."""

    metric = "accuracy"

    def __init__(self, time_s, judge_on="test", **curves):
        self.manifest = {"scenario": {"task": {"judge_on": judge_on}}}
        self.time_s, self.curves = time_s, curves

    def curve(self, name):
        values = self.curves.get(name, [])
        return np.array(self.time_s[: len(values)], dtype=float), np.array(values, dtype=float)


def test_validation_chooses_the_look_and_the_test_is_read_there():
    run = CurvesAlone(
        [0, 1, 2, 3, 4],
        accuracy=[0.2, 0.5, 0.8, 0.95, 0.7],
        validation_accuracy=[0.2, 0.6, 0.896, 0.9, 0.8],
        updates=[0, 1, 2, 3, 4],
    )
    assert converged(run) == (1, 2, 2)  # half a point below validation's best
    assert chosen_score(run) == 0.8  # and not the 0.95 that the test curve has
    run.curves.pop("validation_accuracy")
    assert converged(run) == (4, 4, 4) and chosen_score(run) == 0.7  # nothing to choose by


@pytest.mark.parametrize(
    ("validation", "is_so"),
    [([0.2, 0.5, 0.8], True), ([0.2, 0.8, 0.803], False), ([0.8, 0.5, 0.7], False), ([0.9], False)],
)
def test_a_run_that_validation_would_let_go_on_was_still_improving(validation, is_so):
    run = CurvesAlone([0, 1, 2], accuracy=[0.1, 0.2, 0.3], validation_accuracy=validation)
    assert was_still_improving(run) is is_so
    assert not was_still_improving(CurvesAlone([0, 1, 2], accuracy=[0.1, 0.2, 0.3]))


def test_who_was_still_improving_is_said_below_the_table(compared, monkeypatch):
    def improves(run):
        return run.method == "fedavg-lora"

    monkeypatch.setattr("sim.compare.protocol.was_still_improving", improves)
    done, out = compared("--methods", "ours,lora")
    said = "last look than at any before: lora. Trained for longer"
    assert said in " ".join(done.out.split()) and said in (out / "table.md").read_text()


def test_a_target_is_reached_in_a_line_between_two_looks():
    run = CurvesAlone([1, 2, 4, 8], accuracy=[0.25, 0.5, 1.0, 0.7])
    assert reached(run, 0.625) == (2, 2.5, 4) and reached(run, 0.5) == (1, 2, 2)
    assert reached(run, 0.2) == (0, 1, 1) and reached(run, 1.01) is None


def test_what_never_rises_above_its_untrained_start_has_no_cost(compared):
    never = {**METHODS["lora"], "learning_rate": 1e-12}
    done, out = compared("--methods", "never", compare={"methods": {"never": never}})
    assert done.code == 0, done.err
    cells = (out / "table.md").read_text().split("| never |")[1].split("\n")[0]
    assert cells.count("never above its start") == len(COLUMNS) - len(ACCURACIES) - len(SAID)
    with (out / "table.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["never_above_start"] == "1" and row["flop"] == row["time_s"] == ""


@pytest.mark.parametrize(("seeds", "said"), [(1, "diverged"), (2, "diverged (1 of 2)")])
def test_what_diverged_before_it_learned_says_so_in_place_of_its_costs(
    compared, tmp_path, seeds, said
):
    _, out = compared(compare={"methods": {"lost": LOST, "lora": METHODS["lora"]}})
    entries = [PlannedRun("a", None, out / f"{label}-seed0") for label in ("lost", "lora")[:seeds]]
    for protocol in ("own", "target"):
        table = rows(entries, protocol, 0.3)
        [(_, cells)] = shown(table, ["final", "flop", "time_s"])
        assert table[0]["diverged"] == 1 and cells[1:] == [said] * 2


def test_a_baseline_that_learns_nothing_is_left_out_of_the_figure_which_says_so(
    compared, monkeypatch
):
    said = {}

    def keep(figure, path):
        said["note"], said["lines"] = figure.get_supxlabel(), figure.axes[0].get_lines()
        return save(figure, path)

    monkeypatch.setattr("sim.compare.plots.save", keep)
    methods = {"ours": METHODS["ours"], "late": LATE, "lora": METHODS["lora"], "lost": LOST}
    done, _ = compared(compare={"methods": methods, "target": None})
    assert done.code == 0, done.err
    why = "late (no cost: never above its start); lost (no cost: diverged)"
    assert f"left out: {why}" in " ".join(done.out.split())
    assert said["note"] == "left out: late (never above its start), lost (diverged)"
    assert [line.get_label() for line in said["lines"] if len(line.get_xdata()) > 1] == ["lora"]


def test_what_runs_noted_stands_below_the_table_once_with_the_methods_it_is_of(compared):
    methods = {"lora": METHODS["lora"], "late": LATE, "later": {**LATE, "rank": 4}}
    done, out = compared("--seeds", "2", compare={"methods": methods, "target": None})
    notes = [
        line for line in (out / "table.md").read_text().splitlines() if "had an answer" in line
    ]
    assert notes == ["late, later: 0 of 4 rounds had an answer that counted: 12 late"]
    assert notes[0] in " ".join(done.out.split())
    few = out / "late-seed1" / "summary.json"
    found = json.loads(few.read_text())
    remark = next(text for text in found["remarks"] if "had an answer" in text)
    found["remarks"] = [remark.replace("12 late", "11 late"), "the cache takes nothing"]
    few.write_text(json.dumps(found))
    done, out = compared("--seeds", "2", compare={"methods": methods, "target": None})
    said = " ".join(done.out.split())
    assert f"{notes[0]} (in others with other numbers)" in said
    assert "late (1 of 2 seeds): the cache takes nothing" in said


@pytest.mark.parametrize(
    ("methods", "changes"),
    [
        ({"ours": METHODS["ours"], "late": LATE}, {}),
        (METHODS, {"stop": {"horizon": "1 us"}}),
        ({"lost": LOST, "lora": METHODS["lora"]}, {}),
    ],
)
def test_where_nothing_was_learned_there_is_a_table_and_no_figure_of_what_is_saved(
    compared, tmp_path, methods, changes
):
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "reductions.png").write_text("of another target")
    done, out = compared(compare={"methods": methods}, **changes)
    assert done.code == 0, done.err
    assert all(f"| {label} |" in (out / "table.md").read_text() for label in methods)
    assert not (out / "figures" / "reductions.png").exists()


@pytest.mark.thorough
def test_methods_are_looked_at_as_often_on_texts_held_out_of_training(compared):
    done, out = compared()
    assert done.code == 0, done.err
    assert "validation texts, 10% of those to train on" in " ".join(done.out.split())
    for label in METHODS:
        run = open_run(out / f"{label}-seed0")
        assert run.summary["judged_on"] == {"test": 30, "test_drawn_of": 120, "validation": 6}
        assert sum(run.devices()["samples"].to_pylist()) == 54
        looks_s, _ = run.curve("validation_accuracy")
        assert looks_s.tolist() == [0, *run.curve("accuracy")[0].tolist()]  # untrained, too
        inner = looks_s[(looks_s > 0) & (looks_s < looks_s[-1])]
        assert len(inner) and (inner[1:] >= 1.1 * inner[:-1]).all()


@pytest.mark.thorough
def test_every_backbone_has_its_accuracy_in_the_table(compared):
    done, out = compared("--methods", "ours", "--dry")  # whose runs must not be taken for real ones
    assert done.code == 0, done.err
    done, out = compared("--methods", "ours")
    by_backbone = open_run(out / "ours-seed0").summary["by_backbone"]
    assert len(by_backbone) == 2
    with (out / "table.csv").open() as file:
        [row] = csv.DictReader(file)
    assert {name: float(row[f"final, {name}"]) for name in by_backbone} == by_backbone


def test_ctrl_c_ends_the_comparison_and_not_only_the_run_under_way(
    scenario_file, tmp_path, monkeypatch
):
    scenario = load(str(scenario_file(compare=COMPARE)), Scenario)
    entries = plan(scenario, tmp_path)
    monkeypatch.setattr(
        "sim.simulation.Simulation.run",
        lambda sim: os.kill(os.getpid(), signal.SIGINT) or stop(sim),
    )

    def stop(sim):
        assert sim.callbacks.should_stop()
        sim.ended.reason = "interrupted"

    with pytest.raises(KeyboardInterrupt):
        run_all(
            entries, scenario_file().parent, True, 1, lambda *_: pytest.fail("it counted as done")
        )
    assert [is_done(entry, True, tmp_path) for entry in entries] == [False, False]
    assert entries[0].folder.exists() and not entries[1].folder.exists()


def test_a_comparison_stays_in_its_folder(mobifleet, scenario_file, tmp_path):
    climbing = mobifleet(
        "compare", scenario_file(compare={"methods": {"../../up": METHODS["ours"]}}), "--dry"
    )
    assert climbing.code == 0 and "../../up" in climbing.out, climbing.err
    [run] = (tmp_path / "runs" / "tiny-compare").glob("*/summary.json")
    assert run.parent.name.startswith("..-..-up-") and not list(tmp_path.parent.glob("up*"))
    control = mobifleet("compare", scenario_file(compare={"methods": {"a\nb": METHODS["ours"]}}))
    assert control.code == 2 and "without control characters" in control.err
    values = ["../../../up", "a/b"]
    scenario = load(
        str(scenario_file(compare={**COMPARE, "over": {"key": "description", "values": values}})),
        Scenario,
    )
    for entry in plan(scenario, tmp_path):
        assert (
            entry.folder.resolve().is_relative_to(tmp_path.resolve())
            and entry.folder.parent.parent == tmp_path
        )
