"""Kinds and outcomes of spans: all that runs record are known, and every view of a run counts them
in the same way.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sim.compare.costs import costs_until
from sim.kernel.vocabulary import KINDS as SPAN_KINDS
from sim.kernel.vocabulary import OUTCOMES, STATES, colours_of
from sim.results.run import FINE, open_run
from sim.results.span_table import is_waste, joules_by_state, states
from sim.results.summary import device_table, summary
from sim.views.plots import devices_figure

every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, small, CALM, hard = (every_method[name] for name in ("KINDS", "small", "CALM", "hard"))


@pytest.fixture
def hard_day(simulate, tmp_path):
    """A method's world in which everything that can happen to a phone does, at the scale of its
    calm day.
    """
    return lambda kind: {
        "method": small(kind),
        **hard(tmp_path, simulate(dry=True, method=small(kind), **CALM)),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_runs_record_no_kind_and_no_outcome_that_is_not_explained(kind, simulate, hard_day):
    sim = simulate(dry=True, **hard_day(kind))
    rows = sim.recorder.spans().to_pylist()
    assert {row["kind"] for row in rows} <= set(SPAN_KINDS)
    assert {row["outcome"] for row in rows} | {device.outcome for device in sim.devices} <= set(
        OUTCOMES
    )
    told = summary(sim, "", device_table(sim), 0.0)
    by_state = {state: [] for state in STATES}
    for row in rows:
        if row["actor"].startswith("device-"):
            by_state[SPAN_KINDS[row["kind"]].state].append(row["joules"])
    assert sum(by_state.pop("off")) == 0.0
    assert told["energy_by_state"] == pytest.approx(
        {state: sum(joules) for state, joules in by_state.items()}
    )
    lost = [
        r
        for r in rows
        if r["kind"] in ("compute", "upload", "download")
        and r["outcome"] not in ("ok", "low-battery")
    ]
    for name, column in (
        ("wasted_bytes", "nbytes"),
        ("wasted_flop", "flop"),
        ("wasted_energy_j", "joules"),
    ):
        assert told["totals"][name] == pytest.approx(sum(r[column] for r in lost), rel=1e-12)


@pytest.mark.parametrize("kind", ["fed-mobillm", "fedavg-lora", "mobillm"])
def test_the_figure_of_devices_shows_the_numbers_of_the_summary(
    kind, mobifleet, scenario_file, hard_day, tmp_path
):
    path = scenario_file(**hard_day(kind))
    done = mobifleet("run", path, "--dry", "-q", "--no-figures", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    run = open_run(tmp_path / "run")
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    by_bytes, by_energy = devices_figure(run).axes
    classes = sorted({row["device_class"] for row in run.devices().to_pylist()})
    count = [
        sum(row["device_class"] == name for row in run.devices().to_pylist()) for name in classes
    ]

    def drawn(ax) -> dict[str, float]:
        """What the bars of each colour come to over the fleet, in the unit of the axis."""
        unit = {"[J]": 1, "[kJ]": 1e3, "[B]": 1, "[kB]": 1e3, "[MB]": 1e6}[
            ax.get_xlabel().split()[-1]
        ]
        return {
            stack.get_label(): unit
            * sum(bar.get_width() * n for bar, n in zip(stack, count, strict=True))
            for stack in ax.containers
        }

    states = told["energy_by_state"]
    assert drawn(by_energy) == pytest.approx(
        {
            "compute": states["compute"],
            "radio": states["uplink"] + states["downlink"],
            "idle": states["idle"],
        }
    )
    assert states["idle"] > 0.01 * states["compute"]
    totals = told["totals"]
    assert drawn(by_bytes) == pytest.approx(
        {"uplink": totals["uplink_bytes"], "downlink": totals["downlink_bytes"]}
    )
    assert sum(run.devices()["energy_j"].to_pylist()) == pytest.approx(
        totals["device_energy_j"], rel=1e-12
    )
    costs = costs_until(run, told["virtual_time_s"])
    assert costs["energy_j"] * sum(count) == pytest.approx(totals["device_energy_j"], rel=1e-12)
    assert costs["wasted_bytes"] == totals["wasted_bytes"]


def test_what_a_method_of_ones_own_records_is_counted_as_computing_and_has_a_colour():
    spans = {
        "actor": ["device-0000"] * 3 + ["device-0001"],
        "kind": ["wait", "dream", "upload", "offline"],
        "joules": [1.0, 2.0, 4.0, 0.0],
        "outcome": ["late", "nightmare", "ok", "ok"],
    }
    table = pa.table(spans)
    assert [STATES[state] for state in states(table["kind"])] == [
        "idle",
        "compute",
        "uplink",
        "off",
    ]
    assert joules_by_state(table, np.array([0, 0, 1, 1]), 2).tolist() == [
        [2, 0],
        [0, 4],
        [0, 0],
        [1, 0],
        [0, 0],
    ]
    assert is_waste(table).tolist() == [False, True, False, False]
    colours = colours_of({"dream", "sleep", "wait", "compute"})
    assert list(colours) == ["dream", "sleep", "wait", "compute"]
    assert len(set(colours.values())) == 4
    assert len({kind.colour for kind in SPAN_KINDS.values()}) == len(SPAN_KINDS)


def test_the_ends_of_a_study_are_no_failures():
    assert {"ok", "horizon", "target", "ended", "interrupted"} == FINE
    assert all(outcome.words for outcome in OUTCOMES.values())
