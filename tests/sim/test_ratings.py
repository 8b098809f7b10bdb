"""A task whose labels are real-valued ratings, learned by every method; metrics of one's choice;
and how well each device is served.
"""

import csv
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from learning.data import partition, texts
from learning.data.tables import DataError
from sim.results.by_device import accuracy_by_device, spread
from sim.results.summary import device_table, summary
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario

every_method = runpy.run_path(str(Path(__file__).parent / "every_method.py"))
WORDS = {"awful": -2.0, "poor": -0.75, "fair": 0.5, "superb": 2.25}


@pytest.fixture
def rated(tmp_path):
    """Sets a task of texts whose one telling word gives their rating."""
    rng = np.random.default_rng(0)
    with (tmp_path / "rated.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "stars"])
        for number in range(120):
            word = list(WORDS)[number % len(WORDS)]
            rows.writerow([f"{word} number {number} {rng.integers(99)}", WORDS[word]])
    data = {"path": str(tmp_path / "rated.csv"), "label": "stars"}
    return {"dataset": data, "kind": "regression", "train": 60, "test": 40, "max_tokens": 16}


@pytest.mark.parametrize("kind", every_method["KINDS"])
def test_every_method_learns_ratings_or_says_that_it_cannot(kind, rated, simulate):
    method = every_method["small"](kind)
    if kind == "mobillm":
        with pytest.raises(ScenarioError, match=r"method\.loss: .*mobillm cannot learn them"):
            simulate(task=rated, method=method)
        return
    if kind == "local-lst":
        with pytest.raises(ScenarioError, match="say `loss: squared-error`"):
            simulate(task=rated, method=method)
        method["loss"] = "squared-error"
    fleet = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    sim = simulate(
        task={**rated, "validation": 12}, fleet=fleet, arrivals={"kind": "at-once"}, method=method
    )
    found = summary(sim, "", device_table(sim), 0.0)
    assert found["metric"] == "pearson" and -1 <= found["final"] <= 1
    names = {row["name"] for row in sim.recorder.metrics().to_pylist()}
    assert {"pearson", "validation_pearson", "validation_loss"} <= names
    assert accuracy_by_device(sim) == [None] * 3


def test_ratings_are_learned(rated, simulate, curve):
    fleet = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    sim = simulate(
        task=rated | {"metric": "spearman", "validation": 12},
        fleet=fleet,
        arrivals={"kind": "at-once"},
        method={"kind": "fed-mobillm", "replay": 60, "server_batch": 16, "weight_decay": 0.01},
    )
    assert sim.score > 0.5
    losses = [
        row["value"]
        for row in sim.recorder.metrics().to_pylist()
        if (row["name"], row["group"]) == ("validation_loss", "")
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        ({"kind": "fed-mobillm", "replay": 5, "server_batch": 8}, ", or say `wire: float32`"),
        ({"kind": "fed-mobillm", "wire": "int8"}, ", or say `wire: float32`"),
        ({"kind": "pae-mobillm", "wire": "float16"}, ", or say `wire: float32`"),
        ({"kind": "upload-raw-text", "replay": 5, "server_batch": 8}, ""),
        ({"kind": "fed-mobillm", "replay": 5, "server_batch": 8, "wire": "float32"}, None),
        ({"kind": "pae-mobillm", "epochs": 1}, None),
        ({"kind": "centralised", "replay": 5, "server_batch": 8}, None),
    ],
)
def test_ratings_beyond_half_precision_are_refused_where_they_are_sent_in_it(
    method, instead, rated, simulate, tmp_path
):
    fleet = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    given = {"task": rated, "fleet": fleet, "arrivals": {"kind": "at-once"}, "method": method}
    file = tmp_path / "rated.csv"
    text = file.read_text()
    file.write_text(text.replace(",-2.0", ",-65504"))  # the last one that it holds
    simulate(dry=True, **given)
    file.write_text(text.replace(",-2.0", ",-2e5"))
    if instead is None:
        simulate(dry=True, **given)
        return
    said = "ends at 65,504, and they go up to 200,000: scale them to a few units"
    with pytest.raises(ValueError, match=re.escape(f"{method['kind']} sends ratings")) as error:
        simulate(dry=True, **given)
    assert str(error.value).endswith(said + instead)


def test_ratings_are_divided_by_quantile_bins():
    ratings = np.random.default_rng(0).normal(size=1000)
    bins = partition.bins(ratings)
    assert np.bincount(bins).tolist() == [200] * 5
    assert all(ratings[bins == b].max() <= ratings[bins == b + 1].min() for b in range(4))
    assert set(partition.bins(np.array([1.0, 1.0, 1.0, 5.0]))) == {0, 4}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["1", "good", "2"], "(line 3), column 'stars': the rating 'good' is not a number"),
        (["1.5", "1.5", "1.50"], "every rating is '1.5'"),
        (["1", "2", "1e99"], "the rating '1e99' is too large"),
    ],
)
def test_what_is_no_rating_is_told_by_its_line(labels, said, tmp_path):
    path = tmp_path / "rated.csv"
    path.write_text("text,stars\n" + "".join(f"text {i},{x}\n" for i, x in enumerate(labels)))
    with pytest.raises(DataError) as error:
        texts.load({"path": path, "label": "stars"}, "regression")
    assert said in str(error.value)


def test_a_rating_may_be_a_fraction_where_no_class_may(tmp_path):
    path = tmp_path / "rated.csv"
    path.write_text("text,label\na,1.5\nb,-2\nc,.25\n")
    found = texts.load({"path": path}, "regression")
    assert found.labels.tolist() == [1.5, -2.0, 0.25] and found.labels.dtype == np.float32
    with pytest.raises(DataError, match="is a fraction"):
        texts.load({"path": path})


@pytest.mark.parametrize(
    ("task", "line", "said"),
    [
        ({"metric": "pearson"}, "metric", "pearson is no metric of a task with classes"),
        ({"metric": "f1"}, "metric", "there are 6 classes: take macro-f1"),
        ({"metric": "mcc", "kind": "regression"}, "metric", "those are: pearson, spearman"),
    ],
)
def test_a_metric_that_does_not_fit_is_told_at_its_line(task, line, said, scenario_file):
    path = scenario_file(task={"dataset": "trec-questions", **task})
    with pytest.raises(ScenarioError) as error:
        load(str(path), Scenario, [], [], problems)
    number = next(
        i
        for i, row in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if row.strip().startswith(line)
    )
    assert f":{number}:" in str(error.value) and said in str(error.value)


def test_f1_of_many_classes_in_a_file_of_ones_own(simulate, scenario_file, rated):
    with pytest.raises(DataError, match=r"task\.metric: f1 is of one class against another"):
        simulate(task={**rated, "kind": "classification", "metric": "f1", "dataset": _words(rated)})


def _words(rated):
    path = Path(rated["dataset"]["path"])
    rows = [row.split(",")[0] for row in path.read_text(encoding="utf-8").splitlines()[1:]]
    classes = path.with_name("classes.csv")
    classes.write_text("text,label\n" + "".join(f"{r},{r.split()[0]}\n" for r in rows))
    return {"path": str(classes)}


def test_the_metric_of_the_task_is_that_of_target_curve_and_summary(simulate):
    sim = simulate(task={**_tiny(), "metric": "macro-f1"}, stop={"target": 0.9})
    found = summary(sim, "", device_table(sim), 0.0)
    values = [m["value"] for m in sim.recorder.metrics().to_pylist() if m["name"] == "macro-f1"]
    assert values and found["metric"] == "macro-f1" and sim.ended.reason == "target"
    assert found["final"] == sim.score >= 0.9


def _tiny():
    return {"dataset": {"path": "texts.csv"}, "train": 60, "test": 30, "max_tokens": 16}


@pytest.mark.parametrize("kind", ["fed-mobillm", "local-lora"])
def test_a_devices_accuracy_is_that_on_its_own_mix_of_classes(kind, simulate):
    task = {**_tiny(), "partition": {"kind": "shards", "shards": 1}}
    fleet = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    method = every_method["small"](kind)
    sim = simulate(task=task, fleet=fleet, arrivals={"kind": "at-once"}, method=method)
    scores = [
        sim.personal[d.id] if kind == "local-lora" else sim.scores[d.backbone] for d in sim.devices
    ]
    for device, score, accuracy in zip(sim.devices, scores, accuracy_by_device(sim), strict=True):
        mix = np.bincount(sim.task.labels[device.samples], minlength=sim.task.classes)
        assert accuracy == pytest.approx(mix @ np.array(score["by_class"]) / mix.sum())
    found = summary(sim, "", device_table(sim), 0.0)["accuracy_by_device"]
    known = accuracy_by_device(sim)
    assert (found["worst"], found["best"], found["devices"]) == (min(known), max(known), 3)
    assert found["worst"] <= found["p10"] <= found["mean"] <= found["best"]
    if kind == "local-lora":  # each knows what it holds better than what it does not
        assert found["mean"] > sim.score


def test_the_spread_of_accuracy_is_of_what_is_known():
    tenths = [k / 10 for k in range(10, -1, -1)]
    found = spread([None, *tenths, None])
    assert found == {
        **{"devices": 11, "mean": pytest.approx(0.5), "p10": pytest.approx(0.1)},
        **{"worst": 0.0, "best": 1.0},
    }
    assert spread([None])["devices"] == 0
