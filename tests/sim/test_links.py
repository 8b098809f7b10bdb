"""Links that vary, in a scenario: asked for by name, drawn from each device's own streams, and only
if asked for.
"""

import numpy as np
import pytest

import network.profile
from inputs.files import FileProblem
from network.errors import NetworkError
from network.mobility import Journey
from network.varying import ShiftedTrace, VaryingRate
from sim.kernel.streams import Streams
from sim.scenario import SCENARIOS
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import GroupSettings, Scenario
from sim.simulation import Simulation
from sim.world import links

BY_SIZE = {"dataset": {"classes": 3, "tokens": 16}, "train": 24, "test": 6, "max_tokens": 16}
DEVICE = {"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}
CALM = {"task": BY_SIZE, "jitter": False, "arrivals": {"kind": "at-once"}}
AIR = {
    "west": {"kind": "cellular", "gain": 1.2},
    "east": {"kind": "wifi"},
    "home": {"up": "1 Mbit/s", "down": "1 Mbit/s"},
}
ALL = {
    **CALM,
    "links": {"vary": True, "tcp": True},
    "cells": AIR,
    "fleet": [
        {
            **DEVICE,
            "count": 3,
            "mobility": {"cells": ["west", "east"], "mean_stay": "50 ms", "handover": "10 ms"},
        },
        {**DEVICE, "count": 2, "link": "wifi-home", "cell": "east"},
        {**DEVICE, "link": "lte-driving", "trace": "up.csv", "down_trace": "up.csv"},
    ],
}


@pytest.fixture
def trace_csv(tmp_path):
    rows = [f"{0.05 * i:.2f},{bps}" for i, bps in enumerate([1e6, 2e5, 0, 5e5])]
    (tmp_path / "up.csv").write_text("\n".join(["time_s,bps", *rows]) + "\n")


def uploads(sim) -> dict[str, list[float]]:
    """Seconds of each upload, by device."""
    seconds: dict[str, list[float]] = {}
    for span in sim.recorder.spans().to_pylist():
        if span["kind"] == "upload":
            seconds.setdefault(span["actor"], []).append(span["end_s"] - span["start_s"])
    return seconds


def test_nothing_varies_unless_asked(simulate):
    """Shipped profiles know how they vary and what TCP does to them; a scenario that says nothing
    keeps its time.
    """
    sim = simulate(dry=True, **CALM, fleet=[DEVICE])
    lte = network.profile.load("lte")
    sizes = {
        span["nbytes"] for span in sim.recorder.spans().to_pylist() if span["kind"] == "upload"
    }
    expected = sorted(lte.latency_s + 8 * nbytes / lte.up_bps for nbytes in sizes)
    assert sorted(set(np.round(uploads(sim)["device-0000"], 9))) == pytest.approx(expected)
    assert "resent_bytes" not in sim.recorder.metrics()["name"].to_pylist()


def test_everything_at_once_is_the_same_again_and_other_for_another_seed(simulate, mark, trace_csv):
    one, two, other = (simulate(f"seed={seed}", dry=True, **ALL) for seed in (0, 0, 1))
    assert one.ended.reason == "exhausted" and all(device.outcome == "ok" for device in one.devices)
    assert mark(one) == mark(two) != mark(other)
    assert uploads(one) != uploads(other)
    sent = sum(s["nbytes"] for s in one.recorder.spans().to_pylist() if s["kind"] == "upload")
    down = sum(s["nbytes"] for s in one.recorder.spans().to_pylist() if s["kind"] == "download")
    carried = (
        one.network.shared["ingress"].bytes_carried + one.network.shared["egress"].bytes_carried
    )
    assert carried == pytest.approx(sent + down + one.network.resent_bytes, rel=1e-9)
    assert one.network.resent_bytes > 0
    resent = [m for m in one.recorder.metrics().to_pylist() if m["name"] == "resent_bytes"]
    assert [m["value"] for m in resent] == [one.network.resent_bytes]


def test_a_device_more_leaves_the_links_of_the_others_alone(simulate):
    few = simulate(dry=True, **CALM, links={"vary": True}, fleet=[{**DEVICE, "count": 2}])
    many = simulate(dry=True, **CALM, links={"vary": True}, fleet=[{**DEVICE, "count": 3}])

    def rates(sim, way, times=range(100)):
        return [
            [sim.network._lanes[f"device-000{n}"][way].route.rate.at(t) for t in times]
            for n in range(2)
        ]

    for way in (0, 1):
        assert rates(few, way) == rates(many, way)
    assert rates(few, 0)[0] != rates(few, 0)[1] and rates(few, 0) != rates(few, 1)


def test_every_wish_reaches_the_network(simulate, trace_csv):
    sim = simulate(dry=True, **ALL)
    lanes = sim.network._lanes
    up, down = lanes["device-0000"]
    assert (
        isinstance(up.route.rate, VaryingRate)
        and isinstance(up.route.journey, Journey)
        and up.route.journey is down.route.journey
    )
    assert (up.handover_s, up.route.journey.mean_stay_s, up.uses_tcp) == (0.01, 0.05, True)
    file_up, file_down = lanes["device-0005"]
    assert (
        isinstance(file_up.route.rate, ShiftedTrace)
        and file_up.route.rate.offset_s == file_down.route.rate.offset_s
    )
    assert (
        0 <= file_up.route.rate.offset_s < file_up.route.rate.trace.period_s == pytest.approx(0.2)
    )
    assert sim.network.shared["west/up"].airtime == 1.2 and sim.network.shared["west/up"].fair
    assert not sim.network.shared["east/up"].fair and sim.network.shared["east/down"].fair


def test_devices_that_share_a_trace_do_not_march_in_step(simulate, trace_csv):
    sim = simulate(dry=True, **CALM, fleet=[{**DEVICE, "count": 8, "trace": "up.csv"}])
    offsets = {lanes[0].route.rate.offset_s for lanes in sim.network._lanes.values()}
    assert len(offsets) == 8
    assert (
        len({tuple(seconds) for seconds in uploads(sim).values()}) > 4
    )  # some fit into one step of the trace


@pytest.mark.fetched
def test_one_slow_station_drags_its_neighbours_in_turn_but_not_by_equal_time():
    """shared_air in dry run: at least twice as long in turn, and then as long as the slow one
    itself.
    """

    def seconds(*overrides):
        scenario = load(
            "shared_air", Scenario, ["task.train=90", *overrides], [SCENARIOS], problems
        )
        sim = Simulation(scenario, SCENARIOS, dry=True)
        sim.run()
        took = uploads(sim)
        groups = {d.id: d.member.group for d in sim.devices}
        return {
            g: np.mean([sum(took[id_]) for id_ in took if groups[id_] == g])
            for g in ("near", "far", "bus")
        }

    in_turn, fair = seconds(), seconds("cells.home.fair_uplink=true")
    assert in_turn["near"] > 2 * fair["near"]
    assert in_turn["near"] == pytest.approx(in_turn["far"], rel=0.1)
    assert fair["bus"] == in_turn["bus"]


@pytest.mark.parametrize(
    ("fleet", "cells", "message"),
    [
        ({"cell": "home"}, {"home": {"up": "1 Mbit/s"}}, "needs `up` and `down`"),
        ({"cell": "home"}, {"home": {"kind": "wifi", "gain": 1.5}}, "kind: cellular"),
        ({"cell": "home"}, {"home": {"kind": "cellular", "fair_uplink": True}}, "kind: wifi"),
        ({"cell": "home"}, {"home": {"kind": "wired"}}, "wired"),
        (
            {"mobility": {"cells": ["west", "eastt"], "mean_stay": "1 s"}},
            AIR,
            "did you mean 'east'",
        ),
        ({"mobility": {"cells": ["west", "west"], "mean_stay": "1 s"}}, AIR, "twice"),
        ({"mobility": {"cells": ["west"], "mean_stay": "1 s"}}, AIR, "mobility.cells"),
        ({"mobility": {"cells": ["west", "east"], "mean_stay": "0 s"}}, AIR, "mean_stay"),
        (
            {"cell": "home", "mobility": {"cells": ["west", "east"], "mean_stay": "1 s"}},
            AIR,
            "leave out `cell`",
        ),
    ],
)
def test_mistakes_in_a_scenario_are_told_with_their_place(scenario_file, fleet, cells, message):
    path = scenario_file(**CALM, fleet=[{**DEVICE, **fleet}], cells=cells)
    with pytest.raises(ScenarioError, match=message.replace(".", r"\.")) as told:
        load(str(path), Scenario, [], [], problems)
    assert "tiny.yaml:" in str(told.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("none.csv", None, "none.csv: cannot be opened"),
        ("../out.csv", "0,1\n1,2\n", "outside the scenario's folder"),
        ("bad.csv", "0,1\n1,fast\n", "line 2"),
        ("bytes.csv", b"0,1\n1,\xff\n", "line 2: not utf-8"),
        (".", None, "is a folder"),
    ],
)
def test_a_trace_that_cannot_be_had_is_told_in_one_message(tmp_path, file, text, message):
    folder = tmp_path / "study"
    folder.mkdir()
    if text is not None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((NetworkError, FileProblem), match=message):
        links.read_capacity_trace(file, folder)


def test_packets_delivered_are_a_trace_of_their_own_period(tmp_path):
    (tmp_path / "down.trace").write_text("400\n900\n1100\n1500\n")
    trace = links.read_capacity_trace("down.trace", tmp_path)
    assert (trace.times_s, trace.capacity_bps, trace.period_s) == ([0, 1], [24_000, 48_000], 1.5)


@pytest.mark.parametrize(
    "more",
    [
        {"fleet": [{**DEVICE, "count": 2, "trace": "zero.csv"}]},
        {"fleet": [{**DEVICE, "count": 2, "trace": "zero.csv"}], "traces": {"egress": "ok.csv"}},
        {
            "fleet": [{**DEVICE, "count": 2}],
            "traces": {"ingress": "zero.csv"},
            "links": {"vary": True},
        },
        {
            "fleet": [{**DEVICE, "count": 2, "cell": "home"}],
            "cells": {"home": {"up": "1 Mbit/s", "down": "1 Mbit/s"}},
            "traces": {"home/up": "zero.csv", "ingress": "ok.csv"},
        },
        {
            "fleet": [{**DEVICE, "count": 2}],
            "server": {"ingress": 0},
            "traces": {"egress": "ok.csv"},
        },
    ],
    ids=[
        "link",
        "link, egress varies",
        "ingress, links vary",
        "cell, ingress varies",
        "ingress 0, egress varies",
    ],
)
def test_what_never_opens_ends_the_run_as_stalled_at_once_whatever_repeats(
    simulate, tmp_path, more
):
    (tmp_path / "zero.csv").write_text("time_s,mbps\n0,0\n1,0\n")
    (tmp_path / "ok.csv").write_text("time_s,mbps\n0,5\n1,9\n")
    sim = simulate(dry=True, **{**CALM, **more})
    assert (sim.ended.reason, {device.outcome for device in sim.devices}) == (
        "stalled",
        {"stalled"},
    )
    assert sim.env.now < 20
    assert any("nothing will ever pass" in remark for remark in sim.remarks)


def test_an_outage_is_no_end(simulate, tmp_path):
    (tmp_path / "outage.csv").write_text("time_s,mbps\n0,0\n500,5\n510,0\n")
    sim = simulate(dry=True, **CALM, fleet=[{**DEVICE, "count": 2, "trace": "outage.csv"}])
    assert sim.ended.reason == "exhausted" and not sim.remarks


def test_check_says_as_what_a_trace_was_read_and_what_is_doubtful(
    mobifleet, scenario_file, tmp_path
):
    (tmp_path / "a.csv").write_text("0,20\n1,10\n2,30\n")
    (tmp_path / "b.csv").write_text("time_ms,rate (Mbit/s)\n0,20\n1000,10\n2000,30\n")
    (tmp_path / "c.trace").write_text("1\n2\n")
    fleet = [{**DEVICE, "trace": "a.csv", "down_trace": "b.csv"}]
    path = scenario_file(**CALM, fleet=fleet, traces={"egress": "c.trace"})
    told = mobifleet("check", path)
    said = " ".join(told.out.split())
    assert told.code == 0
    assert (
        "a.csv: column 1 in s (as nothing else is said), column 2 in bit/s (as nothing else is "
        "said); 3 steps" in said
    )
    assert (
        "b.csv: column 'time_ms' in ms, column 'rate (Mbit/s)' in Mbit/s; 3 steps, 3 s that "
        "repeat, 10 Mbit/s to" in said
    )
    assert "c.trace: a packet-delivery trace: 2 packets of 1,500 bytes in 0.002 s" in said
    assert told.err.splitlines() == [
        "note: a.csv: its median is 20 bit/s: is the unit right? It can stand in the column's "
        "name, as in rate_mbps"
    ]
    (tmp_path / "a.csv").write_text("0,2e7\n1000,1e7\n2000,3e7\n90000000,1e6\n90001000,1e6\n")
    told = mobifleet("check", path).err
    assert "if its times are in ms, call their column time_ms" in told
    assert (
        "a.csv: the rate at 2000 s holds for 1041 d 15 h, where steps of 16 min 40 s are usual"
        in told
    )


def test_steps_too_fine_to_follow_are_refused(simulate, tmp_path):
    (tmp_path / "a.csv").write_text("time_us,mbps\n0,1\n1,2\n2,3\n")
    with pytest.raises(NetworkError, match=r"a.csv: 3 steps in 3e-06 s are too fine to follow"):
        simulate(dry=True, **CALM, fleet=[{**DEVICE, "trace": "a.csv"}])


@pytest.mark.parametrize(
    "text",
    ["0,1e-6\n1,2e-6\n", "0,1e6\n1e15,0\n", "0,1e-320\n1,1e-300\n"],
    ids=["too slow", "too late", "both"],
)
def test_what_takes_centuries_ends_as_stalled(mobifleet, scenario_file, tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    path = scenario_file(**CALM, fleet=[{**DEVICE, "trace": "a.csv"}])
    told = mobifleet("run", path, "--dry", "-q", "--no-figures", "--out", "out")
    assert told.code == 0 and "stalled" in told.out and "Traceback" not in told.err


def test_a_scenario_that_names_no_file_says_where_its_traces_stand(simulate):
    sim = simulate(
        dry=True,
        **CALM,
        fleet=[DEVICE],
        traces={"ingress": {"times": ["0 s"], "capacity": ["100 bit/s"]}},
    )
    assert [remark.partition(":")[0] for remark in sim.remarks] == ["traces.ingress"]


def test_a_trace_repeats_after_its_last_step_and_may_lie_anywhere_if_named_in_full(tmp_path):
    elsewhere = tmp_path / "measured.csv"
    elsewhere.write_text("5,8e6\n6,4e6\n8,2e6\n")
    trace = links.read_capacity_trace(str(elsewhere), tmp_path / "study")
    assert (trace.times_s, trace.period_s) == (
        [0, 1, 3],
        5,
    )  # the last step lasts 2 s, as the one before it
    elsewhere.write_text("0,8e6\n")
    assert links.read_capacity_trace(str(elsewhere), tmp_path).at(1e6) == 8e6


def test_the_command_line_tells_of_a_missing_trace_without_a_traceback(mobifleet, scenario_file):
    told = mobifleet("check", scenario_file(**CALM, fleet=[{**DEVICE, "trace": "none.csv"}]))
    assert (
        told.code != 0 and "none.csv: cannot be opened" in told.err and "Traceback" not in told.err
    )


def test_streams_are_named_by_device_and_direction():
    """What another study needs to draw the same link again: streams ("link/up", id) and
    ("link/down", id).
    """
    lte = network.profile.load("lte")
    group = GroupSettings.model_validate(DEVICE)
    mine = links._rates("device-0000", group, lte, {}, True, Streams(3))
    again = VaryingRate(lte.down_bps, lte.cv, lte.lag1, Streams(3).rng("link/down", "device-0000"))
    assert [mine[1].at(t) for t in range(50)] == [again.at(t) for t in range(50)]


def test_spans_of_links_are_their_occupancy_and_hold_devices_that_move(simulate, trace_csv):
    """With everything on: durations add up to what the link was busy, bytes to what crossed it,
    whoever passed through.
    """
    sim = simulate(dry=True, **ALL)
    rows = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "carry"]
    names = {s["actor"].removeprefix("link:") for s in rows}
    assert {
        "ingress",
        "egress",
        "west/up",
        "east/up",
        "west/down",
        "east/down",
    } <= names  # only movers are in the west
    for name, link in sim.network.shared.items():
        mine = [s for s in rows if s["actor"] == f"link:{name}"]
        assert sum(s["end_s"] - s["start_s"] for s in mine) == pytest.approx(link.busy_s, rel=1e-9)
        assert sum(s["nbytes"] for s in mine) == pytest.approx(link.bytes_carried, abs=0.51)
    resent = next(
        m["value"] for m in sim.recorder.metrics().to_pylist() if m["name"] == "resent_bytes"
    )
    payload_bytes = sim.recorder.uplink_bytes + sim.recorder.downlink_bytes
    through = sum(s["nbytes"] for s in rows if s["actor"] in ("link:ingress", "link:egress"))
    assert through == pytest.approx(payload_bytes + resent, abs=2)
