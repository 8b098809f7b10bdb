import functools
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
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from sim.kernel.vocabulary import KINDS
from sim.results.run import RunError, open_run
from sim.views.finish_times import finish_times_figure
from sim.views.gantt import BINS, MAX_ROWS, ROW, THINNEST, coverage, stacked, timeline_figure
from sim.views.page import COLOURS, STYLE, Page, line_style
from sim.views.plots import devices_figure, draw, metric_figure

COLUMN = Page(3.3, is_titled=False)

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


def test_a_label_stands_in_place_of_the_name_of_one_run(run, monkeypatch, tmp_path):
    titles = []
    keep = lambda figure, *_: titles.append(figure.get_suptitle())  # noqa: E731
    monkeypatch.setattr("sim.views.plots.save", keep)
    draw(run, tmp_path, labels=["ours, 8 bit"])
    assert len(titles) == 4
    assert all(title.startswith("ours, 8 bit") and run.name not in title for title in titles)


@pytest.mark.thorough
def test_the_same_run_gives_the_same_bytes_without_a_date(tmp_path):
    run = open_run(write_run(tmp_path / "run", n_devices=3, batches=2))
    first, second = (draw(run, tmp_path / name, formats=("pdf",)) for name in ("first", "second"))
    assert len(first) == 4
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert all(b"CreationDate" not in file.read_bytes() for file in first)


@pytest.mark.parametrize(
    "make", [timeline_figure, devices_figure, lambda run: metric_figure([run])]
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
        lambda run: metric_figure([run]),
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


def at(ax, x, y):
    """The colours that are drawn at a place of the Gantt chart, in data coordinates."""
    return [
        to_hex(drawn.get_facecolor()[0]).upper()
        for drawn in ax.collections
        if any(
            box.contains(x, y) and path.contains_point((x, y))
            for path, box in zip(drawn.get_paths(), boxes(drawn), strict=True)
        )
    ]


@functools.cache
def boxes(drawn):
    """The extents of what is drawn, which take longer to find than to look at."""
    return [path.get_extents() for path in drawn.get_paths()]


def test_the_timeline_shows_who_was_busy_when_and_marks_what_failed(run):
    (ax,) = timeline_figure(run).axes
    spans = [span for span in run.spans().to_pylist() if not span["actor"].startswith("link:")]
    rows = dict(
        zip([label.get_text() for label in ax.get_yticklabels()], ax.get_yticks(), strict=True)
    )
    last_s = max(span["end_s"] for span in spans)
    bin_s = last_s / BINS
    unit_s = 60.0 if "[min]" in ax.get_xlabel() else 1.0
    for name, y in [*rows.items()][::10]:
        mine = [span for span in spans if span["actor"] == name]
        for at_s in (np.arange(0, BINS, 61) + 0.5) * bin_s:
            bottom = at(ax, at_s / unit_s, y - ROW / 2 + 0.01)
            near = {
                s["kind"] for s in mine if s["start_s"] < at_s + bin_s and s["end_s"] > at_s - bin_s
            }
            assert set(bottom) <= {KINDS[kind].colour for kind in near}
            whole = [s for s in mine if s["start_s"] < at_s - bin_s and s["end_s"] > at_s + bin_s]
            for span in whole:  # it fills the bin, so the row from bottom to top
                colour = [KINDS[span["kind"]].colour]
                assert bottom == colour == at(ax, at_s / unit_s, y + ROW / 2 - 0.01)
    (crosses,) = (line for line in ax.lines if line.get_marker() == "x")
    assert len(crosses.get_xdata()) == sum(span["outcome"] != "ok" for span in spans) > 0


shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(shares)
def test_what_alternates_within_a_bin_shares_its_height_and_nothing_is_lost(share):
    bottom, top = stacked(np.array(share).reshape(4, 1, 1))
    height = (top - bottom).ravel()
    assert np.all((height > 0) == (np.array(share) > 1e-12)) and height.sum() <= 1 + 1e-12
    if sum(share) <= 1 and all(s == 0 or s >= THINNEST for s in share):
        np.testing.assert_allclose(height, share)


def of_server(tmp_path, kinds, busy_s):
    """The Gantt chart of a server that does kinds in turn, a second each, far more than bins."""
    path = write_run(tmp_path / "run", n_devices=2, batches=2)
    spans = pq.read_table(path / "spans.parquet")
    n = 6000
    steps = {"actor": ["server"] * n, "outcome": ["ok"] * n, "flows": [[]] * n}
    steps |= {"kind": [kinds[i % len(kinds)] for i in range(n)]}
    steps |= {"start_s": np.arange(n) * 1.0, "end_s": np.arange(n) + busy_s}
    steps |= {"nbytes": np.zeros(n, dtype=int), "flop": np.zeros(n), "joules": np.zeros(n)}
    table = pa.table({key: steps[key] for key in spans.column_names})
    pq.write_table(table.cast(spans.schema), path / "spans.parquet")
    return timeline_figure(open_run(path)).axes[0]


def test_a_half_busy_server_looks_half_busy(tmp_path):
    [drawn] = of_server(tmp_path, ["train"], 0.5).collections
    [path] = drawn.get_paths()
    assert path.get_extents().height == pytest.approx(0.5 * ROW, abs=0.01)


def test_spans_that_alternate_keep_the_colours_of_the_legend(tmp_path):
    ax = of_server(tmp_path, ["train", "aggregate"], 1.0)
    legend = {to_hex(patch.get_facecolor()) for patch in ax.get_legend().get_patches()}
    assert legend == {to_hex(drawn.get_facecolor()[0]) for drawn in ax.collections}
    low, high = (at(ax, 0.8, y) for y in (-ROW / 4, ROW / 4))
    assert low == [KINDS["train"].colour] and high == [KINDS["aggregate"].colour]


def test_rows_go_by_class_and_then_by_finish(run):
    (ax,) = timeline_figure(run).axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    devices = {row["device"]: row for row in run.devices().to_pylist()}
    assert rows[0] == "server" and ax.get_yticks()[0] == max(ax.get_yticks()) and len(rows) == 31
    place = {row["device"]: place for place, row in enumerate(run.devices().to_pylist())}
    keys = [
        (devices[name]["device_class"], devices[name]["finished_at_s"] or np.inf, place[name])
        for name in rows[1:]
    ]
    assert keys == sorted(keys)


def test_a_large_fleet_is_a_sample_that_says_so(tmp_path):
    run = open_run(write_run(tmp_path / "large", n_devices=3000, batches=3))
    figure = timeline_figure(run)
    assert len(figure.axes[0].get_yticks()) == MAX_ROWS + 1
    assert "60 of 3,000 devices" in figure.get_suptitle()


def test_accuracy_is_paired_with_the_bytes_of_the_same_instant(run):
    by_time, by_bytes = metric_figure([run]).axes[:2]
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
        text.get_text() for text in texts(metric_figure([open_run(path)]))
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


def labels_of(figure):
    return [line.get_label() for line in figure.axes[0].lines]


def rows_of(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_several_runs_share_axes_and_are_told_apart(tmp_path):
    runs = [open_run(write_run(tmp_path / name, 6, 4, method=name)) for name in ("lora", "lst")]
    files = draw(runs, tmp_path)
    assert [file.name for file in files] == ["accuracy.png", "finish_times.png"]
    assert {"lora", "lst"} <= set(labels_of(metric_figure(runs)))
    assert rows_of(finish_times_figure(runs)) == ["lora (5 of 6)", "lst (5 of 6)"]
    named = [r"ours, 8 bit_$\alpha$ / 100 %", "x" * 60]
    assert set(named) <= set(labels_of(metric_figure(runs, named)))
    twice = [runs[0], runs[0]]  # of one seed, so no seeds of one line: their folders tell them
    assert len(set(labels_of(metric_figure(twice)))) >= 2


def test_seeds_are_one_line_with_a_band(tmp_path):
    runs = [open_run(write_run(tmp_path / f"r{seed}", 6, 4, seed=seed)) for seed in (1, 2, 3)]
    figure = metric_figure(runs)
    assert "fed-mobillm (3 seeds)" in labels_of(figure)
    middle = line(figure.axes[0], "fed-mobillm (3 seeds)")
    [band] = figure.axes[0].collections
    at = middle.get_xdata()
    each = np.stack([np.interp(at, *run.curve("accuracy")) for run in runs])
    np.testing.assert_allclose(middle.get_ydata(), each.mean(axis=0))
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((each.min(), each.max()))
    assert rows_of(finish_times_figure(runs)) == ["fed-mobillm (17 of 18)"]


def with_summary(path, **changes):
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | changes))
    return open_run(path)


def test_a_reference_is_a_level_line_beside_others_and_a_curve_alone(tmp_path):
    ours = open_run(write_run(tmp_path / "ours", 6, 4))
    best = [
        with_summary(write_run(tmp_path / f"best{n}", 6, 4, seed=n, nbytes=9**n), is_reference=True)
        for n in (1, 2)
    ]
    runs, labels = [ours, *best], ["ours", "best", "best"]
    figure = metric_figure(runs, labels)
    ends = [run.curve("accuracy")[1][-1] for run in best]
    for ax in figure.axes:
        level = [line for line in ax.lines if len(set(line.get_ydata())) == 1]
        assert [line.get_ydata()[0] for line in level].count(np.mean(ends)) == 1
    assert labels_of(figure).count("best (reference)") == 1
    sent = ours.curve("uplink_bytes")[1].max() / 1e6
    assert figure.axes[1].get_xlim()[1] < 1.2 * sent  # what it sent stretches no axis
    assert rows_of(finish_times_figure(runs, labels)) == ["ours (5 of 6)"]
    alone = metric_figure(best[:1])
    assert "fleet" in labels_of(alone) and "fed-mobillm (reference)" not in labels_of(alone)


def test_figures_are_called_by_the_metric_and_each_metric_has_its_own(tmp_path):
    runs = []
    for metric in ("accuracy", "pearson"):
        path = write_run(tmp_path / metric, 6, 4, method=metric)
        table = pq.read_table(path / "metrics.parquet")
        names = pc.replace_substring(table["name"], "accuracy", metric)
        pq.write_table(
            table.set_column(table.schema.get_field_index("name"), "name", names),
            path / "metrics.parquet",
        )
        runs.append(with_summary(path, metric=metric))
    files = draw(runs, tmp_path / "both")
    assert [file.name for file in files] == ["accuracy.png", "pearson.png", "finish_times.png"]
    assert [file.name for file in draw(runs[1], tmp_path / "one")][1] == "pearson.png"
    assert metric_figure(runs[1:]).axes[0].get_ylabel() == "pearson"


def test_finish_times_stand_beside_times_since_joining(run, tmp_path):
    absolute, since = finish_times_figure([run]).axes
    rows = [row for row in run.devices().to_pylist() if row["finished_at_s"] is not None]
    for ax, begun_s in ((absolute, lambda row: 0.0), (since, lambda row: row["joined_at_s"])):
        name = rows[0]["device_class"]
        mine = [row for row in rows if row["device_class"] == name]
        (step,) = (one for one in ax.lines if one.get_label().startswith(f"{name} ("))
        unit_s = 60.0 if "[min]" in ax.get_xlabel() else 1.0
        expected = sorted((row["finished_at_s"] - begun_s(row)) / unit_s for row in mine)
        np.testing.assert_allclose(step.get_xdata()[1:-1], expected)
    path = write_run(tmp_path / "together", 4, 2)
    table = pq.read_table(path / "devices.parquet")
    at = table.schema.get_field_index("joined_at_s")
    zero = pa.array(np.zeros(4))
    pq.write_table(table.set_column(at, "joined_at_s", zero), path / "devices.parquet")
    assert len(finish_times_figure([open_run(path)]).axes) == 1  # it would say the same twice


@pytest.mark.parametrize(
    "make", [timeline_figure, devices_figure, lambda run, page: metric_figure([run], None, page)]
)
def test_a_column_of_a_paper_has_its_width_and_no_title_of_the_run(run, make):
    figure = make(run, page=COLUMN)
    assert figure.get_size_inches()[0] == 3.3
    said = [text.get_text() for text in texts(figure)]
    assert not any(run.title in text for text in said) and "costed as roberta-large" in said


def test_lines_are_told_apart_by_the_colour_blind():
    """Simulated after Machado et al. 2009 (their matrices for the whole loss of one cone), in
    CIELAB, where 2.3 is a difference that is just noticed.
    """
    sight = {
        "all cones": np.eye(3),
        "no red": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "no green": [
            [0.3673, 0.8606, -0.2280],
            [0.2801, 0.6725, 0.0474],
            [-0.0118, 0.0429, 0.9689],
        ],
        "no blue": [
            [1.2555, -0.0767, -0.1788],
            [-0.0784, 0.9309, 0.1476],
            [0.0047, 0.6914, 0.3039],
        ],
    }

    def lab(colour, loss):
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz_of = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
        xyz = xyz_of @ np.clip(np.array(loss) @ linear, 0, 1) / np.array([0.9505, 1.0, 1.0888])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    kinds = [kind.colour for name, kind in KINDS.items() if name != "carry"]  # a link's, alone
    for colours in (COLOURS, kinds):
        for loss in sight.values():
            seen = [lab(colour, loss) for colour in colours]
            apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
            assert min(apart) > 14
    assert len({tuple(line_style(number).items()) for number in range(32)}) == 32


def test_runs_of_seconds_and_of_hours_are_both_seen(tmp_path):
    quick, slow = write_run(tmp_path / "quick", 6, 4), write_run(tmp_path / "slow", 6, 4, seed=1)
    table = pq.read_table(slow / "devices.parquet")
    column = table.schema.get_field_index("finished_at_s")
    later = pc.multiply(table["finished_at_s"], 1000.0)
    pq.write_table(table.set_column(column, "finished_at_s", later), slow / "devices.parquet")
    ax = finish_times_figure([open_run(quick), open_run(slow)], ["quick", "slow"]).axes[0]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "finish time"
    first_s = pc.min(pq.read_table(quick / "devices.parquet")["finished_at_s"]).as_py()
    limits = (first_s / 1.1, pc.max(later).as_py() * 1.1)
    assert ax.get_xlim() == pytest.approx(limits)
    ax.figure.draw_without_rendering()
    said = {tick.get_text() for tick in ax.get_xticklabels()}
    assert {"1 min", "10 min", "1 h"} <= said
    for row, share in enumerate((5 / 6, 1.0)):
        box = ax.collections[row].get_paths()[0].get_extents()
        ends = (row + 0.9 - 0.8 * share, row + 0.9, *limits)
        assert (box.y0, box.y1, box.x0, box.x1) == pytest.approx(ends)
    ax = finish_times_figure([open_run(slow), open_run(slow)], ["a", "b"]).axes[0]
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
    assert names == ["accuracy.png", "devices.png"]
    with pytest.raises(RunError, match="name at least one run"):
        draw([], tmp_path)


def test_runs_that_have_nothing_to_lay_over_each_other_are_told(mobifleet, tmp_path):
    late = [write_run(tmp_path / name, 4, dry=True, oom_share=1.0) for name in ("a", "b")]
    done = mobifleet("plot", *late, "--out", tmp_path / "figures")
    assert done.code == 2 and "none of the 2 runs measured accuracy" in done.err
    assert not (tmp_path / "figures").exists()
    alone = mobifleet("plot", late[0], "--out", tmp_path / "figures")
    assert alone.code == 0 and (tmp_path / "figures" / "timeline.png").exists()


def test_drawing_needs_neither_pyplot_nor_torch():
    code = (
        "import sim.views.plots, sys; sys.exit(bool({'matplotlib.pyplot', 'torch', 'pandas'} & "
        "set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
    )


def test_three_references_can_be_told_apart(tmp_path):
    runs = [open_run(write_run(tmp_path / "ours", 6, 4))] + [
        with_summary(write_run(tmp_path / f"best{n}", 6, 4, seed=n), is_reference=True)
        for n in range(3)
    ]
    figure = metric_figure(runs, ["ours", "one", "two", "three"])
    grey = [line for line in figure.axes[0].lines if line.get_color() == "#333333"]
    level = [line for line in grey if len(line.get_ydata())]
    assert len(level) == 3 and len({str(line._unscaled_dash_pattern) for line in level}) == 3
