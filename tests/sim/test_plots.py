import json
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.style
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from sim.results.run import RunError, open_run
from sim.views.plots import (
    BINS,
    MAX_ROWS,
    STYLE,
    accuracy_figure,
    coverage,
    devices_figure,
    draw,
    finish_times_figure,
    timeline_figure,
)

write_run = runpy.run_path(str(Path(__file__).with_name("synthetic_run.py")))["write_run"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(write_run(tmp_path_factory.mktemp("plots") / "run", costed_as="roberta-large"))


@pytest.fixture(autouse=True)
def style():
    with matplotlib.style.context(["default", STYLE]):
        yield


def texts(figure):
    """Every text that is drawn: ticks outside an axis's limits exist, but are not."""
    figure.draw_without_rendering()
    unseen = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        unseen |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    found = (text for text in figure.findobj(Text) if text not in unseen)
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def line(ax, label):
    (found,) = (line for line in ax.lines if line.get_label() == label)
    return found


def test_one_run_gives_four_figures_that_are_pictures(run, tmp_path):
    files = draw(run, tmp_path / "new" / "figures")
    assert sorted(file.name for file in files) == [
        "accuracy.png",
        "devices.png",
        "finish_times.png",
        "timeline.png",
    ]
    for file in files:
        pixels = imread(file)
        assert pixels.shape[1] == 1400 and pixels[..., :3].std() > 0.05


@pytest.mark.thorough
def test_the_same_run_gives_the_same_bytes_without_a_date(tmp_path):
    run = open_run(write_run(tmp_path / "run", n_devices=3, batches=2))
    first, second = (draw(run, tmp_path / name, formats=("pdf",)) for name in ("first", "second"))
    assert len(first) == 4
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert all(b"CreationDate" not in file.read_bytes() for file in first)


@pytest.mark.parametrize(
    "make", [timeline_figure, devices_figure, lambda run: accuracy_figure([run])]
)
def test_costs_of_another_model_are_said_and_print_is_legible(run, make):
    said = texts(make(run))
    assert "costed as roberta-large" in [text.get_text() for text in said]
    assert min(text.get_fontsize() for text in said) >= 7


@pytest.mark.parametrize(
    "make",
    [
        timeline_figure,
        devices_figure,
        lambda run: accuracy_figure([run]),
        lambda run: finish_times_figure([run]),
    ],
)
def test_nothing_written_overlaps_or_leaves_the_page(run, make):
    figure = make(run)
    said = texts(figure)
    boxes = [text.get_window_extent() for text in said]
    page = figure.bbox
    for text, box in zip(said, boxes, strict=True):
        assert (
            page.x0 <= box.x0
            and box.x1 <= page.x1 + 1
            and page.y0 <= box.y0
            and box.y1 <= page.y1 + 1
        ), text
    for i, (text, box) in enumerate(zip(said, boxes, strict=True)):
        for other, its in zip(said[:i], boxes[:i], strict=True):
            apart = (
                box.x0 >= its.x1 - 1
                or its.x0 >= box.x1 - 1
                or box.y0 >= its.y1 - 1
                or its.y0 >= box.y1 - 1
            )
            assert apart, (text, other)


spans = st.lists(st.tuples(st.integers(0, 2), st.floats(0, 7), st.floats(0, 7)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(spans)
def test_coverage_is_the_overlap_of_every_span_with_every_bin(spans):
    row, one, two = (
        (np.array(column) for column in zip(*spans, strict=True))
        if spans
        else (np.zeros(0, dtype=int),) * 3
    )
    start, end = np.minimum(one, two), np.maximum(one, two)
    expected = np.zeros((3, 7))
    for at, begins, ends in zip(row, start, end, strict=True):
        for bin_ in range(7):
            expected[at, bin_] += max(0.0, min(ends, bin_ + 1) - max(begins, bin_))
    np.testing.assert_allclose(coverage(row, start, end, 3, 7), expected, atol=1e-12)


def test_the_timeline_shows_who_was_busy_when_and_marks_what_failed(run):
    (ax,) = timeline_figure(run).axes
    spans = [span for span in run.spans().to_pylist() if not span["actor"].startswith("link:")]
    rows = dict(
        zip([label.get_text() for label in ax.get_yticklabels()], ax.get_yticks(), strict=True)
    )
    strips = {round(np.mean(image.get_extent()[2:]), 6): image for image in ax.images}
    assert len(strips) == len(rows)
    last_s = max(span["end_s"] for span in spans)
    for name, y in rows.items():
        alpha = strips[round(y, 6)].get_array()[0, :, 3]
        middles_s = (np.arange(BINS) + 0.5) * last_s / BINS
        mine = [span for span in spans if span["actor"] == name]
        busy = np.array(
            [any(span["start_s"] <= at_s < span["end_s"] for span in mine) for at_s in middles_s]
        )
        assert np.all(alpha[busy] > 0)
        width_s = last_s / BINS
        idle = [
            all(s["end_s"] < at - width_s or s["start_s"] > at + width_s for s in mine)
            for at in middles_s
        ]
        assert np.all(alpha[np.array(idle)] == 0) and (np.any(idle) or name == "server")
    device = next(name for name in rows if name != "server")
    compute = next(span for span in spans if span["actor"] == device and span["kind"] == "compute")
    middle = int((compute["start_s"] + compute["end_s"]) / 2 / last_s * BINS)
    np.testing.assert_allclose(
        strips[round(rows[device], 6)].get_array()[0, middle, :3], to_rgb("#0072B2")
    )
    (crosses,) = (line for line in ax.lines if line.get_marker() == "x")
    assert len(crosses.get_xdata()) == sum(span["outcome"] != "ok" for span in spans) > 0


def test_a_half_busy_server_looks_half_busy(tmp_path):
    path = write_run(tmp_path / "run", n_devices=2, batches=2)
    spans = pq.read_table(path / "spans.parquet")
    n = 5000  # far more steps than bins
    busy = {
        "actor": ["server"] * n,
        "kind": ["train"] * n,
        "outcome": ["ok"] * n,
        "flows": [[]] * n,
    }
    busy |= {"start_s": np.arange(n) * 1.0, "end_s": np.arange(n) + 0.5}
    busy |= {"nbytes": np.zeros(n, dtype=int), "flop": np.zeros(n), "joules": np.zeros(n)}
    table = pa.table({key: busy[key] for key in spans.column_names})
    pq.write_table(table.cast(spans.schema), path / "spans.parquet")
    server = timeline_figure(open_run(path)).axes[0].images[0]
    assert np.mean(server.get_array()[0, :, 3]) == pytest.approx(0.5, abs=0.02)


def test_rows_go_by_class_and_then_by_finish(run):
    (ax,) = timeline_figure(run).axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    devices = {row["device"]: row for row in run.devices().to_pylist()}
    assert rows[0] == "server" and ax.get_yticks()[0] == max(ax.get_yticks()) and len(rows) == 31
    keys = [
        (devices[name]["device_class"], devices[name]["finished_at_s"] or np.inf)
        for name in rows[1:]
    ]
    assert keys == sorted(keys)


def test_a_large_fleet_is_a_sample_that_says_so(tmp_path):
    run = open_run(write_run(tmp_path / "large", n_devices=3000, batches=3))
    figure = timeline_figure(run)
    assert len(figure.axes[0].get_yticks()) == MAX_ROWS + 1
    assert "60 of 3,000 devices" in figure.get_suptitle()


def test_accuracy_is_paired_with_the_bytes_of_the_same_instant(run):
    by_time, by_bytes = accuracy_figure([run]).axes[:2]
    time_s, value = run.curve("accuracy")
    sent_s, sent = run.curve("uplink_bytes")
    assert time_s.tolist() == sent_s.tolist()
    np.testing.assert_allclose(line(by_time, "fleet").get_ydata(), value)
    np.testing.assert_allclose(line(by_bytes, "fleet").get_xdata(), sent / 1e6)
    assert line(by_time, "fleet").get_linewidth() > line(by_time, "minilm-l2").get_linewidth()
    (reached,) = (line for line in by_bytes.lines if line.get_marker() == "D")
    assert reached.get_xdata() == [run.target["uplink_bytes"] / 1e6] and reached.get_ydata() == [
        0.75
    ]


def test_a_missed_target_is_called_missed(tmp_path):
    path = write_run(tmp_path / "run", n_devices=4, batches=3)
    summary = json.loads((path / "summary.json").read_text())
    summary["target"] = {"value": 0.99, "reached_at_s": None}
    (path / "summary.json").write_text(json.dumps(summary))
    assert "target 0.99, not reached" in [
        text.get_text() for text in texts(accuracy_figure([open_run(path)]))
    ]


def test_bars_add_up_to_what_the_devices_sent_and_spent(run):
    by_bytes, by_energy = devices_figure(run).axes
    devices = run.devices().to_pylist()
    classes = sorted({row["device_class"] for row in devices})
    for ax, total, scale in (
        (by_bytes, lambda row: row["uplink_bytes"] + row["downlink_bytes"], 1e6),
        (by_energy, lambda row: row["energy_j"], 1.0),
    ):
        for place, name in enumerate(classes):
            mean = np.mean([total(row) for row in devices if row["device_class"] == name])
            widths = [
                bar.get_width()
                for stack in ax.containers
                for bar in stack
                if round(bar.get_center()[1]) == place
            ]
            assert sum(widths) == pytest.approx(mean / scale, rel=1e-6)
    spans = [span for span in run.spans().to_pylist() if span["actor"].startswith("device-")]
    radio = sum(span["joules"] for span in spans if span["kind"] == "upload")
    of_class = [sum(row["device_class"] == name for row in devices) for name in classes]
    drawn = sum(
        bar.get_width() * count
        for bar, count in zip(by_energy.containers[1], of_class, strict=True)
    )
    assert drawn == pytest.approx(radio)


def test_finish_times_stop_at_the_share_that_finished_and_name_the_slowest(run):
    figure = finish_times_figure([run])
    devices = run.devices().to_pylist()
    for name in {row["device_class"] for row in devices}:
        mine = [row["finished_at_s"] for row in devices if row["device_class"] == name]
        done = sorted(at_s for at_s in mine if at_s is not None)
        step = line(figure.axes[0], f"{name} ({len(done)} of {len(mine)})")
        assert step.get_ydata()[-1] == pytest.approx(len(done) / len(mine))
        np.testing.assert_allclose(step.get_ydata()[1:-1], np.arange(1, len(done) + 1) / len(mine))
    slowest = max(
        (row for row in devices if row["finished_at_s"]), key=lambda row: row["finished_at_s"]
    )
    said = [text.get_text() for text in texts(figure)]
    assert any(slowest["device"] in text and slowest["link"] in text for text in said)


def test_several_runs_share_axes_and_are_told_apart(tmp_path):
    runs = [open_run(write_run(tmp_path / f"r{seed}", 6, 4, seed=seed)) for seed in (1, 2)]
    files = draw(runs, tmp_path)
    assert [file.name for file in files] == ["accuracy.png", "finish_times.png"]
    labels = [line.get_label() for line in accuracy_figure(runs).axes[0].lines]
    assert (
        "synthetic · fed-mobillm · seed 1" in labels
        and "synthetic · fed-mobillm · seed 2" in labels
    )


def test_runs_of_seconds_and_of_hours_are_both_seen(tmp_path):
    quick, slow = write_run(tmp_path / "quick", 6, 4), write_run(tmp_path / "slow", 6, 4, seed=1)
    table = pq.read_table(slow / "devices.parquet")
    column = table.schema.get_field_index("finished_at_s")
    later = pc.multiply(table["finished_at_s"], 1000.0)
    pq.write_table(table.set_column(column, "finished_at_s", later), slow / "devices.parquet")
    [ax] = finish_times_figure([open_run(quick), open_run(slow)]).axes
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "finish time [s]"
    first_s = pc.min(pq.read_table(quick / "devices.parquet")["finished_at_s"]).as_py()
    limits = (first_s / 1.1, pc.max(later).as_py() * 1.1)
    assert ax.get_xlim() == pytest.approx(limits)
    [ax] = finish_times_figure([open_run(slow), open_run(slow)]).axes
    assert ax.get_xscale() == "linear"


def test_small_and_empty_runs_draw_what_there_is(tmp_path):
    one = open_run(write_run(tmp_path / "one", n_devices=1, batches=1))
    assert len(draw(one, tmp_path / "a")) == 4
    dry = open_run(write_run(tmp_path / "dry", n_devices=3, batches=2, dry=True))
    names = [file.name for file in draw(dry, tmp_path / "b")]
    assert names == ["timeline.png", "finish_times.png", "devices.png"]
    path = write_run(tmp_path / "none", n_devices=2, batches=1)
    spans, devices = pq.read_table(path / "spans.parquet"), pq.read_table(path / "devices.parquet")
    pq.write_table(spans.slice(0, 0), path / "spans.parquet")
    never = pa.nulls(2, pa.float64())
    at = devices.column_names.index("finished_at_s")
    pq.write_table(devices.set_column(at, "finished_at_s", never), path / "devices.parquet")
    names = [file.name for file in draw(open_run(path), tmp_path / "c")]
    assert names == ["timeline.png", "accuracy.png", "devices.png"]
    with pytest.raises(RunError, match="name at least one run"):
        draw([], tmp_path)


def test_drawing_needs_neither_pyplot_nor_torch():
    code = (
        "import sim.views.plots, sys; sys.exit(bool({'matplotlib.pyplot', 'torch', 'pandas'} & "
        "set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
    )
