"""What the pages say is not modelled is still not: who models it finds here which sentence to take
out. One check for each statement that a small world can show.
"""

import dataclasses
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simpy

import devices.profile
import network.profile
from devices import compute
from devices.availability import by_rhythm, load
from devices.fleet import Group, draw
from devices.thermal import throttle_of
from learning.backbones.catalogue import find
from learning.cost.count_training import training_architecture
from network.mobility import Journey
from network.topology import Cell, Network
from network.varying import VaryingRate
from sim.world.costing import DoesNotFit

DOCS = Path(__file__).parents[2] / "docs"
SIZED = {"dataset": {"classes": 3, "tokens": 16}, "train": 24, "test": 6, "max_tokens": 16}
PHONE = {"count": 1, "device": "phone-2024-flagship", "backbone": "random-bert", "link": "lte"}
ONE = {
    "task": SIZED,
    "fleet": [PHONE],
    "arrivals": {"kind": "at-once"},
    "jitter": False,
    "cost_as": {"backbone": "bert-base", "tokens": 512},
    "method": {
        "kind": "fed-mobillm",
        "replay": 1,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        "device_batch": 8,
        "ship_side_network": False,
    },
}
ROUNDS = {"kind": "fedavg-lora", "rounds": 3, "participation": 1.0, "device_batch": 8}
SPLIT = {"kind": "splitfed-v1", "rounds": 1, "device_batch": 12}
SMALL = {key: ONE[key] for key in ("task", "arrivals", "jitter")}  # at its own, small cost
PROFILE = devices.profile.load("phone-2024-flagship")
POWER = PROFILE.engine("simple").power


def says(page: str, *statements: str) -> None:
    """The page still says so; if it rightly does not any more, its check here goes, too."""
    text = " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split())
    for statement in statements:
        assert statement in text, f"docs/{page}.md"


def watts(spans: list[dict]) -> list[float]:
    return [s["joules"] / (s["end_s"] - s["start_s"]) for s in spans]


def seconds(spans: list[dict]) -> list[float]:
    return [s["end_s"] - s["start_s"] for s in spans]


# --- devices


def test_a_rate_is_one_rate_however_large_the_batch():
    says("devices", "the better efficiency of larger batches within one engine")
    says("calibrate_device", "A rate that grows with the work.")
    for engine in PROFILE.engines:
        small_s, large_s, larger_s = (
            compute.seconds(PROFILE, engine, flop, 0.0) for flop in (1e9, 1e12, 2e12 - 1e9)
        )
        assert larger_s - large_s == pytest.approx(large_s - small_s, rel=1e-9)


def test_arithmetic_and_the_reading_of_weights_do_not_overlap():
    says("devices", "overlap of arithmetic and weight reading")
    both_s, flop_s, read_s, idle_s = (
        compute.seconds(PROFILE, "simple", *work)
        for work in ((1e11, 1e9), (1e11, 0.0), (0.0, 1e9), (0.0, 0.0))
    )
    assert both_s == pytest.approx(flop_s + read_s - idle_s, rel=1e-12)


def test_what_is_drawn_within_a_group_is_independent():
    says("devices", "Correlation within a group")
    group = Group(4_000, {"big": 1, "small": 1}, {"deep": 1, "shallow": 1})
    members = draw([group], lambda id_: np.random.default_rng(int(id_[7:])))
    pairs = [(m.device, m.backbone) for m in members]
    for pair in {("big", "deep"), ("small", "deep"), ("big", "shallow"), ("small", "shallow")}:
        assert abs(pairs.count(pair) - 1_000) < 5 * math.sqrt(750)  # 5 standard deviations


# --- energy


def test_a_radio_has_no_tail(simulate, spans):
    says("energy", "The radio's tail after a transfer")
    slow = {**PHONE, "link": "lte-driving"}
    sim = simulate(dry=True, **{**SMALL, "fleet": [PHONE, slow], "method": ROUNDS})
    waits = spans(sim, "wait", actor="device-0000")
    ends_s = {s["end_s"] for s in spans(sim, "upload", actor="device-0000")}
    assert waits and {s["start_s"] for s in waits} <= ends_s
    assert watts(waits) == pytest.approx([POWER.idle_w] * len(waits))


def test_a_radio_draws_the_same_on_every_link(simulate, spans):
    says("energy", "signal strength", "(a phone on WiFi is charged as on LTE)")
    fleet = [{**PHONE, "link": link} for link in ("lte", "lte-driving", "wifi-home")]
    sim = simulate(dry=True, **{**ONE, "fleet": fleet})
    sent = spans(sim, "upload")
    assert len({s["end_s"] - s["start_s"] for s in sent}) == 3
    assert watts(sent) == pytest.approx([POWER.uplink_w] * len(sent))


def test_computing_draws_the_same_however_slow_it_is(simulate, spans):
    says("energy", "power that depends on the load of the chip")
    says("thermal", "power that falls with the clock", "the joules and the heat of the other apps")
    busy = {"quiet": "1 ms", "busy": "1 h", "left": [0.5, 0.5]}
    method = {**ONE["method"], "device_batch": 4}
    world = {**ONE, "method": method, "fresh_data": {"kind": "poisson", "rate": "0.1 Hz"}}
    sims = [
        simulate(dry=True, **world, devices=how)
        for how in ({}, {"thermal": True}, {"background_load": busy})
    ]
    plain, hot, loaded = (sum(seconds(spans(sim, "compute"))) for sim in sims)
    assert loaded > 1.9 * plain and hot > 1.05 * plain
    for sim in sims:
        assert watts(spans(sim, "compute")) == pytest.approx([POWER.compute_w] * 6)
        waits = spans(sim, "wait", actor="device")  # nor do other apps draw while it idles
        assert waits and watts(waits) == pytest.approx([POWER.idle_w] * len(waits))


# --- heat, load, batteries


def test_only_computing_heats_and_every_device_begins_cold(simulate, spans):
    says("thermal", "Ambient temperature, case, screen, charging or radio as sources of heat")
    says("thermal", "a device that begins hot")
    narrow = {"ingress": {"times": ["0 s"], "capacity": ["10 kbit/s"]}}
    sim = simulate(dry=True, **ONE, devices={"thermal": True}, traces=narrow)
    throttle, heat, last_s = throttle_of(PROFILE), 0.0, 0.0
    work = sim.costing.forward(sim.devices[0].member, np.full(8, 512))
    work_s = compute.seconds(PROFILE, "simple", work.flop, work.bytes_moved)
    assert min(seconds(spans(sim, "upload"))) > 100  # a long time on the air
    for span in spans(sim, "compute"):
        heat = throttle.after_rest(heat, span["start_s"] - last_s)
        took_s, last_s = span["end_s"] - span["start_s"], span["end_s"]
        assert took_s == pytest.approx(throttle.seconds(heat, work_s), rel=1e-9)
        heat = throttle.after_work(heat, took_s)
    assert heat > 0.1


def test_background_load_knows_no_time_of_day(simulate):
    says("thermal", "*Not modelled.* Time of day, the joules and the heat of the other apps.")
    at_s = np.linspace(0, 86_400, 500)
    loads = []
    for hour in ("0 h", "12 h"):
        battery = {"hours": ["1 h", "5 h"], "starts_at": hour}
        sim = simulate(dry=True, **ONE, devices={"background_load": {}, "battery": battery})
        loads.append([sim.devices[0].conditions.load.at(t) for t in at_s])
    assert loads[0] == loads[1] and len(set(loads[0])) > 10


def test_batteries_charge_in_a_straight_line_and_do_not_age(simulate, spans):
    says("thermal", "charging losses and tapering, ageing")
    capacity_j = PROFILE.battery_wh * 3_600
    share = 20.0 / capacity_j  # of a few seconds' computing
    low = {"initial": [0.2, 0.2], "stop_below": 0.2, "resume_at": 0.2 + share, "charger": "10 W"}
    sim = simulate(dry=True, **ONE, devices={"battery": low})
    [first, *others] = seconds(spans(sim, "charge"))
    assert len(others) >= 2
    assert first == pytest.approx(20.0 / (10 - POWER.idle_w), rel=1e-5)
    assert others == pytest.approx([first] * len(others), rel=1e-5)
    near_full = {**low, "initial": [0.9, 0.9], "stop_below": 0.9, "resume_at": 0.9 + share}
    sim = simulate(dry=True, **ONE, devices={"battery": near_full})
    assert seconds(spans(sim, "charge"))[0] == pytest.approx(first, rel=1e-5)


def test_a_low_device_sends(simulate, spans):
    says("thermal", "sending while low (a low device still uploads)")
    battery = {"initial": [0.1, 0.1], "charger": None}
    method = {"kind": "upload-raw-text"}
    sim = simulate(dry=True, **{**ONE, "method": method, "devices": {"battery": battery}})
    assert spans(sim, "upload", outcome="ok") and not spans(sim, "charge")


# --- memory


def test_a_device_that_is_exactly_full_works_as_fast_as_any(simulate):
    says("memory", "Swap and compression, fragmentation, what the runtime itself takes")
    roomy = simulate(dry=True, **ONE)
    exact = {**PHONE, "memory": roomy.devices[0].peak_memory_bytes}
    full = simulate(dry=True, **{**ONE, "fleet": [exact]})
    assert full.recorder.spans().equals(roomy.recorder.spans())


def test_a_kill_takes_the_piece_alone_and_nobody_dies_while_sending(simulate, spans):
    says("memory", "a kill that takes more than the piece under way")
    says("memory", "memory held while a device only sends")
    pressure = {"share": [0.0, 0.999], "every": "1 s", "restart": "1 s", "retries": 1000}
    narrow = {"ingress": {"times": ["0 s"], "capacity": ["50 kbit/s"]}}
    sim = simulate(dry=True, **ONE, devices={"memory_pressure": pressure}, traces=narrow)
    work = sim.costing.forward(sim.devices[0].member, np.full(8, 512))
    work_s = compute.seconds(PROFILE, "simple", work.flop, work.bytes_moved)
    killed, whole = (spans(sim, "compute", outcome=how) for how in ("oom", "ok"))
    assert killed and seconds(whole) == pytest.approx([work_s] * 3)  # no more after a kill
    assert {s["kind"] for s in spans(sim, actor="device")} == {"compute", "wait", "upload"}
    sent = spans(sim, "upload")
    assert {s["outcome"] for s in sent} == {"ok"}
    taken = [sim.devices[0].conditions.taken.at(t) for s in sent for t in np.arange(*_edges(s))]
    [device] = sim.devices
    assert max(taken) > 1 - device.peak_memory_bytes / device.memory_bytes  # work would have died


def _edges(span: dict) -> tuple[float, float]:
    return span["start_s"], span["end_s"]


def test_the_memory_of_loras_own_weights_is_left_out(simulate):
    says("federated_peft", "the memory of LoRA's own weights beside the backbone's")
    sim = simulate(dry=True, **{**SMALL, "fleet": [PHONE], "method": {**ROUNDS, "rounds": 1}})
    [device] = sim.devices
    counted = training_architecture(find("random-bert"), "lora", 3, 8, head="dense")
    held = counted.step(8, 16, "adamw", False).peak_bytes + 8 * counted.trainable
    assert sim.method.peak_bytes(device) - held == sim.costing.weight_bytes(device.member)


def test_a_rank_stays_through_the_run(simulate, spans):
    says("federated_peft", "a rank that changes during the run")
    method = {**ROUNDS, "kind": "flexlora", "ranks": {"jetson-tx2": 4}}
    fleet = [PHONE, {**PHONE, "device": "jetson-tx2"}]
    sim = simulate(dry=True, **{**SMALL, "fleet": fleet, "method": method})
    sizes = {(s["actor"], s["nbytes"]) for s in spans(sim, "upload", "download")}
    assert len(spans(sim, "upload")) == 6 and len(sizes) == 2


def test_a_server_needs_no_memory(simulate, monkeypatch):
    says("forward_only_and_split", "The server's memory is not modelled.")
    load_, tiny = devices.profile.load, {"memory_bytes": 1}

    def load_tiny(name, *folder):
        found = load_(name, *folder)
        return dataclasses.replace(found, **tiny) if name == "a100" else found

    monkeypatch.setattr(devices.profile, "load", load_tiny)
    sim = simulate(dry=True, **{**SMALL, "fleet": [{**PHONE, "count": 3}], "method": SPLIT})
    assert sim.server.profile.memory_bytes == 1 and sim.updates == 1


@pytest.mark.thorough
def test_a_device_of_split_learning_need_not_hold_the_rest_of_the_backbone(simulate):
    says(
        "forward_only_and_split",
        "The check before a run asks that the device's parts fit in training; the rest of the "
        "backbone need not.",
    )
    deep = {
        "model_type": "bert",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 24,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    }
    world = {**SMALL, "method": {**SPLIT, "device_batch": 1}}
    world |= {"backbones": {"deep": {"random": deep}}}
    fleet = [{**PHONE, "backbone": "deep"}]
    sim = simulate(dry=True, **world, fleet=fleet)
    [device] = sim.devices
    assert device.peak_memory_bytes < 0.7 * sim.costing.weight_bytes(device.member)
    exact = [{**fleet[0], "memory": device.peak_memory_bytes}]
    assert simulate(dry=True, **world, fleet=exact).updates == 1
    with pytest.raises(DoesNotFit):
        less = [{**fleet[0], "memory": device.peak_memory_bytes - 1}]
        simulate(dry=True, **world, fleet=less)


def test_who_runs_no_backbone_need_not_hold_it_and_training_is_checked(simulate):
    says("pae_mobillm", "A device need not hold a backbone that it never runs")
    says("pae_mobillm", "`local-lst` for an epoch of training")
    small = {**SMALL, "fleet": [{**PHONE, "memory": 1_000}]}
    for kind in ("centralised", "upload-raw-text"):
        assert simulate(dry=True, **small, method={"kind": kind}).ended.reason == "exhausted"
    method = {"kind": "local-lst", "epochs": 1}
    needed = simulate(dry=True, **{**SMALL, "fleet": [PHONE], "method": method})
    short = {**PHONE, "memory": needed.devices[0].peak_memory_bytes - 1}
    with pytest.raises(DoesNotFit):
        simulate(dry=True, **{**SMALL, "fleet": [short], "method": method})


@pytest.mark.parametrize(
    "method", [{"kind": "mobillm"}, {"kind": "pae-mobillm", "shortcut": "matrix"}]
)
def test_matrices_that_wait_to_be_sent_must_fit(method, simulate):
    says("pae_mobillm", "for the largest forward pass with the matrices that wait to be sent")
    world = {**SMALL, "method": {**method, "epochs": 2, "device_batch": 8}}
    world["task"] = {**SIZED, "train": 40}
    peak = simulate(dry=True, **world, fleet=[PHONE]).devices[0].peak_memory_bytes
    [device] = simulate(dry=True, **world, fleet=[{**PHONE, "memory": peak}]).devices
    assert device.outcome == "ok" and device.peak_memory_bytes == peak
    with pytest.raises(DoesNotFit):
        simulate(dry=True, **world, fleet=[{**PHONE, "memory": peak - 1}])


def test_a_servers_cache_only_grows(simulate):
    says("pae_mobillm", "Cache eviction is unpublished and absent.")
    method = {"kind": "pae-mobillm", "epochs": 4, "server_batch": 8}
    sim = simulate(dry=True, **{**SMALL, "fleet": [{**PHONE, "count": 2}], "method": method})
    assert len(sim.method.cache) == 24  # every text, to the end


# --- there or not


def test_a_piece_of_work_that_is_cut_starts_anew(simulate, spans, tmp_path):
    says("availability", "A piece of work that is cut short starts anew")
    [first, *_] = spans(simulate(dry=True, **ONE), "compute")
    cut_s = 0.9 * first["end_s"]
    (tmp_path / "off.csv").write_text(
        f"device,ready_start_s,ready_end_s\na,0,{cut_s}\na,{2 * cut_s},80000\n"
    )
    sim = simulate(dry=True, **ONE, availability={"kind": "trace", "path": "off.csv"})
    [lost, again, *_] = spans(sim, "compute")
    assert lost["outcome"] == "offline" and again["flop"] == first["flop"]
    assert again["end_s"] - again["start_s"] == pytest.approx(first["end_s"])


def test_the_servers_work_for_a_device_that_goes_is_charged_until_then(simulate, spans):
    says(
        "availability", "Work of the server's for a device that goes is charged until then and lost"
    )
    world = {**SMALL, "fleet": [{**PHONE, "count": 2}], "method": SPLIT}
    whole = simulate(dry=True, **world)
    [step, other] = spans(whole, "train")
    half_s = (step["start_s"] + step["end_s"]) / 2
    sim = simulate(dry=True, **world, dropped=(0, half_s))
    [cut] = spans(sim, "train", outcome="dropped")
    assert cut["flop"] == pytest.approx(0.5 * step["flop"], rel=1e-6)
    assert [s["flop"] for s in spans(sim, "train", outcome="ok")] == [other["flop"]]


def test_a_rhythm_knows_no_weekend():
    says("availability", "weekends and holidays")
    rhythm, day_s = load("charging-wifi-locked"), 86_400.0
    kinds = {
        name: dataclasses.replace(kind, per_day=3.0, rate_shape=50.0)
        for name, kind in rhythm.kinds.items()
    }
    rhythm = dataclasses.replace(rhythm, never_ready=0.0, kinds=kinds)
    own = by_rhythm(rhythm, lambda which: np.random.default_rng(3))  # the same draws every day
    on = [[own.is_on(day * day_s + t) for t in np.arange(0, day_s, 600)] for day in range(1, 29)]
    assert all(day == on[0] for day in on) and 0 < sum(on[0]) < len(on[0])


def test_phones_go_off_each_by_itself_and_whatever_their_battery_holds(simulate):
    says("availability", "what ties phones to each other, such as a power cut or a time zone")
    says("availability", "a battery's charge (`devices.battery` does, apart from this")
    world = {**SMALL, "availability": {"kind": "diurnal", "never_ready": 0}}
    world |= {"method": {**ONE["method"], "server_batch": 1}}
    three = [{**PHONE, "count": 3}]

    def on(sim, device):
        own = sim.devices[device].availability
        return [own.is_on(t) for t in np.arange(0, 7 * 86_400, 900)]

    alone = simulate(dry=True, **world, fleet=[PHONE])
    fleet = simulate(dry=True, **world, fleet=three)
    charged = simulate(dry=True, **world, fleet=three, devices={"battery": {"initial": [0.1, 0.1]}})
    assert on(alone, 0) == on(fleet, 0) == on(charged, 0)
    assert on(fleet, 1) == on(charged, 1) != on(fleet, 0)


# --- the network

LINK = dataclasses.replace(network.profile.load("wifi-home"), latency_s=0.0)
NBYTES = 1_000_000


def finish_s(net: Network, *transfers: simpy.Event) -> list[float]:
    net.env.run(net.env.all_of(transfers))
    return [transfer.value for transfer in transfers]


def home(**how) -> Network:
    return Network(simpy.Environment(), cells={"home": Cell(**how)})


def test_slow_start_is_that_of_one_alone_and_every_payload_starts_anew():
    says(
        "network",
        "A transfer that shares from its beginning is charged the slow start of one alone.",
        "Every payload starts anew; a connection kept warm would not.",
    )
    slow = dataclasses.replace(LINK, latency_s=0.05, initial_window_bytes=14_600)
    nbytes = 60_000  # sent before the pipe is full

    def started_s(ingress_bps: float, at_once: int, one_by_one: int = 1) -> list[float]:
        """Seconds of each transfer beyond its bytes at its share of the server's link."""
        net = Network(simpy.Environment(), ingress_bps=ingress_bps)
        for device in range(at_once):
            net.attach(f"{device}", slow, tcp=True)
        ends_s = [0.0]
        for _ in range(one_by_one):
            found = finish_s(net, *[net.upload(f"{d}", nbytes) for d in range(at_once)])
            assert max(found) == pytest.approx(min(found))
            ends_s.append(max(found))
        each_bps = min(ingress_bps / at_once, slow.up_bps)
        return [b - a - 8 * nbytes / each_bps for a, b in pairwise(ends_s)]

    [alone_s] = started_s(1e9, 1)
    assert alone_s > 2 * slow.latency_s
    assert started_s(1e9, 1, 3) == pytest.approx([alone_s] * 3)  # one after the other
    assert started_s(2e6, 2) == pytest.approx([alone_s])  # shared from the beginning


def test_everyone_shares_alike_whatever_the_round_trip():
    says("network", "Unfairness by round-trip time: all transfers share alike.")
    net = Network(simpy.Environment(), ingress_bps=1e6)
    for name, latency_s in (("near", 0.001), ("far", 0.3)):
        net.attach(name, dataclasses.replace(LINK, latency_s=latency_s))
    sent = [net.upload(name, NBYTES) for name in ("near", "far")]
    passed = []
    for until_s in (1.0, 3.0):
        net.env.run(until_s)
        passed.append([net.progress(one)[0] for one in sent])
    near, far = np.subtract(passed[1], passed[0])
    assert near == pytest.approx(far) == pytest.approx(2 * 1e6 / 8 / 2)


def test_payloads_of_a_device_queue():
    says("network", "Several payloads of one device at once in one direction: they queue.")
    net = Network(simpy.Environment())
    net.attach("a", LINK)
    first_s, second_s = finish_s(net, net.upload("a", NBYTES), net.upload("a", NBYTES))
    assert (first_s, second_s) == pytest.approx((8 * NBYTES / LINK.up_bps, 2 * first_s))


def test_a_device_brings_its_rate_along():
    says("network", "A device's own rate in each cell that it visits: it brings its rate along.")
    net = Network(simpy.Environment(), cells={name: Cell(1e9, 1e9) for name in ("a", "b")})
    journey = Journey(["a", "b"], 0.05, np.random.default_rng(0))
    net.attach("moving", LINK, journey=journey)
    [end_s] = finish_s(net, net.upload("moving", NBYTES))
    assert len({journey.at(t) for t in np.linspace(0, end_s, 50)}) == 2
    assert end_s == pytest.approx(8 * NBYTES / LINK.up_bps)


def test_a_rate_that_varies_is_never_zero():
    says("network", "Nor does a log-normal rate ever become zero")
    rate = VaryingRate(1e6, 2.0, 0.9, np.random.default_rng(0))
    drawn = [rate.at(float(t)) for t in range(1_800)]
    assert min(drawn) > 0 and min(drawn) < 1e5 < 3e6 < max(drawn)


@pytest.mark.parametrize("kind", ["wifi", "cellular"])
def test_up_and_down_do_not_disturb_each_other_on_air(kind):
    says("network", "On air, up and down do not disturb each other")
    says("wifi", "here each has a channel of its own")
    alone, both = home(kind=kind), home(kind=kind)
    for net in (alone, both):
        net.attach("a", LINK, cell="home")
    [alone_s] = finish_s(alone, alone.upload("a", NBYTES))
    assert finish_s(both, both.upload("a", NBYTES), both.download("a", NBYTES))[0] == alone_s


def test_many_stations_lose_nothing_to_collisions():
    says("wifi", "Collisions and back-off, which cost more with many stations")
    for stations in (1, 2, 40):
        net = home(kind="wifi")
        for station in range(stations):
            net.attach(f"{station}", LINK, cell="home")
        ends_s = finish_s(net, *[net.upload(f"{one}", NBYTES) for one in range(stations)])
        assert ends_s == pytest.approx([stations * 8 * NBYTES / LINK.up_bps] * stations)


def test_a_turn_is_as_many_bytes_whoever_has_it():
    says("wifi", "stations in turn are taken to send equally many bytes a turn")
    net = home(kind="wifi")
    for name, nbytes in (("small", 200), ("large", NBYTES)):
        net.attach(name, LINK, cell="home")
        net.upload(name, nbytes)
    net.env.run(1e-5)
    link = net.shared["home/up"]
    assert link.n_flows == 2 and link.level_bps == pytest.approx(LINK.up_bps / 2)


def test_a_schedulers_gain_is_one_number_from_two_users_on():
    says("wifi", "it is one number from two users on")
    for users, gain in ((1, 1.0), (2, 1.3), (20, 1.3)):
        net = home(kind="cellular", gain=1.3)
        for user in range(users):
            net.attach(f"{user}", LINK, cell="home")
        ends_s = finish_s(net, *[net.upload(f"{user}", NBYTES) for user in range(users)])
        assert ends_s == pytest.approx([users * 8 * NBYTES / LINK.up_bps / gain] * users)


# --- and the pages themselves

CHECKED = re.compile(r"\b(not modelled|does not model)\b", re.IGNORECASE)
PAGES = {
    *("availability", "calibrate_device", "devices", "energy", "federated_peft"),
    *("forward_only_and_split", "memory", "network", "pae_mobillm", "thermal", "wifi"),
}
BY_EXECUTION = {"validation"}  # what real processes showed


def test_every_page_that_says_so_is_looked_at_here():
    found = {path.stem for path in DOCS.glob("*.md") if CHECKED.search(path.read_text("utf-8"))}
    assert found == PAGES | BY_EXECUTION
