"""What a reader sees in the figures of a sweep."""

import itertools

import matplotlib.style
import pytest

from sim.sweep.plots import curves_figure, draw, effects_figure
from sim.views.page import STYLE


def test_panels_are_told_apart_and_a_single_look_is_seen():
    taps = [{"by": by, "layers": n} for by in ("interval", "importance") for n in (1, 2)]
    common = {"method": "ours", "seed": 0, "name": "accuracy"}
    curves = [
        {"task.dataset": data, "method.taps": each, "time_s": time_s, "value": 0.5, **common}
        for data in ("hutto-films", "hutto-tweets")
        for each in taps
        for time_s in ([1.0] if each is taps[0] else [1.0, 2.0])
    ]
    with matplotlib.style.context(["default", STYLE]):
        figure = curves_figure(curves, ["task.dataset", "method.taps"], "accuracy")
        figure.canvas.draw()
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert panels[3].get_title() == "dataset=hutto-films\ntaps=by: importance, layers: 2"
    assert len({ax.get_title() for ax in panels}) == len(panels) == 8
    assert [ax.lines[0].get_marker() for ax in panels[:2]] == ["o", "None"]
    boxes = [ax.title.get_window_extent() for ax in panels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_short_training_goes_on_dotted_at_its_level_unless_it_diverged(tmp_path, monkeypatch):
    ends_s = {"short": 2.0, "long": 50.0, "lost": 4.0}
    at = {"task.train": 60}
    runs = [(method, seed) for method in ends_s for seed in range(2)]
    rows = [
        {"method": m, "seed": s, "status": "finished", "final": None if m == "lost" and s else 0.5}
        for m, s in runs
    ]
    failed = {"method": "short", "seed": 2, "status": "failed", "final": None}
    rows = [{**at, **row} for row in (*rows, failed)]
    curves = [
        {**at, "method": m, "seed": s, "time_s": time_s, "name": "accuracy", "value": value}
        for m, s in runs
        for time_s, value in ((1.0, 0.2), (ends_s[m], 0.5 + 0.1 * s))
    ]
    drawn = {}
    monkeypatch.setattr("sim.sweep.plots.save", lambda figure, path: drawn.setdefault(path, figure))
    draw(rows, curves, ["task.train"], "accuracy", tmp_path)
    figure = drawn[tmp_path / "curves.png"]
    lines = {(line.get_color(), line.get_linestyle()): line for line in figure.axes[0].lines}
    dotted = {colour: line for (colour, dashes), line in lines.items() if dashes == ":"}
    [short] = dotted.values()
    assert lines[short.get_color(), "-"].get_xdata().tolist() == [1, 2]
    assert short.get_xdata().tolist() == [2, 50] and short.get_ydata().tolist() == [0.55, 0.55]
    assert short.get_marker() == "o" and short.get_markevery() == [0]  # where it ended
    [legend] = figure.legends
    assert [text.get_text() for text in legend.texts] == [*ends_s, "training has ended"]


def test_names_of_outcomes_and_values_stay_within_the_figure():
    taps = [{"by": by, "layers": n} for by in ("interval", "importance") for n in (1, 2)]
    common = {"method": "ours", "status": "finished", "chosen": 0.5, "final": 0.4}
    rows = [{"method.taps": each, "seed": seed, **common} for each in taps for seed in range(2)]
    with matplotlib.style.context(["default", STYLE]):
        figure = effects_figure(rows, ["method.taps"], "accuracy")
        figure.canvas.draw()
    last = figure.axes[-1]
    assert len({tick.get_text() for tick in last.get_xticklabels()}) == len(taps)
    for ax in figure.axes:
        box = ax.yaxis.label.get_window_extent()
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1 and box.height <= 1.3 * ax.bbox.height


def test_seeds_looked_at_at_other_instants_are_averaged_between_their_looks():
    at = {"task.train": 60, "method": "ours", "name": "accuracy"}
    looks = {0: [(0, 0.0), (10, 0.4), (20, 0.6)], 1: [(0, 0.2), (5, 0.3), (15, 0.7)]}
    curves = [
        {**at, "seed": seed, "time_s": time_s, "value": value}
        for seed, points in looks.items()
        for time_s, value in points
    ]
    figure = curves_figure(curves, ["task.train"], "accuracy")
    [line] = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 5, 10, 15, 20]
    # of the first 0, 0.2, 0.4, 0.5, 0.6; of the second 0.2, 0.3, 0.5, 0.7, 0.7
    assert line.get_ydata().tolist() == pytest.approx([0.1, 0.25, 0.45, 0.6, 0.65])


@pytest.mark.parametrize(
    ("joules", "read"),
    [
        ((156_468, 156_472), None),  # a difference of nothing does not fill the panel
        ((2_000, 60_000), ["2", "5", "10", "20", "50"]),
        ((2_000, 3_000_000), ["0.01", "0.1", "1"]),
        ((0, 1_000, 1_010), "0"),
        ((0, 2_000, 3_000_000), "0"),
    ],
)
def test_costs_are_read_off_their_axis(joules, read):
    rows = [
        {
            **{"method.replay": replay, "method": "ours", "seed": 0, "status": "finished"},
            **{"per_device.uplink_bytes.mean": nbytes, "folder": "x", "error": None},
        }
        for replay, nbytes in zip((5, 20, 40), joules, strict=False)
    ]
    figure = effects_figure(rows, ["method.replay"], "accuracy")
    figure.canvas.draw()
    ax = figure.axes[-1]
    shown = [
        label.get_text()
        for label in ax.get_yticklabels()
        if ax.get_ylim()[0] <= label.get_position()[1] <= ax.get_ylim()[1]
    ]
    assert not ax.yaxis.get_offset_text().get_text() and not any("$" in one for one in shown)
    low, high = ax.get_ylim()
    if read is None:
        assert high - low > 0.05 * high
    elif read == "0":
        assert low < 0 < high and 0.0 in map(float, shown)
    else:
        assert shown == read
