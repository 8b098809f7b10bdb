"""Devices that come and go: what that does to a verb, to a task, to every method, and to the
bytes.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from devices.availability import DAY_S, Availability
from sim.kernel.device import Device
from sim.kernel.server import Server
from sim.kernel.streams import Streams
from sim.kernel.work import ClientTask
from sim.results.summary import device_table, summary

every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, small = every_method["KINDS"], every_method["small"]
EQUAL = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
TASK = {"dataset": {"path": "texts.csv"}, "max_tokens": 16, "train": 30, "test": 12}
NO_WORK = {"centralised"}  # its devices do nothing


@pytest.fixture
def harsh(tmp_path):
    """Writes a trace in which a device is on for about so many seconds and then off for half of
    that, without a rhythm.
    """

    def write(on_s: float) -> dict:
        rng, rows = np.random.default_rng(0), ["device,ready_start_s,ready_end_s"]
        for device in range(4):
            edges = np.cumsum(rng.exponential(np.tile([on_s / 2, on_s], 60)))
            rows += [f"{device},{a},{b}" for a, b in zip(edges[::2], edges[1::2], strict=True)]
        (tmp_path / "harsh.csv").write_text("\n".join(rows))
        return {"kind": "trace", "path": "harsh.csv", "period": 200 * on_s}

    return write


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_survives_harsh_churn(kind, harsh, simulate, monkeypatch):
    landed, upload = [], Device.upload

    def noting(self, payload):
        yield from upload(self, payload)
        landed.append(payload.nbytes)

    monkeypatch.setattr(Device, "upload", noting)
    world = {"method": small(kind), "arrivals": {"kind": "at-once"}, "task": TASK, "fleet": EQUAL}
    calm = simulate(dry=True, **world)
    assert sum(landed) == calm.recorder.uplink_bytes
    landed.clear()
    world |= {"availability": harsh(calm.ended.at_s / 4)}
    dry = simulate(dry=True, **world)
    received_bytes = sum(landed)
    assert dry.ended.reason == "exhausted"
    assert dry.updates > 0
    rows = dry.recorder.spans().to_pylist()
    cut = [s for s in rows if s["outcome"] == "offline" and s["kind"] != "wait"]
    assert cut or kind in NO_WORK
    sent = [s for s in rows if s["kind"] == "upload"]
    assert sum(s["nbytes"] for s in sent if s["outcome"] == "ok") == received_bytes
    for way, name in (("upload", "ingress"), ("download", "egress")):
        passed = sum(s["nbytes"] for s in rows if s["kind"] == way)
        assert passed == pytest.approx(dry.network.shared[name].bytes_carried, abs=len(cut) + 1)
    assert nobody_acts_while_offline(rows)
    assert simulate(**world).recorder.spans().equals(dry.recorder.spans())


def nobody_acts_while_offline(rows: list[dict]) -> bool:
    off = [s for s in rows if s["kind"] == "offline"]
    acts = [
        s
        for s in rows
        if s["kind"] in ("compute", "upload", "download", "wait") and s["end_s"] > s["start_s"]
    ]
    return not any(
        a["actor"] == o["actor"] and a["start_s"] < o["end_s"] and o["start_s"] < a["end_s"]
        for a in acts
        for o in off
    )


# --- verbs by hand: one TX2 on LTE, 8 texts in batches of 4, no jitter

ONE = {
    "task": {"dataset": {"classes": 3, "tokens": 16}, "train": 8, "test": 6, "max_tokens": 16},
    "fleet": [{"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}],
    "arrivals": {"kind": "at-once"},
    "method": {
        "kind": "fed-mobillm",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 4,
        "device_batch": 4,
    },
    "jitter": False,
    "traces": {
        "ingress": {"times": ["0 s"], "capacity": ["80 kbit/s"]}
    },  # so that a transfer can be cut in its middle
}


def trace(tmp_path, *intervals: tuple[float, float]) -> dict:
    rows = [f"a,{start!r},{end!r}" for start, end in intervals]
    (tmp_path / "one.csv").write_text("\n".join(["device,ready_start_s,ready_end_s", *rows]))
    return {"kind": "trace", "path": "one.csv", "period": "1 d"}


def of_device(sim, *kinds: str) -> list[dict]:
    rows = sim.recorder.spans().to_pylist()
    return [s for s in rows if s["actor"] == "device-0000" and s["kind"] in kinds]


def test_an_upload_that_is_cut_short_is_sent_again_and_nothing_is_computed_again(
    simulate, tmp_path
):
    calm = simulate(dry=True, **ONE)
    first, second = of_device(calm, "upload")
    cut_s = first["end_s"] - 0.1  # 100 ms at 10 kB/s are missing
    sim = simulate(dry=True, availability=trace(tmp_path, (0, cut_s), (50, 1000)), **ONE)
    lost, again, last = of_device(sim, "upload")
    assert (lost["outcome"], lost["end_s"], lost["flows"]) == ("offline", cut_s, [1])
    assert lost["nbytes"] == pytest.approx(first["nbytes"] - 1000, abs=2)
    assert (again["start_s"], again["nbytes"], again["flows"]) == (50.0, first["nbytes"], [1])
    assert again["end_s"] - again["start_s"] == pytest.approx(first["end_s"] - first["start_s"])
    assert last["end_s"] == pytest.approx(second["end_s"] + 50 - first["start_s"])
    assert [s["outcome"] for s in of_device(sim, "compute")] == ["ok", "ok"]
    assert [(s["start_s"], s["end_s"], s["joules"]) for s in of_device(sim, "offline")] == [
        (cut_s, 50.0, 0.0)
    ]
    assert sim.recorder.uplink_bytes == calm.recorder.uplink_bytes + lost["nbytes"]
    assert wasted(sim) == lost["nbytes"]
    assert sim.updates == calm.updates


def wasted(sim) -> int:
    return summary(sim, "", device_table(sim), 0.0)["totals"]["wasted_bytes"]


def test_the_share_of_time_on_and_absences_up_to_the_end_are_reported(simulate, tmp_path):
    fresh = {"kind": "poisson", "rate": "1 /h"}
    sim = simulate(
        "stop.horizon=100 s",
        dry=True,
        fresh_data=fresh,
        availability=trace(tmp_path, (20, 60)),
        **ONE,
    )
    assert device_table(sim)["on_share"].to_pylist() == [pytest.approx(0.4)]
    assert [(s["start_s"], s["end_s"]) for s in of_device(sim, "offline")] == [(60, 100)]
    assert [(s["start_s"], s["end_s"]) for s in of_device(sim, "wait")] == [(20, 60)]
    assert device_table(sim)["waiting_s"].to_pylist() == [40]  # not while it was off


def test_a_compute_that_is_cut_short_is_charged_and_done_again(simulate, tmp_path):
    (whole, _) = of_device(simulate(dry=True, **ONE), "compute")
    sim = simulate(
        dry=True, availability=trace(tmp_path, (0, whole["end_s"] / 4), (50, 1000)), **ONE
    )
    part, again, _ = of_device(sim, "compute")
    assert (part["outcome"], part["flop"]) == ("offline", pytest.approx(whole["flop"] / 4))
    assert part["joules"] == pytest.approx(whole["joules"] / 4)
    assert (again["outcome"], again["start_s"], again["flop"]) == ("ok", 50.0, whole["flop"])
    assert again["end_s"] == pytest.approx(50 + whole["end_s"])


def test_a_device_that_waits_for_data_is_idle_only_while_it_is_on(simulate, tmp_path):
    fresh = {"kind": "poisson", "rate": "2 /min"}
    calm = simulate(dry=True, fresh_data=fresh, **ONE)
    ready_s = of_device(calm, "wait")[0]["end_s"]
    assert ready_s > 30
    sim = simulate(
        dry=True,
        fresh_data=fresh,
        availability=trace(tmp_path, (0, 10), (20, 30), (2000, 9000)),
        **ONE,
    )
    assert [(s["start_s"], s["end_s"], s["outcome"]) for s in of_device(sim, "wait")] == [
        (0, 10, "ok"),
        (20, 30, "ok"),
    ]
    assert of_device(sim, "compute")[0]["start_s"] == 2000.0


def test_going_off_at_the_very_end_of_a_verb_is_going_off_in_it(simulate, tmp_path):
    """Both happen at one instant: all bytes have passed, and are sent again."""
    first = of_device(simulate(dry=True, **ONE), "upload")[0]
    sim = simulate(dry=True, availability=trace(tmp_path, (0, first["end_s"]), (50, 1000)), **ONE)
    uploads = of_device(sim, "upload")
    assert [s["nbytes"] for s in uploads] in ([first["nbytes"]] * 2, [first["nbytes"]] * 3)
    assert sum(s["outcome"] == "ok" for s in uploads) == 2
    assert sim.ended.reason == "exhausted"


def test_a_device_joins_when_it_is_first_on(simulate, tmp_path):
    sim = simulate(dry=True, availability=trace(tmp_path, (30, 1000)), **ONE)
    assert min(s["start_s"] for s in of_device(sim, "compute", "offline")) == 30.0


@pytest.mark.parametrize(
    "kind", ["fed-mobillm", "fedavg-lora", "fedasync", "splitfed-v1", "mobillm"]
)
def test_nobody_waits_for_devices_that_are_never_ready(kind, simulate, tmp_path):
    (tmp_path / "some.csv").write_text("device,ready_start_s,ready_end_s\na,0,86400\nb,0,0\n")
    for seed in range(3):
        sim = simulate(
            f"seed={seed}",
            dry=True,
            method=small(kind),
            availability={"kind": "trace", "path": "some.csv"},
            task=TASK,
        )
        outcomes = [d.outcome for d in sim.devices]
        assert sim.ended.reason == "exhausted"
        assert set(outcomes) <= {"ok", "never-ready", "ended"}
        idle = {d.id for d in sim.devices if d.outcome == "never-ready"}
        assert not idle & {s["actor"] for s in sim.recorder.spans().to_pylist()}
    nobody = simulate(dry=True, method=small(kind), availability=trace(tmp_path, (0, 0)), task=TASK)
    assert nobody.ended.reason == "exhausted"
    assert {d.outcome for d in nobody.devices} == {"never-ready"}


def test_what_never_fits_between_two_absences_is_given_up(simulate, tmp_path):
    upload = of_device(simulate(dry=True, **ONE), "upload")[0]
    on_s = 0.5 * (upload["end_s"] - upload["start_s"])
    (tmp_path / "short.csv").write_text(f"device,ready_start_s,ready_end_s\na,0,{on_s}\n")
    availability = {"kind": "trace", "path": "short.csv", "period": 2 * on_s}
    sim = simulate(dry=True, availability=availability, **ONE)
    assert (sim.ended.reason, sim.devices[0].outcome) == ("exhausted", "gave-up")
    assert len(of_device(sim, "upload")) == 1000


# --- tasks of the server's


@pytest.mark.parametrize("kind", ["fedavg-lora", "fedbuff"])
def test_going_offline_drops_the_task_and_the_server_goes_on(kind, simulate, tmp_path):
    calm = simulate(dry=True, method=small(kind), arrivals={"kind": "at-once"}, task=TASK)
    cut_s = 0.5 * of_device(calm, "upload")[0]["end_s"]
    (tmp_path / "t.csv").write_text(
        f"device,ready_start_s,ready_end_s\na,0,{cut_s}\na,{cut_s + 5},80000\n"
    )
    sim = simulate(dry=True, method=small(kind), arrivals={"kind": "at-once"}, task=TASK,
                   availability={"kind": "trace", "path": "t.csv"})  # fmt: skip
    rows = sim.recorder.spans().to_pylist()
    cut = [s for s in rows if s["outcome"] == "offline"]
    assert len(cut) >= 2  # these were at it, and dropped it
    assert {s["end_s"] for s in cut} == {cut_s}
    begun = [s["start_s"] for s in rows if s["kind"] == "download"]
    assert min(at_s for at_s in begun if at_s > cut_s) == pytest.approx(
        cut_s + 5
    )  # a new task, from its beginning
    assert sim.updates == calm.updates
    assert sim.ended.reason == "exhausted"


def test_a_server_asks_only_devices_that_are_on(simulate, tmp_path):
    (tmp_path / "two.csv").write_text(
        "device,ready_start_s,ready_end_s\na,0,40000\nb,40000,80000\n"
    )
    world = {"method": small("fedavg-lora"), "arrivals": {"kind": "at-once"}, "task": TASK}
    mixed = 0
    for seed in range(6):
        sim = simulate(
            f"seed={seed}", dry=True, availability={"kind": "trace", "path": "two.csv"}, **world
        )
        on = [
            d for d in sim.devices if d.availability.is_on(0.0)
        ] or sim.devices  # nobody: wait for the second shift
        mixed += 0 < len(on) < 3
        asked = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "download"]
        assert {s["actor"] for s in asked} == {d.id for d in on}
        assert len(asked) == 3 * len(on)
    assert mixed


@pytest.mark.parametrize("kind", ["fedavg-lora", "fedasync", "fwdllm"])
def test_whom_the_server_may_ask_is_what_a_look_at_the_whole_fleet_finds(
    kind, harsh, simulate, monkeypatch
):
    seen, wait, free = set(), Server.wait, Server.free

    def look(server):
        world, roster = server.world, server.roster
        at_work = [d for d in world.devices if not d.has_ended]
        free = [d for d in at_work if d.is_serving and d.is_on and d not in roster.busy]
        able = [d for d in at_work if d.is_on or world.env.now < d.joined_at_s]
        assert [roster[rank] for rank in range(len(roster))] == free
        assert (roster.able, roster.busy - set(at_work)) == (len(able), set())
        seen.add((len(free), len(able), len(at_work)))

    monkeypatch.setattr(Server, "wait", lambda server: (look(server), wait(server))[1])
    monkeypatch.setattr(Server, "free", lambda server, *how: (look(server), free(server, *how))[1])
    fleet = [{**EQUAL[0], "count": 5}]
    world = {"method": small(kind), "fleet": fleet, "task": TASK, "availability": harsh(0.3)}
    world |= {"arrivals": {"kind": "list", "times": ["0 s", "100 ms", "2 s", "400 ms", "3 s"]}}
    simulate(dry=True, dropout={"times": [None, "2 s", None, None, "4 s"]}, **world)
    assert len(seen) > 5


def drawn(free: int, count: int, version: int) -> list[int]:
    """Whom a server asks of so many free devices."""
    world = SimpleNamespace(streams=Streams(7))
    return Server._drawn(SimpleNamespace(world=world, roster=range(free)), count, version)


@pytest.mark.parametrize(("free", "count"), [(10, 3), (1_000, 1), (5_000, 101), (5_000, 5_000)])
def test_who_is_asked_is_the_beginning_of_a_permutation(free, count):
    order = Streams(7).rng("server/selection", 3).permutation(free)
    assert drawn(free, count, 3) == order[:count].tolist()


@pytest.mark.parametrize(("free", "count"), [(1_001, 20), (20_000, 1), (20_000, 7)])
def test_a_few_of_very_many_are_as_random_and_cost_the_same_however_many_there_are(free, count):
    asked = [drawn(free, count, version) for version in range(4_000)]
    assert all(len(set(some)) == count and 0 <= min(some) <= max(some) < free for some in asked)
    assert drawn(free, count, 5) == asked[5] != asked[6]
    share = np.array(asked) / free
    deviations = (12 * share.shape[0]) ** -0.5  # of the mean of as many uniform numbers
    assert np.all(np.abs(share.mean(0) - 0.5) < 4.5 * deviations)  # at each place
    tenths = np.bincount((share.ravel() // 0.1).astype(int), minlength=10)
    assert np.all(np.abs(tenths - share.size / 10) < 4.5 * (share.size * 0.09) ** 0.5)


def test_no_permutation_of_a_large_fleet_is_drawn_for_an_answer(monkeypatch):
    class Generator:
        """As NumPy's, without permutations."""

        def choice(self, free, count, replace):
            return np.random.default_rng(0).choice(free, count, replace=replace)

    world = SimpleNamespace(streams=SimpleNamespace(rng=lambda *name: Generator()))
    for free, count in ((10**6, 3), (1_001, 20)):
        server = SimpleNamespace(world=world, roster=range(free))
        assert len(Server._drawn(server, count, 0)) == count


def test_a_task_given_to_a_device_that_is_off_is_never_heard_of(simulate):
    sim = simulate("stop.horizon=1 us", dry=True, task=TASK)
    device = sim.devices[0]
    device.go_off()
    device.assign(task := ClientTask(0, None, sim.env.event()))
    assert not device.has(task)
    device.come_on()
    device.assign(task)
    assert device.has(task)
    device.go_off()
    assert not device.has(task)
    assert sim.server.take_dropped() == {device}
    assert sim.server.take_dropped() == set()
    device.come_on()
    device.assign(None)  # there will be no more:
    device.go_off()
    assert device._assigned == (None,)  # nobody tells it again


# --- for good


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_out_stalls_no_method(kind, simulate):
    world = {"method": small(kind), "arrivals": {"kind": "at-once"}, "task": TASK, "fleet": EQUAL}
    half_s = 0.5 * simulate(dry=True, **world).ended.at_s
    sim = simulate(dry=True, dropout={"times": [None, half_s, half_s]}, **world)
    assert sim.ended.reason == "exhausted"
    assert sim.devices[0].outcome in ("ok", "ended")
    for device in sim.devices[1:]:
        assert device.is_gone
        mine = [s for s in sim.recorder.spans().to_pylist() if s["actor"] == device.id]
        assert max((s["end_s"] for s in mine), default=0.0) <= half_s
        if device.finished_at_s is None:
            assert device.outcome == "dropped"


def test_drop_outs_come_at_the_rate_and_the_share_that_are_asked_for(simulate):
    many = {
        "task": {"dataset": {"classes": 3, "tokens": 16}, "train": 400, "test": 6},
        "fleet": [{"count": 400, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}],
        "arrivals": {"kind": "at-once"},
        "fresh_data": {"kind": "poisson", "rate": "1 /d"},
        "stop": {"horizon": "2 h"},
    }
    rated = simulate(dry=True, dropout={"rate": "0.25 /h"}, **many)
    gone = sum(device.is_gone for device in rated.devices)
    meant = 1 - np.exp(-0.5)
    assert gone == pytest.approx(400 * meant, abs=4 * np.sqrt(400 * meant * (1 - meant)))
    shared = simulate(dry=True, dropout={"share": 0.2, "within": "1 h"}, **many)
    assert sum(device.is_gone for device in shared.devices) == pytest.approx(80, abs=4 * 8)


@pytest.mark.parametrize("kind", ["fed-mobillm", "fedavg-lora", "fedasync"])
def test_a_device_that_never_comes_back_is_not_waited_for(kind, simulate, monkeypatch):
    once = Availability(lambda cycle, free_s: [(0.0, 0.02)] if cycle == 0 else [], 100.0)

    def give(sim, how, folder):
        sim.devices[0].availability = once

    monkeypatch.setattr("sim.world.availability.assign", give)
    sim = simulate(dry=True, method=small(kind), arrivals={"kind": "at-once"}, task=TASK)
    assert sim.ended.reason == "exhausted"
    assert sim.devices[0].outcome == "never-back"
    assert max(s["end_s"] for s in of_device(sim, "compute", "upload", "download", "wait")) <= 0.02


# --- the world stays the same


def test_two_methods_meet_the_same_absences(simulate):
    """Availability depends on the device and the time alone."""
    world = {
        "availability": {"kind": "diurnal", "starts_at": "22 h"},
        "task": TASK,
        "stop": {"horizon": "12 h"},
    }
    one, other = (
        simulate(dry=True, method=small(kind), **world) for kind in ("fed-mobillm", "fedavg-lora")
    )
    for a, b in zip(one.devices, other.devices, strict=True):
        moments = np.random.default_rng(0).uniform(0, 3 * DAY_S, 100)
        assert [a.availability.is_on(t) for t in moments] == [
            b.availability.is_on(t) for t in moments
        ]


def test_a_run_without_a_horizon_ends_after_a_hundred_days(simulate, tmp_path):
    sim = simulate(
        "server.ingress=0", "traces={}", dry=True, availability=trace(tmp_path, (0, 40000)), **ONE
    )
    assert sim.ended.reason in ("stalled", "exhausted")
    assert sim.ended.at_s <= 100 * DAY_S


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "availability={kind: diurnal, rhythm: charging-wifi}",
            "did you mean 'charging-wifi-locked'",
        ),
        ("availability={kind: trace, path: nope.csv}", "cannot be opened"),
        ("availability={kind: diurnal, starts_at: 25 h}", "must be less than 86400"),
        ("dropout={times: [1 s]}", "1 drop-out times for 3 devices"),
        ("dropout={}", "say exactly one of rate, share and times"),
        ("dropout={share: 0.5, rate: 1 /d}", "say exactly one of rate, share and times"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(override, says, mobifleet, scenario_file):
    outcome = mobifleet("run", scenario_file(), "--dry", "-q", "--no-figures", "--set", override)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_a_scenario_without_churn_keeps_its_digest(scenario_file):
    from sim.scenario.file import load, resolved
    from sim.scenario.schema import Scenario

    data = resolved(load(str(scenario_file()), Scenario))
    assert not {"availability", "dropout"} & set(data)
    assert "drift" not in data["task"]


def test_labels_of_the_texts_that_come_drift(simulate):
    task = {
        "dataset": {"classes": 4, "tokens": 16},
        "train": 4_000,
        "test": 6,
        "drift": {"kind": "gradual"},
    }
    sim = simulate(dry=True, task=task, stop={"horizon": "1 us"})
    labels = sim.task.labels[np.stack([d.samples[:1_300] for d in sim.devices])]
    first, last = (
        np.bincount(part.ravel(), minlength=4) / part.size
        for part in (labels[:, :130], labels[:, -130:])
    )
    late = last > 0.25
    assert late.sum() == 2  # two of four labels, the same on every device
    assert first[late].sum() < 0.12
    assert last[late].sum() > 0.88
    calm = simulate(dry=True, task={**task, "drift": None}, stop={"horizon": "1 us"})
    for device, other in zip(sim.devices, calm.devices, strict=True):
        assert sorted(device.samples) == sorted(other.samples)


# --- arrivals as a scenario says them


@pytest.mark.parametrize(
    ("arrivals", "fresh"),
    [
        (
            {"kind": "diurnal", "mean_gap": "1 h", "starts_at": "20 h"},
            {"kind": "diurnal", "rate": "10 /h"},
        ),
        (
            {"kind": "burst", "size": 2, "mean_gap": "1 h"},
            {"kind": "burst", "size": 5, "mean_gap": "1 min"},
        ),
        (
            {"kind": "trace", "path": "join.csv"},
            {"kind": "trace", "path": "data.csv", "period": "1 min"},
        ),
    ],
)
def test_devices_and_data_come_as_the_scenario_says(arrivals, fresh, simulate, tmp_path):
    (tmp_path / "join.csv").write_text("time_s\n60\n10\n3600\n")
    (tmp_path / "data.csv").write_text("device,time_s\na,1\na,2\nb,30\n")
    sim = simulate(dry=True, arrivals=arrivals, fresh_data=fresh, task=TASK)
    assert sim.ended.reason == "exhausted"
    joined_s = [d.joined_at_s for d in sim.devices]
    if arrivals["kind"] == "trace":
        assert joined_s == [60.0, 10.0, 3600.0]
        assert {d._ready_s[0] - d.joined_at_s for d in sim.devices} <= {1.0, 30.0}
    if arrivals["kind"] == "burst":
        assert len(set(joined_s)) == 2
        assert all(len(np.unique(d._ready_s)) == 2 for d in sim.devices)
    for device in sim.devices:
        assert (np.diff(device._ready_s) >= 0).all()
        assert device._ready_s[0] >= device.joined_at_s
        mine = [s for s in sim.recorder.spans().to_pylist() if s["actor"] == device.id]
        assert min(s["start_s"] for s in mine) >= device.joined_at_s


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("arrivals={kind: diurnal, mean_gap: 1 s, hours: [1, 2]}", "at least 24"),
        ("arrivals={kind: burst, size: 0, mean_gap: 1 s}", "at least 1"),
        ("arrivals={kind: trace, path: nope.csv}", "cannot be opened"),
        ("fresh_data={kind: trace, path: nope.csv}", "cannot be opened"),
        ("fresh_data={kind: burst, size: 2, mean_gap: 0 s}", "greater than 0"),
        ("task.drift={kind: slow}", "gradual"),
        ("task.drift={kind: sudden, by: domain}", "client column"),
    ],
)
def test_arrivals_that_cannot_be_are_refused_in_one_message(
    override, says, mobifleet, scenario_file
):
    outcome = mobifleet("run", scenario_file(), "--dry", "-q", "--no-figures", "--set", override)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
