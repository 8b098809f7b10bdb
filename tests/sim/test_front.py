"""What a sweep's combinations get for their bytes, and what attacks get of them."""

import csv
import json

import matplotlib.style
import pytest

from sim.api import sweep
from sim.results.run import open_run
from sim.sweep.effects import effects_of, outcomes_of
from sim.sweep.front import BYTES, points_of
from sim.sweep.front_plots import bytes_figure, privacy_figure
from sim.views.page import STYLE

UP, DOWN = "per_device.uplink_bytes.mean", "per_device.downlink_bytes.mean"


def row(taps, seed, score, up, down=10.0, method="ours", **more) -> dict:
    costs = {UP: up, DOWN: down}
    base = {"method": method, "seed": seed, "status": "finished", "method.taps": taps}
    return {**base, "final": score, **costs, **more}


def rows_of(*cells) -> list[dict]:
    return [row(taps, seed, s + 0.01 * seed, up) for taps, s, up in cells for seed in (0, 1)]


def test_the_front_is_what_no_other_beats():
    rows = rows_of((1, 0.5, 100), (2, 0.7, 200), (3, 0.6, 250), (4, 0.7, 300), (5, 0.8, 900))
    points = points_of(rows, ["method.taps"])
    assert [p.values["method.taps"] for p in points if p.on_front] == [1, 2, 5]
    one = points[0]
    assert (one.cost, one.score, one.seeds) == (110, pytest.approx(0.505), 2)
    assert (one.score_least, one.score_most) == (0.5, 0.51)


def test_a_mean_is_never_beyond_the_least_and_the_most():
    rows = [row(taps, seed, 0.1 * taps, 0.1 * taps, 0.2) for taps in (1, 2, 3) for seed in range(3)]
    for point in points_of(rows, ["method.taps"]):
        assert point.cost_least == point.cost == point.cost_most
        assert point.score_least == point.score == point.score_most
    with matplotlib.style.context(["default", STYLE]):
        assert bytes_figure(rows, ["method.taps"], "accuracy") is not None


def test_a_combination_without_all_its_runs_is_no_point():
    rows = rows_of((1, 0.5, 100), (2, 0.7, 200))
    rows[0]["status"] = "failed"
    assert [p.values["method.taps"] for p in points_of(rows, ["method.taps"])] == [2]


def test_what_validation_chose_is_looked_at_where_every_run_has_it():
    rows = rows_of((1, 0.5, 100), (2, 0.7, 200))
    chosen = [{**one, "chosen": 0.1} for one in rows]
    assert {p.score for p in points_of(chosen, ["method.taps"])} == {0.1}
    assert {p.score for p in points_of([*rows[:1], *chosen[1:]], ["method.taps"])} != {0.1}


def test_scores_of_several_metrics_make_no_mean_and_no_front():
    rows = rows_of((1, 0.5, 100), (2, 0.7, 200))
    for one in rows:
        one["task.metric"] = one["metric"] = ("accuracy", "perplexity")[one["method.taps"] - 1]
    assert points_of(rows, ["task.metric"]) == []
    outcomes = {effect.outcome for effect in effects_of(rows, ["task.metric"])}
    assert outcomes and not outcomes & {"final", "chosen", "target.reached_at_s"}
    assert "final" in outcomes_of([{**one, "metric": "accuracy"} for one in rows])


def test_the_figure_numbers_and_names_the_front():
    rows = rows_of((1, 0.5, 100), (2, 0.7, 200), (3, 0.6, 250))
    with matplotlib.style.context(["default", STYLE]):
        figure = bytes_figure(rows, ["method.taps"], "accuracy")
        figure.canvas.draw()
    [ax] = figure.axes
    assert [text.get_text() for text in ax.texts] == ["1", "2"]
    [legend] = figure.legends
    said = [text.get_text() for text in legend.texts]
    assert said[:3] == ["taps: 1", "taps: 2", "taps: 3"]
    assert said[-2:] == ["1  1: 0.505", "2  2: 0.705"]
    assert bytes_figure(rows[:4], ["method.taps"], "accuracy") is None  # too few to see a front


def test_a_panel_for_each_measure_with_what_a_guess_gets():
    more = {"privacy.groups": 0.9, "privacy.groups_chance": 0.0}
    rows = [{**one, **more} for one in rows_of((1, 0.5, 100), (2, 0.7, 200))]
    rows[0]["privacy.groups"] = 0.1
    for row in rows:
        row["privacy.groups_chance"] = 0.05 if row["method.taps"] == 1 else 0.2
    with matplotlib.style.context(["default", STYLE]):
        figure = privacy_figure(rows, ["method.taps"], "accuracy")
        figure.canvas.draw()
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in shown] == ["labels grouped by the server"]
    guesses = [line.get_xdata()[0] for line in shown[0].lines if line.get_marker() == "|"]
    assert guesses == [0.05, 0.2]  # each its own
    plain = rows_of((1, 0.5, 100), (2, 0.7, 200))
    assert privacy_figure(plain, ["method.taps"], "accuracy") is None


def test_a_sweep_attacks_its_runs_once_and_has_columns(mobifleet, scenario_file, tmp_path):
    path = scenario_file(
        task={"dataset": {"path": "texts.csv"}, "train": 60, "test": 30, "max_tokens": 16}
    )
    grid = ("--grid", "method.protection={},null", "--seeds", "2", "--out", tmp_path / "out")
    first = mobifleet("sweep", path, *grid, "--attacks", "labels")
    assert first.code == 0, first.err
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").open()))
    named = {one["method.protection"]: float(one["privacy.labels"]) for one in rows}
    assert named["{}"] < 1.0 == named[""] and float(rows[0]["privacy.groups"]) == 1.0
    assert (tmp_path / "out" / "figures" / "privacy.png").is_file()
    front = list(csv.DictReader((tmp_path / "out" / "front.csv").open()))
    assert {one["seeds"] for one in front} == {"2"} and len(front) == 2
    effects = list(csv.DictReader((tmp_path / "out" / "effects.csv").open()))
    assert {"privacy.labels", "privacy.groups"} <= {one["outcome"] for one in effects}
    again = mobifleet("sweep", path, *grid, "--attacks", "labels")
    assert "4 of them finished" in again.out
    more = mobifleet("sweep", path, *grid, "--attacks", "model")  # which were not tried
    assert "0 of them finished" in more.out
    folder = tmp_path / "out" / rows[0]["folder"]
    found = json.loads((folder / "privacy.json").read_text())
    assert found["digest"] == open_run(folder).summary["digest"]
    assert found["tried"] == ["labels", "model"]  # and what was found before stays
    assert {"labels", "model"} == {one["on"] for one in found["outcomes"]}


def test_a_comparison_has_columns_of_what_attacks_got(mobifleet, scenario_file, tmp_path):
    alike = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    methods = {
        "ours": {"kind": "fed-mobillm", "replay": 5, "server_batch": 8, "device_batch": 4},
        "peft": {"kind": "fedavg-lora", "rounds": 2, "participation": 1.0},
    }
    path = scenario_file(fleet=alike, compare={"methods": methods, "ours": "ours"})
    out = tmp_path / "out"
    done = mobifleet("compare", path, "--attacks", "all", "--out", out)
    assert done.code == 0, done.err
    by_method = {one["method"]: one for one in csv.DictReader((out / "table.csv").open())}
    assert float(by_method["ours"]["privacy.labels"]) == 1.0
    assert by_method["peft"]["privacy.labels"] == "" != by_method["peft"]["privacy.label_counts"]
    assert "labels named by the server" in (out / "table.md").read_text()
    assert (out / "figures" / "privacy.png").is_file()  # of what both have: members told


@pytest.mark.parametrize("verb", ["sweep", "compare"])
def test_what_sends_nothing_is_not_attacked(verb, mobifleet, scenario_file, tmp_path):
    methods = {"ours": {"kind": "fed-mobillm", "replay": 5, "server_batch": 8}}
    path = scenario_file(compare={"methods": methods})
    said = mobifleet(verb, path, "--dry", "--attacks", "labels", "--out", tmp_path / "out")
    assert said.code == 2 and "a dry run sends nothing" in said.err
    assert not (tmp_path / "out").exists()


def test_a_method_that_sends_nothing_has_nothing_found_and_has_not_failed(
    mobifleet, scenario_file, tmp_path
):
    alike = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    path, out = scenario_file(fleet=alike), tmp_path / "out"
    methods = ("--methods", "local-lora,upload-raw-text", "--set", "task.train=20")
    done = mobifleet("sweep", path, *methods, "--attacks", "all", "--out", out)
    assert done.code == 0, done.err
    rows = {one["method"]: one for one in csv.DictReader((out / "sweep.csv").open())}
    assert {one["error"] for one in rows.values()} == {""}
    assert rows["local-lora"]["privacy.labels"] == ""
    assert float(rows["upload-raw-text"]["privacy.labels"]) == 1.0
    again = mobifleet("sweep", path, *methods, "--attacks", "all", "--out", out)
    assert "2 of them finished" in again.out


def test_references_are_on_no_front():
    rows = rows_of((1, 0.5, 100), (2, 0.7, 200), (3, 0.9, 20))
    for one in rows[-2:]:
        one["is_reference"] = True
    on_front = [p.values["method.taps"] for p in points_of(rows, ["method.taps"]) if p.on_front]
    assert on_front == [1, 2]


def test_words_for_attacks_are_checked_from_python_too(scenario_file, tmp_path):
    with pytest.raises(ValueError, match="'label' is none of none, labels, texts, model, all"):
        sweep(str(scenario_file()), {}, attacks="label", out=tmp_path / "out", quiet=True)


def test_bytes_are_both_ways():
    assert points_of(rows_of((1, 0.5, 100), (2, 0.7, 200)), ["method.taps"], BYTES)[0].cost == 110
